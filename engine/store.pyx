"""The store: opening, recovery, durability, and what goes in from other stores.

`database.Database` puts the Python mapping on top; see store.pxd for the native side.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.string cimport memset

import os
import threading
import weakref
from dataclasses import replace

import msgpack

from everwrite.change cimport CHANGE_FULL_STATE, Change, Part, change_check, change_parse, part_next, put_change, put_register
from everwrite.clock cimport (
    Dot,
    HybridClock,
    Vector,
    vector_covers,
    vector_dict,
    vector_free,
    vector_get,
    vector_init,
    vector_load,
    vector_merge,
    vector_raise,
)
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    get_slice,
    get_u8,
    get_u64,
    get_varint,
    put_bytes,
    put_slice,
    put_u8,
    put_u64,
    put_varint,
    reader_left,
    reader_of,
    slice_of,
)
from everwrite.files cimport Files
from everwrite.keyspace cimport DUPLICATE, FRAME_CHANGES, FRAME_CLAIM, FRAME_STATE
from everwrite.lsm cimport Lsm, LsmIterator
from everwrite.state cimport (
    SPACE_EXPIRY,
    SPACE_SYSTEM,
    SPACE_USER,
    Head,
    head_context,
    head_decode,
    head_free,
    head_init,
)
from everwrite.status cimport Status, check, fault_corrupt
from everwrite.wal_reader cimport WalReader
from everwrite.wal_writer cimport WalWriter

from everwrite.batch import CHANGES, CLAIM, STATES, decode_batch, encode_batch
from everwrite.errors import (
    ClockDriftError,
    ClosedError,
    ConfigError,
    CorruptionError,
    GapError,
    LogCutError,
    ProtocolError,
    StorageError,
)
from everwrite.files import PosixFiles
from everwrite.identity import Identity, decode_identity, encode_identity, next_identity
from everwrite.need import Need
from everwrite.stream import Stream
from everwrite.wal_recovery import open_log

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)

DURABILITIES = ("always", "interval", "os")
cdef enum Tuning:
    CLOCK_AHEAD_MS = 20000       # how far ahead the clock's bound is persisted
    SYNC_INTERVAL_MS = 1000      # durability `interval`
    INDEX_EVERY = 1 << 20        # bytes of log between two entries of the position index
    FROZEN_MAX = 4               # frozen memory tables before writers wait for the flush
    RESYNC_BATCH = 1 << 20       # bytes of states a resync batch


cdef class Store(TypedKeyspace):
    """A store of typed keys in one directory. Open it with `everwrite.open`.

    Thread safety: all methods may be called from any thread.
    """

    def __cinit__(self, *args, **kwargs):
        pthread_mutex_init(&self.sync_mutex, NULL)
        self.closed = True

    def __dealloc__(self):
        pthread_mutex_destroy(&self.sync_mutex)

    def __init__(
        self,
        path,
        durability="always",
        *,
        create=True,
        max_clock_drift_ms=500,
        memtable_bytes=64 << 20,
        block_cache_bytes=64 << 20,
        log_keep_bytes=256 << 20,
        segment_bytes=64 << 20,
        files=None,
        background=True,
        store_id=None,
        now_ms=0,
    ):
        if durability not in DURABILITIES:
            raise ConfigError(f"durability is {durability!r}; it must be one of {', '.join(DURABILITIES)}")
        self.path = os.fspath(path)
        self.durability = durability
        self.sync_always = durability == "always"
        self.files = PosixFiles() if files is None else files
        self.log_keep_bytes = log_keep_bytes
        self.memtable_bytes = memtable_bytes
        self.clock = HybridClock(max_clock_drift_ms)
        self.clock.manual_ms = now_ms
        self.log_index = []
        self.durable_vector = {}
        self.resync = {}
        if store_id is None:
            store_id = int.from_bytes(os.urandom(6), "big")
        if not create and not self.files.exists(self._file("IDENTITY")):
            raise StorageError(f"{self.path}: no store here, and create is False")
        self.files.mkdir(self.path)
        self.lock_file = self.files.lock(self._file("LOCK"))
        try:
            self._open(store_id, memtable_bytes, block_cache_bytes, segment_bytes)
        except BaseException:
            self.lock_file.release()
            raise
        self.closed = False
        if background:
            self.wake = threading.Event()
            self.thread = threading.Thread(
                target=_background, args=(weakref.ref(self), self.wake), name="everwrite-maintenance", daemon=True
            )
            self.thread.start()

    # ---- opening and closing ----

    def _file(self, name):
        return os.path.join(self.path, name)

    def _place(self):
        # A copied or restored directory has another inode: its timestamps may have been exposed elsewhere.
        if isinstance(self.files, PosixFiles):
            folder = os.stat(self.path)
            lock = os.stat(self._file("LOCK"))
            return f"{folder.st_dev}:{folder.st_ino}:{lock.st_ino}"
        return "memory"

    def _open(self, store_id, memtable_bytes, block_cache_bytes, segment_bytes):
        cdef uint64_t start = 0
        old = None
        name = self._file("IDENTITY")
        if self.files.exists(name):
            old = decode_identity(bytes(self.files.read_file(name)), name)
        elif self.files.exists(self._file("wal")):
            raise CorruptionError(
                f"{name}: missing beside a log: the directory is not whole; restore it from a backup", path=name
            )
        place = self._place()
        if old is None:
            # Persisted before anything else, so that a crash here can't leave a log without an owner.
            old = Identity(store_id, 0, False, 0, 0, 0, place, store_id)
            self.files.replace_file(name, encode_identity(old))
        self.lsm = Lsm(
            self.files, self._file("tables"), memtable_bytes=memtable_bytes, block_cache_bytes=block_cache_bytes
        )
        checkpoint = msgpack.unpackb(self.lsm.checkpoint, strict_map_key=False) if self.lsm.checkpoint else None
        if checkpoint is not None:
            start = checkpoint["position"]
            vector_load(&self.applied, checkpoint["applied"])
            self.live_keys = checkpoint["live_keys"]
            self.conflicts_lww, self.conflicts_type, self.conflicts_add_remove = checkpoint["conflicts"]
        opened = open_log(self.files, self._file("wal"), old.log_id, replay_from=start, segment_bytes=segment_bytes)
        self.wal = opened.writer
        self.torn_bytes = opened.dropped_bytes
        if checkpoint is not None:
            self.log_index = [(at, vector) for at, vector in checkpoint["index"] if at >= self.wal.start]
            self.clock.last = checkpoint["clock"]
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
                        status = self._replay_frame(payload)
                        if status == Status.OK:
                            status = 1
                    if status != 1 or self.lsm.wants_freeze():
                        break
                    if reader.position - start >= Tuning.INDEX_EVERY:
                        break
            if status == 1:
                start = reader.position
                self.log_index.append((start, vector_dict(&self.applied)))
                if self.lsm.wants_freeze():
                    self.lsm.freeze(self._checkpoint(start))
                    self.lsm.flush_frozen()
        check(status)
        return 0

    cdef int _replay_frame(self, Slice payload) noexcept nogil:
        cdef Reader r = reader_of(payload)
        cdef int kind = get_u8(&r)
        cdef Change change
        cdef Slice body
        cdef uint64_t count
        cdef uint64_t i
        cdef Dot dot
        cdef int status = Status.OK
        if kind == FRAME_CHANGES:
            while reader_left(&r) and status >= 0:
                body = get_slice(&r)
                status = change_parse(body, &change)
                if status < 0 or change_check(&change) < 0:
                    return fault_corrupt(b"log", 0, b"a change in the log can't be decoded")
                status = self.apply_change(body)
                if status == Status.ERR_GUARD:
                    return fault_corrupt(b"log", 0, b"a change in the log builds on one that is missing")
                if change.dot.timestamp > self.clock.last:
                    self.clock.last = change.dot.timestamp
                if vector_raise(&self.applied, change.dot.origin, change.dot.timestamp) < 0:
                    return Status.ERR_MEMORY
        elif kind == FRAME_STATE:
            status = self.apply_change(slice_of(r.at, reader_left(&r)))
        elif kind == FRAME_CLAIM:
            count = get_varint(&r)
            for i in range(count):
                dot.origin = get_u64(&r)
                dot.timestamp = get_u64(&r)
                if r.failed or vector_raise(&self.applied, dot.origin, dot.timestamp) < 0:
                    return fault_corrupt(b"log", 0, b"a claim in the log can't be decoded")
        else:
            return fault_corrupt(b"log", 0, b"a log frame of an unknown kind")
        return status if status < 0 else Status.OK

    def close(self):
        """Stop, make everything durable, and let go of the directory. Idempotent.

        Raises StorageError when the log can't be made durable; the store is closed all the same.
        """
        if self.closed:
            return
        self.closed = True
        if self.thread is not None:
            self.wake.set()
            if self.thread is not threading.current_thread():
                self.thread.join()
        try:
            if not self.failed:
                self._check(self._write_log(True))
                if self.wal.end - self._flushed_position() > Tuning.INDEX_EVERY:
                    self._freeze()
                self._flush_frozen()
                self.wal.close()
                self.identity = replace(self.identity, clean=True, log_end=self.wal.end, clock=self.clock.last)
                self.files.replace_file(self._file("IDENTITY"), encode_identity(self.identity))
        finally:
            with nogil:
                self.lock()
                if not self.failed:
                    self.failed = Status.ERR_CLOSED
                self.unlock()
            self.lsm.close()
            self.lock_file.release()

    def _flushed_position(self):
        return msgpack.unpackb(self.lsm.checkpoint, strict_map_key=False)["position"] if self.lsm.checkpoint else 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    # ---- durability ----

    cdef int commit(self) noexcept nogil:
        cdef int status
        if self.failed:
            return Status.ERR_FAILED
        if self.wal.end == self.wal.written and (not self.sync_always or self.wal.durable == self.wal.written):
            return Status.OK
        status = self._write_log(self.sync_always)
        if status < 0:
            return status
        if self.clock.last >= self.clock_bound or self.lsm.wants_freeze():
            with gil:
                try:
                    self._make_room()
                except BaseException as error:
                    self._remember(error)
                    status = Status.ERR_FAILED
        return status

    cdef int _write_log(self, bint sync) noexcept nogil:
        cdef uint64_t target
        cdef int status
        self.lock()
        status = self.wal.flush()
        target = self.wal.written
        self.unlock()
        if status >= 0 and sync and self.wal.durable < target:
            pthread_mutex_lock(&self.sync_mutex)
            if self.wal.durable < target:
                status = self.wal.sync()
            pthread_mutex_unlock(&self.sync_mutex)
        if status < 0:
            with gil:
                try:
                    check(status)
                except BaseException as error:
                    self._remember(error)
        return status

    def _remember(self, error):
        # Never retried: after a failed sync nobody knows what the device holds.
        if self.failure is None:
            self.failure = error
        if not self.failed:
            self.failed = Status.ERR_FAILED

    cdef int _check(self, int status) except? -1:
        if status >= 0:
            return status
        if self.closed and self.failure is None:
            raise ClosedError(f"{self.path}: the store is closed")
        if self.failed:
            if self.failure is None:
                try:
                    check(status)
                except BaseException as error:
                    self._remember(error)
            raise StorageError(
                f"{self.path}: the store stopped serving after a failure ({self.failure}); "
                "close it, mend the cause and open it again"
            ) from self.failure
        return check(status)

    cdef int _checked_commit(self, int status) except? -1:
        """Commit what a Python-level operation appended, then turn its status into a result or an exception."""
        cdef int committed
        with nogil:
            committed = self.commit()
        self._check(status)
        self._check(committed)
        if self.thread is None and not self.closed:
            self.maintain()
        return status

    def _make_room(self):
        if self.clock.last >= self.clock_bound:
            self._extend_clock_bound()
        if not self.lsm.wants_freeze():
            return
        while self.thread is not None and self.lsm.frozen_count() >= Tuning.FROZEN_MAX and not self.failed:
            # Writers outrun the flush: wait here rather than grow without bound.
            self.wake.set()
            self.thread.join(0.005)
        self._freeze()
        if self.thread is None:
            self._flush_frozen()
        else:
            self.wake.set()

    def _extend_clock_bound(self):
        bound_ms = max(self.clock.now_ms(), self.clock.last >> 16) + Tuning.CLOCK_AHEAD_MS
        self.identity = replace(self.identity, clock_bound_ms=bound_ms)
        self.files.replace_file(self._file("IDENTITY"), encode_identity(self.identity))
        self.clock_bound = bound_ms << 16

    def _checkpoint(self, position):
        return msgpack.packb(
            {
                "position": position,
                "applied": vector_dict(&self.applied),
                "live_keys": self.live_keys,
                "conflicts": [self.conflicts_lww, self.conflicts_type, self.conflicts_add_remove],
                "clock": self.clock.last,
                "index": self.log_index,
            }
        )

    cdef object _freeze(self):
        with nogil:
            self.lock()
        try:
            self.log_index.append((self.wal.end, vector_dict(&self.applied)))
            self.lsm.freeze(self._checkpoint(self.wal.end))
            self.frozen_at = self.wal.end
        finally:
            self.unlock()

    def _flush_frozen(self):
        cdef int status
        while self.lsm.frozen_count():
            # A table must never know more than the log: recovery starts in the log where the table ends.
            with nogil:
                status = self._write_log(True)
            self._check(status)
            self.lsm.flush_frozen()
            self._cut_log()

    def _cut_log(self):
        cdef uint64_t keep = self._flushed_position()
        if self.wal.end > self.log_keep_bytes:
            keep = min(keep, self.wal.end - self.log_keep_bytes)
        else:
            keep = 0
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
        """What the background thread does ten times a second; call it when opened with `background=False`.

        Extends the clock's bound, syncs (durability `interval`), flushes frozen tables, cuts the log, compacts.
        """
        cdef int status
        cdef int64_t now = self.clock.now_ms()
        if self.failed:
            return
        if <uint64_t>(now + Tuning.CLOCK_AHEAD_MS // 2) << 16 >= self.clock_bound:
            self._extend_clock_bound()
        if self.durability == "interval" and abs(now - self.last_sync_ms) >= Tuning.SYNC_INTERVAL_MS:
            self.last_sync_ms = now
            with nogil:
                self.lock()
            held = vector_dict(&self.applied)
            self.unlock()
            with nogil:
                status = self._write_log(True)
            self._check(status)
            self.durable_vector = held
        self._note_position()
        if self.wal.end - self.frozen_at > 2 * self.memtable_bytes:
            # Overwrites don't grow the memory table, but the log that a restart would have to replay.
            self._freeze()
        self._flush_frozen()
        self.lsm.compact()

    def closing(self):
        """Whether `close` was called."""
        return bool(self.closed)

    @property
    def failed_with(self):
        """The exception after which this store stopped serving, or None."""
        return self.failure

    # ---- what it holds ----

    @property
    def origin(self):
        """The 64-bit origin of this store's own updates: store id (48 bits) and incarnation (16)."""
        return self.own_origin

    def applied_dict(self):
        """The applied vector as a new dict of origin to timestamp."""
        with nogil:
            self.lock()
        held = vector_dict(&self.applied)
        self.unlock()
        return held

    @property
    def durable_applied(self):
        """The applied vector as far as it is known to be on the device (dict of origin to timestamp)."""
        cdef uint64_t end
        with nogil:
            self.lock()
            end = self.wal.end
        held = vector_dict(&self.applied)
        self.unlock()
        if self.wal.durable >= end:
            self.durable_vector = held
        return dict(self.durable_vector)

    @property
    def newest_timestamp(self):
        """The newest timestamp of this store's own updates; 0 when it made none."""
        cdef uint64_t newest
        with nogil:
            self.lock()
            newest = self.last_timestamp()
            self.unlock()
        return newest

    @property
    def user_changes(self):
        """How many updates of users' keys, local and remote, were merged since this store was opened."""
        return self.user_change_count

    def set_time(self, int64_t ms):
        """Use `ms` (Unix milliseconds) as the wall clock from now on; 0: the system's. For simulations."""
        self.clock.manual_ms = ms

    def wall_ms(self):
        """The wall clock that this store goes by, Unix milliseconds."""
        return self.clock.now_ms()

    cdef uint64_t average_change_bytes(self) noexcept nogil:
        cdef uint64_t changes = self.local_changes + self.applied_changes
        return self.wal.appended_bytes // changes + 1 if changes else 128

    # ---- streams out ----

    def open_stream(self, since, store_ids=None):
        """A `Stream` of all that a store whose applied vector is `since` lacks.

        `since`: mapping of origin to timestamp. `store_ids`: only origins of these stores; None: all.
        Raises LogCutError when the log no longer reaches back that far: use `resync_batches` first.
        """
        if self.closed:
            raise ClosedError(f"{self.path}: the store is closed")
        wanted = None if store_ids is None else set(store_ids)
        with nogil:
            self.lock()
        index = list(self.log_index)
        self.unlock()
        best = None
        for position, vector in index:
            if all(
                since.get(origin, 0) >= timestamp
                for origin, timestamp in vector.items()
                if wanted is None or origin >> 16 in wanted
            ):
                best = position
            else:
                break
        if best is None:
            raise LogCutError(f"{self.path}: the log was cut past what the receiver holds; a full resync is needed")
        return Stream(self, WalReader(self.files, self._file("wal"), best), since, store_ids)

    def resync_batches(self, since, store_ids=None):
        """Yield batches of the full states of all keys that `since` doesn't cover, and a claim at the end.

        For a receiver that the log no longer serves. Applied in order by `apply`, they bring it to
        what this store held at the start; then a stream goes on. The whole keyspace is read.
        """
        cdef Vector held
        cdef uint64_t count
        cdef size_t batches = 0
        cdef Buffer body
        cdef int status
        claim = self.applied_dict()
        resync = self.clock.last
        start = bytes([SPACE_SYSTEM])
        while start is not None:
            with nogil:
                status = self._write_log(True)
            self._check(status)
            vector_init(&held)
            buffer_init(&body)
            try:
                vector_load(&held, since)
                start, count = self._collect_states(start, &held, &body)
                data = body.data[: body.size] if body.size else b""
            finally:
                vector_free(&held)
                buffer_free(&body)
            # States may carry what was written since: it must be durable before it leaves.
            with nogil:
                status = self._write_log(True)
            self._check(status)
            if count:
                yield encode_batch(STATES, [], count, data, resync=resync, index=batches)
                batches += 1
        spans = [(origin, 0, timestamp) for origin, timestamp in claim.items()]
        yield encode_batch(CLAIM, spans, batches, b"", resync=resync, index=batches)

    cdef object _collect_states(self, bytes start, const Vector* held, Buffer* body):
        """Up to RESYNC_BATCH bytes of states from the entry key `start` on: (next start or None, count)."""
        cdef LsmIterator* it
        cdef Slice stored
        cdef Buffer state
        cdef uint64_t count = 0
        cdef Dot none
        cdef Slice first = slice_of(<const uint8_t*>start, len(start))
        cdef int status
        cdef size_t i
        none.origin = 0
        none.timestamp = 0
        following = None
        buffer_init(&state)
        with nogil:
            self.lock()
            it = self.lsm.iterator()
            status = Status.ERR_MEMORY if it == NULL else self.lsm.seek(it, first)
            while status == 1:
                stored = self.lsm.key(it)
                if stored.data[0] > SPACE_USER or body.size >= Tuning.RESYNC_BATCH:
                    break
                status = self.load(stored.data[0], slice_of(stored.data + 1, stored.size - 1))
                if status < 0:
                    break
                for i in range(self.head.size):
                    if not vector_covers(held, self.head.rows[i].origin, self.head.rows[i].context):
                        state.size = 0
                        status = self.encode_state(&state, none)
                        if status == Status.OK:
                            status = put_slice(body, buffer_slice(&state))
                        count += 1
                        break
                if status >= 0:
                    status = self.lsm.next(it)
        try:
            self._check(status)
            if status == 1:
                stored = self.lsm.key(it)
                if stored.data[0] <= SPACE_USER:
                    following = stored.data[: stored.size]
        finally:
            if it != NULL:
                self.lsm.iterator_free(it)
            self.unlock()
            buffer_free(&state)
        return following, count

    def key_state(self, bytes key not None):
        """The whole state of a key as bytes, for a peer that asked with a `Need`.

        `key`: space byte and key, as in `Need.namespace_key`. Durable before it is returned.
        """
        cdef Buffer state
        cdef Dot none
        cdef int status
        cdef Slice name = slice_of(<const uint8_t*>key, len(key))
        if len(key) < 1 or key[0] not in (SPACE_SYSTEM, SPACE_USER):
            raise ProtocolError(f"malformed key {key!r}: it must begin with the byte 1 or 2")
        none.origin = 0
        none.timestamp = 0
        buffer_init(&state)
        try:
            with nogil:
                self.lock()
                status = Status.ERR_FAILED if self.failed else self.load(
                    name.data[0], slice_of(name.data + 1, name.size - 1)
                )
                if status >= 0:
                    status = self.encode_state(&state, none)
                self.unlock()
                if status >= 0:
                    status = self._write_log(True)
            self._check(status)
            return state.data[: state.size]
        finally:
            buffer_free(&state)

    # ---- batches in ----

    def apply_batch(self, bytes batch not None):
        """Apply a batch from another store; durable after `commit_log`.

        Returns None, or a `Need`: a change builds on updates that this store lacks. Then hand the
        sender's `key_state` to `supply_state` and apply the batch again: what is in is skipped.
        Raises GapError (the batch starts beyond what this store holds), ProtocolError (malformed),
        ClockDriftError, TooLargeError; nothing was applied then.
        """
        cdef const uint8_t* data
        cdef size_t size
        cdef uint64_t newest = 0
        cdef uint64_t count
        cdef Slice key = slice_of(NULL, 0)
        cdef uint64_t origin = 0
        cdef uint64_t timestamp = 0
        cdef bint states
        cdef int status
        if self.closed:
            raise ClosedError(f"{self.path}: the store is closed")
        envelope = decode_batch(batch)
        body = envelope.body
        data = <const uint8_t*>(<bytes>body)
        size = len(body)
        states = envelope.kind == STATES
        count = envelope.count
        if envelope.kind != CLAIM:
            with nogil:
                status = self._validate(states, data, size, count, &newest)
            if status < 0:
                raise ProtocolError("malformed batch: a change in it can't be decoded; nothing of it was applied")
        for span in envelope.spans:
            newest = max(newest, span.upto)
        with nogil:
            self.lock()
        try:
            self._check(Status.ERR_FAILED if self.failed else Status.OK)
            self._admit(envelope, newest)
            if envelope.kind == CLAIM:
                self._accept_claim(envelope)
                return None
            with nogil:
                if states:
                    status = self._apply_states(data, size)
                else:
                    status = self._apply_groups(data, size, &key, &origin, &timestamp)
            if status == Status.ERR_GUARD:
                self.pulls += 1
                return Need(key.data[: key.size], origin, timestamp)
            self._check(status)
            if states:
                self.resync.setdefault(envelope.resync, set()).add(envelope.index)
            for span in envelope.spans:
                if vector_raise(&self.applied, span.origin, span.upto) < 0:
                    raise MemoryError("out of memory for a version vector")
        finally:
            self.unlock()
        return None

    def _admit(self, envelope, uint64_t newest):
        """Refuse what must not be merged at all. Needs the lock."""
        for span in envelope.spans:
            held = vector_get(&self.applied, span.origin)
            if span.origin == self.own_origin and span.upto > held:
                raise ProtocolError(
                    f"the batch has updates of this store's own origin {span.origin:#018x} up to {span.upto}, which it "
                    "never made: two stores share an origin (was the directory copied while open?)"
                )
            if envelope.kind == CHANGES and span.after > held:
                raise GapError(span.origin, held, span.after)
        if envelope.kind == CLAIM and not set(range(envelope.count)) <= self.resync.get(envelope.resync, set()):
            for span in envelope.spans:
                held = vector_get(&self.applied, span.origin)
                if span.upto > held:
                    raise GapError(span.origin, held, span.upto)
        status = self.clock.observe(newest)
        if status < 0:
            raise ClockDriftError(
                f"the batch has a timestamp {(newest >> 16) - self.clock.now_ms()} ms ahead of this node's clock; "
                f"max_clock_drift is {self.clock.max_drift_ms} ms: set the sender's clock right"
            )

    def _accept_claim(self, envelope):
        cdef Buffer frame
        cdef int failed
        buffer_init(&frame)
        failed = put_u8(&frame, FRAME_CLAIM) | put_varint(&frame, len(envelope.spans))
        for span in envelope.spans:
            failed |= put_u64(&frame, span.origin) | put_u64(&frame, span.upto)
            failed |= vector_raise(&self.applied, span.origin, span.upto)
        if not failed:
            failed = self.wal.append(buffer_slice(&frame))
        buffer_free(&frame)
        if failed:
            self.failed = Status.ERR_MEMORY
            self._check(Status.ERR_MEMORY)
        self.resyncs += 1
        self.resync.clear()
        # The log before this point lacks what was claimed: no stream may start there.
        self.log_index = [(self.wal.end, vector_dict(&self.applied))]

    cdef int _validate(
        self, int states, const uint8_t* data, size_t size, uint64_t count, uint64_t* newest
    ) noexcept nogil:
        """Decode all of a batch without touching anything; *newest becomes its newest timestamp."""
        cdef Reader r = reader_of(slice_of(data, size))
        cdef Reader group
        cdef Slice body
        cdef uint64_t seen = 0
        cdef int status
        while reader_left(&r):
            body = get_slice(&r)
            group = reader_of(body)
            while True:
                if not states:
                    body = get_slice(&group)
                status = Status.ERR_DECODE if r.failed or group.failed else _check_body(body, states, newest)
                if status < 0:
                    return status
                seen += 1
                if states or reader_left(&group) == 0:
                    break
        return Status.OK if seen == count and not r.failed else Status.ERR_DECODE

    cdef int _apply_groups(
        self, const uint8_t* data, size_t size, Slice* need, uint64_t* origin, uint64_t* timestamp
    ) noexcept nogil:
        cdef Reader r = reader_of(slice_of(data, size))
        cdef Reader group
        cdef Change change
        cdef int status = Status.OK
        cdef int logged
        while reader_left(&r) and status >= 0:
            group = reader_of(get_slice(&r))
            self.batch_begin()
            while reader_left(&group) and status >= 0:
                status = change_parse(get_slice(&group), &change)
                if vector_covers(&self.applied, change.dot.origin, change.dot.timestamp):
                    continue
                status = self.apply_change(change.body)
                if status == Status.ERR_GUARD:
                    need[0] = change.key
                    origin[0] = change.dot.origin
                    timestamp[0] = change.dot.timestamp
                if status < 0:
                    break
                if status == DUPLICATE:
                    self.duplicate_changes += 1
                self.applied_changes += 1
                # Logged even if the state has it already: the log is where others recover it from.
                status = self.log_change(change.body)
                if status >= 0:
                    status = vector_raise(&self.applied, change.dot.origin, change.dot.timestamp)
            logged = self.batch_end()
            if logged < 0:
                return logged
        return status if status < 0 else Status.OK

    cdef int _apply_states(self, const uint8_t* data, size_t size) noexcept nogil:
        cdef Reader r = reader_of(slice_of(data, size))
        cdef Slice body
        cdef int status = Status.OK
        while reader_left(&r) and status >= 0:
            body = get_slice(&r)
            status = self.apply_change(body)
            if status >= 0:
                self.group.size = 0
                status = put_u8(&self.group, FRAME_STATE) | put_bytes(&self.group, body.data, body.size)
            if status >= 0:
                status = self.log_group()
        return status

    def supply_state(self, need, bytes state not None):
        """Join the state of the key that `need` (a `Need`) names, as the sender's `key_state` gave it.

        Raises ProtocolError when it isn't that key's state or doesn't reach what was needed,
        ClockDriftError when it holds a timestamp too far ahead; nothing was merged then.
        """
        cdef Change change
        cdef Buffer body
        cdef Dot dot
        cdef uint64_t newest = 0
        cdef Slice given = slice_of(<const uint8_t*>state, len(state))
        cdef bytes key = need.namespace_key
        cdef int status
        with nogil:
            status = _check_body(given, True, &newest)
        if status == Status.OK:
            change_parse(given, &change)
            if change.key.data[: change.key.size] != key:
                status = Status.ERR_DECODE
        if status < 0:
            raise ProtocolError(f"the state that the peer sent for key {key[1:]!r} is malformed; nothing was applied")
        dot.origin = need.origin
        dot.timestamp = need.timestamp
        buffer_init(&body)
        with nogil:
            self.lock()
        try:
            self._check(Status.ERR_FAILED if self.failed else Status.OK)
            if not _state_covers(&change, dot):
                raise ProtocolError(
                    f"the state that the peer sent for key {key[1:]!r} lacks update {need.timestamp} of origin "
                    f"{need.origin:#018x}; nothing was applied"
                )
            if self.clock.observe(newest) < 0:
                raise ClockDriftError(
                    f"the state of key {key[1:]!r} has a timestamp too far ahead of this node's clock; nothing was merged"
                )
            if vector_covers(&self.applied, dot.origin, dot.timestamp):
                return
            if put_change(&body, CHANGE_FULL_STATE, dot, 0, change.key) != 0 or put_bytes(
                &body, change.parts.data, change.parts.size
            ) != 0:
                raise MemoryError("out of memory for a key's state")
            with nogil:
                status = self.apply_change(buffer_slice(&body))
                if status >= 0:
                    self.applied_changes += 1
                    status = self.log_change(buffer_slice(&body))
                if status >= 0:
                    status = vector_raise(&self.applied, dot.origin, dot.timestamp)
            self._check(status)
        finally:
            self.unlock()
            buffer_free(&body)

    def commit_log(self):
        """Make all that was applied or written reach the log, as durably as this store was opened for.

        Raises StorageError when that fails; the store serves nothing from then on.
        """
        self._checked_commit(0)

    def reap_expired(self, int limit=1000):
        """Remove keys that are past their deadline, looking at no more than `limit`. Returns how many it looked at."""
        cdef int status = 0
        if self.closed or not self.reap_due():
            return 0
        with nogil:
            self.lock()
            status = self.op_reap(limit)
            self.unlock()
        return self._checked_commit(status)

    def statistics(self):
        """Counters and sizes as a flat dict of name to int."""
        numbers = {
            "keys": self.live_keys,
            "local_changes": self.local_changes,
            "applied_changes": self.applied_changes,
            "duplicate_changes": self.duplicate_changes,
            "conflicts_lww": self.conflicts_lww,
            "conflicts_type": self.conflicts_type,
            "conflicts_add_remove": self.conflicts_add_remove,
            "pulls": self.pulls,
            "resyncs": self.resyncs,
            "log_start": self.wal.start,
            "log_end": self.wal.end,
            "log_durable": self.wal.durable,
            "log_bytes": self.wal.end - self.wal.start,
            "log_appended_bytes": self.wal.appended_bytes,
            "log_torn_bytes": self.torn_bytes,
            "syncs": self.wal.syncs,
        }
        numbers.update(self.lsm.statistics())
        return numbers


