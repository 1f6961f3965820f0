"""Everwrite beside LMDB, RocksDB, LevelDB, SQLite and a dict with a log: single operations from one Python thread.

    pytest bench/embedded --keys 1000000
    pytest bench/embedded --keys 1000000 --cache-fraction 0.25
    pytest bench/embedded --keys 1000000 --benchmark-autosave
    pytest bench/embedded --keys 1000000 --benchmark-compare --benchmark-compare-fail=median:20%

Keys are 16 random bytes in groups of a hundred with a common prefix, values 100 random bytes. A round is many
operations; the closing table has the median round.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bench.embedded.conftest import Data
from bench.embedded.engines import Engine, Everwrite

# A skipped row doesn't use its benchmark.
pytestmark = pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")

DURABLE = 400  # operations a round where each waits for the device
THREADS = 32


def run(benchmark: Any, data: Data, row: str, operations: int, rounds: Sequence[Callable[[], object]]) -> None:
    """Measure `rounds` loops of `operations` each."""
    benchmark.group = row
    benchmark.extra_info["operations"] = operations
    loops = itertools.cycle(rounds)
    benchmark.pedantic(lambda loop: loop(), setup=lambda: ((next(loops),), {}), rounds=data.rounds, iterations=1)


def needs(engine: Engine | type[Engine], method: str) -> None:
    if getattr(type(engine) if isinstance(engine, Engine) else engine, method) is getattr(Engine, method):
        pytest.skip(f"{engine.name} has no {method}")


def test_put(benchmark: Any, empty: Callable[[], Engine], data: Data) -> None:
    benchmark.group = "put"
    benchmark.extra_info["operations"] = len(data.pairs)
    benchmark.pedantic(
        lambda store: store.put(data.pairs), setup=lambda: ((empty(),), {}), rounds=data.rounds, iterations=1
    )


def test_put_batches(benchmark: Any, empty: Callable[[], Engine], data: Data) -> None:
    benchmark.group = "put, batches of 100"
    benchmark.extra_info["operations"] = len(data.pairs)
    benchmark.pedantic(
        lambda store: store.put_batches(data.pairs), setup=lambda: ((empty(),), {}), rounds=data.rounds, iterations=1
    )


def test_get(benchmark: Any, loaded: Engine, data: Data) -> None:
    batches = [data.present(seed) for seed in range(data.rounds)]
    assert loaded.get(batches[0]) == data.operations
    run(benchmark, data, "get", data.operations, [lambda keys=keys: loaded.get(keys) for keys in batches])


def test_get_many(benchmark: Any, loaded: Engine, data: Data) -> None:
    batches = [data.present(seed) for seed in range(data.rounds)]
    assert loaded.get_many(batches[0]) == data.operations
    run(
        benchmark,
        data,
        "get_many of 100",
        data.operations,
        [lambda keys=keys: loaded.get_many(keys) for keys in batches],
    )


def test_get_absent(benchmark: Any, loaded: Engine, data: Data) -> None:
    batches = [data.absent(seed) for seed in range(data.rounds)]
    assert loaded.get(batches[0]) == 0
    run(benchmark, data, "get, absent", data.operations, [lambda keys=keys: loaded.get(keys) for keys in batches])


def test_scan(benchmark: Any, loaded: Engine, data: Data) -> None:
    needs(loaded, "scan")
    assert loaded.scan() == len(data.pairs)
    run(benchmark, data, "scan, items", len(data.pairs), [loaded.scan])


def test_ranges(benchmark: Any, loaded: Engine, data: Data) -> None:
    needs(loaded, "ranges")
    prefixes = data.prefixes[: data.operations // 10]
    assert loaded.ranges(prefixes[:10]) == 100 * len(prefixes[:10])
    run(benchmark, data, "prefix ranges of 100", len(prefixes), [lambda: loaded.ranges(prefixes)])


def test_overwrite(benchmark: Any, loaded: Engine, data: Data) -> None:
    value = bytes(100)
    batches = [[(key, value) for key in data.present(seed)] for seed in range(data.rounds)]
    run(benchmark, data, "overwrite", data.operations, [lambda pairs=pairs: loaded.put(pairs) for pairs in batches])


def test_delete(benchmark: Any, empty: Callable[[], Engine], data: Data) -> None:
    doomed = data.present(7)

    def full() -> tuple[tuple[Engine], dict[str, object]]:
        store = empty()
        store.put_batches(data.pairs)
        return (store,), {}

    benchmark.group = "delete"
    benchmark.extra_info["operations"] = len(doomed)
    benchmark.pedantic(lambda store: store.delete(doomed), setup=full, rounds=data.rounds, iterations=1)


def test_put_durable(benchmark: Any, empty: Callable[[], Engine], engine_class: type[Engine], data: Data) -> None:
    needs(engine_class, "put_durable")
    store = empty()
    run(benchmark, data, "put, durable", DURABLE, [lambda: store.put_durable(data.pairs[:DURABLE])])


def test_put_batches_durable(
    benchmark: Any, empty: Callable[[], Engine], engine_class: type[Engine], data: Data
) -> None:
    needs(engine_class, "put_batches_durable")
    store = empty()
    pairs = data.pairs[: DURABLE * 100]
    run(benchmark, data, "batches of 100, durable", len(pairs), [lambda: store.put_batches_durable(pairs)])


def test_put_durable_from_many_threads(
    benchmark: Any, empty: Callable[[], Engine], engine_class: type[Engine], data: Data
) -> None:
    """Group commit: `THREADS` threads, each waiting for its own write to be on the device."""
    if engine_class is not Everwrite:
        pytest.skip("only everwrite's own single thread is compared")
    store = empty()
    store.put_durable(data.pairs[:1])
    shares = [data.pairs[i * DURABLE : (i + 1) * DURABLE] for i in range(THREADS)]

    def together() -> None:
        threads = [threading.Thread(target=store.put_durable, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run(benchmark, data, "put, durable, 32 threads", DURABLE * THREADS, [together])
