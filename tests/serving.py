"""A node's Redis side alone, for tests: a store, the frontend and the control commands on a loopback port."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import trio

import everwrite
from everwrite.database import Database
from everwrite.server.config import NodeConfig
from everwrite.server.control import Control
from everwrite.server.frontend import Frontend
from everwrite.server.frontend_loop import close_frontend, serve_frontend
from tests.reference.resp_twin import split_reply
from tests.support import POLL_SECONDS


class Peer:
    """A client that sends bytes and reads whole replies, as bytes."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection((host, port), timeout=60)
        self._received = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def reply(self) -> bytes:
        """The next reply; fails when the connection ends before it does."""
        while True:
            found = split_reply(self._received)
            if found is not None:
                self._received = found[1]
                return found[0]
            chunk = self.sock.recv(1 << 20)
            assert chunk, f"the connection ended within a reply: {self._received!r}"
            self._received += chunk

    def ask(self, *args: bytes | str | int) -> bytes:
        """Send a command, and return its reply."""
        self.send(request(*args))
        return self.reply()

    def ended(self) -> bool:
        """Wait for the end of the stream, and tell whether nothing came before it."""
        return self.sock.recv(1) == b"" and not self._received


def request(*args: bytes | str | int) -> bytes:
    """A command as an array of bulk strings."""
    words = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Serving:
    """A `control.Host` of one node without peers."""

    def __init__(self, store: Database, **limits: int) -> None:
        self.store = store
        self.config = NodeConfig(durability=store.durability)  # type: ignore[arg-type]
        self.frontend = Frontend(store, Control(self), **limits)
        self.token: trio.lowlevel.TrioToken | None = None
        self.waits: list[tuple[int, int, float, Callable[[int], object]]] = []
        self._started = time.monotonic()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        self.port: int = listener.getsockname()[1]
        self.frontend.add_listener(listener)

    def status(self) -> Mapping[str, Any]:
        return {"uptime_seconds": time.monotonic() - self._started, "peers": []}

    def wait_for_regions(
        self,
        timestamp: int,
        regions: int,
        timeout_seconds: float,
        done: Callable[[int], object],
        gone: Callable[[], bool],
    ) -> None:
        if regions == 0:
            done(0)
        else:
            self.waits.append((timestamp, regions, timeout_seconds, done))

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the serving thread."""
        assert self.token is not None
        trio.from_thread.run_sync(function, *args, trio_token=self.token)

    def connect(self) -> Peer:
        """A client."""
        return Peer(self.port)


@asynccontextmanager
async def serving(path: Path, durability: str = "os", **limits: int) -> AsyncIterator[Serving]:
    """Serve inside this trio run; clients must be trio tasks or threads."""
    with everwrite.open(path, durability=durability) as store:
        host = Serving(store, **limits)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_frontend, host.frontend)
            yield host
            close_frontend(host.frontend)


@contextmanager
def served(path: Path, durability: str = "os", **limits: int) -> Iterator[Serving]:
    """Serve from a thread of its own, for blocking clients in the test's thread."""
    ready: SimpleQueue[tuple[Serving, trio.CancelScope]] = SimpleQueue()

    async def run() -> None:
        async with serving(path, durability, **limits) as host:
            with trio.CancelScope() as scope:
                host.token = trio.lowlevel.current_trio_token()
                ready.put((host, scope))
                await trio.sleep_forever()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(trio.run, run)
        while True:
            try:
                host, scope = ready.get(timeout=POLL_SECONDS)
                break
            except Empty:
                if running.done():
                    running.result()
        try:
            yield host
        finally:
            host.call(scope.cancel)
            running.result()


@contextmanager
def ticking(path: Path, durability: str = "os", **limits: int) -> Iterator[Serving]:
    """A frontend without a loop: the test calls `host.frontend.tick()` itself."""
    with everwrite.open(path, durability=durability) as store:
        host = Serving(store, **limits)
        try:
            yield host
        finally:
            host.frontend.close_all()
