"""The store at its edges: closing and forking beside writers, and batches that nobody honest makes."""

from __future__ import annotations

import os
import random
import threading

import msgpack
import pytest
import zstandard

import everwrite
from everwrite.batch import CLAIM, STATES, decode_batch, encode_batch
from everwrite.memory_files import MemoryFiles

ORIGIN = 0x1234_5678_0001


@pytest.fixture
def db(tmp_path):
    with everwrite.open(tmp_path / "db") as opened:
        yield opened


@pytest.fixture
def pair(tmp_path):
    with everwrite.open(tmp_path / "a") as a, everwrite.open(tmp_path / "b") as b:
        yield a, b


def forged(batch: bytes, **fields: object) -> bytes:
    """The batch with other envelope fields."""
    kind, spans, count, body, resync, index = (
        fields.get(name, value)
        for name, value in zip(
            ("kind", "spans", "count", "body", "resync", "index"),
            (lambda e: (e.kind, e.spans, e.count, e.body, e.resync, e.index))(decode_batch(batch)),
            strict=True,
        )
    )
    packed = zstandard.ZstdCompressor(write_content_size=True).compress(body)
    return msgpack.packb([1, kind, [list(span) for span in spans], count, len(body), packed, resync, index])


# ---- batches ----


def test_a_claim_of_endless_batches_is_refused_at_once(db):
    with pytest.raises(everwrite.GapError) as refused:
        db.apply(encode_batch(CLAIM, [(ORIGIN, 0, 5)], 1 << 60, b"", resync=7))
    assert (refused.value.origin, refused.value.held, refused.value.required) == (ORIGIN, 0, 5)
    assert ORIGIN not in db.applied


def test_a_claim_of_what_is_held_changes_nothing(pair):
    a, b = pair
    a[b"k"] = b"1"
    for batch in a.changes({}):
        b.apply(batch)
    b.apply(encode_batch(CLAIM, [(a.origin, 0, a.applied[a.origin])], 3, b"", resync=7))
    assert b.statistics()["resyncs"] == 0
    # Had it been taken, the log would be no use to whoever has less.
    b.open_stream({}).close()


def test_two_resyncs_of_one_store_do_not_complete_each_other(pair):
    a, b = pair
    for i in range(30):
        a[b"%d" % i] = random.Random(i).randbytes(100_000)
    first = list(a.resync_batches({}))
    second = list(a.resync_batches({}))
    assert len(first) == len(second) > 3
    for batch in [first[0], *second[1:-1]]:
        b.apply(batch)
    with pytest.raises(everwrite.GapError):
        b.apply(second[-1])
    for batch in second:
        b.apply(batch)
    assert dict(b) == dict(a)


def test_a_batch_holds_what_its_spans_say(pair):
    a, b = pair
    a[b"k"] = b"1"
    a[b"l"] = b"2"
    (batch,) = a.changes({})
    top = a.applied[a.origin]
    body = decode_batch(batch).body
    for lie in (
        forged(batch, spans=[(a.origin, 0, top - 1)]),
        forged(batch, spans=[(a.origin, 0, top + 1)]),
        forged(batch, spans=[]),
        forged(batch, spans=[(a.origin, 0, top), (ORIGIN, 0, 9)]),
        forged(batch, body=b"", count=0),
        forged(batch, kind=STATES),
        forged(batch, body=body + body, count=4),
    ):
        with pytest.raises(everwrite.ProtocolError):
            b.apply(lie)
        assert dict(b) == {}
        assert dict(b.applied) == {}
    b.apply(batch)
    assert dict(b) == dict(a)


def test_states_carry_no_spans(pair):
    a, b = pair
    a[b"k"] = b"1"
    states, _ = a.resync_batches({})
    with pytest.raises(everwrite.ProtocolError):
        b.apply(forged(states, spans=[(ORIGIN, 0, 9)]))
    assert dict(b.applied) == {}


def test_changes_of_a_store_that_learned_by_resync(tmp_path):
    """What came as states was never in this store's log: it goes on as states."""
    with everwrite.open(tmp_path / "a") as a:
        for i in range(20):
            a[b"%d" % i] = b"a"
        resync = list(a.resync_batches({}))
    with everwrite.open(tmp_path / "b") as b:
        b[b"own"] = b"b"
        for batch in resync:
            b.apply(batch)
    # Opened again, the log seems to reach back to its beginning.
    with everwrite.open(tmp_path / "b") as b, everwrite.open(tmp_path / "c") as c:
        for batch in b.changes(c.applied):
            c.apply(batch)
        assert dict(c) == dict(b)
        assert c.applied[b.origin] == b.applied[b.origin]
        assert {**c.applied} == {**b.applied}


# ---- writes after states ----


