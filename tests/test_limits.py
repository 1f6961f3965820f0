"""What one store takes, every other store can take: the limits of updates, batches and frames fit each other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import everwrite
from everwrite.batch import MAX_BATCH_BODY
from everwrite.server import codec
from everwrite.server.messages import Batch

VALUE_BYTES_MAX = 64 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[everwrite.Database]:
    """An empty store."""
    with everwrite.open(tmp_path / "store", durability="os") as store:
        yield store


def test_the_largest_value_reaches_another_store_in_frames(store: everwrite.Database, tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(VALUE_BYTES_MAX)
    store[b"one"] = noise
    with everwrite.open(tmp_path / "other", durability="os") as other:
        for batch in store.changes({}):
            assert codec.encode(Batch(1, 1, 1, batch))
            other.apply(batch)
        assert other[b"one"] == noise


def test_an_update_over_the_limit_is_refused_and_changes_nothing(store: everwrite.Database) -> None:
    store.map(b"map")[b"kept"] = b"as it was"
    before = store.applied[store.origin]
    largest = bytes(VALUE_BYTES_MAX)
    with pytest.raises(everwrite.TooLargeError, match="update over 144 MiB"):
        store.map(b"map").set({b"a": largest, b"b": largest, b"c": largest})
    with pytest.raises(everwrite.TooLargeError):
        store.set(b"set").add(*(b"%065536d" % number for number in range(2400)))
    assert dict(store.map(b"map")) == {b"kept": b"as it was"}
    assert len(store.set(b"set")) == 0
    assert store.applied[store.origin] == before
    store[b"after"] = b"the store goes on"
    assert store[b"after"] == b"the store goes on"


def test_a_frame_holds_any_batch() -> None:
    assert codec.encode(Batch(1 << 63, 1 << 20, 1 << 63, bytes(MAX_BATCH_BODY + (64 << 10))))
