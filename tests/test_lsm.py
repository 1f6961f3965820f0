"""The Lsm against a dictionary: freezes, flushes, compactions, failures, crashes and reopenings at any point."""

import bisect
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from everwrite import errors
from everwrite.files import PosixFiles
from everwrite.lsm import Lsm
from everwrite.lsm_cursor import LsmCursor
from everwrite.memory_files import MemoryFiles

keys = st.binary(min_size=1, max_size=3) | st.sampled_from([b"x" * 30 + bytes([i]) for i in range(20)])
values = st.binary(max_size=50) | st.builds(bytes, st.sampled_from([300, 5_000, 40_000]))
OPERATIONS = ("open", "write", "sync", "rename", "sync_dir")


class LsmMachine(RuleBasedStateMachine):
    maps = False

    def __init__(self) -> None:
        super().__init__()
        self.files = MemoryFiles()
        self.files.maps_for_reading = self.maps
        self.lsm = Lsm(self.files, "lsm", block_cache_bytes=100_000)
        self.model: dict[bytes, bytes] = {}
        # What the map held at each freeze; a checkpoint is the index into this.
        self.snapshots: list[dict[bytes, bytes]] = [{}]
        # Of each frozen table, oldest first, its checkpoint; None: it waits for the next one's.
        self.frozen: list[int | None] = []
        self.iterator: Iterator[tuple[bytes, bytes]] | None = None
        self.behind = b""
        self.started = False
        self.cursor: LsmCursor | None = None
        self.standing: bytes | None = None

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        self.lsm[key] = value
        self.model[key] = value

    @rule(keys=st.lists(keys, min_size=5, max_size=40), value=values)
    def put_many(self, keys: list[bytes], value: bytes) -> None:
        for key in keys:
            self.put(key, value + key)

    @rule(key=keys)
    def remove(self, key: bytes) -> None:
        del self.lsm[key]
        self.model.pop(key, None)

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert (key in self.lsm) == (key in self.model)
        if key in self.model:
            assert self.lsm[key] == self.model[key]

    @rule(key=keys)
    def scan(self, key: bytes) -> None:
        assert list(self.lsm.items(key)) == sorted(item for item in self.model.items() if item[0] >= key)

    @rule(key=keys, steps=st.lists(st.booleans(), max_size=12), last=st.booleans(), back=st.booleans())
    def walk_both_ways(self, key: bytes, steps: list[bool], last: bool, back: bool) -> None:
        cursor = LsmCursor(self.lsm)
        order = sorted(self.model)
        if last:
            at = len(order) - 1
            found = cursor.last()
        elif back:
            at = bisect.bisect_right(order, key) - 1
            found = cursor.seek_for_prev(key)
        else:
            at = bisect.bisect_left(order, key)
            found = cursor.seek(key)
        for forwards in steps:
            if not 0 <= at < len(order):
                break
            assert found == (order[at], self.model[order[at]])
            at += 1 if forwards else -1
            found = cursor.next() if forwards else cursor.prev()
        assert found == ((order[at], self.model[order[at]]) if 0 <= at < len(order) else None)

    @rule(key=keys, back=st.booleans())
    def open_cursor(self, key: bytes, back: bool) -> None:
        self.cursor = LsmCursor(self.lsm)
        found = self.cursor.seek_for_prev(key) if back else self.cursor.seek(key)
        self.standing = found[0] if found else None

    @precondition(lambda self: self.cursor is not None)
    @rule(forwards=st.booleans())
    def step_cursor(self, forwards: bool) -> None:
        # Between the steps there are writes, freezes, flushes and compactions.
        assert self.cursor is not None
        found = self.cursor.next() if forwards else self.cursor.prev()
        expected = None
        if self.standing is not None:
            if forwards:
                expected = min((key for key in self.model if key > self.standing), default=None)
            else:
                expected = max((key for key in self.model if key < self.standing), default=None)
        assert found == (None if expected is None else (expected, self.model[expected]))
        self.standing = expected

    @rule()
    def compact_all(self) -> None:
        self.lsm.compact_all()
        assert self.lsm.statistics()["tables"] <= 1

    @rule()
    def freeze(self) -> None:
        self.lsm.freeze(b"%d" % len(self.snapshots))
        self.frozen.append(len(self.snapshots))
        self.snapshots.append(dict(self.model))

    @rule()
    def set_aside(self) -> None:
        self.lsm.freeze(None)
        self.frozen.append(None)

    @rule()
    def flush(self) -> None:
        flushes = self.lsm.statistics()["flushes"]
        checkpoint = next((point for point in self.frozen if point is not None), None)
        assert self.lsm.flush_frozen() == (checkpoint is not None)
        if checkpoint is not None:
            del self.frozen[: self.frozen.index(checkpoint) + 1]
            assert int(self.lsm.checkpoint) == checkpoint
            assert self.lsm.statistics()["flushes"] == flushes + 1
        assert self.lsm.frozen_count() == len(self.frozen)
        assert self.lsm.set_aside_count() == next((i for i, p in enumerate(self.frozen[::-1]) if p), len(self.frozen))

    @rule()
    def compact(self) -> None:
        before = self.lsm.statistics()
        if self.lsm.compact():
            assert self.lsm.statistics()["tables"] < before["tables"]

    @rule(operation=st.sampled_from(OPERATIONS), skip=st.integers(0, 3), what=st.sampled_from(["flush", "compact"]))
    def fail(self, operation: str, skip: int, what: str) -> None:
        self.files.fail(operation, skip=skip)  # type: ignore[arg-type]
        before = (self.lsm.checkpoint, self.lsm.frozen_count())
        try:
            if what == "flush":
                self.lsm.flush_frozen()
            else:
                self.lsm.compact()
        except errors.StorageError:
            assert (self.lsm.checkpoint, self.lsm.frozen_count()) == before
        self.frozen = self.frozen[len(self.frozen) - self.lsm.frozen_count() :]
        self.files.heal()

    @rule(key=keys)
    def open_iterator(self, key: bytes) -> None:
        self.iterator = self.lsm.items(key)
        self.behind = key
        self.started = False

    @precondition(lambda self: self.iterator is not None)
    @rule()
    def step_iterator(self) -> None:
        assert self.iterator is not None
        ahead = [k for k in self.model if k > self.behind or (not self.started and k == self.behind)]
        found = next(self.iterator, None)
        if not ahead:
            assert found is None
            self.iterator = None
            return
        assert found == (min(ahead), self.model[min(ahead)])
        self.behind = min(ahead)
        self.started = True

    def reopen(self, at_least: int) -> None:
        self.iterator = None
        self.cursor = None
        self.frozen = []
        self.lsm = Lsm(self.files, "lsm", block_cache_bytes=100_000)
        held = int(self.lsm.checkpoint or b"0")
        assert held >= at_least
        del self.snapshots[held + 1 :]
        self.model = dict(self.snapshots[held])
        names = self.files.listdir("lsm")
        assert len(names) == 1 + self.lsm.statistics()["tables"], names

    @rule()
    def close(self) -> None:
        installed = int(self.lsm.checkpoint or b"0")
        self.lsm.close()
        with pytest.raises(errors.ClosedError):
            b"k" in self.lsm  # noqa: B015
        self.reopen(installed)

    @rule(seed=st.integers(0, 2**32) | st.sampled_from([None, "all"]))
    def crash(self, seed: int | None) -> None:
        installed = int(self.lsm.checkpoint or b"0")
        self.files.crash(random.Random(seed) if isinstance(seed, int) else seed)
        self.reopen(installed)

    @invariant()
    def same(self) -> None:
        assert list(self.lsm.items()) == sorted(self.model.items())


