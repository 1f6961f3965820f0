"""The file of one segment of the log, as its writer holds it."""

from libc.stdint cimport uint64_t, uint8_t

from everwrite.files cimport Files


cdef struct Segment:
    uint64_t start         # position of its first byte
    uint64_t allocated     # so many bytes of the file have their space reserved
    uint64_t zeroed        # up to here zeros were written before frames come; 0: to nothing yet
    uint8_t* data          # the mapping; NULL: frames go by write()
    size_t mapped          # length of the mapping
    int handle             # negative: sealed, that is durable, cut to its length and closed


# Make the file `<number>.spare` in the folder, to become a segment, with `wanted` bytes reserved, or at least
# `need`, and mapped up to `reach` where that can be. OK, or an error, and there is no such file.
cdef int segment_make(
    Files files,
    const char* folder,
    unsigned int number,
    uint64_t wanted,
    uint64_t need,
    uint64_t reach,
    Segment* segment,
) noexcept nogil
# Close it and remove its file. Keeps `last_fault`.
cdef void segment_discard(Files files, const char* folder, unsigned int number, Segment* segment) noexcept nogil
cdef void segment_map(Files files, Segment* segment, uint64_t reach) noexcept nogil
# Reserve `wanted` bytes of the file, or at least `need`.
cdef int segment_grow(Files files, Segment* segment, uint64_t wanted, uint64_t need) noexcept nogil
# Give the mapping and the handle back, whichever there are.
cdef void segment_release(Files files, Segment* segment) noexcept nogil
# Have room for one more in a list of `count` segments: OK or ERR_MEMORY.
cdef int segment_room(Segment** segments, size_t* capacity, size_t count) noexcept nogil
cdef void spare_path(char* path, const char* folder, unsigned int number) noexcept nogil
