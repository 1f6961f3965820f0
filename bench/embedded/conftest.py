"""Data, open stores, and the table of ratios that closes a run."""

from __future__ import annotations

import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.embedded.engines import ENGINES, Engine

GROUP = 100  # keys that share a prefix
PREFIX = 8
SETTLE = 2.0  # seconds of quiet before reading, so that a load's compactions don't run meanwhile


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("embedded stores")
    group.addoption("--keys", type=int, default=100_000, help="keys in a store (default 100,000)")
    group.addoption("--operations", type=int, default=None, help="operations a round (default: a quarter of the keys)")
    group.addoption("--rounds", type=int, default=3, help="rounds of each benchmark (default 3)")
    group.addoption("--engines", default=",".join(ENGINES), help="which stores, comma-separated (default: all)")
    group.addoption(
        "--cache-fraction", type=float, default=0, help="block cache as a part of the data (default: the stores' own)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        names = metafunc.config.getoption("--engines").split(",")
        metafunc.parametrize("kind", names, scope="session")


@dataclass(frozen=True)
class Data:
    """What the stores hold: `pairs` in random order; lookups are fresh objects, not the ones that were stored."""

    pairs: list[tuple[bytes, bytes]]
    prefixes: list[bytes]
    operations: int
    rounds: int
    cache_bytes: int | None

    def present(self, seed: int) -> list[bytes]:
        chosen = random.Random(seed).sample(self.pairs, self.operations)
        return [bytes(bytearray(key)) for key, _ in chosen]

    def absent(self, seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [rng.randbytes(16) for _ in range(self.operations)]


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Data:
    keys = request.config.getoption("--keys")
    rng = random.Random(1)
    pairs = []
    prefixes = []
    while len(pairs) < keys:
        prefix = rng.randbytes(PREFIX)
        prefixes.append(prefix)
        pairs += [(prefix + rng.randbytes(16 - PREFIX), rng.randbytes(100)) for _ in range(GROUP)]
    rng.shuffle(pairs)
    fraction = request.config.getoption("--cache-fraction")
    return Data(
        pairs,
        prefixes,
        request.config.getoption("--operations") or max(GROUP, keys // 4),
        request.config.getoption("--rounds"),
        int(116 * keys * fraction) if fraction else None,
    )


@pytest.fixture
def engine_class(kind: str) -> type[Engine]:
    engine = ENGINES[kind]
    if package := engine.missing():
        pytest.skip(f"{kind} needs `pip install {package}`")
    return engine


@pytest.fixture
def empty(engine_class: type[Engine], data: Data, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Opens fresh stores; the one before is closed and removed."""
    opened: list[Engine] = []

    def shut() -> None:
        if opened:
            opened.pop().close()
            shutil.rmtree(tmp_path / "store")

    def open_one() -> Engine:
        shut()
        opened.append(engine_class(tmp_path / "store", cache_bytes=data.cache_bytes))
        return opened[0]

    yield open_one
    shut()


class Loaded:
    """Stores with all pairs, one for each kind, kept open for the whole run."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.stores: dict[str, Engine] = {}

    def __call__(self, engine: type[Engine]) -> Engine:
        if engine.name not in self.stores:
            store = engine(self.folder / engine.name, cache_bytes=self.data.cache_bytes)
            store.put_batches(self.data.pairs)
            time.sleep(SETTLE)
            self.stores[engine.name] = store
        return self.stores[engine.name]


@pytest.fixture(scope="session")
def all_loaded(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    loaded = Loaded(data, tmp_path_factory.mktemp("loaded"))
    yield loaded
    for store in loaded.stores.values():
        store.close()
    shutil.rmtree(loaded.folder)


@pytest.fixture
def loaded(engine_class: type[Engine], all_loaded: Loaded) -> Engine:
    return all_loaded(engine_class)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Thousand operations a second by row and store (the median round), and Everwrite's ratio to each."""
    session = getattr(config, "_benchmarksession", None)
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for bench in session.benchmarks if session else ():
        if "operations" in bench.extra_info and bench.stats.data:
            rows[bench.group][bench.params["kind"]] = bench.extra_info["operations"] / bench.stats.median / 1000
    if not rows:
        return
    names = [name for name in ENGINES if any(name in row for row in rows.values())]
    write = terminalreporter.write_line
    terminalreporter.section("thousand operations a second; in brackets: everwrite's ratio to it")
    write(f"{'':24}" + "".join(f"{name:>18}" for name in names))
    for row, figures in rows.items():
        ours = figures.get("everwrite")
        cells = []
        for name in names:
            figure = figures.get(name)
            if figure is None:
                cells.append(f"{'-':>18}")
            elif name == "everwrite" or ours is None:
                cells.append(f"{figure:18,.1f}")
            else:
                cells.append(f"{f'{figure:,.1f} ({ours / figure:.2f})':>18}")
        write(f"{row:24}" + "".join(cells))
