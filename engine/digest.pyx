"""The leaves of the Merkle tree as bytes, and their rebuild from a scan; see digest.pxd."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from everwrite.coding cimport (
    Buffer,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    load_u64,
    put_bytes,
    put_u8,
    slice_of,
    store_u64,
)
from everwrite.keyspace cimport Keyspace
from everwrite.lsm cimport Lsm, LsmIterator
from everwrite.state cimport (
    SPACE_USER,
    Element,
    Head,
    Sum,
    element_decode,
    element_free,
    element_init,
    element_key,
    head_decode,
    head_free,
    head_init,
)
from everwrite.status cimport Status, check, fault_corrupt

from everwrite.errors import CorruptionError

cdef enum Tuning:
    KEYS_AT_ONCE = 1000          # of a rebuild, before others get the lock


cdef Sum* leaves_new() noexcept nogil:
    return <Sum*>calloc(LEAVES, sizeof(Sum))


cdef bytes leaves_bytes(const Sum* leaves):
    result = bytearray(LEAVES * 16)
    cdef uint8_t* at = result
    cdef size_t i
    for i in range(LEAVES):
        store_u64(at + 16 * i, leaves[i].low)
        store_u64(at + 16 * i + 8, leaves[i].high)
    return bytes(result)


cdef int leaves_load(Sum* leaves, object data) except -1:
    cdef const uint8_t[:] view = data
    cdef size_t i
    if view.shape[0] != LEAVES * 16:
        raise CorruptionError(f"a digest of {view.shape[0]} bytes in a checkpoint; it must have {LEAVES * 16}")
    for i in range(LEAVES):
        leaves[i].low = load_u64(&view[16 * i])
        leaves[i].high = load_u64(&view[16 * i + 8])
    return 0


cdef bytes leaves_root(const Sum* leaves):
    cdef uint8_t root[16]
    cdef Sum sum = no_sum()
    cdef size_t i
    for i in range(LEAVES):
        sum_add(&sum, leaves[i])
    store_u64(root, sum.low)
    store_u64(root + 8, sum.high)
    return root[:16]


cdef int _sum_elements(Lsm lsm, LsmIterator* it, Slice key, int kind, Buffer* prefix, Sum* into) noexcept nogil:
    """Add the items of all elements of one kind of the key to `into`."""
    cdef Element element
    cdef Slice stored
    cdef int status = element_key(prefix, key, kind, slice_of(NULL, 0))
    if status == 0:
        status = lsm.seek(it, buffer_slice(prefix))
    element_init(&element)
    while status == 1:
        stored = lsm.key(it)
        if stored.size < prefix.size or memcmp(stored.data, prefix.data, prefix.size) != 0:
            break
        if element_decode(&element, lsm.value(it)) < 0:
            status = fault_corrupt(b"key state", 0, b"an element can't be decoded")
            break
        sum_add(into, element_item(&element, kind, slice_of(stored.data + prefix.size, stored.size - prefix.size)))
        status = lsm.next(it)
    element_free(&element)
    return status if status < 0 else Status.OK


cdef int _rebuild_some(Keyspace store, Buffer* start, Sum* leaves) noexcept nogil:
    """Sum up to KEYS_AT_ONCE keys from the entry key in `start` on, and set `start` to the next: 1; 0: at the end."""
    cdef LsmIterator* it = store.lsm.iterator()
    cdef LsmIterator* elements = store.lsm.iterator()
    cdef Buffer prefix
    cdef Head head
    cdef Slice stored
    cdef size_t left = Tuning.KEYS_AT_ONCE
    cdef int status = Status.ERR_MEMORY
    cdef int i
    head_init(&head)
    buffer_init(&prefix)
    if it != NULL and elements != NULL:
        status = store.lsm.seek(it, buffer_slice(start))
    while status == 1:
        stored = store.lsm.key(it)
        if stored.data[0] != SPACE_USER:
            status = 0
            break
        if left == 0:
            start.size = 0
            status = put_bytes(start, stored.data, stored.size)
            status = status if status < 0 else 1
            break
        left -= 1
        if head_decode(&head, store.lsm.value(it)) < 0:
            status = fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
            break
        head.sum = no_sum()
        # Of all kinds that have entries: a bounded counter's cells are alive without being counted.
        for i in range(head.collection_count):
            status = _sum_elements(
                store.lsm, elements, slice_of(stored.data + 1, stored.size - 1), head.collections[i].kind, &prefix,
                &head.sum,
            )
            if status < 0:
                break
        if status < 0:
            break
        leaf_replace(leaves, digest_key(stored), no_sum(), head_item(&head, digest_key(stored)))
        status = store.lsm.next(it)
    if it != NULL:
        store.lsm.iterator_free(it)
    if elements != NULL:
        store.lsm.iterator_free(elements)
    head_free(&head)
    buffer_free(&prefix)
    return status


def rebuild(Keyspace store not None):
    """The leaves of `store` from a scan of all heads and elements: what `Store.digest_leaves` must equal.

    Returns bytes, 16 a leaf. Others may use the store meanwhile, but what they write may count or not.
    Raises CorruptionError when an entry can't be decoded.
    """
    cdef Sum* leaves = leaves_new()
    cdef Buffer start
    cdef int status = 1
    buffer_init(&start)
    if leaves == NULL or put_u8(&start, SPACE_USER) != 0:
        free(leaves)
        raise MemoryError("out of memory for a digest")
    try:
        while status == 1:
            with nogil:
                store.lock()
                status = _rebuild_some(store, &start, leaves)
                store.unlock()
        check(status)
        return leaves_bytes(leaves)
    finally:
        free(leaves)
        buffer_free(&start)
