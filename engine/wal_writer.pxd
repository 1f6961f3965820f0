"""Append side of the write-ahead log, which is also the replication log.

A position ("LSN") is a byte offset in the endless log; a segment file is named by the
position of its first byte. A frame is atomic: it is read back whole or not at all.

Thread safety: `append`, `flush` and `cut` are serialised by the caller (the store's lock);
`sync` may run beside them on other threads.
Invariants: start <= durable <= written <= end; `written` and `durable` lie between frames.
After a failed write or sync every call returns ERR_FAILED, with the first failure in `last_fault`.
"""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.files cimport Files
from everwrite.status cimport Fault

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass


cdef class WalWriter:
    cdef readonly uint64_t start      # position of the oldest byte kept
    cdef readonly uint64_t end        # position after the newest appended frame (may be in memory only)
    cdef readonly uint64_t written    # handed to the file system up to here
    cdef readonly uint64_t durable    # known to be on the device up to here
    cdef readonly uint64_t syncs      # fdatasync calls made
    cdef readonly uint64_t sync_nanoseconds   # time spent in those
    cdef readonly uint64_t appended_bytes
    cdef readonly bint failed

    cdef Files _files
    cdef bytes _folder
    cdef const char* _folder_path     # the bytes of _folder, for use without the GIL
    cdef uint64_t _store_id
    cdef uint64_t _segment_bytes
    cdef Buffer _pending              # the log from `written` to `end`
    cdef uint64_t* _starts            # of the segments, oldest first; those from _on_disk on are in _pending only
    cdef size_t _count
    cdef size_t _on_disk
    cdef size_t _capacity
    cdef int _handle                  # of segment _on_disk - 1; negative: closed
    cdef Fault _failure
    cdef pthread_mutex_t _state       # guards the positions, the failure and the list of segments
    cdef pthread_mutex_t _syncing     # held while a handle is synced or replaced; taken before _state

    cdef int append(self, Slice payload) noexcept nogil   # one frame into memory; moves `end`
    cdef int flush(self) noexcept nogil                    # memory to file; moves `written`; rolls segments
    cdef int sync(self) noexcept nogil                     # fdatasync; moves `durable` to where `written` was, or on
    # def extend(self, payloads): append each, then flush
    # def make_durable(self): sync without the GIL
    # def segments(self) -> [(start, end)]
    # def cut(self, uint64_t position): delete whole segments that end at or before `position`
    # def close(self): flush, sync, close

    cdef int _fail(self, int status) noexcept nogil
    cdef int _refuse(self) noexcept nogil
    cdef int _write(self, const char* data, uint64_t until) noexcept nogil
    cdef int _roll(self) noexcept nogil
    cdef int _reserve_segment(self) noexcept nogil
    cdef int _begin(self, list starts, uint64_t end, int handle) except -1


cdef WalWriter new_writer(Files files, bytes folder, uint64_t store_id, uint64_t segment_bytes)
