"""The HTTP server on real sockets and listeners: breaking clients, limits on connections, draining."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import pytest
import trio
import trio.testing

from everwrite.server.http_adapter import REFUSALS_MAX, HttpServer, Limits
from tests.http_support import GET, PUT, echo, read_body, read_response, respond, running
from tests.support import eventually_async


@pytest.mark.trio
async def test_real_sockets_keep_alive_and_large_bodies() -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await respond(send, (await read_body(receive) or b"")[::-1])

    body = bytes(range(256)) * 8192
    with trio.fail_after(30):
        async with running(app) as (server, port):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        stream.send_all, b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                    )
                    assert await read_response(stream) == (200, body[::-1])
            assert server.statistics().connections_accepted == 1
            await stream.aclose()


@pytest.mark.trio
async def test_clients_that_break_off_never_end_the_server() -> None:
    with trio.fail_after(30):
        async with running(echo) as (server, port):
            for sent in (b"", GET[:7], PUT[:-2], GET, b"\x16\x03\x01garbage", GET * 50):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                # Lingering for no time makes close() a reset, as probes of load balancers do it.
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await stream.send_all(sent or b"\r\n")
                await stream.aclose()
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(GET)
            assert (await read_response(stream))[0] == 200
            await stream.aclose()
        assert server.statistics().connections == 0


@pytest.mark.trio
async def test_a_refused_body_does_not_reset_the_answer() -> None:
    with trio.fail_after(30):
        async with running(echo, Limits(body_bytes_max=1000)) as (_, port):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
            status, body = await read_response(stream)
            assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
            await stream.aclose()


@pytest.mark.trio
async def test_connections_over_the_limit_get_a_503() -> None:
    with trio.fail_after(30):
        async with running(echo, Limits(connections_max=2)) as (server, port):
            held = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
            for stream in held:
                await stream.send_all(GET)
                assert (await read_response(stream))[0] == 200
            extra = await trio.open_tcp_stream("127.0.0.1", port)
            await extra.send_all(GET)
            status, body = await read_response(extra)
            assert (status, json.loads(body)["error"]["code"]) == (503, "too_many_connections")
            await extra.aclose()
            # Far over the limit there isn't even an answer.
            crowd = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(REFUSALS_MAX + 1)]
            assert await crowd[-1].receive_some() == b""
            for stream in crowd:
                await stream.aclose()
            await eventually_async(lambda: server.statistics().connections == 2)
            await held.pop().aclose()
            await eventually_async(lambda: server.statistics().connections <= 1)
            again = await trio.open_tcp_stream("127.0.0.1", port)
            await again.send_all(GET)
            assert (await read_response(again))[0] == 200
            await again.aclose()
            await held.pop().aclose()


@pytest.mark.trio
async def test_drain_finishes_requests_and_closes_idle_connections() -> None:
    started, go_on = trio.Event(), trio.Event()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        started.set()
        await go_on.wait()
        await respond(send, b"done")

    with trio.fail_after(30):
        server = HttpServer(app)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            idle = await trio.open_tcp_stream("127.0.0.1", port)
            busy = await trio.open_tcp_stream("127.0.0.1", port)
            await busy.send_all(GET)
            await started.wait()
            server.drain()
            assert await idle.receive_some() == b""
            with pytest.raises(OSError, match="all attempts"):
                await trio.open_tcp_stream("127.0.0.1", port)
            go_on.set()
            answer = b"".join([data async for data in busy])
            assert answer.endswith(b"done")
            assert b"connection: close" in answer.lower()
            await idle.aclose()
            await busy.aclose()
        assert server.statistics().connections == 0


@pytest.mark.trio
async def test_drain_gives_up_requests_that_never_end(autojump_clock: trio.testing.MockClock) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        await trio.sleep_forever()

    server = HttpServer(app, Limits(drain_seconds=3.0))
    client, side = trio.testing.memory_stream_pair()

    class OneClient(trio.abc.Listener[trio.abc.Stream]):
        def __init__(self) -> None:
            self.streams = [side]

        async def accept(self) -> trio.abc.Stream:
            return self.streams.pop() if self.streams else await trio.sleep_forever()

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, [OneClient()])
        await client.send_all(GET)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        server.drain()
    assert trio.current_time() - began == pytest.approx(3.0)


@pytest.mark.trio
async def test_a_failing_accept_does_not_end_the_listener(autojump_clock: trio.testing.MockClock) -> None:
    client, side = trio.testing.memory_stream_pair()

    class Flaky(trio.abc.Listener[trio.abc.Stream]):
        def __init__(self) -> None:
            self.outcomes: list[Any] = [side, OSError(24, "too many open files"), OSError(103, "aborted")]

        async def accept(self) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            if not self.outcomes:
                await trio.sleep_forever()
            outcome = self.outcomes.pop()
            if isinstance(outcome, OSError):
                raise outcome
            return outcome  # type: ignore[no-any-return]

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer(echo).serve, [Flaky()])
        await client.send_all(GET)
        assert (await client.receive_some()).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()
