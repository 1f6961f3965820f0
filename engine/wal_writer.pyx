"""The end of the write-ahead log. `everwrite.wal_recovery.open_log` makes a writer."""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memmove

cimport cython

from everwrite.coding cimport slice_of
from everwrite.commit_queue cimport Waiter, commit_call, commit_take, commit_wait
from everwrite.files cimport Files
from everwrite.status cimport Status, check
from everwrite.threads cimport (
    ew_cond_init,
    ew_cond_wait_ms,
    pthread_cond_broadcast,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from everwrite.wal_appender cimport WalAppender
from everwrite.wal_format cimport WAL_PATH_BYTES, wal_path
from everwrite.wal_segment cimport Segment, segment_discard


# As its base class.
@cython.no_gc_clear
cdef class WalWriter(WalAppender):
    """The end of a log; see `WalAppender` for what fails when."""

    cdef int tend_for(self, int64_t milliseconds) noexcept nogil:
        cdef Segment spare
        cdef unsigned int number = 0
        cdef bint sealing, making
        cdef int status = Status.OK
        pthread_mutex_lock(&self._state)
        while True:
            sealing = self._sealed < self._older_count
            making = self._spare_wanted and not self._spare_ready
            if sealing or making or self._closed or not milliseconds:
                break
            ew_cond_wait_ms(&self._work, &self._state, milliseconds)
            milliseconds = 0
        if self.failed or self._closed:
            pthread_mutex_unlock(&self._state)
            return Status.OK
        pthread_mutex_unlock(&self._state)
        if making:
            status = self._make_spare(self._segment_bytes, &spare, &number)
            pthread_mutex_lock(&self._state)
            # One that can't be made is for whoever needs it to complain about.
            making = status == Status.OK and not self._closed and not self._spare_ready
            if making:
                self._spare = spare
                self._spare_number = number
                self._spare_ready = True
            else:
                self._spare_wanted = False
            pthread_mutex_unlock(&self._state)
            if status == Status.OK and not making:
                segment_discard(self._files, self._folder_path, number, &spare)
            status = Status.OK
        if sealing:
            status = self._sync_all(0)
        return status

    # ---- from Python ----

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

    def tend(self, int64_t milliseconds=0):
        """Wait up to so long for work, and do it: sync full segments, and make the next one ahead.

        For a thread in the background; without one, call it now and then.
        """
        cdef int status
        with nogil:
            status = self.tend_for(milliseconds)
        check(status)

    @property
    def mapped(self):
        """Whether frames are stored in a mapping of the file, without system calls."""
        return self._current.data != NULL and not self.buffered

    def segments(self):
        """The segment files, oldest first: a list of (start, end) positions. The last one ends at `written`."""
        pthread_mutex_lock(&self._state)
        starts = [self._older[i].start for i in range(self._older_count)]
        starts.append(self._current.start)
        written = self.written
        pthread_mutex_unlock(&self._state)
        return list(zip(starts, [*starts[1:], written], strict=True))

    def cut(self, uint64_t position):
        """Delete the segments that end at or before `position`, oldest first; the last one stays."""
        cdef char path[WAL_PATH_BYTES]
        cdef uint64_t end
        cdef bint sealed
        if self.failed or self._current.handle < 0:
            check(self._refuse())
        while True:
            pthread_mutex_lock(&self._state)
            sealed = self._sealed > 0
            end = self._older[1].start if self._older_count > 1 else self._current.start
            end = end if self._older_count else position + 1
            pthread_mutex_unlock(&self._state)
            if end > position:
                return
            if not sealed:
                self.make_durable()
                continue
            if wal_path(path, self._folder_path, self.start) < 0:
                raise ValueError(f"the path of the log folder is too long: {self._folder!r}")
            # One at a time: a crash must leave no gap between the segments that remain.
            check(self._files.unlink(path))
            pthread_mutex_lock(&self._state)
            self._older_count -= 1
            self._sealed -= 1
            memmove(self._older, self._older + 1, self._older_count * sizeof(Segment))
            self.start = end
            pthread_mutex_unlock(&self._state)
            check(self._files.sync_dir(self._folder_path))

    def close(self):
        """Write and sync what was appended, and close; once more is fine. After a failure it only closes."""
        cdef Waiter* waiting
        cdef int status = Status.OK
        if self._current.handle < 0:
            return
        with nogil:
            if not self.failed:
                status = self.flush()
                if status >= 0:
                    status = self.sync()
            pthread_mutex_lock(&self._state)
            self._closed = True
            pthread_cond_broadcast(&self._work)
            while self._syncing:
                commit_wait(&self._waiters, 0, &self._state)
                pthread_mutex_lock(&self._state)
            pthread_mutex_unlock(&self._state)
            if self._spare_ready:
                self._spare_ready = False
                segment_discard(self._files, self._folder_path, self._spare_number, &self._spare)
            if self._current.data != NULL:
                self._files.unmap(self._current.data, self._current.mapped)
                self._current.data = NULL
            if not self.failed and status >= 0 and self._current.allocated > self.written - self._current.start:
                # Zeros at the end do no harm, but need space.
                self._files.truncate(self._current.handle, self.written - self._current.start)
            self._release_files()
            pthread_mutex_lock(&self._state)
            waiting = commit_take(&self._waiters, self.end)
            pthread_mutex_unlock(&self._state)
            commit_call(waiting)
        check(status)

    def dismiss(self):
        """Send whoever waits in `tend` home; it does nothing from now on."""
        pthread_mutex_lock(&self._state)
        self._closed = True
        pthread_cond_broadcast(&self._work)
        pthread_mutex_unlock(&self._state)

    def abandon(self, bint forked=False):
        """Let go of the files as they are; once more is fine.

        `forked`: in the child, where they, and whoever held the locks, are the parent's.
        """
        if forked:
            pthread_mutex_init(&self._state, NULL)
            ew_cond_init(&self._work)
            self._syncing = False
            self._waiters.first = self._waiters.last = NULL
        self._closed = True
        self._release_files()


cdef WalWriter new_writer(Files files, bytes folder, uint64_t store_id, uint64_t segment_bytes):
    """A writer without a file yet; give it one with `_begin`."""
    cdef WalWriter writer = WalWriter.__new__(WalWriter)
    writer._files = files
    writer._folder = folder
    writer._folder_path = folder
    writer._store_id = store_id
    writer._segment_bytes = segment_bytes
    return writer
