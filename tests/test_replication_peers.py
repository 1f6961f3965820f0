"""Who may connect, and what a peer that breaks the rules gets. In virtual time, no I/O."""

from __future__ import annotations

import msgspec
import pytest

from everwrite.errors import ReadOnlyError
from everwrite.server import codec
from everwrite.server.messages import Ack, Batch, Goodbye, Heartbeat, Hello, KeyState, Message, Pull, Resync, ResyncEnd
from everwrite.server.session import Identity
from tests.fake_store import EPOCH_MS
from tests.replication_support import Network, Node, connected, errors, messages, two_regions

# -- who may connect ----------------------------------------------------------------------------------


def test_a_peer_whose_clock_is_ahead_is_refused_until_it_is_right() -> None:
    network = Network()
    us = network.add("us", ["eu"])
    eu = Node(network, "eu", 2, ["us"], "test")
    eu.halt()
    eu.clock_offset_ms = 3000
    network.nodes["eu"] = eu
    eu.boot()
    eu.set(b"future", b"value")
    network.run(20.0)
    assert us.store.visible() == {}
    assert errors(us)["clock_drift"] > 3
    assert errors(us)["clock_drift"] < 60
    drift = [log for log in us.logs if log.event == "clock_drift"]
    assert len(drift) == 1
    assert "eu/eu-0 is 29" in drift[0].message or "eu/eu-0 is 30" in drift[0].message
    assert errors(eu)["peer_clock_drift"] > 3
    eu.clock_offset_ms = 0
    network.run_until(lambda: us.store.get(b"future") == b"value")


def test_on_a_full_disk_a_batch_waits_for_space() -> None:
    network, us, eu = two_regions()
    take = eu.store.apply_batch

    def refuse(batch: bytes) -> None:
        raise ReadOnlyError("the disk is full")

    eu.store.apply_batch = refuse  # type: ignore[method-assign,assignment]
    us.set(b"key", b"value")
    network.run(5)
    assert eu.failure is None
    assert errors(eu)["disk_full"] >= 1
    eu.store.apply_batch = take  # type: ignore[method-assign]
    network.run(60)
    assert eu.store.get(b"key") == b"value"


def test_a_clock_that_jumps_ahead_ends_the_connection() -> None:
    network, us, eu = two_regions()
    eu.clock_offset_ms = 10_000
    network.run(3.0)
    assert not us.status("eu")["receiving"]
    assert errors(us)["clock_drift"] >= 1
    eu.clock_offset_ms = 0
    network.run_until(lambda: connected(us) and connected(eu))


def test_a_timestamp_ahead_in_a_batch_changes_nothing() -> None:
    network, us, eu = two_regions()
    before = dict(us.store.applied)
    # eu's wall clock is right again, but a timestamp from when it wasn't is in its log.
    eu.store.hlc = (EPOCH_MS + 20_000) << 16
    eu.set(b"future", b"value")
    network.run(5.0)
    assert us.store.get(b"future") is None
    assert us.store.applied == before
    assert us.status("eu")["last_error"] is not None
    assert errors(us)["clock_drift"] >= 2
    network.run_until(lambda: us.store.get(b"future") == b"value", seconds=30.0)
    assert network.now > 19.0


def test_a_node_of_another_cluster_is_refused() -> None:
    network = Network()
    us = network.add("us", ["eu"])
    eu = network.add("eu", ["us"], cluster="other")
    network.run(5.0)
    assert errors(us)["wrong_cluster"] >= 2
    assert errors(eu)["wrong_cluster"] >= 2
    assert len([log for log in us.logs if log.event == "wrong_cluster"]) == 1


def test_a_node_that_dials_itself_is_told_so() -> None:
    network = Network()
    us = network.add("us", ["us"])
    network.run(3.0)
    assert errors(us)["self"] + errors(us)["peer_self"] >= 2
    texts = [log.message for log in us.logs if log.event in ("self", "peer_self")]
    assert any("is this node itself: remove its own address" in text for text in texts)


def test_a_copied_data_directory_is_refused() -> None:
    network = Network()
    us, eu = network.add("us", ["eu"], store_id=7), network.add("eu", ["us"], store_id=7)
    network.run(3.0)
    assert errors(us)["same_store"] >= 1
    assert errors(eu)["same_store"] >= 1


