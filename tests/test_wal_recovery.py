"""Opening a log that was torn by a crash, cut, or damaged: a prefix of what was written, or an error that says where.

Every outcome is compared with that of the slow twin, which is written from the page on the format.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.checksum import checksum
from everwrite.errors import CorruptionError, FormatError
from everwrite.memory_files import MemoryFiles
from everwrite.wal_reader import WalReader
from everwrite.wal_recovery import OpenedLog, open_log
from tests.reference import wal_twin

STORE_ID = 0x123456789ABC
FOLDER = "/data/wal"
SEGMENT_BYTES = 512
Folder = dict[str, bytes]
# ("log", frames, end), ("damaged", file name, offset), ("future",) or ("missing",)
Outcome = tuple[object, ...]


def opened(files: MemoryFiles, replay_from: int = 0, durable_to: int = 0) -> OpenedLog:
    return open_log(
        files, FOLDER, STORE_ID, replay_from=replay_from, durable_to=durable_to, segment_bytes=SEGMENT_BYTES
    )


def disk_of(folder: Folder) -> MemoryFiles:
    """A disk that durably holds the log `folder`."""
    files = MemoryFiles()
    files.mkdir(FOLDER)
    for name, content in folder.items():
        with files.open_file(f"{FOLDER}/{name}", "fresh") as file:
            file.write(0, content)
            file.sync()
    files.sync_folder(FOLDER)
    return files


def folder_of(files: MemoryFiles) -> Folder:
    return {name: files.read_file(f"{FOLDER}/{name}") for name in files.listdir(FOLDER)}


def frames_of(log: OpenedLog) -> Iterator[tuple[int, bytes]]:
    """(position, payload), as the twin gives them."""
    while (payload := log.reader.read(log.writer.end)) is not None:
        yield log.reader.position - wal_twin.FRAME_SIZE - len(payload), payload


def outcome_of(files: MemoryFiles, replay_from: int = 0, durable_to: int = 0) -> Outcome:
    try:
        log = opened(files, replay_from, durable_to)
    except CorruptionError as damage:
        if "the log is missing" in str(damage):
            return ("missing",)
        folder, name = damage.path.rsplit("/", 1)
        assert folder == FOLDER
        assert f"{damage.path}: damaged at byte offset {damage.offset}" in str(damage)
        return ("damaged", name, damage.offset)
    except FormatError:
        return ("future",)
    frames = list(frames_of(log))
    end = log.writer.end
    header_was_torn = log.writer.segments()[-1] == (log.dropped_at, end)
    return ("log", frames, log.dropped_at if header_was_torn else end)


def twin_outcome(folder: Folder, replay_from: int = 0, durable_to: int = 0) -> Outcome:
    try:
        log = wal_twin.read_log(folder, STORE_ID, replay_from, durable_to)
    except wal_twin.Damaged as damage:
        return ("damaged", damage.name, damage.offset)
    except wal_twin.FromTheFuture:
        return ("future",)
    except wal_twin.Missing:
        return ("missing",)
    return ("log", log.frames, log.end)


def check_opening(folder: Folder, replay_from: int = 0, durable_to: int = 0) -> Outcome:
    """Open it; check against the twin, that an error changes nothing, and that a log goes on well."""
    files = disk_of(folder)
    outcome = outcome_of(files, replay_from, durable_to)
    assert outcome == twin_outcome(folder, replay_from, durable_to)
    if outcome[0] != "log":
        assert folder_of(files) == folder
        return outcome
    frames = outcome[1]
    assert isinstance(frames, list)
    files.crash()
    log = opened(files, replay_from)
    assert log.dropped_bytes == 0, "what was cut off stays cut off"
    log.writer.extend([b"goes on"])
    log.writer.make_durable()
    files.crash()
    again = opened(files, replay_from)
    assert [payload for _, payload in frames_of(again)] == [*(payload for _, payload in frames), b"goes on"]
    return outcome


@dataclass
class Sample:
    folder: Folder
    frames: list[tuple[int, bytes]]
    proven: int  # durable, as a later frame shows


@cache
def sample_log() -> Sample:
    """Three segments, with small frames, an empty one, and runs of zeros in payloads; the last two writes end it."""
    source = random.Random(7)
    files = MemoryFiles()
    log = opened(files)
    batches = [[b"first", b""], [source.randbytes(100), bytes(40)], [source.randbytes(250)], [bytes(30), b"x" * 150]]
    batches += [[source.randbytes(20), source.randbytes(9)], [b"before the last", source.randbytes(30)]]
    for batch in batches:
        log.writer.extend(batch)
        log.writer.make_durable()
    proven = log.writer.durable
    log.writer.extend([b"last but one", source.randbytes(20), b"last"])
    log.writer.make_durable()
    sample = Sample(folder_of(files), list(frames_of(log)), proven)
    assert len(sample.folder) == 3
    assert proven > wal_twin.HEADER_SIZE + max(int(name[:16], 16) for name in sample.folder)
    return sample


def each_byte(folder: Folder) -> Iterator[tuple[str, int, int]]:
    """(file name, offset, position) of every byte of the log."""
    for name, content in sorted(folder.items()):
        for offset in range(len(content)):
            yield name, offset, int(name[:16], 16) + offset


def flipped(content: bytes, offset: int, pattern: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ pattern]) + content[offset + 1 :]


def is_prefix(frames: object, of: list[tuple[int, bytes]]) -> bool:
    return isinstance(frames, list) and of[: len(frames)] == frames


def test_the_sample_opens_whole() -> None:
    sample = sample_log()
    outcome = check_opening(sample.folder)
    assert outcome[1] == sample.frames
    assert len(sample.frames) == 14


@pytest.mark.parametrize("pattern", [0x01, 0x80, 0xFF, 0x55])
def test_every_byte_flipped(pattern: int) -> None:
    sample = sample_log()
    for name, offset, position in each_byte(sample.folder):
        folder = {**sample.folder, name: flipped(sample.folder[name], offset, pattern)}
        outcome = check_opening(folder)
        if outcome[0] == "log":
            assert position >= sample.proven, "damage to what had been synced must not pass"
            assert is_prefix(outcome[1], sample.frames)
        else:
            assert outcome[0] == "damaged"
            frame = max((at for at, _ in sample.frames if at <= position), default=0)
            assert outcome[1] == name
            damage_at = outcome[2]
            assert isinstance(damage_at, int)
            assert damage_at in {frame - int(name[:16], 16), 0}, "the frame or the header that holds the damage"


def test_after_a_clean_stop_every_byte_counts() -> None:
    sample = sample_log()
    end = sample.frames[-1][0] + wal_twin.FRAME_SIZE + len(sample.frames[-1][1])
    last = max(sample.folder)
    clean = {**sample.folder, last: sample.folder[last][: end - int(last[:16], 16)]}
    assert check_opening(clean, 0, end) == ("log", sample.frames, end)
    for name, offset, _ in each_byte(clean):
        assert check_opening({**clean, name: flipped(clean[name], offset, 0x10)}, 0, end)[:2] == ("damaged", name)
        assert check_opening({**clean, name: clean[name][:offset]}, 0, end)[:2] == ("damaged", name)


def test_the_log_cut_at_every_byte() -> None:
    sample = sample_log()
    for name, offset, position in each_byte(sample.folder):
        folder = {other: content for other, content in sample.folder.items() if other < name}
        folder[name] = sample.folder[name][:offset]
        outcome = check_opening(folder)
        whole = [(at, payload) for at, payload in sample.frames if at + 20 + len(payload) <= position]
        assert outcome[:2] == ("log", whole)


def test_a_segment_cut_off_before_another_is_damage() -> None:
    sample = sample_log()
    for name, offset, position in each_byte(sample.folder):
        if name != max(sample.folder):
            folder = {**sample.folder, name: sample.folder[name][:offset]}
            start = int(name[:16], 16)
            frame = max((at - start for at, _ in sample.frames if start < at <= position), default=0)
            assert check_opening(folder) == ("damaged", name, frame)
            assert check_opening(folder, position - offset + len(sample.folder[name])) == ("damaged", name, offset)


def test_reserved_space_is_no_tail() -> None:
    sample = sample_log()
    last = max(sample.folder)
    end = sample.frames[-1][0] + wal_twin.FRAME_SIZE + len(sample.frames[-1][1])
    for size in (0, 1, 19, 100, 512, 5000, 1_100_000):
        folder = {
            **sample.folder,
            last: sample.folder[last].rstrip(b"\0").ljust(end - int(last[:16], 16) + size, b"\0"),
        }
        files = disk_of(folder)
        log = opened(files)
        assert (log.writer.end, log.dropped_bytes) == (end, 0)
        assert list(frames_of(log)) == sample.frames
        log.writer.close()
        assert files.read_file(f"{FOLDER}/{last}") == folder[last][: end - int(last[:16], 16)]
    middle = sorted(sample.folder)[1]
    folder = {**sample.folder, middle: sample.folder[middle] + bytes(700)}
    assert check_opening(folder)[1] == sample.frames, "one that was full, but not cut to its length yet"
    folder = {**sample.folder, middle: sample.folder[middle] + bytes(700) + b"x"}
    assert check_opening(folder) == ("damaged", middle, len(sample.folder[middle]))


def killed_while_appending(payload: bytes, copied: int) -> tuple[Folder, int]:
    """A log whose last frame lacks its checksum and length, and all of its payload from `copied` on."""
    files = MemoryFiles()
    log = opened(files)
    log.writer.extend([b"safe", payload])
    frame = log.writer.end - wal_twin.FRAME_SIZE - len(payload)
    ((name, content),) = folder_of(files).items()
    stored = frame + wal_twin.FRAME_SIZE + copied
    return {name: content[:frame] + bytes(8) + content[frame + 8 : stored] + bytes(len(content) - stored)}, frame


@given(st.binary(min_size=1, max_size=300), st.integers(0, 300))
def test_a_process_killed_in_the_middle_of_a_frame(payload: bytes, copied: int) -> None:
    folder, frame = killed_while_appending(payload, min(copied, len(payload)))
    outcome = check_opening(folder)
    assert outcome[0] == "log"
    assert outcome[2] == frame
    assert [payload for _, payload in outcome[1]] == [b"safe"]  # type: ignore[attr-defined]


def unsealed_log() -> tuple[Folder, list[tuple[int, bytes]]]:
    """Four segments, of which nothing but the first frame was ever synced."""
    source = random.Random(11)
    files = MemoryFiles()
    log = opened(files)
    log.writer.extend([b"safe"])
    log.writer.make_durable()
    for _ in range(12):
        log.writer.extend([source.randbytes(100)])
    assert log.writer.durable == log.writer.segments()[0][0] + 64 + 24
    assert len(log.writer.segments()) == 4
    return folder_of(files), list(frames_of(log))


def test_what_was_never_synced_may_be_lost_in_any_order() -> None:
    folder, frames = unsealed_log()
    names = sorted(folder)
    assert check_opening(folder)[1] == frames
    for name in names[1:]:
        start = int(name[:16], 16)
        before = [frame for frame in frames if frame[0] < start]
        without = {other: content for other, content in folder.items() if other != name}
        outcome = check_opening(without)
        assert outcome[:2] == ("log", before), "its name was lost"
        outcome = check_opening({**folder, name: bytes(512)})
        assert outcome[:2] == ("log", before), "its content was lost"
        outcome = check_opening({**folder, name: b""})
        assert outcome[:2] == ("log", before), "its size was lost"
    for name in names:
        for size in range(100, len(folder[name]), 7):
            outcome = check_opening({**folder, name: folder[name][:size]})
            assert outcome[0] == "log"
            assert is_prefix(outcome[1], frames)
    damaged = {**folder, names[1]: flipped(folder[names[1]], 100, 4)}
    assert check_opening(damaged) == ("damaged", names[1], 64), "no crash leaves that before frames that are whole"


def test_one_frame_proves_the_segments_before_it() -> None:
    folder, _ = unsealed_log()
    files = disk_of(folder)
    log = opened(files)
    log.writer.extend([b"later"])
    folder = folder_of(files)
    for name in sorted(folder)[:-1]:
        assert check_opening({**folder, name: bytes(512)})[0] == "damaged"
        assert check_opening({other: content for other, content in folder.items() if other != name})[0] == "damaged"


def test_a_missing_segment_is_damage() -> None:
    sample = sample_log()
    first, second, last = sorted(sample.folder)
    without = {name: content for name, content in sample.folder.items() if name != second}
    assert check_opening(without) == ("damaged", first, len(sample.folder[first]))
    without = {name: content for name, content in sample.folder.items() if name != first}
    assert check_opening(without) == ("damaged", second, 0)
    assert check_opening(without, int(second[:16], 16))[0] == "log"
    assert check_opening({}, 100) == ("missing",)
    longer = {**sample.folder, second: sample.folder[second] + b"x"}
    assert check_opening(longer) == ("damaged", second, len(sample.folder[second]))
    assert last


def test_opening_from_every_frame() -> None:
    sample = sample_log()
    for number, (position, _) in enumerate(sample.frames):
        assert check_opening(sample.folder, position)[1] == sample.frames[number:]
    for name in sample.folder:
        start = int(name[:16], 16)
        assert check_opening(sample.folder, start)[1] == [frame for frame in sample.frames if frame[0] >= start]


def test_damage_before_the_replay_is_not_looked_at_but_does_not_pass_to_a_reader() -> None:
    sample = sample_log()
    first, second, _ = sorted(sample.folder)
    folder = {**sample.folder, first: flipped(sample.folder[first], 70, 1)}
    assert check_opening(folder, int(second[:16], 16))[0] == "log"
    files = disk_of(folder)
    opened(files, int(second[:16], 16))
    reader = WalReader(files, FOLDER, 0)
    for _ in range(2):
        with pytest.raises(CorruptionError) as caught:
            reader.read(10**9)
        assert (caught.value.path, caught.value.offset) == (f"{FOLDER}/{first}", 64)


def test_a_log_that_ends_before_the_replay_lost_data() -> None:
    sample = sample_log()
    last = max(sample.folder)
    end = int(last[:16], 16) + len(sample.folder[last])
    assert check_opening(sample.folder, end)[:2] == ("log", [])
    assert check_opening(sample.folder, end + 1) == ("damaged", last, len(sample.folder[last]))
    shorter = {**sample.folder, last: sample.folder[last][:-1]}
    assert check_opening(shorter, end) == ("damaged", last, len(sample.folder[last]) - 1)


def test_a_torn_last_header_is_made_anew_unless_the_replay_is_behind_it() -> None:
    sample = sample_log()
    last = max(sample.folder)
    start = int(last[:16], 16)
    for size in range(wal_twin.HEADER_SIZE):
        folder = {**sample.folder, last: sample.folder[last][:size]}
        assert check_opening(folder, start) == ("log", [], start)
        if size:
            folder[last] = bytes(size)
            assert check_opening(folder, start) == ("log", [], start)
    folder[last] = flipped(sample.folder[last], 3, 1)
    assert check_opening(folder, start + 64) == ("damaged", last, 0)


def with_header(content: bytes, change: Callable[[bytearray], None]) -> bytes:
    header = bytearray(content[:60])
    change(header)
    return bytes(header) + struct.pack("<I", checksum(header)) + content[64:]


def test_a_format_from_the_future_is_refused() -> None:
    sample = sample_log()
    for name in sample.folder:
        folder = {**sample.folder, name: with_header(sample.folder[name], lambda header: header.__setitem__(8, 2))}
        assert check_opening(folder) == ("future",)
    with pytest.raises(FormatError, match=r"0000\.log: format version 2 is unknown"):
        opened(disk_of({"0" * 16 + ".log": with_header(bytes(64), as_version_2)}))


def as_version_2(header: bytearray) -> None:
    header[:12] = b"EWRTWAL\n\x02\0\0\0"


def test_another_stores_segment_is_refused() -> None:
    sample = sample_log()
    for name in sample.folder:
        folder = {**sample.folder, name: with_header(sample.folder[name], lambda header: header.__setitem__(16, 1))}
        assert check_opening(folder) == ("damaged", name, 16)


def test_a_segment_under_another_name_is_refused() -> None:
    sample = sample_log()
    first = min(sample.folder)
    moved = {f"{0:015x}1.log": sample.folder[first]}
    assert check_opening(moved, 1)[:2] == ("log", []), "alone it can't be told from a torn header"
    files = disk_of({first: sample.folder[first], "readme": b"", "0.log": b"", first.upper() + ".LOG": b""})
    assert opened(files).writer.end == len(sample.folder[first]), "other files are not the log's"


def unsynced_pair(*, synced_between: bool) -> tuple[Folder, list[tuple[int, bytes]]]:
    """A large frame over several sectors, then a small one in a write of its own."""
    files = MemoryFiles()
    log = open_log(files, FOLDER, STORE_ID, replay_from=0)
    log.writer.extend([b"safe"])
    log.writer.make_durable()
    log.writer.extend([b"\xaa" * 2000])
    if synced_between:
        log.writer.make_durable()
    log.writer.extend([b"behind"])
    return folder_of(files), list(frames_of(log))


@pytest.mark.parametrize("sector", [0, 1, 2, 3])
def test_a_sector_that_was_never_written_is_a_torn_tail_unless_it_had_been_synced(sector: int) -> None:
    for synced in (False, True):
        folder, frames = unsynced_pair(synced_between=synced)
        (name,) = folder
        first = max(sector * 512, frames[1][0])
        content = folder[name][:first].ljust((sector + 1) * 512, b"\0") + folder[name][(sector + 1) * 512 :]
        outcome = check_opening({name: content})
        assert outcome == (("damaged", name, frames[1][0]) if synced else ("log", frames[:1], frames[1][0]))


def test_damage_that_is_no_lost_sector_is_no_torn_tail() -> None:
    folder, frames = unsynced_pair(synced_between=False)
    (name,) = folder
    content = folder[name][:600] + bytes(400) + folder[name][1000:]
    assert check_opening({name: content}) == ("damaged", name, frames[1][0])


def test_a_whole_frame_in_another_place_does_not_pass() -> None:
    files = MemoryFiles()
    log = opened(files)
    for payload in [b"one", b"two", b"end"]:
        log.writer.extend([payload])
        log.writer.make_durable()
    ((name, content),) = folder_of(files).items()
    size = wal_twin.FRAME_SIZE + 3
    exchanged = content[:64] + content[64 + size : 64 + 2 * size] + content[64 : 64 + size] + content[64 + 2 * size :]
    assert check_opening({name: exchanged}) == ("damaged", name, 64)


# Crashes.


@pytest.mark.parametrize("first_seed", range(0, 600, 100))
def test_crashes_lose_nothing_that_was_synced(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 100):
        run_with_crashes(seed)


@dataclass
class History:
    """What was done to a log, from the checkpoint on."""

    checkpoint: int = 0
    written: list[bytes] = field(default_factory=list)  # may be found after a crash, in this order
    durable: int = 0  # so many of them must be found


def run_with_crashes(seed: int) -> None:
    """Write, sync, cut and fail at random; crash; what is found must be a prefix that holds all that was synced."""
    source = random.Random(seed)
    files = MemoryFiles()
    history = History()
    for _ in range(6):
        folder = folder_of(files) if files.exists(FOLDER) else {}
        expected = twin_outcome(folder, history.checkpoint)
        assert expected[0] == "log", f"seed {seed}: {expected}"
        if seed % 3 == 0:
            files.fail("map", times=-1)
        log = opened(files, history.checkpoint)
        assert log.writer.mapped == (seed % 3 != 0)
        frames = list(frames_of(log))
        assert frames == expected[1], f"seed {seed}"
        found = [payload for _, payload in frames]
        assert found == history.written[: len(found)], f"seed {seed}"
        assert len(found) >= history.durable, f"seed {seed}"
        history.written = found
        history.durable = len(found)
        for _ in range(source.randrange(12)):
            if source.random() < 0.05:
                files.fail(source.choice(FAILING), partial=source.randrange(900))
            try:
                one_step(source, log, history)
            except OSError:
                break
        files.heal()
        files.crash(source.choice([None, "all", source, source]))


Failing = Literal["write", "sync", "open", "allocate", "rename", "sync_dir", "unlink"]
FAILING: list[Failing] = ["write", "sync", "open", "allocate", "rename", "sync_dir", "unlink"]


def one_step(source: random.Random, log: OpenedLog, history: History) -> None:
    choice = source.random()
    if choice < 0.05:
        log.writer.tend()
    elif choice < 0.6:
        payloads = [source.randbytes(source.choice([0, 5, 30, 200, 700])) for _ in range(source.randrange(1, 4))]
        history.written += payloads
        log.writer.extend(payloads)
    else:
        log.writer.make_durable()
        history.durable = len(history.written)
    if choice > 0.9:
        history.checkpoint = log.writer.durable
        history.written = []
        history.durable = 0
        log.writer.cut(history.checkpoint)


damages = st.one_of(
    st.tuples(st.just("overwrite"), st.integers(0, 2), st.integers(0, 700), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("zero"), st.integers(0, 2), st.integers(0, 700), st.binary(min_size=1, max_size=600)),
    st.tuples(st.just("cut"), st.integers(0, 2), st.integers(0, 700), st.just(b"")),
    st.tuples(st.just("append"), st.integers(0, 2), st.just(0), st.binary(max_size=100)),
    st.tuples(st.just("remove"), st.integers(0, 2), st.just(0), st.just(b"")),
    st.tuples(st.just("copy"), st.integers(0, 2), st.integers(0, 700), st.binary(min_size=1, max_size=200)),
)


@given(st.lists(damages, min_size=1, max_size=3), st.integers(0, 1300))
def test_any_damage_opens_as_the_twin_says(changes: list[tuple[str, int, int, bytes]], replay: int) -> None:
    sample = sample_log()
    folder = dict(sample.folder)
    for kind, index, offset, data in changes:
        name = sorted(sample.folder)[index]
        content = folder.get(name, b"")
        if kind == "overwrite":
            content = content[:offset] + data + content[offset + len(data) :]
        elif kind == "zero":
            content = content[:offset] + bytes(len(data)) + content[offset + len(data) :]
        elif kind == "cut":
            content = content[:offset]
        elif kind == "append":
            content += data
        elif kind == "copy":
            content = content[:offset] + content[offset : offset + len(data)] + content[offset:]
        folder[name] = content
        if kind == "remove":
            del folder[name]
    positions = [0, *(position for position, _ in sample.frames)]
    replay_from = max(position for position in positions if position <= replay)
    outcome = check_opening(folder, replay_from)
    if outcome[0] == "log":
        assert is_prefix(outcome[1], [frame for frame in sample.frames if frame[0] >= replay_from])
