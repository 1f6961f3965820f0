"""An ordered byte-string map: memory table, immutable sorted tables, merge iterator.

Knows nothing of clocks or data types. Keys to 132,000 bytes, values to 512 MiB.

Thread safety: every method is serialised by the caller (the store's lock); lsm_files.pxd names those that run on other
threads beside them.
"""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Slice
from everwrite.lsm_files cimport LsmFiles
from everwrite.memtable cimport Entry
from everwrite.versions cimport Version


cdef struct Pin:
    # Keeps the memory behind a returned value alive. Initialise with pin_init; pin_release is idempotent.
    void* block


cdef struct LsmIterator      # opaque


cdef void pin_init(Pin* pin) noexcept nogil
cdef void pin_release(Pin* pin) noexcept nogil


cdef class Lsm(LsmFiles):
    cdef unsigned long long noted_epoch        # of the versions when the cache was last told of their tables
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
    cdef void _note_tables(self, const Version* version) noexcept nogil
    cdef int _renew(self, LsmIterator* it) noexcept nogil
    cdef int _prepare(self, LsmIterator* it, Slice* key) noexcept nogil
    cdef int _skip_removed(self, LsmIterator* it, int status) noexcept nogil
    cdef int _skip_removed_back(self, LsmIterator* it, int status) noexcept nogil
