"""The HTTP server: what it parses, what it refuses, and what a broken client can't do to it."""

from __future__ import annotations

import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everwrite.server.http_adapter import ClientDisconnected, HttpServer, Limits

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


async def read_body(receive: Any) -> bytes | None:
    """The whole request body; None when the client left before its end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


async def respond(send: Any, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it saw of the request, as JSON."""
    body = await read_body(receive)
    if body is None:
        raise ClientDisconnected("gone")
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "body": body.decode("latin-1"),
    }
    await respond(send, json.dumps(seen).encode())


def serve_bytes(app: App, pieces: list[bytes], limits: Limits | None = None, **options: Any) -> bytes:
    """What the server sends for a connection that delivers `pieces`, each as one read, then ends."""

    async def main() -> bytes:
        server = HttpServer(app, limits)
        client, side = trio.testing.memory_stream_pair()
        output = b""

        async def feed() -> None:
            for piece in pieces:
                await client.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.handle, side)
            nursery.start_soon(feed)
            async for data in client:
                output += data
        assert server.statistics().connections == 0
        return output

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), **options)


def parse(output: bytes, methods: list[bytes]) -> list[tuple[h11.Response, bytes]]:
    """The responses in `output`, to requests of these methods, by an independent parser."""
    responses = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(output)
        client.receive_data(b"")
        head: h11.Response | None = None
        body = b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
        assert head is not None
        responses.append((head, body))
        output = client.trailing_data[0]
    assert output == b""
    return responses


def one(output: bytes, method: bytes = b"GET") -> tuple[int, Any]:
    """Status and JSON body of the only response in `output`."""
    [(head, body)] = parse(output, [method])
    return head.status_code, json.loads(body)


def headers_of(response: h11.Response) -> dict[bytes, bytes]:
    return dict(response.headers)


GET = b"GET /a%2Fb/c?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"
PUT = b"PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"PUT /k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


def test_a_request_reaches_the_application_as_it_was_sent() -> None:
    status, seen = one(serve_bytes(echo, [GET]))
    assert status == 200
    assert seen == {"method": "GET", "path": "/a/b/c", "raw_path": "/a%2Fb/c", "query": "x=1", "body": ""}


@pytest.mark.parametrize("request_bytes", [PUT, CHUNKED])
def test_bodies_arrive_whole_and_byte_by_byte(request_bytes: bytes) -> None:
    whole = one(serve_bytes(echo, [request_bytes]))
    split = one(serve_bytes(echo, [bytes([byte]) for byte in request_bytes]))
    assert whole == split
    assert whole[1]["body"] == "hello"


