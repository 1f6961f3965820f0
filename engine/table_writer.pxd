"""Write side of table files."""

from libc.stdint cimport uint32_t, uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.files cimport Files
from everwrite.table_format cimport BlockHandle


cdef class TableWriter:
    # One table, from its first entry to its footer. After an error the writer and its file are good for nothing.
    # Thread safety: one thread at a time.
    cdef Files files
    cdef object compressor
    cdef bytes path
    cdef int file
    cdef readonly uint64_t entries
    cdef readonly uint64_t removed
    cdef readonly uint64_t size        # bytes of the file so far, those not yet handed over included
    cdef Buffer pending                # bytes not yet handed to the file system
    cdef Buffer block
    cdef Buffer restarts
    cdef uint32_t entries_since_restart
    cdef Buffer index
    cdef Buffer index_restarts
    cdef Buffer separator              # the index key of the block being filled
    cdef Buffer smallest
    cdef Buffer last
    cdef Buffer hashes                 # of all keys, for the filter

    # Keys must come in strictly ascending order.
    cdef int add(self, Slice key, Slice value, bint removed) noexcept nogil
    # The rest, the footer, and a sync of the file (not of its folder). There must be an entry.
    cdef int finish(self) noexcept nogil

    cdef int _start_block(self, Slice key) noexcept nogil
    cdef int _close_block(self) noexcept nogil
    cdef int _write_block(self, Slice body, size_t raw_size, int kind, BlockHandle* handle) noexcept nogil
    cdef int _write_stored(self, Slice raw, BlockHandle* handle) noexcept nogil
    cdef int _write_filter(self, BlockHandle* handle) noexcept nogil
    cdef int _write_properties(self, BlockHandle* handle) noexcept nogil
    cdef int _write_footer(self, const BlockHandle* handles) noexcept nogil
    cdef int _hand_over(self) noexcept nogil
