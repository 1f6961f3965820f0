"""The HTTP interface of a node: health, metrics, status, and values by key.

`docs/protocols/http.md` is the page for its users. Routes are matched on the path as it was
sent, still percent-encoded: a key is one path segment whatever bytes it holds, so that
`/v1/keys/a%2Fwhy` is the key `a/why` and never the route `why` of the key `a`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from everwrite.errors import (
    ClosedError,
    EverwriteError,
    ReadOnlyError,
    ReadTimeout,
    Recovering,
    StorageError,
    TooLargeError,
    Unavailable,
    WriteTimeout,
    WrongTypeError,
)
from everwrite.server import metrics
from everwrite.server.consistency import Level
from everwrite.server.http_adapter import error_json

__all__ = ["KEY_BYTES_MAX", "TTL_SECONDS_MAX", "VALUE_BYTES_MAX", "HttpNode", "HttpStore", "make_app"]

KEY_BYTES_MAX = 64 << 10
VALUE_BYTES_MAX = 64 << 20
TTL_SECONDS_MAX = 100 * 365 * 86400
# What all request bodies under way may hold together; a client over it is told to try again.
BODIES_BYTES_MAX = 256 << 20
# `why` shows longer values by their length alone.
SHOWN_VALUE_BYTES_MAX = 4096

_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class HttpStore(metrics.MeasuredStore, Protocol):
    """The part of `everwrite.Store` that HTTP serves."""

    def __getitem__(self, key: bytes) -> bytes: ...
    def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> None: ...
    def delete(self, key: bytes) -> bool: ...
    def kind(self, key: bytes) -> str: ...
    def why(self, key: bytes) -> dict[str, Any]: ...
    @property
    def last_timestamp(self) -> int: ...


class HttpCoordination(Protocol):
    """The part of `coordination.Coordination` that HTTP uses; `level` None: the configured one."""

    @property
    def recovering(self) -> bool: ...
    @property
    def refusals(self) -> Mapping[str, int]: ...
    async def before(self, keys: Sequence[bytes], level: Level | None = None) -> None: ...
    async def after(self, timestamp: int, level: Level | None = None) -> None: ...


class HttpNode(metrics.MeasuredNode, Protocol):
    """The part of a node that HTTP serves."""

    @property
    def store(self) -> HttpStore: ...
    @property
    def coordination(self) -> HttpCoordination: ...
    def ready_reasons(self) -> list[str]:
        """Why the node can't serve now; empty when it can."""
        ...

    def notify_write(self) -> None:
        """Tell replication that the store has local changes that are committed."""
        ...

    def origin_names(self) -> Mapping[int, tuple[str, str]]:
        """Region and node id by origin, as far as they are known."""
        ...


