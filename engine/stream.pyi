from collections.abc import Collection, Mapping
from typing import Any

from typing_extensions import disjoint_base

from everwrite.store import Store

@disjoint_base
class Stream:
    changes: int
    last_timestamp: int
    def __init__(
        self, store: Store, reader: Any, since: Mapping[int, int], store_ids: Collection[int] | None
    ) -> None: ...
    def next_batch(self, max_changes: int = 100, max_bytes: int = 1048576) -> bytes | None: ...
    @property
    def sent(self) -> dict[int, int]: ...
    def caught_up(self) -> bool: ...
    def pending(self) -> int: ...
    def close(self) -> None: ...
