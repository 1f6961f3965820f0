"""What careless and hostile callers do: each gets an answer that says what is wrong, and nothing is changed by it."""

from __future__ import annotations

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
