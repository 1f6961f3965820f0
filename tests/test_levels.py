"""Consistency levels in the tick: what is asked first, what waits for acknowledgement, what is told on failure."""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite.freshness import question
from everwrite.memory_files import MemoryFiles
from everwrite.server.consistency import Level
from everwrite.server.frontend import TICK_MORE
from tests.serving import Peer, Serving, request, ticking
from tests.support import eventually

HELD = (1 << 64) - 1


class Region:
    """Three replicas of which only this one is real: the test answers and acknowledges for the others."""

    def __init__(self, host: Serving, *, timeout_seconds: float = 3600.0) -> None:
        self.host = host
        self.asked: list[tuple[int, int, bytes]] = []
        host.frontend.set_levels(
            lambda number, answers, question: self.asked.append((number, answers, question)),
            consistency=Level.LOCAL_QUORUM,
            timeout_seconds=timeout_seconds,
        )
        self.acknowledge(0)

    def acknowledge(self, quorum: int, everyone: int = 0, *, alive: int = 3, recovering: bool = False) -> None:
        self.host.frontend.set_region(3, alive, quorum, everyone, recovering=recovering)

    def answer(self, received: int = 2) -> None:
        """Answer the oldest question."""
        number, _, _ = self.asked.pop(0)
        self.host.frontend.answered(number, received)

    def tick(self, until: Callable[[], object] = lambda: True) -> None:
        def settled() -> bool:
            state = self.host.frontend.tick()
            readable, _, _ = select.select([self.host.frontend.fileno()], [], [], 0)
            return not state & TICK_MORE and not readable and bool(until())

        eventually(settled)

    def count(self, name: str) -> int:
        return int(self.host.frontend.statistics()[name])


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with ticking(tmp_path) as host:
        yield Region(host)


def silent(peer: Peer) -> bool:
    return not select.select([peer.sock], [], [], 0)[0]


def test_a_read_runs_once_the_replicas_have_answered(region: Region) -> None:
    with region.host.connect() as peer:
        peer.send(request("GET", "k"))
        region.tick(lambda: region.asked)
        assert region.asked[0][1:] == (1, question(region.host.store, [b"k"]))
        assert silent(peer)
        region.host.store.put(b"k", b"of another replica")
        region.answer()
        region.tick()
        assert peer.reply() == b"$18\r\nof another replica\r\n"
        assert region.count("clients_asking") == 0


def test_a_write_is_answered_once_a_quorum_holds_it(region: Region) -> None:
    with region.host.connect() as peer, region.host.connect() as reader:
        peer.send(request("SET", "k", "v"))
        region.tick(lambda: region.asked)
        assert b"k" not in region.host.store
        region.answer()
        region.tick(lambda: region.count("clients_held"))
        written = region.host.store.last_timestamp
        assert silent(peer)
        # Others aren't held up by it.
        reader.send(request("EW.CONSISTENCY", "ONE") + request("GET", "k"))
        region.tick(lambda: region.count("keyspace_hits"))
        assert [reader.reply(), reader.reply()] == [b"+OK\r\n", b"$1\r\nv\r\n"]
        region.acknowledge(written - 1, 0)
        assert silent(peer)
        region.acknowledge(written, 0)
        assert peer.reply() == b"+OK\r\n"
        assert region.count("clients_held") == 0