class _SegmentConvertor(Convertor[str]):
    """One path segment, still encoded; the empty one is the empty key."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("segment", _SegmentConvertor())


def make_app(node: HttpNode) -> ASGIApp:
    """The ASGI application of a node. The server below it must give `raw_path`."""
    routes = _Routes(node)
    app = Starlette(
        routes=[
            Route("/livez", routes.livez),
            Route("/readyz", routes.readyz),
            Route("/metrics", routes.metrics),
            Route("/v1/status", routes.status),
            Route("/v1/keys/{key:segment}", routes.key, methods=["GET", "PUT", "DELETE"]),
            Route("/v1/keys/{key:segment}/why", routes.why),
        ],
        exception_handlers={HTTPException: _http_error, EverwriteError: _store_error, Exception: _unexpected_error},
    )
    app.router.redirect_slashes = False

    async def on_raw_path(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "path": scope["raw_path"].decode("latin-1")}, receive, send)

    return on_raw_path


class _Routes:
    """The handlers. Invariant: `bodies_bytes` is what the request bodies being read hold together."""

    def __init__(self, node: HttpNode) -> None:
        self.node = node
        self.store = node.store
        self.bodies_bytes = 0

    async def livez(self, _request: Request) -> Response:
        return _json({"live": True})

    async def readyz(self, _request: Request) -> Response:
        reasons = self.node.ready_reasons()
        # Ready all the same: a new region's nodes may be started one after the other, each when the last is ready.
        shown = {"ready": not reasons, "reasons": reasons, "recovering": self.node.coordination.recovering}
        return _json(shown, 503 if reasons else 200)

    async def metrics(self, _request: Request) -> Response:
        return Response(metrics.render(self.node), media_type=metrics.CONTENT_TYPE)

    async def status(self, _request: Request) -> Response:
        return _json(self.node.status())

    async def why(self, request: Request) -> Response:
        return _json(_presentable(self.store.why(_key(request)), self.node.origin_names()))

    async def key(self, request: Request) -> Response:
        methods: dict[str, Callable[[Request, bytes], Awaitable[Response]]] = {
            "GET": self._get,
            "HEAD": self._get,
            "PUT": self._put,
            "DELETE": self._delete,
        }
        return await methods[request.method](request, _key(request))

    async def _get(self, request: Request, key: bytes) -> Response:
        level = _level(_parameters(request, known=("consistency",)))
        await self.node.coordination.before([key], level)
        try:
            value = self.store[key]
        except KeyError:
            raise HTTPException(404, "there is no such key") from None
        except WrongTypeError:
            kind = self.store.kind(key)
            message = f"the key holds a {kind}, which has no value of its own: use the Redis protocol to read it"
            return _error(409, "wrong_type", message, type=kind)
        return Response(value, media_type="application/octet-stream")

    async def _put(self, request: Request, key: bytes) -> Response:
        parameters = _parameters(request, known=("consistency", "ttl"))
        level = _level(parameters)
        ttl = parameters.get("ttl")
        seconds = None if ttl is None else _ttl_seconds(ttl)
        # Ahead of the body: a value that can't be stored isn't taken in first.
        await self.node.coordination.before([key], level)
        self.store.put(key, await self._body(request), ttl=seconds)
        await self._written(level)
        return Response(status_code=204)

    async def _delete(self, request: Request, key: bytes) -> Response:
        level = _level(_parameters(request, known=("consistency",)))
        await self.node.coordination.before([key], level)
        if self.store.delete(key):
            await self._written(level)
        else:
            # That nothing is there may be due to a delete that isn't acknowledged yet.
            await self.node.coordination.after(self.store.last_timestamp, level)
        return Response(status_code=204)

    async def _written(self, level: Level | None) -> None:
        """After a write: let it leave, and wait for the replicas that the level asks for."""
        timestamp = self.store.last_timestamp
        self.node.notify_write()
        await self.node.coordination.after(timestamp, level)

    async def _body(self, request: Request) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            # Left to the collector, the generator would outlive the request that it reads.
            async with aclosing(request.stream()) as stream:
                async for piece in stream:
                    size += len(piece)
                    self.bodies_bytes += len(piece)
                    if size > VALUE_BYTES_MAX:
                        raise HTTPException(413, f"a value has at most {VALUE_BYTES_MAX} bytes")
                    if self.bodies_bytes > BODIES_BYTES_MAX:
                        message = f"the values being received hold more than {BODIES_BYTES_MAX} bytes; try again"
                        raise HTTPException(503, message, {"retry-after": "1"})
                    pieces.append(piece)
            return b"".join(pieces)
        finally:
            self.bodies_bytes -= size


def _key(request: Request) -> bytes:
    segment: str = request.path_params["key"]
    if _BAD_PERCENT.search(segment):
        raise HTTPException(400, "a % in a key must be followed by two hexadecimal digits; write a % itself as %25")
    key = unquote_to_bytes(segment)
    if len(key) > KEY_BYTES_MAX:
        raise HTTPException(414, f"a key has at most {KEY_BYTES_MAX} bytes, this one has {len(key)}")
    return key


def _parameters(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The query's parameters; a misspelt one is an error, for a lost `ttl` would keep data for ever."""
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(request.url.query, keep_blank_values=True):
        if name not in known:
            allowed = f"known here: {', '.join(known)}" if known else f"{request.method} of a key takes none"
            raise HTTPException(400, f"unknown query parameter {name[:40]!r}; {allowed}")
        if name in parameters:
            raise HTTPException(400, f"the query parameter {name!r} is given twice")
        parameters[name] = value
    return parameters


