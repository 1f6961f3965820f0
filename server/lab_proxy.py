"""Links between the nodes of a lab: TCP forwarding with the delay of a wide area network, and partitions.

Each ordered pair of nodes has a `Link` with a listener of its own on loopback. Bytes arrive in order, half the
round trip after they were sent; bandwidth is not limited, but what is on its way is bounded, so that a receiver
that stops reading stops the sender.

A link that is cut behaves like a partition: nothing passes in either direction, not even the end of a connection,
and what was on its way is lost. New connections are left in the listener's queue, where they hear nothing. `heal`
resets all of these, so that both ends notice and connect afresh.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import Sequence

import msgspec
import trio

__all__ = ["DelayLine", "Link", "LinkStatistics", "Proxy", "carry"]

CHUNK_BYTES = 1 << 16
# At the longest delay of a lab, 90 ms, this still passes 350 MB a second: more than one node can write.
IN_FLIGHT_BYTES_MAX = 32 << 20
BACKLOG = 128
# The caller gave up while it waited, or the machine is out of something for the moment.
_ACCEPT_AGAIN = {errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class DelayLine:
    """A bounded queue of bytes, each of which may be taken `delay_seconds` after it was put.

    Invariants: bytes leave in the order in which they came; no more than `bytes_max` and one chunk are inside.
    One task puts, one takes.
    """

    def __init__(self, delay_seconds: float, *, bytes_max: int = IN_FLIGHT_BYTES_MAX) -> None:
        self.delay_seconds = delay_seconds
        self._bytes_max = bytes_max
        self._queue: deque[tuple[float, bytes]] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self.in_flight_bytes = 0

    async def put(self, data: bytes) -> None:
        """Put `data` in, when there is room; empty `data` marks the end of the stream."""
        while self.in_flight_bytes >= self._bytes_max:
            await self._changed.park()
        self._queue.append((trio.current_time() + self.delay_seconds, data))
        self.in_flight_bytes += len(data)
        self._changed.unpark_all()

    async def take(self) -> bytes:
        """The next chunk, when its time has come; empty at the end of the stream."""
        while not self._queue:
            await self._changed.park()
        due, data = self._queue[0]
        await trio.sleep_until(due)
        self._queue.popleft()
        self.in_flight_bytes -= len(data)
        self._changed.unpark_all()
        return data


async def carry(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream, line: DelayLine) -> None:
    """Carry one direction until its end has been delivered.

    Raises an exception group of `trio.BrokenResourceError` when either end is reset.
    """

    async def read() -> None:
        while True:
            try:
                data = await source.receive_some(CHUNK_BYTES)
            except trio.BrokenResourceError:
                await trio.sleep(line.delay_seconds)  # a reset travels as long as anything else
                raise
            await line.put(bytes(data))
            if not data:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while data := await line.take():
            await sink.send_all(data)
        await sink.send_eof()


def _reset(sock: trio.socket.SocketType | socket.socket) -> None:
    """Close with RST: the other end learns at once that the connection is gone."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class _Connection:
    """One connection through a link. Its sockets outlive the pumps while the link is cut."""

    def __init__(self, near: trio.SocketStream) -> None:
        self.sockets = [near.socket]
        self.scope = trio.CancelScope()

    def reset(self) -> None:
        for sock in self.sockets:
            _reset(sock)


class LinkStatistics(msgspec.Struct, frozen=True):
    """Counters of a link, for people who debug a lab."""

    connections: int
    in_flight_bytes: int
    cut: bool


class Link:
    """The way on which `source` reaches the peer port of `target`. Names are of nodes."""

    def __init__(self, source: str, target: str, target_port: int, delay_seconds: float) -> None:
        self.source = source
        self.target = target
        self.delay_seconds = delay_seconds  # one way
        self.is_cut = False
        self._target_port = target_port
        self._listener = socket.socket()
        # The queue of connections belongs to the link: while it is cut, nobody accepts.
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[_Connection] = set()
        self._lines: set[DelayLine] = set()
        self._healed = trio.Event()
        self._accepting = trio.CancelScope()

    def statistics(self) -> LinkStatistics:
        """What is going on at the moment."""
        in_flight = sum(line.in_flight_bytes for line in self._lines)
        return LinkStatistics(len(self._connections), in_flight, self.is_cut)

    def cut(self) -> None:
        """From now on nothing passes. Idempotent."""
        if self.is_cut:
            return
        self.is_cut = True
        self._healed = trio.Event()
        self._accepting.cancel()
        for connection in self._connections:
            connection.scope.cancel()

    def heal(self) -> None:
        """Reset what was connected or tried to connect during the cut, and let new connections pass. Idempotent."""
        if not self.is_cut:
            return
        self.is_cut = False
        for connection in self._connections:
            connection.reset()
        self._connections.clear()
        while True:
            try:
                waiting, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError:
                continue
            _reset(waiting)
        self._healed.set()

    async def run(self) -> None:
        """Serve until cancelled; then every connection is reset."""
        listener = trio.socket.from_stdlib_socket(self._listener)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    while self.is_cut:
                        await self._healed.wait()
                    with trio.CancelScope() as self._accepting:
                        near = await self._accept(listener)
                        nursery.start_soon(self._serve, trio.SocketStream(near))
        finally:
            listener.close()
            for connection in self._connections:
                connection.reset()

    async def _accept(self, listener: trio.socket.SocketType) -> trio.socket.SocketType:
        while True:
            try:
                return (await listener.accept())[0]
            except OSError as error:
                if error.errno not in _ACCEPT_AGAIN:
                    raise
                await trio.sleep(0.1)

    async def _serve(self, near: trio.SocketStream) -> None:
        connection = _Connection(near)
        self._connections.add(connection)
        lines = DelayLine(self.delay_seconds), DelayLine(self.delay_seconds)
        self._lines.update(lines)
        ended_well = False
        try:
            with connection.scope:
                far = await self._dial()
                connection.sockets.append(far.socket)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(carry, near, far, lines[0])
                    nursery.start_soon(carry, far, near, lines[1])
                ended_well = True
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # an end is gone or was never there; the other one learns it by a reset
        finally:
            self._lines.difference_update(lines)
            if not (self.is_cut and connection.scope.cancelled_caught):
                self._connections.discard(connection)
                if ended_well:
                    for sock in connection.sockets:
                        sock.close()
                else:
                    connection.reset()

    async def _dial(self) -> trio.SocketStream:
        try:
            return await trio.open_tcp_stream("127.0.0.1", self._target_port)
        except OSError:
            await trio.sleep(2 * self.delay_seconds)  # a refusal takes a round trip
            raise


class Proxy:
    """All links of a lab."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = {(link.source, link.target): link for link in links}

    async def run(self) -> None:
        """Serve all links until cancelled."""
        async with trio.open_nursery() as nursery:
            for link in self.links.values():
                nursery.start_soon(link.run)
