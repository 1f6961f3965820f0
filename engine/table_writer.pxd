"""Write side of table files."""

from libc.stdint cimport uint32_t, uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.compression cimport Zstd
from everwrite.files cimport Files
from everwrite.index_writer cimport IndexWriter


cdef class TableWriter:
    # One table, from its first entry to its footer. After an error the writer and its file are good for nothing.
    # Thread safety: one thread at a time.
    cdef Files files
    cdef Zstd zstd
    cdef bytes path
    cdef int file
    cdef readonly uint64_t entries
    cdef readonly uint64_t removed
    cdef readonly uint64_t size        # bytes of the file so far, those not yet handed over included
    cdef readonly uint64_t blocks
    cdef uint64_t oldest_flush
    cdef uint64_t newest_flush
    cdef uint64_t unsynced
    cdef uint32_t incompressible       # blocks in a row that didn't shrink enough
    cdef Buffer pending                # bytes not yet handed to the file system
    cdef Buffer block                  # entries of the block being filled
    cdef Buffer offsets                # where they begin
    cdef Buffer frame
    cdef Buffer directory
    cdef Buffer smallest
    cdef Buffer largest                # the last key of the block before, after `finish` of the table
    cdef size_t last_key_at            # of the block being filled
    cdef size_t last_key_size
    cdef IndexWriter index

    # Keys must come in strictly ascending order.
    cdef int add(self, Slice key, Slice value, bint removed) noexcept nogil
    # The rest, the footer, and a sync of the file (not of its folder). There must be an entry.
    cdef int finish(self) noexcept nogil

    cdef int _start_block(self, Slice key) noexcept nogil
    cdef int _close_block(self) noexcept nogil
    cdef int _write_block(self, Slice body, size_t content_size, int kind, uint64_t* size) noexcept nogil
    cdef int _write_stored(self, Slice content, uint64_t* size) noexcept nogil
    cdef int _write_index(self) noexcept nogil
    cdef int _write_properties(self, uint64_t* size) noexcept nogil
    cdef int _write_footer(self, uint64_t directory_size, uint64_t properties_size) noexcept nogil
    cdef int _hand_over(self) noexcept nogil
