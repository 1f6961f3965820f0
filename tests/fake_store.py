"""A small in-memory store with all that replication needs of one: the pure tests' stand-in for the engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from everwrite.errors import ClockDriftError, GapError, LogCutError, ProtocolError, StorageError
from everwrite.freshness import Conversation
from everwrite.need import Need

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
        self.durability = "always"
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

    def question(self, keys: Sequence[bytes]) -> bytes:
        """What `answer_piece` takes: the keys, and what this store has seen of them."""
        return msgspec.msgpack.encode({key: self.entries.get(key, Entry()).context for key in keys})

    def answer_piece(self, question: bytes, limit: int) -> tuple[list[bytes], bytes]:
        """The states of keys of which this store has seen more; after `limit` bytes the rest of the question."""
        try:
            asked = msgspec.msgpack.decode(question, type=dict[bytes, dict[int, int]])
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"no question: {error}") from None
        states: list[bytes] = []
        while asked and sum(map(len, states)) < limit:
            key = next(iter(asked))
            context = asked.pop(key)
            entry = self.entries.get(key, Entry())
            if any(context.get(origin, 0) < seen for origin, seen in entry.context.items()):
                states.append(msgspec.msgpack.encode((key, self.key_state(key))))
        return states, msgspec.msgpack.encode(asked) if asked else b""

    def join_piece(self, states: Sequence[bytes], conversation: Conversation) -> int:
        for state in states:
            key, whole = msgspec.msgpack.decode(state, type=tuple[bytes, bytes])
            self._join(
                self.entries.setdefault(key, Entry()),
                *msgspec.msgpack.decode(whole, type=tuple[int, int, bytes, dict[int, int]]),
            )
            self.hlc = max(self.hlc, self.entries[key].timestamp)
        return len(states)

    def forget_parts(self, conversation: Conversation) -> None:
        """Nothing: states of this store are never in parts."""

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
