"""Kill writers: `python -m tests.crash --rounds 10000 --seed 1`.

Prints what was done; each loss with the command that repeats the decisions of that store. When the process
dies depends on the machine, too: a kill at a moment can't be repeated exactly. Exit status 1: something was lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from multiprocessing import get_context

from tests.crash.rounds import LIVES, run_share


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="number of writers")
    parser.add_argument("--seed", type=int, default=1, help="all decisions follow from it")
    parser.add_argument("--store", type=int, help=f"only this store: {LIVES} writers")
    parser.add_argument("--folder", help="where the stores are kept; a temporary folder unless given")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="stores at a time")
    parser.add_argument("--canary", action="store_true", help="let writers lie, which must be noticed")
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="everwrite-crash-")
    if arguments.store is not None:
        shares = [(folder, arguments.seed, arguments.store, LIVES, arguments.canary)]
    else:
        stores = -(-arguments.rounds // LIVES)
        share = -(-stores // arguments.jobs)
        shares = [
            (
                *(folder, arguments.seed, first),
                *(min(share * LIVES, arguments.rounds - first * LIVES), arguments.canary),
            )
            for first in range(0, stores, share)
        ]
    with get_context("spawn").Pool(len(shares)) as pool:
        totals = sum(pool.starmap(run_share, shares), Counter())
    print(", ".join(f"{name}: {count}" for name, count in sorted(totals.items())))
    return 1 if totals["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
