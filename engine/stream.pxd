"""A cursor over the log for one receiver."""

from libc.stdint cimport uint64_t

from everwrite.change cimport Change
from everwrite.clock cimport Vector
from everwrite.coding cimport Buffer, Slice
from everwrite.store cimport Store
from everwrite.wal_reader cimport WalReader


cdef class Stream:
    cdef Store store
    cdef WalReader reader
    cdef Vector handed_out
    cdef object store_ids               # set of int, or None for all
    cdef uint64_t* wanted
    cdef size_t wanted_count
    cdef bint everything
    cdef Buffer body
    cdef readonly uint64_t changes      # handed out so far
    cdef readonly uint64_t last_timestamp
    cdef bint closed
    cdef object failure                 # what went wrong while the GIL was held within
    cdef dict shown                     # keys whose states went ahead of a change: the contexts of these
    cdef bint pushed                    # a state is in `body`
    cdef bint holding                   # something waits
    cdef list waiting                   # (group, count): parts of large states, then the group that builds on them
    cdef uint64_t frame_origin          # of the log frame that was read last, and where the receiver stood before it
    cdef uint64_t frame_after

    cdef bint _wants(self, uint64_t origin) noexcept nogil
    cdef int _take(self, Slice payload, size_t* taken) noexcept nogil
    cdef bint _builds_on_more(self, const Change* change) noexcept nogil
    cdef int _push_state(self, const Change* change, Buffer* group) except -1
    cdef uint64_t _limit(self) noexcept nogil
