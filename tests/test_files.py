"""The storage seam: both kinds of files behave alike; files in memory crash and fail as told."""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.errors import LockedError, StorageError
from everwrite.files import Files, PosixFiles
from everwrite.memory_files import MemoryFiles


@pytest.fixture(params=["posix", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Files, str]:
    """The files, and a folder that exists."""
    if request.param == "posix":
        return PosixFiles(), str(tmp_path)
    return make_memory(), "/disk"


@pytest.fixture
def memory() -> MemoryFiles:
    return make_memory()


def make_memory() -> MemoryFiles:
    files = MemoryFiles()
    files.mkdir("/disk")
    return files


def put(files: Files, path: str, data: bytes, *, sync: bool = True) -> None:
    with files.open_file(path, "write") as file:
        file.write(0, data)
        if sync:
            file.sync()


def test_reads_what_was_written(disk: tuple[Files, str]) -> None:
    files, folder = disk
    with files.open_file(f"{folder}/a", "write") as file:
        assert file.size() == 0
        file.write(0, b"hello")
        file.write(5, b" world")
        file.write(0, b"J")
        assert file.read(0, 100) == b"Jello world"
        assert file.read(6, 5) == b"world"
        assert file.read(11, 5) == b""
        assert file.read(500, 5) == b""
        file.truncate(4)
        assert file.read(0, 100) == b"Jell"
        file.truncate(6)
        assert file.read(0, 100) == b"Jell\0\0"
        file.write(8, b"!")
        assert file.size() == 9
        file.sync()
    assert files.read_file(f"{folder}/a") == b"Jell\0\0\0\0!"


def test_modes(disk: tuple[Files, str]) -> None:
    files, folder = disk
    with pytest.raises(StorageError, match=f"{folder}/a") as caught:
        files.open_file(f"{folder}/a", "read")
    assert caught.value.errno == errno.ENOENT
    put(files, f"{folder}/a", b"old")
    with files.open_file(f"{folder}/a", "write") as file:
        assert file.read(0, 9) == b"old"
    with files.open_file(f"{folder}/a", "fresh") as file:
        assert file.read(0, 9) == b""
    with pytest.raises(StorageError):
        files.open_file(f"{folder}/missing/a", "write")


def test_names(disk: tuple[Files, str]) -> None:
    files, folder = disk
    put(files, f"{folder}/b", b"1")
    put(files, f"{folder}/a", b"2")
    assert files.listdir(folder) == ["a", "b"]
    files.rename_file(f"{folder}/a", f"{folder}/b")
    files.sync_folder(folder)
    assert files.listdir(folder) == ["b"]
    assert files.read_file(f"{folder}/b") == b"2"
    assert files.exists(f"{folder}/b")
    assert files.exists(folder)
    assert not files.exists(f"{folder}/a")
    files.remove(f"{folder}/b")
    assert files.listdir(folder) == []
    with pytest.raises(StorageError):
        files.remove(f"{folder}/b")
    with pytest.raises(StorageError):
        files.rename_file(f"{folder}/b", f"{folder}/c")
    with pytest.raises(StorageError):
        files.listdir(f"{folder}/missing")
    with pytest.raises(StorageError):
        files.sync_folder(f"{folder}/missing")


def test_folders(disk: tuple[Files, str]) -> None:
    files, folder = disk
    files.mkdir(f"{folder}/x/y")
    files.mkdir(f"{folder}/x/y")
    assert files.listdir(folder) == ["x"]
    assert files.listdir(f"{folder}/x") == ["y"]
    put(files, f"{folder}/x/y/a", b"1")
    assert files.listdir(f"{folder}/x/y") == ["a"]
    with pytest.raises(StorageError):
        files.mkdir(f"{folder}/x/y/a")


def test_a_removed_file_stays_readable_where_it_is_open(disk: tuple[Files, str]) -> None:
    files, folder = disk
    put(files, f"{folder}/a", b"still here")
    with files.open_file(f"{folder}/a", "read") as file:
        files.remove(f"{folder}/a")
        assert file.read(0, 100) == b"still here"


def test_replace_file(disk: tuple[Files, str]) -> None:
    files, folder = disk
    files.replace_file(f"{folder}/a", b"one")
    files.replace_file(f"{folder}/a", bytearray(b"two"))
    assert files.read_file(f"{folder}/a") == b"two"
    assert files.listdir(folder) == ["a"]


def test_the_second_locker_is_told_who_holds_it(disk: tuple[Files, str]) -> None:
    files, folder = disk
    held = files.lock(f"{folder}/lock")
    with pytest.raises(LockedError, match=f"lock.*process {os.getpid()}"):
        files.lock(f"{folder}/lock")
    held.release()
    held.release()
    files.lock(f"{folder}/lock").release()


def test_a_lock_of_another_process(tmp_path: Path) -> None:
    program = (
        "import sys; from everwrite.files import PosixFiles; held = PosixFiles().lock(sys.argv[1]);"
        "print('held', flush=True); sys.stdin.read()"
    )
    path = str(tmp_path / "lock")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=rf"process {other.pid} \(.* -c import sys; .*\), since \d{{4}}-\d\d-"):
            PosixFiles().lock(path)
        other.communicate()
    PosixFiles().lock(path).release()


