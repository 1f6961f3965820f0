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
    # A handle.
    cdef int open(self, const char* path, int mode) noexcept nogil
    cdef int close(self, int handle) noexcept nogil
    # Bytes read: fewer than `size` only at the end of the file.
    cdef int64_t read(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil
    # All of it, when the system has it in memory; WOULD_BLOCK when it would have to ask the device, or can't tell.
    cdef int read_resident(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil
    # All of it, or an error.
    cdef int write(self, int handle, uint64_t offset, const void* data, size_t size) noexcept nogil
    # fdatasync. Never again on a handle where it failed.
    cdef int sync(self, int handle) noexcept nogil
    cdef int truncate(self, int handle, uint64_t size) noexcept nogil
    cdef int64_t size(self, int handle) noexcept nogil
    cdef int rename(self, const char* source, const char* target) noexcept nogil
    cdef int unlink(self, const char* path) noexcept nogil
    # Makes the names created, renamed and removed in a folder durable.
    cdef int sync_dir(self, const char* path) noexcept nogil
    # Python-level: open_file(path, mode) -> File, listdir(path) -> list[str], mkdir(path),
    # exists(path), read_file(path) -> bytes, replace_file(path, data) (write a temporary beside
    # it, sync, rename, sync the folder), rename_file(source, target), remove(path), sync_folder(path),
    # lock(path) -> object with .release(); a second locker gets LockedError naming the holder's pid


cdef class PosixFiles(Files):
    pass


# The value for Python of a size, or the exception of a negative `Status`. Needs the GIL.
cdef int64_t check_size(int64_t size) except -1
cdef void set_errno(int number) noexcept nogil
