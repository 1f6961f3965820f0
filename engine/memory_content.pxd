"""The content of a file in memory, with the way back to what of it is durable."""

from libc.stdint cimport uint8_t, uint64_t


cdef struct Undo:
    # How to take back one operation that isn't durable yet.
    bint truncated            # else it was a write
    uint64_t offset           # of the write; the new size for a truncation
    size_t length             # of the write; 0 for a truncation
    uint64_t size_before
    uint8_t* covered          # the bytes from `offset` on that were overwritten or cut off
    size_t covered_size


cdef struct Content:
    # What a file holds, and the way back to what of it is durable.
    # Invariants: size <= capacity; dropped <= undo_count; undos are in order of time; `data` of a mapped
    # content stays where it is.
    uint8_t* data
    size_t size
    size_t capacity
    Undo* undos
    size_t undo_count
    size_t undo_capacity
    uint8_t* seen             # while it is mapped: the bytes of `data` up to `seen_size` that the undos know of
    size_t seen_size
    size_t dropped            # so many of the first undos no later sync makes durable: one has failed, as on Linux


# Each returns OK or ERR_MEMORY. What they do is remembered until it is synced.
cdef int content_put(Content* content, uint64_t offset, const void* data, size_t size) noexcept nogil
cdef int content_truncate(Content* content, uint64_t size) noexcept nogil
# A sync: all of it is durable.
cdef void content_forget_undos(Content* content) noexcept nogil

# Let `size` bytes of `data` be changed behind our back. ERR_MEMORY, too, when they are already.
cdef int content_map(Content* content, size_t size) noexcept nogil
# Take what was stored in the mapping since the last time for a write of each changed sector.
cdef int content_look(Content* content) noexcept nogil
cdef void content_unmap(Content* content) noexcept nogil
# Give the mapping's memory to the caller, who frees it, and go on with a copy. What was stored is taken note of.
cdef int content_detach(Content* content) noexcept nogil


cdef class MemoryFile:
    cdef Content content

    cdef MemoryFile copy(self)
    cdef list _take_all_back(self)
    cdef sync_after_failure(self)
    cdef crash(self, keep)
    cdef _keep_prefix(self, operations, reached, keep)
    cdef _keep_sectors(self, operations, keep)
    cdef _redo(self, uint64_t offset, bytes data)
    cdef _redo_size(self, uint64_t size)
