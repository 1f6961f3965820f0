"""Read side of table files: open, look a key up, walk by hash. Walking in key order: table_cursor.

Thread safety: an open table is immutable but for its slots; any number of threads may read it through block caches
that bypass these. The slots are the caller's to serialise, together with the block cache.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Buffer, Slice
from everwrite.files cimport Files
from everwrite.pins cimport Counted
from everwrite.table_format cimport BlockView, Table, TableEntry


cdef enum:
    TABLE_ABSENT = 0
    TABLE_FOUND = 1
    TABLE_REMOVED = 2                  # the key's newest entry here is a remove marker


cdef struct HashEntry:
    uint64_t hash
    uint64_t location


cdef struct HashCursor:
    # The entries whose keys' hashes lie in [first, last], in ascending order of the hashes. `key` and `value` lie in
    # what `holder` keeps, and stay valid until the next call.
    Table* table
    uint64_t first
    uint64_t last
    uint64_t page                      # the next one to be read
    Buffer found                       # HashEntry each: those of the page before
    size_t position
    Counted* holder
    Slice key
    Slice value
    bint removed
    uint64_t key_hash


# Opens and checks all but data blocks and index pages. `size` is what the file must have. `mapped`: it is to be read
# through a mapping where it can be.
cdef int table_open(
    Files files, const char* path, uint64_t number, uint64_t size, bint mapped, Table** out
) noexcept nogil
cdef void table_close(Files files, Table* table) noexcept nogil            # `table` is gone

# A hint that table_get follows soon.
cdef void table_prefetch(const Table* table, uint64_t key_hash) noexcept nogil
# And when that has arrived, a hint for what comes next.
cdef void table_prefetch_entry(const Table* table, uint64_t key_hash) noexcept nogil
# With TABLE_FOUND, *value lies in what *holder keeps, of which the caller gets a reference.
cdef int table_get(
    Table* table, BlockCache cache, Slice key, uint64_t key_hash, Counted** holder, Slice* value
) noexcept nogil

# The entry that a location of the index names. OK or ERR_CORRUPT.
cdef int entry_at(Table* table, const BlockView* view, uint64_t location, TableEntry* e) noexcept nogil
# The index key of a data block: > all keys of the block before, <= all of its own.
cdef Slice table_separator(const Table* table, size_t number) noexcept nogil
# The one data block that may hold `key`.
cdef size_t table_block_for(const Table* table, Slice key) noexcept nogil

cdef void hash_cursor_init(HashCursor* c, Table* table, uint64_t first, uint64_t last) noexcept nogil
cdef void hash_cursor_free(HashCursor* c) noexcept nogil
# 1 standing on an entry, 0 at the end, negative error.
cdef int hash_cursor_next(HashCursor* c, BlockCache cache) noexcept nogil
