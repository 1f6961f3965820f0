"""The messages of a reconciliation, and their bytes; docs/protocols/reconcile.md shows the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from everwrite.batch import MAX_BATCH_BODY
from everwrite.errors import FormatError, ProtocolError, TooLargeError, shown_key
from everwrite.leaf_scan import ITEM

__all__ = [
    "MESSAGE_BYTES_MAX",
    "Ask",
    "Digests",
    "Message",
    "Offer",
    "Push",
    "Root",
    "States",
    "child_bits",
    "decode_message",
    "encode_message",
]

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = MAX_BATCH_BODY + (32 << 20)
"""Bytes of a message: the largest batch, and the keys beside it."""
KEY_BYTES_MAX: Final = 65536

Numbers: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Root:
    """The digest of all that a store holds: the first message, and its answer."""

    root: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """A question for what lies below nodes: ranges of hashes whose upper `bits` bits are those of a prefix."""

    bits: int
    prefixes: Numbers


@dataclass(frozen=True, slots=True)
class Digests:
    """Of each node asked about either the items in it (`lists`, by its index), or the sums of its children."""

    bits: int
    prefixes: Numbers
    lists: Mapping[int, NDArray[Any]]
    sums: Numbers


@dataclass(frozen=True, slots=True)
class Offer:
    """Hashes of keys that differ, and the asking side's keys with these hashes and their contexts.

    `horizon` is the context of those that the asking side doesn't have.
    """

    hashes: Numbers
    keys: Mapping[bytes, Mapping[int, int]]
    horizon: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class States:
    """States (a batch, or nothing), keys whose states are wanted, keys whose states didn't fit."""

    batch: bytes
    wanted: list[bytes] = field(default_factory=list)
    left: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Push:
    """States for the other side to join, and keys whose states are to come back."""

    batch: bytes
    fetch: list[bytes]


Message: TypeAlias = Root | Ask | Digests | Offer | States | Push

_SUMMED = 0xFFFFFFFF


def child_bits(bits: int) -> int:
    """How many bits name a child of a node that `bits` bits name."""
    return 6 if bits == 0 else bits + 4


def _node_bits(value: object) -> int:
    if type(value) is int and (value == 0 or (6 <= value <= 58 and value % 4 == 2)):
        return value
    raise _refuse(f"nodes of {value!r} bits")


def _refuse(reason: str) -> ProtocolError:
    return ProtocolError(f"malformed message of a reconciliation: {reason}; nothing of it was joined")


def encode_message(message: Message) -> bytes:
    """The bytes of a message."""
    fields: list[Any]
    match message:
        case Root(root):
            fields = [1, root]
        case Ask(bits, prefixes):
            fields = [2, bits, prefixes.astype("<u8").tobytes()]
        case Digests(bits, prefixes, lists, sums):
            counts = [len(lists[index]) if index in lists else _SUMMED for index in range(len(prefixes))]
            listed = np.concatenate([np.zeros(0, ITEM), *(lists[index] for index in sorted(lists))])
            fields = [
                3,
                bits,
                prefixes.astype("<u8").tobytes(),
                np.array(counts, "<u4").tobytes(),
                sums.astype("<u8").tobytes(),
                listed.tobytes(),
            ]
        case Offer(hashes, keys, horizon):
            offers = [[key, _pack_vector(vector)] for key, vector in keys.items()]
            fields = [4, hashes.astype("<u8").tobytes(), offers, _pack_vector(horizon)]
        case States(batch, wanted, left):
            fields = [5, batch, wanted, left]
        case Push(batch, fetch):
            fields = [6, batch, fetch]
    packed: bytes = msgpack.packb([VERSION, *fields])
    return packed


def _pack_vector(vector: Mapping[int, int]) -> bytes:
    return np.array(sorted(vector.items()), "<u8").tobytes()


def _numbers(value: object, what: str, *, ascending: bool = False, width: int = 8) -> NDArray[Any]:
    if not isinstance(value, bytes) or len(value) % width:
        raise _refuse(f"the {what}")
    numbers = np.frombuffer(value, f"<u{width}")
    if ascending and len(numbers) > 1 and not (numbers[1:] > numbers[:-1]).all():
        raise _refuse(f"the {what} are not in order")
    return numbers


