"""A bounded counter's elements, from their description in docs/formats/state.md: the model's side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.reference.model import Element, Part
from tests.reference.vocabulary import Dot, Kind, clamp

CREATION_SIZE, USED_SIZE = 16, 24


def big(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "big") for value in values)


def dot_name(dot: Dot) -> bytes:
    return big(dot.origin, dot.timestamp)


def dot_of(name: bytes) -> Dot:
    return Dot(int.from_bytes(name[8:16], "big"), int.from_bytes(name[:8], "big"))


@dataclass
class Cell:
    """An amount; `target` is 0 for decrements, the origin itself for increments, else who was given it."""

    origin: int
    target: int
    amount: int
    dot: Dot


@dataclass
class Cells:
    """A bounded counter's live elements, sorted out."""

    minimums: dict[Dot, int] = field(default_factory=dict)
    cells: dict[Dot, list[Cell]] = field(default_factory=dict)

    @classmethod
    def read(cls, elements: Mapping[bytes, Element]) -> Cells:
        found = cls()
        for name in sorted(elements):
            dots = elements[name].dots
            generation = dot_of(name)
            if not dots:
                continue
            if len(name) == CREATION_SIZE:
                found.minimums[generation] = int.from_bytes(dots[max(dots)], "little", signed=True)
                found.cells[generation] = []
            elif generation in found.minimums:
                target = int.from_bytes(name[USED_SIZE:], "big")
                amount = max(int.from_bytes(value, "little") for value in dots.values())
                found.cells[generation].append(Cell(int.from_bytes(name[16:24], "big"), target, amount, max(dots)))
        return found

    def rights(self, generation: Dot, origin: int) -> int:
        held = 0
        for cell in self.cells[generation]:
            if cell.target == origin:
                held += cell.amount
            elif cell.origin == origin:
                held -= cell.amount
        return held

    def rights_by_origin(self) -> dict[int, int]:
        held: dict[int, int] = {}
        for generation, cells in self.cells.items():
            for origin in {cell.origin for cell in cells} | {cell.target for cell in cells if cell.target}:
                rights = self.rights(generation, origin)
                if rights > 0:
                    held[origin] = held.get(origin, 0) + rights
        return held

    @property
    def minimum(self) -> int:
        return max(self.minimums.values())

    @property
    def value(self) -> int:
        value = self.minimum
        for cells in self.cells.values():
            made = sum(cell.amount for cell in cells if cell.target == cell.origin)
            used = sum(cell.amount for cell in cells if cell.target == 0)
            value += max(0, made - used)
        return clamp(value)

    def shown(self) -> tuple[int, int, tuple[tuple[int, int], ...]]:
        return self.value, self.minimum, tuple(sorted(self.rights_by_origin().items()))

    def guards(self, generation: Dot, origin: int, spent: int, own: int) -> Iterator[Dot]:
        """The dots that a change of `own` relies on which spends, in all, so much of what `origin` got."""
        cells = self.cells[generation]
        if generation.origin != own and not any(cell.origin == own for cell in cells):
            yield generation
        covered = 0
        for cell in cells:
            if cell.origin == cell.target == origin:
                covered = cell.amount
                if origin != own:
                    yield cell.dot
        for cell in cells:
            if covered < spent and cell.target == origin != cell.origin:
                covered += cell.amount
                yield cell.dot

    def part(
        self, elements: Mapping[bytes, Element], generation: Dot, origin: int, target: int, more: int, own: int
    ) -> Part:
        """What a change of `own` says that adds to a cell."""
        name = dot_name(generation) + big(origin) + (big(target) if target else b"")
        before = next((c.amount for c in self.cells[generation] if (c.origin, c.target) == (origin, target)), 0)
        spent = 0
        if target != origin:
            mine = (c.amount for c in self.cells[generation] if c.origin == origin and c.target != origin)
            spent = more + sum(mine)
        removed = frozenset(elements[name].dots) if name in elements else frozenset[Dot]()
        guards = frozenset(self.guards(generation, origin, spent, own))
        value = (before + more).to_bytes(8, "little")
        return Part((Kind.BOUNDED, name), value, removed=removed | guards)

    def spend(self, elements: Mapping[bytes, Element], origin: int, target: int, amount: int) -> list[Part] | None:
        """A decrement or a transfer; None: the origin holds less."""
        parts = []
        for generation in self.minimums:
            share = min(amount, max(0, self.rights(generation, origin)))
            if share:
                parts.append(self.part(elements, generation, origin, target, share, origin))
                amount -= share
        return None if amount else parts


def creation(dot: Dot, minimum: int, amount: int) -> Iterable[Part]:
    """What the change named by `dot` says that creates a counter."""
    yield Part((Kind.BOUNDED, dot_name(dot)), minimum.to_bytes(8, "little", signed=True))
    yield Part((Kind.BOUNDED, dot_name(dot) + big(dot.origin) * 2), amount.to_bytes(8, "little"))
