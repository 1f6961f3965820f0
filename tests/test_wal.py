"""The write-ahead log: writing, reading beside the writer, rolling, cutting, failing."""

import errno
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.errors import ClosedError, CorruptionError, LogCutError, ReadOnlyError, StorageError, TooLargeError
from everwrite.files import Files, PosixFiles
from everwrite.memory_files import MemoryFiles
from everwrite.wal_reader import WalReader
from everwrite.wal_recovery import OpenedLog, open_log
from everwrite.wal_writer import WalWriter
from everwrite.watched_files import WatchedFiles

STORE_ID = 0x123456789ABC
FOLDER = "/data/wal"
Operation = Literal["open", "write", "sync", "allocate", "rename", "sync_dir"]


def opened(files: Files, folder: str = FOLDER, *, replay_from: int = 0, segment_bytes: int = 4096) -> OpenedLog:
    return open_log(files, folder, STORE_ID, replay_from=replay_from, segment_bytes=segment_bytes)


def rest(reader: WalReader, limit: int) -> list[bytes]:
    """All payloads from the reader's position to `limit`."""

    def payloads() -> Iterator[bytes]:
        while (payload := reader.read(limit)) is not None:
            yield payload

    return list(payloads())


@pytest.fixture
def memory() -> MemoryFiles:
    return MemoryFiles()


@pytest.fixture
def unmapped() -> MemoryFiles:
    """Files that can't be mapped."""
    files = MemoryFiles()
    files.fail("map", times=-1)
    return files


@pytest.fixture(params=["mapped", "unmapped"])
def disk_in_memory(request: pytest.FixtureRequest) -> MemoryFiles:
    files: MemoryFiles = request.getfixturevalue("memory" if request.param == "mapped" else "unmapped")
    return files


