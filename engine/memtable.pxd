"""The memory table: a hash index over entries, and their order made only when somebody asks for it.

Point operations cost two cache misses: the slot, and the entry. A new key is appended to a
pending list; `memtable_order` merges that list into a B+ tree when an iterator or a flush
needs it, so that a load of new keys never pays for an order that nobody reads.

Thread safety: find, put, remove, seek and next are serialised by the caller. A table that
takes no more writes may be searched and iterated by several threads at once (the making of
its order has a mutex of its own).
Invariants: an entry never moves and is never unlinked while its table lives; a removed key
stays as a marker, because it must hide older values in the tables below.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from everwrite.coding cimport Slice, slice_of
from everwrite.threads cimport pthread_mutex_t
from everwrite.pins cimport Counted
from everwrite.undo cimport Undo


cdef enum:
    FANOUT = 64                        # keys of a node of the order's tree
    KEY_SIZE_MASK = 0x00ffffff
    ENTRY_REMOVED = 0x80000000
    ENTRY_EXTERNAL = 0x40000000        # the value lies in memory of its own: see ExternalValue
    KEY_SIZE_LIMIT = 132000      # a key and an element of 65,536 bytes each, and what joins them
    LARGE_VALUE = 64 << 10       # from here on a value isn't copied but to where it stays
    VALUE_SIZE_LIMIT = 512 << 20       # a field that several regions wrote at once, 64 MiB each


cdef struct Entry:
    uint32_t hash                      # upper half of the key's hash
    uint32_t key_flags                 # key size and flags
    uint32_t value_size
    uint32_t inline_capacity           # of the value's place behind the key, at least sizeof(ExternalValue)
    # the key's bytes, then inline_capacity bytes


cdef struct ExternalValue:
    uint8_t* data
    uint64_t capacity


cdef struct Leaf:
    # Entries in key order. `skip` bytes are common to all keys; `heads` are the next eight
    # bytes of each, big-endian, so that a search rarely has to touch an entry.
    uint32_t count
    uint32_t skip
    uint64_t heads[FANOUT]
    Entry* entries[FANOUT]
    Leaf* next
    Leaf* previous


cdef struct Inner:
    # separators[i] is the smallest key below children[i + 1].
    uint32_t count
    uint32_t skip
    uint64_t heads[FANOUT]
    Entry* separators[FANOUT]
    void* children[FANOUT + 1]


cdef struct Chunk:
    Chunk* next


cdef struct Memtable:
    Counted counted
    uint64_t seed
    # Extendible hashing (Fagin et al. 1979): the upper `depth` bits of a hash choose a
    # segment. A segment that is full splits alone, so that growth never rehashes the whole.
    uint64_t* directory                # segment address | log2 of its slots
    uint32_t depth
    void* free_segments                # linked through their first words
    Chunk* chunks
    uint8_t* at                        # free part of the newest chunk
    uint8_t* end
    size_t chunk_size
    size_t memory                      # bytes in use: entries, external values, index, order
    size_t count                       # keys, removed ones included
    size_t removed
    Entry** pending                    # keys not in the tree yet
    unsigned long long pending_count
    size_t pending_capacity
    void* root                         # a Leaf when height is 0
    uint32_t height
    uint64_t tree_version              # changes whenever positions in the tree become stale
    pthread_mutex_t order_lock
    Undo* undo                         # while a group of changes may still be taken back; else NULL


cdef struct MemtableCursor:
    Memtable* table
    Leaf* leaf
    uint32_t position
    uint64_t tree_version
    Entry* entry                       # where it stands; NULL at the end


cdef inline Slice entry_key(const Entry* e) noexcept nogil:
    return slice_of(<const uint8_t*>e + sizeof(Entry), e.key_flags & KEY_SIZE_MASK)


cdef inline Slice entry_value(const Entry* e) noexcept nogil:
    cdef const uint8_t* place = <const uint8_t*>e + sizeof(Entry) + (e.key_flags & KEY_SIZE_MASK)
    cdef ExternalValue external
    if e.key_flags & ENTRY_EXTERNAL:
        memcpy(&external, place, sizeof(ExternalValue))
        return slice_of(external.data, e.value_size)
    return slice_of(place, e.value_size)


cdef inline bint entry_removed(const Entry* e) noexcept nogil:
    return (e.key_flags & ENTRY_REMOVED) != 0


cdef Memtable* memtable_new(uint64_t seed) noexcept nogil           # NULL when out of memory; one reference
cdef Entry* memtable_find(Memtable* t, uint64_t key_hash, Slice key) noexcept nogil    # NULL: absent
# Hints for a find that follows soon: first the slot, and, when that has arrived, the entry.
cdef void memtable_prefetch_slot(Memtable* t, uint64_t key_hash) noexcept nogil
cdef void memtable_prefetch_entry(Memtable* t, uint64_t key_hash) noexcept nogil
cdef int memtable_put(Memtable* t, uint64_t key_hash, Slice key, Slice value) noexcept nogil
# The same for a caller that has looked it up: `e` is what memtable_find answered. Key and value within the limits.
cdef int memtable_put_at(Memtable* t, Entry* e, uint64_t key_hash, Slice key, Slice value) noexcept nogil
# The same for a value over LARGE_VALUE that comes in two parts, of which only `tail` may lie in the value before.
cdef int memtable_put_parts(Memtable* t, uint64_t key_hash, Slice key, Slice head, Slice tail) noexcept nogil
cdef int memtable_remove(Memtable* t, uint64_t key_hash, Slice key) noexcept nogil
# Make an entry of this table what it was: removed, or with an old value. ERR_MEMORY: nothing has changed.
cdef int memtable_restore(Memtable* t, Entry* e, bint removed, Slice value) noexcept nogil
# All entries, a part at a time: *slots is an array of `count` slots, of which some are 0. Set *place to 0 first, and
# leave it alone then. 1; 0: that was the last part. Between two parts the table may be written to.
cdef int memtable_walk(Memtable* t, uint64_t* place, const uint64_t** slots, size_t* count) noexcept nogil


cdef inline Entry* slot_entry(uint64_t slot) noexcept nogil:
    return <Entry*>(slot & <uint64_t>0x0000ffffffffffff)
