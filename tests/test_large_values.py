"""Large values: they go from where they are to the log and to the memory table, with no copy in between."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import everwrite
from everwrite.database import Database
from everwrite.memory_files import MemoryFiles
from tests.stores import exchange, open_store

# From here on values aren't copied.
LARGE = 64 << 10
SIZE = 64 << 20
# Of memory. One copy stays, the memory table's; of a batch from a peer the decoded body is another for a while.
ROOM = SIZE * 12 // 10
ROOM_TO_APPLY = SIZE * 22 // 10

SIZES = [LARGE - 1, LARGE, LARGE + 1, 300_000]


def value_of(size: int, seed: int = 1) -> bytes:
    return Random(seed).randbytes(size)


# -- what is written is what is read --------------------------------------------------------------------


def put_one(db: Database, value: bytes) -> None:
    db[b"k"] = value


def put_with_deadline(db: Database, value: bytes) -> None:
    db.put(b"k", value, ttl=1000)
    db.expire(b"k", 2000)
    db.persist(b"k")


def put_over_everything(db: Database, value: bytes) -> None:
    db.set(b"k").add(b"a", b"b")
    db[b"k"] = value
    db.delete(b"k")
    db.counter(b"k").increment(7)
    db[b"k"] = value[::-1]
    db[b"k"] = value


def put_again(db: Database, value: bytes) -> None:
    for _ in range(3):
        db[b"k"] = value[: len(value) // 2]
        db[b"k"] = value


def put_many(db: Database, value: bytes) -> None:
    db.put_many({b"before": b"1", b"k": value, b"between": b"2", b"l": value[::-1], b"after": b"3"})
    assert db.get_many([b"before", b"l", b"after"]) == [b"1", value[::-1], b"3"]


def put_in_batch(db: Database, value: bytes) -> None:
    with db.batch() as batch:
        batch[b"before"] = b"1"
        batch[b"k"] = value[::-1]
        batch.set(b"s").add(b"x")
        batch.put(b"timed", value, ttl=1000)
        batch[b"k"] = value
        batch[b"after"] = b"3"
    assert db.get_many([b"before", b"timed", b"after"]) == [b"1", value, b"3"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("write", [put_one, put_with_deadline, put_over_everything, put_again, put_many, put_in_batch])
def test_it_is_read_back_here_after_a_crash_and_elsewhere(write: Callable[[Database, bytes], None], size: int) -> None:
    files = MemoryFiles()
    value = value_of(size)
    with open_store(2) as other:
        with everwrite.open("/data", "always", files=files, background=False, store_id=1) as db:
            write(db, value)
            assert db[b"k"] == value
            exchange(db, other)
            assert other[b"k"] == value
            assert db.digest() == other.digest()
            held = dict(db.items())
            files = files.copy()
        files.crash()
        with everwrite.open("/data", "always", files=files, background=False, store_id=1) as db:
            assert dict(db.items()) == held
            assert db.digest() == other.digest()
            assert db.verify().ok


def test_a_batch_that_fails_puts_back_what_was_there(db: Database) -> None:
    old, new = value_of(LARGE, 1), value_of(LARGE + 5, 2)
    db[b"k"] = old
    batch = db.batch()
    batch[b"k"] = new
    batch[b"l"] = new
    del batch[b"absent"]
    with pytest.raises(KeyError), batch:
        pass
    assert dict(db.items()) == {b"k": old}
    db[b"after"] = b"1"
    with open_store(2) as other:
        exchange(db, other)
        assert dict(other.items()) == {b"k": old, b"after": b"1"}


class Doubling(Database):
    """A store whose writes make values of their own, which nobody else keeps."""

    def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> None:
        super().put(key, value + value, ttl=ttl)


def test_a_batch_keeps_values_that_an_operation_made() -> None:
    with Doubling("/data", "os", files=MemoryFiles(), background=False) as db, open_store(9) as other:
        with db.batch() as batch:
            for number in range(20):
                batch.put(b"%d" % number, bytes([number]) * LARGE, ttl=1000)
        exchange(db, other)
        assert {key: value[:1] * (2 * LARGE) == value for key, value in other.items()} == {
            b"%d" % number: True for number in range(20)
        }


# -- what it takes --------------------------------------------------------------------------------------


def data_bytes() -> int:
    """The process's private memory that can be written to."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def write_within(case: str, path: str) -> None:
    """Write a value of 64 MiB with room for one copy of it in memory. Raises MemoryError when that isn't enough."""
    value = value_of(SIZE)
    with everwrite.open(path, "os", background=False, store_id=1, memtable_bytes=1 << 30) as db:
        db[b"small"] = b"1"
        if case == "replace":
            db[b"k"] = value[::-1]
        if case == "apply":
            with everwrite.open(f"{path}-peer", "os", background=False, store_id=2, memtable_bytes=1 << 30) as peer:
                peer[b"k"] = value
                batches = list(peer.changes({}))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + (ROOM_TO_APPLY if case == "apply" else ROOM), hard))
        match case:
            case "put" | "replace":
                db[b"k"] = value
            case "deadline":
                db.put(b"k", value, ttl=1000)
            case "put_many":
                db.put_many([(b"k", value)])
            case "batch":
                with db.batch() as batch:
                    batch[b"k"] = value
            case "apply":
                for each in batches:
                    db.apply(each)
            case _:
                raise ValueError(case)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        assert db[b"k"] == value


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds mapped memory on Linux alone")
@pytest.mark.parametrize("case", ["put", "replace", "deadline", "put_many", "batch", "apply"])
def test_the_largest_value_is_copied_once(case: str, tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.test_large_values", case, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr


if __name__ == "__main__":
    write_within(*sys.argv[1:])
