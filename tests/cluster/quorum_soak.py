"""Three nodes of a region under load, killed one after the other: `python -m tests.cluster.quorum_soak --seconds 120`.

What follows `--` goes to `everwrite serve`, as in `-- --durability=os`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.processes import running_region
from tests.cluster.quorum_history import Outcome, violations
from tests.cluster.quorum_load import Load, Nemesis, check_end

__all__ = ["run"]


def run(
    folder: Path,
    seconds: float,
    *,
    threads: int = 4,
    seed: int = 0,
    faults: Sequence[str] = ("kill",),
    options: Sequence[str] = (),
) -> Load:
    """Load a region and harm its nodes for so long; then check the end. Raises AssertionError with what was wrong."""
    with running_region(folder, 3, *options) as region:
        load = Load(region, threads, seed)
        nemesis = Nemesis(region, seed, faults)
        load.start()
        try:
            nemesis.run(seconds)
        finally:
            load.stop()
        wrong = load.errors + check_end(region, load) + violations(load.history)
        outcomes = {outcome.value: count for outcome, count in load.history.outcomes.items()}
        done = dict(nemesis.done)
        print(f"{done}, {load.history.count()} requests, writes {outcomes}, refused {dict(load.refusals)}")
        assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:50])
        assert nemesis.done
        assert load.history.outcomes[Outcome.ACKNOWLEDGED]
        return load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", choices=Nemesis.FAULTS, default=["kill"])
    parser.add_argument("options", nargs="*", help="for `everwrite serve`, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(
            Path(folder),
            arguments.seconds,
            threads=arguments.threads,
            seed=arguments.seed,
            faults=arguments.faults,
            options=arguments.options,
        )


if __name__ == "__main__":
    main()
