"""Snapshots: one moment of a store, whatever is written, flushed, merged and expired afterwards."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

import everwrite
from everwrite.memory_files import MemoryFiles
from tests.support import eventually


def small(path: Path | str = "store", **settings: object) -> everwrite.Database:
    settings = {"files": MemoryFiles(), "background": False, "memtable_bytes": 1 << 14} | settings
    return everwrite.open(path, "os", **settings)  # type: ignore[arg-type]


def tables_in(path: Path) -> int:
    return len(list((path / "tables").glob("*.table")))


@pytest.mark.parametrize("seed", range(10))
def test_each_shows_its_moment(seed: int) -> None:
    """A random history; every snapshot is compared with a copy of the model of its moment."""
    chance = random.Random(seed)
    db = small()
    model: dict[bytes, bytes] = {}
    taken: list[tuple[everwrite.Snapshot, dict[bytes, bytes]]] = []
    for step in range(3000):
        key = b"key %d" % chance.randrange(200)
        match chance.randrange(12):
            case 0:
                model.pop(key, None)
                db.delete(key)
            case 1 if len(taken) < 30:
                taken.append((db.snapshot(), dict(model)))
            case 2 if taken:
                snapshot, held = taken[chance.randrange(len(taken))]
                assert dict(snapshot.scan()) == held
                assert snapshot.get(key) == held.get(key)
                assert (key in snapshot) == (key in held)
            case 3 if taken:
                taken.pop(chance.randrange(len(taken)))[0].close()
            case 4:
                db.maintain()
            case _:
                db[key] = model[key] = b"%d " % step * chance.randrange(1, 40)
    assert db.statistics()["flushes"] > 5
    assert db.statistics()["compactions"] > 0
    for snapshot, held in taken:
        assert list(snapshot.items()) == sorted(held.items())
        assert list(snapshot.scan(reverse=True)) == sorted(held.items(), reverse=True)
        assert list(snapshot.scan(b"key ", b"key 3", b"key 8", values=False)) == sorted(
            key for key in held if b"key 3" <= key < b"key 8"
        )
        assert snapshot.get_many([b"key 1", b"none", b"key 2"]) == [held.get(b"key 1"), None, held.get(b"key 2")]
        assert list(snapshot) == sorted(held)
        assert len(snapshot) == snapshot.key_count() == len(held)
    assert dict(db) == model
    db.close()


def test_reads_every_type_and_writes_none() -> None:
    db = small()
    db.set(b"set").add(b"a", b"b")
    db.map(b"map")[b"f"] = b"1"
    db.counter(b"counter").increment(5)
    snapshot = db.snapshot()
    db.set(b"set").remove(b"a")
    db.map(b"map")[b"f"] = b"2"
    db.counter(b"counter").increment(5)
    db.maintain()
    assert sorted(snapshot.set(b"set")) == [b"a", b"b"]
    assert dict(snapshot.map(b"map")) == {b"f": b"1"}
    assert snapshot.counter(b"counter").value == 5
    assert snapshot.kind(b"set") == "set"
    assert snapshot.why(b"counter")["value"] == b"5"
    held = dict(db.applied)
    for write in (
        lambda: snapshot.set(b"set").add(b"c"),
        lambda: snapshot.set(b"new").add(b"c"),
        lambda: snapshot.set(b"set").clear(),
        lambda: snapshot.map(b"map").set({b"g": b"1"}),
        lambda: snapshot.map(b"map").increment(b"f"),
        lambda: snapshot.counter(b"counter").increment(),
        lambda: snapshot.counter(b"counter").reset(),
    ):
        with pytest.raises(everwrite.ReadOnlyError):
            write()
    assert dict(db.applied) == held
    assert dict(snapshot.applied) != held
    assert sorted(snapshot.set(b"set")) == [b"a", b"b"]
    assert not hasattr(snapshot, "__setitem__")


def test_expiry_is_as_of_its_moment() -> None:
    db = small(now_ms=1_000_000)
    db.put(b"past", b"1", ttl=1)
    db.put(b"soon", b"2", ttl=10)
    db.set_time(1_002_000)
    snapshot = db.snapshot()
    db.set_time(1_100_000)
    db.reap_expired()
    assert list(db) == []
    assert list(snapshot.scan()) == [(b"soon", b"2")]
    assert snapshot.time_ms == 1_002_000
    assert snapshot.ttl(b"soon") == 8


def test_files_of_merged_tables_live_as_long_as_it(tmp_path: Path) -> None:
    db = everwrite.open(tmp_path, "os", memtable_bytes=1 << 16, background=False)
    for i in range(3000):
        db[b"%d" % i] = b"old" * 10
    first, second = db.snapshot(), db.snapshot()
    for i in range(3000):
        db[b"%d" % i] = b"new" * 10
    db.compact()
    in_use = db.statistics()["tables"]
    assert tables_in(tmp_path) > in_use
    first.close()
    assert tables_in(tmp_path) > in_use
    assert all(value == b"old" * 10 for _, value in second.scan())
    assert len(second) == 3000
    second.close()
    assert tables_in(tmp_path) == in_use
    db.close()


def test_one_that_is_dropped_lets_go(tmp_path: Path) -> None:
    db = everwrite.open(tmp_path, "os", memtable_bytes=1 << 16, background=False)
    for round_ in range(2):
        for i in range(3000):
            db[b"%d" % i] = b"%d" % round_ * 30
        db.snapshot()
    db.compact()
    in_use = db.statistics()["tables"]
    db.close()
    assert tables_in(tmp_path) == in_use


def test_closing_the_store_closes_it(tmp_path: Path) -> None:
    db = everwrite.open(tmp_path, "os")
    db[b"k"] = b"v"
    with db.snapshot() as snapshot:
        assert snapshot[b"k"] == b"v"
        scan = snapshot.scan()
        handle = snapshot.set(b"s")
        db.close()
        assert snapshot.closed
        for read in (lambda: snapshot[b"k"], lambda: next(scan), lambda: b"x" in handle, lambda: len(snapshot)):
            with pytest.raises(everwrite.ClosedError):
                read()
    with pytest.raises(everwrite.ClosedError):
        db.snapshot()
    assert "closed" in repr(snapshot)
    # It must not have kept what a new opening needs.
    with everwrite.open(tmp_path, "os") as again:
        assert dict(again) == {b"k": b"v"}


def test_one_of_an_empty_store_stays_empty() -> None:
    db = small()
    snapshot = db.snapshot()
    db[b"k"] = b"v"
    assert not snapshot
    assert list(snapshot.scan()) == []
    assert snapshot.get(b"k") is None


def test_many_make_few_tables_and_hold_up_nobody(tmp_path: Path) -> None:
    db = everwrite.open(tmp_path, "os")
    kept = []
    for i in range(5000):
        db[b"%d" % (i % 100)] = b"%d" % i
        snapshot = db.snapshot()
        if i % 500 == 0:
            kept.append((i, snapshot))
    eventually(lambda: db.statistics()["frozen"] <= 9)
    assert db.statistics()["flushes"] < 100
    eventually(lambda: db.statistics()["tables"] <= 8)
    for i, snapshot in kept:
        assert snapshot[b"%d" % (i % 100)] == b"%d" % i
        assert len(snapshot) == min(i + 1, 100)
    db.close()
    with everwrite.open(tmp_path, "os") as again:
        assert len(again) == 100


def test_a_group_is_in_it_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """A writer moves amounts between fields of one map, and between keys by batches; sums stay equal."""
    db = everwrite.open(tmp_path / "a", "os", memtable_bytes=1 << 16)
    other = everwrite.open(tmp_path / "b", "os")
    stop = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            chance = random.Random(1)
            while not stop.is_set():
                amount = chance.randrange(100)
                db.map(b"sums").set({b"a": b"%d" % amount, b"b": b"%d" % -amount})
                with db.batch() as batch:
                    batch[b"left"] = b"%d" % amount
                    batch.counter(b"right").reset()
                    batch.counter(b"right").increment(-amount)
                other.map(b"received").set({b"a": b"%d" % amount, b"b": b"%d" % -amount})
                for batch in other.changes(db.applied):
                    db.apply(batch)
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            with db.snapshot() as snapshot:
                assert int(snapshot.get(b"left", b"0")) + snapshot.counter(b"right").value == 0
                for name in (b"sums", b"received"):
                    fields = dict(snapshot.map(name))
                    assert sum(map(int, fields.values())) == 0
                    assert dict(snapshot.map(name)) == fields
    finally:
        stop.set()
        writer.join()
    assert not failures
    db.close()
    other.close()


def test_in_the_child_of_a_fork_it_is_closed(tmp_path: Path) -> None:
    db = everwrite.open(tmp_path, "os")
    db[b"k"] = b"v"
    snapshot = db.snapshot()
    child = os.fork()
    if child == 0:
        try:
            snapshot[b"k"]
        except everwrite.ClosedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert snapshot[b"k"] == b"v"
    db.close()
