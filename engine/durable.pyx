"""Files under the keys: opening, recovery, durability, maintenance, closing; see durable.pxd."""

from libc.stdint cimport int64_t, uint64_t

import os
import threading
import time
import weakref
from dataclasses import replace

import msgpack
import zstandard

from everwrite.clock cimport HybridClock, vector_dict, vector_load
from everwrite.coding cimport Slice
from everwrite.digest cimport leaves_bytes, leaves_load
from everwrite.frames cimport FramedKeyspace, pieces_free
from everwrite.refusals cimport NO_SPACE_FOR_IDENTITY, NO_SPACE_TO_COMPACT, NO_SPACE_TO_FLUSH
from everwrite.lsm cimport Lsm
from everwrite.status cimport Status, check
from everwrite.threads cimport ew_recursive_mutex_init
from everwrite.wal_reader cimport WalReader

from everwrite.background import close_in_forks, new_worker, start_tending
from everwrite.errors import ConfigError, CorruptionError, StorageError
from everwrite.files import PosixFiles
from everwrite.identity import Identity, decode_identity, encode_identity, next_identity, place_of
from everwrite.options import number_of, path_of
from everwrite.refusals import RETRY_SECONDS
from everwrite.waiting import Alarm, end_threads, pause
from everwrite.wal_recovery import SEGMENT_BYTES_MIN, open_log

DURABILITIES = ("always", "interval", "os")
# A wall clock that steps sends every thread to write IDENTITY at once. One lock for all stores: it is rarely needed.
_identity_lock = threading.Lock()
cdef enum Tuning:
    CLOCK_AHEAD_MS = 20000       # how far ahead the clock's bound is persisted
    SYNC_INTERVAL_MS = 1000      # durability `interval`
    PROBE_BYTES = 1 << 16        # of room in the log, before a disk no longer counts as full
    INDEX_EVERY = 1 << 20        # bytes of log between two entries of the position index
    FROZEN_MAX = 2               # full memory tables that are frozen before writers wait for the flush


