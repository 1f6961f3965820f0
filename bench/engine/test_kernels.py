"""The kernels that every merge goes through: one implementation, the engine's own, called from native loops.

Each stands beside a twin in pure Python, and in numpy where that makes sense: 1,024 pairs at
once. `per_second` in the extra columns counts single comparisons, merges, joins and updates.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.digest import LEAVES, hash64, key_item
from tests.reference.model import Counter, KeyState
from tests.reference.model import join as join_models
from tests.reference.vocabulary import Dot

PAIRS = 1024
ROUNDS = 400
ORIGINS = [(number << 16) | 1 for number in random.Random(2).sample(range(1 << 40), 9)]

Vector = dict[int, int]
Rows = list[tuple[int, int, int, int]]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """bench/engine/kernels.pyx, compiled against the engine that is imported."""
    return build_kernels(tmp_path_factory.mktemp("kernels"))


def build_kernels(folder: Path) -> Any:
    import everwrite

    source = Path(__file__).with_name("kernels.pyx")
    root = Path(everwrite.__file__).parent.parent
    target = folder / f"kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    c_file = folder / "kernels.c"
    subprocess.run([sys.executable, "-m", "cython", "-3", "-I", str(root), "-o", str(c_file), str(source)], check=True)
    compiler = sysconfig.get_config_var("CC").split()
    include = sysconfig.get_paths()["include"]
    flags = ["-O2", "-fPIC", "-shared", "-Wno-unreachable-code", f"-I{include}"]
    subprocess.run([*compiler, *flags, str(c_file), "-o", str(target)], check=True)
    spec = importlib.util.spec_from_file_location("kernels", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vector_pairs(seed: int = 1) -> list[tuple[Vector, Vector]]:
    """Of nine origins: equal, before, after and concurrent in equal parts, in random order."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(PAIRS):
        a = {origin: rng.randrange(1 << 40, 1 << 60) for origin in ORIGINS}
        b = dict(a)
        for side, changed in ((a, rng.random() < 0.5), (b, rng.random() < 0.5)):
            if changed:
                side[rng.choice(ORIGINS)] += rng.randrange(1, 1 << 20)
        pairs.append((a, b))
    return pairs


def row_pairs(count: int, seed: int = 1) -> list[tuple[Rows, Rows]]:
    """Of `count` origins, in random order of age."""
    rng = random.Random(seed)

    def rows() -> Rows:
        stamps = {origin: rng.randrange(1 << 40, 1 << 60) for origin in rng.sample(ORIGINS, count)}
        return [(origin, stamp, stamp, stamp % 1000) for origin, stamp in stamps.items()]

    return [(rows(), rows()) for _ in range(PAIRS)]


def measure(benchmark: Any, function: Callable[[], Any], operations: int) -> Any:
    result = benchmark(function)
    if benchmark.stats is not None:
        benchmark.extra_info["per_second"] = f"{operations / benchmark.stats.stats.median:,.0f}"
    return result


# ---- version vectors ----


def compare_twin(a: Vector, b: Vector) -> int:
    less = any(stamp < b.get(origin, 0) for origin, stamp in a.items()) or any(origin not in a for origin in b)
    more = any(stamp < a.get(origin, 0) for origin, stamp in b.items()) or any(origin not in b for origin in a)
    return less + 2 * more


def orders(results: list[int]) -> list[int]:
    return [results.count(order) for order in range(4)]


def test_compare(benchmark: Any, kernels: Any) -> None:
    pairs = vector_pairs()
    loop = kernels.Vectors(pairs)
    found = measure(benchmark, lambda: loop.compare(ROUNDS), PAIRS * ROUNDS)
    assert found == [ROUNDS * each for each in orders([compare_twin(*pair) for pair in pairs])]


def test_compare_in_python(benchmark: Any) -> None:
    pairs = vector_pairs()
    measure(benchmark, lambda: orders([compare_twin(a, b) for a, b in pairs]), PAIRS)


def test_compare_in_numpy(benchmark: Any, kernels: Any) -> None:
    pairs = vector_pairs()
    first, second = (np.array([[pair[side][o] for o in ORIGINS] for pair in pairs], np.uint64) for side in (0, 1))

    def compare() -> list[int]:
        order = np.any(first < second, axis=1) + 2 * np.any(first > second, axis=1)
        return np.bincount(order, minlength=4).tolist()

    found = measure(benchmark, compare, PAIRS)
    assert found == kernels.Vectors(pairs).compare(1)


def merge_twin(a: Vector, b: Vector) -> Vector:
    return {origin: max(a.get(origin, 0), b.get(origin, 0)) for origin in a.keys() | b.keys()}