def test_a_lock_that_only_a_forked_child_holds(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        held = PosixFiles().lock(path)
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)  # until the test lets go
            os._exit(held is None)
        os._exit(0)
    os.close(reader)
    os.waitpid(child, 0)
    with pytest.raises(LockedError, match=f"process {child} .*; it has ended, but a process that it forked lives"):
        PosixFiles().lock(path)
    os.close(writer)


@pytest.mark.parametrize("content", [b"", b"\xff\n\n", b"12x\n", b"9" * 3000, b"99999999999\n1\nx\n"])
def test_a_lock_file_with_anything_in_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = PosixFiles().lock(str(path))
    path.write_bytes(content)
    with pytest.raises(LockedError, match="in use by an unknown process"):
        PosixFiles().lock(str(path))
    held.release()


def test_errors_name_the_file(tmp_path: Path) -> None:
    files = PosixFiles()
    path = str(tmp_path / "a")
    put(files, path, b"x")
    with files.open_file(path, "read") as file, pytest.raises(StorageError) as caught:
        file.write(0, b"y")
    assert caught.value.errno == errno.EBADF
    assert caught.value.filename == path


def test_many_handles_and_their_reuse(memory: MemoryFiles) -> None:
    opened = []
    for number in range(50):
        file = memory.open_file(f"/disk/{number}", "write")
        file.write(0, str(number).encode())
        opened.append(file)
    for file in opened[::2]:
        file.close()
    more = [memory.open_file(f"/disk/{number}", "read") for number in range(50)]
    for number, file in enumerate(more):
        assert file.read(0, 9) == str(number).encode()
    for number, file in enumerate(opened):
        if number % 2:
            assert file.read(0, 9) == str(number).encode()


# Crashes.


def test_a_crash_takes_what_was_not_synced(memory: MemoryFiles) -> None:
    file = memory.open_file("/disk/a", "write")
    file.write(0, b"safe")
    file.sync()
    memory.sync_folder("/disk")
    file.write(2, b"XXXXX")
    file.truncate(3)
    assert file.read(0, 9) == b"saX"
    memory.crash()
    with pytest.raises(StorageError) as caught:
        file.read(0, 9)
    assert caught.value.errno == errno.EBADF
    assert memory.read_file("/disk/a") == b"safe"


def test_a_name_is_durable_only_with_its_folder(memory: MemoryFiles) -> None:
    put(memory, "/disk/a", b"1")
    memory.crash()
    assert memory.listdir("/disk") == []
    put(memory, "/disk/a", b"1")
    put(memory, "/disk/b", b"2")
    memory.sync_folder("/disk")
    memory.rename_file("/disk/a", "/disk/b")
    memory.crash()
    assert [memory.read_file(f"/disk/{name}") for name in memory.listdir("/disk")] == [b"1", b"2"]
    memory.remove("/disk/a")
    memory.crash()
    assert memory.listdir("/disk") == ["a", "b"]
    memory.remove("/disk/a")
    memory.sync_folder("/disk")
    memory.crash()
    assert memory.listdir("/disk") == ["b"]


def test_a_killed_process_loses_nothing_but_makes_nothing_durable(memory: MemoryFiles) -> None:
    put(memory, "/disk/a", b"1", sync=False)
    lock = memory.lock("/disk/lock")
    memory.crash("all")
    assert memory.read_file("/disk/a") == b"1"
    memory.lock("/disk/lock")
    lock.release()  # of the dead process: must not free the new holder's
    with pytest.raises(LockedError):
        memory.lock("/disk/lock")
    memory.crash()
    assert memory.listdir("/disk") == []


def test_the_same_seed_crashes_the_same_way() -> None:
    results = set()
    for seed in [1, 1, 2, 3, 4]:
        files = make_memory()
        put(files, "/disk/a", b"")
        files.sync_folder("/disk")
        with files.open_file("/disk/a", "write") as file:
            for number in range(40):
                file.write(number * 100, bytes([number + 1]) * 100)
        files.crash(random.Random(seed))
        results.add((seed, files.read_file("/disk/a")))
    assert len({seed for seed, _ in results}) == len(results)
    assert len({content for _, content in results}) > 1


an_operation = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 2000), st.binary(min_size=1, max_size=1500)),
    st.tuples(st.just("truncate"), st.integers(0, 2000), st.just(b"")),
    st.tuples(st.just("sync"), st.just(0), st.just(b"")),
)


