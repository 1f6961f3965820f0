"""Read side of the write-ahead log."""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.files cimport Files


cdef class WalReader:
    # Reads frames in order from `position`, never beyond the limit that each call names.
    cdef readonly uint64_t position   # of the next frame

    # 1: *payload is the next frame (borrowed until the next call), `position` moved behind it.
    # 0: no whole frame below `limit`. Negative: ERR_CORRUPT with segment and offset, or ERR_IO.
    cdef int next(self, uint64_t limit, Slice* payload) noexcept nogil
