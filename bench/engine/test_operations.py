"""Single operations on registers, counters, sets and maps, from Python.

The arguments are taken from a cycle of shuffled keys, so that no key is hot in a cache for the
benchmark's sake alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import everwrite
from bench.engine.sizes import KEYS, VALUE


def shuffled(prefix: bytes, count: int = KEYS) -> Iterator[bytes]:
    """`count` names in a fixed random order, for ever."""
    names = [b"%s%012d" % (prefix, number) for number in range(count)]
    random.Random(1).shuffle(names)
    return itertools.cycle(names)


@pytest.mark.parametrize("durability", ["os", "always"])
def test_put(benchmark: Any, open_store: Callable[..., everwrite.Database], durability: str) -> None:
    store = open_store(durability)
    names = shuffled(b"key:")
    benchmark(lambda: store.__setitem__(next(names), VALUE))


def test_overwrite(benchmark: Any, full_store: everwrite.Database) -> None:
    names = shuffled(b"key:")
    benchmark(lambda: full_store.__setitem__(next(names), VALUE))


def test_add_100_members_together(benchmark: Any, store: everwrite.Database) -> None:
    members = store.set(b"set")
    names = shuffled(b"member:")
    benchmark(lambda: members.add(*itertools.islice(names, 100)))


def test_get(benchmark: Any, full_store: everwrite.Database) -> None:
    names = shuffled(b"key:")
    assert full_store[next(names)] == VALUE
    benchmark(lambda: full_store[next(names)])


def test_get_what_is_not_there(benchmark: Any, full_store: everwrite.Database) -> None:
    names = shuffled(b"absent:")
    assert next(names) not in full_store
    benchmark(lambda: full_store.get(next(names)))


def test_delete_and_put(benchmark: Any, full_store: everwrite.Database) -> None:
    names = shuffled(b"key:")

    def delete_and_put() -> None:
        name = next(names)
        del full_store[name]
        full_store[name] = VALUE

    benchmark(delete_and_put)


def test_scan_1000(benchmark: Any, full_store: everwrite.Database) -> None:
    # 100,000 keys in decimal: this prefix has a thousand.
    prefix = b"key:%09d" % 42
    assert sum(1 for _ in full_store.scan(prefix=prefix)) == 1000
    benchmark(lambda: sum(1 for _ in full_store.scan(prefix=prefix)))


def test_increment(benchmark: Any, store: everwrite.Database) -> None:
    names = shuffled(b"counter:")
    benchmark(lambda: store.counter(next(names)).increment())


@pytest.mark.parametrize("size", [10, 100_000])
def test_set_add_and_discard(benchmark: Any, store: everwrite.Database, size: int) -> None:
    members = store.set(b"set")
    members.add(*(b"member:%012d" % number for number in range(size)))
    fresh = shuffled(b"other:")

    def add_and_discard() -> None:
        member = next(fresh)
        members.add(member)
        members.discard(member)

    benchmark(add_and_discard)
    assert len(members) == size


@pytest.mark.parametrize("size", [10, 100_000])
def test_set_contains(benchmark: Any, store: everwrite.Database, size: int) -> None:
    members = store.set(b"set")
    members.add(*(b"member:%012d" % number for number in range(size)))
    names = shuffled(b"member:", size)
    assert next(names) in members
    benchmark(lambda: next(names) in members)


def test_map_put(benchmark: Any, store: everwrite.Database) -> None:
    fields = store.map(b"map")
    names = shuffled(b"field:")
    benchmark(lambda: fields.__setitem__(next(names), VALUE))


def test_map_increment(benchmark: Any, store: everwrite.Database) -> None:
    fields = store.map(b"map")
    names = shuffled(b"field:")
    benchmark(lambda: fields.increment(next(names), 1))
