"""What a store asks of a sender when a guarded change doesn't fit."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Need"]


class Need(NamedTuple):
    """The state of a key is needed before update `timestamp` of `origin` can be applied.

    `namespace_key` is the entry's space byte (1 system, 2 user) and the key.
    """

    namespace_key: bytes
    origin: int
    timestamp: int
