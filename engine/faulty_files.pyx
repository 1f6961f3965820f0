"""The operating system's files with system calls that fail, are interrupted or do a part of their work.

`WatchedFiles` lets the methods of a `Files` fail; here it is the calls below these, so that their loops around
interrupted calls and short counts are under test, on real files.
"""

from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint64_t

from everwrite.file_mapping cimport FileMapping
from everwrite.files cimport PosixFiles, set_errno

cdef enum SystemCall:
    CALL_OPEN
    CALL_CLOSE
    CALL_PREAD
    CALL_PREADV2
    CALL_PWRITE
    CALL_FDATASYNC
    CALL_FSYNC
    CALL_FTRUNCATE
    CALL_FALLOCATE
    CALL_MMAP
    CALL_FSTAT
    CALL_RENAME
    CALL_UNLINK

_NAMES = (
    *("open", "close", "pread", "preadv2", "pwrite", "fdatasync", "fsync", "ftruncate", "fallocate", "mmap", "fstat"),
    *("rename", "unlink"),
)


cdef class FaultyFiles(PosixFiles):
    """`PosixFiles` that ask `decide(call, size)` before each system call.

    `call`: "open", "close", "pread", "preadv2" (a read of what is in memory already), "pwrite", "fdatasync", "fsync"
    (of a folder), "ftruncate", "fallocate", "mmap", "fstat", "rename" or "unlink". `size`: bytes of a read, write,
    allocation or mapping, the new size of a truncation, else 0.
    `decide` returns None to go on, or an errno with which the call fails, nothing done; but a close has closed the file
    all the same. For a read or write it may return (0, n): n bytes of it are done, and the call answers so. An
    exception that it raises is kept in `error`, and the call fails with EIO: system calls have nobody to raise it to.
    `durable`: False lets syncs succeed without being made, where no power will be lost.

    Thread safety: that of `decide`.
    """

    cdef object decide
    cdef bint durable
    cdef readonly object error

    def __init__(self, decide, *, bint durable=True):
        self.decide = decide
        self.durable = durable

    cdef int _ask(self, int call, uint64_t size, size_t* done) noexcept with gil:
        """The errno with which the call is to fail, or 0. `done`: set to how much a call that goes on is to do."""
        try:
            answer = self.decide(_NAMES[call], size)
            if isinstance(answer, tuple):
                answer, done[0] = answer
            return answer or 0
        except BaseException as error:
            # For the test to look at.
            if self.error is None:
                self.error = error
            return EIO

    cdef bint _fails(self, int call, uint64_t size, size_t* done) noexcept nogil:
        cdef int number = self._ask(call, size, done)
        if number:
            # Last: taking and giving back the GIL may have changed it.
            set_errno(number)
        return number != 0

    cdef bint _stopped(self, int call, uint64_t size) noexcept nogil:
        """Whether a call that does all or nothing fails."""
        cdef size_t done = 0
        return self._fails(call, size, &done)

    cdef int _sys_open(self, const char* path, int flags) noexcept nogil:
        return -1 if self._stopped(CALL_OPEN, 0) else PosixFiles._sys_open(self, path, flags)

    cdef int _sys_close(self, int handle) noexcept nogil:
        cdef int status = PosixFiles._sys_close(self, handle)
        return -1 if self._stopped(CALL_CLOSE, 0) else status

    cdef int64_t _sys_pread(self, int handle, void* data, size_t size, int64_t offset) noexcept nogil:
        cdef size_t done = size
        return -1 if self._fails(CALL_PREAD, size, &done) else PosixFiles._sys_pread(self, handle, data, done, offset)

    cdef int64_t _sys_preadv2(self, int handle, void* data, size_t size, int64_t offset) noexcept nogil:
        cdef size_t done = size
        if self._fails(CALL_PREADV2, size, &done):
            return -1
        return PosixFiles._sys_preadv2(self, handle, data, done, offset)

    cdef int64_t _sys_pwrite(self, int handle, const void* data, size_t size, int64_t offset) noexcept nogil:
        cdef size_t done = size
        if self._fails(CALL_PWRITE, size, &done):
            return -1
        return PosixFiles._sys_pwrite(self, handle, data, done, offset)

    cdef int _sys_fdatasync(self, int handle) noexcept nogil:
        if self._stopped(CALL_FDATASYNC, 0):
            return -1
        return PosixFiles._sys_fdatasync(self, handle) if self.durable else 0

    cdef int _sys_fsync(self, int handle) noexcept nogil:
        if self._stopped(CALL_FSYNC, 0):
            return -1
        return PosixFiles._sys_fsync(self, handle) if self.durable else 0

    cdef int _sys_ftruncate(self, int handle, int64_t size) noexcept nogil:
        return -1 if self._stopped(CALL_FTRUNCATE, size) else PosixFiles._sys_ftruncate(self, handle, size)

    cdef int _sys_fallocate(self, int handle, int64_t offset, int64_t size) noexcept nogil:
        return -1 if self._stopped(CALL_FALLOCATE, size) else PosixFiles._sys_fallocate(self, handle, offset, size)

    cdef void* _sys_mmap(self, int handle, size_t size) noexcept nogil:
        return NULL if self._stopped(CALL_MMAP, size) else PosixFiles._sys_mmap(self, handle, size)

    cdef FileMapping* _sys_mmap_read(self, int handle, size_t size) noexcept nogil:
        return NULL if self._stopped(CALL_MMAP, size) else PosixFiles._sys_mmap_read(self, handle, size)

    cdef int64_t _sys_fstat_size(self, int handle) noexcept nogil:
        return -1 if self._stopped(CALL_FSTAT, 0) else PosixFiles._sys_fstat_size(self, handle)

    cdef int _sys_rename(self, const char* source, const char* target) noexcept nogil:
        return -1 if self._stopped(CALL_RENAME, 0) else PosixFiles._sys_rename(self, source, target)

    cdef int _sys_unlink(self, const char* path) noexcept nogil:
        return -1 if self._stopped(CALL_UNLINK, 0) else PosixFiles._sys_unlink(self, path)