def test_pipelined_requests_are_answered_in_order() -> None:
    requests = [b"PUT /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d" % (i, i) for i in range(9)]
    responses = parse(serve_bytes(echo, [b"".join(requests)]), [b"PUT"] * 9)
    assert [json.loads(body)["body"] for _, body in responses] == [str(i) for i in range(9)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 600), max_size=30),
    chunked=st.booleans(),
)
def test_any_split_of_the_bytes_gives_the_same_answers(bodies: list[bytes], cuts: list[int], chunked: bool) -> None:
    stream = b""
    for body in bodies:
        if chunked:
            framing = b"Transfer-Encoding: chunked\r\n\r\n"
            body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        else:
            framing = b"Content-Length: %d\r\n\r\n" % len(body)
        stream += b"PUT /k HTTP/1.1\r\nHost: x\r\n" + framing + body
    edges = [0, *sorted(cut for cut in set(cuts) if 0 < cut < len(stream)), len(stream)]
    pieces = [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    responses = parse(serve_bytes(echo, pieces), [b"PUT"] * len(bodies))
    assert [json.loads(body)["body"].encode("latin-1") for _, body in responses] == bodies


@settings(max_examples=150, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=200) | st.from_regex(rb"[A-Z]{1,9} [!-~]{1,20} HTTP/1\.[01]\r\n.*", fullmatch=True))
def test_garbage_gets_an_error_or_a_close_and_never_an_exception(garbage: bytes) -> None:
    errors = []
    handler = logging.Handler()
    handler.emit = errors.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("everwrite.http")
    logger.addHandler(handler)
    try:
        output = serve_bytes(echo, [garbage])
    finally:
        logger.removeHandler(handler)
    assert not errors
    assert output == b"" or output.startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "bad_request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad_request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel", 400, "bad_request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4611686018427387904\r\n\r\n", 413, "body_too_large"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 65\r\n\r\n", 413, "body_too_large"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n" + b"x" * 80, 413, "body_too_large"),
        (b"GET /" + b"k" * 600 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "target_too_long"),
        (b"GET /" + b"k" * 2000, 414, "target_too_long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"k" * 600 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"k" * 2000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20 + b"\r\n", 431, "headers_too_large"),
    ],
)
def test_bad_requests_get_a_clear_error(request_bytes: bytes, status: int, code: str) -> None:
    limits = Limits(body_bytes_max=64, target_bytes_max=512, header_bytes_max=512, headers_max=16)
    output = serve_bytes(echo, [request_bytes], limits)
    got, body = one(output)
    assert (got, body["error"]["code"]) == (status, code)
    assert body["error"]["message"]
    assert b"connection: close" in output.lower()


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async def never(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("the application must not see this request")

    head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    assert one(serve_bytes(never, [head], Limits(body_bytes_max=999)))[0] == 413


def test_a_body_at_the_limit_is_taken() -> None:
    request = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 64\r\n\r\n" + b"x" * 64
    assert one(serve_bytes(echo, [request], Limits(body_bytes_max=64)))[0] == 200


def test_head_gets_the_headers_and_no_body() -> None:
    requests = b"HEAD /k HTTP/1.1\r\nHost: x\r\n\r\n" + GET
    [(head, none), (_, body)] = parse(serve_bytes(echo, [requests]), [b"HEAD", b"GET"])
    assert int(headers_of(head)[b"content-length"]) > 0
    assert none == b""
    assert body != b""


def test_standard_headers_are_there_once() -> None:
    [(head, _)] = parse(serve_bytes(echo, [GET]), [b"GET"])
    names = [name for name, _ in head.headers]
    assert names.count(b"date") == names.count(b"server") == 1


def test_a_status_without_a_body_sends_none() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"ignored"})

    responses = parse(serve_bytes(app, [GET + GET]), [b"GET", b"GET"])
    assert [(head.status_code, body) for head, body in responses] == [(204, b"")] * 2


def test_a_streamed_response_is_chunked() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one ", b"two ", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    [(head, body)] = parse(serve_bytes(app, [GET]), [b"GET"])
    assert headers_of(head)[b"transfer-encoding"] == b"chunked"
    assert body == b"one two three"


def test_http_1_0_and_connection_close_end_the_connection() -> None:
    for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"):
        assert len(parse(serve_bytes(echo, [request + GET]), [b"GET"])) == 1


