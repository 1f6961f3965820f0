"""What a store holds in some leaves of its Merkle tree: the items and the keys, for `reconcile`.

A few leaves of many keys are read by the hash index of the table files, whose order is the leaves': that costs those
leaves' share of the files, and a look at each key in memory tables. Else one scan of all keys in order costs less.
"""

from libc.stdint cimport uint8_t, uint64_t

import numpy as np

from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    put_bytes,
    put_u8,
    put_u32,
    put_u64,
    reader_left,
    reader_of,
    slice_of,
)
from everwrite.digest cimport LEAF_BITS, LEAVES, DigestKey, digest_key, digest_key_from, head_item
from everwrite.hashing cimport hash64
from everwrite.keyspace cimport Keyspace
from everwrite.lsm cimport LsmIterator, Pin, pin_init, pin_release
from everwrite.memtable cimport Memtable, entry_key, entry_removed, memtable_walk, slot_entry
from everwrite.pins cimport counted_hold, counted_release
from everwrite.prefetch cimport prefetch_line
from everwrite.state cimport SPACE_USER, Head, Sum, head_decode, head_free, head_init
from everwrite.status cimport Status, check, fault_corrupt
from everwrite.table_format cimport KEY_HASH_SEED, Table
from everwrite.table_reader cimport HashCursor, hash_cursor_free, hash_cursor_init, hash_cursor_next
from everwrite.versions cimport Version

ITEM = np.dtype([("hash", "<u8"), ("low", "<u8"), ("high", "<u8")])

cdef enum Tuning:
    KEYS_AT_ONCE = 1000          # of a scan, before others get the lock
    PAGE_ENTRIES = 960           # of an index page, all of which are looked at for any part of it
    BY_HASH_COST = 24            # of an entry found by its hash, in entries of a scan in order
    LOOK_AHEAD = 8               # slots of a memory table


cdef class _Leaves:
    """Which leaves are wanted, and what was found of them."""

    cdef bytes bitmap
    cdef const uint8_t* bits
    cdef Buffer items
    cdef Buffer names

    def __cinit__(self):
        buffer_init(&self.items)
        buffer_init(&self.names)

    def __init__(self, leaves):
        wanted = np.zeros(LEAVES, np.uint8)
        wanted[leaves] = 1
        self.bitmap = np.packbits(wanted, bitorder="little").tobytes()
        self.bits = self.bitmap

    def __dealloc__(self):
        buffer_free(&self.items)
        buffer_free(&self.names)

    cdef bint has(self, uint64_t key_hash) noexcept nogil:
        cdef uint64_t leaf = key_hash >> (64 - LEAF_BITS)
        return (self.bits[leaf >> 3] >> (leaf & 7)) & 1

    cdef int add_name(self, Slice stored) noexcept nogil:
        """Note a users' key by its entry's key."""
        if put_u32(&self.names, <unsigned int>(stored.size - 1)) < 0:
            return Status.ERR_MEMORY
        return Status.OK if put_bytes(&self.names, stored.data + 1, stored.size - 1) == 0 else Status.ERR_MEMORY

    cdef int add_item(self, Head* head, Slice value, DigestKey place) noexcept nogil:
        cdef Sum item
        if head_decode(head, value) < 0:
            return fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
        item = head_item(head, place)
        if put_u64(&self.items, place.first) | put_u64(&self.items, item.low) | put_u64(&self.items, item.high):
            return Status.ERR_MEMORY
        return Status.OK

    cdef list take_names(self):
        cdef Reader r = reader_of(buffer_slice(&self.names))
        cdef Slice name
        found = []
        while reader_left(&r):
            name = slice_of(r.at + 4, r.at[0] | r.at[1] << 8 | r.at[2] << 16 | <size_t>r.at[3] << 24)
            found.append(name.data[: name.size])
            r.at = name.data + name.size
        self.names.size = 0
        return found

    cdef object take_items(self):
        return np.frombuffer(self.items.data[: self.items.size] if self.items.size else b"", ITEM)


# ---- all keys in order ----

cdef int _scan_some(Keyspace store, Buffer* start, _Leaves found) noexcept nogil:
    """Add what lies in wanted leaves, and set `start` to where to go on: 1; 0: at the end."""
    cdef LsmIterator* it = store.lsm.iterator()
    cdef Head head
    cdef Slice stored
    cdef uint64_t key_hash
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
        key_hash = hash64(stored, KEY_HASH_SEED)
        if found.has(key_hash):
            status = found.add_item(&head, store.lsm.value(it), digest_key_from(key_hash, stored))
            if status == Status.OK:
                status = found.add_name(stored)
            if status < 0:
                break
        status = store.lsm.next(it)
    store.lsm.iterator_free(it)
    head_free(&head)
    return status


cdef list _scan_all(Keyspace store, _Leaves found):
    cdef Buffer start
    cdef int status = 1
    buffer_init(&start)
    try:
        if put_u8(&start, SPACE_USER) != 0:
            raise MemoryError("out of memory for a scan")
        while status == 1:
            with nogil:
                store.lock()
                status = store.failed if store.failed else _scan_some(store, &start, found)
                store.unlock()
        check(status)
    finally:
        buffer_free(&start)
    return found.take_names()


# ---- by hash ----

