"""The store: typed keys over files, and what goes between stores.

Native callers (the server's tick) take the lock once, run many operations, let go of the
lock, then call `commit`, and only then answer.
"""

from libc.stdint cimport uint64_t

from everwrite.clock cimport Vector
from everwrite.coding cimport Buffer
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
from everwrite.inbound cimport InboundKeyspace
from everwrite.scans cimport Elements, Keys


cdef class Store(InboundKeyspace):
    cdef object _collect_states(self, bytes start, const Vector* held, Buffer* body)
    cdef uint64_t average_change_bytes(self) noexcept nogil
