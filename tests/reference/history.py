"""Who has seen which effect: the bookkeeping that feeds the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tests.reference.oracle import Effect, View, stamp, view
from tests.reference.vocabulary import Dot, Vector, covers


class Pulled(NamedTuple):
    """A key's state that came, or is to come, whole.

    `under` is the dot of the change that it was asked for, or sent ahead of, None for a state of a resync, which is
    joined as soon as it comes; `brought` are the effects on the key that it carries.
    """

    under: Dot | None
    key: bytes
    brought: frozenset[Dot]


@dataclass(slots=True)
class History:
    """Every effect that was ever issued, by key and dot.

    `shipments` says which whole states travel through code under test, by the bytes in which they do. `collected`
    covers what any store may have dropped for being stable.
    """

    effects: dict[bytes, dict[Dot, Effect]] = field(default_factory=dict)
    shipments: dict[bytes, list[Pulled]] = field(default_factory=dict)
    collected: Vector = field(default_factory=dict)

    def of_key(self, key: bytes) -> dict[Dot, Effect]:
        return self.effects.setdefault(key, {})

    def covered(self, key: bytes, applied: Vector, extra: frozenset[Dot] = frozenset()) -> list[Effect]:
        """The effects on the key that a vector covers, and those named in `extra`."""
        return [e for dot, e in self.of_key(key).items() if covers(applied, dot) or dot in extra]

    def record(self, draft: Effect, seen: list[Effect], dot: Dot) -> None:
        """Enter the effect of an operation that was answered."""
        known = self.of_key(draft.key)
        assert dot not in known, f"{dot} was issued twice"
        assert all(effect.dot.timestamp < dot.timestamp for effect in seen), f"{dot} isn't newer than what it observed"
        known[dot] = stamp(draft, dot, seen)

    def final(self, key: bytes, applied: Vector) -> View:
        """What every replica must show for the key in the end, when `applied` is what any of them has applied."""
        return view(self.covered(key, applied))
