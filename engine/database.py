"""The embedded database: a mutable mapping of bytes, with counters, sets and maps beside it.

>>> import tempfile, everwrite
>>> db = everwrite.open(tempfile.mkdtemp())
>>> db[b"greeting"] = b"hello"
>>> db.counter(b"visits").increment()
1
>>> db.set(b"tags").add(b"blue")
>>> sorted(db)
[b'greeting', b'visits']
>>> db.close()
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, Sequence, ValuesView
from itertools import islice
from typing import Any, NoReturn, SupportsIndex

from everwrite import access, explain, freshness
from everwrite.clock import merge
from everwrite.errors import LogCutError, NotAnIntegerError, OverflowError, ProtocolError, shown_key
from everwrite.files import Files
from everwrite.ordered_views import BoundedCounter, SequenceView, SortedSet
from everwrite.register_views import Flag, HyperLogLog, MaxRegister, MinRegister, MultiRegister
from everwrite.store import Store
from everwrite.upkeep import Upkeep
from everwrite.write_batch import WriteBatch

__all__ = ["Counter", "Database", "MapView", "SetView", "VersionVector", "open_database"]

_PAGE = 1000
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def _key(key: object) -> bytes:
    if isinstance(key, bytes):
        return key
    hint = "encode text first, as in key.encode()" if isinstance(key, str) else "convert it with bytes(...)"
    raise TypeError(f"keys, values and elements are bytes, not {type(key).__name__}: {hint}")


class VersionVector(Mapping[int, int]):
    """A read-only mapping of origin to timestamp: the prefix of each origin's updates that a store holds."""

    def __init__(self, timestamps: Mapping[int, int]) -> None:
        self._timestamps = dict(timestamps)

    def __getitem__(self, origin: int) -> int:
        return self._timestamps[origin]

    def __iter__(self) -> Iterator[int]:
        return iter(self._timestamps)

    def __len__(self) -> int:
        return len(self._timestamps)

    def __repr__(self) -> str:
        return f"VersionVector({self._timestamps!r})"


class Counter:
    """A counter: increments of all stores add up, each exactly once. Made by `Database.counter`.

    A reset takes away the increments that it has seen, and no others.
    """

    WRITES = ("increment", "decrement", "reset")

    def __init__(self, store: Store, key: bytes) -> None:
        self._store = store
        self.key = key

    def increment(self, n: int = 1) -> int:
        """Add `n`; returns the new value.

        Raises WrongTypeError when the key holds a set or map, NotAnIntegerError when it holds
        other text, OverflowError when the result would leave 64 bits.
        """
        return access.increment(self._store, self.key, _int64(n))

    def decrement(self, n: int = 1) -> int:
        """Subtract `n`; returns the new value. Raises as `increment`."""
        return self.increment(-n)

    @property
    def value(self) -> int:
        """The value now; 0 when the key doesn't exist. Raises NotAnIntegerError when it holds other text."""
        text = access.get(self._store, self.key)
        if text is None:
            return 0
        # Stricter than int(): what shows as a number can be incremented.
        number = int(text) if _INTEGER.fullmatch(text) else None
        if number is None or not -(1 << 63) <= number < 1 << 63:
            raise NotAnIntegerError(f"key {shown_key(self.key)}: it holds text that is not a 64-bit integer")
        return number

    def reset(self) -> None:
        """Delete the key: increments that this store has seen are gone, concurrent ones stay."""
        access.delete(self._store, self.key)

    def __repr__(self) -> str:
        return f"Counter({self.key!r})"


class SetView:
    """An add-wins set of bytes: an add that a remove hadn't seen survives it. Made by `Database.set`."""

    WRITES = ("add", "discard", "remove", "clear")

    def __init__(self, store: Store, key: bytes) -> None:
        self._store = store
        self.key = key

    def add(self, *elements: bytes) -> None:
        """Add elements, together as one update. Raises WrongTypeError when the key holds another type."""
        access.set_add(self._store, self.key, [_key(element) for element in elements])

    def discard(self, *elements: bytes) -> None:
        """Remove elements if they are there, together as one update. Raises as `add`."""
        access.remove_elements(self._store, self.key, "set", [_key(element) for element in elements])

    def remove(self, element: bytes) -> None:
        """Remove an element; raises KeyError when it isn't there."""
        if not access.remove_elements(self._store, self.key, "set", [_key(element)]):
            raise KeyError(element)

    def __contains__(self, element: object) -> bool:
        return access.set_contains(self._store, self.key, _key(element))

    def __len__(self) -> int:
        return access.cardinality(self._store, self.key, "set")

    def __iter__(self) -> Iterator[bytes]:
        """The elements in byte order. Adding and removing meanwhile is allowed."""
        for element, _ in _elements(self._store, self.key, "set"):
            yield element

    def clear(self) -> None:
        """Delete the key: elements that this store has seen are gone, concurrent adds stay."""
        access.delete(self._store, self.key)

    def __repr__(self) -> str:
        return f"SetView({self.key!r})"


