"""The one seam for storage system calls. Tests swap the implementation.

Paths are NUL-terminated bytes. Every method returns >= 0, or a negative `Status`
after filling `last_fault`. All may be called without the GIL.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.file_mapping cimport FileMapping


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
    # fdatasync: what was written, and stored in mappings. Never again on a handle where it failed.
    cdef int sync(self, int handle) noexcept nogil
    cdef int truncate(self, int handle, uint64_t size) noexcept nogil
    # Make the file at least `size` bytes long, new bytes zeros, with all its space reserved: below `size`,
    # no write and no store in a mapping runs out of space. After an error the file may have grown.
    cdef int allocate(self, int handle, uint64_t size) noexcept nogil
    cdef int write_zeros(self, int handle, uint64_t start, uint64_t end) noexcept nogil    # by `write`
    # A shared mapping of the file's first `size` bytes, of which only those within the file may be touched,
    # also as it grows; NULL: this file can't be mapped, go by `write`. Outlives the handle. Unmap it
    # before the file is truncated to less than what is touched.
    cdef uint8_t* map(self, int handle, size_t size) noexcept nogil
    cdef void unmap(self, uint8_t* data, size_t size) noexcept nogil
    # The first `size` bytes of a file that has them and won't change, with one reference; NULL: this file can't be
    # mapped, go by `read`. Outlives the handle and the name.
    cdef FileMapping* map_read(self, int handle, size_t size) noexcept nogil
    # Whether reading that part of a mapping waits for no device; False when it can't tell.
    cdef bint is_resident(self, const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil
    # A hint that it will be read soon.
    cdef void will_need(self, const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil
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
    # The system calls, each as the system's own function behaves: -1 and errno, short counts, EINTR. The
    # methods above are loops around them. `everwrite.faulty_files` makes them fail.
    cdef int _sys_open(self, const char* path, int flags) noexcept nogil
    cdef int _sys_close(self, int handle) noexcept nogil
    cdef int64_t _sys_pread(self, int handle, void* data, size_t size, int64_t offset) noexcept nogil
    # Of what is in memory; it may do less, or fail, for any reason.
    cdef int64_t _sys_preadv2(self, int handle, void* data, size_t size, int64_t offset) noexcept nogil
    cdef int64_t _sys_pwrite(self, int handle, const void* data, size_t size, int64_t offset) noexcept nogil
    cdef int _sys_fdatasync(self, int handle) noexcept nogil
    cdef int _sys_fsync(self, int handle) noexcept nogil
    cdef int _sys_ftruncate(self, int handle, int64_t size) noexcept nogil
    cdef int _sys_fallocate(self, int handle, int64_t offset, int64_t size) noexcept nogil
    cdef void* _sys_mmap(self, int handle, size_t size) noexcept nogil
    cdef FileMapping* _sys_mmap_read(self, int handle, size_t size) noexcept nogil
    cdef int64_t _sys_fstat_size(self, int handle) noexcept nogil
    cdef int _sys_rename(self, const char* source, const char* target) noexcept nogil
    cdef int _sys_unlink(self, const char* path) noexcept nogil


# The value for Python of a size, or the exception of a negative `Status`. Needs the GIL.
cdef int64_t check_size(int64_t size) except -1
cdef void set_errno(int number) noexcept nogil
# Whether the newest ERR_IO of this thread says that there is no space (or no quota) left.
cdef bint out_of_space() noexcept nogil
