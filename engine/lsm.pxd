"""An ordered byte-string map: memory table, immutable sorted tables, merge iterator, flush, compaction.

Knows nothing of clocks or data types. Keys to 132,000 bytes, values to 512 MiB.

Thread safety: every method is serialised by the caller (the store's lock), except
`flush_frozen`, `compact`, `frozen_count` and `statistics`, which run on other threads beside
them (and beside each other).
Invariants: only `freeze` and `close` change `active`. A table file is in the manifest before a
version lists it, and leaves the manifest before it is removed.
"""

from libc.stdint cimport uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Slice
from everwrite.files cimport Files
from everwrite.memtable cimport Entry, Memtable
from everwrite.table_format cimport Table
from everwrite.versions cimport Exchange, Version, Versions


cdef struct Pin:
    # Keeps the memory behind a returned value alive. Initialise with pin_init; pin_release is idempotent.
    void* block


cdef struct LsmIterator      # opaque


cdef void pin_init(Pin* pin) noexcept nogil
cdef void pin_release(Pin* pin) noexcept nogil


cdef class Lsm:
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
    cdef unsigned long long noted_epoch        # of the versions when the cache was last told of their tables
    # A version that was held for a read and is kept for the next one, so that a read needn't take the versions' mutex.
    # Whoever exchanges versions takes it away. `kept_epoch` is the newest version's when it was held.
    cdef void* kept
    cdef unsigned long long kept_epoch
    cdef bint keeps
    cdef uint64_t ahead[64]                    # fixed hashes of keys that are being fetched, by their seeded hashes

    # 1 found, 0 absent, negative error. *value stays valid until the pin is released, but,
    # when it lies in the active memory table, only until the next put or remove of the same key or the next freeze.
    cdef int get(self, Slice key, Pin* pin, Slice* value) noexcept nogil
    # The same for a caller that has the hashes: with this map's seed, and, unless it is 0 for unknown, with that of the
    # tables. *e becomes the entry in the active memory table, or NULL.
    cdef int find(
        self, Slice key, uint64_t key_hash, uint64_t fixed_hash, Entry** e, Pin* pin, Slice* value
    ) noexcept nogil
    # As get, of what lies below the active memory table.
    cdef int get_below(self, Slice key, Pin* pin, Slice* value) noexcept nogil
    # While set, what is looked up is going to be written: its block needs no copy in the cache.
    cdef void set_overwriting(self, bint value) noexcept nogil
    # While `cached_only`, get, seek and next answer Status.WOULD_BLOCK instead of waiting for a device, so that a
    # caller may hold the GIL for what is in memory. An iterator must then be sought again.
    cdef void set_cached_only(self, bint value) noexcept nogil
    # Hints that a get or put of the key follows soon: `prefetch` first, its result to `prefetch_entry` a little later.
    cdef uint64_t prefetch(self, Slice key) noexcept nogil
    cdef void prefetch_entry(self, uint64_t key_hash) noexcept nogil
    cdef int put(self, Slice key, Slice value) noexcept nogil
    cdef int put_parts(self, Slice key, Slice head, Slice tail) noexcept nogil      # see memtable_put_parts
    cdef int remove(self, Slice key) noexcept nogil

    # Iterators see puts and removes that happen while they are open (in key order, ahead of them);
    # removing or replacing the entry that an iterator stands on is allowed, its key() stays valid
    # until the next seek or next, its value() doesn't.
    cdef LsmIterator* iterator(self) noexcept nogil                     # NULL when out of memory
    cdef void iterator_free(self, LsmIterator* it) noexcept nogil
    # All of them: 1 standing on an entry, 0 there is none, negative error. A key given may be what key() returned.
    cdef int seek(self, LsmIterator* it, Slice key) noexcept nogil      # first entry >= key
    cdef int seek_for_prev(self, LsmIterator* it, Slice key) noexcept nogil     # last entry <= key
    cdef int seek_last(self, LsmIterator* it) noexcept nogil
    # They may be mixed; turning round costs a seek. 0 when the iterator stood on nothing.
    cdef int next(self, LsmIterator* it) noexcept nogil
    cdef int prev(self, LsmIterator* it) noexcept nogil
    cdef Slice key(self, LsmIterator* it) noexcept nogil
    cdef Slice value(self, LsmIterator* it) noexcept nogil

    cdef bint wants_freeze(self) noexcept nogil                         # the active table is over its limit

    cdef int _find_below(
        self, Version* version, Slice key, uint64_t key_hash, uint64_t fixed_hash, Pin* pin, Slice* value
    ) noexcept nogil
    cdef int _get_from_tables(
        self, Version* version, Slice key, uint64_t key_hash, Pin* pin, Slice* value
    ) noexcept nogil
    cdef Version* _take_filled(self) noexcept nogil
    cdef Version* _take_version(self) noexcept nogil
    cdef void _return_version(self, Version* version) noexcept nogil
    cdef void _drop_kept(self) noexcept nogil
    cdef void _note_tables(self, const Version* version) noexcept nogil
    cdef int _renew(self, LsmIterator* it) noexcept nogil
    cdef int _prepare(self, LsmIterator* it, Slice* key) noexcept nogil
    cdef int _skip_removed(self, LsmIterator* it, int status) noexcept nogil
    cdef int _skip_removed_back(self, LsmIterator* it, int status) noexcept nogil
    cdef Table* _open_table(self, object info) except? NULL
    cdef object _install(self, object info, tuple tables, object checkpoint, Exchange* change)
    # Python level:
    # Lsm(files, folder, *, memtable_bytes, block_cache_bytes)
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
