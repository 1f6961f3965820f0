"""Run the simulator: `python -m tests.simulation --seed N` replays one seed and prints its transcript.

Without `--seed` it is a soak: `--count` seeds from `--start` on; each failure prints the command that replays it.
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.runner import MODES, STORES, run_seed, run_seeds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed and print what happens")
    parser.add_argument("--start", type=int, default=0, help="first seed of a soak")
    parser.add_argument("--count", type=int, default=1000, help="number of seeds of a soak")
    parser.add_argument("--mode", choices=sorted(MODES), default="sessions", help="with replication sessions, or not")
    parser.add_argument("--store", choices=sorted(STORES), default="engine", help="what the regions run on")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        counts = run_seed(arguments.mode, arguments.store, arguments.seed, print)
        print(dict(sorted(counts.items())))
        return 0
    seeds = range(arguments.start, arguments.start + arguments.count)
    totals = run_seeds(arguments.mode, arguments.store, seeds, lambda error: print(error, flush=True))
    print(dict(sorted(totals.items())))
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
