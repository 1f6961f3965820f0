"""Whose cursors an operation waits for, and whether they are far enough.

Like the quorum package of etcd's raft: a requirement looks at positions that were acknowledged and
says `PENDING`, `WON` or `LOST`; it knows nothing of connections or time. `AckWaits` keeps those
that are under way with their deadlines.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["AckWaits", "Verdict", "position_of_count", "region_positions", "regions_reached", "verdict"]


class Verdict(enum.Enum):
    """Where a requirement stands. `LOST`: no further acknowledgement can fulfil it."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def region_positions(acknowledged: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The position of each region: the furthest that any of its nodes has acknowledged.

    `acknowledged` gives (region, timestamp) of each node, 0 for one that has acknowledged nothing.
    """
    positions: dict[str, int] = {}
    for region, timestamp in acknowledged:
        positions[region] = max(positions.get(region, 0), timestamp)
    return positions


def regions_reached(positions: Mapping[str, int], timestamp: int) -> int:
    """How many regions hold everything up to `timestamp`."""
    return sum(position >= timestamp for position in positions.values())


def verdict(positions: Mapping[str, int], timestamp: int, count: int) -> Verdict:
    """Whether `count` regions hold everything up to `timestamp`."""
    if regions_reached(positions, timestamp) >= count:
        return Verdict.WON
    return Verdict.LOST if count > len(positions) else Verdict.PENDING


def position_of_count(positions: Mapping[str, int], count: int) -> int:
    """The newest timestamp that at least `count` regions hold; -1 when there are fewer regions."""
    if count > len(positions):
        return -1
    return sorted(positions.values(), reverse=True)[count - 1]


class AckWaits:
    """The waits for acknowledgement that are under way.

    Invariants: each token is resolved once, or cancelled. An advance costs in proportion to what
    it resolves, not to what waits. Deadlines are seconds of the caller's clock.
    """

    def __init__(self) -> None:
        self._waits: Final[dict[int, int]] = {}  # token -> timestamp
        # Heaps of (timestamp, token) and (deadline, token); entries of waits that are over are dropped lazily.
        self._by_count: Final[dict[int, list[tuple[int, int]]]] = {}
        self._by_deadline: list[tuple[float, int]] = []
        self._next_token = 1

    def __len__(self) -> int:
        return len(self._waits)

    def add(self, timestamp: int, count: int, deadline: float | None) -> int:
        """Start to wait until `count` regions hold `timestamp`; None: without end. Returns the token."""
        token = self._next_token
        self._next_token += 1
        self._waits[token] = timestamp
        heapq.heappush(self._by_count.setdefault(count, []), (timestamp, token))
        heapq.heappush(self._by_deadline, (math.inf if deadline is None else deadline, token))
        self._compact()
        return token

    def cancel(self, token: int) -> None:
        """Forget a wait; nothing happens when it is over already."""
        self._waits.pop(token, None)

    def advance(self, positions: Mapping[str, int]) -> list[tuple[int, int]]:
        """Take out the waits that are won: (token, regions that hold it)."""
        won: list[tuple[int, int]] = []
        for count, heap in list(self._by_count.items()):
            reached = position_of_count(positions, count) if count > 0 else None
            while heap and (reached is None or heap[0][0] <= reached or heap[0][1] not in self._waits):
                timestamp, token = heapq.heappop(heap)
                if self._waits.pop(token, None) is not None:
                    won.append((token, regions_reached(positions, timestamp)))
            if not heap:
                del self._by_count[count]
        return won

    def expire(self, now: float, positions: Mapping[str, int]) -> list[tuple[int, int]]:
        """Take out the waits whose deadline has come: (token, regions that hold it)."""
        over: list[tuple[int, int]] = []
        while self._by_deadline and self._by_deadline[0][0] <= now:
            _, token = heapq.heappop(self._by_deadline)
            timestamp = self._waits.pop(token, None)
            if timestamp is not None:
                over.append((token, regions_reached(positions, timestamp)))
        return over

    def next_deadline(self) -> float | None:
        """When the next wait is over at the latest; None when nothing with a deadline waits."""
        while self._by_deadline and self._by_deadline[0][1] not in self._waits:
            heapq.heappop(self._by_deadline)
        deadline = self._by_deadline[0][0] if self._by_deadline else math.inf
        return None if deadline == math.inf else deadline

    def _compact(self) -> None:
        # A wait that is won long before its deadline must not stay in memory until then.
        allowed = 2 * len(self._waits) + 64
        if len(self._by_deadline) > allowed:
            self._by_deadline = [entry for entry in self._by_deadline if entry[1] in self._waits]
            heapq.heapify(self._by_deadline)
        if sum(map(len, self._by_count.values())) > allowed:
            for count, heap in list(self._by_count.items()):
                heap[:] = [entry for entry in heap if entry[1] in self._waits]
                heapq.heapify(heap)
                if not heap:
                    del self._by_count[count]
