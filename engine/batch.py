"""The batch: what one store sends to another, as bytes.

docs/formats/batch.md shows the layout: a msgpack array around a zstd-compressed body, and a checksum. The same
bytes serve embedded stores (`Store.changes`) and the links between servers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import msgpack
import zstandard

from everwrite.checksum import checksum
from everwrite.errors import FormatError, ProtocolError, TooLargeError

__all__ = [
    "CHANGES",
    "CLAIM",
    "MAX_BATCH_BODY",
    "STATES",
    "Batch",
    "Span",
    "decode_batch",
    "decode_horizon",
    "encode_batch",
    "encode_horizon",
]

VERSION = 1
CHANGES = 1
"""Changes from the log, in log order: groups, each applied as a whole."""
STATES = 2
"""Full states of keys, part of a resync."""
CLAIM = 3
"""The end of a resync: with all its states joined, `spans` is held, and what the sender's horizon covers is settled."""

MAX_BATCH_BODY = 160 << 20
"""Bytes that a body may have after decompression: the largest change and what surrounds it."""

_MAX_SPANS = 1 << 16
_CHECKSUM_BYTES = 4
_DOT = struct.Struct("<QQ")
_COMPRESS = zstandard.ZstdCompressor(level=1, write_content_size=True)


class Span(NamedTuple):
    """All updates of `origin` in (`after`, `upto`]."""

    origin: int
    after: int
    upto: int


@dataclass(frozen=True)
class Batch:
    """A decoded envelope. `index` and `resync` are 0 unless it belongs to a resync."""

    kind: int
    spans: tuple[Span, ...]
    count: int
    body: bytes
    resync: int
    index: int


def encode_batch(
    kind: int, spans: list[tuple[int, int, int]], count: int, body: bytes, *, resync: int = 0, index: int = 0
) -> bytes:
    """The bytes of a batch of `count` changes, states or (for a claim) state batches."""
    packed: bytes = msgpack.packb([VERSION, kind, spans, count, len(body), _COMPRESS.compress(body), resync, index])
    return packed + checksum(packed).to_bytes(_CHECKSUM_BYTES, "little")


def encode_horizon(horizon: Mapping[int, int]) -> bytes:
    """The body of a claim: a version vector, which may be empty."""
    return b"".join(_DOT.pack(*dot) for dot in sorted(horizon.items()))


def decode_horizon(body: bytes) -> dict[int, int]:
    """The version vector in the body of a claim."""
    return dict(_DOT.iter_unpack(body))


def _unsigned(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _refuse(reason: str) -> ProtocolError:
    return ProtocolError(f"malformed batch: {reason}; nothing of it was applied")


def decode_batch(data: bytes) -> Batch:
    """Check and open a batch.

    Raises ProtocolError when it is malformed, TooLargeError when its body is over
    `MAX_BATCH_BODY`, FormatError when a newer release made it. Allocates no more than the
    input's size before every length has been checked.
    """
    content, expected = memoryview(data)[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if checksum(content).to_bytes(_CHECKSUM_BYTES, "little") != expected:
        raise _refuse("its checksum doesn't match: it was cut short or altered on the way")
    try:
        fields = msgpack.unpackb(content, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise _refuse(f"not msgpack ({error})") from None
    if not isinstance(fields, list) or not fields:
        raise _refuse("not an array")
    if fields[0] != VERSION:
        if isinstance(fields[0], int) and fields[0] > VERSION:
            raise FormatError(f"a batch of format version {fields[0]}; this release knows {VERSION}: upgrade it")
        raise _refuse(f"format version {fields[0]!r}")
    if len(fields) != 8:
        raise _refuse(f"{len(fields)} fields instead of 8")
    _, kind, raw_spans, count, size, packed, resync, index = fields
    if kind not in (CHANGES, STATES, CLAIM):
        raise _refuse(f"kind {kind!r}")
    if not all(_unsigned(number) for number in (count, size, resync, index)) or not isinstance(packed, bytes):
        raise _refuse("a number or the body has the wrong type")
    if not isinstance(raw_spans, list) or len(raw_spans) > _MAX_SPANS:
        raise _refuse("the spans")
    spans = []
    for span in raw_spans:
        if not (isinstance(span, list) and len(span) == 3 and all(map(_unsigned, span)) and span[1] <= span[2]):
            raise _refuse(f"span {span!r}")
        spans.append(Span(*span))
    if (kind == STATES and spans) or (kind == CLAIM and (size % _DOT.size or size > _MAX_SPANS * _DOT.size)):
        raise _refuse("spans beside states, or a claim whose body is no version vector")
    if size > MAX_BATCH_BODY:
        raise TooLargeError(f"a batch body of {size} bytes; the limit is {MAX_BATCH_BODY}")
    return Batch(kind, tuple(spans), count, _open_body(packed, size), resync, index)


def _open_body(packed: bytes, size: int) -> bytes:
    try:
        parameters = zstandard.get_frame_parameters(packed)
        if parameters.content_size != size:
            raise _refuse("the body's announced sizes differ")
        body = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise _refuse(f"the body can't be decompressed ({error})") from None
    if len(body) != size:
        raise _refuse("the body is shorter than announced")
    return body
