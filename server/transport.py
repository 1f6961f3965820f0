"""The trio shell of replication: dials, TLS, bytes, timers. What they mean is decided in replication.py.

Invariants:
- Nothing that a connection does ends the node: each one's errors end that connection.
- No peer reaches the replicator before its certificate was verified and names it.
- Each connection buffers a bounded amount: while more than OUTBOX_BYTES_MAX waits to be sent to it,
  nothing is read from it, and what is sent unasked is bounded by the replicator's window.
"""

from __future__ import annotations

import logging
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import trio

from everwrite.errors import PeerError, StorageError
from everwrite.server.certs import peer_identity
from everwrite.server.config import split_address
from everwrite.server.effects import (
    Answered,
    Close,
    Dial,
    Effect,
    Fail,
    Log,
    Persist,
    RegionChanged,
    Resolve,
    Resume,
    SendFrame,
    SetTimer,
)
from everwrite.server.replication import Replicator
from everwrite.server.session import Identity

__all__ = ["Transport"]

logger = logging.getLogger("everwrite.replication")

READ_BYTES: Final = 64 << 10
WRITE_BYTES: Final = 256 << 10
OUTBOX_BYTES_MAX: Final = 8 << 20
HANDSHAKES_MAX: Final = 64
HANDSHAKE_SECONDS: Final = 10.0
SEND_SECONDS: Final = 10.0  # for one piece of WRITE_BYTES; a peer that reads slower is as good as gone
CLOSE_SECONDS: Final = 2.0
TLS_LOG_SECONDS: Final = 600.0

# What reading from or writing to a connection may raise because of the other side or the network.
_CONNECTION_ERRORS: Final = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)

TlsStream = trio.SSLStream[trio.SocketStream]


class _Connection:
    """One TLS connection and what waits to be sent on it."""

    def __init__(self, number: int, stream: TlsStream) -> None:
        self.number = number
        self.stream = stream
        self.outbox: deque[bytes] = deque()
        self.urgent: deque[bytes] = deque()
        self.outbox_bytes = 0
        self.greeted = False  # the first frame, the hello, is on its way: nothing goes ahead of that
        self.changed = trio.Event()
        self.drained = trio.Event()
        self.closing = False
        self.resume = False
        self.scope = trio.CancelScope()

    def send(self, data: bytes, urgent: bool) -> None:
        (self.urgent if urgent and self.greeted else self.outbox).append(data)
        self.outbox_bytes += len(data)
        self.changed.set()

    def take(self) -> list[bytes]:
        """Take out the next frames to send: WRITE_BYTES of them, or one."""
        pieces: list[bytes] = []
        size = 0
        while waiting := self.urgent or self.outbox:
            if pieces and size + len(waiting[0]) > WRITE_BYTES:
                break
            pieces.append(waiting.popleft())
            size += len(pieces[-1])
        self.greeted = True
        return pieces

    def close(self) -> None:
        """Close once all that waits is sent, or after CLOSE_SECONDS."""
        self.closing = True
        self.changed.set()
        self.scope.deadline = min(self.scope.deadline, trio.current_time() + CLOSE_SECONDS)