@pytest.fixture(params=["posix", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Files, str]:
    if request.param == "posix":
        return PosixFiles(), str(tmp_path / "wal")
    return MemoryFiles(), FOLDER


def test_reads_back_what_was_appended(disk: tuple[Files, str]) -> None:
    files, folder = disk
    source = random.Random(1)
    batches = [[source.randbytes(source.randrange(200)) for _ in range(5)] for _ in range(80)]
    log = opened(files, folder)
    for batch in batches:
        log.writer.extend(batch)
    written = log.writer.written
    expected = [payload for batch in batches for payload in batch]
    assert rest(log.reader, written) == expected
    assert len(log.writer.segments()) > 5
    log.writer.close()
    log.reader.close()
    again = opened(files, folder)
    assert (again.writer.start, again.writer.end, again.dropped_bytes) == (0, written, 0)
    assert rest(again.reader, written) == expected
    again.writer.extend([b"more"])
    assert rest(again.reader, again.writer.written) == [b"more"]
    again.writer.close()


def test_positions(memory: MemoryFiles) -> None:
    writer = opened(memory).writer
    assert (writer.start, writer.durable, writer.written, writer.end) == (0, 64, 64, 64)
    writer.extend([b"12345", b""])
    assert (writer.durable, writer.written, writer.end) == (64, 109, 109)
    writer.make_durable()
    assert (writer.durable, writer.syncs) == (109, 1)
    assert writer.sync_nanoseconds > 0
    writer.make_durable()
    assert writer.syncs == 1, "nothing new: no sync"
    assert writer.segments() == [(0, 109)]
    assert writer.appended_bytes == 45


def test_a_frame_never_spans_segments(memory: MemoryFiles) -> None:
    writer = opened(memory).writer
    writer.extend([bytes(4000), bytes(100), bytes(10_000), b"x"])
    assert writer.segments() == [(0, 4084), (4084, 4268), (4268, 14352), (14352, 14437)]
    assert memory.listdir(FOLDER) == [f"{start:016x}.log" for start in (0, 4084, 4268, 14352)]
    assert writer.durable == 64, "nobody asked for more"
    writer.tend()
    assert (writer.durable, writer.syncs) == (14352, 3), "the full segments are durable"
    writer.make_durable()
    assert (writer.durable, writer.syncs) == (14437, 4)


def test_a_frame_larger_than_a_segment_leaves_none_empty(memory: MemoryFiles) -> None:
    writer = opened(memory).writer
    writer.extend([bytes(10_000), bytes(10_000)])
    assert writer.segments() == [(0, 10_084), (10_084, 20_168)]


@given(st.lists(st.lists(st.binary(max_size=3000), max_size=6), max_size=12), st.data())
def test_round_trips(batches: list[list[bytes]], data: st.DataObject) -> None:
    files = MemoryFiles()
    log = opened(files)
    marks = [(0, 0)]  # (position, how many payloads lie before it)
    expected: list[bytes] = []
    for batch in batches:
        log.writer.extend(batch)
        expected += batch
        marks.append((log.writer.end, len(expected)))
    end = log.writer.end
    log.writer.close()
    position, before = data.draw(st.sampled_from(marks))
    log = opened(files, replay_from=position)
    assert log.writer.end == end
    assert rest(log.reader, end) == expected[before:]
    for position, before in marks:
        assert rest(WalReader(files, FOLDER, 0), position) == expected[:before]


def test_a_reader_follows_the_writer(memory: MemoryFiles) -> None:
    source = random.Random(3)
    log = opened(memory)
    reader = log.reader
    expected: list[bytes] = []
    got: list[bytes] = []
    for _ in range(300):
        payloads = [source.randbytes(source.randrange(900)) for _ in range(source.randrange(4))]
        log.writer.extend(payloads)
        expected += payloads
        if source.random() < 0.5:
            log.writer.make_durable()
        got += rest(reader, log.writer.durable)
        assert got == expected[: len(got)]
        if source.random() < 0.1:
            reader = WalReader(memory, FOLDER, reader.position)
    log.writer.make_durable()
    got += rest(reader, log.writer.durable)
    assert got == expected


def test_syncs_and_readers_beside_the_writer(tmp_path: Path) -> None:
    log = opened(PosixFiles(), str(tmp_path / "wal"))
    source = random.Random(5)
    batches = [[source.randbytes(source.randrange(700)) for _ in range(source.randrange(4))] for _ in range(400)]
    expected = [payload for batch in batches for payload in batch]
    done = threading.Event()

    def sync_until_done() -> None:
        while not done.is_set():
            log.writer.make_durable()
            assert log.writer.durable <= log.writer.end

    def follow() -> list[bytes]:
        reader = WalReader(PosixFiles(), tmp_path / "wal", 0)
        got: list[bytes] = []
        finished = False
        while not finished:
            finished = done.is_set()
            got += rest(reader, log.writer.durable)
        reader.close()
        return got

    with ThreadPoolExecutor() as threads:
        syncing = [threads.submit(sync_until_done) for _ in range(2)]
        following = threads.submit(follow)
        try:
            for batch in batches:
                log.writer.extend(batch)
            log.writer.make_durable()
            assert log.writer.durable == log.writer.end
        finally:
            done.set()
        for thread in syncing:
            thread.result()
        assert following.result() == expected
    log.writer.close()


def test_frames_of_a_buffered_writer_keep_their_order(disk: tuple[Files, str]) -> None:
    """Small ones are written, large ones stored in the mapping, where there is one."""
    files, folder = disk
    log = opened(files, folder)
    log.writer.buffered = True
    assert not log.writer.mapped
    source = random.Random(4)
    expected = []
    for size in (10, 65_535, 65_536, 3, 200_000, 0, 70_000, 70_000, 1):
        expected.append(source.randbytes(size))
        log.writer.extend(expected[-1:] if size % 2 else [*expected[-1:], b"and one more"])
        expected += [] if size % 2 else [b"and one more"]
        log.writer.make_durable()
        assert log.writer.durable == log.writer.end
        assert rest(WalReader(files, folder, 0), log.writer.durable) == expected
    log.writer.abandon()
    again = opened(files, folder)
    assert rest(again.reader, again.writer.end) == expected


def test_threads_that_commit_together_all_get_what_they_came_for(tmp_path: Path) -> None:
    log = opened(PosixFiles(), str(tmp_path / "wal"))
    log.writer.buffered = True
    appending = threading.Lock()
    writers, each = 16, 60

    def commit(number: int) -> None:
        for i in range(each):
            with appending:
                log.writer.extend([b"%d/%d" % (number, i)])
                end = log.writer.end
            log.writer.make_durable()
            assert log.writer.durable >= end

    with ThreadPoolExecutor(writers) as threads:
        list(threads.map(commit, range(writers)))
    got = rest(WalReader(PosixFiles(), tmp_path / "wal", 0), log.writer.durable)
    assert sorted(got) == sorted(b"%d/%d" % (number, i) for number in range(writers) for i in range(each))
    log.writer.close()


def test_those_who_wait_for_a_sync_that_fails_hear_of_it(memory: MemoryFiles) -> None:
    log = opened(memory, FOLDER)
    log.writer.buffered = True
    appending = threading.Lock()
    acknowledged: list[bytes] = []

    def commit(number: int) -> str:
        for i in range(10_000):
            payload = b"%d/%d" % (number, i)
            try:
                with appending:
                    log.writer.extend([payload])
                log.writer.make_durable()
            except StorageError:
                return "failed"
            acknowledged.append(payload)
            if len(acknowledged) == 500:
                memory.fail("sync")
        return "never"

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(commit, range(8))) == ["failed"] * 8
    log.writer.abandon()
    memory.crash()
    again = opened(memory, FOLDER)
    assert set(acknowledged) <= set(rest(again.reader, again.writer.end))


