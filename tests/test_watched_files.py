"""The layer that shows a test each storage system call, and the copy of a disk in memory."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

import everwrite
from everwrite.files import Files, PosixFiles
from everwrite.memory_files import MemoryFiles
from everwrite.watched_files import WatchedFiles

Answer = int | tuple[int, int] | None


class Recorder:
    """Notes every call, and answers one of them with `answer`."""

    def __init__(self, fails: str = "", answer: Answer = None) -> None:
        self.calls: list[tuple[str, str, int]] = []
        self.fails = fails
        self.answer = answer

    def __call__(self, operation: str, path: bytes, size: int) -> Answer:
        self.calls.append((operation, Path(path.decode()).name, size))
        return self.answer if operation == self.fails else None


def use(files: Files, folder: Path) -> bytes:
    """One call of every kind."""
    files.mkdir(folder)
    files.lock(folder / "LOCK").release()
    with files.open_file(folder / "a", "fresh") as file:
        file.write(0, b"some bytes")
        file.truncate(4)
        file.sync()
    files.rename_file(folder / "a", folder / "b")
    files.sync_folder(folder)
    content = files.read_file(folder / "b")
    assert "b" in files.listdir(folder)
    files.remove(folder / "b")
    assert not files.exists(folder / "b")
    return content


@pytest.mark.parametrize("inner", [PosixFiles, MemoryFiles])
def test_every_call_is_seen_and_passed_on(inner: type[Files], tmp_path: Path) -> None:
    seen = Recorder()
    assert use(WatchedFiles(inner(), seen), tmp_path / "d") == b"some"
    assert [call for call in seen.calls if call[0] != "size"] == [
        ("mkdir", "d", 0),
        ("lock", "LOCK", 0),
        ("create", "a", 0),
        ("write", "a", 10),
        ("truncate", "a", 4),
        ("sync", "a", 0),
        ("close", "a", 0),
        ("rename", "a", 0),
        ("sync_dir", "d", 0),
        ("open", "b", 0),
        ("read", "b", 4),
        ("close", "b", 0),
        ("list", "d", 0),
        ("unlink", "b", 0),
    ]


@pytest.mark.parametrize(
    "operation",
    [
        "mkdir",
        "lock",
        "create",
        "write",
        "truncate",
        "sync",
        "rename",
        "sync_dir",
        "open",
        "size",
        "read",
        "list",
        "unlink",
        "close",
    ],
)
def test_every_call_can_fail(operation: str, tmp_path: Path) -> None:
    with pytest.raises(everwrite.StorageError) as failed:
        use(WatchedFiles(PosixFiles(), Recorder(operation, errno.ENOSPC)), tmp_path / "d")
    assert failed.value.errno == errno.ENOSPC
    assert str(tmp_path / "d") in str(failed.value)


def test_a_write_can_fail_half_way() -> None:
    disk = MemoryFiles()
    files = WatchedFiles(disk, Recorder("write", (errno.EIO, 3)))
    with files.open_file("/f", "fresh") as file, pytest.raises(everwrite.StorageError):
        file.write(0, b"content")
    assert disk.read_file("/f") == b"con"


def test_what_the_watcher_raises_is_kept() -> None:
    def watch(operation: str, path: bytes, size: int) -> None:
        raise KeyError(operation)

    files = WatchedFiles(MemoryFiles(), watch)
    with pytest.raises(everwrite.StorageError) as failed:
        files.open_file("/f", "fresh")
    assert failed.value.errno == errno.EIO
    assert isinstance(files.error, KeyError)


def contents(disk: MemoryFiles) -> dict[str, bytes]:
    return {name: disk.read_file(f"/{name}") for name in disk.listdir("/") if name != "d"}


def test_a_copy_of_a_disk_crashes_as_the_disk_does() -> None:
    for seed in range(300):
        source = random.Random(seed)
        disk = MemoryFiles()
        for _ in range(source.randrange(1, 30)):
            name = f"/{source.choice('abc')}"
            match source.choice(("write", "write", "write", "sync", "truncate", "rename", "remove", "folder")):
                case "write":
                    with disk.open_file(name, "write") as file:
                        file.write(source.randrange(2000), source.randbytes(source.randrange(1500)))
                case "sync":
                    with disk.open_file(name, "write") as file:
                        if source.random() < 0.2:
                            disk.fail("sync")
                            with pytest.raises(everwrite.StorageError):
                                file.sync()
                        file.sync()
                case "truncate":
                    with disk.open_file(name, "write") as file:
                        file.truncate(source.randrange(2000))
                case "rename" if disk.exists(name):
                    disk.rename_file(name, f"/{source.choice('abc')}")
                case "remove" if disk.exists(name):
                    disk.remove(name)
                case "folder":
                    disk.sync_folder("/")
        before = contents(disk)
        twin, other = disk.copy(), disk.copy()
        assert contents(twin) == contents(other) == before
        twin.crash(random.Random(seed))
        assert contents(disk) == contents(other) == before, "a crash there changes nothing here"
        disk.crash(random.Random(seed))
        assert contents(twin) == contents(disk)
        other.crash()
        other.crash("all")


def test_names_that_were_not_synced_get_lost_in_any_order() -> None:
    seen = set()
    for seed in range(200):
        disk = MemoryFiles()
        for name in "abc":
            disk.open_file(f"/{name}", "fresh").close()
        disk.crash(random.Random(seed))
        seen.add(tuple(disk.listdir("/")))
    assert len(seen) == 8
