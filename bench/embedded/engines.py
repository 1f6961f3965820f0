"""Embedded stores behind one interface: Everwrite, its peers, and the bound of a Python loop.

Every method loops over many operations inside, with the store's own method as the loop's only call: what is
measured is what a program would write by hand. Durability is `os` unless a method's name says otherwise: a write is
in the operating system's hands when the call returns (LMDB can do that only for a transaction's commit).
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Pair = tuple[bytes, bytes]
BATCH = 100


class Engine:
    """One open store in `folder`; `cache_bytes` limits its cache of table blocks where it has one."""

    name = "none"
    package: str | None = None
    keeps_order = True

    def __init__(self, folder: Path, *, cache_bytes: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.open(cache_bytes)

    @classmethod
    def missing(cls) -> str | None:
        """The package to install, or None when it is there."""
        return None if cls.package is None or importlib.util.find_spec(cls.package) else cls.package

    def open(self, cache_bytes: int | None) -> None: ...

    def close(self) -> None: ...

    def put(self, pairs: Sequence[Pair]) -> None:
        """Write each pair by a call of its own."""
        raise NotImplementedError

    def put_batches(self, pairs: Sequence[Pair]) -> None:
        """Write pairs in atomic batches of `BATCH`."""
        raise NotImplementedError

    def put_durable(self, pairs: Sequence[Pair]) -> None:
        """Write each pair by a call that returns when it is on the device."""
        raise NotImplementedError

    def put_batches_durable(self, pairs: Sequence[Pair]) -> None:
        """Write batches, each on the device on return."""
        raise NotImplementedError

    def get(self, keys: Sequence[bytes]) -> int:
        """Read each key by a call of its own; returns how many are there."""
        raise NotImplementedError

    def get_many(self, keys: Sequence[bytes]) -> int:
        """Read keys `BATCH` at a time, by the store's own call for that where it has one."""
        return self.get(keys)

    def delete(self, keys: Sequence[bytes]) -> None:
        """Delete each key by a call of its own."""
        raise NotImplementedError

    def scan(self) -> int:
        """Read all pairs in order; returns how many."""
        raise NotImplementedError

    def ranges(self, prefixes: Sequence[bytes]) -> int:
        """Read, for each prefix, the pairs whose keys begin with it, in order; returns how many."""
        raise NotImplementedError

    def compact(self) -> None:
        """Bring the files to their smallest, where the store can."""

    def disk_bytes(self) -> int:
        """What the folder's files take."""
        return sum(file.stat().st_blocks * 512 for file in self.folder.rglob("*") if file.is_file())


class Everwrite(Engine):
    """This project."""

    name = "everwrite"
    durability = "os"

    def open(self, cache_bytes: int | None) -> None:
        import everwrite

        options: dict[str, Any] = {"block_cache_bytes": cache_bytes} if cache_bytes else {}
        self.db = everwrite.open(self.folder / "db", durability=self.durability, **options)

    def close(self) -> None:
        self.db.close()

    def put(self, pairs: Sequence[Pair]) -> None:
        put = self.db.put
        for key, value in pairs:
            put(key, value)

    def put_batches(self, pairs: Sequence[Pair]) -> None:
        for batch in batches(pairs):
            with self.db.batch() as b:
                for key, value in batch:
                    b[key] = value

    def put_durable(self, pairs: Sequence[Pair]) -> None:
        self._durable().put(pairs)

    def put_batches_durable(self, pairs: Sequence[Pair]) -> None:
        self._durable().put_batches(pairs)

    def _durable(self) -> Everwrite:
        if self.durability != "always":
            self.db.close()
            self.durability = "always"
            self.open(None)
        return self

    def get(self, keys: Sequence[bytes]) -> int:
        return count_found(self.db.get, keys)

    def get_many(self, keys: Sequence[bytes]) -> int:
        return count_found_together(self.db.get_many, keys)

    def delete(self, keys: Sequence[bytes]) -> None:
        call_each(self.db.delete, keys)

    def scan(self) -> int:
        return count(self.db.scan())

    def ranges(self, prefixes: Sequence[bytes]) -> int:
        scan = self.db.scan
        found = 0
        for prefix in prefixes:
            for _key, _value in scan(prefix):
                found += 1
        return found

    def compact(self) -> None:
        self.db.compact()