@pytest.mark.parametrize(
    ("before", "write", "again", "reply"),
    [
        (("HSET", "k", "f", "v"), ("HDEL", "k", "f"), ("HDEL", "k", "f"), b":0\r\n"),
        (("SADD", "k", "m"), ("SREM", "k", "m"), ("SREM", "k", "m"), b":0\r\n"),
        (("SET", "k", "v"), ("DEL", "k"), ("DEL", "k"), b":0\r\n"),
        ((), ("SET", "k", "v"), ("SET", "k", "w", "NX"), b"$-1\r\n"),
    ],
)
def test_a_write_that_changes_nothing_waits_for_what_it_rests_on(
    region: Region, before: tuple[str, ...], write: tuple[str, ...], again: tuple[str, ...], reply: bytes
) -> None:
    with region.host.connect() as first, region.host.connect() as second:

        def run(peer: Peer, command: tuple[str, ...]) -> None:
            processed = region.count("commands_processed")
            peer.send(request(*command))
            region.tick(lambda: region.asked)
            region.answer()
            region.tick(lambda: region.count("commands_processed") > processed)

        if before:
            run(first, before)
            region.acknowledge(region.host.store.last_timestamp)
            first.reply()
        held = region.host.store.last_timestamp
        run(first, write)
        run(second, again)
        assert region.host.store.last_timestamp > held
        assert region.count("clients_held") == 2
        region.acknowledge(held)
        assert silent(second)
        region.acknowledge(region.host.store.last_timestamp)
        first.reply()
        assert second.reply() == reply
        # Nothing is on its way any more.
        run(second, again)
        assert second.reply() == reply


def test_a_write_that_is_refused_waits_for_nothing(region: Region) -> None:
    with region.host.connect() as first, region.host.connect() as second:
        for peer, command in ((first, ("SET", "k", "v")), (second, ("SADD", "k", "m"))):
            peer.send(request(*command))
            region.tick(lambda: region.asked)
            region.answer()
        region.tick(lambda: region.count("clients_held"))
        region.tick(lambda: region.count("commands_processed") == 2)
        assert second.reply().startswith(b"-WRONGTYPE ")
        assert silent(first)


def test_a_pipeline_is_asked_for_at_once_and_keeps_its_order(region: Region) -> None:
    with region.host.connect() as peer:
        peer.send(
            request("SET", "a", 1) + request("GET", "a") + request("MGET", "a", "b") + request("INCR", "n")
            + request("PING") + request("GET", "n")
        )  # fmt: skip
        region.tick(lambda: region.asked)
        assert region.asked[0][2] == question(region.host.store, [b"a", b"a", b"a", b"b", b"n"])
        region.answer()
        region.tick(lambda: region.count("clients_held"))
        assert silent(peer)
        region.acknowledge(region.host.store.last_timestamp)
        region.tick(lambda: region.asked)
        expected = [b"+OK\r\n", b"$1\r\n1\r\n", b"*2\r\n$1\r\n1\r\n$-1\r\n", b":1\r\n", b"+PONG\r\n"]
        assert [peer.reply() for _ in expected] == expected
        region.answer()
        region.tick(lambda: region.count("commands_processed") == 6)
        assert peer.reply() == b"$1\r\n1\r\n"


def test_one_question_for_all_connections_of_a_tick(region: Region) -> None:
    peers = [region.host.connect() for _ in range(20)]
    region.tick(lambda: region.host.frontend.connected_clients == 20)
    for number, peer in enumerate(peers):
        peer.send(request("GET", f"key {number}"))
    region.tick(lambda: region.count("clients_asking") == 20)
    assert len(region.asked) < 20
    while region.asked:
        region.answer()
    region.tick(lambda: region.count("commands_processed") == 20)
    assert {peer.reply() for peer in peers} == {b"$-1\r\n"}
    for peer in peers:
        peer.sock.close()


def test_the_level_of_a_connection(region: Region) -> None:
    with region.host.connect() as peer:

        def say(*args: str) -> bytes:
            before = region.count("commands_processed")
            peer.send(request(*args))
            region.tick(lambda: region.count("commands_processed") > before)
            return peer.reply()

        assert say("EW.CONSISTENCY") == b"$12\r\nLOCAL_QUORUM\r\n"
        assert say("EW.CONSISTENCY", "one") == b"+OK\r\n"
        assert say("EW.CONSISTENCY") == b"$3\r\nONE\r\n"
        assert say("SET", "k", "v") == b"+OK\r\n"
        assert not region.asked
        assert say("EW.CONSISTENCY", "most") == (
            b"-ERR unknown consistency level 'most': the levels are ONE, LOCAL_QUORUM, ALL\r\n"
        )
        assert say("EW.CONSISTENCY", "ALL") == b"+OK\r\n"
        peer.send(request("SET", "k", "w"))
        region.tick(lambda: region.asked)
        assert region.asked[0][1] == 2
        region.answer(3)
        region.tick(lambda: region.count("clients_held"))
        region.acknowledge(HELD, 0)
        assert silent(peer)
        region.acknowledge(HELD, HELD)
        assert peer.reply() == b"+OK\r\n"
        assert say("RESET") == b"+RESET\r\n"
        assert say("EW.CONSISTENCY") == b"$12\r\nLOCAL_QUORUM\r\n"
        assert say("EW.DEADLINE", "0").startswith(b"-ERR deadline out of range")


