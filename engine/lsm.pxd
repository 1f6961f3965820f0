"""An ordered byte-string map: memory table, immutable sorted tables, merge iterator, flush, compaction.

Knows nothing of clocks or data types. Keys to 70,000 bytes, values to 64 MiB + 64 KiB.

Thread safety: every method is serialised by the caller (the store's lock), except
`flush_frozen` and `compact`, which run on a background thread beside them.
"""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Slice
from everwrite.files cimport Files


cdef struct Pin:
    # Keeps the memory behind a returned value alive. Initialise with pin_init; pin_release is idempotent.
    void* block


cdef struct LsmIterator      # opaque


cdef void pin_init(Pin* pin) noexcept nogil
cdef void pin_release(Pin* pin) noexcept nogil


cdef class Lsm:
    # 1 found, 0 absent, negative error. *value stays valid until the pin is released, and,
    # when it lies in the active memory table, only until the next put or remove of the same key.
    cdef int get(self, Slice key, Pin* pin, Slice* value) noexcept nogil
    cdef int put(self, Slice key, Slice value) noexcept nogil
    cdef int remove(self, Slice key) noexcept nogil

    # Iterators see puts and removes that happen while they are open (in key order, ahead of them);
    # removing or replacing the entry that an iterator stands on is allowed, its key() stays valid
    # until the next seek or next, its value() doesn't.
    cdef LsmIterator* iterator(self) noexcept nogil                     # NULL when out of memory
    cdef void iterator_free(self, LsmIterator* it) noexcept nogil
    cdef int seek(self, LsmIterator* it, Slice key) noexcept nogil      # first entry >= key: 1, none: 0
    cdef int next(self, LsmIterator* it) noexcept nogil                 # 1, or 0 at the end
    cdef Slice key(self, LsmIterator* it) noexcept nogil
    cdef Slice value(self, LsmIterator* it) noexcept nogil

    cdef bint wants_freeze(self) noexcept nogil                         # the active table is over its limit
    # def freeze(self, bytes checkpoint): the active table becomes immutable, a new one takes writes;
    #     `checkpoint` is the caller's description of the state up to here.
    # def frozen_count(self) -> int
    # def flush_frozen(self): write the oldest frozen table to a file, install it and its checkpoint (background)
    # def compact(self) -> bool: merge tables when there are too many (background); False when there was nothing to do
    # checkpoint: bytes, the newest installed checkpoint (b"" in a fresh store)
    # def close(self)
