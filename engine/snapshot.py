"""`Database.snapshot`: a frozen moment of a store as a read-only mapping."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Self, TypeVar, overload

from everwrite.database import Counter, Database, MapView, SetView, VersionVector
from everwrite.frozen import FrozenStore
from everwrite.ordered_views import BoundedCounter, SequenceView, SortedSet
from everwrite.register_views import Flag, HyperLogLog, MaxRegister, MinRegister, MultiRegister
from everwrite.scan_method import ScanMethod

__all__ = ["Snapshot"]

T = TypeVar("T")


class _FrozenDatabase(FrozenStore, Database):
    """All of a database's reading, on a frozen store."""


class Snapshot(Mapping[bytes, bytes]):
    """What a database held at one moment, whatever is written since. Made by `Database.snapshot`.

    A batch, local or received, is in it as a whole or not at all. Keys past their deadline at that moment are
    absent, others stay. The handles (`set`, `counter`, ...) read; writing through them raises ReadOnlyError.

    It keeps the memory and the files of its moment from being freed until it is closed, or the database is;
    from then on everything raises ClosedError. Use it as a context manager. Any thread may use it.
    """

    def __init__(self, database: Database) -> None:
        self._frozen = _FrozenDatabase.of(database)

    def close(self) -> None:
        """Let go of the memory and files that it holds. Once more is fine."""
        self._frozen.let_go()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or the database was."""
        return self._frozen.closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def time_ms(self) -> int:
        """The moment that it shows, Unix milliseconds."""
        return self._frozen.wall_ms()

    @property
    def applied(self) -> VersionVector:
        """Which updates it includes: of each origin, all up to a timestamp."""
        return self._frozen.applied

    def __getitem__(self, key: bytes) -> bytes:
        return self._frozen[key]

    @overload
    def get(self, key: bytes, /) -> bytes | None: ...
    @overload
    def get(self, key: bytes, default: T, /) -> bytes | T: ...
    def get(self, key: bytes, default: Any = None, /) -> Any:
        """The value of `key`, or `default`."""
        return self._frozen.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._frozen

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._frozen)

    def __len__(self) -> int:
        return len(self._frozen)

    def __bool__(self) -> bool:
        return bool(self._frozen)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<everwrite.Snapshot of {self._frozen.path!r}{' (closed)' if self.closed else ''}>"

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of registers and counters with their keys, in byte order of the keys."""
        return self._frozen.items()

    def values(self) -> ValuesView[bytes]:
        """A view of the values of registers and counters, in byte order of the keys."""
        return self._frozen.values()

    def keys(self) -> KeysView[bytes]:
        """A view of the keys of registers and counters, in byte order."""
        return self._frozen.keys()

    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values of many keys, None for each that isn't there: as `Database.get_many`."""
        return self._frozen.get_many(keys)

    def ttl(self, key: bytes) -> float | None:
        """Seconds from the snapshot's moment to the key's deadline: as `Database.ttl`."""
        return self._frozen.ttl(key)

    @property
    def scan(self) -> ScanMethod:
        """Ranges of keys, forwards and backwards: as `Database.scan`."""
        return self._frozen.scan

    def kind(self, key: bytes) -> str:
        """What `key` holds: as `Database.kind`."""
        return self._frozen.kind(key)

    def key_count(self) -> int:
        """How many keys of all types exist: as `Database.key_count`."""
        return self._frozen.key_count()

    def why(self, key: bytes) -> dict[str, Any]:
        """What `key` shows and by which rule: as `Database.why`."""
        return self._frozen.why(key)

    def counter(self, key: bytes) -> Counter:
        """The counter at `key`."""
        return self._frozen.counter(key)

    def set(self, key: bytes) -> SetView:
        """The set at `key`."""
        return self._frozen.set(key)

    def map(self, key: bytes) -> MapView:
        """The map at `key`."""
        return self._frozen.map(key)

    def multi(self, key: bytes) -> MultiRegister:
        """The multi-value register at `key`."""
        return self._frozen.multi(key)

    def flag(self, key: bytes) -> Flag:
        """The flag at `key`."""
        return self._frozen.flag(key)

    def max(self, key: bytes) -> MaxRegister:
        """The max register at `key`."""
        return self._frozen.max(key)

    def min(self, key: bytes) -> MinRegister:
        """The min register at `key`."""
        return self._frozen.min(key)

    def hyperloglog(self, key: bytes) -> HyperLogLog:
        """The HyperLogLog at `key`."""
        return self._frozen.hyperloglog(key)

    def sorted_set(self, key: bytes) -> SortedSet:
        """The sorted set at `key`."""
        return self._frozen.sorted_set(key)

    def bounded_counter(self, key: bytes) -> BoundedCounter:
        """The bounded counter at `key`."""
        return self._frozen.bounded_counter(key)

    def sequence(self, key: bytes) -> SequenceView:
        """The sequence (list) at `key`."""
        return self._frozen.sequence(key)
