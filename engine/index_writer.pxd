"""Write side of a table's hash index: places of entries become pages, in the order of their keys' hashes."""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Buffer
from everwrite.files cimport Files


cdef struct IndexEntry:
    uint64_t hash
    uint64_t location


cdef struct Run:
    # Sorted entries: those in memory, and behind them those that are still in the scratch file.
    IndexEntry* at
    IndexEntry* end
    IndexEntry* memory                 # what `at` lies in, when the run is read from the file
    uint64_t offset
    uint64_t left


cdef class IndexWriter:
    # Thread safety: one thread at a time. After an error it is good for nothing.
    # Invariant: at most `capacity` entries are in memory; more go to the scratch file in sorted runs, which are merged
    # when the pages are made.
    cdef Files files
    cdef bytes scratch
    cdef const char* scratch_path      # the same
    cdef int file                      # -1: nothing was spilled
    cdef uint64_t file_size
    cdef size_t capacity
    cdef Buffer entries                # IndexEntry each
    cdef uint64_t count
    cdef Run* runs
    cdef size_t run_count
    cdef Run** heap                    # those with entries left, the smallest hash first
    cdef size_t heap_size
    cdef uint64_t lines
    cdef size_t line_entries
    cdef size_t location_bits
    cdef uint64_t page_count
    cdef uint64_t next_page
    cdef Buffer page                   # the newest one made

    # All of them: OK, ERR_MEMORY, ERR_IO.
    cdef int add(self, uint64_t hash, uint64_t location) noexcept nogil
    cdef int arrange(self, uint64_t block_count) noexcept nogil      # all entries are added
    cdef int make_page(self) noexcept nogil                          # the next one, of `page_count`

    cdef int _new_run(self) noexcept nogil
    cdef int _sort(self) noexcept nogil
    cdef int _spill(self) noexcept nogil
    cdef int _refill(self, Run* run) noexcept nogil
    cdef int _advance(self) noexcept nogil
    cdef int _reserve_lines(self, size_t lines) noexcept nogil
    cdef void _mark_spill(self, uint64_t home, uint64_t place, unsigned upper) noexcept nogil
