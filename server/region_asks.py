"""Which replicas of the region a question goes to, and when it is over. Pure: no I/O, no clock.

The first phase of a read or write at a quorum (Attiya, Bar-Noy and Dolev, *Sharing memory robustly in
message-passing systems*, J. ACM 42, 1995): enough replicas say what they know more. A question goes to those that
have answered fastest; when one of them is lost, another takes its place. One more is asked when answers take longer
than 95 of 100 do (Dean and Barroso, *The tail at scale*, CACM 56, 2013), so that a replica that gets slow costs
no more than that.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from everwrite.server.settings import ReplicationSettings

__all__ = ["RegionAsks", "Step"]

# Of the moving average, the part that the newest answer makes up.
WEIGHT: Final = 0.2
# What a question that a replica wasn't asked leaves of its average: one that was slow once is tried again.
FORGIVENESS: Final = 0.995
ANSWERS_REMEMBERED: Final = 200
# What answers are taken to need before there were any.
SECONDS_AT_FIRST: Final = 0.05


class AnswerTimes:
    """How long the last answers took, of all replicas together."""

    def __init__(self) -> None:
        self._recent: Final[deque[float]] = deque()
        self._sorted: Final[list[float]] = []

    def note(self, seconds: float) -> None:
        """An answer has taken so long."""
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > ANSWERS_REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def percentile_95(self) -> float:
        """95 of 100 answers took at most so long."""
        if not self._sorted:
            return SECONDS_AT_FIRST
        return self._sorted[len(self._sorted) * 95 // 100]


class Step(NamedTuple):
    """What follows from an event: questions to send, as (token, replica), and those that are over, as (token,
    answers received)."""

    sends: list[tuple[int, int]]
    over: list[tuple[int, int]]


@dataclass(slots=True)
class _Ask:
    question: bytes
    wanted: int
    deadline: float
    speculate_at: float | None = None  # None: not again
    received: int = 0
    # Who was asked, and when; those who have answered or are lost stay in `asked` only.
    asked: set[int] = field(default_factory=set)
    waiting: dict[int, float] = field(default_factory=dict)


class RegionAsks:
    """The questions under way. A replica is a small number, the caller's name for it.

    Invariants: each token is over once, or cancelled. A replica is asked a question at most once. Of no
    question fewer replicas are waited for than it still wants: where there are no more, it is over.
    """

    def __init__(self, settings: ReplicationSettings) -> None:
        self.asked = 0
        self.failed = 0
        self.answers = 0
        self.speculative = 0
        self._settings = settings
        self._asks: Final[dict[int, _Ask]] = {}
        self._average: Final[dict[int, float]] = {}
        self._times = AnswerTimes()
        self._next_token = 1

    def __len__(self) -> int:
        return len(self._asks)

    def question(self, token: int) -> bytes:
        """The question, as it was asked. Raises KeyError when it is over."""
        return self._asks[token].question

    def begin(
        self, now: float, question: bytes, wanted: int, deadline: float, available: Collection[int]
    ) -> tuple[int, Step]:
        """Ask `wanted` of the `available` replicas; its token. Over at once when there are too few."""
        token = self._next_token
        self._next_token += 1
        self.asked += 1
        speculate_at = now + max(self._settings.speculation_min, self._times.percentile_95())
        ask = _Ask(question, wanted, deadline, speculate_at)
        if len(self._asks) >= self._settings.asks_max:
            self.failed += 1
            return token, Step([], [(token, 0)])
        self._asks[token] = ask
        return token, self._pursue(now, token, available)

    def cancel(self, token: int) -> None:
        """Forget a question; nothing happens when it is over already."""
        self._asks.pop(token, None)

    def answered(self, now: float, token: int, replica: int) -> Step:
        """A replica has answered as a whole. Answers to what is over are ignored."""
        ask = self._asks.get(token)
        asked_at = ask.waiting.pop(replica, None) if ask is not None else None
        if ask is None or asked_at is None:
            return Step([], [])
        self._note_time(replica, now - asked_at)
        self._times.note(now - asked_at)
        self.answers += 1
        ask.received += 1
        return Step([], self._end(now, token) if ask.received >= ask.wanted else [])

    def waits_for(self, token: int, replica: int) -> bool:
        """Whether this replica's answer still counts."""
        ask = self._asks.get(token)
        return ask is not None and replica in ask.waiting

    def lost(self, now: float, replica: int, available: Collection[int]) -> Step:
        """A replica answers nothing any more of what it was asked so far."""
        sends: list[tuple[int, int]] = []
        over: list[tuple[int, int]] = []
        for token, ask in list(self._asks.items()):
            if ask.waiting.pop(replica, None) is not None:
                step = self._pursue(now, token, available)
                sends += step.sends
                over += step.over
        return Step(sends, over)

    def refused(self, now: float, token: int, replica: int, available: Collection[int]) -> Step:
        """What a replica has answered was of no use."""
        ask = self._asks.get(token)
        if ask is None or ask.waiting.pop(replica, None) is None:
            return Step([], [])
        return self._pursue(now, token, available)

    def tick(self, now: float, available: Collection[int]) -> Step:
        """End those whose deadline has come; ask one more replica where answers take long."""
        sends: list[tuple[int, int]] = []
        over: list[tuple[int, int]] = []
        for token, ask in list(self._asks.items()):
            if ask.deadline <= now:
                over += self._end(now, token)
            elif ask.speculate_at is not None and ask.speculate_at <= now:
                ask.speculate_at = None
                for replica in self._fastest(ask, available)[:1]:
                    self.speculative += 1
                    sends.append(self._send(now, token, replica))
        return Step(sends, over)

    def next_time(self) -> float | None:
        """When `tick` has something to do; None: not before something happens."""
        return min(
            (
                ask.deadline if ask.speculate_at is None else min(ask.deadline, ask.speculate_at)
                for ask in self._asks.values()
            ),
            default=None,
        )

    # -- within -----------------------------------------------------------------------------------

    def _pursue(self, now: float, token: int, available: Iterable[int]) -> Step:
        """Ask as many replicas as are still needed, or give up."""
        ask = self._asks[token]
        lacking = ask.wanted - ask.received - len(ask.waiting)
        others = self._fastest(ask, available)
        if ask.received >= ask.wanted or lacking > len(others):
            return Step([], self._end(now, token))
        chosen, left = others[: max(0, lacking)], others[max(0, lacking) :]
        for replica in left:
            if replica in self._average:
                self._average[replica] *= FORGIVENESS
        return Step([self._send(now, token, replica) for replica in chosen], [])

    def _fastest(self, ask: _Ask, available: Iterable[int]) -> list[int]:
        """Who wasn't asked yet, by how fast they have answered of late."""
        return sorted(set(available) - ask.asked, key=lambda replica: (self._average.get(replica, 0.0), replica))

    def _send(self, now: float, token: int, replica: int) -> tuple[int, int]:
        ask = self._asks[token]
        ask.asked.add(replica)
        ask.waiting[replica] = now
        return token, replica

    def _end(self, now: float, token: int) -> list[tuple[int, int]]:
        ask = self._asks.pop(token)
        self.failed += ask.received < ask.wanted
        # Who was overtaken takes at least so long.
        for replica, asked_at in ask.waiting.items():
            if now - asked_at > self._average.get(replica, 0.0):
                self._note_time(replica, now - asked_at)
        return [(token, ask.received)]

    def _note_time(self, replica: int, seconds: float) -> None:
        average = self._average.get(replica)
        self._average[replica] = seconds if average is None else average + WEIGHT * (seconds - average)
