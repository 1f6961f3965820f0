"""Reads blocks of table files, and keeps the ones in use in memory."""

from libc.stdint cimport uint64_t

from everwrite.files cimport Files
from everwrite.table_format cimport Block, BlockHandle


# Reads and checks one block. *out has one reference. OK, ERR_CORRUPT, ERR_IO, ERR_MEMORY.
cdef int block_read(
    Files files, object decompressor, int file, const char* path, uint64_t number, BlockHandle handle,
    size_t raw_limit, Block** out
) noexcept nogil

# A block of entries: count the restart points. Otherwise its `data` are plain bytes. OK or ERR_CORRUPT.
cdef int block_parse(Block* block, const char* path) noexcept nogil


cdef class BlockCache:
    # CLOCK (Corbato 1968) over a ring of blocks; a pinned block that is evicted lives on until its pin is released.
    # Thread safety: serialised by the caller.
    # Invariant: `bytes` is at most `limit` after each call.
    cdef Files files
    cdef object decompressor
    cdef bint cached_only              # fetch answers WOULD_BLOCK instead of reading a file
    cdef Block** buckets
    cdef size_t bucket_count           # a power of two
    cdef size_t count
    cdef Block* hand
    cdef readonly size_t bytes
    cdef readonly size_t limit
    cdef readonly unsigned long long hits
    cdef readonly unsigned long long misses

    # *out has one reference, to be released by the caller.
    cdef int fetch(self, int file, const char* path, uint64_t number, BlockHandle handle, Block** out) noexcept nogil
    cdef void _insert(self, Block* block) noexcept nogil
    cdef void _evict(self) noexcept nogil
    cdef int _grow(self) noexcept nogil