def test_large_frames_between_small_ones(disk: tuple[Files, str]) -> None:
    files, folder = disk
    log = opened(files, folder)
    payloads = [b"small", random.Random(4).randbytes(3_000_000), b"", b"small again", bytes(70_000)]
    log.writer.extend(payloads)
    assert rest(log.reader, log.writer.written) == payloads
    log.writer.close()


def test_cut_keeps_the_position_and_the_last_segment(memory: MemoryFiles) -> None:
    log = opened(memory)
    writer = log.writer
    for _ in range(10):
        writer.extend([bytes(3000)])
    segments = writer.segments()
    writer.cut(segments[3][1] - 1)
    assert writer.segments() == segments[3:]
    assert writer.start == segments[3][0]
    writer.cut(writer.end + 1_000_000)
    assert writer.segments() == segments[-1:]
    memory.crash()
    assert opened(memory, replay_from=segments[-1][0]).writer.start == segments[-1][0]
    with pytest.raises(LogCutError):
        WalReader(memory, FOLDER, segments[0][0])


def test_a_reader_learns_that_the_log_was_cut(memory: MemoryFiles) -> None:
    log = opened(memory)
    payloads = [bytes([number]) * 3000 for number in range(10)]
    for payload in payloads:
        log.writer.extend([payload])
    limit = log.writer.written
    assert log.reader.read(limit) == payloads[0]
    log.writer.cut(limit)
    # The segment that it has open it can read to its end.
    with pytest.raises(LogCutError):
        rest(log.reader, limit)
    with pytest.raises(LogCutError):
        log.reader.read(limit)


def test_a_reader_in_front_of_a_cut_goes_on(memory: MemoryFiles) -> None:
    log = opened(memory)
    for number in range(10):
        log.writer.extend([bytes([number]) * 3000])
    last = log.writer.segments()[-1][0]
    reader = WalReader(memory, FOLDER, last)
    log.writer.cut(last)
    assert rest(reader, log.writer.written) == [bytes([9]) * 3000]


def test_a_payload_over_the_limit_is_refused(memory: MemoryFiles) -> None:
    writer = opened(memory).writer
    with pytest.raises(TooLargeError):
        writer.extend([bytes((256 << 20) + 1)])
    assert writer.end == 64
    writer.extend([b"fine"])


def test_closed(memory: MemoryFiles) -> None:
    log = opened(memory)
    log.writer.extend([b"x"])
    log.writer.close()
    log.writer.close()
    log.reader.close()
    log.reader.close()
    with pytest.raises(ClosedError):
        log.writer.extend([b"y"])
    with pytest.raises(ClosedError):
        log.writer.make_durable()
    with pytest.raises(ClosedError):
        log.reader.read(100)
    memory.crash()
    again = opened(memory)
    assert rest(again.reader, again.writer.end) == [b"x"], "close makes durable"


# Failures.


def check_stays_failed(writer: WalWriter) -> None:
    assert writer.failed
    durable = writer.durable
    for call in (lambda: writer.extend([b"y"]), writer.make_durable, lambda: writer.cut(10**9)):
        with pytest.raises(StorageError, match="stopped after an earlier failure"):
            call()
    assert writer.durable == durable
    writer.close()


def test_a_failed_sync_stops_the_writer_for_good(memory: MemoryFiles) -> None:
    log = opened(memory)
    log.writer.extend([b"safe"])
    log.writer.make_durable()
    log.writer.extend([b"lost"])
    memory.fail("sync")
    with pytest.raises(StorageError, match="syncing") as caught:
        log.writer.make_durable()
    assert caught.value.errno == errno.EIO
    check_stays_failed(log.writer)
    memory.crash()
    again = opened(memory)
    assert rest(again.reader, again.writer.end) == [b"safe"]