cdef class DurableKeyspace(FramedKeyspace):
    """Keys that outlive the process: `Store` adds what goes between stores."""

    def __cinit__(self, *args, **kwargs):
        self.closed = True
        # Until it is open, and when that fails: whoever uses it nevertheless gets an answer.
        self.failed = Status.ERR_CLOSED
        self.clock = HybridClock(0)
        self.snapshots = weakref.WeakSet()

    def __init__(
        self,
        path,
        durability="always",
        *,
        create=True,
        max_clock_drift_ms=500,
        memtable_bytes=64 << 20,
        block_cache_bytes=256 << 20,
        mapped_reads=True,
        log_keep_bytes=256 << 20,
        segment_bytes=64 << 20,
        files=None,
        background=True,
        store_id=None,
        now_ms=0,
    ):
        if self.lsm is not None:
            raise RuntimeError(f"{self.path}: this object was opened before; make another one with everwrite.open")
        if durability not in DURABILITIES:
            raise ConfigError(f"durability is {durability!r}; it must be one of {', '.join(DURABILITIES)}")
        self.path = path_of(path)
        self.durability = durability
        self.sync_always = durability == "always"
        self.files = PosixFiles() if files is None else files
        self.log_keep_bytes = number_of("log_keep_bytes", log_keep_bytes, 0)
        self.memtable_bytes = number_of("memtable_bytes", memtable_bytes, 1)
        segment_bytes = number_of("segment_bytes", segment_bytes, SEGMENT_BYTES_MIN)
        block_cache_bytes = number_of("block_cache_bytes", block_cache_bytes, 0)
        self.clock = HybridClock(number_of("max_clock_drift_ms", max_clock_drift_ms, 0))
        self.clock.manual_ms = now_ms
        self.log_index = []
        self.durable_vector = {}
        if store_id is None:
            store_id = int.from_bytes(os.urandom(6), "big")
        if not create and not self.files.exists(self._file("IDENTITY")):
            raise StorageError(f"{self.path}: no store here, and none is to be made")
        self.files.mkdir(self.path)
        self.lock_file = self.files.lock(self._file("LOCK"))
        self.failed = Status.OK
        try:
            reading = {"block_cache_bytes": block_cache_bytes, "mapped_reads": mapped_reads}
            self._open(store_id, reading, segment_bytes)
        except BaseException:
            self.failed = Status.ERR_CLOSED
            self.lock_file.release()
            raise
        self.closed = False
        close_in_forks(self)
        if background:
            self.wake = Alarm()
            self.thread = new_worker(self, "maintain", self.wake, 0.1)
            # Apart, so that a long compaction doesn't hold up the flush that writers may be waiting for.
            self.compaction_wake = Alarm()
            self.compaction_thread = new_worker(self, "merge_tables", self.compaction_wake, 1.0)
            # Apart from both, so that writers find the next segment of the log ready, whatever else goes on.
            self.log_thread = start_tending(self, self.wal)
            self.compaction_thread.start()
            self.thread.start()

    # ---- opening and closing ----

    def _file(self, name):
        return os.path.join(self.path, name)

    def _open(self, store_id, reading, segment_bytes):
        cdef uint64_t start = 0
        old = None
        name = self._file("IDENTITY")
        if self.files.exists(name):
            old = decode_identity(bytes(self.files.read_file(name)), name)
        elif self.files.exists(self._file("wal")):
            raise CorruptionError(
                f"{name}: missing beside a log: the directory is not whole; restore it from a backup", path=name
            )
        place = place_of(self.path) if isinstance(self.files, PosixFiles) else "memory"
        if old is None:
            # Persisted before anything else, so that a crash here can't leave a log without an owner.
            old = Identity(store_id, 0, False, 0, 0, 0, place, store_id)
            self.files.replace_file(name, encode_identity(old))
        self.lsm = Lsm(self.files, self._file("tables"), memtable_bytes=self.memtable_bytes, **reading)
        checkpoint = msgpack.unpackb(self.lsm.checkpoint, strict_map_key=False) if self.lsm.checkpoint else None
        if checkpoint is not None:
            start = checkpoint["position"]
            vector_load(&self.applied, checkpoint["applied"])
            vector_load(&self.horizon, checkpoint["horizon"])
            self.live_keys = checkpoint["live_keys"]
            self.conflicts_lww, self.conflicts_type, self.conflicts_add_remove = checkpoint["conflicts"]
        opened = open_log(
            self.files,
            self._file("wal"),
            old.log_id,
            replay_from=start,
            durable_to=old.log_end if old.clean else 0,
            segment_bytes=segment_bytes,
        )
        self.wal = opened.writer
        self.wal.buffered = self.sync_always
        self.torn_bytes = opened.dropped_bytes
        if checkpoint is not None:
            self.log_index = [(at, vector) for at, vector in checkpoint["index"] if at >= self.wal.start]
            self.clock.last = checkpoint["clock"]
            leaves_load(self.leaves, zstandard.ZstdDecompressor().decompress(checkpoint["digest"]))
        else:
            self.log_index = [(self.wal.start, {})]
        self.own_origin = 0
        self._replay(opened.reader)
        self.identity = next_identity(old, place=place, log_end=self.wal.end, fresh_store_id=store_id)
        # What an unclean stop issued and lost lies below the bound, and below now unless the wall clock was
        # set back. Starting at the bound itself would put this node ahead of its peers' drift limit.
        self.clock.last = max(
            self.clock.last,
            old.clock if old.clean else (old.clock_bound_ms - Tuning.CLOCK_AHEAD_MS) << 16,
            *vector_dict(&self.applied).values(),
            0,
        )
        self.frozen_at = self._flushed_position()
        self.own_origin = self.identity.origin
        self.store_id = self.identity.store_id
        self.local_changes = self.applied_changes = self.user_change_count = 0
        self.durable_vector = vector_dict(&self.applied)
        self._extend_clock_bound()
        if self.files.exists(self._file("BACKUP")):
            # From here on this is a store of its own, and no backup of another one.
            self.files.remove(self._file("BACKUP"))
            self.files.sync_folder(self.path)

    cdef int _replay(self, WalReader reader) except -1:
        cdef Slice payload
        cdef uint64_t end = self.wal.end
        cdef uint64_t start = reader.position
        cdef int status = 1
        while status == 1:
            with nogil:
                while True:
                    status = reader.next(end, &payload)
                    if status == 1:
                        status = self.replay_frame(payload)
                        if status == Status.OK:
                            status = 1
                    if status != 1 or self.lsm.wants_freeze():
                        break
                    if reader.position - start >= Tuning.INDEX_EVERY and self.pieces.count == 0:
                        break
            if status == 1:
                start = reader.position
                self.log_index.append((start, vector_dict(&self.applied)))
                if self.lsm.wants_freeze():
                    self.lsm.freeze(self._checkpoint(start))
                    self.lsm.flush_frozen()
        check(status)
        # Without the frame that would have joined them.
        pieces_free(&self.pieces)
        return 0

    def close(self):
        """Stop, make everything durable, and let go of the directory. Idempotent.

        Raises StorageError when the log can't be made durable; the store is closed all the same. What a signal
        handler raises meanwhile (KeyboardInterrupt) is raised when it is closed.
        """
        cdef bint served
        interruption = None
        if self.closed:
            return
        self.closed = True
        with nogil:
            # From here on no other thread gets past the lock to what is taken apart below.
            self.lock()
            served = not self.failed
            if served:
                self.failed = Status.ERR_CLOSED
            self.unlock()
        if self.thread is not None:
            self.wake.set()
            self.compaction_wake.set()
            self.wal.dismiss()
            interruption = end_threads((self.thread, self.compaction_thread, self.log_thread))
        try:
            if served and self.failure is None:
                self._check(_uncertain(self._write_log(True)))
                if self.wal.end - self._flushed_position() > Tuning.INDEX_EVERY or self.ranks_unlogged:
                    self._freeze()
                # Without space all is in the log still, and the next open takes it from there.
                self._attempt(NO_SPACE_TO_FLUSH, self._flush_frozen)
                self.wal.close()
                self._attempt(NO_SPACE_FOR_IDENTITY, self._sign_off)
        finally:
            try:
                self.wal.abandon()
                for snapshot in self._open_snapshots():
                    snapshot.let_go()
                self.lsm.close()
            finally:
                self.lock_file.release()
        if interruption is not None:
            raise interruption

    def _sign_off(self):
        with _identity_lock:
            self.identity = replace(self.identity, clean=True, log_end=self.wal.end, clock=self.clock.last)
            self.files.replace_file(self._file("IDENTITY"), encode_identity(self.identity))

    def _open_snapshots(self):
        with nogil:
            self.lock()
        try:
            return list(self.snapshots)
        finally:
            self.unlock()

    def _forked(self):
        """In the child of a fork: the files are the parent's, and whoever held the locks isn't here."""
        global _identity_lock
        _identity_lock = threading.Lock()
        ew_recursive_mutex_init(&self.mutex)
        self.wal.abandon(forked=True)
        self.failed = Status.ERR_CLOSED
        self.closed = True
        self.forked = True
        self.thread = None
        for snapshot in list(self.snapshots):
            snapshot._forked()

    def _flushed_position(self):
        return msgpack.unpackb(self.lsm.checkpoint, strict_map_key=False)["position"] if self.lsm.checkpoint else 0

    def _flushed_horizon(self):
        # A restart goes on from this one: what a later one covers must still be there then.
        return msgpack.unpackb(self.lsm.checkpoint, strict_map_key=False)["horizon"] if self.lsm.checkpoint else {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    # ---- durability ----

    cdef int reserve(self, uint64_t size) noexcept nogil:
        cdef int status
        if self.clock.last >= self.clock_bound and not self.refused:
            # Rare: the wall clock stepped, or the threads are late. Nothing at or beyond the bound may be exposed.
            with gil:
                try:
                    self._attempt(NO_SPACE_FOR_IDENTITY, self._extend_clock_bound)
                except BaseException as error:
                    # Native callers take no exception: the status says it, and the store keeps which it was.
                    self.stop_writing(error)
        status = FramedKeyspace.reserve(self, size)
        self.log_full = status == Status.ERR_READ_ONLY
        return status

    cdef int commit(self) noexcept nogil:
        cdef int status = Status.OK
        if self.failed or self.refused == Status.ERR_FAILED:
            return Status.ERR_FAILED
        if self.wal.end != self.wal.written or (self.sync_always and self.wal.durable < self.wal.written):
            status = self._write_log(self.sync_always)
            if status < 0:
                return _uncertain(status)
        return self._tend()

    cdef int commit_held(self) noexcept nogil:
        cdef int status = Status.OK
        if self.sync_always or self.failed or self.refused == Status.ERR_FAILED:
            self.unlock()
            return self.commit()
        if not self.atomic:
            # No system call, where the log is mapped.
            status = self.wal.flush()
        self.unlock()
        if status < 0:
            self._remember_status(status)
            return _uncertain(status)
        return self._tend()

    cdef int _tend(self) noexcept nogil:
        """After a write: what must not wait for the background thread."""
        cdef int status = Status.OK
        # Inside of an atomic group the memory table must stay what it is; the commit of the group comes by here.
        if not self.atomic and (self.clock.last >= self.clock_bound or self.lsm.wants_freeze()):
            with gil:
                try:
                    self._make_room()
                except BaseException as error:
                    # As in `reserve`.
                    self.stop_writing(error)
                    status = Status.ERR_FAILED
        return status

    cdef int _write_log(self, bint sync) noexcept nogil:
        cdef int status = Status.OK
        if self.wal.end != self.wal.written:
            self.lock()
            status = self.wal.flush()
            self.unlock()
        if status >= 0 and sync and self.wal.durable < self.wal.written:
            status = self.wal.sync()
        if status < 0:
            self._remember_status(status)
        return status

    cdef void _remember_status(self, int status) noexcept nogil:
        # What waits for space in memory is written with what comes next.
        if status == Status.ERR_READ_ONLY or self.refused == Status.ERR_FAILED:
            return
        with gil:
            try:
                check(status)
            except BaseException as error:
                # Made only to be kept. Out of memory while it is made, it is that.
                self.stop_writing(error)

    cdef int _checked_commit(self, int status) except? -1:
        """Commit what a Python-level operation appended, then turn its status into a result or an exception."""
        cdef int committed
        with nogil:
            committed = self.commit()
        return self._settle(status, committed)

    cdef int _settle(self, int status, int committed) except? -1:
        self._check(status)
        self._check(committed)
        if self.thread is None and not self.closed and not self.atomic:
            self.maintain()
        return status

    cdef int _checked_release(self, int status) except? -1:
        """`_checked_commit` for a caller that holds the lock, which is let go here."""
        cdef int committed
        if self.sync_always:
            with nogil:
                committed = self.commit_held()
        else:
            # Without a wait for the device it takes less time than to let the GIL go and get it back.
            committed = self.commit_held()
        return self._settle(status, committed)

    def _make_room(self):
        if self.clock.last >= self.clock_bound:
            self._extend_clock_bound()
        if not self.lsm.wants_freeze() or self.refused:
            return
        while (
            self.thread is not None
            and not self.failed
            and not self.refused
            and self.lsm.flushable_bytes() >= Tuning.FROZEN_MAX * self.memtable_bytes
        ):
            # Writers outrun the flush: wait here rather than grow without bound.
            self.wake.set()
            pause(5000)
        if self.closed or self.refused:
            return
        self._freeze()
        if self.thread is None:
            self._attempt(NO_SPACE_TO_FLUSH, self._flush_frozen)
        else:
            self.wake.set()

    def _extend_clock_bound(self):
        with _identity_lock:
            bound_ms = max(self.clock.now_ms(), self.clock.last >> 16) + Tuning.CLOCK_AHEAD_MS
            if self.identity.clean or bound_ms << 16 <= self.clock_bound:
                # `close` has had the last word, or another thread was here.
                return
            self.identity = replace(self.identity, clock_bound_ms=bound_ms)
            self.files.replace_file(self._file("IDENTITY"), encode_identity(self.identity))
            self.clock_bound = bound_ms << 16

    def _checkpoint(self, position):
        # Not `packb`, which is a function of Python: a signal handler that raises in there would fail the freeze.
        return msgpack.Packer().pack(
            {
                "position": position,
                "applied": vector_dict(&self.applied),
                "horizon": vector_dict(&self.horizon),
                "live_keys": self.live_keys,
                "conflicts": [self.conflicts_lww, self.conflicts_type, self.conflicts_add_remove],
                "clock": self.clock.last,
                "index": self.log_index,
                "digest": zstandard.ZstdCompressor(level=1).compress(leaves_bytes(self.leaves)),
            }
        )

    cdef object _freeze(self):
        with nogil:
            self.lock()
        try:
            self.log_index.append((self.wal.end, vector_dict(&self.applied)))
            self.lsm.freeze(self._checkpoint(self.wal.end))
            self.frozen_at = self.wal.end
            self.ranks_unlogged = False
        finally:
            self.unlock()

    def _flush_frozen(self):
        cdef int status
        while self.lsm.frozen_count() > self.lsm.set_aside_count():
            # A table must never know more than the log: recovery starts in the log where the table ends.
            with nogil:
                status = self._write_log(True)
            self._check(status)
            self.lsm.flush_frozen()
            if self.compaction_wake is not None:
                self.compaction_wake.set()
            self._cut_log(self.log_keep_bytes)

    def _cut_log(self, uint64_t keep_bytes):
        cdef uint64_t keep = self._flushed_position()
        keep = min(keep, self.wal.end - keep_bytes) if self.wal.end > keep_bytes else 0
        with nogil:
            self.lock()
        try:
            if keep > self.wal.start:
                self.wal.cut(keep)
                self.log_index = [(at, vector) for at, vector in self.log_index if at >= self.wal.start]
        finally:
            self.unlock()

    cdef object _note_position(self):
        with nogil:
            self.lock()
        try:
            if self.wal.end - self.log_index[len(self.log_index) - 1][0] >= Tuning.INDEX_EVERY:
                self.log_index.append((self.wal.end, vector_dict(&self.applied)))
        finally:
            self.unlock()

    def maintain(self):
        """What the background threads do, ten times a second; call it when opened with `background=False`.

        Extends the clock's bound, syncs (durability `interval`), flushes frozen tables, cuts the log; without
        threads it compacts, too.
        """
        cdef int status
        cdef int64_t now = self.clock.now_ms()
        if self.failed or self.refused == Status.ERR_FAILED:
            return
        if self.lacking and self.thread is not None and time.monotonic() < self.retry_at:
            return
        if self.thread is None:
            self.wal.tend()
        if self.log_full and time.monotonic() >= self.retry_at:
            # Nobody may write for long: find out whether there is space again.
            self.retry_at = time.monotonic() + RETRY_SECONDS
            with nogil:
                self.lock()
                self.reserve(Tuning.PROBE_BYTES)
                self.unlock()
        if (
            <uint64_t>(now + Tuning.CLOCK_AHEAD_MS // 2) << 16 >= self.clock_bound
            or self.lacking & NO_SPACE_FOR_IDENTITY
        ):
            self._attempt(NO_SPACE_FOR_IDENTITY, self._extend_clock_bound)
        if self.durability == "interval" and abs(now - self.last_sync_ms) >= Tuning.SYNC_INTERVAL_MS:
            self.last_sync_ms = now
            with nogil:
                self.lock()
            held = vector_dict(&self.applied)
            self.unlock()
            with nogil:
                status = self._write_log(True)
            if status != Status.ERR_READ_ONLY:
                self._check(status)
                self.durable_vector = held
        self._note_position()
        if (
            self.wal.end - self.frozen_at > 2 * self.memtable_bytes
            or self.lsm.set_aside > SET_ASIDE_MAX
            or self.ranks_unlogged
        ):
            # Overwrites don't grow the memory table, but the log that a restart would have to replay.
            # Each read looks into all frozen tables. An index of ranks is in no log.
            self._freeze()
        self._attempt(NO_SPACE_TO_FLUSH, self._flush_frozen)
        if self.thread is None:
            self.merge_tables()

    def merge_tables(self):
        """Merge table files when there are too many. Returns whether there were."""
        if self.lacking and self.thread is not None and time.monotonic() < self.retry_at:
            return False
        merged = []
        self._attempt(NO_SPACE_TO_COMPACT, lambda: merged.append(self.lsm.compact(self._flushed_horizon)))
        return bool(merged and merged[0])

    def compact_all(self, bint keep_log=False):
        """Merge all that is held into one table; cut the log to what recovery needs, unless `keep_log`."""
        cdef int status
        self._check(Status.ERR_FAILED if self.failed else Status.OK)
        if not keep_log:
            # The log is cut by whole segments: begin one, so that all before it can go.
            with nogil:
                self.lock()
                status = self.wal.begin_segment()
                self.unlock()
            self._check(status)
        self._freeze()
        self._flush_frozen()
        self.lsm.compact_all(self._flushed_horizon)
        if not keep_log:
            self._cut_log(0)

    def closing(self):
        """Whether `close` was called."""
        return bool(self.closed)


cdef int _uncertain(int status) noexcept nogil:
    """No space for what memory shows already, and the log may get later: that isn't "nothing was changed"."""
    return Status.ERR_IO if status == Status.ERR_READ_ONLY else status
