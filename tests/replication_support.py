"""A small in-memory store and a network in virtual time, for tests of the replication machine."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from everwrite.errors import ClockDriftError, GapError, LogCutError, ProtocolError, StorageError
from everwrite.need import Need
from everwrite.server import codec
from everwrite.server.effects import (
    Close,
    Dial,
    Effect,
    Fail,
    Log,
    Persist,
    Resolve,
    Resume,
    SendFrame,
    SetTimer,
)
from everwrite.server.messages import Message
from everwrite.server.peer import PeerAddress
from everwrite.server.replication import Replicator
from everwrite.server.session import Identity
from everwrite.server.settings import ReplicationSettings

EPOCH_MS = 1_700_000_000_000


class Change(msgspec.Struct, array_like=True, frozen=True):
    """One last-writer-wins update. `builds_on` is a dot that the receiver's key must have seen, or None."""

    origin: int
    timestamp: int
    before: int  # the timestamp of the origin's update before this one
    key: bytes
    value: bytes
    builds_on: tuple[int, int] | None = None


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """What a batch of this store is: changes, or whole entries and the vector that they bring the receiver to."""

    changes: list[Change]
    entries: dict[bytes, tuple[int, int, bytes, dict[int, int]]]
    claim: dict[int, int]


@dataclass
class Entry:
    timestamp: int = 0
    origin: int = 0
    value: bytes = b""
    context: dict[int, int] = field(default_factory=dict)