def test_a_write_after_a_crash_beats_the_states_that_it_has_seen():
    files = MemoryFiles()
    ahead = everwrite.open("ahead", files=MemoryFiles(), background=False, now_ms=1_000_400)
    ahead[b"k"] = b"theirs"
    b = everwrite.open("b", files=files, background=False, now_ms=1_000_000)
    for batch in list(ahead.resync_batches({}))[:-1]:
        b.apply(batch)
    assert b[b"k"] == b"theirs"
    files.crash()
    b = everwrite.open("b", files=files, background=False, now_ms=1_000_001)
    assert b[b"k"] == b"theirs"
    b[b"k"] = b"ours"
    assert b[b"k"] == b"ours"


# ---- closing, forking, threads ----


@pytest.mark.parametrize("durability", ["os", "always"])
def test_close_beside_writers_loses_nothing_that_was_acknowledged(tmp_path, durability):
    for attempt in range(15):
        db = everwrite.open(tmp_path / "db", durability=durability)
        acknowledged: list[list[int]] = [[], [], []]
        started = threading.Barrier(len(acknowledged) + 1)
        surprises: list[BaseException] = []

        def work(number, value=b"%d" % attempt, db=db, started=started, acknowledged=acknowledged, surprises=surprises):
            started.wait()
            for i in range(100_000):
                try:
                    db[b"%d/%d" % (number, i)] = value
                except everwrite.ClosedError:
                    return
                except BaseException as error:
                    surprises.append(error)
                    return
                acknowledged[number].append(i)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(acknowledged))]
        for thread in threads:
            thread.start()
        started.wait()
        while not all(acknowledged):
            pass
        db.close()
        for thread in threads:
            thread.join()
        assert not surprises
        origin = db.origin
        with everwrite.open(tmp_path / "db") as again:
            assert again.origin == origin
            for number, written in enumerate(acknowledged):
                for i in written:
                    assert again[b"%d/%d" % (number, i)] == b"%d" % attempt


def test_writers_that_meet_the_end_of_the_clock_reserve(tmp_path):
    """A wall clock that steps forward (a laptop that slept) sends all of them to extend it at once."""
    with everwrite.open(tmp_path / "db", durability="os") as db:
        now = db.now_ms()
        barrier = threading.Barrier(4)

        def work(number):
            for step in range(1, 40):
                barrier.wait()
                db.set_time(now + step * 100_000)
                db[b"%d" % number] = b"%d" % step

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert db.failed_with is None
        assert dict(db) == {b"%d" % number: b"39" for number in range(4)}


def test_a_forked_child_has_a_closed_store_and_leaves_the_parents_alone(tmp_path):
    with everwrite.open(tmp_path / "db") as db:
        db[b"k"] = b"parent"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                try:
                    db[b"k"] = b"child"
                except everwrite.ClosedError:
                    code = 0
                db.close()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert db[b"k"] == b"parent"
        with pytest.raises(everwrite.LockedError):
            everwrite.open(tmp_path / "db")
        db[b"l"] = b"2"
        origin = db.origin
    with everwrite.open(tmp_path / "db") as db:
        assert db.origin == origin
        assert dict(db) == {b"k": b"parent", b"l": b"2"}


# ---- what users of a mapping expect ----


def test_items_and_values_pass_over_what_is_deleted_meanwhile(db):
    db.update({b"%03d" % i: b"v" for i in range(500)})
    seen = []
    for key, value in db.items():
        seen.append((key, value))
        # Behind the first chunk, which is read at once.
        db.pop(b"300", None)
    assert seen == [(b"%03d" % i, b"v") for i in range(500) if i != 300]
    db.clear()
    assert not db
    db.update({b"%d" % i: b"v" for i in (0, 1, 2, 4)})
    assert len(db.items()) == 4
    assert (b"4", b"v") in db.items()
    for _ in db.values():
        db.pop(b"2", None)
    assert list(db.values()) == [b"v"] * 3
    fields = db.map(b"m")
    fields.set({b"%d" % i: b"v" for i in range(3)})
    assert len(fields.items()) == 3
    assert (b"1", b"v") in fields.items()
    assert list(fields.items()) == list(fields.items()) == [(b"%d" % i, b"v") for i in range(3)]
    assert list(fields.values()) == [b"v"] * 3


@pytest.mark.parametrize("text", [b" 5", b"1_0", b"+5", b"007", b"-0", b"9" * 19])
def test_a_counter_reads_as_integers_what_can_be_incremented(db, text):
    db[b"c"] = text
    with pytest.raises(everwrite.NotAnIntegerError):
        db.counter(b"c").increment()
    with pytest.raises(everwrite.NotAnIntegerError):
        _ = db.counter(b"c").value
