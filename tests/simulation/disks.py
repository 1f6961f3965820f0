"""What outlives a node's process: the disks of the engine and of its slow twin."""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

from tests.reference.model_store import ModelStore


class Disk(Protocol):
    """Where a node's store lives. `number` is its region; everything random comes from the run's seed."""

    number: int

    def open(self, now_ms: int) -> Any: ...
    def close(self, store: Any) -> None: ...
    def crash(self, store: Any) -> None: ...
    def sync(self, store: Any) -> None: ...


class ModelDisk:
    """The model keeps everything in its log; a crash cuts the log somewhere behind the last sync."""

    def __init__(self, number: int, random: Random, durability: str) -> None:
        self.number = number
        self._random = random
        self._store = ModelStore(number, durability=durability)

    def open(self, now_ms: int) -> ModelStore:
        self._store.set_time(now_ms)
        return self._store

    def close(self, store: ModelStore) -> None:
        store.restart()

    def crash(self, store: ModelStore) -> None:
        store.restart(keep=self._random.randint(store.synced, len(store.log)))

    def sync(self, store: ModelStore) -> None:
        store.sync()
