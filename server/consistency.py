"""Consistency levels: how many replicas of a region an operation waits for.

`ONE`: this node alone. `LOCAL_QUORUM`: a majority of the region's replicas. `ALL`: every one of them. This node
counts. DESIGN: whose cursors to wait for.
"""

from __future__ import annotations

import enum

__all__ = ["Level"]


class Level(enum.IntEnum):
    """A consistency level; the numbers are those of `levels.pxd`."""

    ONE = 1
    LOCAL_QUORUM = 2
    ALL = 3

    @classmethod
    def parse(cls, text: str) -> Level:
        """The level of this name, in any case. Raises ValueError that lists the names."""
        try:
            return cls[text.upper()]
        except KeyError:
            names = ", ".join(level.name for level in cls)
            raise ValueError(f"unknown consistency level {text[:64]!r}: the levels are {names}") from None

    def required(self, replicas: int) -> int:
        """How many of so many replicas have to take part, this node among them."""
        if self is Level.ONE:
            return 1
        return replicas if self is Level.ALL else replicas // 2 + 1
