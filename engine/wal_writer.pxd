"""A log's writer: appending as its base class does it, and what goes on beside: making segments ahead, sealing full
ones, cutting old ones off, closing.

Thread safety: all may run beside the appending, on any thread; `tend` on one thread at a time.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.files cimport Files
from everwrite.wal_appender cimport WalAppender


cdef class WalWriter(WalAppender):
    # Wait up to so long for work, then do it: seal full segments, make the next one ahead.
    cdef int tend_for(self, int64_t milliseconds) noexcept nogil
    # def extend(self, payloads): append each, then flush
    # def make_durable(self): sync without the GIL
    # def tend(self, milliseconds=0)
    # def segments(self) -> [(start, end)]
    # def cut(self, uint64_t position): delete whole segments that end at or before `position`
    # def close(self): flush, sync, cut the last segment to its length, close
    # def dismiss(self): nobody waits in `tend` any more
    # def abandon(self, forked=False): close the files as they are


cdef WalWriter new_writer(Files files, bytes folder, uint64_t store_id, uint64_t segment_bytes)
