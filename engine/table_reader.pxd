"""Read side of table files.

Thread safety: an open table is immutable; any number of threads may read it. What is shared
is the block cache, and that is serialised by the caller.
"""

from libc.stdint cimport uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Buffer, Reader, Slice
from everwrite.files cimport Files
from everwrite.table_format cimport Block


cdef enum:
    TABLE_ABSENT = 0
    TABLE_FOUND = 1
    TABLE_REMOVED = 2                  # the key's newest entry here is a remove marker


cdef struct Table:
    Table* next                        # in the list of tables to be closed
    int refs                           # by versions; under the mutex of the Lsm
    bint obsolete                      # no version will hold it again: the file goes with the last reference
    int file
    uint64_t number
    uint64_t size
    uint64_t entries                   # remove markers included
    uint64_t removed
    char* path
    Block* index
    uint64_t* heads                    # of the index keys behind their first `index_skip` bytes, which all share;
    size_t index_skip                  # the first index key is empty, and is left out of both
    Block* filter
    Block* properties
    Slice smallest                     # keys, in `properties`
    Slice largest


cdef struct TableCursor:
    Table* table
    size_t index_position
    Block* block                       # a reference; NULL: not positioned
    Reader rest                        # the entries behind the current one
    Buffer key
    Slice value
    bint removed


# Opens and checks all but the data blocks. `size` is what the file must have.
cdef int table_open(Files files, const char* path, uint64_t number, uint64_t size, Table** out) noexcept nogil
cdef void table_close(Files files, Table* table) noexcept nogil            # `table` is gone

# With TABLE_FOUND, *value lies in *block, of which the caller gets a reference.
cdef int table_get(
    Table* table, BlockCache cache, Slice key, uint64_t filter_hash, Block** block, Slice* value
) noexcept nogil

cdef void table_cursor_init(TableCursor* c, Table* table) noexcept nogil
cdef void table_cursor_free(TableCursor* c) noexcept nogil
# Both: 1 standing on an entry, 0 at the end, negative error.
cdef int table_cursor_seek(TableCursor* c, BlockCache cache, Slice key) noexcept nogil
cdef int table_cursor_next(TableCursor* c, BlockCache cache) noexcept nogil