class Transport:
    """Runs a `Replicator`.

    `commit` makes the store's log durable; it is called in a worker thread when `commit_blocks` (it
    waits for the device), else in the loop. `on_resolve(token, regions)` gets the results of waits,
    `on_answered(token, received)` those of questions, and `on_region_changed` what is known of the region.
    `run` raises `StorageError` when the store fails.
    """

    def __init__(
        self,
        replicator: Replicator,
        *,
        commit: Callable[[], None],
        commit_blocks: bool,
        server_context: ssl.SSLContext | None,
        client_context: ssl.SSLContext | None,
        on_resolve: Callable[[int, int], None],
        on_answered: Callable[[int, int], None] = lambda token, received: None,
        on_region_changed: Callable[[RegionChanged], None] = lambda changed: None,
    ) -> None:
        self.replicator = replicator
        self._commit = commit
        self._commit_blocks = commit_blocks
        self._server_context = server_context
        self._client_context = client_context
        self._on_resolve = on_resolve
        self._on_answered = on_answered
        self._on_region_changed = on_region_changed
        self._connections: dict[int, _Connection] = {}
        self._dials: dict[int, trio.CancelScope] = {}
        self._handshakes = 0
        self._counters: Counter[str] = Counter()
        self._tls_logged_at = float("-inf")
        self._nursery: trio.Nursery | None = None
        self._timer_at: float | None = None
        self._timer_changed = trio.Event()
        self._stopping = False
        self._drained = trio.Event()
        self._connection_ended = trio.Event()

    # -- for the node -----------------------------------------------------------------------------

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Replicate until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.perform(self.replicator.start(trio.current_time()))
            nursery.start_soon(self._run_timer)
            if listeners:
                nursery.start_soon(partial(trio.serve_listeners, self._accept, list(listeners)))
            task_status.started()

    def local_write(self) -> None:
        """The store has local changes that are committed."""
        effects = self.replicator.local_write(trio.current_time())
        if effects:
            self.perform(effects)

    def wait(self, timestamp: int, count: int, seconds: float | None) -> int:
        """Start to wait until `count` other regions hold this node's updates up to `timestamp`; the token.

        `on_resolve` may be called before this returns, but not before the loop runs again.
        """
        now = trio.current_time()
        token, effects = self.replicator.wait(now, timestamp, count, None if seconds is None else now + seconds)
        self.perform(effects)
        return token

    def ask(self, question: bytes, answers: int, seconds: float) -> int:
        """Ask `answers` other replicas of the region what they know more of some keys; the token.

        `on_answered` is called once, within `seconds`, but not before the loop runs again; see `Replicator.ask`.
        """
        now = trio.current_time()
        token, effects = self.replicator.ask(now, question, answers, now + seconds)
        nursery = self._nursery
        assert nursery is not None, "run comes first"
        for effect in effects:
            # Who asks doesn't have its token yet.
            if isinstance(effect, Answered):
                nursery.start_soon(self._later, partial(self._on_answered, effect.token, effect.received))
        self.perform([effect for effect in effects if not isinstance(effect, Answered)])
        return token

    async def stop(self, seconds: float) -> None:
        """Give connected peers up to `seconds` to take what they lack, then say goodbye and close."""
        self._stopping = True
        if not self.replicator.drained():
            with trio.move_on_after(seconds):
                await self._drained.wait()
        self.perform(self.replicator.stop(trio.current_time()))
        for scope in self._dials.values():
            scope.cancel()
        with trio.move_on_after(CLOSE_SECONDS):
            while self._connections:
                self._connection_ended = trio.Event()
                await self._connection_ended.wait()

    def statistics(self) -> dict[str, int]:
        """Counters of the shell: handshakes, refused clients, bytes that wait."""
        return {
            "handshakes": self._handshakes,
            "outbox_bytes": sum(connection.outbox_bytes for connection in self._connections.values()),
            "tls_failures": self._counters["tls_failures"],
            "handshakes_refused": self._counters["handshakes_refused"],
            "internal_errors": self._counters["internal_errors"],
        }

    # -- effects ----------------------------------------------------------------------------------

    def perform(self, effects: list[Effect]) -> None:
        """Do what the replicator asks for."""
        nursery = self._nursery
        assert nursery is not None, "run comes first"
        # Whoever is told may have the replicator do more, whose frames come after these.
        tell: list[Callable[[], None]] = []
        for effect in effects:
            match effect:
                case SendFrame(number, data, urgent):
                    if (connection := self._connections.get(number)) is not None:
                        connection.send(data, urgent)
                case SetTimer(at):
                    self._timer_at = at
                    self._timer_changed.set()
                case Resume(number):
                    if (connection := self._connections.get(number)) is not None:
                        connection.resume = True
                case Persist():
                    nursery.start_soon(self._persist)
                case Dial(number, address):
                    nursery.start_soon(self._dial, number, address)
                case Close(number, _):
                    if (connection := self._connections.get(number)) is not None:
                        connection.close()
                    elif (scope := self._dials.get(number)) is not None:
                        scope.cancel()
                case Resolve(token, regions):
                    # Not at once: who waits may not have its token yet.
                    nursery.start_soon(self._later, partial(self._on_resolve, token, regions))
                case Answered(token, received):
                    tell.append(partial(self._on_answered, token, received))
                case RegionChanged():
                    tell.append(partial(self._on_region_changed, effect))
                case Log(level, event, message, fields):
                    shown = "".join(f" {name}={value}" for name, value in fields.items())
                    logger.log(level, "%s: %s [event=%s%s]", event, message, event, shown)
                case Fail(error):
                    nursery.start_soon(self._fail, error)
        for each in tell:
            each()

    async def _later(self, tell: Callable[[], None]) -> None:
        tell()

    async def _fail(self, error: Exception) -> None:
        raise error

    async def _persist(self) -> None:
        # More batches may arrive before the commit begins or while it waits; the next one covers them.
        if self._commit_blocks:
            await trio.to_thread.run_sync(self._commit)
        else:
            await trio.lowlevel.checkpoint()
            self._commit()
        self.perform(self.replicator.persisted(trio.current_time()))

    async def _run_timer(self) -> None:
        while True:
            at, self._timer_changed = self._timer_at, trio.Event()
            if at is None:
                await self._timer_changed.wait()
                continue
            with trio.move_on_at(at):
                await self._timer_changed.wait()
            if self._timer_at == at and at <= trio.current_time():
                self._timer_at = None
                self.perform(self.replicator.timer(trio.current_time()))

    # -- connections ------------------------------------------------------------------------------

    async def _dial(self, number: int, address: str) -> None:
        assert self._client_context is not None, "peers without certificates are refused in the configuration"
        host, port = split_address(address)
        stream: TlsStream | None = None
        identity: Identity | None = None
        reason = "cancelled"
        with trio.CancelScope() as scope:
            self._dials[number] = scope
            try:
                tcp = await trio.open_tcp_stream(host, port)
                stream = trio.SSLStream(tcp, self._client_context)
                identity = await self._identify(stream)
            except (*_CONNECTION_ERRORS, PeerError) as error:
                reason = _reason(error)
        self._dials.pop(number, None)
        now = trio.current_time()
        if stream is not None and identity is not None and not scope.cancelled_caught:
            await self._run_connection(number, stream, lambda: self.replicator.dialled(now, number, identity))
            return
        if stream is not None:
            await trio.aclose_forcefully(stream)
        self.perform(self.replicator.dial_failed(now, number, reason))

    async def _accept(self, tcp: trio.SocketStream) -> None:
        assert self._server_context is not None, "no listener without certificates"
        if self._handshakes >= HANDSHAKES_MAX:
            # Who hasn't shown a certificate gets only so much memory, all together.
            self._counters["handshakes_refused"] += 1
            await trio.aclose_forcefully(tcp)
            return
        stream = trio.SSLStream(tcp, self._server_context, server_side=True)
        self._handshakes += 1
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                identity = await self._identify(stream)
        except (*_CONNECTION_ERRORS, trio.TooSlowError, PeerError) as error:
            self._note_refused(tcp, error)
            await trio.aclose_forcefully(stream)
            return
        finally:
            self._handshakes -= 1
        number, effects = self.replicator.accepted(trio.current_time(), identity)
        await self._run_connection(number, stream, lambda: effects)

    async def _identify(self, stream: TlsStream) -> Identity:
        await stream.do_handshake()
        return Identity(*peer_identity(stream))

    def _note_refused(self, tcp: trio.SocketStream, error: BaseException) -> None:
        self._counters["tls_failures"] += 1
        now = trio.current_time()
        if now - self._tls_logged_at >= TLS_LOG_SECONDS:
            self._tls_logged_at = now
            try:
                address = str(tcp.socket.getpeername()[0])
            except OSError:
                address = "an address that is gone"
            logger.warning(
                "tls: refused a connection from %s on the peer port: %s [event=tls count=%d]",
                address,
                _reason(error),
                self._counters["tls_failures"],
            )

    async def _run_connection(self, number: int, stream: TlsStream, begin: Callable[[], list[Effect]]) -> None:
        """Move bytes both ways until either side ends it."""
        connection = _Connection(number, stream)
        self._connections[number] = connection
        reasons: list[str] = []
        try:
            self.perform(begin())
            with connection.scope:
                async with trio.open_nursery() as nursery:
                    for part in (self._read, self._write):
                        nursery.start_soon(self._run_part, part, connection, nursery.cancel_scope, reasons)
        finally:
            del self._connections[number]
            self._connection_ended.set()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
        reason = reasons[0] if reasons else "closed"
        self.perform(self.replicator.disconnected(trio.current_time(), number, reason))

    async def _run_part(
        self,
        part: Callable[[_Connection], Awaitable[str]],
        connection: _Connection,
        scope: trio.CancelScope,
        reasons: list[str],
    ) -> None:
        try:
            reasons.append(await part(connection))
        except StorageError:
            raise  # an OSError, but the store's: the node has to end
        except (*_CONNECTION_ERRORS, trio.TooSlowError) as error:
            reasons.append(_reason(error))
        except Exception:
            # A defect, reached by what a peer sent: it must not be a way to end the node.
            self._counters["internal_errors"] += 1
            logger.exception("internal: connection %d failed and was closed [event=internal]", connection.number)
            reasons.append("an internal error of this node; its log says more")
        scope.cancel()

    async def _read(self, connection: _Connection) -> str:
        while True:
            data = await connection.stream.receive_some(READ_BYTES)
            if not data:
                return "the peer has closed it"
            self.perform(self.replicator.received(trio.current_time(), connection.number, data))
            while connection.resume:
                connection.resume = False
                await self._room(connection)
                self.perform(self.replicator.resume(trio.current_time(), connection.number))
            if self._stopping and self.replicator.drained():
                self._drained.set()
            await self._room(connection)

    async def _room(self, connection: _Connection) -> None:
        """Let others run, and wait until less than OUTBOX_BYTES_MAX waits to be sent."""
        await trio.lowlevel.checkpoint()
        while connection.outbox_bytes > OUTBOX_BYTES_MAX:
            connection.drained = trio.Event()
            await connection.drained.wait()

    async def _write(self, connection: _Connection) -> str:
        while True:
            if not (connection.urgent or connection.outbox):
                if connection.closing:
                    with trio.fail_after(CLOSE_SECONDS):
                        await connection.stream.aclose()
                    return "closed"
                connection.changed = trio.Event()
                await connection.changed.wait()
                continue
            whole = memoryview(b"".join(connection.take()))
            size = len(whole)
            for start in range(0, size, WRITE_BYTES):
                with trio.fail_after(SEND_SECONDS):
                    await connection.stream.send_all(whole[start : start + WRITE_BYTES])
            connection.outbox_bytes -= size
            connection.drained.set()


def _reason(error: BaseException) -> str:
    """What to tell people of an error: trio wraps the one that says something."""
    if isinstance(error, trio.TooSlowError):
        return "too slow"
    cause = error.__cause__
    if isinstance(error, trio.BrokenResourceError) and cause is not None:
        error = cause
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    return str(error) or type(error).__name__
