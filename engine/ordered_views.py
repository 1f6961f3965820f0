"""Handles on sorted sets, bounded counters and sequences.

Made by the methods `sorted_set`, `bounded_counter` and `sequence` of a `Database`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, SupportsIndex, overload

from everwrite import access, ordered_access, rank_access
from everwrite.errors import OverflowError
from everwrite.register_views import View
from everwrite.store import Store

__all__ = ["BoundedCounter", "SequenceView", "SortedSet"]

_PAGE = 1000
_INFINITY = float("inf")

Condition = Literal["absent", "present", "greater", "less"]


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    raise TypeError(f"expected bytes, not {type(value).__name__}")


class SortedSet(View):
    """Members with scores, in the order of the scores; members with the same score in byte order.

    A score is a float. Of scores set concurrently the newest shows; concurrent increments add up on top of it,
    each exactly once. A write that a remove hadn't seen survives it. Every operation takes time in proportion to
    the logarithm of the number of members, and to what it returns. The first one that asks for a rank or a count among
    256 members or more makes an index: that one walks along all members.

    >>> import tempfile, everwrite
    >>> db = everwrite.open(tempfile.mkdtemp(), "os")
    >>> board = db.sorted_set(b"board")
    >>> board.update({b"ann": 30, b"bob": 12.5, b"cyd": 40})
    >>> board.increment(b"bob", 20)
    32.5
    >>> list(board)
    [b'ann', b'bob', b'cyd']
    >>> board.range(minimum=31, reverse=True)
    [(b'cyd', 40.0), (b'bob', 32.5)]
    >>> board.rank(b"cyd"), board.at(-1), board.count(minimum=31)
    (2, (b'cyd', 40.0), 2)
    >>> board.pop_first()
    (b'ann', 30.0)
    >>> board[b"bob"], len(board), b"ann" in board
    (32.5, 2, False)
    >>> db.close()
    """

    WRITES: ClassVar[tuple[str, ...]] = (
        "add", "update", "increment", "discard", "remove", "pop_first", "pop_last", "pop_at", "discard_ranks", "clear",
        "__setitem__", "__delitem__",
    )  # fmt: skip

    def add(self, member: bytes, score: float, *, condition: Condition | None = None) -> bool:
        """Set a member's score; returns whether the member is new or its score another than before.

        `condition`: only when the member is "absent" or "present", or, of a member that is there, only when its
        score becomes "greater" or "less". Raises ValueError when the score is NaN, WrongTypeError when the key holds
        another type, TooLargeError when the member has over 65,536 bytes.
        """
        return ordered_access.sorted_set_add(self._store, self.key, {_bytes(member): float(score)}, condition)[1] > 0

    def update(self, scores: Mapping[bytes, float]) -> None:
        """Set several scores together, as one update. Raises as `add`."""
        ordered_access.sorted_set_add(self._store, self.key, {_bytes(m): float(s) for m, s in scores.items()})

    def increment(self, member: bytes, amount: float = 1.0) -> float:
        """Add to a member's score (absent: 0); returns the new score.

        Raises ValueError when the amount is infinite or NaN, OverflowError when the sum would be; and as `add`.
        """
        return ordered_access.sorted_set_increment(self._store, self.key, _bytes(member), float(amount))

    def discard(self, *members: bytes) -> int:
        """Remove members if they are there, together as one update; returns how many were."""
        return access.remove_elements(self._store, self.key, "sorted set", [_bytes(member) for member in members])

    def remove(self, member: bytes) -> None:
        """Remove a member; raises KeyError when it isn't there."""
        if not self.discard(member):
            raise KeyError(member)

    def score(self, member: bytes) -> float | None:
        """The score of a member; None when it isn't there."""
        return ordered_access.sorted_set_score(self._store, self.key, _bytes(member))

    def __getitem__(self, member: bytes) -> float:
        score = self.score(member)
        if score is None:
            raise KeyError(member)
        return score

    def __setitem__(self, member: bytes, score: float) -> None:
        self.add(member, score)

    def __delitem__(self, member: bytes) -> None:
        self.remove(member)

    def __contains__(self, member: object) -> bool:
        return self.score(_bytes(member)) is not None

    def __len__(self) -> int:
        return access.cardinality(self._store, self.key, "sorted set")

    def __iter__(self) -> Iterator[bytes]:
        """The members by rising score. Writing meanwhile is allowed."""
        return (member for member, _ in self.items())

    def __reversed__(self) -> Iterator[bytes]:
        return (member for member, _ in self.items(reverse=True))

    def items(
        self, minimum: float = -_INFINITY, maximum: float = _INFINITY, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, float]]:
        """Members with their scores, from `minimum` to `maximum` (both included), by rising or falling score.

        Sees the store as it is when each page is read: a member whose score changes meanwhile may come twice
        or not at all.
        """
        first, last = (maximum, minimum) if reverse else (minimum, maximum)
        if first != first or last != last:
            raise ValueError("a bound of scores is NaN")
        after: bytes | None = None
        while page := ordered_access.sorted_set_range(self._store, self.key, first, last, reverse, after, _PAGE):
            yield from page
            if len(page) < _PAGE:
                return
            after, first = page[-1]

    def range(
        self,
        minimum: float = -_INFINITY,
        maximum: float = _INFINITY,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> list[tuple[bytes, float]]:
        """Up to `limit` members with their scores, from `minimum` to `maximum` (both included), as one moment had them.

        For an excluded bound use `math.nextafter`. Raises ValueError for a negative limit or a NaN.
        """
        first, last = (maximum, minimum) if reverse else (minimum, maximum)
        if first != first or last != last:
            raise ValueError("a bound of scores is NaN")
        count = (1 << 62) if limit is None else _count(limit)
        return ordered_access.sorted_set_range(self._store, self.key, first, last, reverse, None, count)

    def first(self, limit: int = 1) -> list[tuple[bytes, float]]:
        """Up to `limit` members with the smallest scores."""
        return self.range(limit=limit)

    def last(self, limit: int = 1) -> list[tuple[bytes, float]]:
        """Up to `limit` members with the greatest scores, the greatest first."""
        return self.range(limit=limit, reverse=True)

    # ---- by rank: how many members come before one ----

    def rank(self, member: bytes) -> int | None:
        """How many members come before this one; None when it isn't there. O(log n)."""
        return rank_access.sorted_set_rank(self._store, self.key, _bytes(member))

    def reverse_rank(self, member: bytes) -> int | None:
        """How many members come behind this one; None when it isn't there. O(log n)."""
        return rank_access.sorted_set_rank(self._store, self.key, _bytes(member), True)

    def at(self, rank: int) -> tuple[bytes, float]:
        """The member with this rank and its score; negative ranks count from the end, the last is -1. O(log n).

        Raises IndexError when there is none.
        """
        found = rank_access.sorted_set_at(self._store, self.key, *_from_end(rank))
        if found is None:
            raise IndexError(f"sorted set {self.key!r} has no member with the rank {rank}")
        return found

    def ranks(
        self, start: int | None = None, stop: int | None = None, step: int | None = None
    ) -> list[tuple[bytes, float]]:
        """The members with the ranks `[start:stop:step]` of a list and their scores, as one moment had them.

        O(log n) and what it returns; with a step, up to 64 times that.
        """
        return rank_access.sorted_set_slice(self._store, self.key, slice(start, stop, step))

    def count(self, minimum: float = -_INFINITY, maximum: float = _INFINITY) -> int:
        """How many members have scores from `minimum` to `maximum` (both included). O(log n), however many they are.

        Raises ValueError for a NaN.
        """
        if minimum != minimum or maximum != maximum:
            raise ValueError("a bound of scores is NaN")
        return rank_access.sorted_set_count(self._store, self.key, minimum, maximum)

    def pop_at(self, rank: int) -> tuple[bytes, float]:
        """Remove and return the member with this rank, counted as in `at`, and its score. O(log n).

        Raises IndexError when there is none.
        """
        found = rank_access.sorted_set_pop_at(self._store, self.key, *_from_end(rank))
        if found is None:
            raise IndexError(f"sorted set {self.key!r} has no member with the rank {rank}")
        return found

    def discard_ranks(self, start: int | None = None, stop: int | None = None) -> int:
        """Remove the members with the ranks `[start:stop]` of a list, together as one update; returns how many.

        O(log n) for each of them.
        """
        return len(rank_access.sorted_set_slice(self._store, self.key, slice(start, stop), True))

    def pop_first(self) -> tuple[bytes, float]:
        """Remove and return the member with the smallest score; raises KeyError when there is none."""
        return self._pop(False)

    def pop_last(self) -> tuple[bytes, float]:
        """Remove and return the member with the greatest score; raises KeyError when there is none."""
        return self._pop(True)

    def _pop(self, from_end: bool) -> tuple[bytes, float]:
        found = ordered_access.sorted_set_pop(self._store, self.key, from_end, 1)
        if not found:
            raise KeyError(f"sorted set {self.key!r} is empty")
        return found[0]


def _count(limit: SupportsIndex) -> int:
    limit = operator.index(limit)
    if limit < 0:
        raise ValueError(f"the limit is {limit}; it must not be negative")
    return min(limit, 1 << 62)


class BoundedCounter(View):
    """An integer that never falls below a minimum, although every store decrements it without asking another.

    Each store holds *rights*, and together they make up what the value has above the minimum. Incrementing gives
    rights to this store, decrementing uses up its own, and `transfer` hands them to another. A decrement for
    which this store holds too few raises InsufficientRightsError, which tells where the others are. So no
    interleaving of decrements, crashes and partitions takes the value below the minimum, and what a store has
    rights for succeeds also while it is cut off.

    A counter exists from its first increment on. A delete ends it: increments and decrements that it hadn't
    seen end with it. Counters created concurrently at one key add up; the higher minimum binds both.

    >>> import tempfile, everwrite
    >>> shop, web = (everwrite.open(tempfile.mkdtemp(), "os") for _ in range(2))
    >>> seats = shop.bounded_counter(b"seats")
    >>> seats.increment(100)
    100
    >>> seats.transfer(web.origin, 40)
    >>> for batch in shop.changes(since=web.applied):
    ...     web.apply(batch)
    >>> web.bounded_counter(b"seats").decrement(30)
    70
    >>> web.bounded_counter(b"seats").rights, seats.rights
    (10, 60)
    >>> try:
    ...     web.bounded_counter(b"seats").decrement(11)
    ... except everwrite.InsufficientRightsError as error:
    ...     print(error.requested, error.held, error.elsewhere == {shop.origin: 60})
    11 10 True
    >>> shop.close(), web.close()
    (None, None)
    """

    WRITES: ClassVar[tuple[str, ...]] = ("increment", "decrement", "transfer", "reclaim", "clear")

    def __init__(self, store: Store, key: bytes, minimum: int = 0) -> None:
        super().__init__(store, key)
        if not -(1 << 63) <= minimum < 1 << 63:
            raise OverflowError(f"the minimum is {minimum}; it must be an integer of 64 bits with sign")
        self._minimum = minimum

    def increment(self, n: int = 1) -> int:
        """Add `n`, which is positive, and hold as many more rights; returns the new value.

        The first increment creates the counter, with the minimum of this handle. Raises ValueError when `n` isn't
        positive, OverflowError when the value would leave 64 bits, WrongTypeError when the key holds another type.
        """
        return ordered_access.bounded_increment(self._store, self.key, self._minimum, _amount(n))

    def decrement(self, n: int = 1) -> int:
        """Subtract `n`, which is positive, from the rights of this store; returns the new value.

        Raises InsufficientRightsError when this store holds fewer, and as `increment`. Nothing has changed then.
        """
        return ordered_access.bounded_decrement(self._store, self.key, _amount(n))

    def transfer(self, to_origin: int, n: int) -> None:
        """Hand `n` rights of this store over to another origin (`Database.origin` there). Raises as `decrement`.

        They count for it when it has received this update. Rights given to an origin that doesn't exist are lost.
        """
        if not 0 < to_origin < 1 << 64 or to_origin == self._store.origin:
            raise ValueError(f"origin {to_origin!r} can't be given rights: it must be that of another store")
        ordered_access.bounded_transfer(self._store, self.key, to_origin, _amount(n))

    def reclaim(self) -> int:
        """Take over the rights that earlier incarnations of this store still hold; returns how many.

        A store that stopped uncleanly, or was restored from a backup, begins a new incarnation: a new origin,
        without rights. It may have lost updates of the old one that others have received, decrements and transfers
        among them, so that some of the rights that it sees there may have been spent already. Hence they aren't used
        by themselves. Call this when all that the old incarnation gave away has come back, that is after this store
        has exchanged changes with every other one; and never while the old incarnation lives on somewhere, as the
        original of a copied or restored store does. Else the value may fall below the minimum.
        """
        return ordered_access.bounded_reclaim(self._store, self.key)

    @property
    def value(self) -> int:
        """The value as far as this store knows; the handle's minimum when the counter doesn't exist."""
        state = ordered_access.bounded_state(self._store, self.key)
        return self._minimum if state is None else state[0]

    @property
    def minimum(self) -> int:
        """The minimum that binds; the handle's when the counter doesn't exist."""
        state = ordered_access.bounded_state(self._store, self.key)
        return self._minimum if state is None else state[1]

    @property
    def rights(self) -> int:
        """By how much this store may decrement."""
        return self.rights_by_origin.get(self._store.origin, 0)

    @property
    def rights_by_origin(self) -> dict[int, int]:
        """Who may decrement by how much, as far as this store knows; origins without rights are left out."""
        state = ordered_access.bounded_state(self._store, self.key)
        return {} if state is None else state[2]


def _amount(n: SupportsIndex) -> int:
    n = operator.index(n)
    if n <= 0:
        raise ValueError(f"the amount is {n!r}; it must be positive")
    if n >= 1 << 63:
        raise OverflowError(f"the amount is {n!r}; it must be less than 2**63")
    return n


class SequenceView(View, Sequence[bytes]):
    """A list of bytes that many stores write at once: an item stays between the neighbours that it was put between.

    Runs of items that stores insert concurrently at one place, forwards or backwards, don't mix. An item has a
    *position*, bytes that stay the same whatever happens around it, also when it is removed: `insert_after`
    and `insert_before` take one. Indexes change with every insert and remove. Of values written to one item
    concurrently the newest shows; a write that a remove hadn't seen brings the item back.

    Positions stay short where items are appended or put in front, in runs or one by one, by however many stores;
    they grow slowly at random places. Every operation takes time in proportion to the logarithm of the number of items,
    for each item that it names or returns; the first one by index among 256 items or more, away from the ends, walks
    along all items to make an index. Only splitting one and the same gap over and over makes them long: thousands of
    times, then the insert raises TooLargeError.

    >>> import tempfile, everwrite
    >>> db = everwrite.open(tempfile.mkdtemp(), "os")
    >>> list_ = db.sequence(b"list")
    >>> _ = list_.extend([b"a", b"b", b"d"])
    >>> _ = list_.insert(2, b"c")
    >>> list_[:], list_[-1], len(list_)
    ([b'a', b'b', b'c', b'd'], b'd', 4)
    >>> here = list_.position(1)
    >>> _ = list_.appendleft(b"_")
    >>> _ = list_.insert_after(here, b"after b")
    >>> list_.pop(), list_.popleft(), list(list_)
    (b'd', b'_', [b'a', b'b', b'after b', b'c'])
    >>> db.close()
    """

    WRITES: ClassVar[tuple[str, ...]] = (
        "append", "appendleft", "extend", "insert", "insert_all", "insert_before", "insert_after", "set", "discard",
        "pop", "popleft", "clear", "__setitem__", "__delitem__",
    )  # fmt: skip

    # ---- reading ----

    def __len__(self) -> int:
        return access.cardinality(self._store, self.key, "sequence")

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice[int | None, int | None, int | None]) -> list[bytes]: ...
    def __getitem__(self, index: int | slice[int | None, int | None, int | None]) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [value for _, value in rank_access.sequence_slice(self._store, self.key, index)]
        found = ordered_access.sequence_at(self._store, self.key, *_from_end(index))
        if found is None:
            raise IndexError(f"sequence {self.key!r} has no item {index}")
        return found[1]

    def __iter__(self) -> Iterator[bytes]:
        """The values in order. Writing meanwhile is allowed."""
        return (value for _, value in self.items())

    def __reversed__(self) -> Iterator[bytes]:
        return (value for _, value in self._pages(None, reverse=True))

    def items(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Positions and values in order, from the item with index `start` on. Writing meanwhile is allowed."""
        if start:
            first = ordered_access.sequence_at(self._store, self.key, *_from_end(start))
            if first is None:
                return
            yield first
            yield from self._pages(first[0], reverse=False)
        else:
            yield from self._pages(None, reverse=False)

    def _pages(self, edge: bytes | None, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        while page := ordered_access.sequence_items(self._store, self.key, _PAGE, edge, reverse):
            yield from page
            if len(page) < _PAGE:
                return
            edge = page[-1][0]

    def position(self, index: int) -> bytes:
        """The position of the item with this index. Raises IndexError when there is none."""
        found = ordered_access.sequence_at(self._store, self.key, *_from_end(index))
        if found is None:
            raise IndexError(f"sequence {self.key!r} has no item {index}")
        return found[0]

    def index_of(self, position: bytes) -> int:
        """How many items lie before a position: the index of its item, or where it would be if it is removed.

        Raises ValueError when the bytes are no position.
        """
        return ordered_access.sequence_index(self._store, self.key, _bytes(position))

    def get(self, position: bytes) -> bytes | None:
        """The value of the item at a position; None when it was removed. Raises ValueError as `index_of`."""
        return ordered_access.sequence_get(self._store, self.key, _bytes(position))

    # ---- writing ----

    def append(self, value: bytes) -> bytes:
        """Add a value at the end; returns its position.

        Raises WrongTypeError when the key holds another type, TooLargeError when the value has over 64 MiB.
        """
        return self.extend([value])[0]

    def extend(self, values: Iterable[bytes]) -> list[bytes]:
        """Add values at the end, together as one update; returns their positions. Raises as `append`."""
        return self.insert_all(1 << 62, values)

    def appendleft(self, value: bytes) -> bytes:
        """Put a value in front; returns its position. Raises as `append`."""
        return self.insert(0, value)

    def insert(self, index: int, value: bytes) -> bytes:
        """Put a value before the item with this index (as `list.insert`); returns its position. Raises as `append`."""
        return self.insert_all(index, [value])[0]

    def insert_all(self, index: int, values: Iterable[bytes]) -> list[bytes]:
        """Put values before the item with this index, together as one update; returns their positions."""
        index = operator.index(index)
        if index < 0:
            index = max(0, len(self) + index)
        return ordered_access.sequence_insert(
            self._store, self.key, [_bytes(value) for value in values], min(index, 1 << 62)
        )

    def insert_before(self, position: bytes, *values: bytes) -> list[bytes]:
        """Put values before a position, whether its item is still there or not; returns their positions.

        Raises ValueError when the bytes are no position; and as `append`.
        """
        return ordered_access.sequence_insert(
            self._store, self.key, [_bytes(value) for value in values], 0, _bytes(position), False
        )

    def insert_after(self, position: bytes, *values: bytes) -> list[bytes]:
        """Put values behind a position. As `insert_before`."""
        return ordered_access.sequence_insert(
            self._store, self.key, [_bytes(value) for value in values], 0, _bytes(position), True
        )

    def set(self, position: bytes, value: bytes) -> bool:
        """Replace the value of the item at a position; returns whether it is there. Raises as `insert_before`."""
        return ordered_access.sequence_set(self._store, self.key, _bytes(position), _bytes(value))

    def discard(self, *positions: bytes) -> int:
        """Remove the items at positions if they are there, together as one update; returns how many were."""
        return access.remove_elements(self._store, self.key, "sequence", [_bytes(position) for position in positions])

    def pop(self, index: int = -1) -> bytes:
        """Remove the item with this index and return its value. Raises IndexError when there is none."""
        found = ordered_access.sequence_pop(self._store, self.key, *_from_end(index))
        if found is None:
            raise IndexError(f"sequence {self.key!r} has no item {index}")
        return found[1]

    def popleft(self) -> bytes:
        """Remove the first item and return its value. Raises IndexError when there is none."""
        return self.pop(0)

    def __setitem__(self, index: int | slice[int | None, int | None, int | None], value: bytes) -> None:
        if isinstance(index, slice):
            raise TypeError("a slice can't be replaced as a whole: delete it, and insert_all at its start")
        if not ordered_access.sequence_set_at(self._store, self.key, *_from_end(index), _bytes(value)):
            raise IndexError(f"sequence {self.key!r} has no item {index}")

    def __delitem__(self, index: int | slice[int | None, int | None, int | None]) -> None:
        if isinstance(index, slice):
            rank_access.sequence_slice(self._store, self.key, index, True)
        else:
            self.pop(index)


def _from_end(index: SupportsIndex) -> tuple[int, bool]:
    """An index as Python counts it: from which end, and how far."""
    index = operator.index(index)
    return (index, False) if index >= 0 else (-1 - index, True)
