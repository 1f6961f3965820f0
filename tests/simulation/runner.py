"""Running seeds, and saying how to see one again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from tests.simulation.direct import DirectScenario
from tests.simulation.disks import EngineDisk, ModelDisk
from tests.simulation.quorum import QuorumScenario
from tests.simulation.scenario import MakeDisk, Scenario

MODES: Final = {"sessions": Scenario, "direct": DirectScenario, "quorum": QuorumScenario}
STORES: Final[dict[str, MakeDisk]] = {"engine": EngineDisk, "model": ModelDisk}


class SeedFailed(AssertionError):
    """Something was wrong in the run of a seed; the message names the command that replays it."""


def run_seed(mode: str, store: str, seed: int, tell: Callable[[str], None] | None = None) -> dict[str, int]:
    """One run; returns counts of what happened. `tell` gets the transcript, line by line."""
    try:
        return MODES[mode](seed, STORES[store], tell).run()
    except Exception as error:
        # Whatever a run raises is a finding.
        command = f"python -m tests.simulation --mode {mode} --store {store} --seed {seed}"
        raise SeedFailed(f"{type(error).__name__}: {error}\nreplay: {command}") from error


def run_seeds(
    mode: str, store: str, seeds: Iterable[int], failed: Callable[[SeedFailed], None] | None = None
) -> Counter[str]:
    """Many runs; `failed` is told of each that fails, without it the first one ends them. Returns summed counts."""
    totals: Counter[str] = Counter()
    for seed in seeds:
        try:
            totals.update(run_seed(mode, store, seed))
            totals["seeds"] += 1
        except SeedFailed as error:
            if failed is None:
                raise
            totals["failed"] += 1
            failed(error)
    return totals
