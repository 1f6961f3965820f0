"""Waits for acknowledgement, against a dumb twin."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.server.coordinator import (
    AckWaits,
    Verdict,
    position_of_count,
    region_positions,
    regions_reached,
    verdict,
)

POSITIONS = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 20))


def test_a_region_is_as_far_as_its_furthest_node() -> None:
    assert region_positions([("eu", 3), ("eu", 5), ("ap", 0)]) == {"eu": 5, "ap": 0}


@given(POSITIONS, st.integers(0, 20), st.integers(0, 7))
def test_verdict_and_position_agree_with_counting(positions: dict[str, int], timestamp: int, count: int) -> None:
    held = sum(1 for position in positions.values() if position >= timestamp)
    assert regions_reached(positions, timestamp) == held
    expected = Verdict.WON if held >= count else Verdict.LOST if count > len(positions) else Verdict.PENDING
    assert verdict(positions, timestamp, count) is expected
    if count:
        assert (position_of_count(positions, count) >= timestamp) is (held >= count)


@pytest.mark.parametrize("seed", range(50))
def test_waits_resolve_once_and_as_a_dumb_twin_says(seed: int) -> None:
    rng = random.Random(seed)
    waits = AckWaits()
    twin: dict[int, tuple[int, int, float]] = {}
    positions = dict.fromkeys("abc", 0)
    now = 0.0
    for _ in range(400):
        match rng.randrange(4):
            case 0 | 1:
                wanted = rng.randrange(200), rng.randrange(1, 5), now + rng.choice([1.0, 5.0, 50.0])
                twin[waits.add(*wanted)] = wanted
            case 2:
                region = rng.choice("abc")
                positions[region] += rng.randrange(20)
                expected = {
                    token: regions_reached(positions, timestamp)
                    for token, (timestamp, count, _) in twin.items()
                    if regions_reached(positions, timestamp) >= count
                }
                assert dict(waits.advance(positions)) == expected
                for token in expected:
                    del twin[token]
            case _:
                now += rng.random() * 3
                expected = {
                    token: regions_reached(positions, timestamp)
                    for token, (timestamp, _, deadline) in twin.items()
                    if deadline <= now
                }
                assert dict(waits.expire(now, positions)) == expected
                for token in expected:
                    del twin[token]
                if twin and rng.random() < 0.2:
                    token = rng.choice(list(twin))
                    waits.cancel(token)
                    del twin[token]
        assert len(waits) == len(twin)
        assert waits.next_deadline() == min((deadline for _, _, deadline in twin.values()), default=None)


def test_without_a_deadline_it_waits_on() -> None:
    waits = AckWaits()
    token = waits.add(5, 1, None)
    assert waits.next_deadline() is None
    assert waits.expire(1e12, {"a": 0}) == []
    assert waits.advance({"a": 5}) == [(token, 1)]


def test_what_is_over_does_not_stay_in_memory() -> None:
    waits = AckWaits()
    blocker = waits.add(0, 9, 0.5)
    for number in range(10_000):
        waits.add(number, 1, 3600.0)
        waits.advance({"a": number})
    assert len(waits) == 1
    assert len(waits._by_deadline) < 200
    assert sum(map(len, waits._by_count.values())) < 200
    waits.cancel(blocker)
    assert waits.next_deadline() is None
