"""What a bounded counter is, from the history of its operations: who was given what, and who spent it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.reference.vocabulary import Dot, clamp

NOBODY = 0


class Grant(NamedTuple):
    """`amount` passes from `giver` (NOBODY: it is new) to `taker` (NOBODY: it is used up).

    It counts while its generation does, the creation that is named by the dot; None is the one that the update
    itself makes.
    """

    generation: Dot | None
    giver: int
    taker: int
    amount: int


Shown = tuple[int, int, tuple[tuple[int, int], ...]]


def rights_of(grants: Iterable[Grant], generation: Dot, origin: int) -> int:
    held = 0
    for grant in grants:
        if grant.generation == generation:
            held += grant.amount * ((grant.taker == origin) - (grant.giver == origin))
    return held


def shown(minimums: Mapping[Dot, int], grants: Iterable[Grant]) -> Shown:
    """Value, minimum, and who holds how much."""
    counted = [grant for grant in grants if grant.generation in minimums]
    value = minimum = max(minimums.values())
    rights: dict[int, int] = {}
    for generation in minimums:
        # Where the update that gave something hasn't come yet, but the one that spent it has, it counts as nothing.
        made = sum(
            g.amount * ((g.giver == NOBODY) - (g.taker == NOBODY)) for g in counted if g.generation == generation
        )
        value += max(0, made)
        for origin in {g.giver for g in counted} | {g.taker for g in counted} - {NOBODY}:
            held = rights_of(counted, generation, origin) if origin else 0
            if held > 0:
                rights[origin] = rights.get(origin, 0) + held
    return clamp(value), minimum, tuple(sorted(rights.items()))


def by_name(dot: Dot) -> tuple[int, int]:
    """In this order generations are drawn on."""
    return dot.origin, dot.timestamp


def spend(
    minimums: Mapping[Dot, int], grants: Iterable[Grant], origin: int, taker: int, amount: int
) -> list[Grant] | None:
    """What `origin` gives when it spends or hands over an amount; None: it holds less."""
    grants = list(grants)
    spent = []
    for generation in sorted(minimums, key=by_name):
        part = min(amount, max(0, rights_of(grants, generation, origin)))
        if part:
            spent.append(Grant(generation, origin, taker, part))
            amount -= part
    return None if amount else spent
