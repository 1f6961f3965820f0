"""Rows of contexts that the stable horizon covers: what goes, what must stay, and what builds on it."""

from __future__ import annotations

import everwrite
from everwrite import Database
from everwrite.batch import decode_batch, encode_batch
from everwrite.memory_files import MemoryFiles
from tests.test_collection import at, collected, open_store


def writers_of(store: Database, key: bytes) -> set[int]:
    """The origins whose rows the key's head has."""
    return set(store.why(key)["context"])


def overwritten(*stores: Database) -> None:
    """Each writes the same registers, after the others."""
    for second, store in enumerate(stores):
        at(second, *stores)
        store[b"k"] = b"by %d" % second
        store.put(b"soon", b"by %d" % second, ttl=1000 - second)
        store.counter(b"n").increment(second + 1)
        store.set(b"s").add(b"%d" % second)
        for each in stores:
            if each is not store:
                everwrite.sync(store, each)


def test_rows_behind_the_horizon_go_from_registers_that_are_alive() -> None:
    files = MemoryFiles()
    stores = [open_store(1, files), open_store(2), open_store(3)]
    origins = {store.origin for store in stores}
    overwritten(*stores)
    one = stores[0]
    assert writers_of(one, b"k") == origins
    for _ in range(2):
        collected(*stores)
        for first in stores:
            for second in stores:
                everwrite.sync(first, second) if first is not second else None
    collected(*stores)
    for store in stores:
        assert store.horizon.keys() == origins
        assert writers_of(store, b"k") == {stores[2].origin}
        assert writers_of(store, b"soon") == {stores[2].origin}
        # What counts, and what covers elements, stays.
        assert writers_of(store, b"n") == writers_of(store, b"s") == origins
        assert (store[b"k"], store.counter(b"n").value, len(store.set(b"s"))) == (b"by 2", 6, 3)
        assert store.digest() == one.digest()
        assert store.verify().ok
    # They go on as before, and others get all of it.
    one[b"k"] = b"newer"
    del stores[1][b"soon"]
    files.crash("all")
    one = stores[0] = open_store(1, files)
    assert one[b"k"] == b"newer"
    new = open_store(4)
    at(3, *stores, new)
    for store in (*stores[1:], new, *stores[1:]):
        everwrite.sync(one, store)
    for store in (*stores, new):
        assert (store[b"k"], store.get(b"soon"), store.counter(b"n").value) == (b"newer", None, 6)
        assert store.digest() == one.digest()
        assert store.verify().ok


def test_a_write_over_rows_that_went_builds_on_the_horizon() -> None:
    """Whoever lacks what the row told of must not take the write for the first of its origin."""
    stores = [open_store(1), open_store(2)]
    one, two = stores
    overwritten(*stores)
    for _ in range(2):
        collected(*stores)
        everwrite.sync(one, two)
    collected(*stores)
    assert writers_of(one, b"k") == {two.origin}
    late = open_store(5)
    at(2, one, late)
    one[b"k"] = b"over it"
    stream = one.open_stream(dict(one.applied) | {one.origin: one.newest_timestamp - 1}, {1})
    batch = stream.next_batch()
    assert batch is not None
    envelope = decode_batch(batch)
    spans = [(span.origin, 0, span.upto) for span in envelope.spans]
    need = late.apply_batch(encode_batch(envelope.kind, spans, envelope.count, envelope.body))
    assert need is not None
    assert need.namespace_key == b"\x02k"


def test_a_claim_leaves_alone_what_came_before_it_and_was_slimmed() -> None:
    """A resync's states spell the sender's horizon out; its claim takes keys without that for deleted ones."""
    stores = [open_store(1), open_store(2)]
    one, two = stores
    overwritten(*stores)
    for _ in range(2):
        collected(*stores)
        everwrite.sync(one, two)
    new = open_store(6)
    at(2, one, new)
    *states, claim = one.resync_batches({})
    for batch in states:
        new.apply(batch)
    # It knows the same horizon meanwhile, and merges its tables.
    new.raise_horizon(one.horizon)
    new.compact()
    assert len(writers_of(new, b"k")) == 1
    new.apply(claim)
    assert new[b"k"] == one[b"k"]
    assert new.digest() == one.digest()
