"""Every bit of a small store is flipped: the right data, or an error that names the file."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults.damage import Silent, flip, sample

ALL_BITS = range(8)


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("bits", [(1,), pytest.param(ALL_BITS, marks=pytest.mark.slow)], ids=["one", "all"])
def test_flipped_bits(clean: bool, bits: Sequence[int], mapped: bool) -> None:
    disk, states = sample(clean=clean)
    disk.maps_for_reading = mapped
    counts = flip(disk, states, clean=clean, bits=bits)
    for kind in ("IDENTITY", "log", "manifest", "table"):
        # Each kind of file was there, and its damage was seen.
        assert counts[f"{kind}: CorruptionError"] >= 40 * len(bits)
    assert counts["log: found by verify"] > 0
    assert clean <= (counts["log: right data"] == 0)
    assert counts["manifest: right data"] == counts["table: right data"] == 0


def test_a_wrong_answer_would_be_noticed() -> None:
    disk, states = sample(clean=True)
    with pytest.raises(Silent):
        flip(disk, [{}, {}], clean=True, bits=(0,))
    assert len(states) > 10
