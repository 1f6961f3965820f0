"""An HTTP/1.1 server for ASGI applications: h11 parses, trio moves the bytes.

One task serves one connection, one request at a time: a pipelined request stays in the
parser's buffer until the response before it is complete. While an application runs, the
socket is read only when the application calls `receive`, so that a client that sends
faster than it is served meets TCP's flow control, never a growing buffer.

Invariants:
- Nothing that a client does ends the server or another client's connection.
- What a connection buffers is bounded by `Limits`; a length that a client announces is
  checked before anything is read for it.
- Everything that waits for a client has a deadline.

The lifespan protocol isn't run, and there are no WebSockets. `receive` answers
`http.disconnect` and `send` raises `ClientDisconnected` (an OSError, as ASGI 2.4 asks) once
the client is gone, too slow, or over a limit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import h11
import trio

__all__ = ["ClientDisconnected", "HttpServer", "HttpStatistics", "Limits", "error_json"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

logger = logging.getLogger("everwrite.http")

READ_BYTES = 64 * 1024
READS_AHEAD_MAX = 4
WRITE_PIECE_BYTES = 256 * 1024
# Connections above `connections_max` that are answered 503 instead of being closed unanswered.
REFUSALS_MAX = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost. Sizes in bytes, times in seconds."""

    body_bytes_max: int = 64 << 20
    # A key of 64 KiB is at most three times as long when every byte is percent-encoded.
    target_bytes_max: int = 3 * (64 << 10) + 4096
    header_bytes_max: int = 32 << 10
    headers_max: int = 128
    connections_max: int = 512
    keep_alive_seconds: float = 75.0
    head_seconds: float = 10.0
    # The longest pause in a body. A client slower than `body_bytes_per_second_min` uses it up.
    body_seconds: float = 20.0
    body_bytes_per_second_min: int = 4096
    # For each piece of up to WRITE_PIECE_BYTES of a response.
    write_seconds: float = 60.0
    # How long and how much is read and dropped so that a client sees an early answer.
    linger_seconds: float = 2.0
    linger_bytes_max: int = 4 << 20
    drain_seconds: float = 8.0


@dataclass(slots=True)
class HttpStatistics:
    """Counters since the server began; `connections` is the number open now."""

    connections: int = 0
    connections_accepted: int = 0
    connections_refused: int = 0
    application_errors: int = 0
    responses: dict[int, int] = field(default_factory=dict)


class ClientDisconnected(OSError):
    """The response can't be delivered any more: the client is gone, or was given up."""


