"""Appending to the write-ahead log, and making it durable."""

from libc.errno cimport EIO, ENAMETOOLONG
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

cimport cython

from everwrite.coding cimport Slice, buffer_free, buffer_init, buffer_reserve
from everwrite.commit_queue cimport Waiter, commit_call, commit_take, commit_wait
from everwrite.files cimport out_of_space, set_errno
from everwrite.status cimport Status, check, fault_io, last_fault
from everwrite.threads cimport (
    ew_cond_init,
    ew_monotonic_ns,
    ew_position,
    ew_raise,
    pthread_cond_destroy,
    pthread_cond_signal,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from everwrite.wal_format cimport (
    WAL_FRAME_BYTES,
    WAL_HEADER_BYTES,
    WAL_PATH_BYTES,
    WAL_PAYLOAD_LIMIT,
    wal_path,
    wal_put_frame,
    wal_put_header,
)
from everwrite.wal_segment cimport Segment, segment_discard, segment_grow, segment_make, segment_map
from everwrite.wal_segment cimport segment_release, segment_room, spare_path

cdef enum:
    # A buffer that one large batch has grown beyond this is given back after the flush.
    PENDING_KEPT_BYTES = 1 << 22
    # A segment's file grows by doubling from here, so that a small store's log is small.
    FIRST_STEP_BYTES = 1 << 16
    LARGE_FRAME_BYTES = 1 << 16  # these aren't copied, but into the mapping
    # Zeros are written so far ahead of buffered frames.
    ZEROED_STEP_BYTES = 1 << 18
    # Full segments that wait to be synced, before a writer helps: they bound what a restart reads.
    UNSEALED_MAX = 16


# A collector that cleared the reference to the files first would leave __dealloc__ unable to close.
@cython.no_gc_clear
cdef class WalAppender:
    """The end of a log. Positions (`start`, `durable`, `written`, `end`) are bytes from the beginning of the log.

    Thread safety: `extend` is for one thread at a time; the other methods may run beside it, on any thread.
    After a failed sync, or a write that failed for another reason than space, every method raises
    `StorageError`: close it and open the log again. Without space `extend` raises `ReadOnlyError`.
    """

    def __cinit__(self):
        self._current.handle = -1
        self._spare.handle = -1
        buffer_init(&self._pending)
        pthread_mutex_init(&self._state, NULL)
        ew_cond_init(&self._work)

    def __dealloc__(self):
        if self._files is not None:
            self._release_files()
        buffer_free(&self._pending)
        free(self._older)
        pthread_mutex_destroy(&self._state)
        pthread_cond_destroy(&self._work)

    cdef int _begin(self, list starts, uint64_t end, int handle) except -1:
        """Go on from `end`, which is durable, in the last segment, whose handle becomes the writer's own."""
        self._current.handle = handle
        self._current.start = max(starts)
        self._current.allocated = end - self._current.start
        segment_map(self._files, &self._current, self._segment_bytes)
        for start in starts[: len(starts) - 1]:
            check(segment_room(&self._older, &self._older_capacity, self._older_count))
            memset(&self._older[self._older_count], 0, sizeof(Segment))
            self._older[self._older_count].start = start
            self._older[self._older_count].handle = -1
            self._older_count += 1
        self._sealed = self._older_count
        self.start = starts[0]
        self.durable = self.written = self.end = end
        return 0

    # ---- failures ----

    cdef int _fail(self, int status) noexcept nogil:
        """Remember the first failure."""
        pthread_mutex_lock(&self._state)
        if not self.failed:
            self._failure = last_fault()[0]
            self.failed = True
        pthread_mutex_unlock(&self._state)
        return status

    cdef int _judge(self, int status) noexcept nogil:
        """What a call that failed before anything depended on it means for the writer."""
        if status != Status.ERR_IO:
            return status
        if out_of_space():
            return Status.ERR_READ_ONLY
        return self._fail(status) if last_fault().error_number == EIO else status

    cdef int _refuse(self) noexcept nogil:
        if self.failed:
            last_fault()[0] = self._failure
            return Status.ERR_FAILED
        return Status.ERR_CLOSED

    # ---- appending ----

    cdef bint _in_place(self, uint64_t size) noexcept nogil:
        """Whether the frame goes straight into the mapping."""
        return self._current.data != NULL and (not self.buffered or size >= LARGE_FRAME_BYTES)

    cdef int reserve(self, uint64_t size) noexcept nogil:
        cdef uint64_t need = WAL_FRAME_BYTES + size
        cdef int status = Status.OK
        if self.failed or self._current.handle < 0:
            return self._refuse()
        if size > WAL_PAYLOAD_LIMIT:
            return Status.ERR_TOO_LARGE
        if self.end - self._current.start + need > self._limit:
            status = self._make_room(need)
        if status == Status.OK and self._in_place(size):
            # It must not come before what waits to be written.
            status = self.flush() if self._pending.size else <int>Status.OK
            need = min(need, WAL_FRAME_BYTES + LARGE_FRAME_BYTES)
        # What comes may be smaller than what room was asked for.
        if status == Status.OK and (self.buffered or self._current.data == NULL):
            status = Status.OK if buffer_reserve(&self._pending, need) == 0 else Status.ERR_MEMORY
        return status

    cdef int append(self, Slice payload) noexcept nogil:
        return self.append_parts(&payload, 1)

    cdef int append_parts(self, const Slice* parts, size_t count) noexcept nogil:
        cdef uint64_t size = 0
        cdef uint8_t* at
        cdef int status
        cdef size_t i
        for i in range(count):
            size += parts[i].size
        status = self.reserve(size)
        if status < 0:
            return status
        if self._in_place(size):
            at = self._current.data + (self.end - self._current.start)
        else:
            at = self._pending.data + self._pending.size
            self._pending.size += WAL_FRAME_BYTES + size
        wal_put_frame(at, self.end, self.durable, parts, count, <uint32_t>size)
        self.appended_bytes += WAL_FRAME_BYTES + size
        self.end += WAL_FRAME_BYTES + size
        if self._pending.size == 0:
            ew_raise(&self.written, self.end)
        return Status.OK

    cdef int flush(self) noexcept nogil:
        cdef int status
        if self.failed or self._current.handle < 0:
            return self._refuse()
        if self._pending.size == 0:
            return Status.OK
        status = self._files.write(
            self._current.handle, self.written - self._current.start, self._pending.data, self._pending.size
        )
        if status == Status.ERR_IO and out_of_space():
            if self._current.data == NULL:
                # It stays to be written: the next frame comes behind it.
                self._limit = 0
                return Status.ERR_READ_ONLY
            # Its space is reserved, and what these frames say is visible already: the mapping takes it.
            memcpy(self._current.data + (self.written - self._current.start), self._pending.data, self._pending.size)
        elif status < 0:
            return self._fail(status)
        ew_raise(&self.written, self.end)
        self._pending.size = 0
        if self._pending.capacity > PENDING_KEPT_BYTES:
            buffer_free(&self._pending)
        return Status.OK

    # ---- room ----

    cdef int _make_room(self, uint64_t need) noexcept nogil:
        """Have `need` bytes of the current segment, or of a new one, reserved behind `end`."""
        cdef uint64_t offset = self.end - self._current.start
        cdef uint64_t half = self._segment_bytes // 2
        cdef uint64_t wanted
        cdef int status = Status.OK
        if self._pending.size and self._limit == 0:
            status = self.flush()
        if status == Status.OK and offset > WAL_HEADER_BYTES and offset + need > self._segment_bytes:
            status = self._roll(need)
            offset = self.end - self._current.start
        if status == Status.OK and offset + need > self._current.allocated:
            wanted = min(max(2 * self._current.allocated, <uint64_t>FIRST_STEP_BYTES), self._segment_bytes)
            status = self._judge(
                segment_grow(self._files, &self._current, max(wanted, offset + need), offset + need)
            )
        if status < 0:
            return status
        self._limit = self._current.allocated
        status = self._prepare_ahead(offset + need)
        if status < 0:
            return status
        if offset + need <= half:
            # Come here again at the half, if the file reaches so far.
            self._limit = min(self._limit, half)
        elif not self._spare_wanted:
            pthread_mutex_lock(&self._state)
            self._spare_wanted = True
            pthread_cond_signal(&self._work)
            pthread_mutex_unlock(&self._state)
        return Status.OK

    cdef int _prepare_ahead(self, uint64_t reach) noexcept nogil:
        """Have zeros written to where buffered frames up to `reach` in the current segment will go, and further."""
        cdef uint64_t end = min(reach + ZEROED_STEP_BYTES, self._current.allocated)
        cdef uint64_t start = max(self._current.zeroed, self.end - self._current.start)
        cdef int status
        # Where files can't be mapped, blocks are promised only when they are written, and each time anew.
        if not self.buffered or self._current.data == NULL:
            return Status.OK
        if reach > self._current.zeroed:
            if reach - start < LARGE_FRAME_BYTES:
                status = self._files.write_zeros(self._current.handle, start, end)
                # The space is reserved, and zeros only make it faster: without them the frames still find room.
                if status < 0 and not (status == Status.ERR_IO and out_of_space()):
                    self._limit = 0
                    return self._judge(status)
            else:
                # A large frame changes the metadata once.
                end = reach
            self._current.zeroed = end
        self._limit = min(self._limit, self._current.zeroed)
        return Status.OK

    cdef int _make_spare(self, uint64_t need, Segment* spare, unsigned int* number) noexcept nogil:
        """Make a file that may become the next segment, with `need` bytes reserved."""
        cdef uint64_t wanted = max(need, min(<uint64_t>FIRST_STEP_BYTES, self._segment_bytes))
        cdef uint64_t reach = max(need, self._segment_bytes)
        pthread_mutex_lock(&self._state)
        number[0] = self._spares_named
        self._spares_named += 1
        pthread_mutex_unlock(&self._state)
        return segment_make(self._files, self._folder_path, number[0], wanted, need, reach, spare)

    cdef int _take_spare(self, uint64_t need, Segment* spare, unsigned int* number) noexcept nogil:
        cdef bint ready
        cdef int status
        pthread_mutex_lock(&self._state)
        ready = self._spare_ready
        spare[0] = self._spare
        number[0] = self._spare_number
        self._spare_ready = False
        self._spare.handle = -1
        self._spare.data = NULL
        # Whoever begins the next segment wants one again when that is half full.
        self._spare_wanted = False
        pthread_mutex_unlock(&self._state)
        if not ready:
            return self._make_spare(need, spare, number)
        if spare.allocated >= need:
            return Status.OK
        status = segment_grow(self._files, spare, need, need)
        if status < 0:
            segment_discard(self._files, self._folder_path, number[0], spare)
        return status

    cdef int _roll(self, uint64_t need) noexcept nogil:
        """Go over to the next segment, at `end`. The old one is left to `tend` and `sync`."""
        cdef char path[WAL_PATH_BYTES]
        cdef char made[WAL_PATH_BYTES]
        cdef uint8_t header[WAL_HEADER_BYTES]
        cdef Segment spare
        cdef unsigned int number = 0
        cdef int status = self.flush()
        if status == Status.OK and self._older_count - self._sealed >= UNSEALED_MAX:
            # The caller may hold the GIL, for which whoever syncs may wait.
            with gil:
                with nogil:
                    status = self._sync_all(0)
        if status < 0:
            return status
        if wal_path(path, self._folder_path, self.end) < 0:
            set_errno(ENAMETOOLONG)
            return fault_io(self._folder_path, "naming a log segment")
        status = self._take_spare(WAL_HEADER_BYTES + need, &spare, &number)
        if status < 0:
            return self._judge(status)
        spare.start = self.end
        if spare.data != NULL:
            wal_put_header(spare.data, self._store_id, self.end, self.durable)
        else:
            wal_put_header(header, self._store_id, self.end, self.durable)
            status = self._files.write(spare.handle, 0, header, WAL_HEADER_BYTES)
        if status == Status.OK:
            pthread_mutex_lock(&self._state)
            status = segment_room(&self._older, &self._older_capacity, self._older_count)
            pthread_mutex_unlock(&self._state)
        if status == Status.OK:
            spare_path(made, self._folder_path, number)
            # Only now, so that no segment of a process that was killed lacks its header.
            status = self._files.rename(made, path)
        if status == Status.OK:
            pthread_mutex_lock(&self._state)
            self._older[self._older_count] = self._current
            self._older_count += 1
            self._current = spare
            self._names_changed = True
            self.end += WAL_HEADER_BYTES
            ew_raise(&self.written, self.end)
            pthread_cond_signal(&self._work)
            pthread_mutex_unlock(&self._state)
            return Status.OK
        status = self._judge(status)
        segment_discard(self._files, self._folder_path, number, &spare)
        return status

    cdef int begin_segment(self) noexcept nogil:
        if self.end - self._current.start <= WAL_HEADER_BYTES:
            return Status.OK
        self._limit = 0  # whoever appends next looks at the room of the new segment first
        return self._refuse() if self.failed else self._roll(0)

    # ---- syncing ----

    cdef int sync(self) noexcept nogil:
        return self._sync_all(self.written)

    cdef int _sync_all(self, uint64_t wanted) noexcept nogil:
        """Wait until all up to `wanted` is durable; 0: until the full segments are."""
        cdef Waiter* waiting
        cdef bint waited = False
        cdef int status = Status.OK
        pthread_mutex_lock(&self._state)
        while True:
            if self.failed or self._current.handle < 0:
                # The sync that this one waited for may have been the last good one.
                if not waited or wanted == 0 or self.durable < wanted:
                    status = self._refuse()
                break
            if self._sealed == self._older_count if wanted == 0 else self.durable >= wanted:
                break
            if self._syncing:
                commit_wait(&self._waiters, wanted, &self._state)
                if wanted and ew_position(&self.durable) >= wanted:
                    return Status.OK
                waited = True
                pthread_mutex_lock(&self._state)
                continue
            self._syncing = True
            status = self._sync_held(wanted)
            self._syncing = False
            waiting = commit_take(&self._waiters, self.end if self.failed else self.durable)
            pthread_mutex_unlock(&self._state)
            commit_call(waiting)
            if status < 0:
                return status
            pthread_mutex_lock(&self._state)
        pthread_mutex_unlock(&self._state)
        return status

    cdef int _sync_held(self, uint64_t wanted) noexcept nogil:
        """Seal the full segments; sync the current one, too, if `wanted` lies in it. Needs _state, and leaves it."""
        cdef uint64_t target
        cdef uint64_t began
        cdef int handle
        cdef int status = Status.OK
        while self._sealed < self._older_count and status == Status.OK:
            status = self._seal_held()
        if status < 0 or self.durable >= wanted:
            return status
        target = self.written
        handle = self._current.handle
        if self._names_changed:
            status = self._sync_names_held()
        pthread_mutex_unlock(&self._state)
        began = ew_monotonic_ns()
        if status == Status.OK:
            status = self._files.sync(handle)
            if status < 0:
                self._fail(status)
        pthread_mutex_lock(&self._state)
        self.sync_nanoseconds += ew_monotonic_ns() - began
        if status == Status.OK:
            self.syncs += 1
            ew_raise(&self.durable, target)
        return status

    cdef int _sync_names_held(self) noexcept nogil:
        cdef int status
        self._names_changed = False
        pthread_mutex_unlock(&self._state)
        status = self._files.sync_dir(self._folder_path)
        if status < 0:
            self._fail(status)
        pthread_mutex_lock(&self._state)
        return status

    cdef int _seal_held(self) noexcept nogil:
        """Make the first unsealed segment durable and close it. Needs _state, and leaves it meanwhile."""
        cdef Segment segment = self._older[self._sealed]
        cdef uint64_t end
        cdef uint64_t began = ew_monotonic_ns()
        cdef int status = Status.OK
        end = self._current.start
        if self._sealed + 1 < self._older_count:
            end = self._older[self._sealed + 1].start
        self._older[self._sealed].data = NULL
        if self._names_changed:
            status = self._sync_names_held()
            if status < 0:
                self._older[self._sealed].data = segment.data
                return status
        pthread_mutex_unlock(&self._state)
        if segment.data != NULL:
            self._files.unmap(segment.data, segment.mapped)
        if segment.allocated > end - segment.start:
            # Only to give the space back: zeros at the end do no harm.
            self._files.truncate(segment.handle, end - segment.start)
        status = self._files.sync(segment.handle)
        if status < 0:
            self._fail(status)
        else:
            self._files.close(segment.handle)
        pthread_mutex_lock(&self._state)
        if status == Status.OK:
            self._older[self._sealed].handle = -1
            self._sealed += 1
            self.syncs += 1
            self.sync_nanoseconds += ew_monotonic_ns() - began
            ew_raise(&self.durable, end)
        return status

    cdef void _release_files(self) noexcept nogil:
        """Unmap and close everything."""
        cdef size_t i
        for i in range(self._sealed, self._older_count):
            segment_release(self._files, &self._older[i])
        segment_release(self._files, &self._current)
        segment_release(self._files, &self._spare)