def _prefixes(value: object, bits: int) -> Numbers:
    prefixes = _numbers(value, "nodes", ascending=True)
    if not len(prefixes) or (prefixes & np.uint64((1 << (64 - bits)) - 1)).any():
        raise _refuse(f"a node's hash has more than {bits} bits, or there is no node")
    return prefixes


def _batch(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise _refuse("the batch")
    return value


def _keys(value: object) -> list[bytes]:
    if not isinstance(value, list) or not all(isinstance(key, bytes) and len(key) <= KEY_BYTES_MAX for key in value):
        raise _refuse("the keys")
    if len(set(value)) != len(value):
        raise _refuse("a key stands in it twice")
    return value


def _offers(value: object) -> dict[bytes, dict[int, int]]:
    if not isinstance(value, list):
        raise _refuse("the offered keys")
    offers: dict[bytes, dict[int, int]] = {}
    for each in value:
        if not isinstance(each, list) or len(each) != 2:
            raise _refuse("an offered key")
        (key,) = _keys([each[0]])
        offers_of_key = _vector(each[1], f"the context of key {shown_key(key)}")
        if key in offers or not offers_of_key:
            raise _refuse(f"the context of key {shown_key(key)}, or the key stands in it twice")
        offers[key] = offers_of_key
    return offers


def _vector(value: object, what: str) -> dict[int, int]:
    numbers = _numbers(value, what)
    if len(numbers) % 2 or not numbers[1::2].all():
        raise _refuse(what)
    vector = dict(zip(numbers[::2].tolist(), numbers[1::2].tolist(), strict=True))
    if len(vector) * 2 != len(numbers):
        raise _refuse(f"{what}, which names an origin twice")
    return vector


def _digests(bits: object, prefixes: object, counts: object, sums: object, items: object) -> Digests:
    width = _node_bits(bits)
    nodes = _prefixes(prefixes, width)
    sizes = _numbers(counts, "counts", width=4).tolist()
    rows = _numbers(sums, "sums")
    if not isinstance(items, bytes) or len(items) % ITEM.itemsize:
        raise _refuse("the items")
    listed = np.frombuffer(items, ITEM)
    fan_out = 1 << (child_bits(width) - width)
    summed = sizes.count(_SUMMED)
    if (
        len(sizes) != len(nodes)
        or len(rows) != summed * fan_out * 2
        or len(listed) != sum(size for size in sizes if size != _SUMMED)
    ):
        raise _refuse("sums or items that don't fit its nodes")
    lists = {}
    at = 0
    for index, size in enumerate(sizes):
        if size != _SUMMED:
            lists[index] = listed[at : at + size]
            at += size
    return Digests(width, nodes, lists, rows.reshape(-1, 2))


def decode_message(data: bytes) -> Message:
    """Check and open a message.

    Raises ProtocolError when it is malformed, TooLargeError when it is over `MESSAGE_BYTES_MAX`,
    FormatError when a newer release made it.
    """
    if len(data) > MESSAGE_BYTES_MAX:
        raise TooLargeError(f"a message of {len(data)} bytes; the limit is {MESSAGE_BYTES_MAX}")
    try:
        fields = msgpack.unpackb(data, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise _refuse(f"not msgpack ({error})") from None
    if not isinstance(fields, list) or len(fields) < 2 or not all(type(each) is int for each in fields[:2]):
        raise _refuse("not an array that begins with a version and a kind")
    if fields[0] > VERSION:
        raise FormatError(f"a reconciliation of version {fields[0]}; this release knows {VERSION}: upgrade it")
    match fields:
        case [1, 1, bytes() as root] if len(root) == 16:
            return Root(root)
        case [1, 2, bits, prefixes]:
            return Ask(_node_bits(bits), _prefixes(prefixes, _node_bits(bits)))
        case [1, 3, bits, prefixes, counts, sums, items]:
            return _digests(bits, prefixes, counts, sums, items)
        case [1, 4, hashes, offers, horizon]:
            return Offer(_numbers(hashes, "hashes", ascending=True), _offers(offers), _vector(horizon, "the horizon"))
        case [1, 5, batch, wanted, left]:
            return States(_batch(batch), _keys(wanted), _keys(left))
        case [1, 6, batch, fetch]:
            return Push(_batch(batch), _keys(fetch))
    raise _refuse(f"version {fields[0]}, kind {fields[1]} with {len(fields)} fields")