def test_absolute_form_targets_are_understood() -> None:
    for target, path, query in [
        (b"http://host:80/a/b?c=d", "/a/b", "c=d"),
        (b"http://host", "/", ""),
        (b"http://host?c=d", "/", "c=d"),
    ]:
        _, seen = one(serve_bytes(echo, [b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"]))
        assert (seen["path"], seen["query"]) == (path, query)


def test_100_continue_is_sent_when_the_application_reads() -> None:
    head = b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    output = serve_bytes(echo, [head, b"hello"])
    assert output.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


def test_without_reading_no_100_continue_and_the_connection_closes() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"{}", 404)

    head = b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    [(response, _)] = parse(serve_bytes(app, [head]), [b"PUT"])
    assert response.status_code == 404
    assert headers_of(response)[b"connection"] == b"close"


def test_a_small_body_that_nobody_read_is_dropped_and_the_connection_lives() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await respond(send, b"{}")

    assert len(parse(serve_bytes(app, [PUT + GET]), [b"PUT", b"GET"])) == 2


def test_a_failing_application_is_a_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise ZeroDivisionError("on purpose")

    status, body = one(serve_bytes(app, [GET + GET]))
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "on purpose" in caplog.text


def test_an_application_without_an_answer_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        return

    assert one(serve_bytes(app, [GET]))[0] == 500
    assert "without a complete response" in caplog.text


def test_a_response_that_breaks_off_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        raise ZeroDivisionError("half way")

    output = serve_bytes(app, [GET + GET])
    assert output.endswith(b"12345")
    assert "half way" in caplog.text


def test_a_client_that_leaves_is_reported_to_the_application() -> None:
    heard: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        assert await read_body(receive) == b""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
        heard.append((await receive())["type"])
        heard.append((await receive())["type"])

    serve_bytes(app, [GET])
    assert heard == ["http.disconnect", "http.disconnect"]


async def test_sending_to_a_client_that_closed_raises() -> None:
    raised = trio.Event()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        except OSError:
            raised.set()
            raise

    client, side = trio.testing.memory_stream_pair()
    server = HttpServer(app)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handle, side)
        await client.send_all(GET)
        await client.aclose()
    assert raised.is_set()
    assert server.statistics().application_errors == 0


def test_waiting_for_a_disconnect_ends_with_the_response_and_keeps_pipelined_bytes() -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await read_body(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await respond(send, b"{}")

    assert len(parse(serve_bytes(app, [GET, GET, GET]), [b"GET"] * 3)) == 3


def stalled(pieces: list[bytes], app: App = echo, seconds: float = 1000.0) -> bytes:
    """What the server sends to a client that sends `pieces`, `seconds` apart, and never ends its side."""

    async def main() -> bytes:
        server = HttpServer(app)
        client, side = trio.testing.memory_stream_pair()
        output = b""

        async def feed() -> None:
            for piece in pieces:
                try:
                    await client.send_all(piece)
                except trio.BrokenResourceError:
                    return
                await trio.sleep(seconds)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.handle, side)
            nursery.start_soon(feed)
            async for data in client:
                output += data
            nursery.cancel_scope.cancel()
        return output

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_slow_clients_are_given_up() -> None:
    assert stalled([]) == b""
    assert one(stalled([GET])) == one(serve_bytes(echo, [GET]))
    assert one(stalled([GET[:10]]))[0] == 408
    assert one(stalled([bytes([byte]) for byte in GET], seconds=1.0))[0] == 408
    assert one(stalled([PUT[:-1]]))[0] == 408
    drip = [b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", *[b"x"] * 100]
    assert one(stalled(drip, seconds=1.0))[0] == 408
    assert one(stalled(drip, seconds=0.1))[0] == 200


async def test_a_client_that_takes_no_response_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    lost = trio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        try:
            await respond(send, b"x" * 100)
        except OSError:
            lost.set()
            raise

    client, side = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer(app).handle, side)
        await client.send_all(GET)
    assert lost.is_set()


@asynccontextmanager
async def running(app: App, limits: Limits | None = None) -> AsyncIterator[tuple[HttpServer, int]]:
    """A server on a real socket, and its port."""
    server = HttpServer(app, limits)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        yield server, port
        server.drain()


async def read_response(stream: trio.SocketStream, method: bytes = b"GET") -> tuple[int, bytes]:
    """One response from the stream; later bytes are lost."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    status, body = 0, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            client.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
    return status, body


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


async def test_a_refused_body_does_not_reset_the_answer() -> None:
    with trio.fail_after(30):
        async with running(echo, Limits(body_bytes_max=1000)) as (_, port):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
            status, body = await read_response(stream)
            assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
            await stream.aclose()


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
            await held.pop().aclose()
            while server.statistics().connections > 1:
                await trio.sleep(0.01)
            again = await trio.open_tcp_stream("127.0.0.1", port)
            await again.send_all(GET)
            assert (await read_response(again))[0] == 200
            await again.aclose()
            await held.pop().aclose()


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
            with pytest.raises(OSError):
                await trio.open_tcp_stream("127.0.0.1", port)
            go_on.set()
            answer = b"".join([data async for data in busy])
            assert answer.endswith(b"done")
            assert b"connection: close" in answer.lower()
            await idle.aclose()
            await busy.aclose()
        assert server.statistics().connections == 0


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
