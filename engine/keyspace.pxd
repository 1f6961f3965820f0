"""Keys and their states: loading, merging a change into the state and the log.

Thread safety: everything but `lock` needs the lock.
Invariants: the state is the join of all logged changes; `applied` is the prefix of each
origin's updates that the state includes; a change is logged before it can leave the store.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.change cimport Change, Part
from everwrite.clock cimport Dot, HybridClock, Vector
from everwrite.coding cimport Buffer, Slice
from everwrite.digest cimport DigestKey
from everwrite.elements cimport ElementStore
from everwrite.join cimport Seen
from everwrite.lsm cimport Pin
from everwrite.state cimport Sum
from everwrite.threads cimport pthread_mutex_t
from everwrite.wal_writer cimport WalWriter

cdef enum FrameKind:
    # The first byte of a log frame.
    FRAME_CHANGES = 1      # varint length + change, repeated: one atomic group
    FRAME_STATE = 2        # a full state without a dot, from a resync
    FRAME_CLAIM = 3        # varint count + dots: after a resync, this vector is applied
    FRAME_HORIZON = 4      # varint count + dots: from here on this vector is behind the horizon
    FRAME_PIECE = 5        # varint number + bytes: of states that are too large for a frame; see frames.pxd
    FRAME_JOIN = 6         # varint number of the pieces before it, then as FRAME_CHANGES: their states come first

cdef enum:
    # Updates that are logged together, encoded. Below what a batch may hold (batch.MAX_BATCH_BODY).
    GROUP_BYTES_LIMIT = 144 << 20

cdef enum:
    # What a change needs in the log beside its bytes, at most: the frame's kind, and its length.
    CHANGE_HEAD_BYTES = 11

cdef enum:
    # Of the length of a value that `delta` doesn't hold, where `delta` has a zero.
    LENGTH_BYTES_MAX = 4

cdef enum Merge:
    MERGED = 0
    DUPLICATE = 1          # the context covers it already


cdef struct Borrowed:
    # A part of the group that is left where it is until the group is logged.
    size_t at              # it comes before this byte of `group`
    Slice bytes


cdef class Keyspace(ElementStore):
    cdef WalWriter wal
    cdef HybridClock clock
    cdef Vector applied
    cdef uint64_t own_origin
    cdef int failed                     # sticky Status of a failure after which nothing is served
    cdef int refused                    # Status with which writes are refused while reads go on; 0: they aren't
    cdef pthread_mutex_t mutex          # recursive: what runs inside an atomic group takes it again

    cdef Pin pin
    cdef Buffer expiry_key
    cdef Buffer delta
    # Of a local update that writes a large register: the value, left where it is, and where in `delta` its length
    # stands, which is 0 there.
    cdef Slice large
    cdef size_t large_at
    cdef Buffer group                   # the frame that is being put together, without what is borrowed
    cdef Borrowed* borrowed
    cdef size_t borrowed_count
    cdef size_t borrowed_capacity
    cdef size_t borrowed_bytes
    cdef Slice* frame                   # room for the pieces of the frame: two for each that is borrowed, and one
    cdef bint grouping
    # Set by whoever has begun a batch while the bytes given to operations stay where they are until it ends.
    cdef bint values_stay
    cdef char text[32]                  # a counter as decimal text

    cdef Sum* leaves                    # of the Merkle tree over users' keys; see digest.pxd
    cdef uint64_t live_keys
    cdef uint64_t local_changes
    cdef uint64_t applied_changes
    cdef uint64_t duplicate_changes
    cdef uint64_t user_change_count
    cdef uint64_t conflicts_lww
    cdef uint64_t conflicts_type
    cdef int64_t next_deadline          # no expiry is due before this; 0: unknown

    cdef void lock(self) noexcept nogil
    cdef bint trylock(self) noexcept nogil                                 # whether it has the lock now
    cdef void unlock(self) noexcept nogil
    cdef uint64_t last_timestamp(self) noexcept nogil
    cdef int64_t now_ms(self) noexcept nogil
    cdef void batch_begin(self) noexcept nogil
    cdef int batch_end(self) noexcept nogil

    cdef int load(self, int space, Slice key) noexcept nogil              # 1 an entry exists, 0 not
    # Hints that an operation on a user's key follows soon; see Lsm.prefetch.
    cdef uint64_t prefetch(self, Slice key) noexcept nogil
    cdef void prefetch_entry(self, uint64_t key_hash) noexcept nogil

    # A local update of the loaded key: delta_begin, put_* parts into `delta`, delta_end.
    cdef int delta_begin(self) noexcept nogil
    cdef int delta_end(self) noexcept nogil

    # Whether the loaded key's state includes this update: the prefixes that are applied count for every key.
    cdef bint includes(self, uint64_t origin, uint64_t timestamp) noexcept nogil
    cdef int guard(self, const Change* change) noexcept nogil             # OK, ERR_GUARD, or DUPLICATE
    cdef int merge(self, const Change* change) noexcept nogil
    cdef int apply_change(self, Slice body) noexcept nogil                # load, guard, merge; no logging
    # Before anything is merged: may updates be made, and does the log have room for a group of changes with `size`
    # bytes more, length fields included? OK, and logging them can't fail; or the status to refuse with.
    cdef int reserve(self, uint64_t size) noexcept nogil
    cdef int log_change(self, Slice body) noexcept nogil
    cdef int log_group(self) noexcept nogil
    cdef void drop_group(self) noexcept nogil                             # unlogged
    cdef int group_put(self, Slice bytes) noexcept nogil                  # borrowed when it is large; 0 or ERR_MEMORY
    cdef int _log_large(self) noexcept nogil
    cdef int put_large_register(self, Slice value) noexcept nogil
    cdef int _logged(self, int status) noexcept nogil

    cdef int _merge_delta(self, const Change* change) noexcept nogil
    cdef int _delta_element(self, const Change* change, const Part* part, const Seen* seen) noexcept nogil
    cdef int _merge_full(self, const Change* change) noexcept nogil
    cdef int _store_head(self, int kind_before, int64_t deadline_before, DigestKey place, Sum item) noexcept nogil
    cdef int _index_expiry(self, int64_t before, int64_t after) noexcept nogil
    cdef int _fail(self, int status) noexcept nogil
