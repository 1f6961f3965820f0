"""Version vectors against their definition: a map of origin to timestamp, absent origins at 0."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from everwrite.clock import compare, covers, merge

Vector = dict[int, int]

# Few origins and timestamps, so that all orders occur; and the ends of what 64 bits hold.
NUMBERS = st.one_of(st.integers(1, 3), st.sampled_from([1 << 63, (1 << 64) - 1]))
VECTORS = st.dictionaries(NUMBERS, NUMBERS, max_size=9)


def compare_twin(a: Vector, b: Vector) -> str:
    less = any(stamp > a.get(origin, 0) for origin, stamp in b.items())
    more = any(stamp > b.get(origin, 0) for origin, stamp in a.items())
    return {(False, False): "equal", (True, False): "before", (False, True): "after", (True, True): "concurrent"}[
        less, more
    ]


def merge_twin(a: Vector, b: Vector) -> Vector:
    return {origin: max(a.get(origin, 0), b.get(origin, 0)) for origin in a.keys() | b.keys()}


@given(VECTORS, VECTORS)
def test_compare_and_merge_are_what_they_are_defined_as(a: Vector, b: Vector) -> None:
    assert compare(a, b) == compare_twin(a, b)
    assert covers(a, b) == (compare_twin(a, b) in ("equal", "after"))
    assert merge(a, b) == merge_twin(a, b)


@given(VECTORS, st.data())
def test_vectors_of_the_same_origins(a: Vector, data: st.DataObject) -> None:
    """As nearly all are."""
    b = {origin: data.draw(NUMBERS) for origin in a}
    assert compare(a, b) == compare_twin(a, b)
    assert merge(a, b) == merge_twin(a, b)
    assert merge(b, a) == merge_twin(a, b)


def test_zero_is_absence() -> None:
    assert compare({1: 0}, {}) == "equal"
    assert merge({1: 0}, {2: 5}) == {2: 5}
