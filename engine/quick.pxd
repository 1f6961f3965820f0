"""The quick way of plain registers: keys that were only ever written as a register, by this store.

Most keys of most stores are such. Their change and their state are put together directly, where
the general way makes a delta, parses it, joins it and encodes the outcome. Both ways give the same
bytes (tests/test_quick.py); whatever else a key holds takes the general way.
Thread safety: needs the lock. Nothing here reads a file, so that the GIL may be held meanwhile.
"""

from libc.stdint cimport uint64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport Slice
from everwrite.datatypes cimport TypedKeyspace
from everwrite.memtable cimport Entry


cdef struct Plain:
    # A key whose state is in memory, and nothing but a register or its tombstone, or not there at all.
    Slice name                   # of its entry
    uint64_t key_hash
    Entry* entry                 # in the active memory table, or NULL
    bint live
    Dot dot                      # of the register or tombstone; 0, 0: there is none


cdef class QuickKeyspace(TypedKeyspace):
    # `key_hash` is what `prefetch` answered; 0: unknown. All of them answer WOULD_BLOCK for keys that
    # aren't plain or can't be told without reading a file: take the operation of the same name then.
    cdef int get_quick(self, Slice key, uint64_t key_hash, Slice* value) noexcept nogil      # as op_get
    cdef int set_quick(self, Slice key, uint64_t key_hash, Slice value) noexcept nogil       # 1
    cdef int delete_quick(self, Slice key, uint64_t key_hash) noexcept nogil                 # 1, or 0 no such key

    cdef int _get_short(self, Slice key, uint64_t key_hash, bint cached_only, Slice* value) noexcept nogil
    cdef int _find_stored(
        self, Slice name, uint64_t key_hash, bint cached_only, Entry** e, Slice* stored
    ) noexcept nogil
    cdef int _find_plain(self, Plain* plain) noexcept nogil
    cdef int _write_plain(self, Plain* plain, Slice value, bint tombstone) noexcept nogil