def test_without_enough_replicas_nothing_is_done(region: Region) -> None:
    with region.host.connect() as peer:
        region.acknowledge(0, alive=1)
        peer.send(request("SET", "k", "v") + request("GET", "k") + request("PING"))
        region.tick(lambda: region.count("commands_processed") == 3)
        for _ in range(2):
            reply = peer.reply()
            assert reply.startswith(b"-UNAVAILABLE ")
            assert reply.endswith(b"(required 2, alive 1)\r\n")
        assert peer.reply() == b"+PONG\r\n"
        assert b"k" not in region.host.store
        region.acknowledge(0, recovering=True)
        peer.send(request("GET", "k"))
        region.tick(lambda: region.count("commands_processed") == 4)
        assert peer.reply().startswith(b"-LOADING ")
        assert not region.asked


def test_unanswered_questions_are_refused_and_change_nothing(region: Region) -> None:
    with region.host.connect() as peer:
        peer.send(request("SET", "k", "v") + request("GET", "k") + request("PING") + request("GET", "other"))
        region.tick(lambda: region.asked)
        region.answer(1)
        region.tick(lambda: region.asked)
        for _ in range(2):
            reply = peer.reply()
            assert reply.startswith(b"-READTIMEOUT ")
            assert reply.endswith(b"(received 1, required 2)\r\n")
        assert peer.reply() == b"+PONG\r\n"
        assert b"k" not in region.host.store
        region.answer()
        region.tick(lambda: region.count("keyspace_misses"))
        assert peer.reply() == b"$-1\r\n"


def test_a_deadline_bounds_the_next_command_alone(region: Region) -> None:
    with region.host.connect() as peer, region.host.connect() as other:
        peer.send(request("EW.DEADLINE", 1) + request("GET", "k") + request("GET", "k"))
        other.send(request("GET", "k"))
        region.tick(lambda: region.count("clients_asking") == 2)

        def expired() -> bool:
            region.host.frontend.expire()
            return region.count("clients_asking") == 1

        eventually(expired)
        region.tick(lambda: region.count("read_timeouts") == 2)
        assert [peer.reply(), peer.reply()][0] == b"+OK\r\n"
        region.host.frontend.expire()
        assert region.count("clients_asking") == 1
        while region.asked:
            region.answer()
        region.tick(lambda: region.count("keyspace_misses") == 1)
        assert other.reply() == b"$-1\r\n"


def test_writes_that_are_not_acknowledged_have_an_unknown_outcome(region: Region) -> None:
    with region.host.connect() as peer:
        value = "x" * 3000
        peer.send(
            request("EW.DEADLINE", 1) + request("SET", "a", value) + request("GET", "a") + request("DEL", "none")
            + request("INCR", "n")
        )  # fmt: skip
        region.tick(lambda: region.asked)
        region.answer()
        region.tick(lambda: region.count("clients_held"))

        def expired() -> bool:
            region.host.frontend.expire()
            return region.count("clients_held") == 0

        eventually(expired)
        region.tick()
        assert peer.reply() == b"+OK\r\n"
        replies = [peer.reply() for _ in range(4)]
        for reply in (replies[0], *replies[2:]):
            assert reply.startswith(b"-WRITETIMEOUT ")
            assert reply.endswith(b"(received 1, required 2)\r\n")
        assert replies[1] == b"$3000\r\n%s\r\n" % value.encode()
        assert region.count("write_timeouts") == 3
        assert region.host.store[b"a"] == value.encode()


