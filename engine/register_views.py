"""Handles on multi-value registers, flags, max and min registers, and HyperLogLogs.

Made by the methods `multi`, `flag`, `max`, `min` and `hyperloglog` of a `Database`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from everwrite import access, register_access
from everwrite.store import Store

__all__ = ["Flag", "HyperLogLog", "MaxRegister", "MinRegister", "MultiRegister"]


class View:
    """A key seen as one type. It need not exist."""

    def __init__(self, store: Store, key: bytes) -> None:
        self._store = store
        self.key = key

    def clear(self) -> None:
        """Delete the key: what this store has seen of it is gone, concurrent writes stay."""
        access.delete(self._store, self.key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key!r})"


class MultiRegister(View):
    """A register that keeps every one of concurrent values until a write has seen them.

    >>> import tempfile, everwrite
    >>> here, there = (everwrite.open(tempfile.mkdtemp(), "os") for _ in range(2))
    >>> here.multi(b"cart").set(b"apples")
    >>> there.multi(b"cart").set(b"pears")
    >>> _ = everwrite.sync(here, there)
    >>> sorted(here.multi(b"cart").values)
    [b'apples', b'pears']
    >>> here.multi(b"cart").set(b"apples and pears")
    >>> here.multi(b"cart").values
    (b'apples and pears',)
    >>> here.close(), there.close()
    (None, None)
    """

    WRITES: ClassVar[tuple[str, ...]] = ("set", "clear")

    def set(self, value: bytes) -> None:
        """Write a value in the place of all that this store has seen.

        Raises WrongTypeError when the key holds another type, TooLargeError over 64 MiB.
        """
        register_access.multi_set(self._store, self.key, value)

    @property
    def values(self) -> tuple[bytes, ...]:
        """The values that no write has replaced, oldest first; more than one after concurrent writes."""
        return register_access.multi_values(self._store, self.key)


class Flag(View):
    """A flag in which enabling wins: what a disable hadn't seen survives it.

    >>> import tempfile, everwrite
    >>> db = everwrite.open(tempfile.mkdtemp(), "os")
    >>> db.flag(b"dark mode").enable()
    >>> db.flag(b"dark mode").enabled
    True
    >>> db.flag(b"dark mode").disable()
    >>> bool(db.flag(b"dark mode")), db.kind(b"dark mode")
    (False, 'none')
    >>> db.close()
    """

    WRITES: ClassVar[tuple[str, ...]] = ("enable", "disable", "clear")

    def enable(self) -> None:
        """Enable the flag. Raises WrongTypeError when the key holds another type."""
        register_access.flag_enable(self._store, self.key)

    def disable(self) -> None:
        """Take away every enabling that this store has seen. Raises as `enable`."""
        register_access.flag_disable(self._store, self.key)

    @property
    def enabled(self) -> bool:
        """Whether it is enabled. A disabled flag and a key that doesn't exist are the same."""
        return register_access.flag_enabled(self._store, self.key)

    def __bool__(self) -> bool:
        return self.enabled


class _Extreme(View):
    WRITES: ClassVar[tuple[str, ...]] = ("update", "clear")
    _of: ClassVar[Literal["max", "min"]]

    def update(self, value: int) -> int:
        """Write `value` if it beats what this store shows; returns what shows then.

        Raises WrongTypeError when the key holds another type, OverflowError when `value` isn't of 64 bits with sign.
        """
        return register_access.extreme_update(self._store, self.key, self._of, value)

    @property
    def value(self) -> int | None:
        """The value; None when the key doesn't exist."""
        return register_access.extreme_value(self._store, self.key, self._of)


class MaxRegister(_Extreme):
    """The largest integer that any store has written and no `clear` has seen.

    >>> import tempfile, everwrite
    >>> db = everwrite.open(tempfile.mkdtemp(), "os")
    >>> [db.max(b"best score").update(score) for score in (10, 7, 12)]
    [10, 10, 12]
    >>> db.max(b"best score").value
    12
    >>> db.close()
    """

    _of = "max"


class MinRegister(_Extreme):
    """The smallest integer that any store has written and no `clear` has seen.

    >>> import tempfile, everwrite
    >>> db = everwrite.open(tempfile.mkdtemp(), "os")
    >>> [db.min(b"best time").update(seconds) for seconds in (62, 65, 59)]
    [62, 62, 59]
    >>> db.close()
    """

    _of = "min"


class HyperLogLog(View):
    """How many different items were added, without keeping them: a standard error of 0.81 % in at most 20 KB.

    >>> import tempfile, everwrite
    >>> db = everwrite.open(tempfile.mkdtemp(), "os")
    >>> monday, tuesday = db.hyperloglog(b"visitors/mon"), db.hyperloglog(b"visitors/tue")
    >>> monday.add(b"ann", b"bob", b"cem")
    True
    >>> monday.add(b"bob"), tuesday.add(b"bob", b"dora")
    (False, True)
    >>> monday.count(), tuesday.count(), monday.count(tuesday)
    (3, 2, 4)
    >>> db.close()
    """

    WRITES: ClassVar[tuple[str, ...]] = ("add", "merge", "clear")

    def add(self, *items: bytes) -> bool:
        """Add items, together as one update; returns False when that can't change any count.

        Raises WrongTypeError when the key holds another type.
        """
        return register_access.sketch_add(self._store, self.key, items)

    def merge(self, *others: HyperLogLog) -> bool:
        """Add what others of the same database hold; returns and raises as `add`."""
        return register_access.sketch_merge(self._store, self.key, [self._key_of(other) for other in others])

    def count(self, *others: HyperLogLog) -> int:
        """How many different items were added to this one and the others together, estimated; 0 without the key.

        Estimator: Ertl, New cardinality estimation algorithms for HyperLogLog sketches (2017).
        """
        return register_access.sketch_count(self._store, [self.key, *(self._key_of(other) for other in others)])

    def _key_of(self, other: HyperLogLog) -> bytes:
        if other._store is not self._store:
            raise ValueError(f"{other!r} is of another database; merge the databases first")
        return other.key
