"""The file of one segment of the log; see wal_segment.pxd."""

from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport realloc
from libc.string cimport memset

from everwrite.files cimport Files, OpenMode, out_of_space
from everwrite.status cimport Fault, Status, last_fault
from everwrite.wal_format cimport WAL_PATH_BYTES


cdef void spare_path(char* path, const char* folder, unsigned int number) noexcept nogil:
    snprintf(path, WAL_PATH_BYTES, "%s/%u.spare", folder, number)


cdef int segment_make(
    Files files,
    const char* folder,
    unsigned int number,
    uint64_t wanted,
    uint64_t need,
    uint64_t reach,
    Segment* segment,
) noexcept nogil:
    cdef char path[WAL_PATH_BYTES]
    cdef int status
    memset(segment, 0, sizeof(Segment))
    spare_path(path, folder, number)
    status = segment.handle = files.open(path, OpenMode.OPEN_FRESH)
    if status < 0:
        return status
    status = segment_grow(files, segment, wanted, need)
    if status < 0:
        segment_discard(files, folder, number, segment)
        return status
    segment_map(files, segment, reach)
    return Status.OK


cdef void segment_discard(Files files, const char* folder, unsigned int number, Segment* segment) noexcept nogil:
    cdef char path[WAL_PATH_BYTES]
    cdef Fault fault = last_fault()[0]
    segment_release(files, segment)
    spare_path(path, folder, number)
    # What is left behind, the next open removes; the first failure is the one to report.
    files.unlink(path)
    last_fault()[0] = fault


cdef void segment_map(Files files, Segment* segment, uint64_t reach) noexcept nogil:
    segment.mapped = max(segment.allocated, reach)
    segment.data = files.map(segment.handle, segment.mapped)


cdef int segment_grow(Files files, Segment* segment, uint64_t wanted, uint64_t need) noexcept nogil:
    cdef bint remap = segment.data != NULL and wanted > segment.mapped
    cdef int status
    if remap:
        # Only one frame that is larger than a segment comes here, into a segment without any.
        files.unmap(segment.data, segment.mapped)
        segment.data = NULL
    status = files.allocate(segment.handle, wanted)
    if status == Status.ERR_IO and out_of_space() and need < wanted:
        wanted = need
        status = files.allocate(segment.handle, wanted)
    if status == Status.OK:
        segment.allocated = wanted
    if remap:
        segment_map(files, segment, wanted)
    return status


cdef int segment_room(Segment** segments, size_t* capacity, size_t count) noexcept nogil:
    cdef size_t wanted = capacity[0] * 2 if capacity[0] else 16
    cdef Segment* grown
    if count == capacity[0]:
        grown = <Segment*>realloc(segments[0], wanted * sizeof(Segment))
        if grown == NULL:
            return Status.ERR_MEMORY
        segments[0] = grown
        capacity[0] = wanted
    return Status.OK


cdef void segment_release(Files files, Segment* segment) noexcept nogil:
    if segment.data != NULL:
        files.unmap(segment.data, segment.mapped)
    if segment.handle >= 0:
        files.close(segment.handle)
    segment.data = NULL
    segment.handle = -1