class _Refused(Exception):
    """A request that is answered by this module, on a connection that then closes."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def error_json(code: str, message: str, **details: object) -> bytes:
    """The one shape of an error body: `{"error": {"code": ..., "message": ..., ...}}`."""
    return json.dumps({"error": {"code": code, "message": message, **details}}).encode() + b"\n"


class HttpServer:
    """Serves one ASGI application on any number of listeners.

    Invariant: `_idle` holds a cancel scope for exactly the connections that wait between
    requests, so that `drain` can end these and no others.
    """

    def __init__(self, app: App, limits: Limits | None = None) -> None:
        self.app = app
        self.limits = limits or Limits()
        self.draining = trio.Event()
        self._statistics = HttpStatistics()
        self._idle: set[trio.CancelScope] = set()

    def statistics(self) -> HttpStatistics:
        """The live counters (not a copy)."""
        return self._statistics

    def drain(self) -> None:
        """Stop accepting, close idle connections, finish requests under way; `serve` then returns.

        After `drain_seconds` what is still open is closed.
        """
        self.draining.set()
        for scope in self._idle:
            scope.cancel()

    async def serve(
        self,
        listeners: Iterable[trio.abc.Listener[trio.abc.Stream]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve until `drain` or cancellation; the listeners are closed at the end."""
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as acceptors:
                for listener in listeners:
                    acceptors.start_soon(self._accept, listener, connections)
                task_status.started()
                await self.draining.wait()
                acceptors.cancel_scope.cancel()
            connections.cancel_scope.deadline = trio.current_time() + self.limits.drain_seconds

    async def _accept(self, listener: trio.abc.Listener[trio.abc.Stream], connections: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    # Out of descriptors, or a connection that broke before it was taken: other
                    # clients are still served, so the listener must live.
                    logger.warning("accept failed: %s", error)
                    await trio.sleep(0.1)
                    continue
                connections.start_soon(self.handle, stream)

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end and close it. Never raises an Exception."""
        statistics = self._statistics
        statistics.connections += 1
        statistics.connections_accepted += 1
        try:
            connection = _Connection(self, stream)
            if statistics.connections <= self.limits.connections_max:
                await connection.run()
            else:
                statistics.connections_refused += 1
                if statistics.connections <= self.limits.connections_max + REFUSALS_MAX:
                    message = f"this node serves at most {self.limits.connections_max} HTTP connections; try again"
                    await connection.refuse(_Refused(503, "too_many_connections", message))
        except (trio.BrokenResourceError, trio.ClosedResourceError, ClientDisconnected):
            pass
        except Exception:
            logger.exception("an HTTP connection failed and was closed")
        finally:
            statistics.connections -= 1
            # A clean close of a TLS stream waits for the peer; this one must not.
            await trio.aclose_forcefully(stream)


class _Connection:
    """The bytes and the parser of one client."""

    def __init__(self, server: HttpServer, stream: trio.abc.Stream) -> None:
        self.server = server
        self.limits = limits = server.limits
        self.stream = stream
        self.h11 = h11.Connection(
            h11.SERVER, max_incomplete_event_size=limits.target_bytes_max + limits.header_bytes_max
        )
        self.client = _address(stream, "getpeername")
        self.local = _address(stream, "getsockname")
        self.method = b""
        self.ended = False

    async def run(self) -> None:
        """Serve requests until either side closes."""
        try:
            while (request := await self._next_request()) is not None:
                if not await _Exchange(self, request).run() or not await self._finish_body():
                    await self.linger()
                    return
                self.h11.start_next_cycle()
        except _Refused as refusal:
            await self.refuse(refusal)
        except h11.RemoteProtocolError as error:
            await self.refuse(self._explain(error))

    async def read(self) -> bytes:
        """Feed the parser with what arrives; b"" once the client's side has ended."""
        if self.ended:
            return b""
        try:
            data = bytes(await self.stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        self.ended = not data
        self.h11.receive_data(data)
        return data

    async def write(self, *parts: bytes) -> None:
        """Send; raises ClientDisconnected when the client is gone or doesn't take it in time."""
        # One system call for a head with a small body.
        if sum(map(len, parts)) <= WRITE_PIECE_BYTES:
            parts = (b"".join(parts),)
        try:
            for part in parts:
                for start in range(0, len(part), WRITE_PIECE_BYTES):
                    with trio.fail_after(self.limits.write_seconds):
                        await self.stream.send_all(memoryview(part)[start : start + WRITE_PIECE_BYTES])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientDisconnected("the client closed the connection") from None
        except trio.TooSlowError:
            raise ClientDisconnected(
                f"the client didn't take {WRITE_PIECE_BYTES} bytes in {self.limits.write_seconds} s"
            ) from None

    async def refuse(self, refusal: _Refused) -> None:
        """Answer with an error and end the connection, so that the client sees the answer."""
        if self.h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error_json(refusal.code, str(refusal))
            headers = _with_standard([(b"content-type", b"application/json"), (b"connection", b"close")])
            headers.append((b"content-length", b"%d" % len(body)))
            status = refusal.status
            head = self.h11.send(h11.Response(status_code=status, headers=headers, reason=_reason(status)))
            self.count(status)
            await self.write(head, b"" if self.method == b"HEAD" else body)
            await self.linger()

    async def linger(self) -> None:
        """End our side, then drop what the client still sends.

        Closing a socket with unread bytes resets it, and a reset can destroy the answer
        before the client reads it.
        """
        dropped = 0
        with trio.move_on_after(self.limits.linger_seconds):
            if isinstance(self.stream, trio.abc.HalfCloseableStream) and not self.ended:
                await self.stream.send_eof()
            while dropped < self.limits.linger_bytes_max and not self.ended:
                data = await self.stream.receive_some(READ_BYTES)
                dropped += len(data)
                self.ended = not data

    def count(self, status: int) -> None:
        responses = self.server.statistics().responses
        responses[status] = responses.get(status, 0) + 1

    async def _next_request(self) -> h11.Request | None:
        """The next request's head, checked against the limits; None at the end."""
        self.method = b""
        if not self.h11.trailing_data[0] and not await self._wait_for_bytes():
            return None
        with trio.move_on_after(self.limits.head_seconds) as scope:
            while (event := self.h11.next_event()) is h11.NEED_DATA:
                await self.read()
        if scope.cancelled_caught:
            raise _Refused(408, "timeout", f"the request's head took longer than {self.limits.head_seconds} s")
        if not isinstance(event, h11.Request):
            return None
        self.method = event.method
        self._check_head(event)
        return event

    async def _wait_for_bytes(self) -> bool:
        if self.server.draining.is_set():
            return False
        with trio.move_on_after(self.limits.keep_alive_seconds) as scope:
            self.server._idle.add(scope)
            try:
                return bool(await self.read())
            finally:
                self.server._idle.discard(scope)
        return False

    def _check_head(self, request: h11.Request) -> None:
        limits = self.limits
        if len(request.target) > limits.target_bytes_max:
            raise self._target_too_long()
        headers = list(request.headers)
        if len(headers) > limits.headers_max or sum(len(n) + len(v) + 4 for n, v in headers) > limits.header_bytes_max:
            raise self._headers_too_large()
        names = {name for name, _ in headers}
        if b"transfer-encoding" in names and b"content-length" in names:
            # Two framings are how requests are smuggled past a proxy that picks the other one.
            raise _Refused(400, "bad_request", "a request has Transfer-Encoding or Content-Length, not both")
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        if int(length) > limits.body_bytes_max:
            raise self.body_too_large()

    async def _finish_body(self) -> bool:
        """Whether the connection can serve another request; reads what the application left of a body."""
        if self.h11.our_state is not h11.DONE:
            return False
        left = READ_BYTES
        with trio.move_on_after(self.limits.linger_seconds):
            while self.h11.their_state is h11.SEND_BODY and left > 0:
                event = self.h11.next_event()
                if event is h11.NEED_DATA:
                    await self.read()
                elif isinstance(event, h11.Data):
                    left -= len(event.data)
        return self.h11.their_state is h11.DONE

    def _explain(self, error: h11.RemoteProtocolError) -> _Refused:
        if error.error_status_hint == 431:
            return self._headers_too_large() if b"\n" in self.h11.trailing_data[0] else self._target_too_long()
        if error.error_status_hint == 501:
            return _Refused(501, "not_implemented", f"this server can't do that: {error}")
        return _Refused(400, "bad_request", f"not a valid HTTP/1.1 request: {error}")

    def _target_too_long(self) -> _Refused:
        return _Refused(414, "target_too_long", f"a request target has at most {self.limits.target_bytes_max} bytes")

    def _headers_too_large(self) -> _Refused:
        message = (
            f"a request has at most {self.limits.headers_max} headers of {self.limits.header_bytes_max} bytes in all"
        )
        return _Refused(431, "headers_too_large", message)

    def body_too_large(self) -> _Refused:
        return _Refused(413, "body_too_large", f"a request body has at most {self.limits.body_bytes_max} bytes")


class _Exchange:
    """One request and its response: the `receive` and `send` that an application is given."""

    def __init__(self, connection: _Connection, request: h11.Request) -> None:
        self.connection = connection
        self.h11 = connection.h11
        self.request = request
        self.start: Message | None = None
        # over: the response is complete. lost: it can't be delivered. left: the client was reported gone.
        self.over = False
        self.lost = False
        self.left = False
        self.body_bytes = 0
        self.body_seconds_left = connection.limits.body_seconds
        self._watch: trio.CancelScope | None = None

    async def run(self) -> bool:
        """Run the application; False when the connection can't go on."""
        failure: Exception | None = None
        try:
            await self.connection.server.app(self._scope(), self.receive, self.send)
        except Exception as error:
            failure = error
        if self.lost:
            return False
        if failure is None and not self.over:
            failure = RuntimeError("the application returned without a complete response")
        # An application that was told that its client left may say so with an exception.
        if failure is not None and not self.left:
            self._log_failure(failure)
            if self.h11.our_state is h11.SEND_RESPONSE:
                message = "the server failed to answer this request; its log says why"
                await self.connection.refuse(_Refused(500, "internal_error", message))
        return self.over and failure is None

    async def receive(self) -> Message:
        """The next piece of the body, or `http.disconnect`."""
        if self.over or self.lost:
            return {"type": "http.disconnect"}
        if self.h11.their_state is not h11.SEND_BODY:
            return await self._watch_for_end()
        try:
            if self.h11.they_are_waiting_for_100_continue:
                await self.connection.write(
                    self.h11.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
                )
            return await self._receive_body()
        except _Refused as refusal:
            await self._give_up(refusal)
        except h11.RemoteProtocolError as error:
            await self._give_up(self.connection._explain(error))
        except ClientDisconnected:
            self.lost = True
        return {"type": "http.disconnect"}

    async def _receive_body(self) -> Message:
        limits = self.connection.limits
        while (event := self.h11.next_event()) is h11.NEED_DATA:
            began = trio.current_time()
            with trio.move_on_after(self.body_seconds_left) as scope:
                size = len(await self.connection.read())
            if scope.cancelled_caught:
                raise _Refused(408, "timeout", f"the request's body stalled for {limits.body_seconds} s")
            earned = size / limits.body_bytes_per_second_min - (trio.current_time() - began)
            self.body_seconds_left = min(limits.body_seconds, self.body_seconds_left + earned)
        if isinstance(event, h11.Data):
            self.body_bytes += len(event.data)
            if self.body_bytes > limits.body_bytes_max:
                raise self.connection.body_too_large()
            return {"type": "http.request", "body": bytes(event.data), "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _watch_for_end(self) -> Message:
        ahead = 0
        with trio.CancelScope() as self._watch:
            while await self.connection.read():
                # Bytes after the body are the next request's: kept, up to a bound.
                ahead += 1
                if ahead >= READS_AHEAD_MAX:
                    await trio.sleep_forever()
        self._watch = None
        self.left = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send a part of the response; raises ClientDisconnected when it can't be delivered."""
        if self.lost:
            raise ClientDisconnected("the client is gone, or its request was refused")
        kind = message["type"]
        if kind == "http.response.start" and self.start is None:
            self.start = message
            return
        if kind != "http.response.body" or self.start is None or self.over:
            raise RuntimeError(f"the application sent {kind!r} out of order")
        # The head waits for the first piece of the body: one packet for a small response.
        parts = [self._head(self.start)] if self.h11.our_state is h11.SEND_RESPONSE else []
        body = message.get("body", b"")
        if body and self._takes_body(self.start["status"]):
            parts.append(self.h11.send(h11.Data(data=body)))
        if not message.get("more_body", False):
            parts.append(self.h11.send(h11.EndOfMessage()))
            self.over = True
            if self._watch is not None:
                self._watch.cancel()
        try:
            await self.connection.write(*parts)
        except ClientDisconnected:
            self.lost = True
            raise

    def _head(self, start: Message) -> bytes:
        headers = _with_standard([(bytes(name), bytes(value)) for name, value in start.get("headers", ())])
        # A client that still waits for 100 Continue may or may not send its body now: it
        # can't be told which bytes come next.
        if self.h11.they_are_waiting_for_100_continue or self.connection.server.draining.is_set():
            headers.append((b"connection", b"close"))
        status = start["status"]
        self.connection.count(status)
        return self.h11.send(h11.Response(status_code=status, headers=headers, reason=_reason(status)))

    def _takes_body(self, status: int) -> bool:
        return self.request.method != b"HEAD" and status not in (204, 304)

    async def _give_up(self, refusal: _Refused) -> None:
        """Answer for the application, which sees a client that is gone."""
        self.lost = True
        if self.h11.our_state is h11.SEND_RESPONSE:
            await self.connection.refuse(refusal)

    def _log_failure(self, error: Exception) -> None:
        self.connection.server.statistics().application_errors += 1
        method, path = self.request.method.decode(), self.request.target[:200].decode("latin-1")
        logger.error("%s %s failed", method, path, exc_info=error)

    def _scope(self) -> Message:
        request = self.request
        raw_path, _, query = _origin_form(request.target).partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode(),
            "method": request.method.decode(),
            "scheme": "http",
            "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": self.connection.client,
            "server": self.connection.local,
        }


def _origin_form(target: bytes) -> bytes:
    """Path and query of a request target; one in absolute form (`http://host/path`) loses its start."""
    _, separator, rest = target.partition(b"://")
    if target.startswith((b"/", b"*")) or not separator:
        return target
    authority_bytes = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    path = rest[authority_bytes:]
    return path if path.startswith(b"/") else b"/" + path


def _with_standard(headers: Headers) -> Headers:
    names = {name.lower() for name, _ in headers}
    if b"date" not in names:
        headers.append((b"date", formatdate(usegmt=True).encode()))
    if b"server" not in names:
        headers.append((b"server", b"everwrite"))
    return headers


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def _address(stream: trio.abc.Stream, which: str) -> tuple[str, int] | None:
    if not isinstance(stream, trio.SocketStream):
        return None
    try:
        name = getattr(stream.socket, which)()
    except OSError:
        # A client that has reset the connection already has no name any more.
        return None
    return (name[0], name[1]) if isinstance(name, tuple) else None
