"""Files under the keys: opening, recovery, durability, maintenance, closing.

Invariants: a table never knows more than the log; what `commit` acknowledged is in the log
file, and with durability `always` on the device. After a failed sync, or another failure of the disk that may have
lost something, no write is accepted any more; what memory and tables hold is read on. Without space on the
disk writes are refused until there is some.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.frames cimport FramedKeyspace
from everwrite.wal_reader cimport WalReader


cdef enum:
    # Memory tables that snapshots froze: so many are flushed by the next round of maintenance, and so many at once.
    SET_ASIDE_MAX = 8
    SET_ASIDE_URGENT = 256


cdef class DurableKeyspace(FramedKeyspace):
    cdef object __weakref__
    cdef readonly object durability
    cdef readonly uint64_t store_id
    cdef readonly object files
    cdef object lock_file
    cdef readonly object identity
    cdef bint sync_always
    cdef bint forked                    # this is the child of a fork, whose parent has the store open
    cdef uint64_t clock_bound           # no timestamp at or beyond it has been exposed
    cdef uint64_t log_keep_bytes
    cdef uint64_t memtable_bytes
    cdef uint64_t frozen_at             # log position of the newest freeze
    cdef list log_index                 # (position, applied vector there), ascending; under the lock
    cdef dict durable_vector
    cdef object thread
    cdef object wake
    cdef object compaction_thread
    cdef object compaction_wake
    cdef object log_thread
    cdef object snapshots               # a WeakSet of FrozenStore; under the lock
    cdef int64_t last_sync_ms
    cdef uint64_t torn_bytes            # cut off the log's end at the last open

    # Make what was appended reach the log file, and the device when durability is `always`.
    # Call without the lock. After a failure every later call returns ERR_FAILED.
    cdef int commit(self) noexcept nogil
    # The same for a caller that holds the lock, which is let go: one acquisition for an operation and its commit.
    cdef int commit_held(self) noexcept nogil
    cdef int _tend(self) noexcept nogil
    cdef void _remember_status(self, int status) noexcept nogil
    cdef int _write_log(self, bint sync) noexcept nogil
    cdef int _replay(self, WalReader reader) except -1
    cdef object _freeze(self)
    cdef object _note_position(self)
    cdef int _checked_commit(self, int status) except? -1
    cdef int _checked_release(self, int status) except? -1
    cdef int _settle(self, int status, int committed) except? -1
