"""What outlives a node's process: the disks of the engine and of its slow twin."""

from __future__ import annotations

from random import Random
from typing import Any, Literal, Protocol

import everwrite
from everwrite.memory_files import MemoryFiles
from tests.reference.model_store import ModelStore
from tests.simulation.engine_store import EngineStore


class Disk(Protocol):
    """Where a node's store lives. `number` is its region; everything random comes from the run's seed."""

    number: int

    def open(self, now_ms: int) -> Any: ...
    def close(self, store: Any) -> None: ...
    def crash(self, store: Any) -> None: ...
    def sync(self, store: Any) -> None: ...
    def fail(self) -> None: ...
    def heal(self) -> None: ...


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

    def fail(self) -> None:
        """The model's log never fails."""

    def heal(self) -> None:
        """Nothing is to heal."""


class EngineDisk:
    """The engine on files in memory. Its limits are small, so that short runs fill tables and cut logs."""

    def __init__(self, number: int, random: Random, durability: str) -> None:
        self.number = number
        self._random = random
        self._durability = durability
        self._files = MemoryFiles()
        self._memtable_bytes = random.choice((4 << 10, 16 << 10, 1 << 20))
        self._segment_bytes = random.choice((4 << 10, 16 << 10, 1 << 20))
        self._log_keep_bytes = random.choice((512, 4 << 10, 1 << 20))

    def open(self, now_ms: int) -> EngineStore:
        return EngineStore(
            everwrite.open(
                "/data",
                self._durability,
                files=self._files,
                background=False,
                store_id=self.number,
                now_ms=now_ms,
                memtable_bytes=self._memtable_bytes,
                segment_bytes=self._segment_bytes,
                log_keep_bytes=self._log_keep_bytes,
            )
        )

    def close(self, store: EngineStore) -> None:
        store.close()

    def crash(self, store: EngineStore) -> None:
        self._files.heal()
        # Power loss at its worst, a killed process on a machine that lives on, or something in between.
        self._files.crash(self._random.choice((None, "all", self._random)))

    def fail(self) -> None:
        """Let one of the next few calls that make the log durable or longer fail."""
        operation: Literal["sync", "write"] = self._random.choice(("sync", "write"))
        self._files.fail(operation, path=b"wal", skip=self._random.randrange(4), partial=self._random.randrange(20))

    def heal(self) -> None:
        """Nothing fails from now on."""
        self._files.heal()

    def sync(self, store: EngineStore) -> None:
        store.maintain()