class FakeStore:
    """A last-writer-wins map with a log; one list is both the log and, up to `durable`, the disk.

    System names are keys that begin with NUL.
    """

    def __init__(self, store_id: int, clock: Callable[[], int], *, max_clock_drift_ms: int = 500) -> None:
        self.store_id = store_id
        self.incarnation = 1
        self.clock = clock
        self.max_clock_drift_ms = max_clock_drift_ms
        self.log: list[Change] = []
        self.log_start = 0
        self.durable = 0
        self.entries: dict[bytes, Entry] = {}
        self.applied: dict[int, int] = {}
        self.durable_applied: dict[int, int] = {}
        self.hlc = 0
        self.user_changes = 0
        self.commits = 0
        self.resyncs = 0
        self.fail_commits = False
        self._supplied: dict[tuple[int, int], Entry] = {}

    @property
    def origin(self) -> int:
        return self.store_id << 16 | self.incarnation

    @property
    def last_timestamp(self) -> int:
        return self.applied.get(self.origin, 0)

    def now_ms(self) -> int:
        return self.clock()

    def statistics(self) -> dict[str, int]:
        return {"local_changes": sum(change.origin == self.origin for change in self.log)}

    def set(self, key: bytes, value: bytes, builds_on: tuple[int, int] | None = None) -> int:
        """Write and commit; the timestamp."""
        self.hlc = max(self.hlc + 1, self.now_ms() << 16)
        change = Change(self.origin, self.hlc, self.last_timestamp, key, value, builds_on)
        self._merge(change)
        self.commit()
        return self.hlc

    def get(self, key: bytes) -> bytes | None:
        entry = self.entries.get(key)
        return entry.value if entry is not None else None

    def visible(self) -> dict[bytes, bytes]:
        return {key: entry.value for key, entry in self.entries.items() if not key.startswith(b"\0")}

    def commit(self) -> None:
        if self.fail_commits:
            raise StorageError("the disk is full")
        self.commits += 1
        self.durable = self.log_start + len(self.log)
        self.durable_applied = dict(self.applied)

    def cut_log(self) -> None:
        """Forget the log, as when it is over its size limit."""
        self.log_start += len(self.log)
        self.log = []

    def crash(self) -> None:
        """Lose what isn't durable and start again as a new incarnation."""
        kept = self.log[: self.durable - self.log_start]
        self.log, self.entries, self.applied, self._supplied = [], {}, {}, {}
        self.incarnation += 1
        for change in kept:
            self._merge(change)
        self.commit()

    def lose(self, count: int) -> None:
        """Make the newest records of the log as if they had never become durable."""
        self.durable -= count

    def _merge(self, change: Change, supplied: Entry | None = None) -> None:
        entry = self.entries.setdefault(change.key, Entry())
        for timestamp, origin, value, context in (
            (change.timestamp, change.origin, change.value, {change.origin: change.timestamp}),
            *([(supplied.timestamp, supplied.origin, supplied.value, supplied.context)] if supplied else []),
        ):
            self._join(entry, timestamp, origin, value, context)
        self.log.append(change)
        self.applied[change.origin] = change.timestamp
        self.hlc = max(self.hlc, change.timestamp)
        self.user_changes += not change.key.startswith(b"\0")

    @staticmethod
    def _join(entry: Entry, timestamp: int, origin: int, value: bytes, context: Mapping[int, int]) -> None:
        if (timestamp, origin) > (entry.timestamp, entry.origin):
            entry.timestamp, entry.origin, entry.value = timestamp, origin, value
        for known, seen in context.items():
            entry.context[known] = max(seen, entry.context.get(known, 0))

    def open_stream(self, since: Mapping[int, int], store_ids: Collection[int] | None = None) -> FakeStream:
        stream = FakeStream(self, dict(since), store_ids)
        if self.log_start and not all(since.get(o, 0) >= ts for o, ts in self._cut_vector(store_ids).items()):
            raise LogCutError(f"the log begins at {self.log_start}")
        return stream

    def _cut_vector(self, store_ids: Collection[int] | None) -> dict[int, int]:
        """What was cut: all that is applied and not in the log."""
        vector = {
            origin: timestamp
            for origin, timestamp in self.applied.items()
            if store_ids is None or origin >> 16 in store_ids
        }
        for change in self.log:
            if vector.get(change.origin, 0) >= change.timestamp:
                vector[change.origin] = min(vector[change.origin], change.before)
        return vector

    def resync_batches(self, since: Mapping[int, int], store_ids: Collection[int] | None = None) -> Iterator[bytes]:
        self.resyncs += 1
        claim = {o: ts for o, ts in self.applied.items() if store_ids is None or o >> 16 in store_ids}
        for key, entry in list(self.entries.items()):
            whole = (entry.timestamp, entry.origin, entry.value, dict(entry.context))
            yield msgspec.msgpack.encode(Envelope([], {key: whole}, {}))
        yield msgspec.msgpack.encode(Envelope([], {}, claim))

    def apply_batch(self, batch: bytes) -> Need | None:
        try:
            envelope = msgspec.msgpack.decode(batch, type=Envelope)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"no batch: {error}") from None
        for change in envelope.changes:
            if (change.timestamp >> 16) - self.now_ms() > self.max_clock_drift_ms:
                raise ClockDriftError(f"{change.timestamp} is too far ahead")
        for change in envelope.changes:
            held = self.applied.get(change.origin, 0)
            if held >= change.timestamp:
                continue
            if held < change.before:
                raise GapError(change.origin, held, change.before)
            supplied = self._supplied.pop((change.origin, change.timestamp), None)
            if supplied is None and change.builds_on is not None:
                origin, timestamp = change.builds_on
                if self.entries.get(change.key, Entry()).context.get(origin, 0) < timestamp:
                    return Need(change.key, change.origin, change.timestamp)
            self._merge(change, supplied)
        for key, (timestamp, origin, value, context) in envelope.entries.items():
            self._join(self.entries.setdefault(key, Entry()), timestamp, origin, value, context)
        for origin, timestamp in envelope.claim.items():
            self.applied[origin] = max(timestamp, self.applied.get(origin, 0))
        return None

    def needs(self, batch: bytes, limit: int) -> list[Need]:
        found: list[Need] = []
        keys = set()
        for change in msgspec.msgpack.decode(batch, type=Envelope).changes:
            if self.applied.get(change.origin, 0) >= change.timestamp or change.key in keys or len(found) >= limit:
                continue
            keys.add(change.key)
            if change.builds_on is not None:
                origin, timestamp = change.builds_on
                if self.entries.get(change.key, Entry()).context.get(origin, 0) < timestamp:
                    found.append(Need(change.key, change.origin, change.timestamp))
        return found

    def key_state(self, key: bytes) -> bytes:
        entry = self.entries.get(key, Entry())
        return msgspec.msgpack.encode((entry.timestamp, entry.origin, entry.value, entry.context))

    def supply_state(self, need: Need, state: bytes) -> bool:
        whole = msgspec.msgpack.decode(state, type=tuple[int, int, bytes, dict[int, int]])
        self._supplied[need.origin, need.timestamp] = Entry(*whole)
        return True

    def system_get(self, name: bytes) -> bytes | None:
        return self.get(b"\0" + name)

    def system_set(self, name: bytes, value: bytes) -> None:
        self.set(b"\0" + name, value)

    def system_items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, entry in sorted(self.entries.items()):
            if key.startswith(b"\0" + prefix):
                yield key[1:], entry.value


