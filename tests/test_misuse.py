"""What careless and hostile callers do: each gets an answer that says what is wrong, and nothing is changed by it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import everwrite
from everwrite.database import Database
from everwrite.frozen import FrozenStore
from everwrite.scan_iterator import Scan


@pytest.fixture
def db(tmp_path):
    with everwrite.open(tmp_path / "db", "os") as opened:
        yield opened


READERS = {
    "get": lambda db: db.get(b"k"),
    "in": lambda db: b"k" in db,
    "ttl": lambda db: db.ttl(b"k"),
    "kind": lambda db: db.kind(b"k"),
    "why": lambda db: db.why(b"k"),
    "len": len,
    "list": list,
    "reversed": lambda db: list(db.scan(reverse=True)),
    "get_many": lambda db: db.get_many([b"k"]),
    "key_count": lambda db: db.key_count(),
    "set": lambda db: list(db.set(b"k")),
    "map": lambda db: db.map(b"k")[b"f"],
    "sequence": lambda db: db.sequence(b"k")[0],
    "sorted set": lambda db: db.sorted_set(b"k").first(),
    "bounded counter": lambda db: db.bounded_counter(b"k").value,
    "hyperloglog": lambda db: db.hyperloglog(b"k").count(),
    "multi": lambda db: db.multi(b"k").values,
    "flag": lambda db: db.flag(b"k").enabled,
    "max": lambda db: db.max(b"k").value,
    "system": lambda db: db.system_items(),
    "state": lambda db: db.key_state(b"\x02k"),
    "snapshot": lambda db: db.snapshot(),
    "changes": lambda db: list(db.changes({})),
    "verify": lambda db: db.verify(),
}
WRITERS = {
    "put": lambda db: db.put(b"k", b"v"),
    "delete": lambda db: db.delete(b"k"),
    "pop": lambda db: db.pop(b"k", None),
    "setdefault": lambda db: db.setdefault(b"k", b"v"),
    "expire": lambda db: db.expire(b"k", 5),
    "persist": lambda db: db.persist(b"k"),
    "put_many": lambda db: db.put_many({b"k": b"v"}),
    "delete_many": lambda db: db.delete_many([b"k"]),
    "increment": lambda db: db.counter(b"k").increment(),
    "add": lambda db: db.set(b"k").add(b"e"),
    "append": lambda db: db.sequence(b"k").append(b"v"),
    "update": lambda db: db.sorted_set(b"k").add(b"m", 1),
    "compact": lambda db: db.compact(),
    "commit": lambda db: db.commit(),
    "backup": lambda db: db.backup("nowhere"),
}


@pytest.mark.parametrize("use", [*READERS.values(), *WRITERS.values()], ids=[*READERS, *WRITERS])
def test_a_database_that_was_never_opened_is_closed(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    unborn = Database.__new__(Database)
    with pytest.raises(everwrite.StorageError):
        unborn.__init__("file")
    for each in (unborn, Database.__new__(Database)):
        with pytest.raises(everwrite.ClosedError):
            use(each)
        each.close()


def test_what_the_store_makes_can_not_be_made_without_it():
    assert list(Scan.__new__(Scan)) == []
    with pytest.raises(TypeError):
        FrozenStore()


def test_an_open_database_is_not_opened_again(db, tmp_path):
    db[b"key"] = b"value"
    with pytest.raises(RuntimeError, match="opened before"):
        db.__init__(tmp_path / "other")
    assert db[b"key"] == b"value"
    assert not (tmp_path / "other").exists()


def test_a_write_to_a_snapshot_says_so(db):
    db.set(b"set").add(b"element")
    with db.snapshot() as then:
        for write in (
            lambda: then.counter(b"counter").increment(),
            lambda: then.set(b"set").add(b"other"),
            lambda: then.sequence(b"list").append(b"value"),
        ):
            with pytest.raises(everwrite.ReadOnlyError, match="a snapshot is for reading only"):
                write()
        assert list(then.set(b"set")) == [b"element"]


LARGE = bytes((64 << 20) + 1)
REFUSED = {
    "get of a set": (everwrite.WrongTypeError, lambda db, key: (db.set(key).add(b"e"), db[key])),
    "get_many of a set": (everwrite.WrongTypeError, lambda db, key: (db.set(key).add(b"e"), db.get_many([key]))),
    "add to text": (everwrite.WrongTypeError, lambda db, key: (db.put(key, b"v"), db.set(key).add(b"e"))),
    "field of text": (everwrite.WrongTypeError, lambda db, key: (db.put(key, b"v"), db.map(key)[b"f"])),
    "flag of text": (everwrite.WrongTypeError, lambda db, key: (db.put(key, b"v"), db.flag(key).enable())),
    "count up text": (everwrite.NotAnIntegerError, lambda db, key: (db.put(key, b"v"), db.counter(key).increment())),
    "counter of text": (everwrite.NotAnIntegerError, lambda db, key: (db.put(key, b"v"), db.counter(key).value)),
    "count up a field of text": (
        everwrite.NotAnIntegerError,
        lambda db, key: (db.map(key).set({b"f": b"v"}), db.map(key).increment(b"f")),
    ),
    "count too far": (
        everwrite.OverflowError,
        lambda db, key: (db.counter(key).increment(2**63 - 1), db.counter(key).increment()),
    ),
    "a value": (everwrite.TooLargeError, lambda db, key: db.put(key, LARGE)),
    "a value in a batch": (everwrite.TooLargeError, lambda db, key: db.put_many({key: LARGE})),
    "a field": (everwrite.TooLargeError, lambda db, key: db.map(key).set({b"f": LARGE})),
    "a name of an element": (everwrite.TooLargeError, lambda db, key: db.set(key).add(LARGE)),
    "an item": (everwrite.TooLargeError, lambda db, key: db.sequence(key).append(LARGE)),
    "a register": (everwrite.TooLargeError, lambda db, key: db.multi(key).set(LARGE)),
    "rights": (everwrite.InsufficientRightsError, lambda db, key: db.bounded_counter(key).decrement(1)),
    "no position": (ValueError, lambda db, key: db.sequence(key).index_of(b"?")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(db, name):
    kind, use = REFUSED[name]
    with pytest.raises(kind, match=r"b'key \\x00\\xff'") as raised:
        use(db, b"key \0\xff")
    assert len(str(raised.value)) < 300
    # A long one is shortened, and no other operation is said to have been about it.
    with pytest.raises(kind, match=r"b'x{64}'\.\.\. \(20,000 bytes\)") as raised:
        use(db, b"x" * 20_000)
    assert len(str(raised.value)) < 400
    with pytest.raises(everwrite.TooLargeError, match=r"'\.\.\. \(65,537 bytes\)"):
        db.put(b"y" * 65537, b"v")


def test_the_key_that_is_named_is_the_thread_s_own(db):
    db.set(b"set").add(b"e")
    db[b"text"] = b"v"

    def refused(use, key):
        for _ in range(2000):
            with pytest.raises((everwrite.WrongTypeError, everwrite.NotAnIntegerError), match=key):
                use()

    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(refused, lambda: db[b"set"], "b'set'"),
            pool.submit(refused, lambda: db.set(b"text").add(b"e"), "b'text'"),
            pool.submit(refused, lambda: db.counter(b"text").increment(), "b'text'"),
        ]
        for each in asked:
            each.result()
