"""Iteration over elements and keys, and the removal of expired keys."""

from libc.stdint cimport int64_t

from everwrite.coding cimport Slice
from everwrite.sequences cimport SequencedKeyspace
from everwrite.state cimport Element, Head
from everwrite.walk cimport Walk


cdef struct Elements:
    # An open iteration over a set or map: see elements_open.
    Walk walk
    Element element
    char text[32]


cdef struct Keys:
    # An open iteration over keys: see keys_open.
    Walk walk
    Head head
    int64_t now


cdef class ScannedKeyspace(SequencedKeyspace):
    cdef int _expire_now(self) noexcept nogil

    # Live elements of a set or map in byte order. Returns 1 (*it is open), 0 (no such key, *it is NULL), or an error.
    cdef int elements_open(self, Slice key, int kind, Elements** it) noexcept nogil
    cdef int elements_open_from(self, Slice key, int kind, Slice start, Elements** it) noexcept nogil
    cdef int elements_next(self, Elements* it, Slice* name, Slice* value) noexcept nogil   # 1, 0 at the end
    cdef void elements_close(self, Elements* it) noexcept nogil

    # Live keys in byte order, from the first that is >= start. The lock is held from open to close.
    cdef Keys* keys_open(self, Slice start) noexcept nogil                 # NULL when out of memory
    cdef int keys_next(self, Keys* it, Slice* key, int* kind) noexcept nogil     # 1, 0 at the end
    cdef void keys_close(self, Keys* it) noexcept nogil

    # Remove up to `limit` keys that are past their deadline; returns how many were looked at.
    cdef int op_reap(self, int limit) noexcept nogil
    cdef bint reap_due(self) noexcept nogil
