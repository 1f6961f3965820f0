"""What replication costs in one process: reading the log as batches, applying these, comparing vectors.

The figure of a benchmark here is the time for `CHANGES` changes, or for one comparison.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

import everwrite
from bench.engine.sizes import VALUE
from everwrite import clock

CHANGES = 10_000
OpenStore = Callable[..., everwrite.Database]


def write_registers(store: everwrite.Database) -> None:
    for number in range(CHANGES):
        store[b"key:%012d" % number] = VALUE


def write_increments(store: everwrite.Database) -> None:
    for number in range(CHANGES):
        store.counter(b"counter:%d" % (number % 100)).increment()


def write_members(store: everwrite.Database) -> None:
    members = store.set(b"set")
    for number in range(CHANGES):
        members.add(b"member:%012d" % number)


WRITERS = {"registers": write_registers, "increments": write_increments, "members": write_members}


@pytest.mark.parametrize("kind", WRITERS)
def test_read_the_log(benchmark: Any, store: everwrite.Database, kind: str) -> None:
    WRITERS[kind](store)
    batches = benchmark(lambda: list(store.changes({})))
    assert batches


@pytest.mark.parametrize("kind", WRITERS)
def test_apply(benchmark: Any, open_store: OpenStore, kind: str) -> None:
    source = open_store()
    WRITERS[kind](source)
    batches = list(source.changes({}))

    def fresh_store() -> tuple[tuple[everwrite.Database], dict[str, Any]]:
        return (open_store(),), {}

    def apply(target: everwrite.Database) -> None:
        for batch in batches:
            target.apply(batch)
        assert target.applied == source.applied

    benchmark.pedantic(apply, setup=fresh_store, rounds=10)


def test_apply_what_is_there(benchmark: Any, open_store: OpenStore) -> None:
    source, target = open_store(), open_store()
    write_registers(source)
    batches = list(source.changes({}))
    for batch in batches:
        target.apply(batch)
    benchmark(lambda: [target.apply(batch) for batch in batches])


def test_merge_concurrent_writes(benchmark: Any, open_store: OpenStore) -> None:
    """Both stores wrote every key: each applied change is a conflict that is resolved."""
    source = open_store()
    write_registers(source)
    batches = list(source.changes({}))

    def rival_store() -> tuple[tuple[everwrite.Database], dict[str, Any]]:
        rival = open_store()
        write_registers(rival)
        return (rival,), {}

    benchmark.pedantic(lambda rival: [rival.apply(batch) for batch in batches], setup=rival_store, rounds=10)


@pytest.mark.parametrize("size", [3, 30])
def test_compare_vectors(benchmark: Any, size: int) -> None:
    rng = random.Random(1)
    one = {rng.getrandbits(64): rng.getrandbits(60) for _ in range(size)}
    other = dict(one)
    other[next(iter(one))] += 1
    pairs = itertools.cycle([(one, other), (other, one), (one, one)])
    assert clock.compare(one, other) != clock.compare(other, one)
    benchmark(lambda: clock.compare(*next(pairs)))