def test_a_node_that_came_back_older_than_its_peers_is_refused() -> None:
    network, us, _ = two_regions()
    us.set(b"key", b"value")
    network.run(1.0)
    us.halt()
    kept = us.store.log[:1]
    us.store.log, us.store.entries, us.store.applied = [], {}, {}
    for change in kept:
        us.store._merge(change)
    us.store.commit()  # the same incarnation: a restored copy that doesn't know it is one
    us.boot()
    network.run(3.0)
    assert errors(us)["stale_store"] >= 1
    assert any("the data directory is an older copy of itself" in log.message for log in us.logs)
    assert not us.status("eu")["receiving"]


def test_the_certificate_decides_who_connects() -> None:
    network, us, _ = two_regions()
    number, effects = us.replicator.accepted(network.now, Identity("test", "ap", "ap-0"))
    assert effects == [] or number
    hello = Hello(1, "test", "eu", "eu-0", 9, 9 << 16, EPOCH_MS, {})
    us.perform(us.replicator.received(network.now, number, codec.encode(hello)))
    assert errors(us)["identity"] == 1
    assert connected(us)


def test_a_newer_connection_replaces_the_older() -> None:
    network, us, eu = two_regions()
    number, effects = us.replicator.accepted(network.now, eu.identity)
    us.perform(effects)
    hello = Hello(1, "test", "eu", "eu-0", eu.store.store_id, eu.store.origin, eu.store.now_ms(), {})
    us.perform(us.replicator.received(network.now, number, codec.encode(hello)))
    assert errors(us)["replaced"] == 1
    goodbyes = [message for _, message in messages(us, Goodbye) if isinstance(message, Goodbye)]
    assert goodbyes[-1].cause == "replaced"
    assert us.replicator.statistics()["connections"] == 2
    # The real eu finds its connection closed and dials again.
    network.run(6.0)
    assert connected(us)


def test_a_peer_that_nobody_configured_may_join() -> None:
    network = Network()
    us = network.add("us", [])
    eu = network.add("eu", ["us"])
    us.set(b"key", b"value")
    network.run_until(lambda: eu.store.get(b"key") == b"value", seconds=2.0)
    assert us.status("eu")["node"] == "eu-0"
    assert us.status("eu")["address"] is None


def test_strangers_take_bounded_memory() -> None:
    network = Network()
    us = network.add("us", [])
    for number in range(1000):
        connection, effects = us.replicator.accepted(network.now, Identity("test", "ap", f"node-{number}"))
        us.perform(effects)
        us.perform(us.replicator.received(network.now, connection, b"\xff\xff\xff\xff"))
    assert errors(us)["oversized"] == 1000
    assert len(us.replicator.peers._strangers) <= 257
    assert us.replicator.statistics()["connections"] == 0
    for number in range(1000):
        connection, _ = us.replicator.accepted(network.now, Identity("test", "ap", f"node-{number}"))
        hello = Hello(1, "test", "ap", f"node-{number}", 50 + number, (50 + number) << 16, us.store.now_ms(), {})
        us.perform(us.replicator.received(network.now, connection, codec.encode(hello)))
    assert len(us.replicator.peers) == 256
    assert errors(us)["too_many"] == 744


def test_silent_connections_end() -> None:
    network = Network()
    us = network.add("us", [])
    for _ in range(10):
        _, effects = us.replicator.accepted(network.now, Identity("test", "eu", "eu-0"))
        us.perform(effects)
    assert us.replicator.statistics()["connections"] == 1  # the same node again: the newest
    network.run(6.0)
    assert us.replicator.statistics()["connections"] == 0
    assert errors(us)["timeout"] == 1


# -- a peer that misbehaves ---------------------------------------------------------------------------


class Impostor:
    """A hand-driven receiver of us's log."""

    def __init__(self, network: Network, us: Node) -> None:
        self.network, self.us = network, us
        self.identity = Identity("test", "eu", "eu-0")
        self.connection, effects = us.replicator.accepted(network.now, self.identity)
        us.perform(effects)

    def say(self, *said: Message) -> list[Message]:
        """Send messages; what comes back."""
        before = len(self.us.sent)
        data = b"".join(map(codec.encode, said))
        self.us.perform(self.us.replicator.received(self.network.now, self.connection, data))
        return [codec.decode(frame[4:]) for _, number, frame in self.us.sent[before:] if number == self.connection]

    def greet(self) -> list[Message]:
        return self.say(Hello(1, "test", "eu", "eu-0", 9, 9 << 16, EPOCH_MS, {}))


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([Ack(99, {})], "acknowledged batch 99"),
        ([Ack(1, {}), Ack(0, {})], "acknowledged batch 0"),
        ([Batch(1, 1, 1, b"")], "sent 'Batch' while the session"),
        ([KeyState(b"", b"")], "sent 'KeyState' while"),
        ([Hello(1, "test", "eu", "eu-0", 9, 9 << 16, EPOCH_MS, {})], "sent 'Hello' while"),
        ([Heartbeat(EPOCH_MS + 60_000, 0, 0, True)], "is 60000 ms ahead"),
    ],
)
def test_a_wrong_message_from_a_receiver_ends_the_connection(said: list[Message], text: str) -> None:
    network = Network()
    us = network.add("us", [])
    us.set(b"key", b"value")
    peer = Impostor(network, us)
    assert [type(message) for message in peer.greet()] == [Hello, Batch]
    answer = peer.say(*said)[-1]
    assert isinstance(answer, Goodbye)
    assert text in answer.message
    assert us.replicator.statistics()["connections"] == 0
    assert us.failure is None