@pytest.mark.parametrize("partial", [0, 1, 19, 20, 21, 60])
def test_a_write_that_fails_stops_the_writer(unmapped: MemoryFiles, partial: int) -> None:
    log = opened(unmapped)
    log.writer.extend([b"safe"])
    unmapped.fail("write", errno.EIO, partial=partial)
    with pytest.raises(StorageError) as caught:
        log.writer.extend([b"a" * 40, b"b" * 40])
    assert caught.value.errno == errno.EIO
    check_stays_failed(log.writer)
    unmapped.crash("all")
    again = opened(unmapped)
    assert rest(again.reader, again.writer.end) == [b"safe", b"a" * 40][: 2 if partial >= 60 else 1]
    # The last bytes of a header that is cut off may be zeros.
    assert partial % 60 - 3 <= again.dropped_bytes <= partial % 60


@pytest.mark.parametrize("partial", [0, 1, 19, 20, 21, 60])
def test_a_write_without_space_is_made_up_for(unmapped: MemoryFiles, partial: int) -> None:
    log = opened(unmapped)
    log.writer.extend([b"safe"])
    unmapped.fail("write", errno.ENOSPC, partial=partial, times=3)
    for _ in range(3):
        with pytest.raises(ReadOnlyError) as caught:
            log.writer.extend([b"a" * 40, b"b" * 40])
        assert caught.value.errno == errno.ENOSPC
    assert log.writer.written < log.writer.end
    log.writer.extend([b"there is space"])
    expected = [b"safe", b"a" * 40, b"b" * 40, b"there is space"]
    assert rest(log.reader, log.writer.written) == expected
    log.writer.close()
    again = opened(unmapped)
    assert rest(again.reader, again.writer.end) == expected


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["allocate", "rename", "open"])
def test_without_space_nothing_changes(disk_in_memory: MemoryFiles, operation: Operation, error: int) -> None:
    log = opened(disk_in_memory)
    log.writer.extend([bytes(3000)])
    before = (log.writer.end, log.writer.written, log.writer.segments())
    for _ in range(3):
        disk_in_memory.fail(operation, error, times=-1)
        with pytest.raises(ReadOnlyError) as caught:
            log.writer.extend([bytes(3000)])
        assert caught.value.errno == error
        assert (log.writer.end, log.writer.written, log.writer.segments()) == before
        assert disk_in_memory.listdir(FOLDER) == [f"{0:016x}.log"]
        disk_in_memory.heal()
    log.writer.extend([b"x" * 3000])
    assert rest(log.reader, log.writer.written) == [bytes(3000), b"x" * 3000]
    log.writer.close()


def test_a_log_grows_by_less_when_space_is_short(memory: MemoryFiles) -> None:
    log = open_log(memory, FOLDER, STORE_ID, replay_from=0)
    memory.fail("allocate", errno.ENOSPC)
    log.writer.extend([bytes(100)])
    with memory.open_file(f"{FOLDER}/{0:016x}.log", "read") as file:
        assert file.size() == 64 + 120
        log.writer.extend([bytes(100)])
        assert file.size() == 1 << 16


@pytest.mark.parametrize("operation", ["open", "rename", "allocate"])
@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES])
def test_a_roll_that_fails_changes_nothing(memory: MemoryFiles, operation: Operation, error: int) -> None:
    log = opened(memory)
    log.writer.extend([bytes(3000)])
    memory.fail(operation, error)
    with pytest.raises(StorageError) as caught:
        log.writer.extend([b"x" * 3000])
    assert caught.value.errno == error
    assert not log.writer.failed
    log.writer.extend([b"x" * 3000])
    assert rest(log.reader, log.writer.written) == [bytes(3000), b"x" * 3000]


@pytest.mark.parametrize("operation", ["open", "allocate", "rename"])
def test_a_disk_that_fails_stops_the_writer(disk_in_memory: MemoryFiles, operation: Operation) -> None:
    log = opened(disk_in_memory)
    log.writer.extend([bytes(3000)])
    log.writer.make_durable()
    disk_in_memory.fail(operation)
    with pytest.raises(StorageError):
        log.writer.extend([bytes(3000)])
    check_stays_failed(log.writer)
    check_goes_on(disk_in_memory, [bytes(3000)])


@pytest.mark.parametrize("operation", ["sync", "sync_dir"])
def test_a_full_segment_that_can_not_be_synced_stops_the_writer(memory: MemoryFiles, operation: Operation) -> None:
    log = opened(memory)
    log.writer.extend([bytes(3000)])
    log.writer.make_durable()
    log.writer.extend([bytes(3000)])
    memory.fail(operation)
    with pytest.raises(StorageError):
        log.writer.tend()
    check_stays_failed(log.writer)
    check_goes_on(memory, [bytes(3000)] * 2)


