"""The model's operations on sorted sets, bounded counters and sequences."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from tests.reference.cells import Cells, creation
from tests.reference.model import NOTHING, Element, Part, Row
from tests.reference.positions import between
from tests.reference.vocabulary import QUARTER, Dot, Kind, Refusal, Reply, Request, score_of


def total_of(score: float) -> int:
    """A float64 in the 64 bits of a total."""
    return int(struct.unpack("<q", struct.pack("<d", score))[0])


def amount_of(row: Row) -> float:
    """What one origin has added to a score since it was last reset."""
    total, floor = (struct.unpack("<d", struct.pack("<q", part[1]))[0] for part in (row.total, row.floor))
    return float(total - floor) if row.alive else 0.0


def shown_score(element: Element) -> float:
    base = score_of(element.dots[max(element.dots)]) if element.dots else 0.0
    return base + sum(amount_of(row) for _, row in sorted(element.counter.rows.items()))


def shown_scores(elements: dict[bytes, Element]) -> tuple[tuple[bytes, float], ...]:
    scores = [(name, shown_score(element)) for name, element in elements.items()]
    return tuple(sorted(scores, key=lambda pair: (pair[1], pair[0])))


def shown_items(elements: dict[bytes, Element]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name, elements[name].dots[max(elements[name].dots)]) for name in sorted(elements))


class OrderedOperations:
    """What a `ModelStore` does for verbs of these kinds."""

    __slots__ = ()

    def elements(self: Any, request: Request, kind: Kind, exists: bool) -> dict[bytes, Element]:
        return dict(self.state(request.key).of_kind(kind)) if exists else {}

    def do_score_set(self: Any, request: Request, exists: bool) -> Reply:
        return int(self.change_entries(Kind.SORTED_SET, request, exists, request.values))

    def do_score_remove(self: Any, request: Request, exists: bool) -> Reply:
        return int(self.change_entries(Kind.SORTED_SET, request, exists, (None,) * len(request.names)))

    def do_score_pop(self: Any, request: Request, exists: bool) -> Reply:
        held = shown_scores(self.elements(request, Kind.SORTED_SET, exists))
        if not held:
            return None
        name: bytes = held[-1 if request.amount < 0 else 0][0]
        self.change_entries(Kind.SORTED_SET, replace(request, names=(name,)), exists, (None,))
        return name

    def do_score_increment(self: Any, request: Request, exists: bool) -> Reply:
        entry = (Kind.SORTED_SET, request.names[0])
        element = self.state(request.key).entries.get(entry, Element())
        row = element.counter.rows.get(self.origin, Row())
        amount = request.amount * QUARTER
        shown = shown_score(element) if exists and element.alive else 0.0
        restarts = (row.total, row.floor) != (NOTHING, NOTHING) and not (exists and row.alive)
        before = 0.0 if restarts else struct.unpack("<d", struct.pack("<q", row.total[1]))[0]
        change = self.prepare(request.key, Kind.SORTED_SET)
        change["parts"].append(Part(entry, total=total_of(before + amount), restarts=restarts))
        self.emit(request.key, **change)
        return shown + amount

    def change_cells(self: Any, request: Request, parts: list[Part]) -> None:
        change = self.prepare(request.key, Kind.BOUNDED)
        change["parts"] += parts
        self.emit(request.key, **change)

    def do_bounded_increment(self: Any, request: Request, exists: bool) -> Reply:
        elements = self.elements(request, Kind.BOUNDED, exists)
        cells = Cells.read(elements)
        if cells.minimums:
            value, generation = cells.value, max(cells.minimums)
            parts = [cells.part(elements, generation, self.origin, self.origin, request.amount, self.origin)]
        else:
            minimum = int(request.values[0])
            value = minimum
            parts = list(creation(Dot(self.next_timestamp(), self.origin), minimum, request.amount))
        self.change_cells(request, parts)
        return value + request.amount

    def spend_rights(self: Any, request: Request, exists: bool, target: int) -> int | Refusal:
        elements = self.elements(request, Kind.BOUNDED, exists)
        cells = Cells.read(elements)
        value = cells.value if cells.minimums else 0
        parts = cells.spend(elements, self.origin, target, request.amount)
        if parts is None:
            return Refusal.NO_RIGHTS
        if target != self.origin:
            self.change_cells(request, parts)
        return value - request.amount

    def do_bounded_decrement(self: Any, request: Request, exists: bool) -> Reply:
        outcome: Reply = self.spend_rights(request, exists, 0)
        return outcome

    def do_bounded_transfer(self: Any, request: Request, exists: bool) -> Reply:
        outcome: Reply = self.spend_rights(request, exists, int(request.names[0]))
        return outcome if isinstance(outcome, Refusal) else None

    def do_item_insert(self: Any, request: Request, exists: bool) -> Reply:
        names = sorted(self.elements(request, Kind.SEQUENCE, exists))
        index = min(request.amount, len(names))
        left = names[index - 1] if index else None
        right = names[index] if index < len(names) else None
        made = between(left, right, self.origin, self.next_timestamp(), len(request.values))
        self.change_entries(Kind.SEQUENCE, replace(request, names=tuple(made)), exists, request.values)
        return None

    def do_item_remove(self: Any, request: Request, exists: bool) -> Reply:
        held = shown_items(self.elements(request, Kind.SEQUENCE, exists))
        if request.amount >= len(held):
            return None
        name, value = held[request.amount]
        self.change_entries(Kind.SEQUENCE, replace(request, names=(name,)), exists, (None,))
        return value

    def do_item_set(self: Any, request: Request, exists: bool) -> Reply:
        held = shown_items(self.elements(request, Kind.SEQUENCE, exists))
        if request.amount >= len(held):
            return 0
        name = held[request.amount][0]
        self.change_entries(Kind.SEQUENCE, replace(request, names=(name,)), exists, request.values)
        return 1
