"""Appending to the write-ahead log, which is also the replication log, and making it durable.

A position ("LSN") is a byte offset in the endless log; a segment file is named by the
position of its first byte. A frame is atomic: it is read back whole or not at all.

Segments are made ahead: their space is reserved, and where the file can be mapped, a frame
is stored straight into the mapping, without a system call. Elsewhere, and when each write is going to be synced
(`buffered`), frames collect in memory until `flush` writes them: a sync has to protect the pages of a mapping again
before the next store into them, which costs more than the write. Before such frames come, zeros are written to their
place: the first write to a block that is only reserved changes the file's metadata, and the sync behind it has to
wait for the file system's journal, too.

Thread safety: `reserve`, `append`, `append_parts` and `flush` are serialised by the caller (the store's
lock); all else may run beside them, on any thread. Those four do no blocking I/O but to begin a segment
that `tend` hasn't made in time, or to grow a small one.
Invariants: start <= durable <= written <= end; `written` and `durable` lie between frames;
what `older` holds beyond `sealed` isn't known to be durable.
After a failed sync, or a write that failed for another reason than space, every call returns ERR_FAILED, with the
first failure in `last_fault`. Without space calls return ERR_READ_ONLY, and nothing has changed.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.commit_queue cimport CommitQueue
from everwrite.files cimport Files
from everwrite.status cimport Fault
from everwrite.threads cimport pthread_cond_t, pthread_mutex_t
from everwrite.wal_segment cimport Segment


cdef class WalAppender:
    cdef readonly uint64_t start      # position of the oldest byte kept
    cdef readonly uint64_t end        # position after the newest appended frame (may be in memory only)
    cdef readonly uint64_t written    # survives this process up to here, and can be read from the files
    cdef readonly uint64_t durable    # known to be on the device up to here
    cdef readonly uint64_t syncs      # fdatasync calls made
    cdef readonly uint64_t sync_nanoseconds   # time spent in those
    cdef readonly uint64_t appended_bytes
    cdef readonly bint failed
    cdef public bint buffered         # small frames go by `write`, though the file may be mapped; set before appending

    cdef Files _files
    cdef bytes _folder
    cdef const char* _folder_path     # the bytes of _folder, for use without the GIL
    cdef uint64_t _store_id
    cdef uint64_t _segment_bytes
    cdef Segment _current             # the caller's of `append`, who changes it only under _state
    cdef uint64_t _limit              # offset in the current segment up to which `reserve` needs no second look
    cdef Buffer _pending              # the log from `written` to `end`, as far as it isn't in the mapping
    cdef Segment* _older              # the segments before the current one, oldest first
    cdef size_t _older_count
    cdef size_t _older_capacity
    cdef size_t _sealed               # so many of the older ones are sealed
    cdef Segment _spare               # made ahead
    cdef unsigned int _spare_number   # of its file's name
    cdef unsigned int _spares_named
    cdef bint _spare_ready
    cdef bint _spare_wanted
    cdef bint _names_changed          # a segment's name isn't durable yet
    cdef bint _syncing                # a thread is syncing
    cdef bint _closed
    cdef Fault _failure
    # Guards all from _older on, and changes of the positions; never held in a call of _files.
    cdef pthread_mutex_t _state
    cdef CommitQueue _waiters         # those who came while a thread was syncing
    cdef pthread_cond_t _work         # there is something for `tend`

    # Make sure that a frame with a payload of up to `size` bytes can be appended without failing.
    cdef int reserve(self, uint64_t size) noexcept nogil
    cdef int append(self, Slice payload) noexcept nogil    # one frame; moves `end`
    # One frame whose payload is these slices, one behind the other.
    cdef int append_parts(self, const Slice* parts, size_t count) noexcept nogil
    # Go over to a new segment, unless the current one is empty, so that `cut` can delete all before it.
    cdef int begin_segment(self) noexcept nogil
    # Memory to file; moves `written`. What was stored in a mapping is there already.
    cdef int flush(self) noexcept nogil
    # All that is written is durable when it returns OK; those who come while one syncs wait, and share the next sync.
    cdef int sync(self) noexcept nogil

    cdef int _begin(self, list starts, uint64_t end, int handle) except -1
    cdef int _fail(self, int status) noexcept nogil
    cdef int _judge(self, int status) noexcept nogil
    cdef int _refuse(self) noexcept nogil
    cdef bint _in_place(self, uint64_t size) noexcept nogil
    cdef int _make_room(self, uint64_t need) noexcept nogil
    cdef int _prepare_ahead(self, uint64_t reach) noexcept nogil
    cdef int _roll(self, uint64_t need) noexcept nogil
    cdef int _take_spare(self, uint64_t need, Segment* spare, unsigned int* number) noexcept nogil
    cdef int _make_spare(self, uint64_t need, Segment* spare, unsigned int* number) noexcept nogil
    cdef int _sync_all(self, uint64_t wanted) noexcept nogil
    cdef int _sync_held(self, uint64_t wanted) noexcept nogil
    cdef int _seal_held(self) noexcept nogil
    cdef int _sync_names_held(self) noexcept nogil
    cdef void _release_files(self) noexcept nogil
