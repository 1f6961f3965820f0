"""The one seam for storage system calls, and the operating system's files behind it.

Everything that the engine stores goes through a `Files`. The twin in memory, which can
crash and fail on demand, is `everwrite.memory_files`.
"""

from libc.errno cimport EDQUOT, EINTR, EIO, ENOSPC, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free

cimport cython

import contextlib
import errno as error_numbers
import fcntl
import os

from everwrite.errors import LockedError, StorageError
from everwrite.holder import describe_holder, holder_record

from everwrite.file_mapping cimport (
    FileMapping, mapping_for_reading, mapping_for_writing, mapping_resident, mapping_unmap, mapping_will_need,
)
from everwrite.status cimport Status, check, fault_io, last_fault

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdio.h>
    #include <sys/stat.h>
    #include <sys/types.h>
    #include <unistd.h>

    #ifndef O_CLOEXEC
      #define O_CLOEXEC 0
    #endif

    static int ew_open(const char* path, int flags) { return open(path, flags | O_CLOEXEC, 0644); }

    static int ew_fdatasync(int handle) {
    #ifdef __APPLE__
        return fcntl(handle, F_FULLFSYNC);
    #else
        return fdatasync(handle);
    #endif
    }

    static long long ew_file_size(int handle) {
        struct stat about;
        return fstat(handle, &about) < 0 ? -1 : (long long)about.st_size;
    }

    static int ew_fallocate(int handle, long long offset, long long size) {
    #ifdef __linux__
        return fallocate(handle, 0, offset, size);
    #else
        (void)handle; (void)offset; (void)size;
        errno = EOPNOTSUPP;
        return -1;
    #endif
    }

    static void ew_set_errno(int number) { errno = number; }

    /* Only for error messages. */
    static void ew_handle_path(int handle, char* path, size_t size) {
        char link[64];
        ssize_t length;
        snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
        length = readlink(link, path, size - 1);
        path[length < 0 ? 0 : length] = 0;
        if (length < 0) snprintf(path, size, "file descriptor %d", handle);
    }
    #include <sys/uio.h>
    /* Linux 4.14 and later, on the usual file systems; anywhere else it fails. */
    static ssize_t ew_read_resident(int handle, void* data, size_t size, long long offset) {
    #ifdef RWF_NOWAIT
        struct iovec place = {data, size};
        return preadv2(handle, &place, 1, (off_t)offset, RWF_NOWAIT);
    #else
        (void)handle; (void)data; (void)size; (void)offset;
        return -1;
    #endif
    }
    """
    int O_RDONLY, O_RDWR, O_CREAT, O_TRUNC, O_DIRECTORY
    int ew_open(const char* path, int flags) noexcept nogil
    void ew_set_errno(int number) noexcept nogil
    int ew_fdatasync(int handle) noexcept nogil
    long long ew_file_size(int handle) noexcept nogil
    void ew_handle_path(int handle, char* path, size_t size) noexcept nogil
    int ew_fallocate(int handle, int64_t offset, int64_t size) noexcept nogil
    int posix_close "close"(int handle) noexcept nogil
    ssize_t ew_read_resident(int handle, void* data, size_t size, long long offset) noexcept nogil
    ssize_t pread(int handle, void* data, size_t size, int64_t offset) noexcept nogil
    ssize_t pwrite(int handle, const void* data, size_t size, int64_t offset) noexcept nogil
    int ftruncate(int handle, int64_t size) noexcept nogil
    int fsync(int handle) noexcept nogil
    int posix_rename "rename"(const char* source, const char* target) noexcept nogil
    int posix_unlink "unlink"(const char* path) noexcept nogil

_MODES = {"read": OpenMode.OPEN_READ, "write": OpenMode.OPEN_WRITE, "fresh": OpenMode.OPEN_FRESH}


def _storage_error(error, doing):
    return StorageError(error.errno, f"{doing}: {error.strerror}", os.fspath(error.filename or ""))


cdef class Files:
    """Where a store keeps its files. Use `PosixFiles`, or `MemoryFiles` in tests and simulations.

    Thread safety: `PosixFiles` has no state of its own; any thread may use it. All methods
    raise `StorageError` with the path when the file system refuses.
    """

    cdef int open(self, const char* path, int mode) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io(path, "opening a file")

    cdef int close(self, int handle) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io("", "closing a file")

    cdef int64_t read(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io("", "reading a file")

    cdef int read_resident(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil:
        return Status.WOULD_BLOCK

    cdef int write(self, int handle, uint64_t offset, const void* data, size_t size) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io("", "writing a file")

    cdef int sync(self, int handle) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io("", "syncing a file")

    cdef int truncate(self, int handle, uint64_t size) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io("", "truncating a file")

    cdef int allocate(self, int handle, uint64_t size) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io("", "reserving space for a file")

    cdef int write_zeros(self, int handle, uint64_t start, uint64_t end) noexcept nogil:
        cdef uint8_t* zeros = <uint8_t*>calloc(1, ZEROS_BYTES)
        cdef int status = Status.OK if zeros != NULL else Status.ERR_MEMORY
        while status == Status.OK and start < end:
            status = self.write(handle, start, zeros, min(<uint64_t>ZEROS_BYTES, end - start))
            start += ZEROS_BYTES
        free(zeros)
        return status

    cdef uint8_t* map(self, int handle, size_t size) noexcept nogil:
        return NULL

    cdef void unmap(self, uint8_t* data, size_t size) noexcept nogil:
        pass

    cdef FileMapping* map_read(self, int handle, size_t size) noexcept nogil:
        return NULL

    cdef bint is_resident(self, const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil:
        return False

    cdef void will_need(self, const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil:
        pass

    cdef int64_t size(self, int handle) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io("", "asking for a file's size")

    cdef int rename(self, const char* source, const char* target) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io(source, "renaming a file")

    cdef int unlink(self, const char* path) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io(path, "removing a file")

    cdef int sync_dir(self, const char* path) noexcept nogil:
        set_errno(ENOSYS)
        return fault_io(path, "syncing a folder")

    def open_file(self, path, mode):
        """Open `path` and return a `File`. `mode`: "read" (must exist), "write" (created when
        missing), "fresh" (created or truncated)."""
        cdef bytes name = os.fsencode(path)
        cdef int how = _MODES[mode]
        cdef const char* raw = name
        cdef int handle
        with nogil:
            handle = self.open(raw, how)
        check(handle)
        cdef File file = File.__new__(File)
        file.files = self
        file.handle = handle
        return file

    def read_file(self, path):
        """The whole content of `path`, as bytes."""
        with self.open_file(path, "read") as file:
            return file.read(0, file.size())

    def replace_file(self, path, const uint8_t[::1] data):
        """Make `path` hold `data`, atomically and durably: after a crash it has the old content or the new."""
        name = os.fsencode(path)
        temporary = name + b".tmp"
        try:
            with self.open_file(temporary, "fresh") as file:
                file.write(0, data)
                file.sync()
            self.rename_file(temporary, name)
        except BaseException:
            with contextlib.suppress(OSError):  # the first failure is the one to report
                self.remove(temporary)
            raise
        self.sync_folder(os.path.dirname(name) or b".")

    def rename_file(self, source, target):
        """Rename `source` to `target`, replacing it. Durable after `sync_folder`."""
        cdef bytes old = os.fsencode(source)
        cdef bytes new = os.fsencode(target)
        check(self.rename(old, new))

    def remove(self, path):
        """Remove the file `path`. Durable after `sync_folder`."""
        cdef bytes name = os.fsencode(path)
        check(self.unlink(name))

    def sync_folder(self, path):
        """Make the names created, renamed and removed in the folder `path` durable."""
        cdef bytes name = os.fsencode(path)
        cdef const char* raw = name
        cdef int status
        with nogil:
            status = self.sync_dir(raw)
        check(status)

    def listdir(self, path):
        """The names in the folder `path`, sorted."""
        raise NotImplementedError

    def mkdir(self, path):
        """Make the folder `path` and those above it, durably. One that exists is fine."""
        raise NotImplementedError

    def exists(self, path):
        """Whether a file or folder `path` exists."""
        raise NotImplementedError

    def lock(self, path):
        """Take the lock file `path` and return an object whose `release()` gives it back.

        Raises `LockedError`, naming the holder's process id, when it is taken.
        """
        raise NotImplementedError


# A collector that cleared the reference to the files first would leave __dealloc__ unable to close.
@cython.no_gc_clear
cdef class File:
    """An open file of a `Files`; a context manager. Offsets and sizes are in bytes."""

    cdef Files files
    cdef int handle
    cdef bint closed

    def read(self, uint64_t offset, size_t size):
        """Up to `size` bytes from `offset`: fewer only at the end of the file."""
        cdef int64_t length = check_size(self.files.size(self.handle))
        if offset >= <uint64_t>length:
            return b""
        if size > <uint64_t>length - offset:
            size = <uint64_t>length - offset
        data = bytearray(size)
        cdef uint8_t[::1] view = data
        cdef int64_t got = 0
        if size:
            got = check_size(self.files.read(self.handle, offset, &view[0], size))
        return bytes(data[:got])

    def write(self, uint64_t offset, const uint8_t[::1] data):
        """Write all of `data` at `offset`."""
        if data.shape[0]:
            check(self.files.write(self.handle, offset, &data[0], data.shape[0]))

    def sync(self):
        """Make the file's content durable. After a failure don't call it again: give the file up."""
        cdef int status
        with nogil:
            status = self.files.sync(self.handle)
        check(status)

    def truncate(self, uint64_t size):
        """Cut the file off at `size` bytes, or extend it with zeros."""
        check(self.files.truncate(self.handle, size))

    def allocate(self, uint64_t size):
        """Make the file at least `size` bytes long, new bytes zeros, and reserve the space for all of them."""
        check(self.files.allocate(self.handle, size))

    def size(self):
        """The file's size in bytes."""
        return check_size(self.files.size(self.handle))

    def close(self):
        """Close it; once more is fine."""
        if not self.closed:
            self.closed = True
            check(self.files.close(self.handle))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __dealloc__(self):
        if not self.closed and self.files is not None:
            self.files.close(self.handle)