def check_goes_on(files: MemoryFiles, payloads: list[bytes]) -> None:
    files.crash("all")
    again = opened(files)
    assert rest(again.reader, again.writer.end) == payloads
    again.writer.extend([b"goes on"])
    assert rest(again.reader, again.writer.end) == [b"goes on"]


# Space.


def test_a_small_log_is_small(tmp_path: Path) -> None:
    log = open_log(PosixFiles(), tmp_path, STORE_ID, replay_from=0)
    segment = tmp_path / f"{0:016x}.log"
    sizes = set()
    for _ in range(200):
        log.writer.extend([bytes(10_000)])
        sizes.add(segment.stat().st_size)
        assert log.writer.end <= segment.stat().st_size <= max(2 * log.writer.end, 1 << 16)
    assert sizes == {1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21}
    log.writer.tend()
    assert list(tmp_path.iterdir()) == [segment], "nothing is made ahead for a small log"
    log.writer.close()
    assert segment.stat().st_size == log.writer.end
    assert len(segment.read_bytes()) == 64 + 200 * 10_020


def test_the_next_segment_is_made_ahead(disk: tuple[Files, str]) -> None:
    files, folder = disk
    log = opened(files, folder)
    log.writer.extend([bytes(1000)])
    log.writer.tend()
    assert files.listdir(folder) == [f"{0:016x}.log"]
    log.writer.extend([bytes(1200)])
    log.writer.tend()
    assert files.listdir(folder) == ["0.spare", f"{0:016x}.log"]
    log.writer.extend([bytes(3000)])
    assert files.listdir(folder) == [f"{0:016x}.log", f"{2304:016x}.log"]
    log.writer.extend([bytes(10)])
    log.writer.tend()
    assert "1.spare" in files.listdir(folder)
    log.writer.extend([b"x" * 9000])
    expected = [bytes(1000), bytes(1200), bytes(3000), bytes(10), b"x" * 9000]
    assert rest(log.reader, log.writer.written) == expected
    log.writer.tend()
    log.writer.close()
    assert not [name for name in files.listdir(folder) if name.endswith(".spare")]
    again = opened(files, folder)
    assert rest(again.reader, again.writer.end) == expected
    again.writer.close()


def test_what_was_made_ahead_is_removed_after_a_crash(memory: MemoryFiles) -> None:
    log = opened(memory)
    log.writer.extend([bytes(2500)])
    log.writer.tend()
    assert "0.spare" in memory.listdir(FOLDER)
    memory.crash("all")
    opened(memory)
    assert memory.listdir(FOLDER) == [f"{0:016x}.log"]


def test_a_file_that_can_not_be_mapped_is_written(unmapped: MemoryFiles, memory: MemoryFiles) -> None:
    payloads = [random.Random(7).randbytes(size) for size in (10, 3000, 0, 2000, 9000, 1, 100)]
    for files, mapped in ((unmapped, False), (memory, True)):
        log = opened(files)
        assert log.writer.mapped is mapped
        for payload in payloads:
            log.writer.extend([payload])
        log.writer.close()
    names = memory.listdir(FOLDER)
    assert unmapped.listdir(FOLDER) == names
    assert [unmapped.read_file(f"{FOLDER}/{name}") for name in names] == [
        memory.read_file(f"{FOLDER}/{name}") for name in names
    ]


def test_stored_means_written(memory: MemoryFiles) -> None:
    log = opened(memory)
    counted: list[str] = []
    watched = WatchedFiles(memory, lambda operation, path, size: counted.append(operation))
    log = opened(watched, "/data/other", segment_bytes=1 << 20)
    log.writer.extend([b"first"])
    counted.clear()
    for _ in range(100):
        log.writer.extend([b"more"])
    assert counted == [], "an append is no system call"
    assert log.writer.written == log.writer.end


def test_a_fresh_log_may_begin_anywhere_if_told(memory: MemoryFiles) -> None:
    with pytest.raises(CorruptionError, match="missing"):
        open_log(memory, FOLDER, STORE_ID, replay_from=1_000_000)
    log = open_log(memory, FOLDER, STORE_ID, replay_from=1_000_000, fresh=True)
    log.writer.extend([b"x"])
    assert log.writer.segments() == [(1_000_000, 1_000_085)]
    assert rest(log.reader, log.writer.written) == [b"x"]


def test_segment_size_is_checked(memory: MemoryFiles) -> None:
    with pytest.raises(ValueError, match="segment_bytes is 100"):
        opened(memory, segment_bytes=100)