class Lmdb(Engine):
    """py-lmdb; single puts are transactions of their own, as nothing less is atomic or visible."""

    name = "lmdb"
    package = "lmdb"
    sync = False

    def open(self, cache_bytes: int | None) -> None:
        import lmdb

        self.env = lmdb.open(str(self.folder), map_size=1 << 36, sync=self.sync, metasync=self.sync)

    def close(self) -> None:
        self.env.close()

    def put(self, pairs: Sequence[Pair]) -> None:
        begin = self.env.begin
        for key, value in pairs:
            with begin(write=True) as transaction:
                transaction.put(key, value)

    def put_batches(self, pairs: Sequence[Pair]) -> None:
        for batch in batches(pairs):
            with self.env.begin(write=True) as transaction:
                put = transaction.put
                for key, value in batch:
                    put(key, value)

    def _durable(self) -> None:
        if not self.sync:
            self.env.close()
            self.sync = True
            self.open(None)

    def put_durable(self, pairs: Sequence[Pair]) -> None:
        self._durable()
        self.put(pairs)

    def put_batches_durable(self, pairs: Sequence[Pair]) -> None:
        self._durable()
        self.put_batches(pairs)

    def get(self, keys: Sequence[bytes]) -> int:
        with self.env.begin() as transaction:
            return count_found(transaction.get, keys)

    def get_many(self, keys: Sequence[bytes]) -> int:
        found = 0
        with self.env.begin() as transaction, transaction.cursor() as cursor:
            for batch in batches(keys):
                for _key, _value in cursor.getmulti(batch):
                    found += 1
        return found

    def delete(self, keys: Sequence[bytes]) -> None:
        begin = self.env.begin
        for key in keys:
            with begin(write=True) as transaction:
                transaction.delete(key)

    def scan(self) -> int:
        with self.env.begin() as transaction, transaction.cursor() as cursor:
            return count(iter(cursor))

    def ranges(self, prefixes: Sequence[bytes]) -> int:
        found = 0
        with self.env.begin() as transaction, transaction.cursor() as cursor:
            for prefix in prefixes:
                if cursor.set_range(prefix):
                    for key, _value in cursor:
                        if not key.startswith(prefix):
                            break
                        found += 1
        return found


class LevelDb(Engine):
    """plyvel."""

    name = "leveldb"
    package = "plyvel"

    def open(self, cache_bytes: int | None) -> None:
        import plyvel

        options = {"lru_cache_size": cache_bytes} if cache_bytes else {}
        self.db = plyvel.DB(str(self.folder), create_if_missing=True, **options)

    def close(self) -> None:
        self.db.close()

    def put(self, pairs: Sequence[Pair], *, sync: bool = False) -> None:
        put = self.db.put
        if sync:
            for key, value in pairs:
                put(key, value, sync=True)
            return
        for key, value in pairs:
            put(key, value)

    def put_batches(self, pairs: Sequence[Pair], *, sync: bool = False) -> None:
        for batch in batches(pairs):
            with self.db.write_batch(sync=sync) as b:
                put = b.put
                for key, value in batch:
                    put(key, value)

    def put_durable(self, pairs: Sequence[Pair]) -> None:
        self.put(pairs, sync=True)

    def put_batches_durable(self, pairs: Sequence[Pair]) -> None:
        self.put_batches(pairs, sync=True)

    def get(self, keys: Sequence[bytes]) -> int:
        return count_found(self.db.get, keys)

    def delete(self, keys: Sequence[bytes]) -> None:
        call_each(self.db.delete, keys)

    def scan(self) -> int:
        return count(self.db.iterator())

    def ranges(self, prefixes: Sequence[bytes]) -> int:
        iterator = self.db.iterator
        found = 0
        for prefix in prefixes:
            for _key, _value in iterator(prefix=prefix):
                found += 1
        return found

    def compact(self) -> None:
        self.db.compact_range()


class RocksDb(Engine):
    """rocksdict with raw bytes."""

    name = "rocksdb"
    package = "rocksdict"

    def open(self, cache_bytes: int | None) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        if cache_bytes:
            table = rocksdict.BlockBasedOptions()
            table.set_block_cache(rocksdict.Cache(cache_bytes))
            options.set_block_based_table_factory(table)
        self.db = rocksdict.Rdict(str(self.folder), options)
        self.synced = rocksdict.WriteOptions()
        self.synced.sync = True
        self.new_batch = rocksdict.WriteBatch

    def close(self) -> None:
        self.db.close()

    def put(self, pairs: Sequence[Pair]) -> None:
        db = self.db
        for key, value in pairs:
            db[key] = value

    def put_batches(self, pairs: Sequence[Pair]) -> None:
        for batch in batches(pairs):
            b = self.new_batch(raw_mode=True)
            for key, value in batch:
                b[key] = value
            self.db.write(b)

    def put_durable(self, pairs: Sequence[Pair]) -> None:
        self.db.set_write_options(self.synced)
        self.put(pairs)

    def put_batches_durable(self, pairs: Sequence[Pair]) -> None:
        for batch in batches(pairs):
            b = self.new_batch(raw_mode=True)
            for key, value in batch:
                b[key] = value
            self.db.write(b, write_opt=self.synced)

    def get(self, keys: Sequence[bytes]) -> int:
        return count_found(self.db.get, keys)

    def get_many(self, keys: Sequence[bytes]) -> int:
        return count_found_together(self.db.get, keys)

    def delete(self, keys: Sequence[bytes]) -> None:
        call_each(self.db.delete, keys)

    def scan(self) -> int:
        return count(self.db.items())

    def ranges(self, prefixes: Sequence[bytes]) -> int:
        items = self.db.items
        found = 0
        for prefix in prefixes:
            for key, _value in items(from_key=prefix):
                if not key.startswith(prefix):
                    break
                found += 1
        return found

    def compact(self) -> None:
        self.db.flush()
        self.db.compact_range(None, None)