def test_merge(benchmark: Any, kernels: Any) -> None:
    pairs = vector_pairs()
    loop = kernels.Vectors(pairs)
    found = measure(benchmark, lambda: loop.merge(ROUNDS), PAIRS * ROUNDS)
    assert found == sum(sum(merge_twin(a, b).values()) for a, b in pairs) & (1 << 64) - 1


def test_merge_in_python(benchmark: Any) -> None:
    pairs = vector_pairs()
    measure(benchmark, lambda: [merge_twin(a, b) for a, b in pairs], PAIRS)


def test_merge_in_numpy(benchmark: Any) -> None:
    pairs = vector_pairs()
    first, second = (np.array([[pair[side][o] for o in ORIGINS] for pair in pairs], np.uint64) for side in (0, 1))
    measure(benchmark, lambda: np.maximum(first, second), PAIRS)


# ---- joins ----


def model_of(rows: Rows, register: bool) -> KeyState:
    state = KeyState(context={origin: context for origin, context, _, _ in rows}, counter=Counter())
    for origin, _, stamp, total in rows:
        if stamp:
            state.counter.raise_total(origin, (stamp, total))
    if register:
        state.register = (max(Dot(context, origin) for origin, context, _, _ in rows), b"v")
    return state


def join_cases(register: bool) -> list[tuple[Rows, Rows]]:
    if not register:
        return row_pairs(9)
    return [tuple([(o, c, 0, 0) for o, c, _, _ in side] for side in pair) for pair in row_pairs(1)]  # type: ignore[misc]


@pytest.mark.parametrize("register", [True, False], ids=["registers", "counters"])
def test_join(benchmark: Any, kernels: Any, register: bool) -> None:
    pairs = join_cases(register)
    loop = kernels.Heads(pairs, register)
    totals, winners = measure(benchmark, lambda: loop.join(ROUNDS), PAIRS * ROUNDS)
    joined = [join_models(model_of(a, register), model_of(b, register)) for a, b in pairs]
    wanted = sum(row.total[1] for state in joined for row in state.counter.rows.values())
    assert totals == ROUNDS * wanted
    assert winners == ROUNDS * sum(state.register[0].timestamp for state in joined) & (1 << 64) - 1


@pytest.mark.parametrize("register", [True, False], ids=["registers", "counters"])
def test_join_in_python(benchmark: Any, register: bool) -> None:
    states = [(model_of(a, register), model_of(b, register)) for a, b in join_cases(register)]
    measure(benchmark, lambda: [join_models(a, b) for a, b in states], PAIRS)


def test_join_of_counters_in_numpy(benchmark: Any) -> None:
    """Stamps and totals as arrays, one row a pair: each total goes with the newer stamp."""
    pairs = row_pairs(9)
    sides = [[sorted(pair[side]) for pair in pairs] for side in (0, 1)]
    stamps = [np.array([[row[2] for row in rows] for rows in side], np.uint64) for side in sides]
    totals = [np.array([[row[3] for row in rows] for rows in side], np.int64) for side in sides]
    measure(
        benchmark,
        lambda: (np.maximum(*stamps), np.where(stamps[0] >= stamps[1], totals[0], totals[1])),
        PAIRS,
    )


# ---- the digest ----


def leaf_cases() -> tuple[list[bytes], list[tuple[Rows, Rows]]]:
    rng = random.Random(3)
    return [b"\2" + rng.randbytes(16) for _ in range(PAIRS)], join_cases(True)


def test_leaf_update(benchmark: Any, kernels: Any) -> None:
    """What a put of a register pays: two hashes of the key, the old item out, the new one in."""
    keys, pairs = leaf_cases()
    loop = kernels.Heads(pairs, True)
    held = measure(benchmark, lambda: loop.update_leaves(keys, ROUNDS), PAIRS * ROUNDS)
    wanted = [0] * LEAVES
    for key, (rows, _) in zip(keys, pairs, strict=True):
        leaf = hash64(key, 0) >> 50
        wanted[leaf] = (wanted[leaf] + key_item(key, model_of(rows, True))) % (1 << 128)
    assert held == b"".join(each.to_bytes(16, "little") for each in wanted)


def test_leaf_update_in_python(benchmark: Any) -> None:
    keys, pairs = leaf_cases()
    states = [(model_of(a, True), model_of(b, True)) for a, b in pairs]
    sums = [0] * LEAVES

    def update() -> None:
        for key, (old, new) in zip(keys, states, strict=True):
            leaf = hash64(key, 0) >> 50
            sums[leaf] = (sums[leaf] - key_item(key, old) + key_item(key, new)) % (1 << 128)

    measure(benchmark, update, PAIRS)
