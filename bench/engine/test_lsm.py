"""The ordered map below the store, by itself: where a key lies decides what a read of it costs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.engine.sizes import KEYS, VALUE
from everwrite.files import PosixFiles
from everwrite.lsm import Lsm


def names(kind: bytes) -> Iterator[bytes]:
    keys = [b"%s:%012d" % (kind, number) for number in range(KEYS)]
    random.Random(1).shuffle(keys)
    return itertools.cycle(keys)


@pytest.fixture(params=["memory", "files"])
def full_map(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lsm]:
    """KEYS keys, all in the memory table or all in one table file whose blocks fit the cache."""
    lsm = Lsm(PosixFiles(), tmp_path / "map", memtable_bytes=1 << 30)
    for name in itertools.islice(names(b"key"), KEYS):
        lsm[name] = VALUE
    if request.param == "files":
        lsm.freeze(b"")
        lsm.flush_frozen()
    for _ in lsm.items():
        pass
    yield lsm
    lsm.close()


def test_map_get(benchmark: Any, full_map: Lsm) -> None:
    keys = names(b"key")
    assert full_map[next(keys)] == VALUE
    benchmark(lambda: full_map[next(keys)])


def test_map_get_what_is_not_there(benchmark: Any, full_map: Lsm) -> None:
    keys = names(b"kex")
    assert next(keys) not in full_map
    benchmark(lambda: next(keys) in full_map)


def test_map_scan_100(benchmark: Any, full_map: Lsm) -> None:
    keys = names(b"key")
    benchmark(lambda: sum(1 for _ in itertools.islice(full_map.items(next(keys)), 100)))


def test_map_put(benchmark: Any, full_map: Lsm) -> None:
    keys = names(b"key")
    benchmark(lambda: full_map.__setitem__(next(keys), VALUE))


def test_flush(benchmark: Any, tmp_path: Path) -> None:
    lsm = Lsm(PosixFiles(), tmp_path / "map", memtable_bytes=1 << 30)
    values = random.Random(2).randbytes(100 + KEYS)

    def fill() -> None:
        for number, name in enumerate(itertools.islice(names(b"key"), KEYS)):
            lsm[name] = values[number : number + 100]
        lsm.freeze(b"")

    benchmark.pedantic(lsm.flush_frozen, setup=fill, rounds=5)
    lsm.close()


def test_compaction_of_4(benchmark: Any, tmp_path: Path) -> None:
    lsm = Lsm(PosixFiles(), tmp_path / "map", memtable_bytes=1 << 30)
    values = random.Random(3).randbytes(100 + KEYS)

    def fill() -> None:
        for _ in range(4):
            for number, name in enumerate(itertools.islice(names(b"key"), KEYS // 4)):
                lsm[name] = values[number : number + 100]
            lsm.freeze(b"")
            lsm.flush_frozen()

    def compact() -> None:
        assert lsm.compact()

    benchmark.pedantic(compact, setup=fill, rounds=5)
    lsm.close()
