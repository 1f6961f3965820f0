"""The files of a map: manifest, freezing, flushing, compacting.

Thread safety: `freeze` and `close` are serialised with the map's methods by the caller (the store's lock);
`flush_frozen`, `compact`, `compact_all`, `frozen_count` and `statistics` run on other threads beside these (and beside
each other).
Invariants: only `freeze` and `close` change `active`. A table file is in the manifest before a
version lists it, and leaves the manifest before it is removed.
"""

from libc.stdint cimport uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.files cimport Files
from everwrite.memtable cimport Memtable
from everwrite.table_format cimport Table
from everwrite.versions cimport Exchange, Versions


cdef class LsmFiles:
    cdef Memtable* active
    cdef Versions versions             # what lies below it
    cdef uint64_t seed
    cdef uint64_t empty_epoch          # of the versions while they list nothing: nothing older to look for
    cdef size_t memtable_bytes
    cdef bint mapped_reads
    cdef size_t set_aside              # so many of the newest frozen tables were frozen without a checkpoint
    cdef size_t set_aside_bytes
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
    cdef dict collected                # the horizon that the newest merge of all tables went by
    cdef object frozen_checkpoints     # one for each frozen table, oldest first; None: it waits for the next one
    cdef readonly uint64_t next_number
    cdef readonly uint64_t flushes
    cdef readonly uint64_t compactions
    cdef readonly uint64_t bytes_put           # keys and values handed to put and remove
    cdef readonly uint64_t bytes_flushed       # of the files that flushes have written
    cdef readonly uint64_t bytes_compacted     # of those that compactions have
    # A version that was held for a read and is kept for the next one, so that a read needn't take the versions' mutex.
    # Whoever exchanges versions takes it away. `kept_epoch` is the newest version's when it was held.
    cdef void* kept
    cdef unsigned long long kept_epoch
    cdef bint keeps

    cdef void _drop_kept(self) noexcept nogil
    cdef Table* _open_table(self, object info) except? NULL
    cdef object _install(self, object info, tuple tables, object checkpoint, Exchange* change)
    # Python level:
    # LsmFiles(files, folder, *, memtable_bytes, block_cache_bytes, mapped_reads)
    # freeze(checkpoint: bytes | None): the active table becomes immutable, a new one takes writes;
    #     `checkpoint` is the caller's description of the state up to here; None: flushed with the next that has one.
    # frozen_count() -> int; flushable_bytes() -> int; set_aside_count() -> int: frozen since the newest checkpoint
    # flush_frozen() -> bool: write the oldest frozen tables, up to the first with a checkpoint, to one file,
    #     install it and the checkpoint (background)
    # compact() -> bool: merge tables when there are too many (background); False when there was nothing to do
    # compact_all() -> bool: merge all tables into one; False when there was nothing to do
    # collect(): close, and remove where they were merged, the table files that nobody reads any more
    # statistics() -> dict[str, int]
    # close(): what wasn't flushed is gone; it is in the caller's log
