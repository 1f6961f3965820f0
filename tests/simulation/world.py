"""Virtual time and seeded randomness."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

START_MS = 1_700_000_000_000


class World:
    """The order of all events. The same seed gives the same run.

    `now` is in seconds from the start; nothing happens between events.
    """

    def __init__(self, seed: int, *, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.counts: dict[str, int] = {}
        self._tell = tell
        self._queue: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._sequence = 0

    def after(self, delay: float, action: Callable[..., Any], *arguments: Any) -> None:
        """Plan an event. Events of the same moment run in the order in which they were planned."""
        self._sequence += 1
        heapq.heappush(self._queue, (self.now + delay, self._sequence, action, arguments))

    def run_until(self, moment: float) -> None:
        """Let time pass."""
        while self._queue and self._queue[0][0] <= moment:
            self.now, _, action, arguments = heapq.heappop(self._queue)
            action(*arguments)
        self.now = moment

    def tell(self, what: str) -> None:
        """One line of the transcript."""
        if self._tell is not None:
            self._tell(f"{self.now:9.4f} {what}")

    def count(self, what: str, number: int = 1) -> None:
        """Note that something happened, for the summary of a run."""
        self.counts[what] = self.counts.get(what, 0) + number
