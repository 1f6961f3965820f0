"""Batches: all or nothing, seen by readers, streams and crashes alike."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite import access
from everwrite.memory_files import MemoryFiles

NOW = 1_800_000_000_000


def small(files=None, number=1, **options):
    """A store on a disk in memory that flushes every few keys."""
    options = {"background": False, "memtable_bytes": 1 << 14, "now_ms": NOW, "store_id": number, **options}
    return everwrite.open("/db", "os", files=files or MemoryFiles(), **options)


def everything(db):
    """All that shows, and all that is counted: what a batch that failed must leave as it was."""
    shown = {key: db.key_state(b"\x02" + key) for key, _ in access.keys(db, b"", 10_000)}
    counted = {
        name: number
        for name, number in db.statistics().items()
        if name.startswith(("keys", "conflicts", "local", "applied", "log_appended"))
    }
    return shown, list(db.scan()), db.digest(), dict(db.applied), counted


@pytest.fixture
def db(tmp_path):
    with everwrite.open(tmp_path / "db", durability="os") as opened:
        yield opened


def test_nothing_shows_before_the_end_and_all_of_it_after(db):
    db[b"gone"] = b"x"
    db[b"old"] = b"x"
    with db.batch() as batch:
        assert batch.put(b"a", b"1") is None
        batch[b"b"] = b"2"
        batch[b"b"] = b"3"
        batch.put_many({b"c": b"4", b"d": b"5"})
        del batch[b"gone"]
        batch.delete(b"never there")
        batch.delete_many([b"d"])
        batch.put(b"soon", b"6", ttl=5)
        batch.expire(b"old", 5)
        batch.counter(b"n").increment(4)
        batch.counter(b"n").decrement()
        batch.set(b"s").add(b"x", b"y")
        batch.set(b"s").discard(b"x")
        batch.map(b"m")[b"f"] = b"v"
        batch.map(b"m").increment(b"g", 2)
        batch.map(b"m").set({b"h": b"w"})
        del batch.map(b"m")[b"h"]
        batch.multi(b"multi").set(b"one")
        batch.flag(b"flag").enable()
        batch.max(b"max").update(5)
        batch.min(b"min").update(5)
        batch.hyperloglog(b"hll").add(b"item")
        assert len(batch) == 23
        assert dict(db) == {b"gone": b"x", b"old": b"x"}
        assert db.key_count() == 2
    assert dict(db) == {b"a": b"1", b"b": b"3", b"c": b"4", b"soon": b"6", b"old": b"x", b"n": b"3"}
    assert db.ttl(b"soon") == pytest.approx(5, abs=4)
    assert db.ttl(b"old") == pytest.approx(5, abs=4)
    assert list(db.set(b"s")) == [b"y"]
    assert dict(db.map(b"m").items()) == {b"f": b"v", b"g": b"2"}
    assert [db.kind(name) for name in (b"multi", b"flag", b"max", b"min", b"hll")].count("none") == 0


def test_an_exception_discards_it(db):
    def fail():
        with db.batch() as batch:
            batch[b"a"] = b"1"
            raise LookupError
        return batch

    with pytest.raises(LookupError):
        fail()
    batch = db.batch()
    with batch:
        pass
    assert len(db) == 0
    with pytest.raises(ValueError, match="ended"):
        batch[b"a"] = b"1"
    with db.batch():
        pass
    assert len(db) == 0


def test_only_writes_are_recorded(db):
    with db.batch() as batch:
        for wrong in ("k", None, 1):
            with pytest.raises(TypeError, match="bytes"):
                batch[wrong] = b"v"
            with pytest.raises(TypeError, match="bytes"):
                batch[b"k"] = wrong
            with pytest.raises(TypeError, match="bytes"):
                batch.counter(wrong)
        with pytest.raises(AttributeError, match="add, discard, remove, clear"):
            batch.set(b"s").__contains__(b"x")
        with pytest.raises(TypeError, match="no items"):
            batch.set(b"s")[b"x"] = b""
        with pytest.raises(ValueError, match="more than 0"):
            batch.put(b"k", b"v", ttl=0)
        with pytest.raises(ValueError, match="more than 0"):
            batch.expire(b"k", -1)
    assert len(db) == 0


def doomed(db, fill):
    """Run a batch that `fill` records; what it raises at its end is what this raises."""
    with db.batch() as batch:
        fill(batch)


def spoil(batch, fault):
    match fault:
        case "wrong type":
            batch.counter(b"set").increment()
        case "not an integer":
            batch.counter(b"text").increment()
        case "large value":
            batch[b"k"] = b"v" * ((64 << 20) + 1)
        case "large key":
            batch.delete(b"k")
            batch[b"k" * 65537] = b"v"
        case "large update":
            for i in range(3):
                batch[b"large/%d" % i] = bytes(50 << 20)
        case "missing key":
            del batch[b"never there"]
        case "missing element":
            batch.set(b"set").remove(b"never there")
        case "text":
            batch.set(b"set").add("text")


FAULTS = {
    "wrong type": everwrite.WrongTypeError,
    "not an integer": everwrite.NotAnIntegerError,
    "large value": everwrite.TooLargeError,
    "large key": everwrite.TooLargeError,
    "large update": everwrite.TooLargeError,
    "missing key": KeyError,
    "missing element": KeyError,
    "text": TypeError,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_operation_that_fails_takes_back_those_before_it(fault):
    files = MemoryFiles()
    db = small(files)
    db.put_many({b"text": b"abc", b"over": b"1", b"deleted": b"2"})
    db.delete(b"deleted")
    db.set(b"set").add(b"x", b"y")
    db.counter(b"n").increment(3)
    db.put(b"soon", b"v", ttl=100)
    before = everything(db)

    def fill(batch):
        batch[b"new"] = b"1"
        batch[b"over"] = b"x" * 10_000
        batch[b"deleted"] = b"again"
        batch.delete(b"text")
        batch[b"text"] = b"abc"
        batch.set(b"set").add(b"z")
        batch.set(b"set").discard(b"x")
        batch.counter(b"n").increment()
        batch.persist(b"soon")
        batch.put(b"later", b"v", ttl=10)
        batch.multi(b"multi").set(b"one")
        batch.hyperloglog(b"hll").add(b"item")
        spoil(batch, fault)
        batch[b"never"] = b"reached"

    with pytest.raises(FAULTS[fault]):
        doomed(db, fill)
    assert everything(db) == before
    assert list(db.changes(before[3])) == []
    # It goes on as if nothing had been: what is written now, a replica and a restart see alike.
    db[b"over"] = b"2"
    db.counter(b"n").increment()
    replica = small(number=2)
    for batch in db.changes({}):
        replica.apply(batch)
    after = everything(db)
    assert replica.digest() == db.digest()
    assert dict(replica) == dict(db) == {b"text": b"abc", b"over": b"2", b"n": b"4", b"soon": b"v"}
    db.close()
    again = small(files)
    assert everything(again)[:3] == after[:3]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "delete", "count", "add", "discard", "field", "expire", "multi", "flag", "max"]),
        st.integers(0, 9),
        st.integers(0, 3),
    ),
    max_size=30,
)


def apply(target, operations):
    for name, number, value in operations:
        # A key for each type, so that nothing fails for its type.
        key = b"%s/%d" % (name.encode() if name not in ("delete", "expire", "discard") else b"set", number)
        text = b"%d" % value * 50
        match name:
            case "set":
                target[key] = text
            case "delete":
                target.delete(key)
            case "count":
                target.counter(key).increment(value)
            case "add":
                target.set(key).add(text)
            case "discard":
                target.set(b"add/%d" % number).discard(text)
            case "field":
                target.map(key)[text] = text
            case "expire":
                target.expire(key, value + 1)
            case "multi":
                target.multi(key).set(text)
            case "flag":
                target.flag(key).enable()
            case "max":
                target.max(key).update(value)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, OPERATIONS, OPERATIONS, st.booleans())
def test_a_batch_is_its_operations_and_a_failed_one_is_nothing(first, failed, second, flush):
    batched, single = small(), small()
    for db in (batched, single):
        apply(db, first)
        if flush:
            db.put_many((b"filler/%03d" % i, b"x" * 100) for i in range(150))
    before = everything(batched)

    def fill(batch):
        apply(batch, failed)
        del batch[b"never there"]

    with pytest.raises(KeyError):
        doomed(batched, fill)
    assert everything(batched) == before
    with batched.batch() as batch:
        apply(batch, second)
    apply(single, second)
    assert list(batched.scan()) == list(single.scan())
    assert [kind for _, kind in access.keys(batched, b"", 1000)] == [kind for _, kind in access.keys(single, b"", 1000)]
    assert batched.key_count() == single.key_count()
    replica = small(number=2)
    for changes in batched.changes({}):
        replica.apply(changes)
    assert replica.digest() == batched.digest()


def test_a_failed_batch_over_keys_in_table_files():
    db = small()
    for i in range(400):
        db[b"%03d" % i] = b"old %d" % i * 10
    assert db.statistics()["tables"] > 0
    db.set(b"set").add(b"x")
    before = everything(db)

    def fill(batch):
        for i in range(0, 400, 3):
            batch[b"%03d" % i] = b"new"
        for i in range(1, 400, 3):
            batch.delete(b"%03d" % i)
        batch.counter(b"set").increment()

    with pytest.raises(everwrite.WrongTypeError):
        doomed(db, fill)
    assert everything(db) == before
    while db.compact():
        pass
    assert everything(db)[:3] == before[:3]


def test_a_batch_is_one_frame_of_the_log_over_a_crash():
    files = MemoryFiles()
    db = everwrite.open("/db", "always", files=files, background=False, now_ms=NOW)
    before = db.statistics()
    with db.batch() as batch:
        for i in range(100):
            batch[b"%d" % i] = b"x" * 100
        batch.set(b"s").add(b"a", b"b")
    after = db.statistics()
    assert after["syncs"] == before["syncs"] + 1
    for seed in range(20):
        disk = files.copy()
        dying = everwrite.open("/db", "os", files=disk, background=False, now_ms=NOW)
        with dying.batch() as batch:
            for i in range(100):
                batch[b"%d" % i] = b"y" * 100
            batch.set(b"s").clear()
        disk.crash(random.Random(seed))
        with pytest.raises(everwrite.StorageError):
            dying.close()
        with everwrite.open("/db", "os", files=disk, background=False, now_ms=NOW) as again:
            values = set(again.get_many(b"%d" % i for i in range(100)))
            assert len(values) == 1
            assert (values == {b"x" * 100}) == (len(again.set(b"s")) == 2)


def test_readers_never_see_a_part(tmp_path):
    rounds = 300
    faults: list[BaseException] = []
    done = threading.Event()
    with everwrite.open(tmp_path / "db", durability="os", memtable_bytes=1 << 16) as db:
        names = [b"%02d" % i for i in range(40)]
        db.put_many((name, b"0") for name in names)

        def watch(look):
            try:
                while not done.is_set():
                    assert len(set(look())) == 1
            except BaseException as error:
                faults.append(error)

        looks = [lambda: db.get_many(names), lambda: [value for _, value in db.snapshot().items()]]
        threads = [threading.Thread(target=watch, args=(look,)) for look in looks]
        for thread in threads:
            thread.start()
        for number in range(rounds):
            try:
                with db.batch() as batch:
                    for name in names:
                        batch[name] = b"%d" % number
                    if number % 3 == 0:
                        batch.delete(b"00")
                        del batch[b"never there"]
            except KeyError:
                pass
        done.set()
        for thread in threads:
            thread.join()
    assert not faults


def test_a_stream_hands_out_a_batch_whole():
    db = small()
    stream = db.open_stream({})
    with db.batch() as batch:
        batch.put_many((b"%d" % i, b"v") for i in range(50))
    sent = stream.next_batch(max_changes=10)
    replica = small(number=2)
    replica.apply(sent)
    assert len(replica) == 50
    stream.close()
