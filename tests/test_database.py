"""The mapping of an open store: against a dict, under threads, over fork and close, with deadlines and types."""

from __future__ import annotations

import errno
import os
import pickle
import random
import threading
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import everwrite
from everwrite.memory_files import MemoryFiles

NOW = 1_800_000_000_000
# Few and short, so that operations meet; some longer than what the quick way takes.
KEYS = st.sampled_from([b"", b"a", b"ab", b"abc", b"b", b"\xff", b"\xff\xff", b"a\xff", b"a" * 300, b"b" * 300])
VALUES = st.one_of(st.binary(max_size=20), st.just(b"x" * 5000))


@pytest.fixture
def db(tmp_path):
    with everwrite.open(tmp_path / "db", durability="os") as opened:
        yield opened


def small(files=None, **options):
    """A store on a disk in memory that flushes every few keys."""
    return everwrite.open(
        "/db", "os", files=files or MemoryFiles(), background=False, memtable_bytes=1 << 14, now_ms=NOW, **options
    )


# ---- as a dict ----


@pytest.mark.parametrize("wrong", ["text", 1, None, bytearray(b"k"), memoryview(b"k")])
def test_only_bytes_are_keys_and_values(db, wrong):
    db[b"k"] = b"v"
    calls = [
        lambda: db[wrong],
        lambda: db.get(wrong),
        lambda: wrong in db,
        lambda: db.__setitem__(wrong, b"v"),
        lambda: db.__setitem__(b"k", wrong),
        lambda: db.__delitem__(wrong),
        lambda: db.put(wrong, b"v"),
        lambda: db.put(b"k", wrong),
        lambda: db.delete(wrong),
        lambda: db.pop(wrong),
        lambda: db.setdefault(wrong, b"v"),
        lambda: db.setdefault(b"k", wrong),
        lambda: db.expire(wrong, 1),
        lambda: db.persist(wrong),
        lambda: db.ttl(wrong),
        lambda: db.get_many([b"k", wrong]),
        lambda: db.put_many([(b"k", wrong)]),
        lambda: db.put_many({wrong: b"v"}),
        lambda: db.delete_many([b"k", wrong]),
        lambda: db.scan(wrong) if wrong is not None else db[wrong],
        lambda: db.scan(start=wrong) if wrong is not None else db[wrong],
        lambda: db.scan(stop=wrong) if wrong is not None else db[wrong],
        lambda: db.counter(wrong),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"encode text first" if wrong == "text" else r"bytes|hashable"):
            call()
    assert dict(db) == {b"k": b"v"}


OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["set", "put", "setdefault"]), KEYS, VALUES),
    st.tuples(st.sampled_from(["get", "contains", "pop", "delete", "del"]), KEYS),
    st.tuples(st.sampled_from(["get_many", "delete_many"]), st.lists(KEYS, max_size=12)),
    st.tuples(st.sampled_from(["put_many", "update"]), st.lists(st.tuples(KEYS, VALUES), max_size=12)),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("fill"), st.integers(0, 200)),
    st.tuples(st.just("clear")),
    st.tuples(
        st.just("scan"),
        st.fixed_dictionaries(
            {},
            optional={
                "prefix": KEYS,
                "start": KEYS,
                "stop": KEYS,
                "reverse": st.booleans(),
                "limit": st.integers(0, 5),
                "kind": st.sampled_from(["keys", "values"]),
            },
        ),
    ),
)


def scanned(held, options):
    """What a scan with these options yields of a dict."""
    low = max(options.get("prefix", b""), options.get("start", b""))
    pairs = [
        (key, value)
        for key, value in sorted(held.items(), reverse=options.get("reverse", False))
        if key.startswith(options.get("prefix", b""))
        and key >= low
        and ("stop" not in options or key < options["stop"])
    ]
    pairs = pairs[: options.get("limit")]
    return [{"keys": k, "values": v}.get(options.get("kind"), (k, v)) for k, v in pairs]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, max_size=40))