class Sqlite(Engine):
    """sqlite3 in WAL mode, a table without rowid; single puts are transactions of their own."""

    name = "sqlite"
    synchronous = "OFF"

    def open(self, cache_bytes: int | None) -> None:
        self.db = sqlite3.connect(self.folder / "db", isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute(f"PRAGMA synchronous={self.synchronous}")
        if cache_bytes:
            self.db.execute(f"PRAGMA cache_size=-{cache_bytes // 1024}")
        self.db.execute("CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")

    def close(self) -> None:
        self.db.close()

    def put(self, pairs: Sequence[Pair]) -> None:
        execute = self.db.execute
        for pair in pairs:
            execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", pair)

    def put_batches(self, pairs: Sequence[Pair]) -> None:
        for batch in batches(pairs):
            self.db.execute("BEGIN")
            self.db.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", batch)
            self.db.execute("COMMIT")

    def put_durable(self, pairs: Sequence[Pair]) -> None:
        self.db.execute("PRAGMA synchronous=FULL")
        self.put(pairs)

    def put_batches_durable(self, pairs: Sequence[Pair]) -> None:
        self.db.execute("PRAGMA synchronous=FULL")
        self.put_batches(pairs)

    def get(self, keys: Sequence[bytes]) -> int:
        execute = self.db.execute
        found = 0
        for key in keys:
            if execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchone() is not None:
                found += 1
        return found

    def delete(self, keys: Sequence[bytes]) -> None:
        execute = self.db.execute
        for key in keys:
            execute("DELETE FROM kv WHERE k = ?", (key,))

    def scan(self) -> int:
        return count(self.db.execute("SELECT k, v FROM kv ORDER BY k"))

    def ranges(self, prefixes: Sequence[bytes]) -> int:
        execute = self.db.execute
        found = 0
        for prefix in prefixes:
            for key, _value in execute("SELECT k, v FROM kv WHERE k >= ? ORDER BY k", (prefix,)):
                if not key.startswith(prefix):
                    break
                found += 1
        return found

    def compact(self) -> None:
        self.db.execute("VACUUM")
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class DictAndLog(Engine):
    """A dict and an append-only file that gets one write a call: what a Python loop can do at best."""

    name = "dict"
    keeps_order = False

    def open(self, cache_bytes: int | None) -> None:
        self.log = (self.folder / "log").open("ab", buffering=0)
        self.items: dict[bytes, bytes] = {}

    def close(self) -> None:
        self.log.close()

    def put(self, pairs: Sequence[Pair]) -> None:
        write, items = self.log.write, self.items
        for key, value in pairs:
            write(key + value)
            items[key] = value

    def put_batches(self, pairs: Sequence[Pair]) -> None:
        for batch in batches(pairs):
            self.log.write(b"".join([key + value for key, value in batch]))
            self.items.update(batch)

    def get(self, keys: Sequence[bytes]) -> int:
        return count_found(self.items.get, keys)

    def delete(self, keys: Sequence[bytes]) -> None:
        write, items = self.log.write, self.items
        for key in keys:
            write(key)
            del items[key]


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Everwrite, Lmdb, RocksDb, LevelDb, Sqlite, DictAndLog)
}


def batches(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """`items`, `BATCH` at a time."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def count_found(get: Callable[[bytes], object], keys: Sequence[bytes]) -> int:
    """Look each key up by itself; how many are there."""
    found = 0
    for key in keys:
        if get(key) is not None:
            found += 1
    return found


def count_found_together(get: Callable[[Any], Iterable[object]], keys: Sequence[bytes]) -> int:
    """Look keys up `BATCH` at a time; how many are there."""
    found = 0
    for batch in batches(keys):
        for value in get(batch):
            if value is not None:
                found += 1
    return found


def call_each(call: Callable[[bytes], object], keys: Sequence[bytes]) -> None:
    """One call a key."""
    for key in keys:
        call(key)


def count(pairs: Iterable[Pair]) -> int:
    """How many pairs there are, each unpacked as a program would."""
    found = 0
    for _key, _value in pairs:
        found += 1
    return found


@contextlib.contextmanager
def opened(kind: type[Engine], folder: Path, **options: Any) -> Iterator[Engine]:
    """An open store in a fresh folder, which is removed afterwards."""
    engine = kind(folder, **options)
    try:
        yield engine
    finally:
        engine.close()
        shutil.rmtree(folder)
