"""What an operation on one of a million elements costs, in bytes and steps: as much as on one of a hundred.

Never in time: bytes of log, bytes of entries written, and blocks of tables looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import everwrite
from everwrite.database import Database

SMALL, LARGE = 100, 1_000_000
CHUNK = 5_000
COUNTERS = ("log_end", "bytes_put", "blocks")

Fill = Callable[[Database, bytes, range], None]
Operation = Callable[[Database, bytes, int], object]


def element(number: int) -> bytes:
    return b"element %08d" % number


def fill_set(db: Database, key: bytes, numbers: range) -> None:
    db.set(key).add(*map(element, numbers))


def fill_map(db: Database, key: bytes, numbers: range) -> None:
    db.map(key).set({element(number): b"7" for number in numbers})


def fill_sorted_set(db: Database, key: bytes, numbers: range) -> None:
    db.sorted_set(key).update({element(number): number / 4 for number in numbers})


# How a key of many elements is filled, and operations on the element with a number.
CASES: dict[str, tuple[Fill, dict[str, Operation]]] = {
    "set": (
        fill_set,
        {
            "contains": lambda db, key, n: element(n) in db.set(key),
            "discard": lambda db, key, n: db.set(key).discard(element(n)),
            "add": lambda db, key, n: db.set(key).add(element(n)),
            "length": lambda db, key, n: len(db.set(key)),
        },
    ),
    "map": (
        fill_map,
        {
            "get": lambda db, key, n: db.map(key).get(element(n)),
            "set": lambda db, key, n: db.map(key).__setitem__(element(n), b"8"),
            "delete": lambda db, key, n: db.map(key).__delitem__(element(n)),
            "increment": lambda db, key, n: db.map(key).increment(element(n)),
            "length": lambda db, key, n: len(db.map(key)),
        },
    ),
    "sorted set": (
        fill_sorted_set,
        {
            "score": lambda db, key, n: db.sorted_set(key)[element(n)],
            "first": lambda db, key, n: db.sorted_set(key).first(),
            "last": lambda db, key, n: db.sorted_set(key).last(),
            "range": lambda db, key, n: db.sorted_set(key).range(n / 4, limit=1),
            "range in reverse": lambda db, key, n: db.sorted_set(key).range(maximum=n / 4, reverse=True, limit=1),
            "increment": lambda db, key, n: db.sorted_set(key).increment(element(n), 0.25),
            "add": lambda db, key, n: db.sorted_set(key).add(element(n), 7.5),
            "discard": lambda db, key, n: db.sorted_set(key).discard(element(n)),
            "pop": lambda db, key, n: db.sorted_set(key).pop_last(),
            "length": lambda db, key, n: len(db.sorted_set(key)),
        },
    ),
}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    # Small enough that all but the newest elements lie in tables.
    with everwrite.open(tmp_path, "os", memtable_bytes=1 << 20, background=False) as opened:
        yield opened


def counted(db: Database) -> dict[str, int]:
    numbers = db.statistics()
    return {**numbers, "blocks": numbers["cache_hits"] + numbers["cache_misses"]}


def cost(db: Database, operation: Callable[[], object]) -> dict[str, int]:
    before = counted(db)
    operation()
    after = counted(db)
    return {name: after[name] - before[name] for name in COUNTERS}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_operation_on_one_of_a_million_elements_costs_what_it_costs_among_a_hundred(db: Database, case: str) -> None:
    fill, operations = CASES[case]
    fill(db, b"few", range(SMALL))
    for start in range(0, LARGE, CHUNK):
        fill(db, b"all", range(start, start + CHUNK))
    tables = db.statistics()["tables"]
    assert db.statistics()["table_entries"] > LARGE * 9 // 10, "most elements lie in tables"
    assert tables <= LARGE.bit_length(), "lookups go through a logarithmic number of tables"
    for index, (name, operation) in enumerate(operations.items()):
        few = cost(db, lambda operation=operation, index=index: operation(db, b"few", 17 + index))
        most: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        for number in range(index, LARGE, LARGE // 50):
            many = cost(db, lambda operation=operation, number=number: operation(db, b"all", number))
            most = {counter: max(most[counter], many[counter]) for counter in COUNTERS}
        # Dots, names, and the same head, whose count of elements is a few bytes longer.
        assert most["log_end"] <= min(few["log_end"] + 8, 150), f"{name}: {most}, among few: {few}"
        assert most["bytes_put"] <= few["bytes_put"] + 16, f"{name}: {most}, among few: {few}"
        # At each place at most one block: for the head and the element, read and written, in each table.
        assert most["blocks"] <= 4 * (tables + 1), f"{name}: {most}, among few: {few}"


def fill_sequence(db: Database, key: bytes, numbers: range) -> None:
    db.sequence(key).extend([b"%d" % number for number in numbers])


# Operations on the element with a rank, and how many questions of the index each asks at most.
RANKED: dict[str, tuple[Fill, dict[str, tuple[Operation, int]]]] = {
    "sorted set": (
        fill_sorted_set,
        {
            "rank": (lambda db, key, n: db.sorted_set(key).rank(element(n)), 1),
            "at": (lambda db, key, n: db.sorted_set(key).at(n), 1),
            "count": (lambda db, key, n: db.sorted_set(key).count(n / 8, n / 4), 2),
            "ranks": (lambda db, key, n: db.sorted_set(key).ranks(n, n + 3), 1),
            "new score": (lambda db, key, n: db.sorted_set(key).add(element(n), 7.5), 4),
            "pop": (lambda db, key, n: db.sorted_set(key).pop_at(n), 3),
        },
    ),
    "sequence": (
        fill_sequence,
        {
            "item": (lambda db, key, n: db.sequence(key)[n], 1),
            "position and index": (lambda db, key, n: db.sequence(key).index_of(db.sequence(key).position(n)), 2),
            "slice": (lambda db, key, n: db.sequence(key)[n : n + 3], 1),
            "insert": (lambda db, key, n: db.sequence(key).insert(n, b"new"), 3),
            "replace": (lambda db, key, n: db.sequence(key).__setitem__(n, b"other"), 1),
            "pop": (lambda db, key, n: db.sequence(key).pop(n), 3),
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RANKED)
def test_an_operation_by_rank_looks_at_the_levels_of_an_index(db: Database, case: str) -> None:
    fill, operations = RANKED[case]
    for start in range(0, LARGE, CHUNK):
        fill(db, b"all", range(start, start + CHUNK))
    next(iter(operations.values()))[0](db, b"all", LARGE // 2)
    # A full span has 128 steps, one of a new index 96: two levels for a million, and the elements.
    level, levels = 128, 2
    tables = db.statistics()["tables"]
    for index, (name, (operation, questions)) in enumerate(operations.items()):
        for number in range(index, LARGE - 100, LARGE // 50):
            before = counted(db)
            operation(db, b"all", number)
            after = counted(db)
            spent = {counter: after[counter] - before[counter] for counter in before}
            assert spent["rank_entries_visited"] <= questions * (levels + 1) * (level + 2), f"{name}: {spent}"
            assert spent["log_end"] <= 200, f"{name}: {spent}"
            # Of each level one entry, but when a span is split.
            assert spent["bytes_put"] <= 500 + questions * levels * 3 * 80, f"{name}: {spent}"
            # 128 entries of a level are a few blocks of each table.
            assert spent["blocks"] <= questions * (levels + 1) * 6 * (tables + 1), f"{name}: {spent}"
    assert db.statistics()["rank_indexes_made"] == 1
