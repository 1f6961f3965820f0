"""A node's Redis side alone, for tests: a store, the frontend and the control commands on a loopback port."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

import everwrite
from everwrite.database import Database
from everwrite.server.config import NodeConfig
from everwrite.server.control import Control
from everwrite.server.frontend import Frontend
from everwrite.server.frontend_loop import close_frontend, serve_frontend


class Serving:
    """A `control.Host` of one node without peers."""

    def __init__(self, store: Database, **limits: int) -> None:
        self.store = store
        self.config = NodeConfig(durability=store.durability)  # type: ignore[arg-type]
        self.frontend = Frontend(store, Control(self), **limits)
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
        self, timestamp: int, regions: int, timeout_seconds: float, done: Callable[[int], object]
    ) -> None:
        if regions == 0:
            done(0)
        else:
            self.waits.append((timestamp, regions, timeout_seconds, done))

    def connect(self) -> socket.socket:
        """A blocking client socket."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


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
def ticking(path: Path, durability: str = "os", **limits: int) -> Iterator[Serving]:
    """A frontend without a loop: the test calls `host.frontend.tick()` itself."""
    with everwrite.open(path, durability=durability) as store:
        host = Serving(store, **limits)
        try:
            yield host
        finally:
            host.frontend.close_all()
