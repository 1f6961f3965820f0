"""The replication machine in virtual time: nodes wired with delays, cuts, resets and restarts. No I/O."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import msgspec
import pytest

from everwrite.errors import StorageError
from everwrite.server import codec
from everwrite.server.messages import Ack, Batch, Hello, Message, Resync, ResyncEnd
from everwrite.server.settings import ReplicationSettings
from tests.replication_support import (
    Network,
    connected,
    converged,
    errors,
    messages,
    three_regions,
    two_regions,
)

SETTINGS = ReplicationSettings()


# -- the stream ---------------------------------------------------------------------------------------


def test_three_regions_connect_and_converge() -> None:
    network = three_regions()
    network.run_until(lambda: all(connected(node) for node in network.nodes.values()), seconds=1.0)
    for region, node in network.nodes.items():
        for number in range(50):
            node.set(b"%s-%d" % (region.encode(), number), b"value")
            node.set(b"shared", region.encode())
    network.run_until(lambda: converged(network), seconds=1.0)
    assert len(network.nodes["us"].store.visible()) == 151


def test_the_first_change_after_a_pause_takes_one_delay() -> None:
    network, us, eu = two_regions()
    us.set(b"key", b"value")
    assert network.run_until(lambda: eu.store.get(b"key") is not None) == pytest.approx(0.02)


def test_changes_that_follow_are_batched_every_ten_milliseconds() -> None:
    network, us, eu = two_regions()
    before = len(messages(us, Batch))
    for number in range(100):
        us.set(b"%d" % number, b"value")
        network.run(0.001)
    network.run_until(lambda: converged(network))
    sent = messages(us, Batch)[before:]
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(sent)]
    assert min(gaps) >= 0.010 - 1e-9
    assert len(sent) <= 12
    assert eu.store.get(b"99") == b"value"


def test_a_hundred_changes_do_not_wait() -> None:
    network, us, _ = two_regions()
    us.set(b"first", b"")
    at = network.now
    for number in range(99):
        us.set(b"%d" % number, b"value")
    assert messages(us, Batch)[-1][0] == at
    assert us.replicator.statuses(at)[0]["lag_changes"] == 100
    us.set(b"last", b"")
    sizes = [batch.changes for _, batch in messages(us, Batch)[-2:] if isinstance(batch, Batch)]
    assert sizes == [1, 100]
    assert network.now == at


def test_a_receiver_that_is_behind_gets_large_batches() -> None:
    network, us, eu = two_regions()
    eu.halt()
    network.run(1.0)
    before = len(messages(us, Batch))
    for number in range(12_000):
        us.store.set(b"%d" % number, b"value")
    eu.boot()
    network.run_until(lambda: converged(network))
    sizes = [batch.changes for _, batch in messages(us, Batch)[before:] if isinstance(batch, Batch)]
    assert max(sizes) == 5000
    assert len(sizes) < 10


def test_bytes_may_arrive_in_any_division() -> None:
    network, us, eu = two_regions(fragment=True, seed=5)
    for number in range(300):
        us.set(b"%d" % number, b"x" * number)
        eu.set(b"e%d" % number, b"x" * number)
        network.run(0.001)
    network.run_until(lambda: converged(network))
    assert set(errors(us)) <= {"unreachable"}


@pytest.mark.parametrize("seed", range(20))
def test_resets_cuts_and_crashes_lose_nothing_and_double_nothing(seed: int) -> None:
    network = three_regions(seed=seed, fragment=True)
    rng = random.Random(seed)
    nodes = list(network.nodes.values())
    written: dict[bytes, bytes] = {}
    for number in range(400):
        network.run(rng.random() * 0.1)
        a, b = rng.sample(sorted(network.nodes), 2)
        match rng.randrange(12):
            case 0:
                network.break_connections(a, b)
            case 1:
                network.cut(a, b)
            case 2 | 3:
                network.heal(a, b, rng.random() * 0.2)
            case 4:
                node = network.nodes[a]
                if node.up:
                    node.halt()
                    node.store.crash()  # everything was committed: nothing is lost
                    node.boot()
        node = rng.choice(nodes)
        key, value = b"%d" % number, rng.randbytes(20)
        written[key] = value
        node.set(key, value)
    for a, b in itertools.combinations(network.nodes, 2):
        network.heal(a, b)
    network.run_until(lambda: all(node.store.visible() == written for node in nodes), seconds=60.0)
    network.run(20.0)
    for node in nodes:
        assert connected(node)
        assert node.failure is None
        keys = [change.key for change in node.store.log if not change.key.startswith(b"\0")]
        assert len(keys) == len(set(keys)) == len(written)
        allowed = {"unreachable", "disconnected", "timeout", "replaced", "peer_replaced", "peer_timeout"}
        assert set(errors(node)) <= allowed, errors(node)


# -- positions ----------------------------------------------------------------------------------------


def test_an_acknowledgement_comes_only_after_the_commit() -> None:
    network, us, eu = two_regions()
    network.commit_seconds = 3.0
    timestamp = us.set(b"key", b"value")
    network.run(2.9)
    assert eu.store.get(b"key") == b"value"
    assert us.replicator.statuses(network.now)[0]["acked"] < timestamp
    network.run(0.2)
    assert us.replicator.statuses(network.now)[0]["acked"] >= timestamp


def test_one_commit_covers_what_arrived_while_another_was_under_way() -> None:
    network, us, eu = two_regions()
    network.commit_seconds = 0.5
    acks = len(messages(eu, Ack))
    for number in range(60):
        us.set(b"%d" % number, b"value")
        network.run(0.01)
    network.run_until(lambda: us.replicator.drained())
    assert len(messages(eu, Ack)) - acks <= 5


def test_unacknowledged_bytes_are_bounded() -> None:
    network, us, eu = two_regions()
    network.commit_seconds = 1000.0  # eu never acknowledges
    largest = 0
    for number in range(3000):
        us.set(b"%d" % number, b"x" * 10_000)
        if number % 100 == 0:
            network.run(0.05)
        largest = max(largest, us.replicator.statuses(network.now)[0]["unacked_bytes"])
    assert 3 << 20 < largest < (4 << 20) + (2 << 20)
    assert len(eu.store.visible()) < 700
    status = us.replicator.statuses(network.now)[0]
    assert status["lag_changes"] >= 3000
    assert status["lag_seconds"] > 1.0


def test_a_shut_window_opens_with_acknowledgements() -> None:
    network, us, _ = two_regions()
    network.commit_seconds = 0.2
    for number in range(3000):
        us.set(b"%d" % number, b"x" * 10_000)
    network.run_until(lambda: converged(network))
    network.run_until(lambda: us.replicator.drained())


def test_an_idle_link_shows_no_lag() -> None:
    network, us, eu = two_regions()
    us.set(b"key", b"value")
    network.run(30.0)
    for node in (us, eu):
        status = node.replicator.statuses(network.now)[0]
        assert status["lag_seconds"] == status["receive_lag_seconds"] == 0.0
        assert status["lag_changes"] == status["receive_lag_changes"] == 0


def test_lag_grows_while_a_link_is_cut_and_goes_when_it_heals() -> None:
    network, us, eu = two_regions()
    network.cut("us", "eu")
    network.run(10.0)
    assert us.status("eu")["lag_seconds"] == 0.0  # there is nothing that eu lacks
    for number in range(7):
        us.set(b"%d" % number, b"value")
    network.run(20.0)
    sending, receiving = us.status("eu"), eu.status("us")
    assert not sending["connected"]
    assert sending["lag_seconds"] == pytest.approx(20.0)
    assert sending["lag_changes"] == 8  # and the report that follows changes
    assert receiving["receive_lag_seconds"] == pytest.approx(30.0, abs=1.1)
    network.heal("us", "eu")
    network.run_until(lambda: us.status("eu")["lag_seconds"] == 0.0 and us.status("eu")["connected"] is True)
    assert converged(network)


def test_a_receiver_knows_that_it_is_behind() -> None:
    network, us, eu = two_regions(settings=replace(SETTINGS, report_interval=1e9))
    us.store.set(b"key", b"value")
    us.store.lose(1)  # the change exists and heartbeats tell of it, but it may not leave before it is durable
    network.run(4.0)
    assert eu.store.get(b"key") is None
    assert 3.0 < float(str(eu.status("us")["receive_lag_seconds"])) <= 4.0
    us.store.commit()
    us.perform(us.replicator.local_write(network.now))
    network.run(0.1)
    assert eu.status("us")["receive_lag_seconds"] == 0.0


# -- waiting ------------------------------------------------------------------------------------------


def test_wait_counts_regions() -> None:
    network = three_regions()
    network.run(2.0)
    network.delays[frozenset(("us", "ap"))] = 0.5
    us = network.nodes["us"]
    timestamp = us.set(b"key", b"value")
    one, two, three = us.wait(timestamp, 1, 10.0), us.wait(timestamp, 2, 10.0), us.wait(timestamp, 3, 3.0)
    assert us.resolved == {}
    network.run(0.1)
    assert us.resolved == {one: 1}
    network.run(1.0)
    assert us.resolved == {one: 1, two: 2}
    network.run(2.0)
    assert us.resolved == {one: 1, two: 2, three: 2}
    done, none = us.wait(timestamp, 2, 1.0), us.wait(timestamp, 0, 1.0)
    assert us.resolved[done] == us.resolved[none] == 2


def test_wait_ends_at_its_deadline() -> None:
    network = three_regions()
    network.run(2.0)
    us = network.nodes["us"]
    network.cut("us", "ap")
    token = us.wait(us.set(b"key", b"value"), 2, 1.5)
    assert network.run_until(lambda: token in us.resolved) == pytest.approx(1.5)
    assert us.resolved[token] == 1


def test_wait_without_a_deadline() -> None:
    network, us, _ = two_regions()
    impossible = us.wait(us.set(b"key", b"value"), 2, None)
    assert us.resolved == {impossible: 0}
    patient = us.wait(us.store.last_timestamp, 1, None)
    network.run(0.1)
    assert us.resolved[patient] == 1
    network.cut("us", "eu")
    cancelled, stopped = (us.wait(us.set(b"key", b"again"), 1, None) for _ in range(2))
    us.replicator.cancel(cancelled)
    us.perform(us.replicator.stop(network.now))
    assert us.resolved[stopped] == 0
    assert cancelled not in us.resolved


def test_a_wait_survives_a_reconnection() -> None:
    network, us, _ = two_regions()
    network.cut("us", "eu")
    token = us.wait(us.set(b"key", b"value"), 1, 60.0)
    network.run(15.0)
    network.heal("us", "eu")
    network.run_until(lambda: token in us.resolved, seconds=12.0)
    assert us.resolved[token] == 1


# -- pulls and resyncs --------------------------------------------------------------------------------


def test_a_change_that_builds_on_unknown_ones_pulls_the_key() -> None:
    network = three_regions()
    network.run(2.0)
    us, eu, ap = network.nodes.values()
    network.cut("us", "ap")
    timestamp = us.set(b"key", b"old")
    network.run(0.1)
    eu.set(b"key", b"new", builds_on=(us.store.origin, timestamp))
    for number in range(300):
        eu.set(b"%d" % number, b"behind the pull")
    network.run(1.0)
    assert ap.store.get(b"key") == b"new"
    assert ap.store.get(b"299") == b"behind the pull"
    assert ap.store.entries[b"key"].context[us.store.origin] == timestamp
    assert ap.status("eu")["received_pulls"] == eu.status("ap")["sent_pulls_served"] == 1
    network.heal("us", "ap")
    network.run_until(lambda: converged(network))


def test_what_arrives_during_a_pull_waits_in_order() -> None:
    network = three_regions()
    network.run(2.0)
    us, eu, ap = network.nodes.values()
    network.cut("us", "ap")
    expected = 0
    for number in range(20):
        timestamp = us.set(b"%d" % number, b"old")
        network.run(0.05)
        eu.set(b"%d" % number, b"new", builds_on=(us.store.origin, timestamp))
        eu.set(b"other%d" % number, b"new")
        expected += 1
    network.run(2.0)
    assert ap.status("eu")["received_pulls"] == expected
    assert {key: value for key, value in ap.store.visible().items() if value == b"old"} == {}
    assert ap.store.visible() == eu.store.visible()


def test_the_pulls_of_a_batch_share_a_round_trip() -> None:
    network = three_regions()
    network.run(2.0)
    us, eu, ap = network.nodes.values()
    network.cut("us", "ap")
    network.delays[frozenset(("eu", "ap"))] = 1.0
    timestamps = {b"%d" % number: us.set(b"%d" % number, b"old") for number in range(200)}
    network.run(0.1)
    for key, timestamp in timestamps.items():
        eu.set(key, b"new", builds_on=(us.store.origin, timestamp))
        eu.set(key, b"newer")
    # One delay for the changes, and a round trip for each 64 keys.
    assert network.run_until(lambda: ap.store.visible() == eu.store.visible()) < 1.0 + 2 * 2.0 * (200 / 64 + 1)
    assert 200 <= int(str(ap.status("eu")["received_pulls"])) < 220


def test_a_pull_that_another_link_makes_needless_is_dropped() -> None:
    network = three_regions()
    network.run(2.0)
    us, eu, ap = network.nodes.values()
    network.delays[frozenset(("us", "ap"))] = 0.5
    network.delays[frozenset(("eu", "ap"))] = 0.2
    timestamps = {b"%d" % number: us.set(b"%d" % number, b"old") for number in range(10)}
    network.run(0.1)
    for key, timestamp in timestamps.items():
        eu.set(key, b"new", builds_on=(us.store.origin, timestamp))
    network.run_until(lambda: converged(network))
    network.run(2.0)
    assert 0 < int(str(ap.status("eu")["received_pulls"])) <= 10
    eu.set(b"then", b"the stream goes on")
    network.run(0.3)
    assert ap.store.get(b"then") == b"the stream goes on"
    assert errors(ap) == {}


def test_a_peer_behind_the_cut_log_gets_whole_states() -> None:
    network, us, eu = two_regions()
    eu.halt()
    network.run(0.1)
    for number in range(50):
        us.set(b"%d" % number, b"value")
    us.store.cut_log()
    us.set(b"after", b"the cut")
    eu.boot()
    network.run_until(lambda: converged(network))
    network.run_until(lambda: us.replicator.drained() and us.status("eu")["resyncing"] is False)
    assert us.status("eu")["sent_resyncs"] == eu.status("us")["received_resyncs"] == 1
    assert [log.event for log in us.logs].count("resync") == 1
    assert [log.event for log in eu.logs].count("resync") == 1
    assert len(messages(us, Resync)) == len(messages(us, ResyncEnd)) == 1
    us.set(b"then", b"the stream goes on")
    network.run(0.1)
    assert eu.store.get(b"then") == b"the stream goes on"
    assert us.store.resyncs == 1


def test_a_log_that_is_cut_under_a_slow_peer_resyncs_the_same_connection() -> None:
    network, us, eu = two_regions()
    network.commit_seconds = 1000.0
    for number in range(1000):
        us.set(b"%d" % number, b"x" * 10_000)
        network.run(0.001)
    us.store.cut_log()
    connections = us.status("eu")["connections"]
    network.commit_seconds = 0.001
    eu.store.commit()
    eu.call("persisted")
    network.run_until(lambda: converged(network))
    assert us.status("eu")["sent_resyncs"] == 1
    assert us.status("eu")["connections"] == connections


# -- crashes ------------------------------------------------------------------------------------------


def test_a_lost_tail_comes_back_and_nothing_is_reported_before() -> None:
    network = three_regions()
    network.run(2.0)
    us, eu, ap = network.nodes.values()
    network.cut("eu", "ap")
    old = eu.store.origin
    for number in range(5):
        eu.set(b"%d" % number, b"value")
    network.run(1.0)
    assert us.store.get(b"4") == b"value"
    reported = len([c for c in eu.store.log if c.key.startswith(b"\0report/")])
    eu.halt()
    eu.store.lose(6)  # the five, and the report that followed
    eu.store.crash()
    assert eu.store.get(b"4") is None
    assert eu.store.origin != old
    eu.boot()
    network.run_until(lambda: eu.store.get(b"4") == b"value")
    eu.set(b"new", b"incarnation")
    network.run(10.0)
    # ap hasn't said yet what it holds of the old incarnation.
    own = [c for c in eu.store.log if c.key.startswith(b"\0report/") and c.origin == eu.store.origin]
    assert own == []
    assert eu.replicator.statistics()["reporting"] == 0
    network.heal("eu", "ap")
    network.run(10.0)
    assert eu.replicator.statistics()["reporting"] == 1
    own = [c for c in eu.store.log if c.key.startswith(b"\0report/") and c.origin == eu.store.origin]
    assert len(own) >= 1
    assert reported >= 1
    network.run_until(lambda: converged(network))
    assert ap.store.get(b"4") == b"value"


def test_reports_claim_what_is_durable_and_end_when_nothing_changes() -> None:
    network, us, eu = two_regions()
    for number in range(30):
        us.set(b"%d" % number, b"value")
        network.run(0.1)
    network.run(5.0)
    lengths = len(us.store.log), len(eu.store.log)
    network.run(120.0)
    assert (len(us.store.log), len(eu.store.log)) == lengths
    reports = [c for c in us.store.log if c.key == b"\0report/%012x" % us.store.store_id]
    assert 3 <= len(reports) <= 6  # three seconds of writes, at most one a second, and the first
    claimed = msgspec.msgpack.decode(reports[-1].value, type=dict[str, dict[int, int]])["applied"]
    last_user = max(c.timestamp for c in us.store.log if not c.key.startswith(b"\0"))
    assert last_user <= claimed[us.store.origin] < reports[-1].timestamp


def test_a_node_alone_writes_no_reports() -> None:
    network = Network()
    us = network.add("us", [])
    for _ in range(5):
        us.set(b"key", b"value")
        network.run(2.0)
    assert [c.key for c in us.store.log] == [b"\0origin/%016x" % us.store.origin, *[b"key"] * 5]


# -- time, failure, logs ------------------------------------------------------------------------------


def test_a_dead_link_is_noticed_and_made_again() -> None:
    network, us, eu = two_regions()
    network.cut("us", "eu")
    network.run(3.9)
    assert us.status("eu")["receiving"]
    network.run(2.0)
    assert not us.status("eu")["receiving"]
    assert not us.status("eu")["sending"]
    assert errors(us)["timeout"] == 2
    network.run(30.0)
    network.heal("us", "eu")
    network.run_until(lambda: connected(us) and connected(eu), seconds=12.0)


def test_dials_back_off_with_jitter_and_log_once() -> None:
    network = Network()
    us = network.add("us", ["eu"])
    network.run(120.0)
    attempts = errors(us)["unreachable"]
    assert 25 <= attempts <= 80  # about one in 2.55 s once the back-off is at its longest
    assert len([log for log in us.logs if log.event == "unreachable"]) == 1
    network.run(600.0)
    assert len([log for log in us.logs if log.event == "unreachable"]) == 2


def test_a_peer_that_appears_is_dialled_at_once() -> None:
    network = Network()
    us = network.add("us", ["eu"])
    network.run(60.0)
    eu = network.add("eu", ["us"])
    network.run_until(lambda: connected(us) and connected(eu), seconds=0.3)


def test_heartbeats_are_scaled_by_settings() -> None:
    settings = replace(SETTINGS, heartbeat_interval=0.1, dead_after=0.5)
    network, us, _ = two_regions(settings=settings)
    network.cut("us", "eu")
    network.run(0.7)
    assert errors(us)["timeout"] == 2


def test_a_failed_store_is_not_retried() -> None:
    network, us, eu = two_regions()
    failure = StorageError("input/output error")

    def broken(batch: bytes) -> None:
        raise failure

    eu.store.apply_batch = broken  # type: ignore[method-assign,assignment]
    us.set(b"key", b"value")
    network.run(0.1)
    assert eu.failure is failure
    sent = len(eu.sent)
    us.set(b"key", b"again")
    network.run(0.1)
    assert len(eu.sent) == sent


def test_a_store_that_fails_at_the_start_ends_the_node() -> None:
    network = Network()
    us = network.add("us", ["eu"])
    us.halt()
    us.store.entries.clear()  # so that there is a name to write
    us.store.fail_commits = True
    us.boot()
    assert isinstance(us.failure, StorageError)
    assert us.dials == set()


def test_stop_says_goodbye() -> None:
    network, us, eu = two_regions()
    us.perform(us.replicator.stop(network.now))
    us.halt()
    network.run(0.05)
    assert errors(eu)["peer_stopping"] == 2
    assert not eu.status("us")["receiving"]
    assert us.replicator.statistics()["connections"] == 0


TRANSCRIPT = """
us>eu Hello us/us-0 applied=1
eu>us Hello eu/eu-0 applied=1
eu>us Batch 1 changes=1
eu>us Batch 2 changes=1
us>eu Ack 1 applied=2
us>eu Ack 2 applied=1
us writes key
eu writes key
eu>us Batch 3 changes=1
us>eu Ack 3 applied=2
"""


def test_transcript_of_one_link() -> None:
    """What passes on the connection that us has dialled: first eu's name and report, then its change."""
    settings = replace(SETTINGS, heartbeat_interval=60.0, dead_after=300.0, report_interval=1e9)
    network = Network(settings=settings)
    us, eu = network.add("us", ["eu"]), network.add("eu", ["us"])
    lines: list[tuple[float, str]] = []
    network.run(1.5)
    dialled = next(peer.receiver for peer in us.replicator.peers)
    assert dialled is not None
    ours = dialled.session.connection
    other = us.ends[ours].other
    assert other is not None
    for node in (us, eu):
        node.set(b"key", node.identity.region.encode())
        lines.append((network.now, f"{node.identity.region} writes key"))
    network.run(1.0)
    for node, number, arrow in ((us, ours, "us>eu"), (eu, other.connection, "eu>us")):
        for at, connection, frame in node.sent:
            if connection == number:
                lines.append((at, f"{arrow} {shown(codec.decode(frame[4:]))}"))
    told = [text for _, text in sorted(lines, key=lambda line: line[0])]
    assert told == TRANSCRIPT.strip().splitlines()


def shown(message: Message) -> str:
    match message:
        case Hello():
            return f"Hello {message.region}/{message.node} applied={len(message.applied)}"
        case Batch():
            return f"Batch {message.sequence} changes={message.changes}"
        case Ack():
            return f"Ack {message.sequence} applied={len(message.applied)}"
        case _:
            return type(message).__name__
