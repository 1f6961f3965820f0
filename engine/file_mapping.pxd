"""Files of the operating system in memory. Only `PosixFiles` uses the functions; the others go by `Files`.

Thread safety: any thread may read a mapping that it holds a reference to.
Invariant: a mapping is read within `size`, which the file had when it was made. Who cuts the file afterwards ends the
process: so do errors of the device behind it (SIGBUS).
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.pins cimport Counted


cdef struct FileMapping:
    # A file's bytes, for reading. Whoever lets go of it last unmaps it; the file may be closed and removed before.
    Counted counted
    const uint8_t* data
    size_t size


# NULL: the file system isn't one where this is safe, or there is no room in the address space.
cdef FileMapping* mapping_for_reading(int handle, size_t size) noexcept nogil
cdef uint8_t* mapping_for_writing(int handle, size_t size) noexcept nogil
cdef void mapping_unmap(uint8_t* data, size_t size) noexcept nogil
# Whether reading these bytes waits for no device. False as well when the system doesn't tell.
cdef bint mapping_resident(const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil
# Have the device fetch them.
cdef void mapping_will_need(const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil
