"""Backups: a prefix of the history, whole and checked, and a new origin wherever one is used."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import everwrite
from everwrite.backup import MARKER, decode_marker
from everwrite.checksum import checksum
from everwrite.memory_files import MemoryFiles


def fill(db: everwrite.Database) -> dict[bytes, object]:
    """Something of every type; what a database with the same content shows."""
    for i in range(2000):
        db[b"key %d" % i] = b"value %d" % i * 3
    del db[b"key 7"]
    db.put(b"expires", b"soon", ttl=1e6)
    db.counter(b"counter").increment(42)
    db.set(b"set").add(b"a", b"b")
    db.set(b"set").remove(b"a")
    db.map(b"map").set({b"f": b"1", b"g": b"2"})
    db.map(b"map").increment(b"f", 5)
    db.multi(b"multi").set(b"one")
    db.flag(b"flag").enable()
    db.max(b"max").update(7)
    db.min(b"min").update(-7)
    db.hyperloglog(b"hll").add(*(b"%d" % i for i in range(500)))
    db.sorted_set(b"board").update({b"%d" % i: i % 7 - 3.5 for i in range(20)})
    db.sorted_set(b"board").increment(b"7", 0.25)
    db.sorted_set(b"board").discard(*(b"%d" % i for i in range(0, 20, 5)))
    db.bounded_counter(b"seats", minimum=-3).increment(10)
    db.bounded_counter(b"seats").transfer(7 << 16 | 1, 4)
    db.bounded_counter(b"seats").decrement(2)
    db.sequence(b"list").extend([b"%d" % i for i in range(12)])
    db.sequence(b"list").insert(5, b"between")
    db.system_set(b"node/1", b"name")
    return content(db)


def content(db: everwrite.Database) -> dict[bytes, object]:
    return {
        b"pairs": dict(db.scan()),
        b"set": sorted(db.set(b"set")),
        b"map": dict(db.map(b"map")),
        b"multi": list(db.multi(b"multi").values),
        b"flag": bool(db.flag(b"flag")),
        b"extremes": (db.max(b"max").value, db.min(b"min").value),
        b"hll": db.hyperloglog(b"hll").count(),
        b"board": list(db.sorted_set(b"board").items()),
        b"seats": (db.bounded_counter(b"seats").value, db.bounded_counter(b"seats").rights_by_origin),
        b"list": list(db.sequence(b"list").items()),
        b"system": db.system_items(),
        b"digest": db.digest(),
        b"applied": dict(db.applied),
    }


@pytest.mark.parametrize("memtable_bytes", [1 << 14, 64 << 20])
def test_restored_it_holds_the_same_as_a_new_origin(memtable_bytes: int, tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", "os", memtable_bytes=memtable_bytes, background=False) as db:
        held = fill(db)
        info = db.backup(tmp_path / "backup")
        db[b"later"] = b"not in it"
        assert info.origin == db.origin
        assert info.bytes == sum(path.stat().st_size for path in (tmp_path / "backup").rglob("*") if path.is_file()) - (
            (tmp_path / "backup" / MARKER).stat().st_size
        )
        assert everwrite.restore(tmp_path / "backup", tmp_path / "restored") == info
        with everwrite.open(tmp_path / "restored") as restored:
            assert content(restored) == held
            assert restored.origin != db.origin
            assert restored.verify().ok
            restored[b"mine"] = b"1"
            for batch in restored.changes(db.applied):
                db.apply(batch)
            for batch in db.changes(restored.applied):
                restored.apply(batch)
            assert content(restored) == content(db)
            assert db[b"mine"] == b"1"
            assert restored[b"later"] == b"not in it"
        with everwrite.open(tmp_path / "restored") as restored:
            assert restored.key_count() == db.key_count()


def test_opened_as_it_stands_it_is_a_store_of_its_own(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", "os") as db:
        held = fill(db)
        db.backup(tmp_path / "backup")
        with everwrite.open(tmp_path / "backup") as other:
            assert content(other) == held
            assert other.origin != db.origin
            other[b"mine"] = b"1"
        with pytest.raises(everwrite.BackupError, match="opened as a store"):
            everwrite.restore(tmp_path / "backup", tmp_path / "restored")
        assert not (tmp_path / "restored").exists()


def test_of_an_empty_store(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db") as db:
        seen: list[tuple[int, int]] = []
        db.backup(tmp_path / "backup", progress=lambda done, total: seen.append((done, total)))
    everwrite.restore(tmp_path / "backup", tmp_path / "restored")
    with everwrite.open(tmp_path / "restored") as restored:
        assert len(restored) == 0
        restored[b"k"] = b"v"
    with everwrite.open(tmp_path / "restored") as restored:
        assert dict(restored) == {b"k": b"v"}


def test_of_a_store_with_a_cut_log(tmp_path: Path) -> None:
    with everwrite.open(
        tmp_path / "db", "os", memtable_bytes=1 << 14, log_keep_bytes=1, segment_bytes=4096, background=False
    ) as db:
        held = fill(db)
        assert db.stats()["log_start"] > 0
        db.backup(tmp_path / "backup")
    everwrite.restore(tmp_path / "backup", tmp_path / "restored")
    with everwrite.open(tmp_path / "restored") as restored, everwrite.open(tmp_path / "empty") as empty:
        assert content(restored) == held
        # No log reaches back: whole states go.
        for batch in restored.changes({}):
            empty.apply(batch)
        assert content(empty) == held


def test_in_memory_files() -> None:
    files = MemoryFiles()
    with everwrite.open("db", files=files, background=False) as db:
        held = fill(db)
        db.backup("backup")
        everwrite.restore("backup", "restored", files=files)
        with everwrite.open("restored", files=files, background=False) as restored:
            assert content(restored) == held
            assert restored.origin != db.origin
    # All of it must be durable when `restore` and `backup` return.
    files.crash()
    with everwrite.open("restored", files=files, background=False) as restored:
        assert content(restored)[b"digest"] == held[b"digest"]


def test_taken_while_threads_write_it_holds_a_prefix_of_the_history(tmp_path: Path) -> None:
    db = everwrite.open(tmp_path / "db", "os", memtable_bytes=1 << 17, log_keep_bytes=1 << 18, segment_bytes=1 << 16)
    order = threading.Lock()
    stop = threading.Event()
    written = 0
    failures: list[BaseException] = []

    def write() -> None:
        nonlocal written
        try:
            while not stop.is_set():
                with order:  # so that the history has one order, which the test knows
                    db[b"%08d" % written] = b"x" * 50
                    db[b"newest"] = b"%d" % written
                    db.set(b"multiples").add(b"%d" % (written // 100))
                    written += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        taken = []
        for number in range(4):
            before = written
            db.backup(tmp_path / f"backup {number}")
            taken.append((before, written))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert db.stats()["flushes"] > 2
    db.close()
    for number, (before, after) in enumerate(taken):
        everwrite.restore(tmp_path / f"backup {number}", tmp_path / f"restored {number}")
        with everwrite.open(tmp_path / f"restored {number}") as restored:
            keys = [key for key in restored if key != b"newest"]
            assert keys == [b"%08d" % i for i in range(len(keys))]
            assert before <= len(keys) <= after + 1
            newest = int(restored[b"newest"])
            # A writer may have been between its two or three writes.
            assert newest in (len(keys) - 1, len(keys) - 2)
            assert len(restored.set(b"multiples")) in (newest // 100 + 1, (newest + 99) // 100)
            assert restored.verify().ok


def test_progress_rises_to_the_total(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", "os", memtable_bytes=1 << 16, background=False) as db:
        fill(db)
        for call in (
            lambda progress: db.backup(tmp_path / "backup", progress=progress),
            lambda progress: everwrite.restore(tmp_path / "backup", tmp_path / "restored", progress=progress),
        ):
            seen: list[tuple[int, int]] = []
            call(lambda done, total, seen=seen: seen.append((done, total)))
            assert seen
            assert seen == sorted(seen)
            assert seen[-1][0] == seen[-1][1] == seen[0][1] > 0


def test_a_progress_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with everwrite.open(tmp_path / "db", "os", memtable_bytes=1 << 16, background=False) as db:
        fill(db)
        with pytest.raises(KeyboardInterrupt):
            db.backup(tmp_path / "backup", progress=stop)
        assert not (tmp_path / "backup").exists()
        db.backup(tmp_path / "backup")
        with pytest.raises(KeyboardInterrupt):
            everwrite.restore(tmp_path / "backup", tmp_path / "restored", progress=stop)
    assert not (tmp_path / "restored").exists()


def test_what_can_not_be_done_says_why_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"x")
    with everwrite.open(tmp_path / "db", "os") as db:
        db[b"k"] = b"v"
        for name in ("file", "full", "db"):
            with pytest.raises(everwrite.BackupError, match="is there already"):
                db.backup(tmp_path / name)
        db.backup(tmp_path / "backup")
        with pytest.raises(everwrite.BackupError, match="is there already"):
            db.backup(tmp_path / "backup")
    for source in ("full", "db"):
        with pytest.raises(everwrite.BackupError, match="not a backup"):
            everwrite.restore(tmp_path / source, tmp_path / "new")
    with pytest.raises(everwrite.BackupError, match="no such folder"):
        everwrite.restore(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(everwrite.BackupError, match="is there already"):
        everwrite.restore(tmp_path / "backup", tmp_path / "full")
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x"]
    with pytest.raises(everwrite.ClosedError):
        db.backup(tmp_path / "new")


def test_damage_of_a_backup_is_named_and_nothing_is_restored(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", "os", memtable_bytes=1 << 16, background=False) as db:
        fill(db)
        info = db.backup(tmp_path / "backup")
    assert len(info.files) > 4
    for name in info.files:
        path = tmp_path / "backup" / name
        whole = path.read_bytes()
        for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            with pytest.raises(everwrite.StorageError) as caught:
                everwrite.restore(tmp_path / "backup", tmp_path / "restored")
            assert str(path) in str(caught.value)
            assert not (tmp_path / "restored").exists()
        path.write_bytes(whole)
    everwrite.restore(tmp_path / "backup", tmp_path / "restored")


def test_a_damaged_store_is_not_backed_up(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", "os", memtable_bytes=1 << 16, background=False) as db:
        fill(db)
        table = max((tmp_path / "db" / "tables").glob("*.table"))
        whole = table.read_bytes()
        table.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
        with pytest.raises(everwrite.CorruptionError) as caught:
            db.backup(tmp_path / "backup")
        assert caught.value.path == str(table)
        assert not (tmp_path / "backup").exists()
        table.write_bytes(whole)
        db.backup(tmp_path / "backup")


@pytest.mark.parametrize("operation", ["open", "write", "sync", "rename", "sync_dir"])
def test_a_failing_disk_leaves_no_backup_and_a_store_that_works(operation: str) -> None:
    files = MemoryFiles()
    db = everwrite.open("db", "os", files=files, background=False, memtable_bytes=1 << 15)
    fill(db)
    skip = 0
    while True:
        files.fail(operation, path=b"backup", skip=skip)  # type: ignore[arg-type]
        try:
            db.backup("backup")
            break
        except everwrite.StorageError as error:
            assert not isinstance(error, everwrite.BackupError)
            files.heal()
            assert not files.exists(f"backup/{MARKER}")
            db[b"goes on"] = b"%d" % skip
            skip += 1
    files.heal()
    assert skip > 0
    everwrite.restore("backup", "restored", files=files)
    with everwrite.open("restored", files=files, background=False) as restored:
        assert restored[b"goes on"] == b"%d" % (skip - 1)


def test_a_marker_is_checked_in_every_byte(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", "os") as db:
        info = db.backup(tmp_path / "backup")
    marker = (tmp_path / "backup" / MARKER).read_bytes()
    assert decode_marker(marker, "x") == info
    changes: list[Callable[[bytes, int], bytes]] = [
        lambda data, i: data[:i],
        lambda data, i: data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :],
    ]
    for i in range(len(marker)):
        for change in changes:
            with pytest.raises((everwrite.CorruptionError, everwrite.FormatError)):
                decode_marker(change(marker, i), "x")
    newer = b"EWRTBKUP" + struct.pack("<I", 2)
    (tmp_path / "backup" / MARKER).write_bytes(newer + struct.pack("<I", checksum(b"what", checksum(newer))) + b"what")
    with pytest.raises(everwrite.FormatError, match="version 2"):
        everwrite.restore(tmp_path / "backup", tmp_path / "restored")
