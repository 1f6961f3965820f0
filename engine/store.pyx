"""What a store hands out: streams, resyncs, states; see store.pxd.

`database.Database` puts the Python mapping on top.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.clock cimport Dot, Vector, vector_covers, vector_dict, vector_free, vector_init, vector_load
from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, buffer_slice, put_slice, slice_of
from everwrite.digest cimport leaves_bytes, leaves_root
from everwrite.inbound cimport InboundKeyspace
from everwrite.lsm cimport LsmIterator
from everwrite.state cimport SPACE_SYSTEM, SPACE_USER
from everwrite.status cimport Status
from everwrite.wal_reader cimport WalReader

from everwrite.batch import CLAIM, STATES, encode_batch, encode_horizon
from everwrite.clock import covers
from everwrite.errors import ClosedError, LogCutError, ProtocolError
from everwrite.parts import as_body, split_state
from everwrite.stream import Stream
cdef enum Tuning:
    RESYNC_BATCH = 1 << 20       # bytes of states a resync batch


cdef class Store(InboundKeyspace):
    """A store of typed keys in one directory. Open it with `everwrite.open`.

    Thread safety: all methods may be called from any thread.
    """

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

    def digest(self):
        """16 bytes that tell what users' keys hold: stores that show the same have the same.

        Keys past their deadline count until they are removed. Cheap: the sums are kept by every write.
        """
        with nogil:
            self.lock()
        try:
            return leaves_root(self.leaves)
        finally:
            self.unlock()

    def digest_leaves(self):
        """The leaves of the Merkle tree: 16,384 times 16 bytes, by the upper 14 bits of the key's hash."""
        with nogil:
            self.lock()
        try:
            return leaves_bytes(self.leaves)
        finally:
            self.unlock()

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
        Raises LogCutError when the log no longer reaches back that far, or this store may have collected what
        the receiver still has: use `resync_batches` first.
        """
        if self.closed:
            raise ClosedError(f"{self.path}: the store is closed")
        wanted = None if store_ids is None else set(store_ids)
        with nogil:
            self.lock()
        index = list(self.log_index)
        horizon = vector_dict(&self.horizon)
        self.unlock()
        if not covers(since, horizon):
            raise LogCutError(f"{self.path}: the receiver lacks what lies behind the horizon; a full resync is needed")
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
        cdef Buffer states
        cdef int status
        claim, horizon = self._applied_and_horizon()
        settled = covers(since, horizon)
        # Of a key that was collected nothing is sent: whoever lacks what the horizon covers gets all others.
        sent = since if settled else {}
        resync = self._name_resync()
        start = bytes([SPACE_SYSTEM])
        while start is not None:
            with nogil:
                status = self._write_log(True)
            self._check(status)
            vector_init(&held)
            buffer_init(&states)
            try:
                vector_load(&held, sent)
                start, count, large = self._collect_states(start, &held, &states)
                data = states.data[: states.size] if states.size else b""
            finally:
                vector_free(&held)
                buffer_free(&states)
            if self.horizon_dict() != horizon:
                # Keys that were collected meanwhile must not be taken for ones that the old horizon speaks of.
                yield from self.resync_batches(since, store_ids)
                return
            # States may carry what was written since: it must be durable before it leaves.
            with nogil:
                status = self._write_log(True)
            self._check(status)
            if count:
                yield encode_batch(STATES, [], count, data, resync=resync, index=batches)
                batches += 1
            if large is not None:
                for part in split_state(large):
                    yield encode_batch(STATES, [], 1, as_body([part]), resync=resync, index=batches)
                    batches += 1
        # Only for whoever holds `since`: states that it covers weren't sent.
        spans = [(origin, min(since.get(origin, 0), upto), upto) for origin, upto in claim.items()]
        body = b"" if settled else encode_horizon(horizon)
        yield encode_batch(CLAIM, spans, batches, body, resync=resync, index=batches)

    def _applied_and_horizon(self):
        with nogil:
            self.lock()
        try:
            return vector_dict(&self.applied), vector_dict(&self.horizon)
        finally:
            self.unlock()

    def _name_resync(self):
        """A number that no other resync has: two that reach a store together must not be taken for one."""
        cdef uint64_t moment
        with nogil:
            self.lock()
            moment = self.clock.tick()
            self.unlock()
        # Clocks that have seen the same update agree to the bit, hence the origin; odd factors lose nothing.
        return (moment * 0x9E3779B97F4A7C15 ^ self.own_origin) & 0xFFFFFFFFFFFFFFFF

    cdef object _collect_states(self, bytes start, const Vector* held, Buffer* body):
        """Up to RESYNC_BATCH bytes of states from the entry key `start` on: (next start or None, count, large one)."""
        cdef LsmIterator* it
        cdef Slice stored
        cdef Buffer state
        cdef uint64_t count = 0
        cdef bint large = False
        cdef Dot none
        cdef Slice first = slice_of(<const uint8_t*>start, len(start))
        cdef int status
        cdef size_t i
        none.origin = 0
        none.timestamp = 0
        following = whole = None
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
                        if status < 0:
                            break
                        if state.size > Tuning.RESYNC_BATCH:
                            large = True
                        else:
                            status = put_slice(body, buffer_slice(&state))
                            count += 1
                        break
                if status >= 0:
                    status = self.lsm.next(it)
                if large:
                    break
        try:
            self._check(status)
            if large:
                whole = state.data[: state.size]
            if status == 1:
                stored = self.lsm.key(it)
                if stored.data[0] <= SPACE_USER:
                    following = stored.data[: stored.size]
        finally:
            if it != NULL:
                self.lsm.iterator_free(it)
            self.unlock()
            buffer_free(&state)
        return following, count, whole

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

    def commit_log(self):
        """Make all that was applied or written reach the log, as durably as this store was opened for.

        Raises StorageError when that fails; the store serves nothing from then on.
        """
        self._checked_commit(0)

    def reap_expired(self, int limit=1000):
        """Remove up to `limit` keys that are past their deadline. Returns how many it looked at."""
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
            "rank_indexes_made": self.ranks_made,
            "rank_entries_visited": self.rank_steps,
            "pulls": self.pulls,
            "resyncs": self.resyncs,
            "log_start": self.wal.start,
            "log_end": self.wal.end,
            "log_durable": self.wal.durable,
            "log_bytes": self.wal.end - self.wal.start,
            "log_appended_bytes": self.wal.appended_bytes,
            "log_torn_bytes": self.torn_bytes,
            "syncs": self.wal.syncs,
            "sync_nanoseconds": self.wal.sync_nanoseconds,
            "read_only": int(self.log_full or self.refused == Status.ERR_READ_ONLY),
        }
        numbers.update(self.lsm.statistics())
        return numbers
