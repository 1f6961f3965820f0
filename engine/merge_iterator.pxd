"""One ordered view over several ordered sources; of equal keys the newest source's entry wins.

Removed entries are shown as such: it is the caller who knows whether anything older remains to be hidden.

Thread safety: none of its own. The sources must outlive the merge.
Invariant: order[0 .. live) holds the sources that are not at their end, by key, then age.
"""

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Slice
from everwrite.memtable cimport Memtable, MemtableCursor
from everwrite.table_reader cimport Table, TableCursor


cdef struct Source:
    size_t age                         # 0 is the newest
    Slice key                          # where it stands
    MemtableCursor memory              # one of these two: its table is not NULL
    TableCursor file


cdef struct Merge:
    Source* sources
    size_t count
    Source** order
    size_t live


cdef int merge_init(Merge* m, size_t capacity) noexcept nogil              # OK or ERR_MEMORY
cdef void merge_free(Merge* m) noexcept nogil
# Sources are added newest first, at most `capacity` of them, before the first seek.
cdef void merge_add_memtable(Merge* m, Memtable* t) noexcept nogil
cdef void merge_add_table(Merge* m, Table* t) noexcept nogil

# Both: 1 standing on an entry, 0 at the end, negative error. merge_next leaves all entries of the current key behind.
cdef int merge_seek(Merge* m, BlockCache cache, Slice key) noexcept nogil
cdef int merge_next(Merge* m, BlockCache cache) noexcept nogil
# The newest source, a memory table, got new keys: find its place again. Must stand on an entry.
cdef int merge_refresh_newest(Merge* m, BlockCache cache) noexcept nogil

cdef Slice merge_key(const Merge* m) noexcept nogil
cdef Slice merge_value(const Merge* m) noexcept nogil
cdef bint merge_removed(const Merge* m) noexcept nogil
