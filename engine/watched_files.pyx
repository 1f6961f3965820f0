"""A layer over any `Files` that tells each call to a function first, which may let it fail.

So a test sees every storage system call of a run, makes the k-th one fail, or takes a copy of the
disk before it.
"""

from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint8_t, uint64_t

cimport cython

import os

from everwrite.errors import StorageError

from everwrite.files cimport Files, OpenMode, set_errno
from everwrite.status cimport Status, fault_io

_DOING = {
    "open": b"opening a file",
    "create": b"opening a file",
    "close": b"closing a file",
    "read": b"reading a file",
    "write": b"writing a file",
    "sync": b"syncing a file",
    "truncate": b"truncating a file",
    "allocate": b"reserving space for a file",
    "map": b"mapping a file",
    "size": b"asking for a file's size",
    "rename": b"renaming a file",
    "unlink": b"removing a file",
    "sync_dir": b"syncing a folder",
    "list": b"listing a folder",
    "mkdir": b"making a folder",
    "lock": b"opening the lock file",
}


cdef int _fault(const char* path, str operation, int number):
    cdef bytes doing = _DOING[operation]
    set_errno(number)
    return fault_io(path, doing)


# A collector that cleared the reference to the files first would leave nobody to close them.
@cython.no_gc_clear
cdef class WatchedFiles(Files):
    """Files that ask `watch(operation, path, size)` before each call goes to `inner`.

    `operation`: "open", "create" (an open that may make or empty the file), "close", "read", "write", "sync",
    "truncate", "allocate", "map", "size", "rename", "unlink", "sync_dir", "list", "mkdir" or "lock". `path`: the
    file's, as bytes; of a rename the source. `size`: bytes of a read, write or mapping, the new size of a
    truncation or allocation, else 0. A file whose "map" fails is written to instead.
    `watch` returns None to go on, or an errno with which the call fails, nothing done. For a write it may return
    (errno, n): the first n bytes are written, then it fails. An exception that it raises is kept in
    `error`, and the call fails with EIO: system calls have nobody to raise it to.

    Thread safety: that of `inner` and `watch`.
    """

    cdef Files inner
    cdef object watch
    cdef dict paths                    # handle -> path
    cdef readonly object error

    def __init__(self, Files inner not None, watch):
        self.inner = inner
        self.watch = watch
        self.paths = {}

    cdef int _ask(self, str operation, bytes path, uint64_t size, size_t* partial):
        """The errno with which the call is to fail, or 0."""
        try:
            answer = self.watch(operation, path, size)
            if answer is None:
                return 0
            if isinstance(answer, tuple):
                answer, partial[0] = answer
            return answer
        except BaseException as error:
            # For the test to look at.
            if self.error is None:
                self.error = error
            return EIO

    cdef int _refused(self, str operation, const char* path, uint64_t size) noexcept with gil:
        cdef size_t partial = 0
        cdef int number = self._ask(operation, path, size, &partial)
        if number == 0:
            return Status.OK
        return _fault(path, operation, number)

    cdef int _refused_at(self, str operation, int handle, uint64_t size, size_t* partial) noexcept with gil:
        cdef bytes path = self.paths.get(handle, b"a closed file")
        cdef int number = self._ask(operation, path, size, partial)
        if number == 0:
            return Status.OK
        return _fault(path, operation, number)

    cdef void _opened(self, int handle, const char* path) noexcept with gil:
        self.paths[handle] = <bytes>path

    cdef void _closed(self, int handle) noexcept with gil:
        self.paths.pop(handle, None)

    cdef int open(self, const char* path, int mode) noexcept nogil:
        cdef int status
        with gil:
            status = self._refused("open" if mode == OpenMode.OPEN_READ else "create", path, 0)
        if status < 0:
            return status
        status = self.inner.open(path, mode)
        if status >= 0:
            self._opened(status, path)
        return status

    cdef int close(self, int handle) noexcept nogil:
        cdef size_t partial = 0
        cdef int status
        cdef int closed
        with gil:
            status = self._refused_at("close", handle, 0, &partial)
        self._closed(handle)
        # As with the system's: a close that fails has closed it all the same.
        closed = self.inner.close(handle)
        return status if status < 0 else closed

    cdef int64_t read(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil:
        cdef size_t partial = 0
        cdef int status
        with gil:
            status = self._refused_at("read", handle, size, &partial)
        return status if status < 0 else self.inner.read(handle, offset, data, size)

    cdef int write(self, int handle, uint64_t offset, const void* data, size_t size) noexcept nogil:
        cdef size_t partial = 0
        cdef int status
        with gil:
            status = self._refused_at("write", handle, size, &partial)
        if status == Status.OK:
            return self.inner.write(handle, offset, data, size)
        if partial:
            self.inner.write(handle, offset, data, min(partial, size))
        return status

    cdef int sync(self, int handle) noexcept nogil:
        cdef size_t partial = 0
        cdef int status
        with gil:
            status = self._refused_at("sync", handle, 0, &partial)
        return status if status < 0 else self.inner.sync(handle)

    cdef int truncate(self, int handle, uint64_t size) noexcept nogil:
        cdef size_t partial = 0
        cdef int status
        with gil:
            status = self._refused_at("truncate", handle, size, &partial)
        return status if status < 0 else self.inner.truncate(handle, size)

    cdef int allocate(self, int handle, uint64_t size) noexcept nogil:
        cdef size_t partial = 0
        cdef int status
        with gil:
            status = self._refused_at("allocate", handle, size, &partial)
        return status if status < 0 else self.inner.allocate(handle, size)

    cdef uint8_t* map(self, int handle, size_t size) noexcept nogil:
        cdef size_t partial = 0
        cdef int status
        with gil:
            status = self._refused_at("map", handle, size, &partial)
        return NULL if status < 0 else self.inner.map(handle, size)

    cdef void unmap(self, uint8_t* data, size_t size) noexcept nogil:
        self.inner.unmap(data, size)

    cdef int64_t size(self, int handle) noexcept nogil:
        cdef size_t partial = 0
        cdef int status
        with gil:
            status = self._refused_at("size", handle, 0, &partial)
        return status if status < 0 else self.inner.size(handle)

    cdef int rename(self, const char* source, const char* target) noexcept nogil:
        cdef int status
        with gil:
            status = self._refused("rename", source, 0)
        return status if status < 0 else self.inner.rename(source, target)

    cdef int unlink(self, const char* path) noexcept nogil:
        cdef int status
        with gil:
            status = self._refused("unlink", path, 0)
        return status if status < 0 else self.inner.unlink(path)

    cdef int sync_dir(self, const char* path) noexcept nogil:
        cdef int status
        with gil:
            status = self._refused("sync_dir", path, 0)
        return status if status < 0 else self.inner.sync_dir(path)

    def _check(self, str operation, path):
        cdef size_t partial = 0
        name = os.fsencode(path)
        number = self._ask(operation, name, 0, &partial)
        if number:
            doing = (<bytes>_DOING[operation]).decode()
            raise StorageError(number, f"{doing}: {os.strerror(number)}", os.fsdecode(name))

    def listdir(self, path):
        """The names in the folder `path`, sorted."""
        self._check("list", path)
        return self.inner.listdir(path)

    def mkdir(self, path):
        """Make the folder `path` and those above it, durably. One that exists is fine."""
        self._check("mkdir", path)
        self.inner.mkdir(path)

    def exists(self, path):
        """Whether a file or folder `path` exists."""
        return self.inner.exists(path)

    def lock(self, path):
        """Take the lock file `path` and return an object whose `release()` gives it back.

        Raises `LockedError`, naming the holder's process id, when it is taken.
        """
        self._check("lock", path)
        return self.inner.lock(path)
