"""The one seam for storage system calls. Tests swap the implementation.

Paths are NUL-terminated bytes. Every method returns >= 0, or a negative `Status`
after filling `last_fault`. All may be called without the GIL.
"""

from libc.stdint cimport int64_t, uint64_t

cdef enum OpenMode:
    OPEN_READ = 0          # existing file, read only
    OPEN_WRITE = 1         # read and write, created when missing
    OPEN_FRESH = 2         # read and write, created or truncated


cdef class Files:
    cdef int open(self, const char* path, int mode) noexcept nogil          # a handle
    cdef int close(self, int handle) noexcept nogil
    cdef int64_t read(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil   # bytes read; short only at the end of file
    cdef int write(self, int handle, uint64_t offset, const void* data, size_t size) noexcept nogil  # all of it, or an error
    cdef int sync(self, int handle) noexcept nogil                          # fdatasync
    cdef int truncate(self, int handle, uint64_t size) noexcept nogil
    cdef int64_t size(self, int handle) noexcept nogil
    cdef int rename(self, const char* source, const char* target) noexcept nogil
    cdef int unlink(self, const char* path) noexcept nogil
    cdef int sync_dir(self, const char* path) noexcept nogil
    # Python-level: listdir(path) -> list[str], mkdir(path), exists(path), read_file(path) -> bytes,
    # replace_file(path, data) (write a temporary beside it, sync, rename, sync the folder),
    # lock(path) -> object with .release(); a second locker gets LockedError naming the holder's pid


cdef class PosixFiles(Files):
    pass
