"""The tick over real sockets: order, back-pressure, limits, failures, and peers that misbehave."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import everwrite
from everwrite.memory_files import MemoryFiles
from everwrite.server.client import Client
from everwrite.server.frontend import LATENCY_BOUNDS, TICK_MORE, TICK_WROTE, Frontend
from everwrite.server.frontend_loop import close_frontend, serve_frontend
from everwrite.watched_files import WatchedFiles
from tests.faults.full_disk import Space
from tests.serving import Peer, Serving, request, served, serving, ticking
from tests.support import eventually, eventually_async

MIB = 1 << 20


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Serving]:
    with ticking(tmp_path) as serving:
        yield serving


def run(host: Serving, until: Callable[[], object] = lambda: True) -> int:
    """Tick until nothing is left to do and `until` holds. Returns the states, combined."""
    states = 0

    def settled() -> bool:
        nonlocal states
        state = host.frontend.tick()
        states |= state
        readable, _, _ = select.select([host.frontend.fileno()], [], [], 0)
        return not state & TICK_MORE and not readable and bool(until())

    eventually(settled)
    return states


def ask(host: Serving, peer: Peer, *args: bytes | str | int) -> bytes:
    """One command through ticks of this thread."""
    peer.send(request(*args))
    before = host.frontend.statistics()["commands_processed"]
    run(host, lambda: host.frontend.statistics()["commands_processed"] > before)
    return peer.reply()


def test_replies_keep_the_order_of_a_pipeline(host: Serving) -> None:
    """Native commands and those that Python answers, mixed in one write."""
    with host.connect() as peer:
        peer.send(
            request("SET", "a", 1) + request("CLIENT", "ID") + request("INCR", "a") + request("CLIENT", "GETNAME")
            + request("CLIENT", "SETNAME", "me") + b"PING\r\n" + request("CLIENT", "GETNAME") + request("GET", "a")
        )  # fmt: skip
        run(host, lambda: host.frontend.statistics()["commands_processed"] == 8)
        replies = [peer.reply() for _ in range(8)]
        assert replies == [
            b"+OK\r\n",
            b":1\r\n",
            b":2\r\n",
            b"$-1\r\n",
            b"+OK\r\n",
            b"+PONG\r\n",
            b"$2\r\nme\r\n",
            b"$1\r\n2\r\n",
        ]


def test_a_command_in_pieces(host: Serving) -> None:
    data = request("SET", "key", "v" * 300) + request("GET", "key")
    with host.connect() as peer:
        for i in range(len(data)):
            peer.send(data[i : i + 1])
            run(host)
        run(host, lambda: host.frontend.statistics()["commands_processed"] == 2)
        assert peer.reply() == b"+OK\r\n"
        assert peer.reply() == b"$300\r\n" + b"v" * 300 + b"\r\n"


def test_the_tick_tells_what_it_did(host: Serving) -> None:
    with host.connect() as peer:
        assert ask(host, peer, "GET", "a") == b"$-1\r\n"
        peer.send(request("GET", "a"))
        assert not run(host, lambda: host.frontend.statistics()["commands"]["get"] == 2) & TICK_WROTE
        peer.send(request("SET", "a", 1))
        assert run(host, lambda: "set" in host.frontend.statistics()["commands"]) & TICK_WROTE
        assert host.frontend.statistics()["commits"] == 1


def test_a_deferred_reply_holds_back_later_commands_of_its_connection_only(host: Serving) -> None:
    with host.connect() as peer, host.connect() as other:
        peer.send(request("SET", "a", 1) + request("WAIT", 2, 500) + request("GET", "a") + request("PING"))
        run(host, lambda: host.waits)
        assert peer.reply() == b"+OK\r\n"
        timestamp, regions, seconds, done = host.waits.pop()
        assert (timestamp, regions, seconds) == (host.store.last_timestamp, 2, 0.5)
        assert host.frontend.statistics()["blocked_clients"] == 1
        assert ask(host, other, "GET", "a") == b"$1\r\n1\r\n"
        peer.send(request("ECHO", "later"))
        run(host)
        done(1)
        run(host, lambda: host.frontend.statistics()["commands"].get("echo"))
        assert [peer.reply() for _ in range(4)] == [b":1\r\n", b"$1\r\n1\r\n", b"+PONG\r\n", b"$5\r\nlater\r\n"]
        assert host.frontend.statistics()["blocked_clients"] == 0


def test_a_reply_for_a_client_that_is_gone(host: Serving) -> None:
    with host.connect() as peer:
        peer.send(request("WAIT", 1, 0))
        run(host, lambda: host.waits)
    run(host, lambda: host.frontend.connected_clients == 0)
    assert not host.frontend.reply(1, b":0\r\n")
    host.waits.pop()[3](0)


def test_a_reply_that_nobody_waits_for_is_refused(host: Serving) -> None:
    with host.connect() as peer:
        ask(host, peer, "CLIENT", "ID")
        assert not host.frontend.reply(1, b"+surprise\r\n")
        assert ask(host, peer, "PING") == b"+PONG\r\n"


def test_a_failing_handler_is_logged_and_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def handler(client: Client, args: list[bytes]) -> bytes | None:
        raise RuntimeError("on purpose")

    with ticking(tmp_path) as host:
        frontend = Frontend(host.store, handler)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        frontend.add_listener(listener)
        with Peer(port) as peer, caplog.at_level(logging.ERROR):
            peer.send(request("INFO") + request("PING"))
            eventually(lambda: frontend.tick() is not None and frontend.statistics()["commands_processed"] == 2)
            assert peer.reply() == b"-ERR internal error: see the node's log\r\n"
            assert peer.reply() == b"+PONG\r\n"
        assert "on purpose" in caplog.text
        frontend.close_all()


def test_many_clients_at_once(host: Serving) -> None:
    peers = []
    for _ in range(300):
        peers.append(host.connect())
        host.frontend.tick()
    for number, peer in enumerate(peers):
        peer.send(request("SET", f"k{number}", number) * 3 + request("GET", f"k{number}"))
    run(host, lambda: host.frontend.statistics()["commands_processed"] == 1200)
    for number, peer in enumerate(peers):
        assert [peer.reply() for _ in range(3)] == [b"+OK\r\n"] * 3
        assert peer.reply() == b"$%d\r\n%d\r\n" % (len(str(number)), number)
        peer.sock.close()
    run(host, lambda: host.frontend.connected_clients == 0)
    assert host.frontend.statistics()["buffer_bytes"] == 0


def test_clients_beyond_the_limit_are_told(tmp_path: Path) -> None:
    with ticking(tmp_path, clients_max=2) as host:
        peers = [host.connect() for _ in range(3)]
        run(host, lambda: host.frontend.statistics()["connections_rejected"] == 1)
        assert peers[2].reply() == b"-ERR max number of clients reached\r\n"
        assert peers[2].ended()
        assert ask(host, peers[0], "PING") == b"+PONG\r\n"
        for peer in peers:
            peer.sock.close()


def test_an_announced_bulk_takes_no_memory(host: Serving) -> None:
    with host.connect() as peer:
        peer.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$67108864\r\n" + b"x" * 1000)
        run(host, lambda: host.frontend.statistics()["bytes_received"] > 1000)
        assert host.frontend.statistics()["buffer_bytes"] < 200_000


def test_a_large_value_comes_and_goes(host: Serving) -> None:
    value = random.Random(1).randbytes(20 * MIB)
    with host.connect() as peer:
        sending = threading.Thread(target=peer.send, args=(request("SET", "k", value) + request("GET", "k"),))
        sending.start()
        run(host, lambda: host.frontend.statistics()["commands_processed"] == 2)
        sending.join()
        found: list[bytes] = []
        receiving = threading.Thread(target=lambda: found.extend([peer.reply(), peer.reply()]))
        receiving.start()
        run(host, lambda: len(found) == 2)
        receiving.join()
        assert found == [b"+OK\r\n", b"$%d\r\n%s\r\n" % (len(value), value)]
        assert ask(host, peer, "STRLEN", "k") == b":%d\r\n" % len(value)
        assert host.frontend.statistics()["buffer_bytes"] < 200_000


def test_memory_of_all_requests_is_bounded(tmp_path: Path) -> None:
    with ticking(tmp_path, buffer_bytes_max=4 * MIB) as host:
        peers = [host.connect() for _ in range(4)]
        for peer in peers:
            peer.sock.setblocking(False)
        head = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$60000000\r\n"
        for peer in peers:
            peer.sock.send(head)
        refused = 0
        for _ in range(2000):
            for peer in peers:
                try:
                    peer.sock.send(b"x" * 65536)
                except (BlockingIOError, ConnectionError):
                    refused += 1
            host.frontend.tick()
            assert host.frontend.statistics()["buffer_bytes"] < 12 * MIB
        assert refused
        assert host.frontend.statistics()["protocol_errors"] >= 1
        for peer in peers:
            peer.sock.close()


def test_a_client_that_does_not_read_is_not_read_from(host: Serving) -> None:
    """Its requests wait in its socket, its replies stay bounded, and others are served meanwhile."""
    value = b"v" * 100_000
    count = 2000
    with host.connect() as slow, host.connect() as other:
        assert ask(host, other, "SET", "k", value) == b"+OK\r\n"
        slow.sock.setblocking(False)
        queue = request("GET", "k") * count
        sent = 0
        while sent < len(queue):
            try:
                sent += slow.sock.send(queue[sent:])
            except BlockingIOError:
                break
        for _ in range(50):
            host.frontend.tick()
            assert host.frontend.statistics()["buffer_bytes"] < 4 * MIB
        assert ask(host, other, "PING") == b"+PONG\r\n"
        assert host.frontend.statistics()["commands"]["get"] < count
        slow.sock.setblocking(True)
        expected = b"$100000\r\n" + value + b"\r\n"
        replies, wanted = 0, 300

        def read_some() -> bool:
            nonlocal replies
            while select.select([slow.sock], [], [], 0)[0] and replies < wanted:
                slow.sock.settimeout(0.05)
                try:
                    assert slow.reply() == expected
                except TimeoutError:
                    break
                replies += 1
            return replies == wanted

        run(host, read_some)


def test_requests_before_a_half_close_are_answered(host: Serving) -> None:
    with host.connect() as peer:
        peer.send(request("INCR", "n") * 5000)
        peer.sock.shutdown(socket.SHUT_WR)
        run(host, lambda: host.frontend.statistics()["commands_processed"] == 5000)
        assert [peer.reply() for _ in range(5000)][-1] == b":5000\r\n"
        run(host, lambda: host.frontend.connected_clients == 0)
        assert peer.ended()


def test_a_client_that_resets_in_the_middle(host: Serving) -> None:
    for data in (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100\r\nabc", request("GET", "k") * 100, request("INFO"), b""):
        peer = host.connect()
        peer.send(data)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.sock.close()
        run(host)
    run(host, lambda: host.frontend.connected_clients == 0)
    with host.connect() as peer:
        assert ask(host, peer, "PING") == b"+PONG\r\n"


def test_the_error_is_delivered_although_more_was_sent(host: Serving) -> None:
    with host.connect() as peer:
        peer.send(request("PING") + b"*1\r\n$4611686018427387904\r\n" + b"x" * 200_000)
        run(host, lambda: host.frontend.statistics()["protocol_errors"] == 1)
        assert peer.reply() == b"+PONG\r\n"
        assert peer.reply() == b"-ERR Protocol error: invalid bulk length\r\n"
        assert peer.ended()
    run(host, lambda: host.frontend.connected_clients == 0)


def test_commands_for_python_take_short_arguments(host: Serving) -> None:
    """They become Python objects, so a request of 256 MiB must not."""
    with host.connect() as peer:
        peer.send(request("INFO", "x" * 700_000, "x" * 700_000) + request("PING"))
        run(host, lambda: "ping" in host.frontend.statistics()["commands"])
        assert peer.reply() == b"-ERR the arguments are longer than this command takes\r\n"
        assert peer.reply() == b"+PONG\r\n"


def test_http_is_turned_away(host: Serving) -> None:
    with host.connect() as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET a 1\r\n")
        run(host, lambda: host.frontend.statistics()["protocol_errors"] == 1)
        assert peer.reply() == b"-ERR this is not an HTTP port\r\n"
        assert peer.ended()
    assert b"a" not in host.store


def test_quit_closes_after_its_reply(host: Serving) -> None:
    with host.connect() as peer:
        peer.send(request("QUIT") + request("SET", "a", 1))
        run(host, lambda: host.frontend.statistics()["commands"].get("quit"))
        assert peer.reply() == b"+OK\r\n"
        assert peer.ended()
    assert b"a" not in host.store


def test_a_failed_commit_answers_no_write_and_no_read_of_its_round() -> None:
    files = MemoryFiles()
    with everwrite.open("/db", files=files, background=False) as store:
        host = Serving(store)
        with host.connect() as writer, host.connect() as reader:
            assert ask(host, writer, "SET", "k", "old") == b"+OK\r\n"
            files.fail("sync", errno.EIO)
            writer.send(request("SET", "k", "new") + request("PING"))
            reader.send(request("GET", "k"))
            run(host, lambda: host.frontend.statistics()["commands_processed"] == 4)
            assert [writer.reply()[:9], writer.reply()[:9], reader.reply()[:9]] == [b"-MISCONF "] * 3
            assert host.frontend.failed
            assert host.frontend.statistics()["commands_failed"] == 3
            # It stays so: what the device holds is unknown, and the read may show what was not acknowledged.
            assert ask(host, reader, "GET", "k").startswith(b"-MISCONF Errors writing to the log")
            assert ask(host, reader, "PING") == b"+PONG\r\n"
            assert b"aof_last_write_status:err" in ask(host, reader, "INFO", "persistence")
        host.frontend.close_all()


@pytest.mark.parametrize("durability", ["os", "always"])
def test_a_full_disk_refuses_writes_and_nothing_else(durability: str) -> None:
    space = Space(at=1 << 30)
    files = WatchedFiles(MemoryFiles(), space)
    with everwrite.open("/db", durability, files=files, background=False) as store:
        host = Serving(store)
        with host.connect() as peer:
            assert ask(host, peer, "SET", "k", "old") == b"+OK\r\n"
            space.at = 1
            # Larger than what is reserved of the log.
            for write in (("SET", "k", "x" * MIB), ("MSET", "k", "x" * MIB, "l", 1), ("HSET", "h", "f", "x" * MIB)):
                answer = ask(host, peer, *write)
                assert answer.startswith(b"-MISCONF Errors writing to the log: the disk is full"), write[0]
                assert store.statistics()["read_only"] == 1
            assert ask(host, peer, "GET", "k") == b"$3\r\nold\r\n"
            assert ask(host, peer, "EXISTS", "l", "h") == b":0\r\n"
            assert b"aof_last_write_status:err" in ask(host, peer, "INFO", "persistence")
            assert not host.frontend.failed
            space.returned = True
            assert ask(host, peer, "SET", "k", "x" * MIB) == b"+OK\r\n"
            assert b"aof_last_write_status:ok" in ask(host, peer, "INFO", "persistence")
            assert store.statistics()["read_only"] == 0
        host.frontend.close_all()


def test_one_sync_for_all_that_a_round_wrote(tmp_path: Path) -> None:
    with ticking(tmp_path, "always") as host:
        peers = [host.connect() for _ in range(20)]
        run(host, lambda: host.frontend.connected_clients == 20)
        before = host.store.statistics()["syncs"]
        for number, peer in enumerate(peers):
            peer.send(request("SET", f"k{number}", 1) * 10)
        run(host, lambda: host.frontend.statistics()["commands_processed"] == 200)
        assert host.store.statistics()["syncs"] - before == host.frontend.statistics()["commits"] < 20
        for peer in peers:
            peer.sock.close()


def test_latency_counts_every_command(host: Serving) -> None:
    with host.connect() as peer:
        for command in (("GET", "a"), ("SET", "a", 1), ("PING",), ("INFO",), ("GET", "a")):
            ask(host, peer, *command)
    bounds, counts = host.frontend.latency()
    assert bounds == LATENCY_BOUNDS
    assert {family: sum(buckets) for family, buckets in counts.items()} == {
        "read": 2, "write": 1, "connection": 1, "control": 1,
    }  # fmt: skip
    assert all(len(buckets) == len(bounds) + 1 for buckets in counts.values())
    assert all(seconds > 0 for seconds in host.frontend.latency_sums().values())


def test_draining_answers_what_was_received(host: Serving) -> None:
    with host.connect() as busy, host.connect() as idle, host.connect() as waiting:
        run(host, lambda: host.frontend.connected_clients == 3)
        waiting.send(request("WAIT", 1, 0))
        run(host, lambda: host.waits)
        busy.send(request("INCR", "n") * 3000)
        host.frontend.drain()
        run(host, lambda: host.frontend.connected_clients == 1)
        assert [busy.reply() for _ in range(3000)][-1] == b":3000\r\n"
        assert busy.ended()
        assert idle.ended()
        with pytest.raises(ConnectionRefusedError):
            host.connect()
        host.waits.pop()[3](0)
        run(host, lambda: host.frontend.connected_clients == 0)
        assert waiting.reply() == b":0\r\n"


def test_closing_is_final_and_idempotent(host: Serving) -> None:
    with host.connect() as peer:
        run(host, lambda: host.frontend.connected_clients == 1)
        host.frontend.close_all()
        host.frontend.close_all()
        host.frontend.drain()
        assert peer.ended()
        assert host.frontend.tick() == 0
        assert host.frontend.fileno() == -1
        assert host.frontend.clients() == []
        with socket.socket() as late, pytest.raises(ValueError, match="no longer accepts"):
            host.frontend.add_listener(late)


def test_descriptors_do_not_leak(host: Serving) -> None:
    process = psutil.Process()
    before = process.num_fds()
    for _ in range(50):
        with host.connect() as peer:
            assert ask(host, peer, "PING") == b"+PONG\r\n"
            assert host.frontend.clients()[0].descriptor > 0
    run(host, lambda: host.frontend.connected_clients == 0)
    assert process.num_fds() == before


def test_running_out_of_descriptors(host: Serving) -> None:
    """The client is told, and the listener doesn't stay readable for ever."""
    with host.connect() as early:
        assert ask(host, early, "PING") == b"+PONG\r\n"
        late = [socket.socket() for _ in range(3)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
            fillers = []
            while True:
                try:
                    fillers.append(os.dup(0))
                except OSError:
                    break
            for sock in late:
                sock.connect(("127.0.0.1", host.port))
            before = host.frontend.statistics()["connections_rejected"]
            for _ in range(200):
                host.frontend.tick()
            assert host.frontend.statistics()["connections_rejected"] - before == 3
        finally:
            for filler in fillers:
                os.close(filler)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for sock in late:
            assert sock.recv(100) == b"-ERR max number of clients reached\r\n"
            sock.close()
        assert ask(host, early, "PING") == b"+PONG\r\n"


def test_ticks_do_not_nest(tmp_path: Path) -> None:
    with ticking(tmp_path) as host:
        nested: list[BaseException] = []

        def handler(client: Client, args: list[bytes]) -> bytes | None:
            try:
                frontend.tick()
            except RuntimeError as error:
                nested.append(error)
            return b"+OK\r\n"

        frontend = Frontend(host.store, handler)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        frontend.add_listener(listener)
        with Peer(port) as peer:
            peer.send(request("INFO"))
            eventually(lambda: frontend.tick() is not None and nested)
            assert peer.reply() == b"+OK\r\n"
        frontend.close_all()


async def converse(port: int, turns: int) -> None:
    """A trio client that increments its own counter and checks each answer."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        key = f"k{stream.socket.getsockname()[1]}"
        for turn in range(1, turns + 1):
            await stream.send_all(request("INCR", key))
            expected = b":%d\r\n" % turn
            received = b""
            while len(received) < len(expected):
                received += await stream.receive_some()
            assert received == expected


@pytest.mark.trio
async def test_serving_in_trio(tmp_path: Path) -> None:
    async with serving(tmp_path) as host, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(converse, host.port, 50)


@pytest.mark.trio
async def test_the_loop_reports_writes_and_ends_when_closed(tmp_path: Path) -> None:
    writes = 0

    def on_write() -> None:
        nonlocal writes
        writes += 1

    with everwrite.open(tmp_path, "os") as store:
        host = Serving(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_frontend, host.frontend, on_write)
            await converse(host.port, 5)
            assert writes == 5
            host.frontend.drain()
            await eventually_async(lambda: host.frontend.connected_clients == 0)
            close_frontend(host.frontend)
            close_frontend(host.frontend)


@pytest.mark.trio
async def test_the_loop_can_be_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path) as host:
        await converse(host.port, 3)
        with trio.CancelScope() as scope:
            scope.cancel()
            await serve_frontend(Frontend(host.store, lambda client, args: None))
        assert scope.cancelled_caught
        await converse(host.port, 3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(tmp_path_factory.mktemp("shared")) as host:
        yield host


PIECES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"*1\r\n", b"$4\r\nPING\r\n", b"*2\r\n$3\r\nGET\r\n", b"$-1\r\n", b"\r\n", b"*99999999\r\n", b"$"]
    ),
    st.lists(st.binary(max_size=10), min_size=1, max_size=4).map(lambda args: request(*args)),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, max_size=10), st.booleans())
def test_garbage_never_takes_the_server_down(shared: Serving, pieces: list[bytes], reset: bool) -> None:
    with shared.connect() as peer:
        for piece in pieces:
            try:
                peer.send(piece)
            except ConnectionError:
                break
        if reset:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with shared.connect() as peer:
        assert peer.ask("PING") == b"+PONG\r\n"
