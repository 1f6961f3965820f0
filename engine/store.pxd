"""The store: typed keys over files, and what goes between stores.

Native callers (the server's tick) take the lock once, run many operations, let go of the
lock, then call `commit`, and only then answer.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.clock cimport Vector
from everwrite.coding cimport Buffer, Slice
from everwrite.datatypes cimport (
    KIND_MAP,
    KIND_NONE,
    KIND_SET,
    KIND_STRING,
    SET_KEEPTTL,
    SET_NX,
    SET_WANT_OLD,
    SET_XX,
    Kind,
    SetFlag,
)
from everwrite.durable cimport DurableKeyspace
from everwrite.scans cimport Elements, Keys


cdef class Store(DurableKeyspace):
    cdef dict resync                    # states of a resync received so far: id -> indexes
    cdef uint64_t pulls
    cdef uint64_t resyncs

    cdef object _collect_states(self, bytes start, const Vector* held, Buffer* body)
    cdef uint64_t average_change_bytes(self) noexcept nogil
    cdef int _validate(
        self, int states, const uint8_t* data, size_t size, uint64_t count, uint64_t* newest
    ) noexcept nogil
    cdef int _apply_groups(
        self, const uint8_t* data, size_t size, Slice* need, uint64_t* origin, uint64_t* timestamp
    ) noexcept nogil
    cdef int _apply_states(self, const uint8_t* data, size_t size) noexcept nogil
