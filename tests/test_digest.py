"""The digest that every write maintains against a rebuild, a slow twin, crashes, and other stores' digests."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings

import everwrite
from everwrite.digest import rebuild
from everwrite.memory_files import MemoryFiles
from tests.reference.digest import leaves
from tests.simulation.engine_store import EngineStore
from tests.test_join_laws import KEYS, START_MS, STEPS, Twins, joined, run


def twin_leaves(store: EngineStore) -> bytes:
    return leaves((b"\2" + key, store.key_model(key)) for key in KEYS)


def root(of: bytes) -> bytes:
    total = sum(int.from_bytes(of[at : at + 16], "little") for at in range(0, len(of), 16))
    return (total % (1 << 128)).to_bytes(16, "little")


def check(stores: Iterable[EngineStore]) -> None:
    for store in stores:
        held = store.digest_leaves()
        assert held == rebuild(store.database)
        assert held == twin_leaves(store)
        assert store.digest() == root(held)


@given(STEPS)
@settings(max_examples=150)
def test_every_write_and_join_keeps_what_a_rebuild_finds(steps: list[tuple[int, str, int]]) -> None:
    twins = run(steps)
    check(twin.engine for twin in twins)
    for receiver, sender in permutations(twins, 2):
        receiver.take_changes(sender)
    check(twin.engine for twin in twins)
    assert len({twin.engine.digest() for twin in twins}) == 1


@given(STEPS)
@settings(max_examples=40)
def test_states_joined_in_any_order_have_one_digest(steps: list[tuple[int, str, int]]) -> None:
    stores = [twin.engine for twin in run(steps)]
    results = [joined(*order) for order in permutations(stores)]
    check(results)
    assert len({result.digest() for result in results}) == 1


@given(STEPS)
@settings(max_examples=40)
def test_stores_with_another_alive_state_have_another_digest(steps: list[tuple[int, str, int]]) -> None:
    twins: list[Twins] = run(steps)
    for one, other in permutations(twins, 2):
        same = twin_leaves(one.engine) == twin_leaves(other.engine)
        assert (one.engine.digest() == other.engine.digest()) == same
        if same:
            assert [one.engine.reading(key) for key in KEYS] == [other.engine.reading(key) for key in KEYS]


@pytest.mark.parametrize("stop", ["close", "crash"])
def test_it_comes_back_from_checkpoint_and_log(stop: str) -> None:
    files = MemoryFiles()
    db = everwrite.open("/data", files=files, background=False, now_ms=START_MS, memtable_bytes=16 << 10)
    for number in range(2000):
        key = b"%d" % (number % 500)
        if number % 3:
            db[key] = b"x" * 50
        elif number % 7 == 0:
            db.delete(key)
        else:
            db.delete(key)
            db.map(key).increment(b"f", 1)
    assert db.statistics()["tables"] > 0
    wanted = db.digest_leaves()
    assert wanted == rebuild(db)
    if stop == "close":
        db.close()
    else:
        files.crash()
    again = everwrite.open("/data", files=files, background=False, now_ms=START_MS, memtable_bytes=16 << 10)
    assert again.digest_leaves() == wanted == rebuild(again)
    again.close()


def test_neither_expiry_nor_the_moment_of_it_change_what_is_held(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "a") as one, everwrite.open(tmp_path / "b") as other:
        one.put(b"k", b"v", ttl=10)
        before = one.digest()
        for batch in one.changes(other.applied):
            other.apply(batch)
        other.set_time(one.wall_ms() + 20_000)
        assert other.get(b"k") is None
        assert other.digest() == before
        one.set_time(other.wall_ms())
        assert one.reap_expired() == 1
        assert one.digest() == bytes(16)
        for batch in one.changes(other.applied):
            other.apply(batch)
        assert other.digest() == bytes(16)


def test_tombstones_and_contexts_do_not_count(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "a") as db:
        db[b"k"] = b"v"
        db.set(b"s").add(b"a", b"b")
        held = db.digest()
        db[b"gone"] = b"v"
        db.counter(b"n").increment(3)
        db.map(b"m")[b"f"] = b"v"
        assert db.digest() != held
        del db[b"gone"]
        db.counter(b"n").reset()
        del db.map(b"m")[b"f"]
        assert db.digest() == held
        del db[b"k"]
        db.set(b"s").clear()
        assert db.digest() == bytes(16)