def test_clients_that_leave_while_they_wait(region: Region) -> None:
    """What was received of them is carried out, and nothing of them stays."""
    with region.host.connect() as peer:
        peer.send(request("SET", "k", "v"))
        region.tick(lambda: region.asked)
    region.tick()
    region.answer()
    region.tick(lambda: region.count("clients_held"))
    region.acknowledge(HELD, HELD)
    region.tick(lambda: region.host.frontend.connected_clients == 0)
    assert region.count("clients_asking") == region.count("clients_held") == region.count("buffer_bytes") == 0
    assert b"k" in region.host.store


def test_clients_that_reset_while_they_wait_are_dropped(region: Region) -> None:
    with region.host.connect() as peer, region.host.connect() as other:
        for each in (peer, other):
            each.send(request("SET", "k", "v"))
        region.tick(lambda: region.count("clients_asking") == 2)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sock.close()
        region.tick(lambda: region.host.frontend.connected_clients == 1)
        while region.asked:
            region.answer()
        region.tick(lambda: region.count("clients_held") == 1)
        region.acknowledge(HELD)
        assert other.reply() == b"+OK\r\n"


def test_a_client_that_ends_its_own_half_gets_its_replies(region: Region) -> None:
    with region.host.connect() as peer:
        peer.send(request("SET", "k", "v") + request("GET", "k"))
        peer.sock.shutdown(socket.SHUT_WR)
        region.tick(lambda: region.asked)
        region.answer()
        region.tick(lambda: region.count("clients_held"))
        region.acknowledge(HELD)
        region.tick(lambda: region.host.frontend.connected_clients == 0)
        assert [peer.reply(), peer.reply()] == [b"+OK\r\n", b"$1\r\nv\r\n"]
        assert peer.ended()


@pytest.mark.parametrize("following", [("EW.CONSISTENCY", "ONE"), ("RESET",)])
def test_replies_wait_at_the_level_at_which_they_were_made(region: Region, following: tuple[str, ...]) -> None:
    with region.host.connect() as peer:
        peer.send(request("EW.CONSISTENCY", "ALL") + request("SET", "k", "v") + request(*following))
        region.tick(lambda: region.asked)
        assert peer.reply() == b"+OK\r\n"
        region.answer(3)
        region.tick(lambda: region.count("clients_held"))
        region.acknowledge(HELD, 0)
        assert silent(peer)
        region.acknowledge(HELD, HELD)
        assert peer.reply() == b"+OK\r\n"
        region.tick(lambda: region.count("commands_processed") == 3)
        peer.reply()


@pytest.mark.parametrize("again", [("DEL", "k"), ("SET", "other", "v", "NX"), ("PERSIST", "k"), ("GETDEL", "k")])
def test_a_write_that_finds_nothing_to_change_waits_for_what_it_has_found(
    region: Region, again: tuple[str, ...]
) -> None:
    region.host.store.put(b"k", b"v")
    region.acknowledge(region.host.store.last_timestamp)
    with region.host.connect() as peer, region.host.connect() as other:
        peer.send(request("DEL", "k") + request("SET", "other", "v"))
        region.tick(lambda: region.asked)
        region.answer()
        region.tick(lambda: region.count("clients_held") == 1)
        other.send(request(*again))
        region.tick(lambda: region.asked)
        region.answer()
        region.tick(lambda: region.count("clients_held") == 2)
        region.acknowledge(region.host.store.last_timestamp)
        assert other.reply() in (b":0\r\n", b"$-1\r\n")


def test_a_command_with_more_keys_than_a_question_takes_is_refused(region: Region) -> None:
    many = request("MGET", *(b"%060d" % number for number in range(300_000)))
    with region.host.connect() as peer, ThreadPoolExecutor(1) as sending:
        sending.submit(peer.send, request("GET", "k") + many + request("GET", "k"))
        region.tick(lambda: region.asked)
        region.answer()
        region.tick(lambda: region.asked)
        assert peer.reply() == b"$-1\r\n"
        assert peer.reply().startswith(b"-ERR too many keys")
        region.answer()
        region.tick(lambda: region.count("keyspace_misses") == 2)
        assert peer.reply() == b"$-1\r\n"