cdef int64_t check_size(int64_t size) except -1:
    if size < 0:
        check(<int>size)
    return size


cdef void set_errno(int number) noexcept nogil:
    ew_set_errno(number)


cdef bint out_of_space() noexcept nogil:
    return last_fault().error_number == ENOSPC or last_fault().error_number == EDQUOT


cdef enum:
    ZEROS_BYTES = 1 << 16  # written at a time where the file system can't reserve space
    OPEN_FOLDER = -1      # an open mode for `sync_dir` alone


cdef class PosixFiles(Files):
    """The operating system's files."""

    cdef int _sys_open(self, const char* path, int flags) noexcept nogil:
        return ew_open(path, flags)

    cdef int _sys_close(self, int handle) noexcept nogil:
        return posix_close(handle)

    cdef int64_t _sys_pread(self, int handle, void* data, size_t size, int64_t offset) noexcept nogil:
        return pread(handle, data, size, offset)

    cdef int64_t _sys_preadv2(self, int handle, void* data, size_t size, int64_t offset) noexcept nogil:
        return ew_read_resident(handle, data, size, offset)

    cdef int64_t _sys_pwrite(self, int handle, const void* data, size_t size, int64_t offset) noexcept nogil:
        return pwrite(handle, data, size, offset)

    cdef int _sys_fdatasync(self, int handle) noexcept nogil:
        return ew_fdatasync(handle)

    cdef int _sys_fsync(self, int handle) noexcept nogil:
        return fsync(handle)

    cdef int _sys_ftruncate(self, int handle, int64_t size) noexcept nogil:
        return ftruncate(handle, size)

    cdef int _sys_fallocate(self, int handle, int64_t offset, int64_t size) noexcept nogil:
        return ew_fallocate(handle, offset, size)

    cdef void* _sys_mmap(self, int handle, size_t size) noexcept nogil:
        return mapping_for_writing(handle, size)

    cdef FileMapping* _sys_mmap_read(self, int handle, size_t size) noexcept nogil:
        return mapping_for_reading(handle, size)

    cdef int64_t _sys_fstat_size(self, int handle) noexcept nogil:
        return ew_file_size(handle)

    cdef int _sys_rename(self, const char* source, const char* target) noexcept nogil:
        return posix_rename(source, target)

    cdef int _sys_unlink(self, const char* path) noexcept nogil:
        return posix_unlink(path)

    cdef int open(self, const char* path, int mode) noexcept nogil:
        cdef int flags = O_RDONLY
        cdef int handle
        if mode == OPEN_FOLDER:
            flags = O_RDONLY | O_DIRECTORY
        elif mode == OpenMode.OPEN_WRITE:
            flags = O_RDWR | O_CREAT
        elif mode == OpenMode.OPEN_FRESH:
            flags = O_RDWR | O_CREAT | O_TRUNC
        while True:
            handle = self._sys_open(path, flags)
            if handle >= 0:
                return handle
            if errno != EINTR:
                return fault_io(path, "opening a file")

    cdef int close(self, int handle) noexcept nogil:
        cdef char path[512]
        # Afterwards the descriptor leads nowhere, or to a file that another thread has opened.
        ew_handle_path(handle, path, sizeof(path))
        # EINTR too leaves the descriptor closed on Linux: a second close could hit another file.
        if self._sys_close(handle) < 0 and errno != EINTR:
            return fault_io(path, "closing a file")
        return Status.OK

    cdef int64_t read(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil:
        cdef size_t done = 0
        cdef int64_t got
        while done < size:
            got = self._sys_pread(handle, <uint8_t*>data + done, size - done, <int64_t>(offset + done))
            if got < 0:
                if errno == EINTR:
                    continue
                return _fault_at(handle, "reading a file")
            if got == 0:
                break
            done += <size_t>got
        return <int64_t>done

    cdef int read_resident(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil:
        if self._sys_preadv2(handle, data, size, <int64_t>offset) != <int64_t>size:
            return Status.WOULD_BLOCK
        return Status.OK

    cdef int write(self, int handle, uint64_t offset, const void* data, size_t size) noexcept nogil:
        cdef size_t done = 0
        cdef int64_t got
        while done < size:
            got = self._sys_pwrite(handle, <const uint8_t*>data + done, size - done, <int64_t>(offset + done))
            if got <= 0:
                if got == 0:
                    set_errno(EIO)
                elif errno == EINTR:
                    continue
                return _fault_at(handle, "writing a file")
            done += <size_t>got
        return Status.OK

    cdef int sync(self, int handle) noexcept nogil:
        # An interrupted sync has neither succeeded nor taken note of an error: again is right.
        while self._sys_fdatasync(handle) < 0:
            if errno != EINTR:
                return _fault_at(handle, "syncing a file")
        return Status.OK

    cdef int truncate(self, int handle, uint64_t size) noexcept nogil:
        while self._sys_ftruncate(handle, <int64_t>size) < 0:
            if errno != EINTR:
                return _fault_at(handle, "truncating a file")
        return Status.OK

    cdef int allocate(self, int handle, uint64_t size) noexcept nogil:
        cdef int64_t held = self.size(handle)
        if held < 0:
            return <int>held
        if <uint64_t>held >= size:
            return Status.OK
        while self._sys_fallocate(handle, held, <int64_t>size - held) < 0:
            if errno == EOPNOTSUPP or errno == ENOSYS:
                return self.write_zeros(handle, <uint64_t>held, size)
            if errno != EINTR:
                return _fault_at(handle, "reserving space for a file")
        return Status.OK

    cdef uint8_t* map(self, int handle, size_t size) noexcept nogil:
        return <uint8_t*>self._sys_mmap(handle, size)

    cdef void unmap(self, uint8_t* data, size_t size) noexcept nogil:
        mapping_unmap(data, size)

    cdef FileMapping* map_read(self, int handle, size_t size) noexcept nogil:
        return self._sys_mmap_read(handle, size)

    cdef bint is_resident(self, const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil:
        return mapping_resident(mapping, offset, size)

    cdef void will_need(self, const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil:
        mapping_will_need(mapping, offset, size)

    cdef int64_t size(self, int handle) noexcept nogil:
        cdef int64_t size = self._sys_fstat_size(handle)
        if size < 0:
            return _fault_at(handle, "asking for a file's size")
        return size

    cdef int rename(self, const char* source, const char* target) noexcept nogil:
        while self._sys_rename(source, target) < 0:
            if errno != EINTR:
                return fault_io(source, "renaming a file")
        return Status.OK

    cdef int unlink(self, const char* path) noexcept nogil:
        while self._sys_unlink(path) < 0:
            if errno != EINTR:
                return fault_io(path, "removing a file")
        return Status.OK

    cdef int sync_dir(self, const char* path) noexcept nogil:
        cdef int status = Status.OK
        cdef int handle = self.open(path, OPEN_FOLDER)
        if handle < 0:
            return fault_io(path, "opening a folder to sync it")
        while status == Status.OK and self._sys_fsync(handle) < 0:
            if errno != EINTR:
                status = fault_io(path, "syncing a folder")
        self._sys_close(handle)
        return status

    def listdir(self, path):
        """The names in the folder `path`, sorted."""
        try:
            return sorted(os.listdir(os.fsdecode(path)))
        except OSError as error:
            raise _storage_error(error, "listing a folder") from error

    def mkdir(self, path):
        """Make the folder `path` and those above it, durably. One that exists is fine."""
        name = os.path.abspath(os.fsdecode(path))
        missing = []
        while not os.path.isdir(name):
            missing.append(name)
            name = os.path.dirname(name)
        try:
            for folder in reversed(missing):
                os.makedirs(folder, exist_ok=True)
                self.sync_folder(os.path.dirname(folder))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise _storage_error(error, "making a folder") from error

    def exists(self, path):
        """Whether a file or folder `path` exists."""
        return os.path.exists(os.fsdecode(path))

    def lock(self, path):
        """Take the lock file `path` (flock) and return an object whose `release()` gives it back.

        Raises `LockedError`, naming the holder's process id, command line and since when, when it is taken, by
        this process or another.
        """
        name = os.fsdecode(path)
        try:
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _storage_error(error, "opening the lock file") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            content = os.pread(handle, 4096, 0)
            os.close(handle)
            if error.errno not in (error_numbers.EAGAIN, error_numbers.EACCES):
                raise _storage_error(error, "locking the store") from error
            raise LockedError(
                f"{name}: in use by {describe_holder(content)}; close the store there first, or open a different folder"
            ) from None
        # Before anything else can go wrong: who drops it gives the lock back.
        taken = _PosixLock(handle)
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder_record(), 0)
        return taken


cdef int _fault_at(int handle, const char* what) noexcept nogil:
    cdef char path[512]
    cdef int number = errno
    ew_handle_path(handle, path, sizeof(path))
    set_errno(number)
    return fault_io(path, what)


class _PosixLock:
    def __init__(self, handle):
        self._handle = handle

    def release(self):
        """Give the lock back; once more is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self):
        self.release()
