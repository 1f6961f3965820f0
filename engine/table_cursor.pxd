"""Walking a table in key order, forwards and backwards.

Thread safety: as the table's reader.
Invariants: key and value stay valid until the cursor moves; they lie in a block that the cursor holds, or in what it
has read ahead.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Slice
from everwrite.pins cimport Counted
from everwrite.table_format cimport Table


cdef struct TableCursor:
    Table* table
    size_t number                      # of the data block
    Counted* holder                    # of the block, a reference; NULL: the entries lie in `ahead` or `unpacked`
    const uint8_t* content             # of the block; NULL: not positioned
    const uint8_t* offsets
    size_t entries_size
    size_t count
    size_t position
    Slice key
    Slice value
    bint removed
    uint8_t* ahead                     # stored bytes of the blocks [first_ahead, end_ahead), unless mapped
    size_t ahead_capacity
    size_t first_ahead
    size_t end_ahead
    size_t ahead_size                  # how many bytes to read at once when the next block isn't there
    uint8_t* unpacked                  # content of a compressed block read ahead
    size_t unpacked_capacity


cdef void table_cursor_init(TableCursor* c, Table* table) noexcept nogil
cdef void table_cursor_free(TableCursor* c) noexcept nogil
# All of them: 1 standing on an entry, 0 there is none, negative error. The seeks: the first entry whose key is
# >= `key`; the last entry whose key is <= `key`, or < `key`; the last entry. `key` must not lie in the cursor's.
cdef int table_cursor_seek(TableCursor* c, BlockCache cache, Slice key) noexcept nogil
cdef int table_cursor_seek_back(TableCursor* c, BlockCache cache, Slice key, bint or_equal) noexcept nogil
cdef int table_cursor_seek_last(TableCursor* c, BlockCache cache) noexcept nogil
# They must stand on an entry.
cdef int table_cursor_next(TableCursor* c, BlockCache cache) noexcept nogil
cdef int table_cursor_previous(TableCursor* c, BlockCache cache) noexcept nogil
