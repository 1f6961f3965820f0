"""Stores to measure. Durability is `os` unless a benchmark says otherwise: the disk is measured by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import everwrite
from bench.engine.sizes import KEYS, VALUE


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., everwrite.Database]]:
    """Opens fresh stores, each in a folder of its own; all are closed with the test."""
    with ExitStack() as stack:
        count = 0

        def open_one(durability: str = "os") -> everwrite.Database:
            nonlocal count
            count += 1
            return stack.enter_context(everwrite.open(tmp_path / f"store-{count}", durability=durability))

        yield open_one


@pytest.fixture
def store(open_store: Callable[..., everwrite.Database]) -> everwrite.Database:
    """An empty store."""
    return open_store()


@pytest.fixture
def full_store(store: everwrite.Database) -> everwrite.Database:
    """A store with `KEYS` registers of 100 bytes."""
    for number in range(KEYS):
        store[b"key:%012d" % number] = VALUE
    return store
