"""RESP the slow way: the whole input is looked at again each time, one rule after the other.

`parse_requests` is the oracle of the server's parser; `split_reply` cuts a server's output into replies.
"""

from __future__ import annotations

import re
from typing import NamedTuple

ARGUMENTS_MAX = 1 << 20
BULK_BYTES_MAX = 64 << 20
INLINE_BYTES_MAX = 64 << 10
REQUEST_BYTES_MAX = 96 << 20
HEADER_BYTES_MAX = 33

BLANKS = b" \t\n\v\f\r"
ESCAPES = {ord("n"): b"\n", ord("r"): b"\r", ord("t"): b"\t", ord("b"): b"\b", ord("a"): b"\a"}


class Parsed(NamedTuple):
    """What a stream of bytes holds: whole commands, the incomplete rest, and the error that ends it, if any."""

    commands: list[list[bytes]]
    rest: bytes
    error: str | None


class _Broken(Exception):
    pass


class _Incomplete(Exception):
    pass


def integer(text: bytes) -> int | None:
    """A 64-bit integer in the one way of writing it, else None."""
    if not re.fullmatch(rb"0|-?[1-9][0-9]*", text):
        return None
    value = int(text)
    return value if -(1 << 63) <= value < 1 << 63 else None


def _header(data: bytes, at: int, too_long: str) -> tuple[bytes, int]:
    """The text between a type byte and its CRLF, and where the next thing begins."""
    end = data.find(b"\r", at, at + HEADER_BYTES_MAX + 1)
    if end < 0:
        if len(data) - at > HEADER_BYTES_MAX:
            raise _Broken(too_long)
        raise _Incomplete
    if end + 1 == len(data):
        raise _Incomplete
    text = data[at + 1 : end]
    return (text if data[end + 1] == ord("\n") else b"not a number"), end + 2


def _multibulk(data: bytes) -> tuple[list[bytes], int]:
    text, at = _header(data, 0, "Protocol error: too big mbulk count string")
    count = integer(text)
    if count is None or count > ARGUMENTS_MAX:
        raise _Broken("Protocol error: invalid multibulk length")
    args = []
    for _ in range(max(count, 0)):
        if at == len(data):
            raise _Incomplete
        if data[at] != ord("$"):
            shown = chr(data[at]) if 32 <= data[at] < 127 else "?"
            raise _Broken(f"Protocol error: expected '$', got '{shown}'")
        text, at = _header(data, at, "Protocol error: too big bulk count string")
        size = integer(text)
        if size is None or not 0 <= size <= BULK_BYTES_MAX:
            raise _Broken("Protocol error: invalid bulk length")
        if at + size + 2 > REQUEST_BYTES_MAX:
            raise _Broken(f"Protocol error: request over {REQUEST_BYTES_MAX} bytes")
        if len(data) < at + size + 2:
            raise _Incomplete
        if data[at + size : at + size + 2] != b"\r\n":
            raise _Broken("Protocol error: expected CRLF after bulk string")
        args.append(data[at : at + size])
        at += size + 2
    return args, at


def split_words(line: bytes) -> list[bytes] | None:
    """The words of an inline command, quotes resolved; None when they don't balance."""
    words = []
    at = 0
    while True:
        while at < len(line) and line[at] in BLANKS:
            at += 1
        if at == len(line):
            return words
        word = b""
        quote = 0
        while at < len(line):
            byte = line[at]
            hexadecimal = re.match(rb"\\x([0-9a-fA-F]{2})", line[at : at + 4])
            if not quote and byte in BLANKS:
                break
            if not quote and byte in b"\"'":
                quote = byte
            elif quote and byte == quote:
                if at + 1 < len(line) and line[at + 1] not in BLANKS:
                    return None
                quote = 0
                at += 1
                break
            elif quote == ord('"') and hexadecimal:
                word += bytes([int(hexadecimal[1], 16)])
                at += 3
            elif quote == ord('"') and byte == ord("\\") and at + 1 < len(line):
                at += 1
                word += ESCAPES.get(line[at], line[at : at + 1])
            elif quote == ord("'") and line[at : at + 2] == b"\\'":
                word += b"'"
                at += 1
            else:
                word += bytes([byte])
            at += 1
        if quote:
            return None
        words.append(word)


def _inline(data: bytes) -> tuple[list[bytes], int]:
    end = data.find(b"\n")
    if (len(data) if end < 0 else end) > INLINE_BYTES_MAX:
        raise _Broken("Protocol error: too big inline request")
    if end < 0:
        raise _Incomplete
    words = split_words(data[:end].removesuffix(b"\r"))
    if words is None:
        raise _Broken("Protocol error: unbalanced quotes in request")
    return words, end + 1


def parse_requests(data: bytes) -> Parsed:
    """Parse all that a client has sent."""
    commands = []
    while data:
        try:
            args, used = (_multibulk if data.startswith(b"*") else _inline)(data)
        except _Broken as broken:
            return Parsed(commands, data, str(broken))
        except _Incomplete:
            break
        if args:
            commands.append(args)
        data = data[used:]
    return Parsed(commands, data, None)


def _end_of_reply(data: bytes, at: int) -> int | None:
    """Where the reply that begins at `at` ends, None when it isn't complete."""
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    kind, text, after = data[at : at + 1], data[at + 1 : end], end + 2
    if kind in b"+-:_#,(":
        return after
    count = int(text)
    if kind in b"$=":
        after += count + 2 if count >= 0 else 0
        return after if len(data) >= after else None
    for _ in range(max(count, 0) * (2 if kind == b"%" else 1)):
        inner = _end_of_reply(data, after)
        if inner is None:
            return None
        after = inner
    return after


def split_reply(data: bytes) -> tuple[bytes, bytes] | None:
    """The first reply and the rest, as bytes; None when the reply isn't complete."""
    end = _end_of_reply(data, 0)
    return None if end is None else (data[:end], data[end:])


def children(reply: bytes) -> list[bytes]:
    """The replies inside an array, set or map; a map's as key and value joined."""
    at = reply.index(b"\r\n") + 2
    found = []
    while at < len(reply):
        end = _end_of_reply(reply, at)
        assert end is not None
        found.append(reply[at:end])
        at = end
    return [b"".join(pair) for pair in zip(found[::2], found[1::2], strict=True)] if reply[:1] == b"%" else found
