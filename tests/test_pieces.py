"""States too large for a frame of the log are logged in pieces, and joined whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import everwrite
from everwrite import Database, ReadOnlyError
from everwrite.batch import STATES, decode_batch, encode_batch
from everwrite.digest import rebuild
from everwrite.doctor import diagnose, salvage
from everwrite.memory_files import MemoryFiles
from everwrite.need import Need
from everwrite.parts import as_body, split_state
from everwrite.watched_files import WatchedFiles

NOW_MS = 1_700_000_000_000
FRAME_BYTES = 1 << 15
PIECE_BYTES = 5000
NAME = b"x" * 100
COUNT = 1000
READING = {"open", "close", "read", "size", "list"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames, pieces and parts that a state of a hundred kilobytes is too large for."""
    monkeypatch.setattr("everwrite.inbound.FRAME_STATES_BYTES", FRAME_BYTES)
    monkeypatch.setattr("everwrite.salvage.FRAME_STATES_BYTES", FRAME_BYTES)
    monkeypatch.setattr("everwrite.frames.PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr("everwrite.parts.PART_BYTES", 1 << 14)


def open_store(store_id: int, files: Any = None, **options: Any) -> Database:
    options = {"segment_bytes": 1 << 14, "durability": "os"} | options
    return everwrite.open(
        "/data", files=files or MemoryFiles(), background=False, store_id=store_id, now_ms=NOW_MS, **options
    )


def elements(first: int, count: int = COUNT) -> list[bytes]:
    return [NAME + b"%d" % number for number in range(first, first + count)]


def filled() -> tuple[Database, bytes]:
    """A store with a large set, and its state."""
    us = open_store(1)
    us.set(b"large").add(*elements(0))
    us.set(b"large").discard(NAME + b"3")
    state = us.key_state(b"\x02large")
    assert len(state) > 3 * FRAME_BYTES
    return us, state


def by_pull(us: Database) -> Callable[[Database], None]:
    """A change that needs the large state, with the state, which is pulled."""
    eu = open_store(2)
    for batch in us.changes({}):
        eu.apply(batch)
    eu.set(b"large").discard(NAME + b"7")
    stream = eu.open_stream({}, {eu.store_id})
    batch = stream.next_batch()
    assert batch is not None

    def apply(db: Database) -> None:
        need = db.apply_batch(batch)
        if need is None:
            return
        assert isinstance(need, Need)
        for part in split_state(eu.key_state(b"\x02large")):
            done = db.supply_state(need, part)
        assert done
        assert db.apply_batch(batch) is None
        db.commit()

    return apply


def by_states(us: Database) -> Callable[[Database], None]:
    """A resync's states, without its claim."""
    parts = split_state(us.key_state(b"\x02large"))

    def apply(db: Database) -> None:
        db.apply(encode_batch(STATES, [], len(parts), as_body(parts), resync=Random(len(db.applied)).getrandbits(60)))
        db.commit()

    return apply


WAYS = [by_pull, by_states]


def shown(db: Database) -> set[bytes]:
    return set(db.set(b"large"))


@pytest.mark.parametrize("way", WAYS)
def test_it_is_there_after_a_crash(way: Callable[[Database], Callable[[Database], None]]) -> None:
    us, _ = filled()
    files = MemoryFiles()
    ap = open_store(3, files)
    ap.set(b"large").add(*elements(COUNT, 10))
    before = ap.statistics()["log_appended_bytes"]
    way(us)(ap)
    assert ap.statistics()["log_appended_bytes"] - before > 3 * FRAME_BYTES
    expected = (set(elements(0)) | set(elements(COUNT, 10))) - {NAME + b"3"}
    expected -= {NAME + b"7"} if way is by_pull else set()
    assert shown(ap) == expected
    digest = ap.digest()
    files.crash("all")
    ap = open_store(3, files)
    assert shown(ap) == expected
    assert ap.digest() == digest
    assert ap.digest_leaves() == rebuild(ap)
    assert ap.verify().ok


def images_of(way: Callable[[Database], Callable[[Database], None]]) -> Iterator[tuple[MemoryFiles, bool]]:
    """The disk before each call that changes it while a large state is joined, and after; and whether it was."""
    us, _ = filled()
    apply = way(us)
    disk = MemoryFiles()
    images: list[MemoryFiles] = []

    def watch(operation: str, path: bytes, size: int) -> None:
        if operation not in READING:
            images.append(disk.copy())

    ap = open_store(3, WatchedFiles(disk, watch), durability="always")
    ap[b"other"] = b"here"
    ap.set(b"large").add(*elements(COUNT, 10))
    images.clear()
    apply(ap)
    assert len(images) > 50
    yield from ((image, False) for image in images)
    yield disk, True


@pytest.mark.parametrize("way", WAYS)
def test_power_lost_at_any_call_leaves_all_of_it_or_nothing(
    way: Callable[[Database], Callable[[Database], None]],
) -> None:
    mine = set(elements(COUNT, 10))
    theirs = set(elements(0)) - {NAME + b"3"} - ({NAME + b"7"} if way is by_pull else set())
    us, _ = filled()
    apply = way(us)
    came_back = []
    for number, (image, done) in enumerate(images_of(way)):
        for outcome in (None, "all", Random(f"{number} a"), Random(f"{number} b")):
            disk = image.copy()
            disk.crash(outcome)  # type: ignore[arg-type]
            ap = open_store(3, disk, durability="always")
            assert ap[b"other"] == b"here"
            has = shown(ap)
            assert has in ((mine | theirs,) if done else (mine, mine | theirs))
            came_back.append(has == mine)
            if number % 7 == 0 or done:
                assert ap.digest_leaves() == rebuild(ap)
                # What the crash left of the pieces is in nobody's way.
                apply(ap)
                disk.crash()
                ap = open_store(3, disk, durability="always")
                assert shown(ap) == mine | theirs
                assert ap.digest_leaves() == rebuild(ap)
                assert ap.verify().ok
    assert True in came_back
    assert False in came_back


def test_pieces_that_a_full_disk_left_alone_are_nobodys() -> None:
    us, _ = filled()
    apply = by_states(us)
    disk = MemoryFiles()
    room = 10

    def watch(operation: str, path: bytes, size: int) -> int | None:
        nonlocal room
        room -= operation in ("create", "allocate")
        return errno.ENOSPC if operation in ("create", "allocate", "write") and room < 0 else None

    ap = open_store(3, WatchedFiles(disk, watch))
    room = 8
    end = ap.statistics()["log_end"]
    with pytest.raises(ReadOnlyError):
        apply(ap)
    assert shown(ap) == set()
    assert ap.statistics()["log_end"] > end + PIECE_BYTES
    room = 1 << 30
    ap.set_time(NOW_MS + 2000)
    ap.maintain()
    ap[b"between"] = b"v"
    apply(ap)
    assert shown(ap) == set(elements(0)) - {NAME + b"3"}
    disk.crash("all")
    ap = open_store(3, disk)
    assert ap[b"between"] == b"v"
    assert shown(ap) == set(elements(0)) - {NAME + b"3"}
    assert ap.verify().ok


def test_a_stream_hands_on_the_changes_and_sends_the_state_ahead_in_parts() -> None:
    us, _ = filled()
    ap = open_store(3)
    by_pull(us)(ap)
    ap.set(b"large").discard(NAME + b"9")
    sa = open_store(4)
    stream = ap.open_stream({})
    while (batch := stream.next_batch(max_bytes=1)) is not None:
        assert len(decode_batch(batch).body) < FRAME_BYTES
        sa.apply(batch)
    assert shown(sa) == shown(ap)
    assert sa.applied == ap.applied
    assert sa.digest() == ap.digest()


def test_sync_carries_it() -> None:
    us, _ = filled()
    files = MemoryFiles()
    ap = open_store(3, files)
    us.compact()
    us[b"k"] = b"v"
    us.compact()
    everwrite.sync(us, ap)
    assert shown(ap) == shown(us)
    files.crash("all")
    ap = open_store(3, files)
    assert ap.digest() == us.digest()
    assert ap.digest_leaves() == rebuild(ap)


def test_a_checkpoint_lies_before_or_behind_a_join() -> None:
    """Whatever the size of the memory table, and with a log that is cut as early as possible."""
    us, _ = filled()
    apply = by_states(us)
    for memtable_bytes in (1, 1 << 14, 1 << 20):
        files = MemoryFiles()
        ap = open_store(3, files, memtable_bytes=memtable_bytes, log_keep_bytes=0)
        ap[b"k"] = b"v"
        apply(ap)
        ap[b"l"] = b"v"
        ap.maintain()
        digest = ap.digest()
        files.crash("all")
        ap = open_store(3, files, memtable_bytes=memtable_bytes, log_keep_bytes=0)
        assert ap.digest() == digest
        assert ap.digest_leaves() == rebuild(ap)
        # Nor does a stream begin between pieces.
        sa = open_store(4)
        for batch in ap.changes({}):
            sa.apply(batch)
        assert sa[b"l"] == b"v"


def test_it_is_salvaged(tmp_path: Path) -> None:
    us, _ = filled()
    with everwrite.open(tmp_path / "db", "os", background=False, segment_bytes=1 << 14) as ap:
        by_pull(us)(ap)
        expected = shown(ap)
    assert diagnose(tmp_path / "db").ok
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert report.ok
    assert saved.complete
    with everwrite.open(tmp_path / "new") as db:
        assert shown(db) == expected
    # Without one of the pieces there is nothing to join, and the doctor says so.
    segment = sorted((tmp_path / "db" / "wal").glob("*.log"))[2]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    report, saved = salvage(tmp_path / "db", tmp_path / "newer")
    assert not report.ok
    assert not saved.complete
