"""The trio side of the frontend: wait until its sockets are ready, tick, let others run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from everwrite.server.frontend import TICK_MORE, TICK_WROTE

if TYPE_CHECKING:
    from everwrite.server.frontend import Frontend

__all__ = ["close_frontend", "serve_frontend"]


async def serve_frontend(frontend: Frontend, on_write: Callable[[], object] = lambda: None) -> None:
    """Serve until `close_frontend` (then it returns) or cancellation.

    `on_write` is called after each tick in which clients changed the store (`Replicator.local_write`).
    A node shuts down so: `frontend.drain()`, wait with a deadline for `frontend.connected_clients`
    to become 0 while this function goes on running, `close_frontend(frontend)`.
    """
    while frontend.fileno() >= 0:
        try:
            await trio.lowlevel.wait_readable(frontend.fileno())
        except trio.ClosedResourceError:
            return
        while True:
            state = frontend.tick()
            if state & TICK_WROTE:
                on_write()
            if not state & TICK_MORE:
                break
            # A saturated frontend never waits, so this is where everything else gets its turn.
            await trio.lowlevel.checkpoint()


def close_frontend(frontend: Frontend) -> None:
    """Close every connection at once and let `serve_frontend` return. Idempotent."""
    if frontend.fileno() >= 0:
        trio.lowlevel.notify_closing(frontend.fileno())
        frontend.close_all()
