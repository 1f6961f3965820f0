"""Run seeds of the simulator: `python -m tests.simulation --seed N` replays one with its transcript."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter

from tests.simulation.disks import EngineDisk, ModelDisk
from tests.simulation.scenario import MakeDisk, Scenario

STORES: dict[str, MakeDisk] = {"engine": EngineDisk, "model": ModelDisk}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed and print what happens")
    parser.add_argument("--start", type=int, default=0, help="first seed of a soak")
    parser.add_argument("--count", type=int, default=1000, help="number of seeds of a soak")
    parser.add_argument("--store", choices=sorted(STORES), default="engine", help="what the regions run on")
    arguments = parser.parse_args()
    make_disk = STORES[arguments.store]
    if arguments.seed is not None:
        counts = Scenario(arguments.seed, make_disk, print).run()
        print(dict(sorted(counts.items())))
        return 0
    totals: Counter[str] = Counter()
    failed = []
    for seed in range(arguments.start, arguments.start + arguments.count):
        try:
            totals.update(Scenario(seed, make_disk).run())
        except Exception as error:  # every failure of a seed is a finding; the soak goes on
            failed.append(seed)
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"seed {seed}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})")
            print(f"  replay: python -m tests.simulation --store {arguments.store} --seed {seed}", flush=True)
    print(dict(sorted(totals.items())))
    print(f"{arguments.count} seeds, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