class FakeStream:
    """A cursor over a FakeStore's log."""

    def __init__(self, store: FakeStore, since: dict[int, int], store_ids: Collection[int] | None) -> None:
        self.store = store
        self.sent = since
        self.store_ids = store_ids
        self.position = store.log_start
        self.changes = 0
        self.last_timestamp = 0
        self.closed = False

    def _relevant(self, change: Change) -> bool:
        wanted = self.store_ids is None or change.origin >> 16 in self.store_ids
        return wanted and change.timestamp > self.sent.get(change.origin, 0)

    def _waiting(self) -> list[Change]:
        store = self.store
        first = max(0, self.position - store.log_start)
        return [change for change in store.log[first : store.durable - store.log_start] if self._relevant(change)]

    def next_batch(self, max_changes: int = 100, max_bytes: int = 1 << 20) -> bytes | None:
        assert not self.closed
        if self.position < self.store.log_start:
            raise LogCutError(f"the log begins at {self.store.log_start}")
        taken: list[Change] = []
        size = 0
        while self.position < self.store.durable and len(taken) < max_changes and size < max_bytes:
            change = self.store.log[self.position - self.store.log_start]
            self.position += 1
            if self._relevant(change):
                taken.append(change)
                size += len(change.key) + len(change.value)
                self.sent[change.origin] = change.timestamp
                self.last_timestamp = change.timestamp
        self.changes += len(taken)
        return msgspec.msgpack.encode(Envelope(taken, {}, {})) if taken else None

    def caught_up(self) -> bool:
        return not self._waiting()

    def pending(self) -> int:
        return len(self._waiting())

    def close(self) -> None:
        self.closed = True


