"""Append side of the write-ahead log. `everwrite.wal_recovery.open_log` makes a writer."""

from libc.errno cimport ENAMETOOLONG
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

cimport cython

from everwrite.coding cimport Slice, buffer_free, buffer_init, buffer_reserve, slice_of
from everwrite.files cimport Files, OpenMode, set_errno
from everwrite.status cimport Status, check, fault_io, last_fault
from everwrite.wal_format cimport (
    WAL_FRAME_BYTES,
    WAL_HEADER_BYTES,
    WAL_PATH_BYTES,
    WAL_PAYLOAD_LIMIT,
    wal_path,
    wal_put_frame,
    wal_put_header,
)

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* now)

cdef enum:
    # A buffer that one large batch has grown beyond this is given back after the flush.
    PENDING_KEPT_BYTES = 1 << 22


cdef uint64_t _monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec


# A collector that cleared the reference to the files first would leave __dealloc__ unable to close.
@cython.no_gc_clear
cdef class WalWriter:
    """The end of a log. Positions (`start`, `durable`, `written`, `end`) are bytes from the beginning of the log.

    Thread safety: `make_durable` may run on any thread; the other methods are for one at a time.
    After a failed write or sync every method raises `StorageError`: close it and open the log again.
    """

    def __cinit__(self):
        self._handle = -1
        buffer_init(&self._pending)
        pthread_mutex_init(&self._state, NULL)
        pthread_mutex_init(&self._syncing, NULL)

    def __dealloc__(self):
        if self._handle >= 0 and self._files is not None:
            self._files.close(self._handle)
        buffer_free(&self._pending)
        free(self._starts)
        pthread_mutex_destroy(&self._state)
        pthread_mutex_destroy(&self._syncing)

    cdef int _begin(self, list starts, uint64_t end, int handle) except -1:
        """Go on from `end`, which is durable, in the last segment, whose handle becomes the writer's own."""
        self._handle = handle
        for start in starts:
            check(self._reserve_segment())
            self._starts[self._count] = start
            self._count += 1
        self._on_disk = self._count
        self.start = self._starts[0]
        self.durable = self.written = self.end = end
        return 0

    cdef int _fail(self, int status) noexcept nogil:
        """Remember the first failure. Needs _state."""
        if not self.failed:
            self._failure = last_fault()[0]
            self.failed = True
        return status

    cdef int _refuse(self) noexcept nogil:
        if self.failed:
            last_fault()[0] = self._failure
            return Status.ERR_FAILED
        return Status.ERR_CLOSED

    cdef int _reserve_segment(self) noexcept nogil:
        """Room for one more start. Needs _state, but for the first ones."""
        cdef size_t capacity
        cdef uint64_t* grown
        if self._count == self._capacity:
            capacity = self._capacity * 2 if self._capacity else 16
            grown = <uint64_t*>realloc(self._starts, capacity * sizeof(uint64_t))
            if grown == NULL:
                return Status.ERR_MEMORY
            self._starts = grown
            self._capacity = capacity
        return Status.OK

    cdef int append(self, Slice payload) noexcept nogil:
        cdef uint64_t held
        cdef bint roll
        cdef int status
        if self.failed or self._handle < 0:
            return self._refuse()
        if payload.size > WAL_PAYLOAD_LIMIT:
            return Status.ERR_TOO_LARGE
        held = self.end - self._starts[self._count - 1]
        roll = held > WAL_HEADER_BYTES and held + WAL_FRAME_BYTES + payload.size > self._segment_bytes
        if buffer_reserve(&self._pending, WAL_HEADER_BYTES + WAL_FRAME_BYTES + payload.size) < 0:
            return Status.ERR_MEMORY
        if roll:
            pthread_mutex_lock(&self._state)
            status = self._reserve_segment()
            if status == Status.OK:
                self._starts[self._count] = self.end
                self._count += 1
            pthread_mutex_unlock(&self._state)
            if status < 0:
                return status
            wal_put_header(self._pending.data + self._pending.size, self._store_id, self.end)
            self._pending.size += WAL_HEADER_BYTES
            self.end += WAL_HEADER_BYTES
        wal_put_frame(
            self._pending.data + self._pending.size, self.end, self.durable, payload.data, <uint32_t>payload.size
        )
        self._pending.size += WAL_FRAME_BYTES + payload.size
        self.end += WAL_FRAME_BYTES + payload.size
        self.appended_bytes += WAL_FRAME_BYTES + payload.size
        return Status.OK

    cdef int flush(self) noexcept nogil:
        cdef const char* data = <const char*>self._pending.data
        cdef uint64_t base = self.written
        cdef int status = Status.OK
        if self.failed or self._handle < 0:
            return self._refuse()
        while self._on_disk < self._count and status == Status.OK:
            status = self._write(data + (self.written - base), self._starts[self._on_disk])
            if status == Status.OK:
                status = self._roll()
        if status == Status.OK:
            status = self._write(data + (self.written - base), self.end)
        if status < 0:
            pthread_mutex_lock(&self._state)
            self._fail(status)
            pthread_mutex_unlock(&self._state)
            return status
        self._pending.size = 0
        if self._pending.capacity > PENDING_KEPT_BYTES:
            buffer_free(&self._pending)
        return Status.OK

    cdef int _write(self, const char* data, uint64_t until) noexcept nogil:
        """Hand the bytes from `written` to `until`, which lie in the current segment, to the file system."""
        cdef uint64_t start = self._starts[self._on_disk - 1]
        cdef int status
        if until == self.written:
            return Status.OK
        status = self._files.write(self._handle, self.written - start, data, until - self.written)
        if status < 0:
            return status
        pthread_mutex_lock(&self._state)
        self.written = until
        pthread_mutex_unlock(&self._state)
        return Status.OK

    cdef int _roll(self) noexcept nogil:
        """Go over to the next segment. The old one is made durable first, so that only the last can be torn."""
        cdef char path[WAL_PATH_BYTES]
        cdef int handle = -1
        cdef int old
        cdef int status
        if wal_path(path, self._folder_path, self._starts[self._on_disk]) < 0:
            set_errno(ENAMETOOLONG)
            return fault_io(self._folder_path, "naming a log segment")
        pthread_mutex_lock(&self._syncing)
        status = self._refuse() if self.failed else self._files.sync(self._handle)
        if status >= 0:
            status = handle = self._files.open(path, OpenMode.OPEN_FRESH)
        if status >= 0:
            status = self._files.sync_dir(self._folder_path)
        if status < 0:
            if handle >= 0:
                self._files.close(handle)
            pthread_mutex_unlock(&self._syncing)
            return status
        pthread_mutex_lock(&self._state)
        old = self._handle
        self._handle = handle
        self._on_disk += 1
        self.syncs += 1
        self.durable = self.written
        pthread_mutex_unlock(&self._state)
        pthread_mutex_unlock(&self._syncing)
        return self._files.close(old)

    cdef int sync(self) noexcept nogil:
        cdef uint64_t target
        cdef uint64_t began
        cdef int handle
        cdef int status = Status.OK
        # Whoever has waited here finds that the sync before may have covered what it came for.
        cdef uint64_t wanted = self.written
        pthread_mutex_lock(&self._syncing)
        pthread_mutex_lock(&self._state)
        target = self.written
        handle = self._handle
        if self.failed or handle < 0:
            status = self._refuse()
        elif self.durable < wanted:
            pthread_mutex_unlock(&self._state)
            began = _monotonic_ns()
            status = self._files.sync(handle)
            pthread_mutex_lock(&self._state)
            self.sync_nanoseconds += _monotonic_ns() - began
            if status < 0:
                self._fail(status)
            else:
                self.syncs += 1
                self.durable = target
        pthread_mutex_unlock(&self._state)
        pthread_mutex_unlock(&self._syncing)
        return status

    def extend(self, payloads):
        """Append each of `payloads` (bytes) as a frame of its own and write them to the file together."""
        cdef const unsigned char[::1] view
        cdef int status
        for payload in payloads:
            view = payload
            check(self.append(slice_of(&view[0] if view.shape[0] else NULL, view.shape[0])))
        with nogil:
            status = self.flush()
        check(status)

    def make_durable(self):
        """Wait until all that was written is on the device."""
        cdef int status
        with nogil:
            status = self.sync()
        check(status)

    def segments(self):
        """The segment files, oldest first: a list of (start, end) positions. The last one ends at `written`."""
        pthread_mutex_lock(&self._state)
        starts = [self._starts[i] for i in range(self._on_disk)]
        written = self.written
        pthread_mutex_unlock(&self._state)
        return list(zip(starts, [*starts[1:], written], strict=True))

    def cut(self, uint64_t position):
        """Delete the segments that end at or before `position`, oldest first; the last one stays."""
        cdef char path[WAL_PATH_BYTES]
        if self.failed or self._handle < 0:
            check(self._refuse())
        while self._on_disk > 1 and self._starts[1] <= position:
            if wal_path(path, self._folder_path, self._starts[0]) < 0:
                raise ValueError(f"the path of the log folder is too long: {self._folder!r}")
            # One at a time: a crash must leave no gap between the segments that remain.
            check(self._files.unlink(path))
            pthread_mutex_lock(&self._state)
            self._count -= 1
            self._on_disk -= 1
            memmove(self._starts, self._starts + 1, self._count * sizeof(uint64_t))
            self.start = self._starts[0]
            pthread_mutex_unlock(&self._state)
            check(self._files.sync_dir(self._folder_path))

    def close(self):
        """Write and sync what was appended, and close; once more is fine. After a failure it only closes."""
        cdef int status = Status.OK
        cdef int handle
        if self._handle < 0:
            return
        if not self.failed:
            with nogil:
                status = self.flush()
                if status >= 0:
                    status = self.sync()
        with nogil:
            pthread_mutex_lock(&self._syncing)
            pthread_mutex_lock(&self._state)
            handle = self._handle
            self._handle = -1
            pthread_mutex_unlock(&self._state)
            pthread_mutex_unlock(&self._syncing)
        self._files.close(handle)
        check(status)


cdef WalWriter new_writer(Files files, bytes folder, uint64_t store_id, uint64_t segment_bytes):
    """A writer without a file yet; give it one with `_begin`."""
    cdef WalWriter writer = WalWriter.__new__(WalWriter)
    writer._files = files
    writer._folder = folder
    writer._folder_path = folder
    writer._store_id = store_id
    writer._segment_bytes = segment_bytes
    return writer
