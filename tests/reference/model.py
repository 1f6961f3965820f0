"""The state of one key and its join, in plain Python: a slow twin of the engine's.

A key's state holds its causal context; a last-writer-wins register whose delete is a value;
a last-writer-wins deadline; per origin a running counter total and a floor under it; and
elements (of the set, of the map and so on) with their dots, values and counters. A `Delta` carries
one change; `apply_delta` refuses it when the state doesn't include what the change builds on.

Laws: `join` is associative, commutative and idempotent, and applying a delta whose guard holds
equals joining the state of whoever issued it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.reference.vocabulary import COLLECTIONS, Dot, Kind, Vector, clamp, covers, integer_of

NEVER = Dot(0, 0)
CREATION_SIZE = 16  # of the names of a bounded counter's creations

# A total or a floor under it: as of a timestamp of the origin that it belongs to.
Amount = tuple[int, int]
NOTHING: Amount = (0, 0)
Entry = tuple[Kind, bytes]


@dataclass(slots=True)
class Row:
    """One origin's share of a counter. Both amounts are (timestamp, running total) and join by the larger timestamp."""

    total: Amount = NOTHING
    floor: Amount = NOTHING

    @property
    def alive(self) -> bool:
        """Whether an increment lies above the floor."""
        return self.total[0] > self.floor[0]

    @property
    def live(self) -> int:
        return self.total[1] - self.floor[1] if self.alive else 0


@dataclass(slots=True)
class Counter:
    """The rows of all origins."""

    rows: dict[int, Row] = field(default_factory=dict)

    def row(self, origin: int) -> Row:
        return self.rows.setdefault(origin, Row())

    def raise_total(self, origin: int, total: Amount) -> None:
        row = self.row(origin)
        row.total = max(row.total, total)

    def raise_floors(self, floors: dict[int, Amount]) -> None:
        for origin, floor in floors.items():
            row = self.row(origin)
            row.floor = max(row.floor, floor)

    def merge(self, other: Counter) -> None:
        for origin, row in other.rows.items():
            self.raise_total(origin, row.total)
            self.raise_floors({origin: row.floor})

    @property
    def alive(self) -> bool:
        return any(row.alive for row in self.rows.values())

    @property
    def live(self) -> int:
        return sum(row.live for row in self.rows.values())

    @property
    def newest(self) -> Dot:
        return max((Dot(row.total[0], origin) for origin, row in self.rows.items() if row.alive), default=NEVER)

    def floors(self) -> dict[int, Amount]:
        """What a reset that sees this counter must write so that nothing of it remains."""
        return {origin: row.total for origin, row in self.rows.items() if row.alive}


@dataclass(slots=True)
class Element:
    """A member of the set, a field of the map and so on: its dots that nothing removed, and its counter."""

    dots: dict[Dot, bytes] = field(default_factory=dict)
    counter: Counter = field(default_factory=Counter)

    @property
    def alive(self) -> bool:
        return bool(self.dots) or self.counter.alive


@dataclass(slots=True)
class KeyState:
    """Everything about one key. `register` and `deadline` are (dot, value); the value None is a tombstone."""

    context: Vector = field(default_factory=dict)
    register: tuple[Dot, bytes | None] = (NEVER, None)
    deadline: tuple[Dot, int] = (NEVER, 0)
    counter: Counter = field(default_factory=Counter)
    entries: dict[Entry, Element] = field(default_factory=dict)
    newest: dict[Kind, Dot] = field(default_factory=dict)  # of each collection, the newest write ever

    def count(self, kind: Kind) -> int:
        """How many live elements a key has by which it holds the kind; of a bounded counter, its creations."""
        return sum(kind is not Kind.BOUNDED or len(name) == CREATION_SIZE for name, _ in self.of_kind(kind))

    def of_kind(self, kind: Kind) -> Iterator[tuple[bytes, Element]]:
        """The live elements."""
        for (entry_kind, name), element in self.entries.items():
            if entry_kind is kind and element.alive:
                yield name, element


@dataclass(slots=True)
class Part:
    """What a change does to one element: `removed` are the dots that it takes from it."""

    entry: Entry
    value: bytes | None = None  # not None: the element gains the change's dot
    total: int | None = None  # this origin's running total
    removed: frozenset[Dot] = frozenset()
    floors: dict[int, Amount] = field(default_factory=dict)
    restarts: bool = False  # the running total begins anew, above a floor of nothing just below the change


@dataclass(slots=True)
class Delta:
    """One change, without what it changes: what a log record carries.

    `previous` is the timestamp of this origin's change before this one on the key. `cleared` is
    the context of which it removes all elements of `kinds`. `ended` is the register write that it
    removes without competing with any other.
    """

    key: bytes
    dot: Dot
    previous: int
    register: bytes | None = None
    writes_register: bool = False
    ended: Dot | None = None
    deadline_ms: int | None = None
    total: int | None = None
    floors: dict[int, Amount] = field(default_factory=dict)
    kinds: frozenset[Kind] = frozenset()
    cleared: Vector = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)


