"""The HTTP server: what it parses, what it refuses, and what a slow or broken client gets."""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everwrite.server.http_adapter import ClientDisconnected, HttpServer, Limits
from tests.http_support import CHUNKED, GET, PUT, App, echo, headers_of, one, parse, read_body, respond, serve_bytes

TE = b"Transfer-Encoding: chunked\r\n\r\n"


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
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    responses = parse(serve_bytes(echo, pieces), [b"PUT"] * len(bodies))
    assert [json.loads(body)["body"].encode("latin-1") for _, body in responses] == bodies


@settings(max_examples=150, deadline=None)
@given(
    garbage=st.binary(min_size=1, max_size=200)
    | st.from_regex(rb"[A-Z]{1,9} [!-~]{1,20} HTTP/1\.[01]\r\n.*", fullmatch=True)
)
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
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n" + TE + b"0\r\n\r\n", 400, "bad_request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\n" + TE + b"zz\r\n", 400, "bad_request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel", 400, "bad_request"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4611686018427387904\r\n\r\n", 413, "body_too_large"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 65\r\n\r\n", 413, "body_too_large"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\n" + TE + b"50\r\n" + b"x" * 80, 413, "body_too_large"),
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


def test_a_refused_head_gets_no_body() -> None:
    [(head, body)] = parse(serve_bytes(echo, [GET.replace(b"GET", b"HEAD")], Limits(target_bytes_max=3)), [b"HEAD"])
    assert (head.status_code, body) == (414, b"")


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


@pytest.mark.trio
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


async def watching(_scope: Any, receive: Any, send: Any) -> None:
    """Waits for the client's leaving while it answers, as an application with a stream of events does."""
    await read_body(receive)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.sleep(1)
        await respond(send, b"{}")


def test_waiting_for_a_disconnect_ends_with_the_response_and_keeps_pipelined_bytes() -> None:
    assert len(parse(stalled([GET, GET, GET], watching, seconds=0.1), [b"GET"] * 3)) == 3


@pytest.mark.trio
async def test_waiting_for_a_disconnect_reads_ahead_only_so_far(autojump_clock: trio.testing.MockClock) -> None:
    client, side = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer(watching).handle, side)
        sent = 0
        with trio.move_on_after(0.5):
            while sent < 100:
                await client.send_all(GET)
                sent += 1
        assert 3 <= sent < 10
        nursery.cancel_scope.cancel()


def test_an_application_may_fail_because_its_client_left(caplog: pytest.LogCaptureFixture) -> None:
    assert serve_bytes(echo, [PUT[:-1]]).startswith(b"HTTP/1.1 400")

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await read_body(receive)
        assert await read_body(receive) is None
        raise ClientDisconnected("told so")

    assert serve_bytes(app, [GET]) == b""
    assert not caplog.records


def test_slow_clients_are_given_up() -> None:
    assert stalled([]) == b""
    assert one(stalled([GET])) == one(serve_bytes(echo, [GET]))
    assert one(stalled([GET[:10]]))[0] == 408
    assert one(stalled([bytes([byte]) for byte in GET], seconds=1.0))[0] == 408
    assert one(stalled([PUT[:-1]]))[0] == 408
    drip = [b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", *[b"x"] * 100]
    assert one(stalled(drip, seconds=1.0))[0] == 408
    assert one(stalled(drip, seconds=0.1))[0] == 200


@pytest.mark.trio
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
