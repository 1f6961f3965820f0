"""Embedded stores in memory, as the tests of single data types want them."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import everwrite
from everwrite.database import Database
from everwrite.memory_files import MemoryFiles

MEMTABLE_BYTES = 1 << 20


def open_store(number: int, **options: Any) -> Database:
    """A fresh store with this id, without background work; `options` as for `everwrite.open`."""
    options.setdefault("memtable_bytes", MEMTABLE_BYTES)
    return everwrite.open("/data", "os", files=MemoryFiles(), background=False, store_id=number, **options)


def exchange(*stores: Database) -> None:
    """Let every store apply what each other one has and it hasn't."""
    for receiver, sender in permutations(stores, 2):
        for batch in sender.changes(receiver.applied):
            receiver.apply(batch)
