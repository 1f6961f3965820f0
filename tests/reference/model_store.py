"""A store over the model: operations, a log, batches between stores, crashes. The engine's twin, in memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from everwrite.errors import ClockDriftError, GapError, ProtocolError
from tests.reference.cells import Cells
from tests.reference.model import (
    NEVER,
    Delta,
    Element,
    KeyState,
    Part,
    Row,
    apply_delta,
    guard_holds,
    join,
    merge_vectors,
    number_shown,
    number_total,
)
from tests.reference.model_ordered import OrderedOperations, shown_items, shown_scores
from tests.reference.sketch import estimate, groups_of, union
from tests.reference.vocabulary import (
    COLLECTIONS,
    INT64_MAX,
    INT64_MIN,
    KIND_OF,
    LOGICAL_BITS,
    Dot,
    Kind,
    Reading,
    Refusal,
    Reply,
    Request,
    Shown,
    Vector,
    Verb,
    covers,
    int64_bytes,
    int64_of,
)

ALL_KINDS = frozenset(Kind)

SYSTEM, USER = b"\x01", b"\x02"
TICK = 2


@dataclass(frozen=True, slots=True)
class Need:
    """A key whose whole state the receiver must fetch before it can apply the change with this dot."""

    namespace_key: bytes
    origin: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class Record:
    """A log record: a change, and the pulled state that was joined in its place, if any."""

    delta: Delta
    state: KeyState | None = None


@dataclass(slots=True)
class ModelStore(OrderedOperations):
    """One replica, with the interface that replication needs of a store.

    Keys carry their namespace as the first byte. `synced` is how many log records a crash can't
    take; with durability "always" nothing else leaves the store.
    """

    store_id: int
    incarnation: int = 1
    wall_ms: int = 0
    durability: str = "always"
    max_clock_drift_ms: int = 500
    keys: dict[bytes, KeyState] = field(default_factory=dict)
    applied: Vector = field(default_factory=dict)
    durable_applied: Vector = field(default_factory=dict)
    log: list[Record] = field(default_factory=list)
    synced: int = 0
    clock: int = 0  # the newest timestamp issued or seen
    supplied: dict[tuple[bytes, Dot], KeyState] = field(default_factory=dict)
    user_changes: int = 0
    local_changes: int = 0
    pulls: int = 0

    @property
    def origin(self) -> int:
        return self.store_id << LOGICAL_BITS | self.incarnation

    @property
    def last_timestamp(self) -> int:
        return self.applied.get(self.origin, 0)

    def now_ms(self) -> int:
        return self.wall_ms

    def set_time(self, wall_ms: int) -> None:
        self.wall_ms = wall_ms

    def statistics(self) -> dict[str, int]:
        return {"local_changes": self.local_changes, "pulls": self.pulls}

    # Reading.

    def state(self, key: bytes) -> KeyState:
        return self.keys.setdefault(key, KeyState())

    def deadline_of(self, state: KeyState) -> int:
        """The effective deadline; 0: none."""
        dot, deadline_ms = state.deadline
        return deadline_ms if dot >= state.register[0] else 0

    def alive(self, state: KeyState) -> dict[Kind, Dot]:
        """The newest dot of each kind that has anything alive."""
        found = {}
        register_dot = state.register[0] if state.register[1] is not None else NEVER
        if state.counter.alive or register_dot != NEVER:
            found[Kind.STRING] = max(register_dot, state.counter.newest)
        for kind in COLLECTIONS:
            if state.count(kind):
                found[kind] = state.newest[kind]
        return found

    def visible(self, state: KeyState) -> Kind | None:
        alive = self.alive(state)
        if not alive or 0 < self.deadline_of(state) <= self.wall_ms:
            return None
        return max(alive, key=lambda kind: alive[kind])

    def reading(self, key: bytes) -> Reading:
        state = self.keys.get(USER + key, KeyState())
        match self.visible(state):
            case None:
                return None
            case Kind.STRING:
                return Kind.STRING, number_shown(state.register[1], state.register[0], state.counter)
            case kind:
                return kind, SHOWN[kind](dict(state.of_kind(kind)))

    def key_model(self, key: bytes) -> KeyState:
        """The key's whole state."""
        return self.keys.get(USER + key, KeyState())

    def context(self, key: bytes) -> Vector:
        """The updates of the key that its state includes."""
        return dict(self.keys.get(USER + key, KeyState()).context)

    # Writing.

    def next_timestamp(self) -> int:
        """Of the update that comes next; nothing is ever issued at the timestamp below it."""
        return max(self.clock + TICK, self.wall_ms << LOGICAL_BITS)

    def tick(self) -> Dot:
        self.clock = self.next_timestamp()
        return Dot(self.clock, self.origin)

    def emit(self, key: bytes, **change: Any) -> None:
        """Log one change of this store and apply it."""
        state = self.state(key)
        delta = Delta(key, self.tick(), state.context.get(self.origin, 0), **change)
        assert apply_delta(state, delta)
        self.append(Record(delta))
        self.local_changes += 1

    def append(self, record: Record) -> None:
        """Log what was applied."""
        self.log.append(record)
        dot = record.delta.dot
        self.applied[dot.origin] = dot.timestamp
        self.user_changes += record.delta.key.startswith(USER)

    def removals(self, state: KeyState, kinds: frozenset[Kind]) -> dict[str, Any]:
        """What a change carries that removes everything it sees of the kinds."""
        change: dict[str, Any] = {"parts": []}
        if Kind.STRING in kinds:
            change["floors"] = state.counter.floors()
            if state.register[1] is not None:
                change["ended"] = state.register[0]
        collections = frozenset(kind for kind in kinds - {Kind.STRING} if state.count(kind))
        if collections:
            change["kinds"] = collections
            change["cleared"] = dict(state.context)
            change["parts"] = [
                Part(entry, floors=element.counter.floors())
                for entry, element in state.entries.items()
                if entry[0] in collections and element.counter.alive
            ]
        return change

    def over(self, state: KeyState) -> bool:
        """Whether the key's life is over although something is left of it: parts, or a deadline."""
        return self.visible(state) is None and self.deadline_of(state) != 0

    def prepare(self, key: bytes, kind: Kind) -> dict[str, Any]:
        """What a write of the kind removes: the key's old life, or what else it holds."""
        state = self.state(key)
        if self.over(state):
            return {**self.removals(state, ALL_KINDS), "deadline_ms": 0}
        return self.removals(state, ALL_KINDS - {kind})

    def write_register(self, key: bytes, value: bytes | None, deadline_ms: int | None = None) -> None:
        """SET, or a delete (None): removes everything that is there."""
        change = self.removals(self.state(key), ALL_KINDS)
        change.pop("ended", None)
        self.emit(key, writes_register=True, register=value, deadline_ms=deadline_ms, **change)

    def reap(self, keys: tuple[bytes, ...]) -> list[tuple[bytes, int]]:
        """Remove what is left of keys that are past their deadline: which, and the timestamps of these updates."""
        reaped = []
        for key in keys:
            state = self.state(USER + key)
            if self.alive(state) and self.visible(state) is None:
                self.emit(USER + key, deadline_ms=0, **self.removals(state, ALL_KINDS))
                reaped.append((key, self.last_timestamp))
        self.commit()
        return reaped

    def execute(self, request: Request) -> Reply:
        """Run one operation on a user's key: its answer, or why it is refused."""
        request = replace(request, key=USER + request.key)
        visible = self.visible(self.state(request.key))
        if visible is not None and request.verb is not Verb.SET and KIND_OF.get(request.verb, visible) is not visible:
            return Refusal.WRONG_TYPE
        reply: Reply = getattr(self, f"do_{request.verb.value}")(request, visible is not None)
        self.commit()
        return reply

    def do_get(self, request: Request, exists: bool) -> Reply:
        state = self.state(request.key)
        return number_shown(state.register[1], state.register[0], state.counter) if exists else None

    def do_set(self, request: Request, exists: bool) -> Reply:
        state = self.state(request.key)
        deadline_ms = request.deadline_ms
        if request.keep_deadline and exists:
            deadline_ms = self.deadline_of(state)
        self.write_register(request.key, request.values[0], deadline_ms or None)
        return None

    def do_delete(self, request: Request, exists: bool) -> Reply:
        if exists:
            self.write_register(request.key, None)
        return int(exists)

    def next_total(self, shown: int | None, row: Row, amount: int, exists: bool) -> tuple[int, int] | Refusal:
        """What a counter shows after an increment, and this origin's running total; or why it is refused."""
        if exists and shown is None:
            return Refusal.NOT_AN_INTEGER
        result = (shown or 0) + amount if exists else amount
        own = row.live + amount if exists else amount
        if not (INT64_MIN <= result <= INT64_MAX and INT64_MIN <= own <= INT64_MAX):
            return Refusal.OVERFLOW
        return result, row.total[1] + amount

    def do_increment(self, request: Request, exists: bool) -> Reply:
        state = self.state(request.key)
        shown = number_total(state.register[1], state.register[0], state.counter)
        outcome = self.next_total(shown, state.counter.row(self.origin), request.amount, exists)
        if isinstance(outcome, Refusal):
            return outcome
        self.emit(request.key, total=outcome[1], **self.prepare(request.key, Kind.STRING))
        return outcome[0]

    def do_expire(self, request: Request, exists: bool) -> Reply:
        if exists and request.deadline_ms <= self.wall_ms:
            self.write_register(request.key, None)
        elif exists:
            self.emit(request.key, deadline_ms=request.deadline_ms)
        return int(exists)

    def do_persist(self, request: Request, exists: bool) -> Reply:
        if not exists or not self.deadline_of(self.state(request.key)):
            return 0
        self.emit(request.key, deadline_ms=0)
        return 1

    def change_entries(self, kind: Kind, request: Request, exists: bool, values: tuple[bytes | None, ...]) -> int:
        """Write or remove (value None) each named element; how many were absent (or present, when removing)."""
        state = self.state(request.key)
        present = {name for name, _ in state.of_kind(kind)} if exists else set()
        changed = 0
        parts = []
        for name, value in zip(request.names, values, strict=True):
            changed += (name in present) is (value is None)
            if value is not None or name in present:
                element = state.entries.get((kind, name), Element())
                parts.append(Part((kind, name), value, None, frozenset(element.dots), element.counter.floors()))
        if parts:
            change = self.prepare(request.key, kind)
            change["parts"] += parts
            self.emit(request.key, **change)
        return changed

    def do_add(self, request: Request, exists: bool) -> Reply:
        return self.change_entries(Kind.SET, request, exists, (b"",) * len(request.names))

    def do_remove(self, request: Request, exists: bool) -> Reply:
        return self.change_entries(Kind.SET, request, exists, (None,) * len(request.names))

    def do_field_set(self, request: Request, exists: bool) -> Reply:
        return self.change_entries(Kind.MAP, request, exists, request.values)

    def do_field_remove(self, request: Request, exists: bool) -> Reply:
        return self.change_entries(Kind.MAP, request, exists, (None,) * len(request.names))

    def write_one(self, request: Request, kind: Kind, value: bytes | None, exists: bool) -> int:
        """Write or remove (value None) the one element of a register; whether it was absent (or present, to remove)."""
        return self.change_entries(kind, replace(request, names=(b"",)), exists, (value,))

    def do_multi_set(self, request: Request, exists: bool) -> Reply:
        self.write_one(request, Kind.MULTI, request.values[0], exists)
        return None

    def do_flag_enable(self, request: Request, exists: bool) -> Reply:
        self.write_one(request, Kind.FLAG, b"", exists)
        return None

    def do_flag_disable(self, request: Request, exists: bool) -> Reply:
        return self.write_one(request, Kind.FLAG, None, exists)

    def update_extreme(self, request: Request, kind: Kind, exists: bool) -> Reply:
        if exists:
            shown = SHOWN[kind](dict(self.state(request.key).of_kind(kind)))
            assert isinstance(shown, int)
            if (request.amount <= shown) if kind is Kind.MAX else (request.amount >= shown):
                return shown
        self.write_one(request, kind, int64_bytes(request.amount), exists)
        return request.amount

    def do_max_update(self, request: Request, exists: bool) -> Reply:
        return self.update_extreme(request, Kind.MAX, exists)

    def do_min_update(self, request: Request, exists: bool) -> Reply:
        return self.update_extreme(request, Kind.MIN, exists)

    def do_sketch_add(self, request: Request, exists: bool) -> Reply:
        held = dict(self.state(request.key).of_kind(Kind.HYPERLOGLOG)) if exists else {}
        raised = {}
        for name, group in groups_of(request.names).items():
            before = union(*held[name].dots.values()) if name in held else union()
            after = union(before, group)
            if after != before:
                raised[name] = after
        self.change_entries(Kind.HYPERLOGLOG, replace(request, names=tuple(raised)), exists, tuple(raised.values()))
        return int(bool(raised))

    def do_field_increment(self, request: Request, exists: bool) -> Reply:
        entry = (Kind.MAP, request.names[0])
        element = self.state(request.key).entries.get(entry, Element())
        shown = number_total(*winner(element), element.counter)
        outcome = self.next_total(shown, element.counter.row(self.origin), request.amount, exists)
        if isinstance(outcome, Refusal):
            return outcome
        change = self.prepare(request.key, Kind.MAP)
        change["parts"].append(Part(entry, total=outcome[1]))
        self.emit(request.key, **change)
        return outcome[0]

    # Replication.

    def open_stream(self, since: Mapping[int, int], store_ids: Collection[int] | None = None) -> ModelStream:
        return ModelStream(self, dict(since), store_ids)

    def changes(self, since: Mapping[int, int]) -> Iterator[bytes]:
        """All batches that a store lacks whose `applied` is `since`."""
        stream = self.open_stream(since)
        while (batch := stream.next_batch()) is not None:
            yield batch

    def check_drift(self, vector: Vector) -> None:
        limit = (self.wall_ms + self.max_clock_drift_ms + 1) << LOGICAL_BITS
        for origin, timestamp in vector.items():
            if timestamp >= limit:
                raise ClockDriftError(f"{timestamp} of origin {origin:#x} is beyond {limit}")

    def apply_batch(self, batch: bytes) -> Need | None:
        """Apply in order; stops at a change that needs a pull and names it."""
        base, records = pickle.loads(batch)
        self.check_drift(merge_vectors({r.delta.dot.origin: r.delta.dot.timestamp} for r in records))
        for origin, timestamp in base.items():
            if self.applied.get(origin, 0) < timestamp:
                raise GapError(origin, self.applied.get(origin, 0), timestamp)
        for record in records:
            need = self.receive(record)
            if need is not None:
                return need
        return None

    def apply(self, batch: bytes) -> None:
        """Apply a batch of `changes`, which never needs a pull."""
        assert self.apply_batch(batch) is None
        self.commit()

    def needs(self, batch: bytes, limit: int) -> list[Need]:
        """What `apply_batch` is going to need, as far as can be told: of each key for its first change in the batch."""
        _, records = pickle.loads(batch)
        first: dict[bytes, Record] = {}
        for record in records:
            if not covers(self.applied, record.delta.dot):
                first.setdefault(record.delta.key, record)
        lacking = [
            Need(key, *reversed(record.delta.dot))
            for key, record in first.items()
            if record.state is None
            and not covers(self.state(key).context, record.delta.dot)
            and not guard_holds(self.state(key), record.delta)
        ]
        return lacking[:limit]

    def receive(self, record: Record) -> Need | None:
        """Apply a record of another store's log, unless it has been applied."""
        delta = record.delta
        if covers(self.applied, delta.dot):
            return None
        state = self.state(delta.key)
        pulled = record.state or self.supplied.pop((delta.key, delta.dot), None)
        if pulled is not None:
            self.check_drift(pulled.context)
            self.keys[delta.key] = join(state, pulled)
        elif not apply_delta(state, delta):
            self.pulls += 1
            return Need(delta.key, *reversed(delta.dot))
        # Logged whole even when the key had it already: this log may give it back to an origin that lost it.
        self.append(Record(delta, copy.deepcopy(pulled)))
        seen = [delta.dot.timestamp, *(self.keys[delta.key].context.values() if pulled else ())]
        self.clock = max(self.clock, *seen)
        return None

    def key_state(self, key: bytes) -> bytes:
        """The whole state of a key. What it shows must survive here, so the log is synced first."""
        self.sync()
        return pickle.dumps(self.keys.get(key, KeyState()))

    def supply_state(self, need: Need, state: bytes) -> bool:
        """Hand over what `apply_batch` asked for; it is joined when the batch is applied again."""
        pulled = pickle.loads(state)
        if pulled.context.get(need.origin, 0) < need.timestamp:
            # The sender lost the change in a crash: to log this state under it would claim what nobody gave.
            raise ProtocolError(
                f"the state of {need.namespace_key!r} doesn't include the change that it is to stand for"
            )
        self.check_drift(pulled.context)
        self.supplied[need.namespace_key, Dot(need.timestamp, need.origin)] = pulled
        return True

    def resync_batches(self, since: Mapping[int, int], store_ids: Collection[int] | None = None) -> Iterator[bytes]:
        """The model never cuts its log."""
        raise NotImplementedError

    def reconcile(self, other: ModelStore) -> None:
        """The model joins states outside of its log nowhere."""

    def join_all(self, other: ModelStore) -> None:
        """Take over everything that the other store holds, without a log."""
        for key, state in other.keys.items():
            self.keys[key] = join(self.state(key), state)
        self.applied = merge_vectors([self.applied, other.applied])
        self.clock = max([self.clock, *other.applied.values()])

    # The system namespace: last-writer-wins registers.

    def system_get(self, name: bytes) -> bytes | None:
        return self.keys.get(SYSTEM + name, KeyState()).register[1]

    def system_set(self, name: bytes, value: bytes) -> None:
        self.emit(SYSTEM + name, writes_register=True, register=value)
        self.commit()

    def system_items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self.keys):
            value = self.keys[key].register[1]
            if key.startswith(SYSTEM + prefix) and value is not None:
                yield key[1:], value

    # Durability.

    def commit(self) -> None:
        """Hand the log to the device, which keeps it for sure with durability "always" only."""
        if self.durability == "always":
            self.sync()

    def sync(self) -> None:
        self.synced = len(self.log)
        self.durable_applied = dict(self.applied)

    def pushed_states(self, batch: bytes) -> list[tuple[bytes, Dot]]:
        """The users' keys whose states go ahead of a change in a batch, and the changes' dots."""
        _, records = pickle.loads(batch)
        return [(record.delta.key[1:], record.delta.dot) for record in records if record.state is not None]

    def restart(self, *, keep: int | None = None) -> None:
        """Start again with the first `keep` records of the log (None: all, a clean stop).

        After an unclean stop a new incarnation begins.
        """
        issued = self.clock
        records = self.log if keep is None else self.log[:keep]
        if keep is not None:
            self.incarnation += 1
        self.keys, self.applied, self.log, self.supplied = {}, {}, [], {}
        for record in records:
            assert self.receive(record) is None
        self.sync()
        self.clock = issued


