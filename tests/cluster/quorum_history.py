"""What clients of a region asked for and were answered, and whether the answers were allowed at a local quorum.

The promise: a read, or a write's answer, tells at least of every write that was acknowledged before it began. What
was written by one client, one write after the other, is a regular register (Lamport, *On interprocess communication*,
1986): a read gets the newest acknowledged write before it, or one that began later. Increments are counted, and of
several writes that only succeed where there is nothing, the second one must not follow the first.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Event", "History", "Outcome", "violations"]


class Outcome(Enum):
    """What a client knows of a write."""

    ACKNOWLEDGED = "acknowledged"
    UNKNOWN = "unknown"
    NOT_APPLIED = "not applied"


@dataclass(frozen=True, slots=True)
class Event:
    """One request: from `start` to `end` in nanoseconds, and at which node; `what` is its command, for people."""

    what: str
    node: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"[{self.start / 1e9:.6f} .. {self.end / 1e9:.6f}] at {self.node}: {self.what}"


@dataclass(slots=True)
class _Write:
    event: Event
    outcome: Outcome
    value: object = None


@dataclass(slots=True)
class History:
    """Everything that happened. Thread-safe; a register has one writer, which writes one thing after the other."""

    registers: dict[str, list[_Write]] = field(default_factory=lambda: defaultdict(list))
    reads: dict[str, list[tuple[Event, object]]] = field(default_factory=lambda: defaultdict(list))
    increments: dict[str, list[_Write]] = field(default_factory=lambda: defaultdict(list))
    claims: dict[str, list[_Write]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wrote(self, register: str, value: object, outcome: Outcome, event: Event) -> None:
        """A register's only writer wrote a value (None: nothing is there any more)."""
        self._note(self.registers[register], _Write(event, outcome, value))

    def read(self, name: str, value: object, event: Event) -> None:
        """A register or a counter showed a value (None: nothing)."""
        with self._lock:
            self.reads[name].append((event, value))

    def incremented(self, counter: str, result: int | None, outcome: Outcome, event: Event) -> None:
        """A counter was incremented by one; `result` is what it was said to be then."""
        self._note(self.increments[counter], _Write(event, outcome, result))

    def claimed(self, name: str, won: bool | None, outcome: Outcome, event: Event) -> None:
        """Somebody wrote a name under which there must have been nothing; `won`: that was so."""
        self._note(self.claims[name], _Write(event, outcome, won))

    def _note(self, writes: list[_Write], write: _Write) -> None:
        with self._lock:
            writes.append(write)
            self.outcomes[write.outcome] += 1

    def count(self) -> int:
        """How many requests are noted."""
        return sum(self.outcomes.values()) + sum(map(len, self.reads.values()))


def violations(history: History) -> list[str]:
    """What was answered and must not have been, each with what it contradicts; empty when all is well."""
    found: list[str] = []
    for name, writes in history.registers.items():
        found += _check_register(name, writes, history.reads.get(name, []))
    for name, writes in history.increments.items():
        found += _check_counter(name, writes, history.reads.get(name, []))
    for name, writes in history.claims.items():
        found += _check_claims(name, writes)
    return found


def _check_register(name: str, writes: Sequence[_Write], reads: Sequence[tuple[Event, object]]) -> Iterator[str]:
    applied = [write for write in writes if write.outcome is not Outcome.NOT_APPLIED]
    places = [place for place, write in enumerate(applied) if write.outcome is Outcome.ACKNOWLEDGED]
    ends = [applied[place].event.end for place in places]
    starts = [write.event.start for write in applied]
    for event, value in reads:
        # The newest write that was acknowledged before the read began.
        before = bisect_left(ends, event.start)
        first = places[before - 1] if before else 0
        allowed = [write.value for write in applied[first : bisect_left(starts, event.end)]]
        if value in allowed or (not before and value is None):
            continue
        newest = f"acknowledged before it: {applied[first].event}" if before else "nothing was acknowledged before it"
        begun = [write for write in applied if write.value == value and write.event.start < event.end]
        source = f"it was last written by {begun[-1].event}" if begun else "nobody has written it"
        yield f"{name}: {event} read {value!r}; {newest}; {source}"


def _check_counter(name: str, writes: Sequence[_Write], reads: Sequence[tuple[Event, object]]) -> Iterator[str]:
    ends = sorted(write.event.end for write in writes if write.outcome is Outcome.ACKNOWLEDGED)
    starts = sorted(write.event.start for write in writes if write.outcome is not Outcome.NOT_APPLIED)
    shown = [(write.event, write.value, 1) for write in writes if write.outcome is Outcome.ACKNOWLEDGED]
    shown += [(event, value, 0) for event, value in reads]
    for event, value, itself in shown:
        least = bisect_left(ends, event.start) + itself
        most = bisect_left(starts, event.end)
        number = 0 if value is None else value
        assert isinstance(number, int)
        if not least <= number <= most:
            yield f"{name}: {event} answered {value}; it must be from {least} (acknowledged before) to {most} (begun)"


def _check_claims(name: str, writes: Sequence[_Write]) -> Iterator[str]:
    won = [write.event for write in writes if write.outcome is Outcome.ACKNOWLEDGED and write.value]
    begun = [write.event for write in writes if write.outcome is Outcome.UNKNOWN] + won
    for write in writes:
        if write.outcome is not Outcome.ACKNOWLEDGED:
            continue
        if write.value:
            for other in won:
                if other.end < write.event.start:
                    yield f"{name}: {write.event} found nothing; but before it there was {other}"
        elif not any(other.start < write.event.end for other in begun):
            yield f"{name}: {write.event} found something; but nobody had written it"