class _Items(ItemsView[bytes, bytes]):
    """Items read in pages: a key that is deleted after it was seen is passed over, not a KeyError."""

    _mapping: MapView | Database

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping.pairs()


class _Values(ValuesView[bytes]):
    """The values of such items."""

    _mapping: MapView | Database

    def __iter__(self) -> Iterator[bytes]:
        if isinstance(self._mapping, Database):
            return self._mapping.scan(keys=False)
        return (value for _, value in self._mapping.pairs())


class _Keys(KeysView[bytes]):
    """The keys, without a generator between the store and the caller."""

    _mapping: Database

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._mapping)


class MapView(MutableMapping[bytes, bytes]):
    """A map of fields to bytes; a field may also be counted up. Made by `Database.map`.

    Of concurrent writes of a field the newest shows; a write that a delete hadn't seen survives it.
    """

    WRITES = ("__setitem__", "__delitem__", "set", "increment", "pop", "update", "setdefault", "clear")

    def __init__(self, store: Store, key: bytes) -> None:
        self._store = store
        self.key = key

    def __getitem__(self, field: bytes) -> bytes:
        value = access.map_get(self._store, self.key, _key(field))
        if value is None:
            raise KeyError(field)
        return value

    def __setitem__(self, field: bytes, value: bytes) -> None:
        access.map_set(self._store, self.key, [_key(field), _key(value)])

    def __delitem__(self, field: bytes) -> None:
        if not access.remove_elements(self._store, self.key, "map", [_key(field)]):
            raise KeyError(field)

    def set(self, fields: Mapping[bytes, bytes]) -> None:
        """Write several fields together as one update."""
        access.map_set(self._store, self.key, [_key(each) for pair in fields.items() for each in pair])

    def increment(self, field: bytes, n: int = 1) -> int:
        """Add `n` to a field (absent: 0); returns the new value. Raises as `Counter.increment`."""
        return access.map_increment(self._store, self.key, _key(field), _int64(n))

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Fields and values in byte order of the fields. Writing and deleting meanwhile is allowed."""
        return _elements(self._store, self.key, "map")

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of fields and values, in byte order of the fields."""
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        """A view of the values, in byte order of the fields."""
        return _Values(self)

    def __iter__(self) -> Iterator[bytes]:
        for field, _ in _elements(self._store, self.key, "map"):
            yield field

    def __len__(self) -> int:
        return access.cardinality(self._store, self.key, "map")

    def clear(self) -> None:
        """Delete the key: fields that this store has seen are gone, concurrent writes stay."""
        access.delete(self._store, self.key)

    def __repr__(self) -> str:
        return f"MapView({self.key!r})"


def _int64(n: SupportsIndex) -> int:
    number = operator.index(n)
    if -(1 << 63) <= number < 1 << 63:
        return number
    raise OverflowError(f"the amount is {n!r}; it must be an integer of 64 bits with sign")


def _elements(store: Store, key: bytes, of: str) -> Iterator[tuple[bytes, bytes]]:
    start = b""
    while page := access.elements(store, key, of, start, _PAGE):
        yield from page
        if len(page) < _PAGE:
            return
        start = page[-1][0] + b"\0"