def _level(parameters: Mapping[str, str]) -> Level | None:
    if "consistency" not in parameters:
        return None
    try:
        return Level.parse(parameters["consistency"])
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


def _ttl_seconds(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not 1 <= int(text) <= TTL_SECONDS_MAX:
        raise HTTPException(
            400, f"ttl must be a whole number of seconds from 1 to {TTL_SECONDS_MAX}, not {text[:40]!r}"
        )
    return int(text)


def _presentable(value: object, names: Mapping[int, tuple[str, str]]) -> object:
    """What `why` says, for JSON: origins named, and 64-bit numbers as text, since many parsers round these."""
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, Mapping):
        if value and all(isinstance(key, int) for key in value):
            return [_origin(origin, names) | {"timestamp": str(timestamp)} for origin, timestamp in value.items()]
        shown: dict[str, object] = {}
        for key, item in value.items():
            if key == "origin":
                shown |= _origin(item, names)
            elif key == "timestamp" or (key == "value" and isinstance(item, int)):
                shown[key] = str(item)
            else:
                shown[key if isinstance(key, str) else str(_text(key))] = _presentable(item, names)
        return shown
    if isinstance(value, list | tuple):
        return [_presentable(item, names) for item in value]
    return value


def _origin(origin: int, names: Mapping[int, tuple[str, str]]) -> dict[str, object]:
    shown: dict[str, object] = {"origin": f"{origin:016x}"}
    if origin in names:
        shown["region"], shown["node"] = names[origin]
    return shown


def _text(value: bytes) -> dict[str, object]:
    """Bytes for JSON: `text` when they are UTF-8, else `base64`; only their length when they are long."""
    if len(value) > SHOWN_VALUE_BYTES_MAX:
        return {"bytes": len(value)}
    try:
        return {"text": value.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _json(content: object, status: int = 200) -> Response:
    return Response(json.dumps(content).encode() + b"\n", status, media_type="application/json")


def _error(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, **details: object
) -> Response:
    return Response(error_json(code, message, **details), status, headers, "application/json")


_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "value_too_large",
    414: "key_too_long",
    503: "overloaded",
}


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    path = request.scope["path"]
    if error.status_code == 404 and "endpoint" not in request.scope:
        message = f"there is nothing at {path[:200]}"
        if path.startswith("/v1/keys/"):
            message += "; a slash in a key is written %2F"
    elif error.status_code == 405:
        message = f"{request.method} isn't possible at {path[:200]}; see the Allow header"
    return _error(error.status_code, _CODES.get(error.status_code, "error"), message, error.headers)


async def _store_error(_request: Request, error: Exception) -> Response:
    if isinstance(error, TooLargeError):
        return _error(413, "value_too_large", str(error))
    details: dict[str, Any]
    if isinstance(error, Recovering):
        details = {"outcome": "not applied", "required": error.required, "alive": error.alive}
        return _error(503, "recovering", str(error), {"retry-after": "1"}, **details)
    if isinstance(error, Unavailable):
        details = {"outcome": "not applied", "required": error.required, "alive": error.alive}
        return _error(503, "too_few_replicas", str(error), {"retry-after": "1"}, **details)
    if isinstance(error, ReadTimeout):
        details = {"outcome": "not applied", "received": error.received, "required": error.required}
        return _error(504, "read_timeout", str(error), **details)
    if isinstance(error, WriteTimeout):
        details = {"outcome": "unknown", "received": error.received, "required": error.required}
        return _error(504, "write_timeout", str(error), **details)
    if isinstance(error, ReadOnlyError):
        # Not 503: it says that another node should be asked, for reads, too.
        return _error(507, "disk_full", str(error))
    if isinstance(error, StorageError | ClosedError):
        return _error(503, "unavailable", str(error))
    raise error


async def _unexpected_error(_request: Request, _error_raised: Exception) -> Response:
    return _error(500, "internal_error", "the server failed to answer this request; its log says why")