@dataclass(slots=True)
class ModelStream:
    """A cursor over a store's log for a receiver."""

    store: ModelStore
    sent: Vector
    store_ids: Collection[int] | None = None
    position: int = 0
    changes: int = 0  # handed out so far
    last_timestamp: int = 0

    def wanted(self, record: Record) -> bool:
        dot = record.delta.dot
        ours = self.store_ids is None or dot.origin >> LOGICAL_BITS in self.store_ids
        return ours and not covers(self.sent, dot)

    @property
    def end(self) -> int:
        return self.store.synced if self.store.durability == "always" else len(self.store.log)

    def next_batch(self, max_changes: int = 100, max_bytes: int = 1 << 20) -> bytes | None:
        """The next batch, None when caught up."""
        base: Vector = {}
        before = dict(self.sent)
        records: list[Record] = []
        while self.position < self.end and len(records) < max_changes:
            record = self.store.log[self.position]
            self.position += 1
            if self.wanted(record):
                dot = record.delta.dot
                state = None
                if self.store_ids is None and not guard_holds(KeyState(dict(self.sent)), record.delta):
                    # There is nobody to pull from: what the change builds on goes ahead of it.
                    state = copy.deepcopy(self.store.keys[record.delta.key])
                    self.store.sync()
                base.setdefault(dot.origin, self.sent.get(dot.origin, 0))
                self.sent[dot.origin] = dot.timestamp
                records.append(Record(record.delta, state))
        if self.store_ids is None:
            # Whoever has all of this can apply the batch with nobody to pull from.
            for origin, timestamp in before.items():
                base.setdefault(origin, min(timestamp, self.store.applied.get(origin, 0)))
        self.changes += len(records)
        self.last_timestamp = records[-1].delta.dot.timestamp if records else 0
        return pickle.dumps((base, records)) if records else None

    def pending(self) -> int:
        return sum(self.wanted(record) for record in self.store.log[self.position : self.end])

    def caught_up(self) -> bool:
        return self.pending() == 0

    def close(self) -> None:
        """Nothing is held."""