class Database(Upkeep, MutableMapping[bytes, bytes]):
    """An open store as a mutable mapping of bytes to bytes. Opened by `everwrite.open`.

    As a mapping it shows registers and counters (a counter's value is its decimal text). Sets and
    maps are reached by `set` and `map`; reading one as a value raises WrongTypeError.

    >>> import tempfile, everwrite
    >>> db = everwrite.open(tempfile.mkdtemp())
    >>> db.put_many({b"user/1": b"Ada", b"user/2": b"Grace", b"zone": b"eu"})
    >>> db.get_many([b"user/2", b"user/3"])
    [b'Grace', None]
    >>> list(db.scan(b"user/", reverse=True))
    [(b'user/2', b'Grace'), (b'user/1', b'Ada')]
    >>> db.put(b"session", b"open", ttl=60)
    >>> 59 < db.ttl(b"session") <= 60
    True
    >>> db.persist(b"session"), db.ttl(b"session")
    (True, None)
    >>> db.pop(b"zone")
    b'eu'
    >>> db.close()
    """

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """What `scan` yields of all keys."""
        return self.scan()

    def keys(self) -> KeysView[bytes]:
        """A view of the keys of registers and counters, in byte order."""
        return _Keys(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of registers and counters with their keys, in byte order of the keys."""
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        """A view of the values of registers and counters, in byte order of the keys."""
        return _Values(self)

    def update(self, other: Any = (), /, **named: bytes) -> None:
        """Write many registers, as `put_many` does. Keys are bytes: keyword arguments are refused with TypeError."""
        self.put_many(other)
        if named:
            _key(next(iter(named)))

    def clear(self) -> None:
        """Delete all registers and counters; sets and maps stay."""
        keys = self.scan(values=False)
        while chunk := list(islice(keys, _PAGE)):
            self.delete_many(chunk)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<everwrite.Database {self.path!r}{' (closed)' if self.closing() else ''}>"

    def _keys(self, start: bytes) -> Iterator[tuple[bytes, str]]:
        while page := access.keys(self, start, _PAGE):
            yield from page
            if len(page) < _PAGE:
                return
            start = page[-1][0] + b"\0"

    def batch(self) -> WriteBatch:
        """A batch of operations that take effect together or not at all: `with db.batch() as batch: ...`."""
        return WriteBatch(self)

    def counter(self, key: bytes) -> Counter:
        """The counter at `key`; it exists from its first increment on."""
        return Counter(self, _key(key))

    def set(self, key: bytes) -> SetView:
        """The set at `key`; it exists while it has elements."""
        return SetView(self, _key(key))

    def map(self, key: bytes) -> MapView:
        """The map at `key`; it exists while it has fields."""
        return MapView(self, _key(key))

    def multi(self, key: bytes) -> MultiRegister:
        """The multi-value register at `key`; it exists from its first write on."""
        return MultiRegister(self, _key(key))

    def flag(self, key: bytes) -> Flag:
        """The flag at `key`; it exists while it is enabled."""
        return Flag(self, _key(key))

    def max(self, key: bytes) -> MaxRegister:
        """The max register at `key`; it exists from its first update on."""
        return MaxRegister(self, _key(key))

    def min(self, key: bytes) -> MinRegister:
        """The min register at `key`; it exists from its first update on."""
        return MinRegister(self, _key(key))

    def hyperloglog(self, key: bytes) -> HyperLogLog:
        """The HyperLogLog at `key`; it exists from its first item on."""
        return HyperLogLog(self, _key(key))

    def sorted_set(self, key: bytes) -> SortedSet:
        """The sorted set at `key`; it exists while it has members."""
        return SortedSet(self, _key(key))

    def bounded_counter(self, key: bytes, minimum: int = 0) -> BoundedCounter:
        """The bounded counter at `key`; its first increment creates it, with this minimum."""
        return BoundedCounter(self, _key(key), minimum)

    def sequence(self, key: bytes) -> SequenceView:
        """The sequence (list) at `key`; it exists while it has items."""
        return SequenceView(self, _key(key))

    def kind(self, key: bytes) -> str:
        """What `key` holds: "none", "string", "set", "map", or another of `kinds.KIND_NAMES`."""
        return access.kind(self, _key(key))

    def key_count(self) -> int:
        """How many keys of all types exist (keys past their deadline count until they are removed)."""
        return access.key_count(self)

    @property
    def applied(self) -> VersionVector:
        """Which updates this store holds: of each origin, all up to a timestamp. Its own included."""
        return VersionVector(self.applied_dict())

    def changes(self, since: Mapping[int, int]) -> Iterator[bytes]:
        """Yield batches with all that a store whose `applied` is `since` lacks, in an order that it can apply.

        Ends when it has caught up with what is written by then. Falls back to whole states of keys
        when the log was cut (`log_keep_bytes`). Raises ValueError when `since` is no version vector.
        """
        since = merge(since)
        self.commit_log()
        while True:
            try:
                stream = self.open_stream(since)
                try:
                    while (batch := stream.next_batch(5000, 1 << 20)) is not None:
                        since = stream.sent
                        yield batch
                    return
                finally:
                    stream.close()
            except LogCutError:
                held = self.applied
                yield from self.resync_batches(since)
                since = merge(since, held)

    def apply(self, batch: bytes) -> None:
        """Apply a batch from another store's `changes`; durable on return. Late or repeated ones are harmless.

        Raises GapError when it starts beyond what this store holds, ProtocolError when it is malformed,
        ClockDriftError when its clock is too far ahead, TooLargeError; nothing of it is applied then.
        """
        need = self.apply_batch(batch)
        self.commit_log()
        if need is not None:
            raise ProtocolError(
                f"the batch changes key {need.namespace_key[1:]!r} on top of updates that this store lacks, "
                "although its spans follow: it was not made by `changes` for this store"
            )

    def question(self, keys: Iterable[bytes]) -> bytes:
        """A question for what other stores know of these keys and this one doesn't; their `answer` takes it.

        Raises TypeError when a key isn't bytes, TooLargeError when it is over 64 KiB.
        """
        return freshness.question(self, [_key(key) for key in keys])

    def answer(self, question: bytes) -> list[bytes]:
        """What this store knows of the keys that another one's `question` names and that one doesn't.

        For its `join_states`; empty when it knows all. Raises ProtocolError when the question is malformed.
        """
        return freshness.answer(self, question)[0]

    def join_states(self, states: list[bytes]) -> int:
        """Join what another store's `answer` gave; durable on return. How many keys it brought news of.

        Single keys get ahead of what `apply` has brought so: `applied` stays as it is. Raises ProtocolError when a
        state is malformed or lacks parts, ClockDriftError when its clock is too far ahead.
        """
        joined = freshness.join_states(self, states)
        self.commit_log()
        return joined

    # What native code calls by these names is not visible to Python; these are the same for Python callers.

    def answer_piece(self, question: bytes, limit: int) -> tuple[list[bytes], bytes]:
        """As `answer`, but at most about `limit` bytes, and the rest of the question, empty at the end."""
        return freshness.answer(self, question, limit)

    def join_piece(self, states: Sequence[bytes], conversation: freshness.Conversation) -> int:
        """As `join_states`, but of one piece of an answer, and durable only with the next `commit`."""
        return freshness.join_states(self, states, conversation)

    def forget_parts(self, conversation: freshness.Conversation) -> None:
        """Let go of what a conversation that has ended early has brought of unfinished states."""
        freshness.forget_parts(self, conversation)

    def commit(self) -> None:
        """Make all that was applied or written reach the log, as durably as this store was opened for."""
        self.commit_log()

    def now_ms(self) -> int:
        """The wall clock that this store goes by, Unix milliseconds."""
        return self.wall_ms()

    @property
    def last_timestamp(self) -> int:
        """The newest timestamp of this store's own updates; 0 when it made none."""
        return self.newest_timestamp

    def why(self, key: bytes) -> dict[str, Any]:
        """What `key` shows and by which rule: see `explain.why`."""
        return explain.why(self, _key(key))

    def system_get(self, name: bytes) -> bytes | None:
        """The value of a system register: replicated like a key, apart from users' keys."""
        return access.system_get(self, name)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a store can't be copied or pickled: open its folder where it is needed, or take a backup")

    def system_set(self, name: bytes, value: bytes) -> None:
        """Write a system register; the last writer wins."""
        access.system_set(self, name, value)

    def system_items(self, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        """System registers whose name begins with `prefix`."""
        return access.system_items(self, prefix)


def open_database(
    path: str | os.PathLike[str],
    durability: str = "always",
    *,
    create: bool = True,
    max_clock_drift_ms: int = 500,
    memtable_bytes: int = 64 << 20,
    block_cache_bytes: int = 256 << 20,
    mapped_reads: bool = True,
    log_keep_bytes: int = 256 << 20,
    segment_bytes: int = 64 << 20,
    files: Files | None = None,
    background: bool = True,
    store_id: int | None = None,
    now_ms: int = 0,
) -> Database:
    """Open the store in directory `path`, made when missing (unless `create` is False).

    `durability`: "always" (a write returns when it is on the device), "interval" (at most a second
    later) or "os" (when the operating system likes). `memtable_bytes`: how much is kept in memory
    before it is written as a table; `block_cache_bytes`: limit of the memory for what has been read of
    tables, of which their indexes take 6 bytes a key; `mapped_reads`: what doesn't fit that is read in mappings of the
    table files, in memory that the operating system takes back as it likes, and a device's read error ends the process;
    `log_keep_bytes`: how much log is kept for other stores to catch up from. `files`, `background`,
    `store_id` and `now_ms` serve simulations.

    Raises LockedError when it is open already, CorruptionError naming file and offset when it is
    damaged, FormatError when a newer release wrote it, ConfigError for an option that can't be.
    """
    return Database(
        path,
        durability,
        create=create,
        max_clock_drift_ms=max_clock_drift_ms,
        memtable_bytes=memtable_bytes,
        block_cache_bytes=block_cache_bytes,
        mapped_reads=mapped_reads,
        log_keep_bytes=log_keep_bytes,
        segment_bytes=segment_bytes,
        files=files,
        background=background,
        store_id=store_id,
        now_ms=now_ms,
    )