cdef int _walk_some(Memtable* t, uint64_t* place, _Leaves found) noexcept nogil:
    """Note the wanted keys of a part of a memory table, those removed from it, too: 1; 0: that was the last one."""
    cdef const uint64_t* slots
    cdef size_t count = 0
    cdef size_t i
    cdef Slice key
    cdef int left = memtable_walk(t, place, &slots, &count)
    for i in range(count):
        if i + LOOK_AHEAD < count and slots[i + LOOK_AHEAD]:
            prefetch_line(slot_entry(slots[i + LOOK_AHEAD]))
        if slots[i] == 0 or entry_removed(slot_entry(slots[i])):
            continue
        key = entry_key(slot_entry(slots[i]))
        if key.data[0] == SPACE_USER and found.has(hash64(key, KEY_HASH_SEED)) and found.add_name(key) < 0:
            return Status.ERR_MEMORY
    return left


cdef int _walk_memtable(Keyspace store, Memtable* t, _Leaves found) noexcept nogil:
    cdef uint64_t place = 0
    cdef int status = 1
    while status == 1:
        # Frozen meanwhile, it doesn't need the lock, but nor does it need much of it.
        store.lock()
        status = _walk_some(t, &place, found)
        store.unlock()
    return status


cdef int _walk_leaf(Keyspace store, Table* table, uint64_t leaf, _Leaves found) noexcept nogil:
    """Note the keys of one leaf in a table file."""
    cdef HashCursor c
    cdef int status
    hash_cursor_init(&c, table, leaf << (64 - LEAF_BITS), ((leaf + 1) << (64 - LEAF_BITS)) - 1)
    store.lock()
    status = store.failed if store.failed else hash_cursor_next(&c, store.lsm.cache)
    while status == 1:
        if not c.removed and c.key.data[0] == SPACE_USER and found.add_name(c.key) < 0:
            status = Status.ERR_MEMORY
            break
        status = hash_cursor_next(&c, store.lsm.cache)
    hash_cursor_free(&c)
    store.unlock()
    return status


cdef int _walk(Keyspace store, const uint64_t* leaves, size_t count, _Leaves found) noexcept nogil:
    """Note the keys in these leaves, some of them repeatedly, and some that were removed since."""
    cdef Memtable* active
    cdef Version* version
    cdef size_t i
    cdef size_t j
    cdef int status
    store.lock()
    active = store.lsm.active
    counted_hold(&active.counted)
    version = store.lsm.versions.hold()
    store.unlock()
    status = _walk_memtable(store, active, found)
    for i in range(version.frozen_count):
        if status == Status.OK:
            status = _walk_memtable(store, version.frozen[i], found)
    for i in range(version.table_count):
        for j in range(count):
            if status == Status.OK:
                status = _walk_leaf(store, version.tables[i], leaves[j], found)
    store.lsm.versions.release(version)
    counted_release(&active.counted)
    return status


cdef int _look_up(Keyspace store, Head* head, bytes entry, _Leaves found) except -1:
    """Add a key's item: 1; 0: the key isn't there any more."""
    cdef Slice key = slice_of(<const uint8_t*>entry, len(entry))
    cdef Slice value
    cdef Pin pin
    cdef int status
    pin_init(&pin)
    with nogil:
        store.lock()
        status = store.failed if store.failed else store.lsm.get(key, &pin, &value)
        if status == 1:
            status = found.add_item(head, value, digest_key(key))
            status = 1 if status == Status.OK else status
        pin_release(&pin)
        store.unlock()
    return check(status)


cdef list _scan_few(Keyspace store, leaves, _Leaves found):
    cdef const uint64_t[::1] numbers = leaves
    cdef Head head
    cdef int status
    with nogil:
        status = _walk(store, &numbers[0], numbers.shape[0], found)
    check(status)
    head_init(&head)
    try:
        space = bytes([SPACE_USER])
        return [name for name in dict.fromkeys(found.take_names()) if _look_up(store, &head, space + name, found)]
    finally:
        head_free(&head)


cdef bint _are_few(Keyspace store, size_t leaves) noexcept nogil:
    """Whether reading so many leaves by hash costs less than a scan of everything."""
    cdef Version* version = store.lsm.versions.hold()
    cdef size_t entries = 0
    cdef size_t looked_at = 0
    cdef size_t i
    for i in range(version.table_count):
        entries += version.tables[i].entries
        looked_at += leaves * max(version.tables[i].entries // LEAVES, PAGE_ENTRIES)
    store.lsm.versions.release(version)
    return looked_at * BY_HASH_COST < entries


def scan_leaves(Keyspace store not None, leaves, *, by_hash=None):
    """What a store has in these leaves of its tree: (items, keys), both in order of the keys' hashes.

    `leaves` is an array of their numbers. `items` is an array of `ITEM`, with the sum (0, 0) for a key of which nothing
    is alive; `keys` is a list of bytes. What others write meanwhile may be in or not. `by_hash`: whether to go by the
    tables' hash index or through all keys; None: as costs less.
    """
    wanted = np.unique(np.asarray(leaves, np.uint64))
    found = _Leaves(wanted)
    if not len(wanted):
        return found.take_items(), []
    if by_hash is None:
        by_hash = _are_few(store, len(wanted))
    keys = _scan_few(store, wanted, found) if by_hash else _scan_all(store, found)
    items = found.take_items()
    order = np.argsort(items["hash"], kind="stable")
    return items[order], [keys[at] for at in order.tolist()]