def winner(element: Element) -> tuple[bytes | None, Dot]:
    """The value that shows among a field's concurrent ones, and its dot."""
    if not element.dots:
        return None, NEVER
    dot = max(element.dots)
    return element.dots[dot], dot


def values_by_age(element: Element) -> list[bytes]:
    return [element.dots[dot] for dot in sorted(element.dots)]


# What a kind shows, from its live elements.
SHOWN: dict[Kind, Callable[[dict[bytes, Element]], Shown]] = {
    Kind.SET: frozenset,
    Kind.MAP: lambda fields: tuple(sorted((name, number_shown(*winner(e), e.counter)) for name, e in fields.items())),
    Kind.MULTI: lambda elements: tuple(values_by_age(elements[b""])),
    Kind.FLAG: bool,
    Kind.MAX: lambda elements: max(int64_of(value) for value in elements[b""].dots.values()),
    Kind.MIN: lambda elements: min(int64_of(value) for value in elements[b""].dots.values()),
    Kind.HYPERLOGLOG: lambda groups: estimate({name: union(*e.dots.values()) for name, e in groups.items()}),
    Kind.SORTED_SET: shown_scores,
    Kind.BOUNDED: lambda elements: Cells.read(elements).shown(),
    Kind.SEQUENCE: shown_items,
}