class Node:
    """One replicator with its store on a network."""

    def __init__(self, network: Network, region: str, store_id: int, peers: list[str], cluster: str) -> None:
        self.network = network
        self.identity = Identity(cluster, region, f"{region}-0")
        self.clock_offset_ms = 0
        self.store = self.make_store(store_id)
        self.peer_regions = peers
        self.resolved: dict[int, int] = {}
        self.logs: list[Log] = []
        self.failure: Exception | None = None
        self.up = False
        self.ends: dict[int, End] = {}
        self.dials: set[int] = set()
        self.generation = 0
        self.sent: list[tuple[float, int, bytes]] = []
        self.boot()

    def make_store(self, store_id: int) -> FakeStore:
        return FakeStore(store_id, self.clock_ms)

    def clock_ms(self) -> int:
        """The node's wall clock."""
        return EPOCH_MS + round(self.network.now * 1000) + self.clock_offset_ms

    def boot(self) -> None:
        """Start, or start again after `halt`."""
        self.up = True
        self.generation += 1
        self.replicator = Replicator(
            self.store,
            self.identity,
            [PeerAddress(region, None, region) for region in self.peer_regions],
            rng=random.Random(self.store.store_id),
            settings=self.network.settings,
        )
        self.perform(self.replicator.start(self.network.now))

    def halt(self) -> None:
        """Die at once: the other ends notice after the delay."""
        self.up = False
        self.generation += 1
        for end in list(self.ends.values()):
            end.close()
        self.dials.clear()

    def set(self, key: bytes, value: bytes, builds_on: tuple[int, int] | None = None) -> int:
        timestamp = self.store.set(key, value, builds_on)
        self.perform(self.replicator.local_write(self.network.now))
        return timestamp

    def wait(self, timestamp: int, count: int, seconds: float | None) -> int:
        now = self.network.now
        token, effects = self.replicator.wait(now, timestamp, count, None if seconds is None else now + seconds)
        self.perform(effects)
        return token

    def perform(self, effects: list[Effect]) -> None:
        network = self.network
        for effect in effects:
            match effect:
                case Dial(connection, address):
                    self.dials.add(connection)
                    network.dial(self, connection, address)
                case SendFrame(connection, data):
                    end = self.ends.get(connection)
                    self.sent.append((network.now, connection, data))
                    if end is not None:
                        end.send(data)
                case Close(connection, _):
                    self.dials.discard(connection)
                    if connection in self.ends:
                        self.ends[connection].close()
                case SetTimer(at):
                    self._timer(at)
                case Persist():
                    network.after(network.commit_seconds, partial(self._persist, self.generation))
                case Resume(connection):
                    network.after(0.0, partial(self.call, "resume", connection))
                case Resolve(token, regions):
                    assert token not in self.resolved
                    self.resolved[token] = regions
                case Log():
                    self.logs.append(effect)
                case Fail(error):
                    self.failure = error

    def call(self, name: str, *arguments: object) -> None:
        """Tell the replicator of an event, unless the node is down."""
        if self.up:
            self.perform(getattr(self.replicator, name)(self.network.now, *arguments))

    def _persist(self, generation: int) -> None:
        if generation == self.generation and self.up:
            self.store.commit()
            self.call("persisted")

    def _timer(self, at: float | None) -> None:
        self.timer_number = number = getattr(self, "timer_number", 0) + 1
        if at is not None:
            generation = self.generation

            def fire() -> None:
                if number == self.timer_number and generation == self.generation:
                    self.call("timer")

            self.network.at(at, fire)

    def status(self, region: str) -> dict[str, object]:
        return next(s for s in self.replicator.statuses(self.network.now) if s["region"] == region)


class End:
    """One end of a connection; bytes arrive in order after the delay, cut anywhere."""

    def __init__(self, network: Network, node: Node, connection: int) -> None:
        self.network = network
        self.node = node
        self.connection = connection
        self.other: End | None = None
        self.open = True
        self.swallowing = False
        self.arrival = 0.0
        node.ends[connection] = self

    def send(self, data: bytes) -> None:
        network, other = self.network, self.other
        if not self.open or other is None or self.swallowing:
            return
        delay = network.delay(self.node, other.node)
        if delay is None:
            # From the first byte that is lost, TCP delivers nothing more: heartbeats have to find out.
            self.swallowing = True
            return
        other.arrival = max(other.arrival, network.now + delay)
        at = other.arrival - network.now
        cut = network.rng.randrange(len(data) + 1) if network.fragment else len(data)
        for part in (data[:cut], data[cut:]):
            if part:
                network.after(at, partial(other.deliver, part))

    def deliver(self, data: bytes) -> None:
        if self.open:
            self.node.call("received", self.connection, data)

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self.node.ends.pop(self.connection, None)
        other = self.other
        if other is not None and other.open:
            delay = self.network.delay(self.node, other.node)
            if delay is not None:
                at = max(delay, other.arrival - self.network.now)
                self.network.after(at, other.lost)

    def lost(self) -> None:
        if self.open:
            self.open = False
            self.node.ends.pop(self.connection, None)
            self.node.call("disconnected", self.connection, "closed by the peer")


