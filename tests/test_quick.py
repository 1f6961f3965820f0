"""The quick way of plain registers makes the same bytes as the general way: change, state, digest, counts.

Asked by the same operations of two stores with the same identity and clock. One of them is made to take
the general way: a write that keeps the deadline (there is none), a delete by a deadline in the past.
"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite import access
from everwrite.batch import decode_batch
from everwrite.memory_files import MemoryFiles

NOW = 1_800_000_000_000
KEYS = st.sampled_from([b"", b"a", b"b", b"c" * 127, b"d" * 128, b"e" * 255, b"f" * 256])
VALUES = st.one_of(
    st.binary(max_size=10), st.sampled_from([b"7", b"x" * 127, b"x" * 128, b"x" * 4000, b"x" * 4001, b"x" * 20000])
)
STEPS = st.one_of(
    st.tuples(st.just("set"), KEYS, VALUES),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("increment"), KEYS),
    st.tuples(st.just("add"), KEYS),
    st.tuples(st.just("expire"), KEYS),
    st.tuples(st.just("clock"), st.integers(0, 2000)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("foreign"), KEYS, VALUES),
    st.tuples(st.just("group"), st.lists(st.tuples(KEYS, VALUES), max_size=5)),
)


def small(number):
    return everwrite.open(
        "/db", "os", files=MemoryFiles(), background=False, memtable_bytes=1 << 14, now_ms=NOW, store_id=number
    )


def everything(db):
    """All that a write leaves behind."""
    return (
        list(db.changes({})),
        [db.key_state(b"\x02" + key) for key, _ in access.keys(db, b"", 1000)],
        db.digest(),
        db.applied,
        {name: db.statistics()[name] for name in ("keys", "local_changes", "applied_changes", "conflicts_lww")},
    )


def take(db, other, quick, name, arguments):
    match name:
        case "set":
            key, value = arguments
            if quick:
                db[key] = value
            elif db.kind(key) != "none" and db.ttl(key) is not None:
                access.put(db, key, value)  # the general way by itself: the key has a deadline
            else:
                access.put(db, key, value, keep_ttl=True)
        case "delete":
            if quick:
                db.delete(arguments[0])
            else:
                access.expire_at(db, arguments[0], 1)
        case "increment":
            with contextlib.suppress(everwrite.NotAnIntegerError, everwrite.WrongTypeError):
                db.counter(arguments[0]).increment()
        case "add":
            if db.kind(arguments[0]) in ("none", "set"):
                db.set(arguments[0]).add(b"x")
        case "expire":
            db.expire(arguments[0], 1)
        case "flush":
            db.put_many((b"filler/%03d" % i, b"x" * 100) for i in range(120))
        case "foreign":
            other.set_time(db.now_ms())
            key, value = arguments
            for batch in db.changes(other.applied):
                other.apply(batch)
            access.put(other, key, value, keep_ttl=True)
            for batch in other.changes(db.applied):
                db.apply(batch)
        case "group":
            if quick:
                db.put_many(arguments[0])
            else:
                for key, value in arguments[0]:
                    take(db, other, False, "set", (key, value))


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_both_ways_make_the_same_bytes(steps):
    quick, general = small(1), small(1)
    others = small(2), small(2)
    now = NOW
    for name, *arguments in steps:
        if name == "clock":
            now += arguments[0]
            quick.set_time(now)
            general.set_time(now)
            continue
        take(quick, others[0], True, name, arguments)
        take(general, others[1], False, name, arguments)
    ours, theirs = everything(quick), everything(general)
    # put_many is one group in the log, so that its batches may be cut elsewhere.
    assert ours[1:] == theirs[1:]
    if not any(name in ("group", "flush") for name, *_ in steps):
        assert ours[0] == theirs[0]
    for db in (quick, general, *others):
        db.close()


def test_a_replica_joins_to_what_the_quick_way_wrote():
    ours, theirs = small(1), small(2)
    for i in range(300):
        ours[b"%d" % (i % 50)] = b"%d" % i
        ours.counter(b"n%d" % (i % 40)).increment(i - 150)
        if i % 3 == 0:
            ours.delete(b"%d" % (i % 20))
            ours.delete(b"n%d" % (i % 13))
    for batch in ours.changes({}):
        theirs.apply(batch)
    assert dict(theirs) == dict(ours)
    assert theirs.digest() == ours.digest()
    for key, _ in access.keys(ours, b"", 1000):
        assert theirs.key_state(b"\x02" + key) == ours.key_state(b"\x02" + key)


def test_a_counter_of_a_short_key_goes_as_one_of_a_long_key():
    """A key of 256 bytes always takes the general way: all but the key must be the same."""
    bodies = []
    for size in (255, 256):
        db = small(1)
        counter = db.counter(b"k" * size)
        totals = [counter.increment(n) for n in (5, -7, 0, 2**62, 2**62 - 1)]
        assert totals == [5, -2, -2, 2**62 - 2, 2**63 - 3]
        with pytest.raises(everwrite.OverflowError):
            counter.increment(3)
        assert counter.increment(2) == 2**63 - 1
        (batch,) = db.changes({})
        head, *tails = decode_batch(batch).body.split(b"k" * size)
        # Before a key stand the change's flags, dot, previous, and the key's length with its space byte.
        bodies.append(([head[-28:-3], *(tail[:9] + tail[-28:-3] for tail in tails[:-1]), tails[-1]], db.key_state))
        states = db.key_state(b"\x02" + b"k" * size).split(b"k" * size)[1]
        bodies[-1] = (bodies[-1][0], states)
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 4000, 4001, 16384, 70000])
def test_values_of_any_size(size):
    db = small(1)
    db[b"k"] = b"x" * size
    assert db[b"k"] == b"x" * size
    db[b"k"] = b"y" * size
    assert db.get_many([b"k", b"none", b"k"]) == [b"y" * size, None, b"y" * size]
    assert list(db.scan()) == [(b"k", b"y" * size)]
    replica = small(2)
    for batch in db.changes({}):
        replica.apply(batch)
    assert replica[b"k"] == b"y" * size
    assert db.pop(b"k") == b"y" * size
