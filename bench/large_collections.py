"""Operations a second on sets, maps, sorted sets and sequences of very different sizes, and the ratio between them.

    python bench/large_collections.py
    python bench/large_collections.py --sizes 10,100000,10000000 --types "sorted set,sequence" --output json

Each collection is alone in a store (durability `os`) that was compacted after it was filled, so that all but the
smallest lie in a table file. Elements are picked at random. Ten million take some minutes and up to 3 GB a type.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import everwrite

KEY = b"collection"
CHUNK = 5_000
Operation = Callable[[], object]


def name_of(number: int) -> bytes:
    return b"element %010d" % number


@dataclass
class Case:
    """How a type is filled, and what is measured: each operation leaves the size as it was."""

    fill: Callable[[everwrite.Database, range], None]
    operations: Callable[[everwrite.Database, int, random.Random], dict[str, Operation]]


def set_operations(db: everwrite.Database, size: int, rng: random.Random) -> dict[str, Operation]:
    members = db.set(KEY)
    return {
        "contains": lambda: name_of(rng.randrange(size)) in members,
        "add and discard": lambda: (members.add(b"new"), members.discard(b"new")),
    }


def map_operations(db: everwrite.Database, size: int, rng: random.Random) -> dict[str, Operation]:
    fields = db.map(KEY)
    return {
        "get": lambda: fields.get(name_of(rng.randrange(size))),
        "set": lambda: fields.set({name_of(rng.randrange(size)): b"9"}),
        "increment": lambda: fields.increment(name_of(rng.randrange(size))),
    }


def sorted_set_operations(db: everwrite.Database, size: int, rng: random.Random) -> dict[str, Operation]:
    members = db.sorted_set(KEY)

    def add_and_discard() -> None:
        members.add(b"new", size / 2)
        members.discard(b"new")

    def count_half() -> int:
        low = rng.randrange(size) // 2
        return members.count(low, low + size / 2)

    def ten_ranks() -> list[tuple[bytes, float]]:
        start = rng.randrange(size)
        return members.ranks(start, start + 10)

    return {
        "score": lambda: members.score(name_of(rng.randrange(size))),
        "add and discard, before the first rank": add_and_discard,
        "first rank": lambda: members.rank(name_of(size // 2)),
        "rank": lambda: members.rank(name_of(rng.randrange(size))),
        "at a rank": lambda: members.at(rng.randrange(size)),
        "count of half of them": count_half,
        "ten ranks": ten_ranks,
        "add and discard": add_and_discard,
        "new score": lambda: members.add(name_of(rng.randrange(size)), rng.random() * size),
    }


def sequence_operations(db: everwrite.Database, size: int, rng: random.Random) -> dict[str, Operation]:
    items = db.sequence(KEY)
    positions: list[bytes] = []

    def insert_and_pop() -> None:
        index = rng.randrange(size)
        items.insert(index, b"new")
        items.pop(index)

    def index_of() -> int:
        if not positions:
            positions.extend(items.position(rng.randrange(size)) for _ in range(1000))
        return items.index_of(rng.choice(positions))

    def ten() -> list[bytes]:
        start = rng.randrange(size)
        return items[start : start + 10]

    return {
        "first and last": lambda: (items[0], items[-1]),
        "first index": lambda: items[size // 2],
        "by index": lambda: items[rng.randrange(size)],
        "index of a position": index_of,
        "slice of ten": ten,
        "insert at an index and pop it": insert_and_pop,
        "append and pop": lambda: (items.append(b"new"), items.pop()),
    }


def fill_sorted_set(db: everwrite.Database, numbers: range) -> None:
    db.sorted_set(KEY).update({name_of(number): float(number) for number in numbers})


CASES = {
    "set": Case(lambda db, numbers: db.set(KEY).add(*map(name_of, numbers)) and None, set_operations),
    "map": Case(
        lambda db, numbers: db.map(KEY).set(dict.fromkeys(map(name_of, numbers), b"7")) and None, map_operations
    ),
    "sorted set": Case(fill_sorted_set, sorted_set_operations),
    "sequence": Case(lambda db, numbers: db.sequence(KEY).extend(map(name_of, numbers)) and None, sequence_operations),
}


def per_second(operation: Operation, seconds: float, rounds: int) -> float:
    """The median of some rounds; after the first, a round is as many calls as take about `seconds`."""
    clock = time.perf_counter
    calls, rates = 1, []
    while len(rates) < rounds:
        began = clock()
        for _ in range(calls):
            operation()
        taken = clock() - began
        if taken >= seconds / 2:
            rates.append(calls / taken)
        calls = max(1, round(calls * min(10.0, seconds / max(taken, 1e-9))))
    return statistics.median(rates)


def measure(kind: str, size: int, seconds: float, rounds: int) -> dict[str, float]:
    """Rates by operation; those that begin with `first` are made once, and their rate is 1 / the seconds they took."""
    case, rates = CASES[kind], {}
    folder = tempfile.mkdtemp(prefix="everwrite-bench-")
    try:
        with everwrite.open(folder, "os") as db:
            began = time.perf_counter()
            for start in range(0, size, CHUNK):
                case.fill(db, range(start, min(start + CHUNK, size)))
            rates["fill"] = size / (time.perf_counter() - began)
            db.compact()
            for name, operation in case.operations(db, size, random.Random(1)).items():
                if name.startswith("first"):
                    began = time.perf_counter()
                    operation()
                    rates[name] = 1 / (time.perf_counter() - began)
                else:
                    rates[name] = per_second(operation, seconds, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rates


def table(kind: str, sizes: list[int], found: dict[int, dict[str, float]]) -> str:
    lines = [f"| {kind} | " + " | ".join(f"{size:,}" for size in sizes) + f" | {sizes[-1]:,} to {sizes[0]:,} |"]
    lines.append("|" + "---|" * (len(sizes) + 2))
    for name in found[sizes[0]]:
        rates = [found[size][name] for size in sizes]
        if name.startswith("first"):
            shown = " | ".join(f"{1000 / rate:,.1f} ms" for rate in rates)
            lines.append(f"| {name}, once | {shown} | |")
        else:
            lines.append(
                f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + f" | {rates[-1] / rates[0]:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,100000,10000000", help="elements, smallest first")
    parser.add_argument("--types", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    results: dict[str, Any] = {}
    for kind in options.types.split(","):
        results[kind] = {size: measure(kind, size, options.seconds, options.rounds) for size in sizes}
        if options.output == "table":
            print(table(kind, sizes, results[kind]), end="\n\n", flush=True)
    if options.output == "json":
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
