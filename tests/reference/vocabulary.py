"""What the oracle, the model and the simulator talk about: dots, requests, answers."""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
LOGICAL_BITS = 16

# As Redis reads one: no plus sign, no blanks, no leading zeros, no "-0".
INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")


class Dot(NamedTuple):
    """One update for ever. Timestamp first, so that tuple order is the order of last-writer-wins."""

    timestamp: int
    origin: int


Vector = dict[int, int]


def covers(vector: Vector, dot: Dot) -> bool:
    """Whether the version vector includes the update."""
    return vector.get(dot.origin, 0) >= dot.timestamp


class Kind(enum.IntEnum):
    """The types a key can hold, as the engine numbers them."""

    STRING = 1
    SET = 2
    MAP = 3
    MULTI = 4
    FLAG = 5
    MAX = 6
    MIN = 7
    HYPERLOGLOG = 8
    BOUNDED = 9
    SORTED_SET = 10
    SEQUENCE = 11


# The kinds that consist of elements.
COLLECTIONS = tuple(kind for kind in Kind if kind is not Kind.STRING)


class Verb(enum.Enum):
    """The operations of a store on one key."""

    GET = "get"
    SET = "set"
    DELETE = "delete"
    INCREMENT = "increment"
    EXPIRE = "expire"
    PERSIST = "persist"
    ADD = "add"
    REMOVE = "remove"
    FIELD_SET = "field_set"
    FIELD_REMOVE = "field_remove"
    FIELD_INCREMENT = "field_increment"
    MULTI_SET = "multi_set"
    FLAG_ENABLE = "flag_enable"
    FLAG_DISABLE = "flag_disable"
    MAX_UPDATE = "max_update"
    MIN_UPDATE = "min_update"
    SKETCH_ADD = "sketch_add"
    SCORE_SET = "score_set"
    SCORE_INCREMENT = "score_increment"
    SCORE_REMOVE = "score_remove"
    SCORE_POP = "score_pop"
    BOUNDED_INCREMENT = "bounded_increment"
    BOUNDED_DECREMENT = "bounded_decrement"
    BOUNDED_TRANSFER = "bounded_transfer"
    ITEM_INSERT = "item_insert"
    ITEM_REMOVE = "item_remove"
    ITEM_SET = "item_set"


# The kind that an operation is of; the others are of the key, whatever it holds.
KIND_OF = {
    Verb.GET: Kind.STRING,
    Verb.SET: Kind.STRING,
    Verb.INCREMENT: Kind.STRING,
    Verb.ADD: Kind.SET,
    Verb.REMOVE: Kind.SET,
    Verb.FIELD_SET: Kind.MAP,
    Verb.FIELD_REMOVE: Kind.MAP,
    Verb.FIELD_INCREMENT: Kind.MAP,
    Verb.MULTI_SET: Kind.MULTI,
    Verb.FLAG_ENABLE: Kind.FLAG,
    Verb.FLAG_DISABLE: Kind.FLAG,
    Verb.MAX_UPDATE: Kind.MAX,
    Verb.MIN_UPDATE: Kind.MIN,
    Verb.SKETCH_ADD: Kind.HYPERLOGLOG,
    Verb.SCORE_SET: Kind.SORTED_SET,
    Verb.SCORE_INCREMENT: Kind.SORTED_SET,
    Verb.SCORE_REMOVE: Kind.SORTED_SET,
    Verb.SCORE_POP: Kind.SORTED_SET,
    Verb.BOUNDED_INCREMENT: Kind.BOUNDED,
    Verb.BOUNDED_DECREMENT: Kind.BOUNDED,
    Verb.BOUNDED_TRANSFER: Kind.BOUNDED,
    Verb.ITEM_INSERT: Kind.SEQUENCE,
    Verb.ITEM_REMOVE: Kind.SEQUENCE,
    Verb.ITEM_SET: Kind.SEQUENCE,
}


class Refusal(enum.Enum):
    """Why an operation was refused; it changed nothing."""

    WRONG_TYPE = "wrong type"
    NOT_AN_INTEGER = "not an integer"
    OVERFLOW = "overflow"
    NO_RIGHTS = "no rights"


@dataclass(frozen=True, slots=True)
class Request:
    """One operation as a client asks for it.

    `names` are elements of a set, fields of a map or items of a HyperLogLog, without duplicates; `values` belong to
    FIELD_SET (one a name), SET or MULTI_SET (one); `amount` is what is added, or a max or min register's value.
    SCORE_SET has a score as 8 bytes for each name, SCORE_INCREMENT adds quarters, SCORE_POP takes from the end when
    `amount` is negative. BOUNDED_INCREMENT has the minimum for a creation as its value, as decimal text,
    BOUNDED_TRANSFER the taker's origin as its name. ITEM_* count items by `amount`; ITEM_INSERT has several values.
    `deadline_ms` is in Unix milliseconds; 0 is none.
    """

    verb: Verb
    key: bytes
    names: tuple[bytes, ...] = ()
    values: tuple[bytes, ...] = ()
    amount: int = 0
    deadline_ms: int = 0
    keep_deadline: bool = False


# None: absent, or nothing to say; an int: a count, a flag or a counter's value; bytes: a value read.
Reply = int | float | bytes | Refusal | None

# What a key reads as: None when absent, else its kind with a string's bytes, a set's elements, a map's fields, the
# values of a multi-value register by age, True for a flag, or the number that the other kinds show.
# A sorted set shows (member, score) in order, a sequence (position, value), a bounded counter value, minimum, rights.
Shown = (
    bytes
    | frozenset[bytes]
    | tuple[tuple[bytes, bytes], ...]
    | tuple[bytes, ...]
    | bool
    | int
    | tuple[tuple[bytes, float], ...]
    | tuple[int, int, tuple[tuple[int, int], ...]]
)
Reading = tuple[Kind, Shown] | None


def int64_bytes(value: int) -> bytes:
    """How max and min registers store a value."""
    return value.to_bytes(8, "little", signed=True)


def int64_of(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


# Scores are multiples of it, and small: all their sums are exact, in any order.
QUARTER = 0.25


def score_bytes(score: float) -> bytes:
    """How sorted sets store a score."""
    return struct.pack("<d", score)


def score_of(data: bytes) -> float:
    return float(struct.unpack("<d", data)[0])


def integer_of(text: bytes) -> int | None:
    """The signed 64-bit integer that the text spells, or None."""
    if not INTEGER.fullmatch(text):
        return None
    value = int(text)
    return value if INT64_MIN <= value <= INT64_MAX else None


def clamp(value: int) -> int:
    """The nearest signed 64-bit integer: what a read shows when concurrent increments leave the range."""
    return max(INT64_MIN, min(INT64_MAX, value))
