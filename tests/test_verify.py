"""`verify` finds what is wrong, wherever it is, and nothing where all is well."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

import everwrite
from tests.test_backup import fill


def everything(path: Path, **settings: object) -> everwrite.Database:
    settings = {"memtable_bytes": 1 << 16, "background": False, "segment_bytes": 1 << 14} | settings
    db = everwrite.open(path, "os", **settings)  # type: ignore[arg-type]
    fill(db)
    return db


def test_a_whole_store_has_no_damage(tmp_path: Path) -> None:
    seen: list[int] = []
    with everything(tmp_path) as db:
        db.set(b"grown").add(*(b"%d" % i for i in range(500)))
        db.set(b"grown").discard(*(b"%d" % i for i in range(0, 500, 3)))
        db.put(b"expires", b"again", ttl=5e6)
        report = db.verify(progress=seen.append)
        assert report.ok, str(report)
        assert report.keys == db.key_count()
        assert report.files >= 3 + db.stats()["tables"]
        assert report.frames > 2000
        assert report.entries > report.keys
        assert seen[-1] == report.bytes > 100_000
        db.compact()
        assert db.verify().ok
        assert "no damage" in str(report)
        assert report.to_dict()["ok"] is True


def test_of_an_empty_store(tmp_path: Path) -> None:
    with everwrite.open(tmp_path) as db:
        assert db.verify().ok


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_byte_is_named_with_its_file(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    with everything(tmp_path) as db:
        db.backup(tmp_path / "backup")  # makes the log durable
        files = [*(tmp_path / "tables").glob("*"), *(tmp_path / "wal").glob("*.log"), tmp_path / "IDENTITY"]
        for path in files:
            if path.parent.name == "wal" and path == max((tmp_path / "wal").glob("*.log")):
                continue  # it may have room behind its end
            whole = path.read_bytes()
            at = chance.randrange(len(whole))
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([whole[at] ^ 1 << chance.randrange(8)]))
            report = db.verify()
            with path.open("r+b") as file:
                file.seek(at)
                file.write(whole[at : at + 1])
            assert [damage.path for damage in report.damages] == [str(path)] * len(report.damages), str(report)
            assert report.damages, f"{path} at {at}"
            if path.suffix:
                assert all(damage.offset is None or damage.offset <= at for damage in report.damages)
            assert str(path) in str(report)
        assert db.verify().ok


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with everything(tmp_path) as db:
        table = max((tmp_path / "tables").glob("*.table"))
        table.rename(tmp_path / "aside")
        report = db.verify()
        (tmp_path / "aside").rename(table)
        assert [damage.path for damage in report.damages] == [str(table)]


def test_it_runs_beside_writers(tmp_path: Path) -> None:
    db = everwrite.open(tmp_path, "os", memtable_bytes=1 << 16, segment_bytes=1 << 16, log_keep_bytes=1 << 17)
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        chance = random.Random(number)
        try:
            while not stop.is_set():
                key = b"%d" % chance.randrange(1000)
                match chance.randrange(4):
                    case 0:
                        db.put(key, b"x" * 100, ttl=1000)
                    case 1:
                        db.set(b"s" + key[:1]).add(key)
                    case 2:
                        db.set(b"s" + key[:1]).discard(key)
                    case _:
                        db.delete(key)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            report = db.verify()
            assert report.ok, str(report)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    db.close()


def test_compact_leaves_one_table_and_little_log(tmp_path: Path) -> None:
    with everything(tmp_path, log_keep_bytes=1 << 30) as db:
        for i in range(2000):
            db.delete(b"key %d" % i)
        held = dict(db)
        before = db.stats()
        db.compact(keep_log=True)
        assert db.stats()["tables"] == 1
        assert db.stats()["log_start"] == before["log_start"] == 0
        db.compact()
        assert db.stats()["log_bytes"] < 1 << 15
        assert dict(db) == held
        assert db.verify().ok
    with everwrite.open(tmp_path) as again:
        assert dict(again) == held
