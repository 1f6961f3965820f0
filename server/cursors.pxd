"""SCAN's cursors: a bounded table from the integers that clients hold to the key a scan goes on behind.

Invariants: at most CURSORS_MAX entries and CURSOR_BYTES_MAX bytes of keys; the longest unused go first.
Going on from a cursor drops the one before it: a scan in progress holds two entries (its newest
answer may be lost and asked for again), however long it is, and doesn't push other scans out.
"""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Slice


cdef enum:
    CURSOR_SLOT_BITS = 12
    CURSORS_MAX = 1 << CURSOR_SLOT_BITS
    CURSOR_GENERATION_BITS = 41     # with the slot 53: clients that keep cursors in a double get them back
    CURSOR_BYTES_MAX = 16 << 20


cdef struct Cursor:
    uint64_t number                 # generation and slot; 0: empty
    uint64_t previous               # the cursor that this one was made from, 0 at the start of a scan
    unsigned char* key
    size_t size


cdef struct Cursors:
    Cursor* entries                 # CURSORS_MAX, each in the slot that its number names
    uint64_t generation             # of the newest
    size_t used                     # entries that aren't empty
    size_t key_bytes


cdef int cursors_init(Cursors* table, uint64_t generation) noexcept nogil      # -1: out of memory
cdef void cursors_free(Cursors* table) noexcept nogil
# The key behind which cursor `number` goes on. False when it is unknown, or was pushed out.
cdef bint cursors_find(Cursors* table, uint64_t number, Slice* key) noexcept nogil
# A cursor that goes on behind `key`; `previous` is the one that the scan came with. 0: out of memory.
cdef uint64_t cursors_add(Cursors* table, Slice key, uint64_t previous) noexcept nogil
