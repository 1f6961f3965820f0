"""Bytes to messages and back: a 32-bit little-endian length, then one msgpack array.

A length is checked against the limit before anything of the frame is stored.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from everwrite.errors import ProtocolError
from everwrite.server.messages import Message

__all__ = ["FRAME_BYTES_MAX", "HELLO_BYTES_MAX", "FrameDecoder", "OversizedError", "encode"]

# A batch of the greatest size (160 MiB) that can't be compressed, and what surrounds it.
FRAME_BYTES_MAX: Final = 161 << 20
HELLO_BYTES_MAX: Final = 64 << 10

_LENGTH: Final = struct.Struct("<I")
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)


class OversizedError(ProtocolError):
    """A frame announces a length over the limit."""


def encode(message: Message) -> bytes:
    """Return the frame of `message`.

    Raises `OversizedError` when it would be over `FRAME_BYTES_MAX`.
    """
    frame = bytearray(_LENGTH.size)
    _encoder.encode_into(message, frame, _LENGTH.size)
    length = len(frame) - _LENGTH.size
    if length > FRAME_BYTES_MAX:
        raise OversizedError(
            f"a {type(message).__name__} message of {length} bytes is over the limit of {FRAME_BYTES_MAX} bytes"
        )
    _LENGTH.pack_into(frame, 0, length)
    return bytes(frame)


def decode(body: bytes | bytearray | memoryview) -> Message:
    """Return the message in the body of a frame (without the length). Raises `ProtocolError`."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame of {len(body)} bytes holds no valid message: {error}") from None


class FrameDecoder:
    """Collects received bytes and hands out the messages in them.

    Invariants: what is buffered is at most one incomplete frame within `limit` plus what one
    `feed` brought; nothing is allocated in proportion to a length that wasn't checked. After an
    error every further call raises the same error: the stream has lost its framing.
    """

    def __init__(self, limit: int = HELLO_BYTES_MAX) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._start = 0
        self._error: ProtocolError | None = None

    @property
    def buffered(self) -> int:
        """Bytes that are held and not yet handed out as a message."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add received bytes."""
        if self._start:
            # Only here, so that taking many small messages out of one read doesn't move the rest each time.
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_message(self) -> Message | None:
        """Take out the next whole message; None when there is none yet.

        Raises `OversizedError` as soon as a length over the limit is seen, `ProtocolError` for
        a body that isn't a message.
        """
        if self._error is not None:
            raise self._error
        if self.buffered < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        if length > self.limit:
            self._fail(
                OversizedError(f"a frame announces {length} bytes, over the limit of {self.limit} bytes at this point")
            )
        end = self._start + _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        try:
            with memoryview(self._buffer) as view, view[self._start + _LENGTH.size : end] as body:
                message = decode(body)
        except ProtocolError as error:
            self._fail(error)
        self._start = end
        if end == len(self._buffer):
            self._buffer.clear()
            self._start = 0
        return message

    def _fail(self, error: ProtocolError) -> None:
        self._error = error
        self._buffer.clear()
        self._start = 0
        raise error
