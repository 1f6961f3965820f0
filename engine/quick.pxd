"""The quick way of plain keys: those that were only ever written as a register, or counted up, by this store.

Most keys of most stores are such. Their change and their state are put together directly, where
the general way makes a delta, parses it, joins it and encodes the outcome. Both ways give the same
bytes (tests/test_quick.py); whatever else a key holds takes the general way.
Thread safety: needs the lock. Nothing here reads a file, so that the GIL may be held meanwhile.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport Slice
from everwrite.datatypes cimport TypedKeyspace
from everwrite.digest cimport DigestKey
from everwrite.memtable cimport Entry


cdef struct Plain:
    # A key whose state is in memory: a register or its tombstone, or a counter; nothing else, or nothing at all.
    Slice name                   # of its entry
    uint64_t key_hash
    DigestKey place
    Entry* entry                 # in the active memory table, or NULL
    int form                     # a PlainHead; 0: nothing
    Dot dot                      # of the register, tombstone, or last increment; 0, 0: there is none
    int64_t total                # of the increments


cdef class QuickKeyspace(TypedKeyspace):
    # `key_hash` is what `prefetch` answered; 0: unknown. All of them answer WOULD_BLOCK for keys that
    # aren't plain or can't be told without reading a file: take the operation of the same name then.
    cdef int get_quick(self, Slice key, uint64_t key_hash, Slice* value) noexcept nogil      # as op_get
    cdef int set_quick(self, Slice key, uint64_t key_hash, Slice value) noexcept nogil       # 1
    cdef int delete_quick(self, Slice key, uint64_t key_hash) noexcept nogil                 # 1, or 0 no such key
    # An increment that would overflow is left to op_increment, too.
    cdef int increment_quick(self, Slice key, int64_t amount, int64_t* result) noexcept nogil

    cdef int _get_short(self, Slice key, uint64_t key_hash, bint cached_only, Slice* value) noexcept nogil
    cdef int _find_plain(self, Plain* plain, uint8_t* room, Slice key, uint64_t key_hash) noexcept nogil
    cdef int _write_register(self, Plain* plain, Slice value, bint tombstone) noexcept nogil
    # What delta_begin, a part, merge and log_change come to: 1 or an error.
    cdef int _write_plain(self, Plain* plain, Dot dot, Slice head, Slice part, Slice value, bint live) noexcept nogil
    cdef void _replace_item(self, const Plain* plain, Dot dot, Slice head) noexcept nogil
