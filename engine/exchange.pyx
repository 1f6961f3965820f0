"""States of single keys out of a store and into it, outside of the log's order; for `reconcile`.

What is joined here is logged as a state without a dot, before anything that builds on it. It
raises the contexts of keys, never `applied`: which prefix of each origin's log the store holds
is another question, and only changes and claims answer it.
"""

from libc.stdint cimport uint8_t, uint64_t

import numpy as np

from everwrite.change cimport PART_HEAD, Change, Part, change_parse, part_next
from everwrite.clock cimport Dot, vector_get
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    get_slice,
    put_bytes,
    put_u8,
    put_u32,
    put_u64,
    reader_left,
    reader_of,
    slice_of,
)
from everwrite.digest cimport LEAF_BITS, DigestKey, digest_key_from, head_item
from everwrite.hashing cimport hash64
from everwrite.keyspace cimport Keyspace
from everwrite.lsm cimport LsmIterator
from everwrite.state cimport SPACE_USER, Head, Sum, head_decode, head_free, head_init
from everwrite.status cimport Status, check, fault_corrupt
from everwrite.store cimport Store
from everwrite.table_format cimport KEY_HASH_SEED

from everwrite.errors import ClockDriftError, ProtocolError

ITEM = np.dtype([("hash", "<u8"), ("low", "<u8"), ("high", "<u8")])

cdef enum Tuning:
    KEYS_AT_ONCE = 1000          # of a scan, before others get the lock


cdef int _scan_some(
    Keyspace store, Buffer* start, const uint8_t* wanted, Buffer* items, Buffer* keys
) noexcept nogil:
    """Append items and keys of wanted leaves, and set `start` to where to go on: 1; 0: at the end."""
    cdef LsmIterator* it = store.lsm.iterator()
    cdef Head head
    cdef Slice stored
    cdef DigestKey place
    cdef Sum item
    cdef uint64_t leaf
    cdef size_t left = Tuning.KEYS_AT_ONCE
    cdef int status
    if it == NULL:
        return Status.ERR_MEMORY
    head_init(&head)
    status = store.lsm.seek(it, buffer_slice(start))
    while status == 1:
        stored = store.lsm.key(it)
        if stored.data[0] != SPACE_USER:
            status = 0
            break
        if left == 0:
            start.size = 0
            status = 1 if put_bytes(start, stored.data, stored.size) == 0 else <int>Status.ERR_MEMORY
            break
        left -= 1
        place.first = hash64(stored, KEY_HASH_SEED)
        leaf = place.first >> (64 - LEAF_BITS)
        if wanted[leaf >> 3] & (1 << (leaf & 7)):
            if head_decode(&head, store.lsm.value(it)) < 0:
                status = fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
                break
            item = head_item(&head, digest_key_from(place.first, stored))
            if (
                put_u64(items, place.first) | put_u64(items, item.low) | put_u64(items, item.high)
                | put_u32(keys, <unsigned int>(stored.size - 1)) | put_bytes(keys, stored.data + 1, stored.size - 1)
            ):
                status = Status.ERR_MEMORY
                break
        status = store.lsm.next(it)
    store.lsm.iterator_free(it)
    head_free(&head)
    return status


def scan_leaves(Keyspace store not None, leaves):
    """What a store has in these leaves of its tree: (items, keys), both in order of the keys' hashes.

    `items` is an array of `ITEM`, with the sum (0, 0) for a key of which nothing is alive; `keys` is a list of bytes.
    """
    wanted = np.zeros(1 << LEAF_BITS, np.uint8)
    wanted[np.asarray(leaves, np.int64)] = 1
    cdef bytes bitmap = np.packbits(wanted, bitorder="little").tobytes()
    cdef const uint8_t* bits = bitmap
    cdef Buffer start
    cdef Buffer items
    cdef Buffer names
    cdef Reader r
    cdef Slice name
    cdef int status = 1
    buffer_init(&start)
    buffer_init(&items)
    buffer_init(&names)
    try:
        if put_u8(&start, SPACE_USER) != 0:
            raise MemoryError("out of memory for a scan")
        while status == 1:
            with nogil:
                store.lock()
                status = store.failed if store.failed else _scan_some(store, &start, bits, &items, &names)
                store.unlock()
        check(status)
        found = np.frombuffer(items.data[: items.size] if items.size else b"", ITEM)
        keys = []
        r = reader_of(buffer_slice(&names))
        while reader_left(&r):
            name = slice_of(r.at + 4, r.at[0] | r.at[1] << 8 | r.at[2] << 16 | <size_t>r.at[3] << 24)
            keys.append(name.data[: name.size])
            r.at = name.data + name.size
    finally:
        buffer_free(&start)
        buffer_free(&items)
        buffer_free(&names)
    order = np.argsort(found["hash"], kind="stable")
    return found[order], [keys[at] for at in order.tolist()]


