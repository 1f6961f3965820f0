"""A client's side of HTTP for tests, with h11's client half as the independent parser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio
import trio.testing

from everwrite.server.http_adapter import ClientDisconnected, HttpServer, Limits

App = Callable[[Any, Any, Any], Awaitable[None]]

GET = b"GET /a%2Fb/c?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"
PUT = b"PUT /k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"PUT /k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


async def read_body(receive: Any) -> bytes | None:
    """The whole request body; None when the client left before its end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += bytes(message["body"])
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