def test_a_deadline_ends_with_a_command_that_is_refused(region: Region) -> None:
    with region.host.connect() as peer:
        region.acknowledge(0, alive=1)
        peer.send(request("EW.DEADLINE", 1) + request("GET", "k"))
        region.tick(lambda: region.count("unavailable") == 1)
        region.acknowledge(0)
        peer.send(request("GET", "k"))
        region.tick(lambda: region.count("clients_asking") == 1)
        time.sleep(0.005)
        region.host.frontend.expire()
        assert region.count("clients_asking") == 1


def test_draining_waits_for_acknowledgements(region: Region) -> None:
    with region.host.connect() as peer:
        peer.send(request("SET", "k", "v"))
        region.tick(lambda: region.asked)
        region.answer()
        region.tick(lambda: region.count("clients_held"))
        region.host.frontend.drain()
        region.tick()
        assert region.host.frontend.connected_clients == 1
        region.acknowledge(HELD)
        assert peer.reply() == b"+OK\r\n"
        region.tick(lambda: region.host.frontend.connected_clients == 0)
        assert peer.ended()


def test_a_failed_commit_is_told_instead_of_held() -> None:
    files = MemoryFiles()
    files.mkdir("/data")
    with everwrite.open("/data", durability="always", files=files) as store:
        region = Region(Serving(store))
        with region.host.connect() as peer:
            peer.send(request("SET", "k", "v"))
            region.tick(lambda: region.asked)
            files.fail("sync")
            region.answer()
            region.tick(lambda: region.count("commands_failed"))
            assert peer.reply().startswith(b"-MISCONF ")
            assert region.count("clients_held") == 0
        region.host.frontend.close_all()


COMMANDS = st.one_of(
    st.tuples(st.just("SET"), st.sampled_from("abc"), st.integers(0, 9)),
    st.tuples(st.just("GET"), st.sampled_from("abc")),
    st.tuples(st.just("INCR"), st.sampled_from("n")),
    st.tuples(st.just("MGET"), st.just("a"), st.just("c")),
    st.tuples(st.just("DEL"), st.sampled_from("abc")),
    st.tuples(st.just("SADD"), st.just("s"), st.integers(0, 3)),
    st.tuples(st.just("PING")),
    st.tuples(st.just("EW.CONSISTENCY"), st.sampled_from(("ONE", "LOCAL_QUORUM", "ALL"))),
    st.tuples(st.just("GET")),
)


@settings(max_examples=40, deadline=None)
@given(commands=st.lists(COMMANDS, min_size=1, max_size=30), seed=st.integers(0, 1 << 32))
def test_replies_are_those_of_a_single_node(
    tmp_path_factory: pytest.TempPathFactory, commands: list[tuple[str | int, ...]], seed: int
) -> None:
    """However the bytes arrive, and whenever answers and acknowledgements come."""
    choice = random.Random(seed)
    data = b"".join(request(*command) for command in commands)
    replies = []
    for alone in (True, False):
        with ticking(tmp_path_factory.mktemp("store")) as host, host.connect() as peer:
            region = Region(host)
            if alone:
                host.frontend.set_region(1, 1, HELD, HELD)
            left = data
            while region.count("commands_processed") < len(commands) or host.frontend.waiting:
                size = choice.randrange(1, len(left) + 1) if left else 0
                peer.send(left[:size])
                left = left[size:]
                region.host.frontend.tick()
                region.host.frontend.expire()
                if region.asked and choice.random() < 0.5:
                    region.answer(3)
                elif not alone and choice.random() < 0.5:
                    region.acknowledge(host.store.last_timestamp, host.store.last_timestamp)
            replies.append([peer.reply() for _ in commands])
    assert replies[0] == replies[1]