def guard_holds(state: KeyState, delta: Delta) -> bool:
    """Whether the state includes what the change builds on."""
    if state.context.get(delta.dot.origin, 0) < delta.previous:
        return False
    if not all(covers(state.context, dot) for part in delta.parts for dot in part.removed):
        return False
    return all(state.context.get(origin, 0) >= timestamp for origin, timestamp in delta.cleared.items())


def apply_delta(state: KeyState, delta: Delta) -> bool:
    """Change the state in place. False: it lacks what the delta builds on; nothing happened."""
    dot = delta.dot
    if covers(state.context, dot):
        return True
    if not guard_holds(state, delta):
        return False
    if delta.writes_register:
        state.register = newer_register(state.register, (dot, delta.register))
    if delta.ended is not None:
        state.register = newer_register(state.register, (delta.ended, None))
    if delta.deadline_ms is not None:
        state.deadline = max(state.deadline, (dot, delta.deadline_ms))
    for (kind, _), element in state.entries.items():
        if kind in delta.kinds:
            element.dots = {old: value for old, value in element.dots.items() if not covers(delta.cleared, old)}
    if delta.total is not None:
        state.counter.raise_total(dot.origin, (dot.timestamp, delta.total))
    state.counter.raise_floors(delta.floors)
    for part in delta.parts:
        apply_part(state, part, dot)
    state.context[dot.origin] = dot.timestamp
    return True


def apply_part(state: KeyState, part: Part, dot: Dot) -> None:
    """What a change does to one element."""
    kind, _ = part.entry
    element = state.entries.setdefault(part.entry, Element())
    element.dots = {old: value for old, value in element.dots.items() if old not in part.removed}
    if part.value is not None:
        element.dots[dot] = part.value
    if part.total is not None:
        element.counter.raise_total(dot.origin, (dot.timestamp, part.total))
    element.counter.raise_floors(part.floors)
    if part.restarts:
        element.counter.raise_floors({dot.origin: (dot.timestamp - 1, 0)})
    if part.value is not None or part.total is not None:
        state.newest[kind] = max(state.newest.get(kind, NEVER), dot)


def newer_register(one: tuple[Dot, bytes | None], other: tuple[Dot, bytes | None]) -> tuple[Dot, bytes | None]:
    """Last writer wins. Of one and the same write, the side that knows that it was removed does."""
    return max(one, other, key=lambda register: (register[0], register[1] is None))


def surviving(one: Element, one_context: Vector, other: Element, other_context: Vector) -> dict[Dot, bytes]:
    """The dots that both hold, or that one holds and the other has never seen."""
    kept = {dot: value for dot, value in one.dots.items() if dot in other.dots or not covers(other_context, dot)}
    kept |= {dot: value for dot, value in other.dots.items() if dot in one.dots or not covers(one_context, dot)}
    return kept


def join(one: KeyState, other: KeyState) -> KeyState:
    """The least state that includes both; neither is changed."""
    joined = KeyState(
        context=merge_vectors([one.context, other.context]),
        register=newer_register(one.register, other.register),
        deadline=max(one.deadline, other.deadline),
    )
    joined.counter.merge(one.counter)
    joined.counter.merge(other.counter)
    for kind in COLLECTIONS:
        newest = max(one.newest.get(kind, NEVER), other.newest.get(kind, NEVER))
        if newest != NEVER:
            joined.newest[kind] = newest
    for entry in one.entries.keys() | other.entries.keys():
        left = one.entries.get(entry, Element())
        right = other.entries.get(entry, Element())
        element = Element(surviving(left, one.context, right, other.context))
        element.counter.merge(left.counter)
        element.counter.merge(right.counter)
        joined.entries[entry] = element
    return joined


def merge_vectors(vectors: Iterable[Vector]) -> Vector:
    """The least vector that covers all of them."""
    merged: Vector = {}
    for vector in vectors:
        for origin, timestamp in vector.items():
            merged[origin] = max(merged.get(origin, 0), timestamp)
    return merged


def normal(state: KeyState) -> tuple[object, ...]:
    """The state as a value that compares equal exactly when two states hold the same."""

    def rows(counter: Counter) -> list[tuple[int, Amount, Amount]]:
        return sorted(
            (o, r.total, r.floor) for o, r in counter.rows.items() if (r.total, r.floor) != (NOTHING, NOTHING)
        )

    entries = [(entry, sorted(element.dots.items()), rows(element.counter)) for entry, element in state.entries.items()]
    return (
        sorted(state.context.items()),
        state.register,
        state.deadline,
        rows(state.counter),
        sorted(entry for entry in entries if entry[1] or entry[2]),
        sorted(state.newest.items()),
    )


def number_total(text: bytes | None, text_dot: Dot, counter: Counter) -> int | None:
    """The exact integer that a register with a counter on top shows; None when it shows a text."""
    if text is None:
        return counter.live
    base = integer_of(text)
    if base is not None:
        return base + counter.live
    return counter.live if counter.alive and counter.newest > text_dot else None


def number_shown(text: bytes | None, text_dot: Dot, counter: Counter) -> bytes:
    """What a register with a counter on top reads as."""
    total = number_total(text, text_dot, counter)
    if text is not None and (total is None or not counter.alive):
        return text
    assert total is not None
    return b"%d" % clamp(total)
