"""Iteration over registers and counters for Python.

A scan copies a chunk of keys and values at a time, under one acquisition of the lock, and
makes Python objects of them one by one, without it. Chunks grow, so that a short range costs
little and a long one few acquisitions.
Thread safety: a scan is for one thread at a time; another one that comes in between is refused.
"""

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.lsm cimport LsmIterator
from everwrite.state cimport Head
from everwrite.store cimport Store


cdef class Scan:
    cdef Store store
    cdef LsmIterator* it                # NULL before the first chunk and after the last
    cdef Buffer lower                   # entry key: the first that belongs to the range
    cdef Buffer upper                   # entry key: the first behind the range
    cdef Buffer chunk                   # u32 key size, u32 value size, key, value; repeated
    cdef size_t at                      # of the next item in it
    cdef Buffer resume                  # the entry key that was looked at last; empty before the first
    cdef bint standing                  # the iterator stands on it
    cdef bint waits                     # what it reads isn't all in memory: without the GIL
    cdef Head head
    cdef size_t chunk_items
    cdef int64_t left                   # items that may still be yielded; negative: any number
    cdef bint ended
    cdef bint busy                      # a chunk is being read
    cdef bint reverse
    cdef bint with_keys
    cdef bint with_values
    cdef PyObject* pair                 # the tuple that was yielded last: used again when nobody else holds it

    cdef int fill(self) except -1
    cdef int read_chunk(self) noexcept nogil
    cdef int seek(self) noexcept nogil
    cdef int take(self, Slice key, int64_t now_ms) noexcept nogil
    cdef void finish(self) noexcept


cdef Scan open_scan(
    Store store, object prefix, object start, object stop, bint reverse, bint with_keys, bint with_values,
    int64_t limit
)
# The number of registers and counters; with a limit it counts no further.
cdef int64_t count_strings(Store store, int64_t limit) except -1
