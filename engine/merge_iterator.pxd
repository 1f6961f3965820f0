"""One ordered view over several ordered sources, both ways; of equal keys the newest source's entry wins.

Removed entries are shown as such: it is the caller who knows whether anything older remains to be hidden.

Thread safety: none of its own. The sources must outlive the merge.
Invariant: order[0 .. live) holds the sources that are not at their end, by key (descending while `backwards`), then
age.
"""

from libc.stdint cimport uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Buffer, Slice
from everwrite.memtable cimport Memtable, MemtableCursor
from everwrite.table_cursor cimport TableCursor
from everwrite.table_format cimport Table


cdef struct Source:
    size_t age                         # 0 is the newest
    uint64_t head                      # of the key, to compare first
    Slice key                          # where it stands
    MemtableCursor memory              # one of these two: its table is not NULL
    TableCursor file


cdef struct Merge:
    Source* sources
    size_t count
    Source** order
    size_t live
    bint backwards
    Buffer turn                        # the key at which the direction was changed


cdef int merge_init(Merge* m, size_t capacity) noexcept nogil              # OK or ERR_MEMORY
cdef void merge_free(Merge* m) noexcept nogil
# Sources are added newest first, at most `capacity` of them, before the first seek.
cdef void merge_add_memtable(Merge* m, Memtable* t) noexcept nogil
cdef void merge_add_table(Merge* m, Table* t) noexcept nogil

# All of them: 1 standing on an entry, 0 there is none, negative error. The seeks: the first entry whose key is
# >= `key`; the last whose key is <= `key`, or < `key`; the last of all. `key` must not lie in the merge's sources.
cdef int merge_seek(Merge* m, BlockCache cache, Slice key) noexcept nogil
cdef int merge_seek_back(Merge* m, BlockCache cache, Slice key, bint or_equal) noexcept nogil
cdef int merge_seek_last(Merge* m, BlockCache cache) noexcept nogil
# They leave all entries of the current key behind.
cdef int merge_next(Merge* m, BlockCache cache) noexcept nogil
cdef int merge_previous(Merge* m, BlockCache cache) noexcept nogil
# The newest source, a memory table, got new keys: find its place again. Must stand on an entry.
cdef int merge_refresh_newest(Merge* m, BlockCache cache) noexcept nogil

cdef Slice merge_key(const Merge* m) noexcept nogil
cdef Slice merge_value(const Merge* m) noexcept nogil
cdef bint merge_removed(const Merge* m) noexcept nogil