cdef int _check_body(Slice body, bint state, uint64_t* newest) noexcept nogil:
    """A change (or, with `state`, a dotless full state): well-formed to the last byte?"""
    cdef Change change
    cdef Reader r
    cdef Part part
    cdef Head head
    cdef size_t i
    cdef int status = change_parse(body, &change)
    if status < 0:
        return status
    if state:
        if change.dot.timestamp or not change.flags & CHANGE_FULL_STATE:
            return Status.ERR_DECODE
    elif change.dot.timestamp == 0:
        return Status.ERR_DECODE
    status = change_check(&change)
    if status < 0:
        return status
    if change.dot.timestamp > newest[0]:
        newest[0] = change.dot.timestamp
    if change.flags & CHANGE_FULL_STATE:
        r = reader_of(change.parts)
        part_next(&r, &part)
        head_init(&head)
        status = head_decode(&head, part.value)
        for i in range(head.size):
            newest[0] = max(newest[0], max(head.rows[i].context, head.rows[i].counter))
        if head.has_register:
            newest[0] = max(newest[0], head.dot.timestamp)
        head_free(&head)
    return status


cdef bint _state_covers(const Change* change, Dot dot) noexcept nogil:
    cdef Reader r = reader_of(change.parts)
    cdef Part part
    cdef Head head
    cdef bint covered
    part_next(&r, &part)
    head_init(&head)
    head_decode(&head, part.value)
    covered = head_context(&head, dot.origin) >= dot.timestamp
    head_free(&head)
    return covered


def _background(reference, wake):
    """The maintenance thread: lives as long as its store is open and referenced."""
    while True:
        wake.wait(0.1)
        wake.clear()
        store = reference()
        if store is None or store.closing():
            return
        try:
            store.maintain()
        except BaseException as error:
            store._remember(error)
            return
        del store
