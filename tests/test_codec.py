"""Frames and messages: what goes out comes in, and nothing else does harm."""

from __future__ import annotations

import contextlib
import re
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.errors import ProtocolError
from everwrite.server import codec
from everwrite.server.messages import (
    PROTOCOL_VERSION,
    Ack,
    Answer,
    Ask,
    Batch,
    Goodbye,
    Heartbeat,
    Hello,
    KeyState,
    Message,
    Pull,
    Resync,
    ResyncEnd,
)
from tests.support import ROOT

UNSIGNED = st.integers(0, 2**64 - 1)
VECTOR = st.dictionaries(UNSIGNED, UNSIGNED, max_size=8)
NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        protocol=UNSIGNED,
        cluster=NAME,
        region=NAME,
        node=NAME,
        store_id=UNSIGNED,
        origin=UNSIGNED,
        now_ms=UNSIGNED,
        applied=VECTOR,
        software=st.text(st.characters(codec="utf-8"), max_size=60),
        members=st.lists(NAME, max_size=4).map(tuple),
    ),
    st.builds(Batch, sequence=UNSIGNED, changes=UNSIGNED, last_timestamp=UNSIGNED, data=st.binary(max_size=2000)),
    st.builds(Ack, sequence=UNSIGNED, applied=VECTOR),
    st.builds(Heartbeat, now_ms=UNSIGNED, newest=UNSIGNED, pending=UNSIGNED, complete=st.booleans()),
    st.builds(Pull, key=st.binary(max_size=100), origin=UNSIGNED, timestamp=UNSIGNED),
    st.builds(KeyState, key=st.binary(max_size=100), state=st.binary(max_size=1000)),
    st.builds(Resync, reason=st.text(st.characters(codec="utf-8"), max_size=200)),
    st.builds(ResyncEnd, sequence=UNSIGNED),
    st.builds(Ask, number=UNSIGNED, question=st.binary(max_size=1000)),
    st.builds(Answer, number=UNSIGNED, states=st.lists(st.binary(max_size=100), max_size=5), more=st.booleans()),
    st.builds(Goodbye, cause=st.text("abc_", max_size=60), message=st.text(st.characters(codec="utf-8"), max_size=200)),
)


def decoded(data: bytes, *, limit: int = codec.FRAME_BYTES_MAX, cuts: list[int] | None = None) -> list[Message]:
    """All messages in `data`, fed in pieces that end at `cuts`."""
    decoder = codec.FrameDecoder(limit)
    found: list[Message] = []
    ends = [*sorted({min(cut, len(data)) for cut in cuts or []}), len(data)]
    start = 0
    for end in ends:
        decoder.feed(data[start:end])
        start = end
        while (message := decoder.next_message()) is not None:
            found.append(message)
    return found


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(0, 3000), max_size=10))
def test_messages_survive_any_division(messages: list[Message], cuts: list[int]) -> None:
    data = b"".join(map(codec.encode, messages))
    assert decoded(data, cuts=cuts) == messages


@given(MESSAGES)
def test_messages_survive_byte_by_byte(message: Message) -> None:
    data = codec.encode(message)
    assert decoded(data, cuts=list(range(len(data)))) == [message]


@given(st.binary(max_size=300))
def test_garbage_is_an_error_or_waits(body: bytes) -> None:
    decoder = codec.FrameDecoder()
    decoder.feed(struct.pack("<I", len(body)) + body)
    errors: list[ProtocolError] = []
    message = None
    for _ in range(2):
        try:
            message = message or decoder.next_message()
        except ProtocolError as error:
            errors.append(error)
    if message is not None:
        assert decoded(codec.encode(message)) == [message]
    else:
        assert len(errors) == 2
        assert errors[0] is errors[1]
        assert decoder.buffered == 0


@given(MESSAGES, st.data())
def test_a_damaged_message_never_breaks_the_decoder(message: Message, data: st.DataObject) -> None:
    frame = bytearray(codec.encode(message))
    place = data.draw(st.integers(4, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):  # nothing else may come out, least of all a crash
        decoded(bytes(frame))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x91\x00",
        b"\x91\x0b",
        b"\x93\x03\x01",  # cut short
        b"\x93\x03\x01\x80\x00",  # a byte too many
        b"\x93\x03\xff\x80",  # a negative number
        b"\x93\x03\x01\x81\xff\x01",  # a negative origin
        b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1
        b"\x93\x03\x01\xdf\xff\xff\xff\xff",  # a map of 2**32 - 1
        b"\x94\x04\x01\x01\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
        b"\x93\x03\x01\x80" + b"\x91" * 5000,
        b"\x94\x03\x01\x80" + b"\x91" * 60_000,  # deep nesting in an item that would be ignored
    ],
)
def test_bad_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="no valid message"):
        decoded(struct.pack("<I", len(body)) + body)


def test_items_of_a_later_release_are_ignored() -> None:
    frame = bytearray(codec.encode(ResyncEnd(7)))
    assert frame[4] == 0x92
    frame[4] = 0x93
    frame[0] += 1
    assert decoded(bytes(frame) + b"\x2a") == [ResyncEnd(7)]


def test_a_length_is_checked_before_anything_is_kept() -> None:
    decoder = codec.FrameDecoder()
    decoder.feed(struct.pack("<I", codec.HELLO_BYTES_MAX + 1))
    with pytest.raises(codec.OversizedError, match=f"announces {codec.HELLO_BYTES_MAX + 1} bytes"):
        decoder.next_message()
    tracemalloc.start()
    try:
        with pytest.raises(codec.OversizedError, match="4294967295"):
            decoded(struct.pack("<I", 0xFFFFFFFF) + b"x" * 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_of_the_limit_passes() -> None:
    overhead = len(codec.encode(Batch(1, 1, 1, b"x" * 70_000))) - 4 - 70_000
    largest = Batch(1, 1, 1, b"x" * (codec.FRAME_BYTES_MAX - overhead))
    assert decoded(codec.encode(largest)) == [largest]
    with pytest.raises(codec.OversizedError, match="Batch message of"):
        codec.encode(Batch(1, 1, 1, largest.data + b"x"))


ORIGIN, TIMESTAMP = 0xA1B2C3D4_0001, 1_700_000_000_000 << 16 | 5
EXAMPLES: list[Message] = [
    Hello(
        PROTOCOL_VERSION,
        "test",
        "us",
        "us-0",
        0xA1B2C3D4,
        ORIGIN,
        1_700_000_000_000,
        {ORIGIN: TIMESTAMP},
        "0.1.0",
        ("us-0", "us-1"),
    ),
    Batch(1, 2, TIMESTAMP, b"\x01\x02\x03"),
    Ack(1, {ORIGIN: TIMESTAMP}),
    Heartbeat(1_700_000_000_000, TIMESTAMP, 0, True),
    Pull(b"\x02key", ORIGIN, 7),
    KeyState(b"\x02key", b"\x01\x02"),
    Resync("cut"),
    ResyncEnd(9),
    Goodbye("stopping", "this node is stopping"),
    Ask(7, b"\x03key\x00"),
    Answer(7, [b"\x01\x02"], False),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_the_page_shows_the_bytes(message: Message) -> None:
    page = (ROOT / "docs" / "protocols" / "replication.md").read_text(encoding="utf-8")
    shown = re.search(rf"^{type(message).__name__} example: `([0-9a-f ]+)`$", page, re.MULTILINE)
    assert shown is not None
    assert shown[1] == codec.encode(message).hex(" ")
