"""The phi accrual failure detector against its definition."""

from __future__ import annotations

import math
from statistics import NormalDist, fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.server.failure import FailureDetector

INTERVALS = st.lists(st.floats(0.001, 2.0), max_size=150)


def detector(intervals: list[float], threshold: float = 8.0) -> tuple[FailureDetector, float]:
    """One that has heard heartbeats at these intervals, the first of which is expected; and the last one's time."""
    watched = FailureDetector(0.0, 0.2, threshold=threshold, deviation_min=0.1)
    now = 0.0
    for interval in intervals:
        now += interval
        watched.heard(now)
    return watched, now


@given(INTERVALS, st.floats(0.0, 3.0))
def test_phi_is_the_improbability_of_a_later_heartbeat(intervals: list[float], silence: float) -> None:
    watched, now = detector(intervals)
    window = [0.2, *intervals][-100:]
    later = 1.0 - NormalDist(fmean(window), max(0.1, pstdev(window))).cdf(now + silence - now)
    if later > 1e-9:  # the difference from 1 has no digits left beyond
        assert watched.phi(now + silence) == pytest.approx(-math.log10(later), abs=1e-4)


@given(INTERVALS, st.floats(1.0, 15.0))
def test_a_peer_is_suspected_when_phi_reaches_the_threshold(intervals: list[float], threshold: float) -> None:
    watched, now = detector(intervals, threshold)
    at = watched.suspected_at()
    assert watched.phi(at - 0.001) < threshold < watched.phi(at + 0.001)
    assert at > now


@given(INTERVALS, st.lists(st.floats(0.0, 100.0), min_size=2, max_size=2))
def test_longer_silence_is_never_less_suspicious(intervals: list[float], silences: list[float]) -> None:
    watched, now = detector(intervals)
    shorter, longer = sorted(silences)
    assert 0.0 <= watched.phi(now + shorter) <= watched.phi(now + longer) <= 400.0


def test_what_comes_regularly_is_missed_soon_and_what_doesnt_later() -> None:
    regular, now = detector([0.2] * 50)
    assert regular.suspected_at() - now == pytest.approx(0.2 + 5.61 * 0.1, abs=0.01)
    irregular, now = detector([0.1, 1.0] * 25)
    assert irregular.suspected_at() - now > 2.0


def test_a_heartbeat_ends_the_suspicion() -> None:
    watched, now = detector([0.2] * 50)
    assert watched.phi(now + 1.0) > 8.0
    watched.heard(now + 1.0)
    assert watched.phi(now + 1.0) < 1.0
