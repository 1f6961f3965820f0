"""The memory table, seen through an Lsm that never freezes it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite import errors
from everwrite.lsm import Lsm
from everwrite.memory_files import MemoryFiles

# Long common prefixes, zero bytes at the end, and ties in the first bytes are where an order goes wrong.
alike = st.builds(
    lambda head, size, tail: head * size + tail,
    st.sampled_from([b"a", b"\x00", b"\xff"]),
    st.integers(0, 40),
    st.binary(max_size=9),
)
keys = st.one_of(st.binary(max_size=40), alike)


def open_lsm() -> Lsm:
    return Lsm(MemoryFiles(), "lsm")


@given(st.lists(st.lists(keys, max_size=200), max_size=5))
def test_order_is_that_of_the_bytes(groups: list[list[bytes]]) -> None:
    lsm = open_lsm()
    expected = {}
    for group in groups:
        for key in group:
            expected[key] = b"v" + key
            lsm[key] = expected[key]
        assert list(lsm.items()) == sorted(expected.items())
    for key in expected:
        assert next(lsm.items(key)) == (key, expected[key])


@pytest.mark.parametrize("shape", ["random", "ascending", "descending", "prefixed", "nested"])
def test_many_keys(shape: str) -> None:
    source = random.Random(shape)
    count = 30_000
    made = {
        "random": [source.randbytes(16) for _ in range(count)],
        "ascending": [b"key:%012d" % i for i in range(count)],
        "descending": [b"key:%012d" % (count - i) for i in range(count)],
        "prefixed": [b"p" * 300 + b"%d" % source.randrange(10**9) for _ in range(count)],
        "nested": [b"x" * (i % 700) + b"%d" % i for i in range(count)],
    }[shape]
    lsm = open_lsm()
    expected = {}
    for i, key in enumerate(made):
        lsm[key] = expected[key] = b"%d" % i
        if i % 7_001 == 0:
            assert sum(1 for _ in lsm.items()) == len(expected)
    assert list(lsm.items()) == sorted(expected.items())
    for key in source.sample(made, 1_000):
        assert lsm[key] == expected[key]
        with pytest.raises(KeyError):
            lsm[key + b"?"]


def test_values_grow_and_shrink() -> None:
    lsm = open_lsm()
    source = random.Random(1)
    for size in [0, 1, 8, 100, 5_000, 80, 4_096, 4_097, 100_000, 0, 1 << 20, 3, 100_000]:
        for key in (b"a", b"", b"k" * 3_000):
            value = source.randbytes(size)
            lsm[key] = value
            assert lsm[key] == value


def test_overwrites_do_not_grow_memory() -> None:
    lsm = open_lsm()
    source = random.Random(2)
    sizes = [10, 200, 5_000, 40_000]
    for i in range(200):
        lsm[b"%d" % i] = bytes(sizes[-1])
    # A mebibyte of room for slack; the values written below are 220 MB in all.
    limit = lsm.statistics()["memtable_bytes"] + (1 << 20)
    for _ in range(20_000):
        lsm[b"%d" % source.randrange(200)] = bytes(source.choice(sizes))
        assert lsm.statistics()["memtable_bytes"] < limit


def test_removed_values_are_freed() -> None:
    lsm = open_lsm()
    for i in range(100):
        lsm[b"%d" % i] = bytes(100_000)
    assert lsm.statistics()["memtable_bytes"] > 10_000_000
    for i in range(100):
        del lsm[b"%d" % i]
    assert lsm.statistics()["memtable_bytes"] < 100_000
    assert list(lsm.items()) == []


def test_limits_are_named_and_change_nothing() -> None:
    lsm = open_lsm()
    lsm[b"k"] = b"v"
    before = lsm.statistics()
    for key, value in [(bytes(132_001), b"v"), (b"k", bytes((512 << 20) + 1))]:
        with pytest.raises(errors.TooLargeError):
            lsm[key] = value
    with pytest.raises(errors.TooLargeError):
        del lsm[bytes(132_001)]
    assert lsm.statistics() == before
    lsm[bytes(132_000)] = b"longest"
    assert list(lsm.items()) == [(bytes(132_000), b"longest"), (b"k", b"v")]
