"""What goes between stores: streams out, batches in, resync; see store.pxd.

`database.Database` puts the Python mapping on top.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.change cimport (
    CHANGE_FULL_STATE,
    Change,
    change_parse,
    change_validate,
    full_state_covers,
    put_change,
)
from everwrite.clock cimport (
    Dot,
    Vector,
    vector_covers,
    vector_dict,
    vector_free,
    vector_get,
    vector_init,
    vector_load,
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
    put_bytes,
    put_slice,
    put_u8,
    put_u64,
    put_varint,
    reader_left,
    reader_of,
    slice_of,
)
from everwrite.digest cimport leaves_bytes, leaves_root
from everwrite.durable cimport DurableKeyspace
from everwrite.keyspace cimport DUPLICATE, FRAME_CLAIM, FRAME_STATE
from everwrite.lsm cimport LsmIterator
from everwrite.state cimport SPACE_SYSTEM, SPACE_USER
from everwrite.status cimport Status
from everwrite.wal_reader cimport WalReader

from everwrite.batch import CHANGES, CLAIM, STATES, decode_batch, encode_batch
from everwrite.errors import ClockDriftError, ClosedError, GapError, LogCutError, ProtocolError
from everwrite.need import Need
from everwrite.stream import Stream
cdef enum Tuning:
    RESYNC_BATCH = 1 << 20       # bytes of states a resync batch
    RESYNCS_OPEN = 64            # resyncs whose batches are remembered until their claim; the oldest are forgotten


cdef class Store(DurableKeyspace):
    """A store of typed keys in one directory. Open it with `everwrite.open`.

    Thread safety: all methods may be called from any thread.
    """

    def __cinit__(self, *args, **kwargs):
        self.resync = {}

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
        resync = self._name_resync()
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
        # Only for whoever holds `since`: states that it covers weren't sent.
        spans = [(origin, min(since.get(origin, 0), upto), upto) for origin, upto in claim.items()]
        yield encode_batch(CLAIM, spans, batches, b"", resync=resync, index=batches)

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
        cdef Vector held
        cdef Vector upto
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
        if envelope.kind == CHANGES:
            vector_init(&held)
            vector_init(&upto)
            try:
                for span in envelope.spans:
                    if vector_raise(&held, span.origin, span.after) or vector_raise(&upto, span.origin, span.upto):
                        raise MemoryError("out of memory for a version vector")
                with nogil:
                    status = _check_spans(data, size, &held, &upto)
            finally:
                vector_free(&held)
                vector_free(&upto)
            if status < 0:
                raise ProtocolError(
                    "malformed batch: its changes are not those that its spans announce; nothing of it was applied"
                )
        for span in envelope.spans:
            newest = max(newest, span.upto)
        with nogil:
            self.lock()
        try:
            self._check(Status.ERR_FAILED if self.failed else Status.OK)
            self._admit(envelope, newest)
            if envelope.kind == CLAIM:
                # One that brings nothing must not cost this store its position index.
                states_came = self.resync.pop(envelope.resync, None) is not None
                if any(vector_get(&self.applied, span.origin) < span.upto for span in envelope.spans):
                    self._accept_claim(envelope)
                    states_came = True
                self.resyncs += states_came
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
                while len(self.resync) > Tuning.RESYNCS_OPEN:
                    del self.resync[next(iter(self.resync))]
            for span in envelope.spans:
                if vector_raise(&self.applied, span.origin, span.upto) < 0:
                    raise MemoryError("out of memory for a version vector")
        finally:
            self.unlock()
        return None

    def needs(self, bytes batch not None, size_t limit):
        """Up to `limit` `Need`s that `apply_batch(batch)` is going to return, as far as can be told beforehand.

        So that a receiver can ask for many keys at once. Of each key only the first update that isn't
        applied yet counts: whether a later one fits depends on that. Raises ProtocolError as `apply_batch`.
        """
        cdef Reader r
        cdef Reader group
        cdef Change change
        cdef const uint8_t* data
        cdef size_t size
        cdef uint64_t newest = 0
        cdef uint64_t count
        cdef int status
        envelope = decode_batch(batch)
        if envelope.kind != CHANGES:
            return []
        body = envelope.body
        data = <const uint8_t*>(<bytes>body)
        size = len(body)
        count = envelope.count
        with nogil:
            status = self._validate(False, data, size, count, &newest)
        if status < 0:
            raise ProtocolError("malformed batch: a change in it can't be decoded")
        found = []
        keys = set()
        r = reader_of(slice_of(data, size))
        with nogil:
            self.lock()
        try:
            self._check(Status.ERR_FAILED if self.failed else Status.OK)
            while reader_left(&r) and len(found) < limit:
                group = reader_of(get_slice(&r))
                while reader_left(&group) and len(found) < limit:
                    self._check(change_parse(get_slice(&group), &change))
                    key = change.key.data[: change.key.size]
                    if key in keys or vector_covers(&self.applied, change.dot.origin, change.dot.timestamp):
                        continue
                    keys.add(key)
                    self._check(self.load(change.key.data[0], slice_of(change.key.data + 1, change.key.size - 1)))
                    if self.guard(&change) == Status.ERR_GUARD:
                        found.append(Need(key, change.dot.origin, change.dot.timestamp))
        finally:
            self.unlock()
        return found

    def _admit(self, envelope, uint64_t newest):
        """Refuse what must not be merged at all. Needs the lock."""
        for span in envelope.spans:
            held = vector_get(&self.applied, span.origin)
            if span.origin == self.own_origin and span.upto > held:
                raise ProtocolError(
                    f"the batch has updates of this store's own origin {span.origin:#018x} up to {span.upto}, which it "
                    "never made: two stores share an origin (was the directory copied while open?)"
                )
            if span.after > held:
                raise GapError(span.origin, held, span.after)
        received = self.resync.get(envelope.resync, ())
        if envelope.kind == CLAIM and not (
            envelope.count <= len(received) and all(index in received for index in range(envelope.count))
        ):
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
                status = Status.ERR_DECODE if r.failed or group.failed else change_validate(body, states, newest)
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
            status = change_validate(given, True, &newest)
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
            if not full_state_covers(&change, dot):
                raise ProtocolError(
                    f"the state that the peer sent for key {key[1:]!r} lacks update {need.timestamp} of origin "
                    f"{need.origin:#018x}; nothing was applied"
                )
            if self.clock.observe(newest) < 0:
                raise ClockDriftError(
                    f"the state of key {key[1:]!r} has a timestamp too far ahead of this node's clock; "
                    "nothing was merged"
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
        }
        numbers.update(self.lsm.statistics())
        return numbers


cdef int _check_spans(const uint8_t* data, size_t size, Vector* held, const Vector* upto) noexcept nogil:
    """Whether a well-formed body holds, of each origin in its order, changes after `held` that end at `upto`."""
    cdef Reader r = reader_of(slice_of(data, size))
    cdef Reader group
    cdef Change change
    cdef size_t i
    while reader_left(&r):
        group = reader_of(get_slice(&r))
        while reader_left(&group):
            change_parse(get_slice(&group), &change)
            if vector_covers(held, change.dot.origin, change.dot.timestamp):
                return Status.ERR_DECODE
            if not vector_covers(upto, change.dot.origin, change.dot.timestamp):
                return Status.ERR_DECODE
            if vector_raise(held, change.dot.origin, change.dot.timestamp) < 0:
                return Status.ERR_MEMORY
    for i in range(upto.size):
        if not vector_covers(held, upto.dots[i].origin, upto.dots[i].timestamp):
            return Status.ERR_DECODE
    return Status.OK
