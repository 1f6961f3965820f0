"""Does a peer's silence mean that it has failed? The phi accrual failure detector; no I/O, no clock.

Hayashibara, Defago, Yared and Katayama, *The phi accrual failure detector*, SRDS 2004: instead of yes or no, a number
says how unlikely the silence is, given how heartbeats have come so far. Phi = 8 means that it is a false alarm once in
10**8 times, if the intervals are normally distributed.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import NormalDist
from typing import Final

__all__ = ["FailureDetector"]

WINDOW: Final = 100
PHI_MAX: Final = 400.0  # where the probability is too small for a float


class FailureDetector:
    """Watches one connection. Times are seconds of the caller's clock.

    Until heartbeats have come, they are expected every `interval`. `deviation_min` is the least standard
    deviation assumed, since what comes like clockwork in a quiet moment doesn't in a busy one.
    """

    def __init__(self, now: float, interval: float, *, threshold: float, deviation_min: float) -> None:
        self._last = now
        self._intervals = deque((interval,), WINDOW)
        self._deviation_min = deviation_min
        # So many standard deviations beyond the mean phi is at the threshold.
        self._deviations = -NormalDist().inv_cdf(10.0**-threshold)
        self._mean, self._deviation = interval, deviation_min

    def heard(self, now: float) -> None:
        """A heartbeat has come."""
        self._intervals.append(now - self._last)
        self._last = now
        count = len(self._intervals)
        self._mean = math.fsum(self._intervals) / count
        variance = math.fsum((interval - self._mean) ** 2 for interval in self._intervals) / count
        self._deviation = max(self._deviation_min, math.sqrt(variance))

    def excuse(self, now: float, seconds: float) -> None:
        """Let so much of the silence not count: nobody listened."""
        self._last = min(now, self._last + seconds)

    def phi(self, now: float) -> float:
        """How sure it is that the peer has failed: -log10 of the probability that its heartbeat is still to come."""
        deviations = (now - self._last - self._mean) / self._deviation
        probability = math.erfc(deviations / math.sqrt(2.0)) / 2.0
        return -math.log10(probability) if probability > 0.0 else PHI_MAX

    def suspected_at(self) -> float:
        """When phi reaches the threshold, if nothing is heard before."""
        return self._last + self._mean + self._deviations * self._deviation