def contexts(Keyspace store not None, list keys):
    """The causal contexts of these users' keys, each a dict of origin to timestamp; empty for one that isn't there."""
    cdef Slice name
    cdef int status
    cdef size_t i
    result = []
    for key in keys:
        name = slice_of(<const uint8_t*><bytes>key, len(key))
        with nogil:
            store.lock()
            status = store.failed if store.failed else store.load(SPACE_USER, name)
        held = {store.head.rows[i].origin: store.head.rows[i].context for i in range(store.head.size)}
        store.unlock()
        check(status)
        result.append({origin: stamp for origin, stamp in held.items() if stamp} if status else {})
    return result


def collect_states(Store store not None, list keys, size_t limit):
    """The states of as many of these users' keys, from the first on, as `limit` bytes hold; at least of one.

    Returns (states, keys looked at), the states as bytes; one over the limit comes alone. What isn't there has
    none. Everything in them is durable.
    """
    cdef Buffer state
    cdef Dot none
    cdef Slice name
    cdef size_t size = 0
    cdef size_t looked = 0
    cdef int status = 0
    none.origin = none.timestamp = 0
    states = []
    buffer_init(&state)
    try:
        for key in keys:
            name = slice_of(<const uint8_t*><bytes>key, len(key))
            state.size = 0
            with nogil:
                store.lock()
                status = store.failed if store.failed else store.load(SPACE_USER, name)
                if status == 1:
                    status = store.encode_state(&state, none)
                    status = status if status < 0 else 1
                store.unlock()
            store._check(status)
            if status == 1:
                if states and size + state.size > limit:
                    break
                size += state.size
                states.append(state.data[: state.size])
            looked += 1
        with nogil:
            status = store._write_log(True)
        store._check(status)
        return states, looked
    finally:
        buffer_free(&state)


cdef uint64_t _newest_of(const uint8_t* data, size_t size, uint64_t origin) noexcept nogil:
    """The newest timestamp of `origin` in the contexts of well-formed states."""
    cdef Reader r = reader_of(slice_of(data, size))
    cdef Reader parts
    cdef Change change
    cdef Part part
    cdef Head head
    cdef uint64_t newest = 0
    cdef size_t i
    head_init(&head)
    while reader_left(&r):
        change_parse(get_slice(&r), &change)
        parts = reader_of(change.parts)
        if part_next(&parts, &part) == 1 and part.tag == PART_HEAD and head_decode(&head, part.value) == Status.OK:
            for i in range(head.size):
                if head.rows[i].origin == origin:
                    newest = max(newest, head.rows[i].context)
    head_free(&head)
    return newest


def join_states(Store store not None, bytes body not None, size_t count):
    """Join `count` states of keys or parts of states, as in a batch of states; durable after `Store.commit_log`.

    Raises ProtocolError (malformed, or with updates of this store's own that it never made) and
    ClockDriftError; nothing was joined then.
    """
    cdef const uint8_t* data = <const uint8_t*>body
    cdef size_t size = len(body)
    cdef uint64_t newest = 0
    cdef int status
    with nogil:
        status = store._validate(True, data, size, count, &newest)
    if status < 0:
        raise ProtocolError("malformed states: one of them can't be decoded; nothing of them was joined")
    with nogil:
        store.lock()
    try:
        store._check(Status.ERR_FAILED if store.failed else Status.OK)
        if _newest_of(data, size, store.own_origin) > vector_get(&store.applied, store.own_origin):
            raise ProtocolError(
                f"the states have updates of this store's own origin {store.own_origin:#018x} which it never made: "
                "two stores share an origin (was the directory copied while open?); nothing of them was joined"
            )
        if store.clock.observe(newest) < 0:
            raise ClockDriftError(
                f"the states have a timestamp {(newest >> 16) - store.clock.now_ms()} ms ahead of this node's clock; "
                f"max_clock_drift is {store.clock.max_drift_ms} ms: set the sender's clock right"
            )
        # Parts of a state that is large come in several messages of one conversation.
        store._join_states(data, size, store._take_parts("exchange", data, size, False))
    finally:
        store.unlock()
