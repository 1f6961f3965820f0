"""A region of several nodes: who counts as a replica, what they hold, and what they are asked. No I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.errors import ReadOnlyError
from everwrite.server.messages import Ask, Batch, Heartbeat
from everwrite.server.region import Completeness, quorum_of
from everwrite.server.region_asks import AnswerTimes, RegionAsks, Step
from everwrite.server.settings import ReplicationSettings
from tests.fake_store import EPOCH_MS, FakeStore
from tests.replication_support import Network, Node, errors, messages, one_region, two_regions

SETTINGS = ReplicationSettings()


def shown(node: Node) -> tuple[int, int, bool]:
    last = node.region[-1]
    return last.replicas, last.alive, last.recovering


# -- the pure part ------------------------------------------------------------------------------------


def test_a_quorum_is_a_majority() -> None:
    assert [quorum_of(replicas) for replicas in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]


def test_a_question_is_over_when_enough_have_answered() -> None:
    asks = RegionAsks(SETTINGS)
    token, step = asks.begin(0.0, b"?", 2, 1.0, [0, 1, 2, 3])
    assert step == ([(token, 0), (token, 1)], [])
    assert asks.answered(0.1, token, 0) == ([], [])
    assert asks.answered(0.1, token, 0) == ([], [])  # twice counts once
    assert asks.answered(0.1, token, 3) == ([], [])  # who wasn't asked doesn't count
    assert asks.answered(0.1, token, 1) == ([], [(token, 2)])
    assert asks.answered(0.1, token, 1) == ([], [])
    assert asks.next_time() is None


def test_those_who_answer_fastest_are_asked() -> None:
    asks = RegionAsks(SETTINGS)
    for replica, seconds in ((0, 0.3), (1, 0.1), (2, 0.2)):
        token, _ = asks.begin(0.0, b"?", 1, 1.0, [replica])
        asks.answered(seconds, token, replica)
    token, step = asks.begin(0.0, b"?", 2, 1.0, [0, 1, 2])
    assert step.sends == [(token, 1), (token, 2)]


def test_one_that_was_slow_is_tried_again_some_day() -> None:
    asks = RegionAsks(SETTINGS)
    for replica, seconds in ((0, 0.5), (1, 0.001)):
        token, _ = asks.begin(0.0, b"?", 1, 1.0, [replica])
        asks.answered(seconds, token, replica)
    chosen = set()
    for _ in range(2000):
        token, step = asks.begin(0.0, b"?", 1, 1.0, [0, 1])
        chosen.add(step.sends[0][1])
        asks.answered(0.5 if step.sends[0][1] == 0 else 0.001, token, step.sends[0][1])
    assert chosen == {0, 1}


def test_another_one_is_asked_in_place_of_one_that_is_lost() -> None:
    asks = RegionAsks(SETTINGS)
    token, step = asks.begin(0.0, b"?", 1, 1.0, [0, 1, 2])
    assert step.sends == [(token, 0)]
    assert asks.lost(0.1, 0, [1, 2]) == ([(token, 1)], [])
    assert asks.lost(0.2, 0, [1, 2]) == ([], [])
    assert asks.lost(0.2, 1, [0, 2]) == ([(token, 2)], [])  # 0 is back, but what it was asked is lost
    assert asks.lost(0.3, 2, [0, 1]) == ([], [(token, 0)])
    assert asks.failed == 1


def test_too_few_replicas_are_a_failure_at_once() -> None:
    asks = RegionAsks(SETTINGS)
    token, step = asks.begin(0.0, b"?", 2, 1.0, [4])
    assert step == ([], [(token, 0)])


def test_a_deadline_ends_a_question_with_what_has_come() -> None:
    asks = RegionAsks(SETTINGS)
    token, _ = asks.begin(0.0, b"?", 2, 1.0, [0, 1])
    asks.answered(0.01, token, 1)
    assert asks.tick(0.05, [0, 1]) == ([], [])  # nobody is left to ask in place of the slow one
    assert asks.next_time() == 1.0
    assert asks.tick(0.9, [0, 1]) == ([], [])
    assert asks.tick(1.0, [0, 1]) == ([], [(token, 1)])
    assert asks.answered(1.1, token, 0) == ([], [])


def test_one_more_is_asked_when_answers_take_longer_than_most() -> None:
    asks = RegionAsks(SETTINGS)
    for number in range(100):
        token, _ = asks.begin(0.0, b"?", 1, 1.0, [0])
        asks.answered(0.001 * (number + 1), token, 0)
    token, step = asks.begin(0.0, b"?", 1, 1.0, [0, 1])
    [(_, first)] = step.sends
    other = 1 - first
    assert asks.next_time() == pytest.approx(0.096)
    assert asks.tick(0.095, [0, 1]) == ([], [])
    assert asks.tick(0.097, [0, 1]) == ([(token, other)], [])
    assert asks.next_time() == 1.0
    assert asks.answered(0.098, token, other) == ([], [(token, 1)])
    assert asks.answered(0.099, token, first) == ([], [])
    assert asks.speculative == 1


def test_who_was_overtaken_is_asked_less() -> None:
    asks = RegionAsks(SETTINGS)
    for replica in (0, 1):
        token, _ = asks.begin(0.0, b"?", 1, 1.0, [replica])
        asks.answered(0.001 * (replica + 1), token, replica)
    token, step = asks.begin(0.0, b"?", 1, 1.0, [0, 1])
    assert step.sends == [(token, 0)]
    asks.tick(0.5, [0, 1])
    asks.answered(0.502, token, 1)
    token, step = asks.begin(1.0, b"?", 1, 2.0, [0, 1])
    assert step.sends == [(token, 1)]


@given(st.lists(st.floats(0.0, 10.0), max_size=500))
def test_the_percentile_is_that_of_the_last_answers(seconds: list[float]) -> None:
    times = AnswerTimes()
    for each in seconds:
        times.note(each)
    recent = sorted(seconds[-200:])
    expected = recent[len(recent) * 95 // 100] if recent else 0.05
    assert times.percentile_95() == expected


EVENTS = st.lists(
    st.tuples(st.sampled_from(["ask", "answer", "lose", "tick", "refuse", "cancel"]), st.integers(0, 4)), max_size=60
)


@given(EVENTS, st.integers(0, 4))
def test_every_question_is_over_once_and_says_how_many_answered(events: list[tuple[str, int]], wanted: int) -> None:
    asks = RegionAsks(SETTINGS)
    available = set(range(5))
    answered: dict[int, set[int]] = {}
    asked: dict[int, set[int]] = {}
    over: dict[int, int] = {}
    cancelled: set[int] = set()
    now = 0.0

    def take(step: Step) -> None:
        for token, replica in step.sends:
            assert replica in available
            assert replica not in asked[token], "asked twice"
            asked[token].add(replica)
        for token, received in step.over:
            assert token not in over
            assert token not in cancelled
            assert received == len(answered[token])
            over[token] = received

    token = 0
    for event, replica in events:
        now += 0.03
        if event == "ask":
            asked[token + 1], answered[token + 1] = set(), set()
            token, step = asks.begin(now, b"?", wanted, now + 0.2, available)
            take(step)
        elif event == "answer" and token:
            if asks.waits_for(token, replica):
                assert replica in asked[token]
                answered[token].add(replica)
            take(asks.answered(now, token, replica))
        elif event == "lose":
            # It is back as soon as it is gone.
            take(asks.lost(now, replica, available - {replica}))
        elif event == "refuse" and token:
            take(asks.refused(now, token, replica, available))
        elif event == "tick":
            take(asks.tick(now, available))
        elif event == "cancel" and token and token not in over:
            cancelled.add(token)
            asks.cancel(token)
    take(asks.tick(now + 1.0, available))
    assert over.keys() | cancelled == asked.keys()
    assert all(received <= wanted for received in over.values())
    assert len(asks) == 0


def test_questions_under_way_are_bounded() -> None:
    asks = RegionAsks(SETTINGS)
    for _ in range(SETTINGS.asks_max):
        _, step = asks.begin(0.0, b"?", 1, 1.0, [0])
        assert step.sends
    token, step = asks.begin(0.0, b"?", 1, 1.0, [0])
    assert step == ([], [(token, 0)])
    asks.cancel(1)
    assert asks.begin(0.0, b"?", 1, 1.0, [0])[1].sends


# -- the view -----------------------------------------------------------------------------------------


def test_a_node_alone_is_a_region_that_holds_everything() -> None:
    _, us, _ = two_regions()
    assert [shown(us)] == [(1, 1, False)]
    assert us.region[-1].quorum_held == us.region[-1].all_held == 2**64 - 1
    assert not list(us.store.system_items(b"replica/"))


def test_nodes_of_a_region_find_each_other() -> None:
    _, nodes = one_region(3)
    assert [shown(node) for node in nodes] == [(3, 3, False)] * 3


def test_changes_reach_the_region_at_once() -> None:
    network, [a, b, c] = one_region(3)
    before = len(messages(a, Batch))
    for number in range(3):
        a.set(b"%d" % number, b"")
    assert len(messages(a, Batch)) == before + 6
    network.run(0.0011)
    assert b.store.get(b"2") is not None
    assert c.store.get(b"2") is not None


def test_a_quorum_holds_what_a_majority_has_committed() -> None:
    network, [a, b, c] = one_region(3)
    network.cut(a.name, c.name)
    timestamp = a.set(b"key", b"value")
    network.run(0.01)
    assert a.region[-1].quorum_held >= timestamp > a.region[-1].all_held
    network.heal(a.name, c.name, 0.001)
    network.run_until(lambda: a.region[-1].all_held >= timestamp)
    assert b.store.get(b"key") == c.store.get(b"key") == b"value"


def test_what_is_applied_and_not_committed_is_not_held() -> None:
    network, [a, b] = one_region(2)
    network.commit_seconds = 0.1
    timestamp = a.set(b"key", b"value")
    network.run(0.09)
    assert b.store.get(b"key") is not None
    assert a.region[-1].quorum_held < timestamp
    network.run(0.02)
    assert a.region[-1].quorum_held >= timestamp


def test_a_lost_connection_counts_at_once() -> None:
    network, [a, b, _] = one_region(3)
    b.halt()
    network.run(0.0011)
    assert shown(a) == (3, 2, False)
    b.boot()
    network.run_until(lambda: shown(a) == (3, 3, False), seconds=1.0)


def test_a_silent_replica_is_suspected_long_before_its_connection_ends() -> None:
    network, [a, b, _] = one_region(3)
    network.cut(a.name, b.name)
    silent = network.run_until(lambda: shown(a) == (3, 2, False))
    assert 0.5 < silent < 1.0
    [status] = [status for status in a.replicator.statuses(network.now) if status["node"] == "us-b-0"]
    assert status["connected"]
    assert status["alive"] is False
    assert status["phi"] >= 8.0
    network.heal(a.name, b.name, 0.001)
    network.run_until(lambda: shown(a) == (3, 3, False), seconds=8.0)


def test_a_node_that_stood_still_itself_suspects_nobody() -> None:
    network, [a, *_] = one_region(3)
    network.now += 5.0
    for peer in a.replicator.peers:
        for link in (peer.receiver, peer.sender):
            assert link is not None
            link.session.received_at = network.now  # else the connections time out
    a.call("timer")
    assert shown(a) == (3, 3, False)
    # From here on silence counts again.
    for _ in range(6):
        network.now += 0.19
        a.call("timer")
    assert shown(a) == (3, 1, False)


def test_peers_of_other_regions_are_no_replicas() -> None:
    network, us, _ = two_regions()
    [status] = us.replicator.statuses(network.now)
    assert status["alive"] is None
    assert status["phi"] is not None


def test_nodes_that_count_differently_refuse_each_other() -> None:
    network = Network()
    network.region_of = dict.fromkeys(("us-a", "us-b", "us-c"), "us")
    a = network.add("us-a", [])
    b, c = network.add("us-b", ["us-a", "us-c"]), network.add("us-c", ["us-a", "us-b"])
    network.run(3.0)
    for node in (b, c):
        assert errors(node)["peer_region_mismatch"] > 0
        assert shown(node) == (3, 1, True)
    assert errors(a)["region_mismatch"] > 0
    told = next(log for log in a.logs if log.event == "region_mismatch")
    assert "holds that its region is us-a-0, us-b-0, us-c-0, and this node that it is us-a-0: configure" in told.message


# -- asking -------------------------------------------------------------------------------------------


def cut_off(network: Network, a: Node, b: Node) -> None:
    """Let `b` have no batches of `a`: both connections stand, and the log stays with `a`."""
    for peer in a.replicator.peers:
        if peer.node == b.identity.node:
            assert peer.sender is not None
            peer.sender.unacked_bytes = 1 << 40
    assert network.delay(a, b) is not None


def test_what_another_replica_knows_more_is_there_when_the_question_is_answered() -> None:
    network, [a, b] = one_region(2)
    cut_off(network, a, b)
    a.set(b"key", b"value")
    token = b.ask([b"key", b"absent"], 1, 1.0)
    network.run(0.0015)
    assert token not in b.answered
    assert b.store.get(b"key") is None
    network.run(0.001)
    assert b.answered == {token: 1}
    assert b.store.get(b"key") == b"value"
    assert a.store.applied[a.store.origin] > b.store.applied[a.store.origin]
    assert b.replicator.statistics()["repairs"] == 1
    assert b.replicator.statistics()["answers"] == 1
    assert a.replicator.statistics()["answers_given"] == 1


def test_what_was_joined_gets_committed() -> None:
    network, [a, b] = one_region(2)
    cut_off(network, a, b)
    a.set(b"key", b"value")
    b.ask([b"key"], 1, 1.0)
    network.run(0.0021)
    commits = b.store.commits
    network.run(0.001)
    assert b.store.commits == commits + 1


def test_a_large_answer_comes_in_pieces_and_others_go_on() -> None:
    network, [a, b] = one_region(2)
    cut_off(network, a, b)
    keys = [b"%d" % number for number in range(40)]
    for key in keys:
        a.set(key, bytes(100_000))
    token = b.ask(keys, 1, 1.0)
    network.run(0.01)
    assert b.answered == {token: 1}
    assert all(b.store.get(key) for key in keys)


def test_a_replica_that_answers_nothing_is_given_up_at_the_deadline() -> None:
    network, [a, b] = one_region(2)
    network.cut(a.name, b.name)
    token = a.ask([b"key"], 1, 0.05)
    network.run(0.049)
    assert a.answered == {}
    network.run(0.002)
    assert a.answered == {token: 0}


def test_a_lost_replica_is_replaced() -> None:
    network, [a, b, c] = one_region(3)
    token = a.ask([b"key"], 1, 1.0)
    at, connection, _ = a.sent[-1]
    assert at == network.now
    asked = next(end.other.node for number, end in a.ends.items() if number == connection and end.other)
    assert asked in (b, c)
    asked.halt()
    network.run(0.01)
    assert a.answered == {token: 1}
    assert len(messages(a, Ask)) == 2


def test_another_replica_is_asked_when_one_is_slow() -> None:
    network, [a, b, c] = one_region(3)
    for _ in range(20):
        a.ask([b"key"], 1, 1.0)
        network.run(0.01)
    before = len(messages(a, Ask))
    for other in (b, c):
        network.heal(a.name, other.name, 0.3)
    token = a.ask([b"key"], 1, 5.0)
    assert len(messages(a, Ask)) == before + 1
    network.run(0.003)
    assert len(messages(a, Ask)) == before + 2
    network.run(0.7)
    assert a.answered[token] == 1
    assert a.replicator.statistics()["asks_speculative"] == 1


def test_a_full_disk_of_who_asks_costs_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    network, [a, b] = one_region(2)
    cut_off(network, a, b)
    a.set(b"key", b"value")

    def fail(states: object, conversation: object) -> int:
        raise ReadOnlyError("the disk is full")

    monkeypatch.setattr(b.store, "join_piece", fail)
    token = b.ask([b"key"], 1, 1.0)
    network.run(0.01)
    assert b.answered == {token: 0}
    assert shown(b) == (2, 2, False)


def test_a_cancelled_question_is_not_answered() -> None:
    network, [a, _] = one_region(2)
    token = a.ask([b"key"], 1, 0.05)
    a.replicator.cancel_ask(token)
    network.run(0.2)
    assert a.answered == {}


def test_a_node_that_stops_ends_its_questions() -> None:
    network, [a, b] = one_region(2)
    network.cut(a.name, b.name)
    token = a.ask([b"key"], 1, 10.0)
    a.perform(a.replicator.stop(network.now))
    assert a.answered == {token: 0}


# -- recovering ---------------------------------------------------------------------------------------


def test_a_new_node_needs_all_others_of_three_to_know_that_it_is_complete() -> None:
    network = Network()
    network.region_of = dict.fromkeys(("us-a", "us-b", "us-c"), "us")
    a, b = network.add("us-a", ["us-b", "us-c"]), network.add("us-b", ["us-a", "us-c"])
    network.run(3.0)
    assert a.region[-1].recovering
    assert b.region[-1].recovering
    assert not any(message.complete for _, message in messages(a, Heartbeat) if isinstance(message, Heartbeat))
    c = network.add("us-c", ["us-a", "us-b"])
    network.run_until(lambda: [shown(node) for node in (a, b, c)] == [(3, 3, False)] * 3, seconds=6.0)


def test_a_node_that_loses_nothing_needs_nobody() -> None:
    _, nodes = one_region(3)
    for node in nodes:
        node.halt()
    nodes[0].store.crash()
    nodes[0].boot()
    assert not nodes[0].region[-1].recovering


def test_what_a_node_has_written_since_it_started_is_nothing_to_wait_for() -> None:
    store = FakeStore(1, lambda: EPOCH_MS)
    completeness = Completeness(store, "us", 1)
    committed = dict(store.applied)
    timestamp = store.set(b"key", b"value")
    completeness.told(0, {store.origin: timestamp})
    assert completeness.check(committed)
    assert completeness.complete


def test_a_node_that_may_have_lost_its_end_counts_again_when_it_has_it_back() -> None:
    network, [a, b, c] = one_region(3)
    network.cut(a.name, b.name)
    a.store.durability = c.store.durability = "os"
    a.set(b"key", b"value")
    network.run(0.01)
    assert c.store.get(b"key") == b"value"
    c.halt()
    network.run(0.1)
    c.store.lose(1)
    c.store.crash()
    network.cut(a.name, c.name)
    c.boot()
    network.run(6.0)
    # b has never heard of the write: as long as a is away c can't know that it was acknowledged.
    assert c.region[-1].recovering
    assert shown(b)[1] == 1
    network.heal(a.name, c.name, 0.001)
    network.run_until(lambda: not c.region[-1].recovering)
    assert c.store.get(b"key") == b"value"
    network.run_until(lambda: shown(b)[1] == 2, seconds=0.1)
