"""The store: typed keys over files, with recovery, durability, replication streams and threads.

Native callers (the server's tick) take the lock once, run many operations, let go of the
lock, then call `commit`, and only then answer.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

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
    Elements,
    Keys,
    Kind,
    SetFlag,
    TypedKeyspace,
)
from everwrite.keyspace cimport pthread_mutex_t
from everwrite.wal_reader cimport WalReader


cdef class Store(TypedKeyspace):
    cdef object __weakref__
    cdef readonly object path
    cdef readonly object durability
    cdef readonly uint64_t store_id
    cdef object files
    cdef object lock_file
    cdef object identity
    cdef bint sync_always
    cdef bint closed
    cdef pthread_mutex_t sync_mutex     # one fdatasync at a time; taken before `mutex` never after it
    cdef uint64_t clock_bound           # no timestamp at or beyond it has been exposed
    cdef uint64_t log_keep_bytes
    cdef uint64_t memtable_bytes
    cdef uint64_t frozen_at             # log position of the newest freeze
    cdef list log_index                 # (position, applied vector there), ascending; under the lock
    cdef dict durable_vector
    cdef object thread
    cdef object wake
    cdef object failure                 # the exception behind a sticky failure
    cdef dict resync                    # states of a resync received so far: id -> indexes
    cdef int64_t last_sync_ms
    cdef uint64_t pulls
    cdef uint64_t resyncs
    cdef uint64_t torn_bytes            # cut off the log's end at the last open

    # Make what was appended reach the log file, and the device when durability is `always`.
    # Call without the lock. After a failure the store stays failed: every later call returns ERR_FAILED.
    cdef int commit(self) noexcept nogil
    cdef int _write_log(self, bint sync) noexcept nogil
    cdef int _replay(self, WalReader reader) except -1
    cdef int _replay_frame(self, Slice payload) noexcept nogil
    cdef object _freeze(self)
    cdef object _note_position(self)
    cdef object _collect_states(self, bytes start, const Vector* held, Buffer* body)
    cdef uint64_t average_change_bytes(self) noexcept nogil
    cdef int _check(self, int status) except? -1
    cdef int _checked_commit(self, int status) except? -1
    cdef int _validate(
        self, int states, const uint8_t* data, size_t size, uint64_t count, uint64_t* newest
    ) noexcept nogil
    cdef int _apply_groups(
        self, const uint8_t* data, size_t size, Slice* need, uint64_t* origin, uint64_t* timestamp
    ) noexcept nogil
    cdef int _apply_states(self, const uint8_t* data, size_t size) noexcept nogil