def test_it_does_what_a_dict_does(operations):
    files = MemoryFiles()
    db = small(files)
    held: dict[bytes, bytes] = {}
    for name, *arguments in operations:
        match name:
            case "set":
                db[arguments[0]] = held[arguments[0]] = arguments[1]
            case "put":
                db.put(*arguments)
                held[arguments[0]] = arguments[1]
            case "setdefault":
                assert db.setdefault(*arguments) == held.setdefault(*arguments)
            case "get":
                assert db.get(arguments[0]) == held.get(arguments[0])
                assert db.get(arguments[0], 7) == held.get(arguments[0], 7)
            case "contains":
                assert (arguments[0] in db) == (arguments[0] in held)
            case "pop":
                assert db.pop(arguments[0], None) == held.pop(arguments[0], None)
            case "delete":
                assert db.delete(arguments[0]) == (held.pop(arguments[0], None) is not None)
            case "del":
                if arguments[0] in held:
                    del db[arguments[0]], held[arguments[0]]
                else:
                    for call in (db.__delitem__, db.__getitem__, db.pop, db.ttl):
                        with pytest.raises(KeyError):
                            call(arguments[0])
            case "get_many":
                assert db.get_many(arguments[0]) == [held.get(key) for key in arguments[0]]
            case "delete_many":
                gone = {key for key in arguments[0] if key in held}
                assert db.delete_many(iter(arguments[0])) == len(gone)
                for key in gone:
                    del held[key]
            case "put_many" | "update":
                (db.put_many if name == "put_many" else db.update)(arguments[0])
                held.update(arguments[0])
            case "fill":
                more = {b"fill/%03d" % i: b"%d" % i * 20 for i in range(arguments[0])}
                db.put_many(more)
                held.update(more)
            case "clear":
                db.clear()
                held.clear()
            case "reopen":
                db.close()
                db = small(files)
            case "scan":
                options = dict(arguments[0])
                want = scanned(held, options)
                kind = options.pop("kind", None)
                assert list(db.scan(**options, keys=kind != "values", values=kind != "keys")) == want
    assert list(db) == list(db.keys()) == sorted(held)
    assert list(db.items()) == sorted(held.items())
    assert list(db.values()) == [value for _, value in sorted(held.items())]
    assert len(db) == len(held) == db.key_count()
    assert bool(db) == bool(held)
    db.close()


def test_scans_see_counters_and_pass_over_other_types_and_expired_keys(db):
    db.set_time(NOW)
    expected = {}
    for i in range(2000):
        key = b"k%04d" % i
        match i % 5:
            case 0:
                db[key] = expected[key] = b"%d" % i
            case 1:
                db.set(key).add(b"x")
            case 2:
                db.counter(key).increment(i)
                expected[key] = b"%d" % i
            case 3:
                db.put(key, b"soon gone", ttl=1)
            case 4:
                db.map(key)[b"f"] = b"v"
                db.delete(key)
    db.set_time(NOW + 1000)
    assert dict(db.scan()) == expected
    assert list(db.scan(b"k1", reverse=True)) == sorted(
        ((key, value) for key, value in expected.items() if key.startswith(b"k1")), reverse=True
    )
    assert len(db) == len(expected)
    assert b"k0001" not in db
    with pytest.raises(everwrite.WrongTypeError):
        db[b"k0001"]
    with pytest.raises(everwrite.WrongTypeError):
        db.get_many([b"k0000", b"k0001"])
    with pytest.raises(everwrite.WrongTypeError):
        db.pop(b"k0001")
    with pytest.raises(everwrite.WrongTypeError):
        db.setdefault(b"k0001", b"")
    assert list(db.set(b"k0001")) == [b"x"]


