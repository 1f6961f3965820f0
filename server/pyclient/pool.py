"""The connections of a client that nobody is using. Sans-I/O: connections are whatever the shell makes them.

The shells bound how many are used at once; the idle ones and those together are never more than `limit`.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from everwrite.client.addresses import Address
from everwrite.client.wire import Wire

__all__ = ["Idle"]


class HasWire(Protocol):
    """A connection."""

    @property
    def wire(self) -> Wire: ...


C = TypeVar("C", bound=HasWire)


class Idle(Generic[C]):
    """Idle connections, the ones used last at the end."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._idle: list[C] = []

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, address: Address, level: str | None) -> C | None:
        """One to use: to this address, best at this level already; the one that was used last."""
        best: int | None = None
        for at, connection in enumerate(self._idle):
            if connection.wire.address == address and (best is None or not connection.wire.level_words(level)):
                best = at
        if best is None:
            return None
        self.used += 1
        return self._idle.pop(best)

    def start(self) -> list[C]:
        """Count one that is about to be opened; returns those that must be closed for it."""
        self.used += 1
        return self._trim()

    def end(self) -> None:
        """Count one that was taken or opened, and is closed."""
        self.used -= 1

    def give(self, connection: C) -> None:
        """Keep one that was taken or opened."""
        self.used -= 1
        self._idle.append(connection)

    def forget(self, address: Address) -> list[C]:
        """Take out all to this address; the caller closes them."""
        gone = [each for each in self._idle if each.wire.address == address]
        self._idle = [each for each in self._idle if each.wire.address != address]
        return gone

    def drain(self) -> list[C]:
        """Take out all; the caller closes them."""
        gone, self._idle = self._idle, []
        return gone

    def _trim(self) -> list[C]:
        excess = max(0, len(self._idle) + self.used - self.limit)
        gone, self._idle = self._idle[:excess], self._idle[excess:]
        return gone