class MappedLsmMachine(LsmMachine):
    maps = True


TestLsm = LsmMachine.TestCase
TestLsm.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestMappedLsm = MappedLsmMachine.TestCase
TestMappedLsm.settings = TestLsm.settings


def fill(lsm: Lsm, rounds: int, *, keys: int, size: int, source: random.Random) -> dict[bytes, bytes]:
    """Overwrite `keys` keys at random; freeze, flush and compact after each round."""
    model = {}
    for number in range(rounds):
        for _ in range(keys):
            key = b"key:%06d" % source.randrange(keys)
            lsm[key] = model[key] = source.randbytes(size)
        lsm.freeze(b"%d" % number)
        while lsm.flush_frozen():
            pass
        while lsm.compact():
            pass
    return model


def test_neither_files_nor_disk_grow_with_the_history() -> None:
    files = MemoryFiles()
    lsm = Lsm(files, "lsm")
    live = 500 * (10 + 200)
    model = {}
    for _ in range(10):
        model.update(fill(lsm, 6, keys=500, size=200, source=random.Random(3)))
        about = lsm.statistics()
        assert about["tables"] <= 8
        assert about["table_bytes"] < 3 * live
        assert len(files.listdir("lsm")) == about["tables"] + 1
    assert list(lsm.items()) == sorted(model.items())