class Network:
    """Virtual time and links with a delay each; None for a delay is a cut link."""

    def __init__(self, *, seed: int = 0, settings: ReplicationSettings | None = None, fragment: bool = False) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.settings = settings or ReplicationSettings()
        self.fragment = fragment
        self.commit_seconds = 0.0005
        self.nodes: dict[str, Node] = {}
        self.delays: dict[frozenset[str], float | None] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def add(self, region: str, peers: list[str], *, store_id: int | None = None, cluster: str = "test") -> Node:
        node = Node(self, region, store_id or len(self.nodes) + 1, peers, cluster)
        self.nodes[region] = node
        return node

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(self.now, time), next(self._numbers), action))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], *, seconds: float = 60.0) -> float:
        """Let virtual time pass until `condition` holds; how long that took."""
        start, end = self.now, self.now + seconds
        while not condition():
            assert self._events, "nothing is going to happen any more"
            assert self._events[0][0] <= end, f"still not true after {seconds} s of virtual time"
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.now - start

    def delay(self, a: Node, b: Node) -> float | None:
        return self.delays.get(frozenset((a.identity.region, b.identity.region)), 0.02)

    def cut(self, a: str, b: str) -> None:
        self.delays[frozenset((a, b))] = None

    def heal(self, a: str, b: str, delay: float = 0.02) -> None:
        self.delays[frozenset((a, b))] = delay

    def break_connections(self, a: str, b: str) -> None:
        """Reset every connection between two nodes; what is under way is lost."""
        for end in list(self.nodes[a].ends.values()):
            other = end.other
            if other is not None and other.node is self.nodes[b]:
                end.lost()
                other.lost()

    def dial(self, node: Node, connection: int, address: str) -> None:
        target = self.nodes.get(address)
        generation = node.generation
        delay = None if target is None else self.delay(node, target)
        if target is not None and delay is None:
            return  # no answer: the replicator's own timeout ends the dial

        def arrive() -> None:
            if generation != node.generation or connection not in node.dials:
                return
            node.dials.discard(connection)
            if target is None or not target.up:
                node.call("dial_failed", connection, "connection refused")
                return
            ours = End(self, node, connection)
            number, effects = target.replicator.accepted(self.now, node.identity)
            theirs = End(self, target, number)
            ours.other, theirs.other = theirs, ours
            target.perform(effects)
            node.call("dialled", connection, target.identity)

        self.after(2 * (delay or 0.0), arrive)


def three_regions(**options: object) -> Network:
    """us, eu and ap, each with a link to the other two."""
    network = Network(**options)  # type: ignore[arg-type]
    regions = ["us", "eu", "ap"]
    for region in regions:
        network.add(region, [other for other in regions if other != region])
    return network


def two_regions(**options: object) -> tuple[Network, Node, Node]:
    """us and eu, 20 ms apart, connected both ways."""
    network = Network(**options)  # type: ignore[arg-type]
    us, eu = network.add("us", ["eu"]), network.add("eu", ["us"])
    network.run_until(lambda: all(connected(node) for node in (us, eu)))
    network.run(1.5)  # past the first reports
    return network, us, eu


def connected(node: Node) -> bool:
    return all(status["connected"] for status in node.replicator.statuses(node.network.now))


def converged(network: Network) -> bool:
    states = [node.store.visible() for node in network.nodes.values()]
    return all(state == states[0] for state in states)


def errors(node: Node) -> dict[str, int]:
    return {
        name.removeprefix("errors_"): value
        for name, value in node.replicator.statistics().items()
        if name.startswith("errors_")
    }


def messages(node: Node, kind: type[Message]) -> list[tuple[float, Message]]:
    """What the node has sent of one kind: (when, message)."""
    sent = [(at, codec.decode(data[4:])) for at, _, data in node.sent]
    return [(at, message) for at, message in sent if isinstance(message, kind)]
