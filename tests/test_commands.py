"""What the comparison with Redis can't show: SCAN's promise, limits, damage, and commands of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import everwrite
from everwrite.server.commands import TABLE
from everwrite.server.glob import matches
from tests.reference.resp_twin import children
from tests.serving import Peer, Serving, request, served


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Serving]:
    with served(tmp_path) as serving:
        yield serving


@pytest.fixture
def peer(host: Serving) -> Iterator[Peer]:
    with host.connect() as client:
        yield client


def bulk(reply: bytes) -> bytes:
    """The content of a bulk string."""
    assert reply.startswith(b"$"), reply
    return reply.split(b"\r\n", 1)[1][:-2]


def scan(peer: Peer, cursor: bytes, *options: bytes | str | int) -> tuple[bytes, list[bytes]]:
    """One call of SCAN: the next cursor, and keys."""
    reply = peer.ask("SCAN", cursor, *options)
    assert reply.startswith(b"*2\r\n"), reply
    head, keys = children(reply)
    return bulk(head), [bulk(key) for key in children(keys)]


def scan_all(peer: Peer, *options: bytes | str | int) -> list[bytes]:
    """All keys of a scan, in the order in which they come."""
    found = []
    cursor = b"0"
    while True:
        cursor, keys = scan(peer, cursor, *options)
        found += keys
        if cursor == b"0":
            return found


def fill(peer: Peer, keys: list[bytes]) -> None:
    peer.send(b"".join(request("SET", key, "v") for key in keys))
    for _ in keys:
        assert peer.reply() == b"+OK\r\n"


def test_types_that_redis_lacks_are_named_explained_and_refused(host: Serving, peer: Peer) -> None:
    host.store.multi(b"multi").set(b"v")
    host.store.flag(b"flag").enable()
    host.store.max(b"max").update(-7)
    host.store.min(b"min").update(7)
    host.store.hyperloglog(b"hyperloglog").add(b"item")
    for name in ("multi", "flag", "max", "min", "hyperloglog"):
        assert peer.ask("TYPE", name) == f"+{name}\r\n".encode()
        assert peer.ask("EXISTS", name) == b":1\r\n"
        assert peer.ask("GET", name).startswith(b"-WRONGTYPE")
        assert peer.ask("SADD", name, "x").startswith(b"-WRONGTYPE")
        assert scan_all(peer, "TYPE", name) == [name.encode()]
        assert name.encode() in peer.ask("EW.WHY", name)
        assert peer.ask("DEL", name) == b":1\r\n"
        assert peer.ask("TYPE", name) == b"+none\r\n"


def test_scan_returns_every_key_once(peer: Peer) -> None:
    keys = [b"key:%05d" % number for number in range(3000)]
    fill(peer, keys)
    assert scan_all(peer) == keys
    assert scan_all(peer, "COUNT", 7) == keys
    assert scan_all(peer, "COUNT", 1 << 60) == keys
    assert scan_all(peer, "MATCH", "key:0001?") == keys[10:20]
    assert scan_all(peer, "MATCH", "*9") == keys[9::10]
    peer.ask("SADD", "key:set", 1)
    peer.ask("HSET", "key:map", "f", 1)
    assert scan_all(peer, "TYPE", "set") == [b"key:set"]
    assert scan_all(peer, "TYPE", "hash", "MATCH", "key:*") == [b"key:map"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.binary(min_size=1, max_size=3), max_size=40),
    st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=3)), max_size=30),
    st.integers(1, 5),
)
def test_keys_that_stay_are_returned_while_others_come_and_go(
    peer: Peer, keys: set[bytes], changes: list[tuple[bool, bytes]], count: int
) -> None:
    for key in scan_all(peer):
        peer.ask("DEL", key)
    fill(peer, sorted(keys))
    touched = {key for _, key in changes}
    found: list[bytes] = []
    cursor = b"0"
    while True:
        cursor, some = scan(peer, cursor, "COUNT", count)
        found += some
        if changes:
            add, key = changes.pop()
            peer.ask("SET", key, "new") if add else peer.ask("DEL", key)
        if cursor == b"0":
            break
    assert keys - touched <= set(found) <= keys | touched
    assert len(found) == len(set(found))


def test_a_scan_with_a_prefix_looks_at_nothing_else(host: Serving, peer: Peer) -> None:
    fill(peer, [b"a%04d" % number for number in range(2000)] + [b"b1", b"b2"] + [b"c%04d" % n for n in range(2000)])
    assert scan(peer, b"0", "MATCH", "b*", "COUNT", 10) == (b"0", [b"b1", b"b2"])


def test_an_answer_of_a_scan_can_be_asked_for_again(peer: Peer) -> None:
    fill(peer, [b"%03d" % number for number in range(50)])
    cursor, first = scan(peer, b"0", "COUNT", 10)
    again = [scan(peer, cursor, "COUNT", 10)[1] for _ in range(3)]
    assert first == [b"%03d" % number for number in range(10)]
    assert again == [[b"%03d" % number for number in range(10, 20)]] * 3


def test_unknown_cursors_are_refused(peer: Peer) -> None:
    for cursor in (1, 4096, 1 << 52, (1 << 64) - 1):
        assert peer.ask("SCAN", cursor).startswith(b"-ERR unknown cursor")


def test_scans_in_progress_outlive_any_number_of_others(host: Serving, peer: Peer) -> None:
    """A scan holds two cursors, however long it is; those that nobody goes on with are pushed out."""
    fill(peer, [b"%04d" % number for number in range(9000)])
    slow, _ = scan(peer, b"0", "COUNT", 1)
    assert len(scan_all(peer, "COUNT", 1)) == 9000
    assert host.frontend.statistics()["scan_cursors"] < 10
    slow, keys = scan(peer, slow, "COUNT", 1)
    assert keys == [b"0001"]
    peer.send(request("SCAN", 0, "COUNT", 1) * 5000)
    abandoned = [peer.reply() for _ in range(5000)]
    assert host.frontend.statistics()["scan_cursors"] == 4096
    assert peer.ask("SCAN", slow).startswith(b"-ERR unknown cursor")
    newest = bulk(children(abandoned[-1])[0])
    assert scan(peer, newest, "COUNT", 1)[1] == [b"0001"]


def test_cursors_of_long_keys_are_bounded_in_bytes(host: Serving, peer: Peer) -> None:
    fill(peer, [bytes([65 + number]) * 60_000 for number in range(3)])
    peer.send(request("SCAN", 0, "COUNT", 1) * 400)
    for _ in range(400):
        peer.reply()
    assert host.frontend.statistics()["scan_cursors"] <= (16 << 20) // 60_000


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (b"", b"", True), (b"", b"a", False), (b"*", b"", True), (b"**", b"abc", True), (b"a*c", b"abbc", True),
        (b"a*c", b"abbd", False), (b"?", b"", False), (b"a?c", b"abc", True), (b"[abc]", b"b", True),
        (b"[^abc]", b"b", False), (b"[a-c]x", b"bx", True), (b"[c-a]", b"b", True), (b"[\\]]", b"]", True),
        (b"\\*", b"*", True), (b"\\*", b"a", False), (b"a\\", b"a\\", True), (b"[abc", b"c", True),
        (b"*a*b*c", b"xaxbxc", True),
        (b"*ab", b"aab", True), (b"*?", b"", False), (b"\xff*", b"\xff\x00", True), (b"*[0-9]", b"abc7", True),
    ],
)  # fmt: skip
def test_patterns(pattern: bytes, text: bytes, expected: bool) -> None:
    assert matches(pattern, text) is expected


def test_hostile_patterns_end(peer: Peer) -> None:
    """Exponential in the textbook matcher."""
    fill(peer, [b"a" * 5000])
    assert scan_all(peer, "MATCH", "*a" * 500 + "b") == []
    assert peer.ask("SCAN", 0, "MATCH", "x" * 1025) == b"-ERR the pattern is longer than 1024 bytes\r\n"


def test_keys_have_a_limit(peer: Peer) -> None:
    longest, longer = b"k" * 65536, b"k" * 65537
    assert peer.ask("SET", longest, "v") == b"+OK\r\n"
    assert peer.ask("GET", longest) == b"$1\r\nv\r\n"
    refusal = b"-ERR key is too long: keys may have 65536 bytes\r\n"
    for command in (["SET", longer, "v"], ["GET", longer], ["DEL", "a", longer], ["MSET", "a", "1", longer, "2"]):
        assert peer.ask(*command) == refusal
    for command in (["MGET", "a", longer], ["SADD", longer, "e"], ["EW.WHY", longer], ["MEMORY", "USAGE", longer]):
        assert peer.ask(*command) == refusal
    assert peer.ask("EXISTS", "a") == b":0\r\n"
    assert peer.ask("MSET", "a", "1", "b", longer) == b"+OK\r\n"


def test_elements_have_a_limit(peer: Peer) -> None:
    for command in (["SADD", "s", "x" * 70_000], ["HSET", "h", "x" * 70_000, "v"], ["HINCRBY", "h", "x" * 70_000, 1]):
        assert peer.ask(*command).startswith(b"-ERR too long: "), command[0]
    assert peer.ask("DBSIZE") == b":0\r\n"
    assert peer.ask("SISMEMBER", "s", "x" * 70_000) == b":0\r\n"
    assert peer.ask("HGET", "h", "x" * 70_000) == b"$-1\r\n"


def test_replies_have_a_limit(tmp_path: Path) -> None:
    """A short request must not be able to ask for all memory."""
    with served(tmp_path, buffer_bytes_max=8 << 20) as host, host.connect() as peer:
        assert peer.ask("SET", "k", b"v" * 1_000_000) == b"+OK\r\n"
        assert peer.ask("MGET", *["k"] * 100) == b"-ERR the reply is too large: ask for less at a time\r\n"
        assert peer.ask("MGET", "k", "k").startswith(b"*2\r\n$1000000\r\n")
        assert peer.ask("PING") == b"+PONG\r\n"


def test_large_collections_come_whole(peer: Peer) -> None:
    members = [b"member:%06d" % number for number in range(50_000)]
    assert peer.ask("SADD", "s", *members) == b":50000\r\n"
    assert [bulk(member) for member in children(peer.ask("SMEMBERS", "s"))] == members
    assert peer.ask("HSET", "h", *[word for member in members for word in (member, b"1")]) == b":50000\r\n"
    assert peer.ask("HLEN", "h") == b":50000\r\n"
    assert len(children(peer.ask("HGETALL", "h"))) == 100_000


def test_several_keys_are_written_as_one_change(host: Serving, peer: Peer) -> None:
    """MSET and DEL reach the log, and so other regions, whole or not at all."""
    before = host.store.applied
    assert peer.ask("MSET", "a", 1, "b", 2, "c", 3) == b"+OK\r\n"
    assert len(list(host.store.changes(before))) == 1
    assert peer.ask("DEL", "a", "b", "none") == b":2\r\n"
    assert dict(host.store.scan()) == {b"c": b"3"}


def test_memory_usage_grows_with_what_is_stored(peer: Peer) -> None:
    def usage(*args: str) -> int:
        return int(peer.ask("MEMORY", "USAGE", *args)[1:])

    peer.ask("SET", "k", "v" * 100)
    peer.ask("SET", "long", "v" * 10_000)
    assert 100 < usage("k") < 300 < 10_000 < usage("long") < 11_000
    peer.ask("SADD", "s", *[f"member-{number:03}" for number in range(100)])
    assert 1000 < usage("s") == usage("s", "SAMPLES", "0")
    peer.ask("HSET", "h", "f", "v" * 1000)
    assert usage("h") > 1000


def test_every_command_is_found_in_any_case(peer: Peer) -> None:
    for info in TABLE:
        if info.name in ("quit", "reset"):
            continue
        for name in (info.name, info.name.upper(), info.name.title()):
            assert b"unknown command" not in peer.ask(name), name
    for near_miss in ("ge", "gett", "get\x00", "se", "hgetalll", "GET ", "[et", "'et", "\x07et"):
        assert peer.ask(near_miss, "x").startswith(b"-ERR unknown command"), near_miss


def test_damage_is_an_error_and_not_an_absence(tmp_path: Path) -> None:
    """A flipped byte in a table: GET and MGET say so, other keys are served."""
    with everwrite.open(tmp_path, "os", memtable_bytes=1 << 16, background=False) as store:
        for number in range(2000):
            store[b"key%06d" % number] = b"v" * 100
    tables = sorted((tmp_path / "tables").glob("*.table"))
    data = bytearray(tables[0].read_bytes())
    data[200] ^= 0xFF
    tables[0].write_bytes(data)
    with served(tmp_path) as host, host.connect() as peer:
        replies = [peer.ask("GET", "key000000"), peer.ask("MGET", "key000000", "key001999")]
        for reply in replies:
            assert reply.startswith(b"-ERR stored data is damaged: "), reply
            assert tables[0].name.encode() in reply
        assert peer.ask("GET", "key001999") == b"$100\r\n" + b"v" * 100 + b"\r\n"