def test_remove_markers_go_with_the_oldest_table() -> None:
    lsm = Lsm(MemoryFiles(), "lsm")
    for i in range(1_000):
        lsm[b"%d" % i] = b"v"
    lsm.freeze(b"1")
    lsm.flush_frozen()
    for i in range(1_000):
        del lsm[b"%d" % i]
    lsm.freeze(b"2")
    lsm.flush_frozen()
    assert lsm.statistics()["table_entries"] == 2_000
    assert list(lsm.items()) == []
    while lsm.compact():
        pass
    assert lsm.statistics()["table_entries"] == 0
    assert lsm.statistics()["tables"] == 0


def test_wants_freeze_is_reached_by_writes() -> None:
    files = MemoryFiles()
    lsm = Lsm(files, "lsm", memtable_bytes=200_000)
    for i in range(10_000):
        lsm[b"%d" % i] = bytes(100)
        if lsm.statistics()["memtable_bytes"] > 200_000:
            break
    assert 500 < i < 2_000


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
def test_reads_and_writes_beside_background_flush_and_compaction(tmp_path: Path, mapped: bool) -> None:
    lsm = Lsm(PosixFiles(), tmp_path, block_cache_bytes=50_000, mapped_reads=mapped)
    stop = threading.Event()
    failures: list[BaseException] = []

    def maintain() -> None:
        try:
            while not stop.is_set():
                if not (lsm.flush_frozen() or lsm.compact()):
                    stop.wait(0.001)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=maintain) for _ in range(2)]
    for thread in threads:
        thread.start()
    source = random.Random(4)
    model: dict[bytes, bytes] = {}
    try:
        for number in range(60):
            for _ in range(300):
                key = b"key:%04d" % source.randrange(3_000)
                if source.random() < 0.2:
                    del lsm[key]
                    model.pop(key, None)
                else:
                    lsm[key] = model[key] = source.randbytes(
                        source.choice([10, 100, 30_000 if number % 7 == 0 else 20])
                    )
            walk = lsm.items()
            seen = [next(walk) for _ in range(min(5, len(model)))]
            lsm.freeze(b"%d" % number)
            assert seen + list(walk) == sorted(model.items())
            for _ in range(300):
                key = b"key:%04d" % source.randrange(4_000)
                assert (key in lsm) == (key in model)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    while lsm.flush_frozen() or lsm.compact():
        pass
    assert lsm.checkpoint == b"59"
    assert list(lsm.items()) == sorted(model.items())


def test_close_waits_and_is_idempotent() -> None:
    files = MemoryFiles()
    lsm = Lsm(files, "lsm")
    lsm[b"a"] = b"1"
    lsm.freeze(b"")
    lsm.flush_frozen()
    walk = lsm.items()
    assert next(walk) == (b"a", b"1")
    lsm.close()
    lsm.close()
    assert list(walk) == []
    for call in (lsm.flush_frozen, lsm.compact, lsm.items().__next__, lambda: lsm.freeze(b"")):
        with pytest.raises(errors.ClosedError):
            call()