def test_a_receiver_may_pull_any_key() -> None:
    network = Network()
    us = network.add("us", [])
    us.set(b"key", b"value")
    peer = Impostor(network, us)
    peer.greet()
    assert peer.say(Pull(b"key", 1, 1)) == [KeyState(b"key", us.store.key_state(b"key"))]
    assert peer.say(Pull(b"none", 1, 1)) == [KeyState(b"none", us.store.key_state(b"none"))]


class FakeSender:
    """A hand-driven sender to us."""

    def __init__(self) -> None:
        self.network = Network()
        self.us = self.network.add("us", ["eu"])
        self.us.dials.clear()
        peer = next(iter(self.us.replicator.peers))
        assert peer.dialling is not None or peer.redial_at is not None
        self.network.run_until(lambda: peer.dialling is not None)
        self.connection = peer.dialling
        assert self.connection is not None
        self.us.dials.clear()
        self.us.call("dialled", self.connection, Identity("test", "eu", "eu-0"))

    def say(self, *said: Message) -> list[Message]:
        before = len(self.us.sent)
        self.us.call("received", self.connection, b"".join(map(codec.encode, said)))
        self.network.run(0.01)
        return [codec.decode(frame[4:]) for _, number, frame in self.us.sent[before:] if number == self.connection]


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ([Batch(2, 1, 1, b"\x93\x90\x80\x80")], "illegal_message"),
        ([Batch(1, 1, 1, b"garbage")], "bad_batch"),
        ([ResyncEnd(0)], "illegal_message"),
        ([Resync("cut"), ResyncEnd(5)], "illegal_message"),
        ([KeyState(b"", b"")], "illegal_message"),
        ([Ack(0, {})], "illegal_message"),
        ([Heartbeat(EPOCH_MS + 60_000, 0, 0, True)], "clock_drift"),
        # A gap: the first update of origin 0x90000 that it sends builds on one that us lacks.
        ([Batch(1, 1, 7, msgspec.msgpack.encode([[[0x90000, 7, 6, b"k", b"v"]], {}, {}]))], "gap"),
    ],
)
def test_a_wrong_message_from_a_sender_ends_the_connection(said: list[Message], cause: str) -> None:
    sender = FakeSender()
    sender.say(Hello(1, "test", "eu", "eu-0", 9, 9 << 16, EPOCH_MS, {}))
    answer = sender.say(*said)[-1]
    assert isinstance(answer, Goodbye)
    assert answer.cause == cause
    assert errors(sender.us)[cause] == 1
    assert sender.us.store.visible() == {}
    assert sender.us.failure is None


def test_a_sender_that_ignores_the_window_during_a_pull_is_cut_off() -> None:
    sender = FakeSender()
    sender.say(Hello(1, "test", "eu", "eu-0", 9, 9 << 16, EPOCH_MS, {}))
    needy = msgspec.msgpack.encode([[[0x90000, 7, 0, b"k", b"v", [5, 5]]], {}, {}])
    assert isinstance(sender.say(Batch(1, 1, 7, needy))[-1], Pull)
    answer: list[Message] = []
    for sequence in range(2, 100):
        answer = sender.say(Batch(sequence, 1, 1, b"x" * (8 << 20)))
        if answer:
            break
    assert isinstance(answer[-1], Goodbye)
    assert answer[-1].cause == "flow_control"
    assert sequence * (8 << 20) < codec.FRAME_BYTES_MAX + (32 << 20)
    wrong = FakeSender()
    wrong.say(Hello(1, "test", "eu", "eu-0", 9, 9 << 16, EPOCH_MS, {}))
    wrong.say(Batch(1, 1, 7, needy))
    assert isinstance(wrong.say(KeyState(b"another", b""))[-1], Goodbye)
