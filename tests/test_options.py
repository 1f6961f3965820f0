"""What is asked of a store in a wrong way is refused by name, and leaves nothing behind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import everwrite
from everwrite import ConfigError, Database, ProtocolError
from everwrite.memory_files import MemoryFiles


@pytest.fixture
def db() -> Database:
    return everwrite.open("/data", "os", files=MemoryFiles(), background=False)


@pytest.mark.parametrize(
    "option", ["memtable_bytes", "block_cache_bytes", "log_keep_bytes", "segment_bytes", "max_clock_drift_ms"]
)
@pytest.mark.parametrize("value", [-1, 1 << 63, 1.5, "64", None])
def test_a_size_that_can_t_be_is_named(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        everwrite.open(tmp_path / "db", **{option: value})
    assert not (tmp_path / "db").exists()


def test_a_memory_table_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memtable_bytes is 0; it must be at least 1,"):
        everwrite.open(tmp_path / "db", memtable_bytes=0)


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with everwrite.open("db", "os", memtable_bytes=1 << 16) as db:
        monkeypatch.chdir(tmp_path / "elsewhere")
        for number in range(2000):
            db[b"%d" % number] = bytes(100)
        db.compact()
        db.backup("copy")
        everwrite.restore("copy", "restored")
    assert not (tmp_path / "elsewhere" / "db").exists()
    with everwrite.open(tmp_path / "db") as again, everwrite.open(tmp_path / "elsewhere" / "restored") as restored:
        assert len(again) == len(restored) == 2000


def test_paths_are_text_bytes_or_objects_with_a_path(tmp_path: Path) -> None:
    with everwrite.open(bytes(tmp_path / "db")) as db:  # type: ignore[arg-type]
        db[b"k"] = b"v"
        db.backup(bytes(tmp_path / "copy"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the path is empty"):
        everwrite.open("")


ASKED: dict[str, Callable[[Database, Any], object]] = {
    "counter": lambda db, n: db.counter(b"counter").increment(n),
    "map": lambda db, n: db.map(b"map").increment(b"field", n),
    "max": lambda db, n: db.max(b"max").update(n),
    "bounded": lambda db, n: db.bounded_counter(b"bounded").increment(n),
    "sequence": lambda db, n: db.sequence(b"sequence").insert(n, b"item"),
    "limit": lambda db, n: db.scan(limit=n),
    "ttl": lambda db, n: db.put(b"k", b"v", ttl=n if isinstance(n, str) else str(n)),
}


@pytest.mark.parametrize("value", [1.5, "1", 1j])
@pytest.mark.parametrize("what", ASKED)
def test_what_is_no_number_of_the_kind_wanted_is_refused(db: Database, what: str, value: object) -> None:
    with pytest.raises(TypeError):
        ASKED[what](db, value)
    assert not list(db)


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), 1e12])
def test_a_ttl_out_of_range_is_told_the_range(db: Database, ttl: float) -> None:
    with pytest.raises(ValueError, match=r"it must be more than 0 and less than 1e\+12 seconds"):
        db.put(b"k", b"v", ttl=ttl)
    assert not list(db)


def test_a_batch_of_which_one_bit_has_flipped_changes_nothing(db: Database) -> None:
    other = everwrite.open("/other", "os", files=MemoryFiles(), background=False)
    other[b"title"] = b"Groceries"
    other.set(b"items").add(b"tea")
    (batch,) = other.changes({})
    for at in range(8 * len(batch)):
        altered = bytearray(batch)
        altered[at // 8] ^= 1 << at % 8
        with pytest.raises(ProtocolError, match="nothing of it was applied"):
            db.apply(bytes(altered))
    assert not list(db)
    db.apply(batch)
    assert db[b"title"] == b"Groceries"


def test_a_store_is_neither_copied_nor_pickled(db: Database) -> None:
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="can't be copied or pickled"):
            way(db)


def test_only_open_stores_are_synced(db: Database) -> None:
    for wrong in (None, {}, db.snapshot()):
        with pytest.raises(TypeError, match="isn't an open store"):
            everwrite.sync(db, wrong)  # type: ignore[arg-type]


def test_a_slice_of_a_sequence_isn_t_replaced(db: Database) -> None:
    db.sequence(b"sequence").extend([b"one", b"two"])
    with pytest.raises(TypeError, match="a slice can't be replaced"):
        db.sequence(b"sequence")[0:1] = [b"three"]  # type: ignore[assignment]
    assert list(db.sequence(b"sequence")) == [b"one", b"two"]
