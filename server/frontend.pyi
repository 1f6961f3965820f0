from collections.abc import Callable
from typing import Any, Self, final

from everwrite.server.client import Client
from everwrite.server.levels import LeveledConnections
from everwrite.store import Store

TICK_WROTE: int
TICK_MORE: int
FAMILIES: tuple[str, ...]
LATENCY_BOUNDS: tuple[float, ...]

@final
class Frontend(LeveledConnections):
    def __new__(
        cls,
        store: Store,
        handler: Callable[[Client, list[bytes]], bytes | None],
        *,
        clients_max: int = 10000,
        buffer_bytes_max: int = ...,
    ) -> Self: ...
    def tick(self) -> int: ...
    @property
    def failed(self) -> bool: ...
    def statistics(self) -> dict[str, Any]: ...
    def latency(self) -> tuple[tuple[float, ...], dict[str, list[int]]]: ...
    def latency_sums(self) -> dict[str, float]: ...
