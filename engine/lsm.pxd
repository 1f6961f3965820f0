"""An ordered byte-string map: memory table, immutable sorted tables, merge iterator, flush, compaction.

Knows nothing of clocks or data types. Keys to 70,000 bytes, values to 64 MiB + 64 KiB.

Thread safety: every method is serialised by the caller (the store's lock), except
`flush_frozen`, `compact`, `frozen_count` and `statistics`, which run on other threads beside
them (and beside each other).
Invariants: a version is the immutable list of what lies below the active table, newest
first; whoever holds a reference may read all of it. Only `freeze` changes `active`. A table
file is in the manifest before a version shows it, and leaves the manifest before it is removed.
"""

from libc.stdint cimport uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Slice
from everwrite.files cimport Files
from everwrite.memtable cimport Memtable
from everwrite.table_reader cimport Table
from everwrite.threads cimport pthread_mutex_t


cdef struct Pin:
    # Keeps the memory behind a returned value alive. Initialise with pin_init; pin_release is idempotent.
    void* block


cdef struct Version:
    int refs                           # under the Lsm's mutex
    Memtable** frozen                  # newest first, a reference each
    size_t frozen_count
    Table** tables                     # newest first, a reference each; all older than the frozen ones
    size_t table_count


cdef struct Exchange:
    # How a version differs from the one before it.
    Memtable* fresh                    # NULL, or the new active table: the old one becomes frozen
    size_t flushed                     # 1: the oldest frozen table goes
    size_t first                       # tables[first .. first + merged) go,
    size_t merged
    Table* table                       # NULL, or what takes their place


cdef struct LsmIterator      # opaque


cdef void pin_init(Pin* pin) noexcept nogil
cdef void pin_release(Pin* pin) noexcept nogil


cdef class Lsm:
    cdef Memtable* active
    cdef Version* version              # read and replaced under `mutex`
    cdef Table* graveyard              # tables that no version holds any more
    cdef pthread_mutex_t mutex         # guards these two and all counts of references; held for a few instructions
    cdef unsigned long long epoch      # changes with `version`
    cdef uint64_t seed
    cdef size_t memtable_bytes
    cdef Files files
    cdef BlockCache cache
    cdef str folder
    cdef readonly bytes checkpoint     # the newest installed one; b"" in a fresh store
    cdef bint closed
    # One flush and one compaction may run at once; what they share is under `manifest_lock`.
    cdef object flush_lock
    cdef object compact_lock
    cdef object manifest_lock
    cdef object manifest               # what is on the disk
    cdef object frozen_checkpoints     # one for each frozen table, oldest first
    cdef readonly uint64_t next_number
    cdef readonly uint64_t flushes
    cdef readonly uint64_t compactions

    # 1 found, 0 absent, negative error. *value stays valid until the pin is released, but,
    # when it lies in the active memory table, only until the next put or remove of the same key or the next freeze.
    cdef int get(self, Slice key, Pin* pin, Slice* value) noexcept nogil
    cdef int put(self, Slice key, Slice value) noexcept nogil
    cdef int remove(self, Slice key) noexcept nogil

    # Iterators see puts and removes that happen while they are open (in key order, ahead of them);
    # removing or replacing the entry that an iterator stands on is allowed, its key() stays valid
    # until the next seek or next, its value() doesn't.
    cdef LsmIterator* iterator(self) noexcept nogil                     # NULL when out of memory
    cdef void iterator_free(self, LsmIterator* it) noexcept nogil
    cdef int seek(self, LsmIterator* it, Slice key) noexcept nogil      # first entry >= key: 1, none: 0, negative error
    cdef int next(self, LsmIterator* it) noexcept nogil                 # 1, or 0 at the end, negative error
    cdef Slice key(self, LsmIterator* it) noexcept nogil
    cdef Slice value(self, LsmIterator* it) noexcept nogil

    cdef bint wants_freeze(self) noexcept nogil                         # the active table is over its limit

    cdef int _get_older(self, uint64_t key_hash, Slice key, Pin* pin, Slice* value) noexcept nogil
    cdef int _get_from_tables(self, Version* version, Slice key, Pin* pin, Slice* value) noexcept nogil
    cdef Version* _hold_version(self) noexcept nogil
    cdef void _release_version(self, Version* version) noexcept nogil
    cdef int _exchange(self, Exchange* change) noexcept nogil
    cdef void _bury(self) noexcept nogil
    cdef int _renew(self, LsmIterator* it) noexcept nogil
    cdef int _skip_removed(self, LsmIterator* it, int status) noexcept nogil
    cdef Table* _open_table(self, object info) except? NULL
    cdef object _install(self, object info, tuple tables, object checkpoint, Exchange* change)
    # Python level:
    # Lsm(files, folder, *, memtable_bytes, block_cache_bytes)
    # freeze(checkpoint: bytes): the active table becomes immutable, a new one takes writes;
    #     `checkpoint` is the caller's description of the state up to here.
    # frozen_count() -> int
    # flush_frozen() -> bool: write the oldest frozen table to a file, install it and its checkpoint (background)
    # compact() -> bool: merge tables when there are too many (background); False when there was nothing to do
    # statistics() -> dict[str, int]
    # close(): what wasn't flushed is gone; it is in the caller's log
