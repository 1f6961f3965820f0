"""Power is lost before every system call of a scripted run, and each time in several ways."""

from __future__ import annotations

import pytest

from everwrite.kinds import KIND_NAMES
from everwrite.memory_files import MemoryFiles
from tests.faults.power import TORN_OUTCOMES, Image, check_image, lose_power
from tests.faults.script import Run, make_options, make_steps

DURABILITIES = ("always", "interval", "os")


@pytest.mark.parametrize("durability", DURABILITIES)
def test_power_lost_before_any_call_takes_nothing_that_was_durable(durability: str) -> None:
    counts = lose_power(seed=1, durability=durability, steps=100)
    assert counts["losses"] == (2 + TORN_OUTCOMES) * (counts["calls"] + 101)
    assert counts["calls"] > 200
    assert counts["tables"] >= 1
    assert all(counts[f"with a {kind}"] > 100 for kind in KIND_NAMES[1:])


@pytest.mark.slow
@pytest.mark.parametrize("durability", DURABILITIES)
def test_power_lost_in_many_runs(durability: str) -> None:
    for seed in range(100, 104):
        lose_power(seed, durability, steps=150)


def test_a_store_that_lost_something_is_noticed() -> None:
    """The check itself: an image of an older disk lacks what was acknowledged later."""
    options = make_options(1, "always")
    disk = MemoryFiles()
    run = Run(disk, disk, options)
    steps = [step for step in make_steps(1, 60) if step.operation is not None]
    for step in steps[:10]:
        run.do(step)
    old = disk.copy()
    for step in steps[10:]:
        run.do(step)
    for number, image in enumerate((disk, old)):
        try:
            check_image(Image(number, "none", image, run.allowed(), []), options, run.now_ms, 0)
            noticed = False
        except AssertionError:
            noticed = True
        assert noticed == (image is old)
