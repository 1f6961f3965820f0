"""EW.ONCE: the same id again gets the same answer, and nothing is applied twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwrite.freshness import question
from everwrite.server.commands import TABLE
from tests.serving import Peer, Serving, request, served, ticking
from tests.test_levels import Region

SLOT = b"slot-names"
RECORD_MS = 600_000


def number(count: int, slot: bytes = SLOT) -> bytes:
    """The `count`-th id of a slot."""
    return slot + count.to_bytes(6, "big")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Serving]:
    with served(tmp_path / "store") as host:
        yield host


@pytest.fixture
def peer(host: Serving) -> Iterator[Peer]:
    with host.connect() as peer:
        yield peer


def test_the_same_id_gets_the_same_answer(peer: Peer) -> None:
    for _ in range(3):
        assert peer.ask("EW.ONCE", number(1), "INCRBY", "n", 5) == b":5\r\n"
    assert peer.ask("GET", "n") == b"$1\r\n5\r\n"
    assert peer.ask("EW.ONCE", number(2), "INCRBY", "n", 5) == b":10\r\n"
    assert b"a later id of the same slot" in peer.ask("EW.ONCE", number(1), "INCRBY", "n", 5)
    assert peer.ask("EW.ONCE", number(1, b"other-slot"), "INCRBY", "n", 5) == b":15\r\n"
    assert peer.ask("EW.ONCE", number(1), "INCRBY", "another key", 1) == b":1\r\n"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("SET", "k", "v", "NX"), b"+OK\r\n"),
        (("SET", "k", "v", "GET"), None),
        (("SET", "k", "v", "XX"), None),
        (("GETDEL", "k"), None),
        (("HINCRBY", "h", "f", 3), b":3\r\n"),
        (("HSET", "h", "f", "1", "g", "2", "f", "3"), b":2\r\n"),
        (("SADD", "s", "a", "b"), b":2\r\n"),
        (("SREM", "s", "a"), b":0\r\n"),
        (("DEL", "k"), b":0\r\n"),
        (("PEXPIRE", "k", 1000, "NX"), b":0\r\n"),
    ],
)
def test_every_shape_of_reply_in_both_protocols(peer: Peer, words: tuple[object, ...], answer: bytes | None) -> None:
    for first, second in ((2, 3), (3, 2)):
        key = b"protocol-%d" % first
        peer.ask("HELLO", first)
        assert peer.ask("EW.ONCE", number(1, key), *words) == (answer or (b"_\r\n" if first == 3 else b"$-1\r\n"))
        assert peer.ask("EW.ONCE", number(1, key), *words) == (answer or (b"_\r\n" if first == 3 else b"$-1\r\n"))
        peer.ask("HELLO", second)
        assert peer.ask("EW.ONCE", number(1, key), *words) == (answer or (b"_\r\n" if second == 3 else b"$-1\r\n"))
        peer.ask("DEL", "k", "h", "s")


def test_a_value_that_was_taken_is_told_again(peer: Peer) -> None:
    taken = b"x" * 300_000
    peer.ask("SET", "k", taken)
    expected = b"$300000\r\n" + taken + b"\r\n"
    assert peer.ask("EW.ONCE", number(1), "GETDEL", "k") == expected
    assert peer.ask("EXISTS", "k") == b":0\r\n"
    assert peer.ask("EW.ONCE", number(1), "GETDEL", "k") == expected


def test_an_error_changes_nothing_and_is_not_remembered(peer: Peer) -> None:
    peer.ask("SET", "n", "text")
    assert peer.ask("EW.ONCE", number(1), "INCR", "n").startswith(b"-ERR value is not an integer")
    peer.ask("SET", "n", "4")
    assert peer.ask("EW.ONCE", number(1), "INCR", "n") == b":5\r\n"
    peer.ask("SADD", "s", "x")
    assert peer.ask("EW.ONCE", number(2), "INCR", "s").startswith(b"-WRONGTYPE")
    assert peer.ask("SMEMBERS", "s") == b"*1\r\n$1\r\nx\r\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((b"short", "INCR", "n"), b"-ERR EW.ONCE: an id has 16 bytes"),
        ((number(1), "GET", "n"), b"isn't a command that writes"),
        ((number(1), "NOPE", "n"), b"isn't a command that writes"),
        ((number(1), "PING", "n"), b"isn't a command that writes"),
        ((number(1), "EW.ONCE", number(1), "INCR", "n"), b"isn't a command that writes"),
        ((number(1), "MSET", "a", "1"), b"with several keys"),
        ((number(1), "DEL", "a", "b"), b"with several keys"),
        ((number(1), "INCRBY", "n"), b"wrong number of arguments for 'incrby'"),
        ((number(1), "INCR"), b"wrong number of arguments for 'ew.once'"),
        ((number(1), "INCR", b"k" * 65_537), b"key is too long"),
        ((number(1), "INCR", b"k" * 65_530), b"too long"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_not_done(
    host: Serving, peer: Peer, words: tuple[object, ...], error: bytes
) -> None:
    assert error in peer.ask("EW.ONCE", *words)  # type: ignore[arg-type]
    assert host.store.statistics()["local_changes"] == 0


def test_another_command_under_a_used_id_is_refused(peer: Peer) -> None:
    peer.ask("EW.ONCE", number(1), "INCRBY", "n", 5)
    for words in (("INCRBY", "n", 6), ("DECRBY", "n", 5), ("SADD", "n", "5")):
        assert b"belongs to another command" in peer.ask("EW.ONCE", number(1), *words)


def test_records_are_not_among_the_keys(peer: Peer) -> None:
    for count in range(700):
        peer.ask("EW.ONCE", number(1, b"slot-%05d" % count), "INCR", "n")
    peer.ask("SET", b"\0", "before")
    peer.ask("SET", b"\1", "behind")
    assert peer.ask("SCAN", 0) == b"*2\r\n$1\r\n0\r\n*3\r\n$1\r\n\0\r\n$1\r\n\1\r\n$1\r\nn\r\n"
    assert peer.ask("SCAN", 0, "MATCH", b"\0ew*") == b"*2\r\n$1\r\n0\r\n*0\r\n"


def test_a_record_is_kept_for_ten_minutes(host: Serving, peer: Peer) -> None:
    start = host.store.now_ms() + 1
    host.store.set_time(start)
    assert peer.ask("EW.ONCE", number(1), "INCR", "n") == b":1\r\n"
    host.store.set_time(start + RECORD_MS - 1)
    assert peer.ask("EW.ONCE", number(1), "INCR", "n") == b":1\r\n"
    host.store.set_time(start + RECORD_MS)
    assert peer.ask("EW.ONCE", number(1), "INCR", "n") == b":2\r\n"


def test_another_node_that_has_the_change_knows_the_answer(host: Serving, peer: Peer, tmp_path: Path) -> None:
    peer.ask("EW.ONCE", number(1), "INCRBY", "n", 5)
    with served(tmp_path / "other") as other, other.connect() as there:
        for batch in host.store.changes(other.store.applied):
            other.store.apply(batch)
        assert there.ask("EW.ONCE", number(1), "INCRBY", "n", 5) == b":5\r\n"
        assert there.ask("GET", "n") == b"$1\r\n5\r\n"


def test_the_change_and_its_record_travel_as_one(host: Serving, peer: Peer, tmp_path: Path) -> None:
    peer.ask("EW.ONCE", number(1), "INCRBY", "n", 5)
    stream = host.store.open_stream({})
    stream.next_batch(max_changes=1)
    # One change was asked for: a group isn't divided.
    assert stream.changes == 2
    stream.close()


def test_the_record_is_there_after_a_restart(tmp_path: Path) -> None:
    with served(tmp_path / "store", "always") as host, host.connect() as peer:
        peer.ask("EW.ONCE", number(1), "INCR", "n")
    with served(tmp_path / "store", "always") as host, host.connect() as peer:
        assert peer.ask("EW.ONCE", number(1), "INCR", "n") == b":1\r\n"


def test_at_a_quorum_the_record_is_asked_for_and_an_answer_again_waits_as_the_write_did(tmp_path: Path) -> None:
    words = ("EW.ONCE", number(1), "INCR", "n")
    with ticking(tmp_path) as host, host.connect() as peer, host.connect() as again:
        region = Region(host)
        peer.send(request(*words))
        region.tick(lambda: region.asked)
        record = b"\0ew.once\0" + SLOT + b"n"
        assert region.asked[0][2] == question(host.store, [b"n", record])
        region.answer()
        region.tick(lambda: region.count("clients_held"))
        again.send(request(*words))
        region.tick(lambda: region.asked)
        region.answer()
        region.tick(lambda: region.count("clients_held") == 2)
        region.acknowledge(host.store.last_timestamp)
        assert [peer.reply(), again.reply()] == [b":1\r\n", b":1\r\n"]
        # Once it is acknowledged, there is nothing to wait for.
        again.send(request(*words))
        region.tick(lambda: region.asked)
        region.answer()
        region.tick(lambda: region.count("commands_processed") == 3)
        assert again.reply() == b":1\r\n"
        assert host.store.counter(b"n").value == 1


STEPS = st.tuples(
    st.integers(0, 2),  # slot
    st.integers(1, 4),  # number
    st.sampled_from([b"n", b"m", b"text"]),
    st.sampled_from([("INCRBY", 2), ("DECRBY", 3), ("SET", "text", "NX"), ("GETDEL",)]),
)


@given(st.lists(STEPS, max_size=30))
@settings(max_examples=40, deadline=None)
def test_answers_as_a_model_does(shared: Peer, steps: list[tuple[int, int, bytes, tuple[object, ...]]]) -> None:
    shared.ask("DEL", "n", "m", "text")
    RUNS.append(len(RUNS))
    records: dict[tuple[int, bytes], tuple[int, tuple[object, ...], bytes]] = {}
    for slot, count, key, (name, *rest) in steps:
        words = (name, key, *rest)
        known, known_words, known_reply = records.get((slot, key), (0, (), b""))
        before = shared.ask("GET", key)
        reply = shared.ask("EW.ONCE", number(count, b"%05d-%04d" % (RUNS[-1], slot)), *words)  # type: ignore[arg-type]
        after = shared.ask("GET", key)
        if count > known:
            if not reply.startswith(b"-"):
                records[slot, key] = count, words, reply
        elif count < known:
            assert b"a later id" in reply
        elif words == known_words:
            assert reply == known_reply
        else:
            assert b"belongs to another command" in reply
        if count <= known or reply.startswith(b"-"):
            assert after == before


RUNS: list[int] = []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with served(tmp_path_factory.mktemp("shared")) as host, host.connect() as peer:
        yield peer


def test_commands_that_take_one_key_have_it_first() -> None:
    """EW.ONCE, and whoever looks for its keys, count on that."""
    writes = [info for info in TABLE if "write" in info.flags and info.name != "ew.once"]
    assert all(info.keys[0] == 1 for info in writes)