def test_a_scan_goes_on_over_writes_and_deletes_meanwhile(db):
    keys = [b"%05d" % i for i in range(5000)]
    db.put_many((key, key) for key in keys)
    seen = []
    for number, (key, value) in enumerate(db.scan()):
        assert key == value
        seen.append(key)
        if number % 7 == 0:
            # Far behind and far ahead of it.
            db[b"%05d-new" % (number // 2)] = b"%05d-new" % (number // 2)
            db.delete(b"%05d" % (4999 - number // 7))
    deleted = {b"%05d" % (4999 - number // 7) for number in range(0, len(seen), 7)}
    assert {key for key in seen if b"-" not in key} >= set(keys) - deleted
    assert seen == sorted(seen)
    assert len(set(seen)) == len(seen)


def test_pairs_that_are_kept_stay_what_they_were(db):
    db.put_many((b"%03d" % i, b"v%03d" % i) for i in range(600))
    kept = list(db.scan())
    assert kept == [(b"%03d" % i, b"v%03d" % i) for i in range(600)]
    one_in_three = [pair for number, pair in enumerate(db.scan()) if number % 3 == 0]
    assert one_in_three == kept[::3]
    assert dict(db.items()) == dict(kept)


def test_bounds_of_scans(db):
    db.put_many({b"a": b"", b"b": b"", b"c": b""})
    with pytest.raises(ValueError, match="limit"):
        db.scan(limit=-1)
    with pytest.raises(ValueError, match="nothing to yield"):
        db.scan(keys=False, values=False)
    assert list(db.scan(start=b"b", stop=b"b")) == []
    assert list(db.scan(b"a", stop=b"\x00")) == []
    assert [key for key, _ in db.scan(start=b"b")] == [b"b", b"c"]
    assert list(db.scan(stop=b"c", reverse=True, values=False)) == [b"b", b"a"]
    scan = db.scan()
    assert iter(scan) is scan
    with pytest.raises(TypeError):
        pickle.dumps(scan)


def test_put_many_keeps_what_came_before_a_fault(db):
    def pairs():
        yield b"a", b"1"
        yield b"b", b"2"
        raise LookupError

    with pytest.raises(LookupError):
        db.put_many(pairs())
    assert dict(db) == {b"a": b"1", b"b": b"2"}
    with pytest.raises(everwrite.TooLargeError):
        db.put_many([(b"c", b"3"), (b"k" * 65537, b""), (b"d", b"")])
    assert dict(db) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    with pytest.raises(TypeError):
        db.update(name=b"x")


def test_a_scan_that_threads_share_is_refused_or_right(db):
    keys = [b"%05d" % i for i in range(20_000)]
    db.put_many((key, key) for key in keys)
    scan = db.scan()
    seen: list[list[tuple[bytes, bytes]]] = [[] for _ in range(4)]
    faults: list[BaseException] = []

    def work(mine):
        while True:
            try:
                mine.append(next(scan))
            except StopIteration:
                return
            except ValueError as refused:
                assert "another thread" in str(refused)
            except BaseException as error:
                faults.append(error)
                return

    threads = [threading.Thread(target=work, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert sorted(pair for mine in seen for pair in mine) == [(key, key) for key in keys]


# ---- deadlines ----


def test_deadlines(db):
    db.set_time(NOW)
    db[b"k"] = b"v"
    assert db.ttl(b"k") is None
    assert db.expire(b"k", 2.5)
    assert db.ttl(b"k") == 2.5
    db.set_time(NOW + 2000)
    assert db.ttl(b"k") == 0.5
    assert db.persist(b"k")
    assert not db.persist(b"k")
    assert db.ttl(b"k") is None
    db.put(b"k", b"w", ttl=1)
    db[b"k"] = b"x"
    assert db.ttl(b"k") is None
    db.set(b"s").add(b"e")
    assert db.expire(b"s", 1)
    db.set_time(NOW + 3000)
    assert b"e" not in db.set(b"s")
    assert not db.expire(b"s", 1)
    assert not db.expire(b"none", 1)
    assert not db.persist(b"none")
    with pytest.raises(KeyError):
        db.ttl(b"s")
    for wrong in (0, -1, float("nan"), float("inf"), 1e13):
        with pytest.raises(ValueError, match="more than 0"):
            db.expire(b"k", wrong)
        with pytest.raises(ValueError, match="more than 0"):
            db.put(b"k", b"v", ttl=wrong)
    with pytest.raises(TypeError):
        db.expire(b"k", "1")
    assert db[b"k"] == b"x"


# ---- threads, processes, ends ----


@pytest.mark.parametrize("durability", ["os", "always"])
def test_threads_share_it(tmp_path, durability):
    rounds = 400 if durability == "os" else 20
    faults: list[BaseException] = []
    with everwrite.open(tmp_path / "db", durability, memtable_bytes=1 << 16) as db:

        def work(number):
            mine = {}
            rng = random.Random(number)
            try:
                for i in range(rounds):
                    key = b"%d/%d" % (number, rng.randrange(50))
                    match rng.randrange(6):
                        case 0 | 1:
                            db[key] = mine[key] = b"%d" % i
                        case 2:
                            assert db.pop(key, None) == mine.pop(key, None)
                        case 3:
                            names = [b"%d/%d" % (number, j) for j in range(50)]
                            assert db.get_many(names) == [mine.get(name) for name in names]
                        case 4:
                            assert dict(db.scan(b"%d/" % number)) == mine
                        case 5:
                            more = {b"%d/%d" % (number, j): b"many %d" % i for j in range(0, 50, 7)}
                            db.put_many(more)
                            mine.update(more)
                    db.counter(b"all").increment()
                    with db.batch() as batch:
                        batch[b"pair/1"] = batch[b"pair/2"] = b"%d %d" % (number, i)
                    one, two = (value for _, value in db.scan(b"pair/"))
                    assert one == two
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert db[b"all"] == b"%d" % (8 * rounds)


def test_a_forked_child_is_refused_and_the_parent_goes_on(db):
    db.put_many((b"%04d" % i, b"v") for i in range(2000))
    scan = db.scan()
    next(scan)
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (
            lambda: db[b"k"],
            lambda: db.__setitem__(b"k", b"v"),
            lambda: db.get_many([b"k"]),
            lambda: db.put_many([(b"k", b"v")]),
            lambda: db.delete(b"0001"),
            lambda: list(db.scan()),
            lambda: list(scan),
        ):
            try:
                call()
            except everwrite.ClosedError:
                refused += 1
        del scan
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(list(scan)) == 1999
    db[b"k"] = b"v"
    assert db[b"k"] == b"v"


def test_a_closed_store_refuses_everything(tmp_path):
    db = everwrite.open(tmp_path / "db", durability="os")
    db.put_many((b"%04d" % i, b"v") for i in range(2000))
    scan = db.scan()
    assert len(list(islice(scan, 10))) == 10
    db.close()
    with pytest.raises(everwrite.ClosedError):
        list(scan)
    batch = db.batch()
    for call in (
        lambda: db[b"0001"],
        lambda: db.get(b"0001"),
        lambda: b"0001" in db,
        lambda: db.__setitem__(b"k", b"v"),
        lambda: db.__delitem__(b"0001"),
        lambda: db.put(b"k", b"v", ttl=1),
        lambda: db.delete(b"0001"),
        lambda: db.pop(b"0001"),
        lambda: db.setdefault(b"0001", b""),
        lambda: db.get_many([b"0001"]),
        lambda: db.put_many([(b"k", b"v")]),
        lambda: db.delete_many([b"0001"]),
        lambda: db.expire(b"0001", 1),
        lambda: db.persist(b"0001"),
        lambda: db.ttl(b"0001"),
        lambda: next(db.scan()),
        lambda: len(db),
        lambda: batch.__setitem__(b"k", b"v") or batch.__exit__(None, None, None),
    ):
        with pytest.raises(everwrite.ClosedError):
            call()
    with everwrite.open(tmp_path / "db") as again:
        assert len(again) == 2000


def test_after_a_failed_write_no_other_is_accepted(tmp_path):
    files = MemoryFiles()
    db = everwrite.open("/db", "os", files=files, background=False)
    db[b"k"] = b"v"
    files.fail("allocate", errno.EIO)
    with pytest.raises(everwrite.StorageError):
        db.put_many((b"%d" % i, b"v" * 1000) for i in range(1000))
    with pytest.raises(everwrite.StorageError, match="no write is accepted any more"):
        db[b"k"] = b"w"
    assert db[b"k"] == b"v"
    db.close()


def test_compacting_leaves_next_to_no_log(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", durability="os") as db:
        for number in range(2000):
            db[b"%d" % (number % 100)] = b"v" * 1000
        assert db.statistics()["log_bytes"] > 2_000_000
        db.compact()
        assert db.statistics()["log_bytes"] < 1000
        assert sum(file.stat().st_blocks * 512 for file in (tmp_path / "db").rglob("*")) < 400_000
        db[b"after"] = b"it"
    with everwrite.open(tmp_path / "db") as db:
        assert len(db) == 101
        assert db[b"after"] == b"it"
        db.compact(keep_log=True)
        db[b"more"] = b"x"
