"""The parser against its slow twin, whole and byte by byte; the encoder against both protocol versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import everwrite
from everwrite.server.resp import Error, RespParser, Simple, Verbatim, encode
from tests.reference.resp_twin import parse_requests, split_reply, split_words


def multibulk(*args: bytes) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in args)


def feed_all(chunks: list[bytes]) -> tuple[list[list[bytes]], str | None]:
    """Commands and error that the parser finds, given its input in these pieces."""
    parser = RespParser()
    commands = []
    for chunk in chunks:
        try:
            commands += parser.feed(chunk)
        except everwrite.ProtocolError as error:
            return commands, str(error)
    return commands, None


# Grammatical requests, nearly grammatical ones, and pieces that a grammar-aware fuzzer would try.
ARGUMENTS = st.lists(st.binary(max_size=40), max_size=6)
PIECES = st.sampled_from(
    [
        b"*",
        b"$",
        b"\r\n",
        b"\r",
        b"\n",
        b"0",
        b"1",
        b"2",
        b"-1",
        b"+1",
        b"00",
        b" ",
        b'"',
        b"'",
        b"\\x41",
        b"\\",
        b"\x00",
    ]
)
NUMBERS = st.one_of(
    st.integers(-3, 70), st.sampled_from([1 << 62, 1 << 63, -(1 << 63), 1 << 20, (1 << 20) + 1, 10**40])
).map(lambda n: b"%d" % n)
STREAMS = st.lists(
    st.one_of(
        ARGUMENTS.map(lambda args: multibulk(*args)),
        st.binary(max_size=20),
        PIECES,
        NUMBERS.map(lambda n: b"*" + n + b"\r\n"),
        NUMBERS.map(lambda n: b"*1\r\n$" + n + b"\r\n"),
        st.text("abc \"'\\xn41\t", max_size=30).map(lambda text: text.encode() + b"\r\n"),
    ),
    max_size=8,
).map(b"".join)


@given(STREAMS, st.lists(st.integers(1, 50), max_size=10))
def test_parser_agrees_with_its_twin(data: bytes, sizes: list[int]) -> None:
    expected = parse_requests(data)
    bytewise = feed_all([data[i : i + 1] for i in range(len(data))])
    assert bytewise == (expected.commands, expected.error)
    chunks = []
    rest = data
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    pieces, error = feed_all([*chunks, rest])
    assert error == expected.error
    # What comes in one piece with an error is lost with it.
    assert pieces == expected.commands if error is None else pieces == expected.commands[: len(pieces)]


@given(STREAMS)
def test_incomplete_commands_are_kept_and_nothing_else(data: bytes) -> None:
    expected = parse_requests(data)
    parser = RespParser()
    if expected.error is None:
        assert parser.feed(data) == expected.commands
        assert parser.pending_bytes == len(expected.rest)


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20))
def test_arguments_come_back_as_they_were(args: list[bytes]) -> None:
    assert RespParser().feed(multibulk(*args) * 3) == [args] * 3


@given(st.text("ab \"'\\nx0f", max_size=40))
def test_inline_words_agree_with_the_twin(text: str) -> None:
    line = text.encode()
    words = split_words(line)
    if words is None:
        with pytest.raises(everwrite.ProtocolError, match="unbalanced quotes"):
            RespParser().feed(line + b"\n")
    else:
        assert RespParser().feed(line + b"\n") == ([words] if words else [])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"*1\r\n$4611686018427387904\r\n", "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$67108865\r\n", "invalid bulk length"),
        (b"*1\r\n$+1\r\n", "invalid bulk length"),
        (b"*1\r\n$01\r\n", "invalid bulk length"),
        (b"*1\r\n$1\r\nab\r\n", "expected CRLF after bulk string"),
        (b"*1\r\n$1\rx", "invalid bulk length"),
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*9223372036854775808\r\n", "invalid multibulk length"),
        (b"*1x\r\n", "invalid multibulk length"),
        (b"*2\r\n+OK\r\n", "expected '$', got '\\+'"),
        (b"*1\r\n\x00", "expected '$', got '\\?'"),
        (b"*" + b"1" * 40, "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 40, "too big bulk count string"),
        (b"a" * 65537, "too big inline request"),
        (b"a" * 65537 + b"\r\n", "too big inline request"),
        (b'set a "b\r\n', "unbalanced quotes in request"),
        (b'set a "b"c\r\n', "unbalanced quotes in request"),
    ],
)
def test_broken_requests(data: bytes, error: str) -> None:
    parser = RespParser()
    with pytest.raises(everwrite.ProtocolError, match=error.replace("$", r"\$")):
        parser.feed(data)
    with pytest.raises(everwrite.ProtocolError):
        parser.feed(multibulk(b"PING"))


def test_announced_lengths_allocate_nothing() -> None:
    parser = RespParser()
    assert parser.feed(b"*1048576\r\n$67108864\r\n") == []
    assert parser.allocated_bytes < 1024
    assert parser.feed(b"x" * 100) == []
    assert parser.allocated_bytes < 2048


def test_requests_are_bounded_as_a_whole() -> None:
    parser = RespParser()
    value = b"$67108864\r\n" + bytes(64 << 20) + b"\r\n"
    assert parser.feed(b"*9\r\n" + value) == []
    with pytest.raises(everwrite.ProtocolError, match="request over 100663296 bytes"):
        parser.feed(value)


def test_largest_value_passes() -> None:
    value = bytes(64 << 20)
    assert RespParser().feed(multibulk(b"SET", b"k", value)) == [[b"SET", b"k", value]]


def test_memory_of_a_large_command_is_given_back() -> None:
    parser = RespParser()
    assert len(parser.feed(multibulk(*[b"x"] * 100_000))[0]) == 100_000
    parser.feed(multibulk(b"PING"))
    parser.feed(multibulk(b"PING"))
    assert parser.pending_bytes == 0


@pytest.mark.parametrize(
    ("value", "resp2", "resp3"),
    [
        (None, b"$-1\r\n", b"_\r\n"),
        (7, b":7\r\n", b":7\r\n"),
        (True, b":1\r\n", b"#t\r\n"),
        (False, b":0\r\n", b"#f\r\n"),
        (1.5, b"$3\r\n1.5\r\n", b",1.5\r\n"),
        (b"a\r\n", b"$3\r\na\r\n\r\n", b"$3\r\na\r\n\r\n"),
        ("\u00e9", b"$2\r\n\xc3\xa9\r\n", b"$2\r\n\xc3\xa9\r\n"),
        ([1, [None]], b"*2\r\n:1\r\n*1\r\n$-1\r\n", b"*2\r\n:1\r\n*1\r\n_\r\n"),
        ({"a": 1}, b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
        ({b"a"}, b"*1\r\n$1\r\na\r\n", b"~1\r\n$1\r\na\r\n"),
        (Simple("OK"), b"+OK\r\n", b"+OK\r\n"),
        (Error("ERR a\r\nb"), b"-ERR a  b\r\n", b"-ERR a  b\r\n"),
        (Verbatim("hi"), b"$2\r\nhi\r\n", b"=6\r\ntxt:hi\r\n"),
    ],
)
def test_encoding(value: object, resp2: bytes, resp3: bytes) -> None:
    assert encode(value) == resp2
    assert encode(value, 3) == resp3
    assert split_reply(resp2 + b"+more") == (resp2, b"+more")
    assert split_reply(resp3 + b"+more") == (resp3, b"+more")


def test_encoding_refuses_what_has_no_type() -> None:
    with pytest.raises(TypeError, match="no RESP type for object"):
        encode([object()])
