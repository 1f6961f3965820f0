"""Clients of Everwrite servers: `Client` blocks, `AsyncClient` runs under trio and asyncio."""

from typing import TYPE_CHECKING, Any

from everwrite.client.addresses import Address
from everwrite.client.blocking import Client

if TYPE_CHECKING:
    from everwrite.client.asynchronous import AsyncClient

__all__ = ["Address", "AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    # Whoever blocks needs no event loop.
    if name == "AsyncClient":
        from everwrite.client.asynchronous import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
