"""Exceptions out of signal handlers, as Ctrl-C's: they leave the call they come in, and nothing half done."""

from __future__ import annotations

import signal
import threading
import weakref
from contextlib import contextmanager

import pytest

import everwrite
from everwrite.memory_files import MemoryFiles
from everwrite.waiting import Alarm, end_threads, pause

VALUE = b"v" * 3000


class Interrupted(BaseException):
    """What the handler raises: like KeyboardInterrupt, no Exception."""


@contextmanager
def interrupted_after(seconds: float):
    """Raise Interrupted in the main thread, once, so long after the beginning of the block."""

    def handler(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_writer_that_outruns_the_flush_can_go_on(tmp_path):
    with everwrite.open(tmp_path / "db", "os", memtable_bytes=1 << 17) as db:
        written: list[bytes] = []

        def write_on() -> None:
            while True:
                db[b"%08d" % len(written)] = VALUE
                written.append(VALUE)

        for _ in range(12):
            with pytest.raises(Interrupted), interrupted_after(0.03):
                write_on()
        db[b"then"] = b"works"
        assert db.failed_with is None
        # The one that was interrupted may be there.
        assert len(db) - 1 in (len(written), len(written) + 1)
    with everwrite.open(tmp_path / "db") as db:
        assert db[b"then"] == b"works"
        assert db.origin & 0xFFFF == 1


@pytest.fixture
def interrupted_join(monkeypatch):
    """The next wait for a thread's end is interrupted."""
    join = threading.Thread.join

    def once(thread, timeout=None):
        monkeypatch.setattr(threading.Thread, "join", join)
        raise Interrupted

    monkeypatch.setattr(threading.Thread, "join", once)


@pytest.mark.usefixtures("interrupted_join")
def test_threads_are_waited_for_to_their_end():
    worker = threading.Thread(target=pause, args=(100_000,))
    worker.start()
    interruption = end_threads([worker, threading.Thread(), threading.current_thread()])
    assert isinstance(interruption, Interrupted)
    assert not worker.is_alive()


@pytest.mark.usefixtures("interrupted_join")
def test_a_close_that_is_interrupted_while_it_waits_lets_go_of_the_folder(tmp_path):
    db = everwrite.open(tmp_path / "db", "os")
    db[b"key"] = b"value"
    with pytest.raises(Interrupted):
        db.close()
    with pytest.raises(everwrite.ClosedError):
        db.get(b"key")
    with everwrite.open(tmp_path / "db") as again:
        # Signed off as well: the same origin goes on.
        assert again[b"key"] == b"value"
        assert again.origin == db.origin


def test_an_interrupted_end_of_a_snapshot_leaves_the_lock_to_others(monkeypatch):
    db = everwrite.open("/data", "os", files=MemoryFiles(), background=False)
    db[b"key"] = b"value"
    snapshot = db.snapshot()
    seen = []

    def discard(self, item):
        raise Interrupted

    monkeypatch.setattr(weakref.WeakSet, "discard", discard)
    with pytest.raises(Interrupted):
        snapshot.close()
    monkeypatch.undo()
    reader = threading.Thread(target=lambda: seen.append(db[b"key"]), daemon=True)
    reader.start()
    reader.join(20)
    assert seen == [b"value"]
    db.close()


def test_an_alarm_wakes_who_waits_and_who_comes_next():
    alarm = Alarm()
    alarm.set()
    alarm.wait(3600)
    woken = threading.Event()

    def wait() -> None:
        alarm.wait(3600)
        woken.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    alarm.set()
    assert woken.wait(20)
    waiter.join()
