"""Append side of the write-ahead log, which is also the replication log.

A position ("LSN") is a byte offset in the endless log; a segment file is named by the
position of its first byte. A frame is atomic: it is read back whole or not at all.

Thread safety: `append`, `flush` and `roll` are serialised by the caller (the store's lock);
`sync` may run beside them on another thread.
Invariants: start <= durable <= written <= end.
"""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.files cimport Files


cdef class WalWriter:
    cdef readonly uint64_t start      # position of the oldest byte kept
    cdef readonly uint64_t end        # position after the newest appended frame (may be in memory only)
    cdef readonly uint64_t written    # handed to the file system up to here
    cdef readonly uint64_t durable    # known to be on the device up to here
    cdef readonly uint64_t syncs      # fdatasync calls made
    cdef readonly uint64_t appended_bytes

    cdef int append(self, Slice payload) noexcept nogil   # one frame into memory; moves `end`
    cdef int flush(self) noexcept nogil                    # memory to file; moves `written`; rolls segments
    cdef int sync(self) noexcept nogil                     # fdatasync; moves `durable` to what `written` was at the call
    # def cut(self, uint64_t position): delete whole segments that end at or before `position`
    # def close(self): flush, sync, close