@given(
    st.lists(an_operation, max_size=12),
    st.sampled_from(["none", "all", "random"]),
    st.randoms(use_true_random=False),
)
def test_a_crash_keeps_what_was_synced_and_invents_nothing(
    operations: list[tuple[str, int, bytes]], keep: str, source: random.Random
) -> None:
    files = make_memory()
    model = durable = b""
    seen: list[set[int]] = [set() for _ in range(4000)]  # what each byte has held since the last sync
    file = files.open_file("/disk/a", "write")
    files.sync_folder("/disk")
    for operation, number, data in operations:
        if operation == "write":
            file.write(number, data)
            model = model[:number].ljust(number, b"\0") + data + model[number + len(data) :]
        elif operation == "truncate":
            file.truncate(number)
            model = model[:number].ljust(number, b"\0")
        else:
            file.sync()
            durable = model
            seen = [{byte} for byte in model.ljust(4000, b"\0")]
        for index, byte in enumerate(model):
            seen[index].add(byte)
        assert file.read(0, 4000) == model
    choice: dict[str, random.Random | Literal["all"] | None] = {"none": None, "all": "all", "random": source}
    files.crash(choice[keep])
    content = files.read_file("/disk/a")
    if keep == "none":
        assert content == durable
    elif keep == "all":
        assert content == model
    else:
        assert all(byte in seen[index] or byte == 0 for index, byte in enumerate(content))
    files.crash()
    assert files.read_file("/disk/a") == (durable if keep == "all" else content)


def test_replace_file_leaves_the_old_or_the_new_content() -> None:
    operations: list[Literal["open", "write", "sync", "rename", "sync_dir"]]
    operations = ["open", "write", "sync", "rename", "sync_dir"]
    for seed in range(200):
        source = random.Random(seed)
        files = make_memory()
        files.replace_file("/disk/a", b"old" * 400)
        operation = source.choice(operations)
        files.fail(operation, partial=source.randrange(1000))
        with pytest.raises(StorageError):
            files.replace_file("/disk/a", b"new" * 400)
        files.crash(source)
        allowed = {b"old" * 400, b"new" * 400} if operation == "sync_dir" else {b"old" * 400}
        assert files.read_file("/disk/a") in allowed


# Failures on demand.


def test_a_full_disk_with_a_short_write(memory: MemoryFiles) -> None:
    with memory.open_file("/disk/a", "write") as file:
        file.write(0, b"12345")
        memory.fail("write", errno.ENOSPC, partial=2)
        with pytest.raises(StorageError) as caught:
            file.write(5, b"67890")
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == "/disk/a"
        assert file.read(0, 100) == b"1234567"
        file.write(7, b"ok")


def test_a_failed_sync_is_never_made_good_by_a_later_one(memory: MemoryFiles) -> None:
    with memory.open_file("/disk/a", "write") as file:
        memory.sync_folder("/disk")
        file.write(0, b"lost")
        memory.fail("sync")
        with pytest.raises(StorageError) as caught:
            file.sync()
        assert caught.value.errno == errno.EIO
        file.sync()
        file.write(6, b"kept")
        file.sync()
        assert file.read(0, 20) == b"lost\0\0kept"
    memory.crash()
    assert memory.read_file("/disk/a") == bytes(6) + b"kept"


def test_what_a_failed_sync_dropped_can_be_written_again(memory: MemoryFiles) -> None:
    with memory.open_file("/disk/a", "write") as file:
        memory.sync_folder("/disk")
        file.write(0, b"first")
        memory.fail("sync")
        with pytest.raises(StorageError):
            file.sync()
        file.write(0, b"first")
        file.sync()
        file.write(5, b"second")
    memory.crash()
    assert memory.read_file("/disk/a") == b"first"


def test_which_call_fails(memory: MemoryFiles) -> None:
    put(memory, "/disk/a", b"x")
    put(memory, "/disk/b", b"x")
    memory.fail("read", path="/b", skip=1, times=2)
    assert memory.read_file("/disk/a") == b"x"
    with memory.open_file("/disk/b", "read") as file:
        assert file.read(0, 1) == b"x"
        for _ in range(2):
            with pytest.raises(StorageError):
                file.read(0, 1)
        assert file.read(0, 1) == b"x"
        memory.fail("read", times=-1)
        for _ in range(5):
            with pytest.raises(StorageError):
                file.read(0, 1)
        memory.heal()
        assert file.read(0, 1) == b"x"


def test_every_call_can_fail(memory: MemoryFiles) -> None:
    put(memory, "/disk/a", b"x")
    memory.fail("open")
    with pytest.raises(StorageError):
        memory.read_file("/disk/a")
    memory.fail("unlink")
    with pytest.raises(StorageError):
        memory.remove("/disk/a")
    memory.fail("rename")
    with pytest.raises(StorageError):
        memory.rename_file("/disk/a", "/disk/c")
    memory.fail("sync_dir")
    with pytest.raises(StorageError):
        memory.sync_folder("/disk")
    memory.fail("truncate")
    with memory.open_file("/disk/a", "write") as file, pytest.raises(StorageError):
        file.truncate(0)
    assert memory.read_file("/disk/a") == b"x"
