"""Reads blocks of table files, and keeps the ones in use in memory."""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.block_pool cimport BlockPool
from everwrite.compression cimport Zstd
from everwrite.files cimport Files
from everwrite.table_format cimport Block, BlockView, Slot, Table, TableSlots


# Slots for so many blocks; NULL when out of memory. `slots_close` lets the table's reference go.
cdef TableSlots* slots_new(size_t count) noexcept nogil
cdef void slots_close(TableSlots* slots) noexcept nogil

# Checks a stored block and sets the size of its content, which is at most `limit`. OK or ERR_CORRUPT.
cdef int stored_check(
    const char* path, uint64_t offset, const uint8_t* stored, size_t size, size_t limit, size_t* content_size
) noexcept nogil
# What a checked data block holds: where its offsets are, and how many. What these name is checked by whoever decodes
# an entry. OK or ERR_CORRUPT.
cdef int entries_check(
    const char* path, uint64_t offset, const uint8_t* content, size_t size, size_t* entries_size, size_t* count
) noexcept nogil


cdef struct Resident:
    # A cached block, and the slot that leads to it.
    Block* block
    Slot* slot


cdef class BlockCache:
    # CLOCK (Corbato 1968) over a ring of blocks, which tables reach by their slots. A pinned block that is evicted
    # lives on until its pin is released. Where a table is mapped, a data block that isn't compressed is read in the
    # mapping before it is in the cache and after it was pushed out: checked once, in the system's memory. What is
    # looked up often is copied into the cache for speed: that has large pages.
    # Thread safety: serialised by the caller, together with all use of the slots of its tables.
    # Invariant: `bytes` is at most `limit` after each call, or there are no blocks.
    cdef Files files
    cdef Zstd zstd
    cdef BlockPool* pool
    cdef Resident* ring
    cdef size_t count
    cdef size_t capacity
    cdef size_t hand
    cdef bint cached_only              # fetch answers WOULD_BLOCK instead of waiting for a device
    cdef bint passing                  # what is looked up won't be soon again: copied only where it must be
    cdef readonly bint bypass          # for a reader beside those that share the slots: looks at none, fills none
    cdef readonly size_t bytes
    cdef readonly size_t reserved      # what the open tables take, which counts towards the limit
    cdef readonly size_t limit
    cdef readonly unsigned long long hits
    cdef readonly unsigned long long misses

    # A data block. *out has one reference, to be released by the caller. OK, WOULD_BLOCK, ERR_CORRUPT, ERR_IO,
    # ERR_MEMORY.
    cdef int fetch(self, Table* table, size_t number, BlockView* out) noexcept nogil
    # The same of a block that isn't in its slot.
    cdef int load(self, Table* table, size_t number, BlockView* out) noexcept nogil
    # The same of a block in the table's mapping, in or out of memory, that isn't compressed.
    cdef int check_mapped(self, Table* table, size_t number, BlockView* out) noexcept nogil
    # Both for an index page; `number` counts on from the data blocks.
    cdef int fetch_page(self, Table* table, size_t number, Block** out) noexcept nogil
    cdef int load_page(self, Table* table, size_t number, Block** out) noexcept nogil
    # Either, from the block's stored bytes.
    cdef int unpack(self, Table* table, size_t number, const uint8_t* stored, Block** out) noexcept nogil
    # Whether one more block would push nothing out.
    cdef bint has_room(self) noexcept nogil
    # Open tables take more or less than before.
    cdef void reserve(self, size_t bytes) noexcept nogil

    cdef bint is_resident(self, Table* table, uint64_t offset, size_t size) noexcept nogil
    cdef int _read(self, Table* table, size_t number, Block** out) noexcept nogil
    cdef int _load_mapped(self, Table* table, size_t number, BlockView* out) noexcept nogil
    cdef int _adopt(
        self, Table* table, size_t number, const uint8_t* stored, size_t size, Block* block, Block** out
    ) noexcept nogil
    cdef int _admit(self, Table* table, size_t number, Block* block) noexcept nogil
    cdef void _insert(self, Table* table, size_t number, Block* block) noexcept nogil
    cdef void _evict(self) noexcept nogil
    cdef int _grow(self) noexcept nogil
