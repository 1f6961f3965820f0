"""Write side of a table's hash index: places of entries become pages, in the order of their keys' hashes."""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Buffer


cdef struct IndexEntry:
    uint64_t hash
    uint64_t location


cdef struct IndexWriter:
    Buffer entries                     # IndexEntry each
    IndexEntry* sorted
    uint64_t* starts                   # of each home line's entries in `sorted`
    uint64_t lines
    size_t line_entries
    size_t location_bits
    uint64_t page_count
    Buffer page                        # the newest one made


cdef void index_init(IndexWriter* w) noexcept nogil
cdef void index_free(IndexWriter* w) noexcept nogil
cdef int index_add(IndexWriter* w, uint64_t hash, uint64_t location) noexcept nogil      # OK or ERR_MEMORY
# All entries are added: arrange them. OK or ERR_MEMORY.
cdef int index_arrange(IndexWriter* w, uint64_t block_count) noexcept nogil
# Make page `number`, from 0 to page_count - 1. OK or ERR_MEMORY.
cdef int index_page(IndexWriter* w, uint64_t number) noexcept nogil
