"""Collection by causal stability: what every member holds for good is part of every key's context.

A tombstone keeps an older, concurrent write from showing. Once every member has said, in its own log stream, that
it holds the delete, no such write can come from a member any more: all that is still on its way was written by somebody
who had seen it (Bieniusa et al., *An optimized conflict-free replicated set*, 2012; Baquero et al., *Making
operation-based CRDTs operation-based*, 2014). From then on the horizon speaks for what was dropped: an update
that it covers, and that isn't there, is over.
"""

from everwrite.change cimport CHANGE_FULL_STATE, PART_HEAD, put_change
from everwrite.clock cimport Dot, Vector, vector_dict, vector_get, vector_raise
from everwrite.coding cimport (
    Buffer, Slice, buffer_free, buffer_init, buffer_slice, put_slice, put_u8, put_u64, put_varint, slice_of,
)
from everwrite.keyspace cimport FRAME_HORIZON, FRAME_STATE
from everwrite.lsm cimport LsmIterator
from everwrite.state cimport (
    SPACE_SYSTEM, SPACE_USER, Head, Row, head_context, head_deadline, head_decode, head_encode, head_free, head_init,
    head_kind, head_row,
)
from everwrite.status cimport Status, fault_corrupt


cdef class HorizonKeyspace(AsideKeyspace):
    """A store that has a horizon."""

    def horizon_dict(self):
        """The horizon as a new dict of origin to timestamp."""
        with nogil:
            self.lock()
        try:
            return vector_dict(&self.horizon)
        finally:
            self.unlock()

    def raise_horizon(self, horizon):
        """Raise the horizon, durably; whoever calls it answers for `stability.stable_horizon`."""
        with nogil:
            self.lock()
        try:
            self._check(Status.ERR_FAILED if self.failed else Status.OK)
            held = vector_dict(&self.horizon)
            raised = {origin: stamp for origin, stamp in horizon.items() if stamp > held.get(origin, 0)}
            if raised:
                self._log_vector(FRAME_HORIZON, &self.horizon, raised)
        finally:
            self.unlock()
        self._settle(0, self._write_durably())

    cdef int _write_durably(self) except? -1:
        cdef int status
        with nogil:
            status = self._write_log(True)
        return status

    def durable_vector_now(self):
        """The applied vector as it is now, made durable."""
        held = self.applied_dict()
        self._settle(0, self._write_durably())
        return held

    def system_write(self, bytes name not None):
        """The newest write of a system register: (origin, timestamp, value), or None."""
        cdef Slice key = slice_of(<const unsigned char*>name, len(name))
        cdef int status
        with nogil:
            self.lock()
            status = Status.ERR_FAILED if self.failed else self.load(SPACE_SYSTEM, key)
        try:
            self._check(status)
            if status == 1 and self.head.has_register and not self.head.tombstone:
                return self.head.dot.origin, self.head.dot.timestamp, self.head.value.data[: self.head.value.size]
            return None
        finally:
            self.unlock()

    cdef int _log_vector(self, int kind, Vector* held, dict dots) except -1:
        cdef Buffer frame
        cdef int failed
        self._check(self.reserve(32 + 16 * len(dots)))
        buffer_init(&frame)
        failed = put_u8(&frame, <unsigned char>kind) | put_varint(&frame, len(dots))
        for origin, timestamp in dots.items():
            failed |= put_u64(&frame, origin) | put_u64(&frame, timestamp)
            failed |= vector_raise(held, origin, timestamp)
        if not failed:
            failed = self.wal.append(buffer_slice(&frame))
        buffer_free(&frame)
        if failed:
            self.failed = Status.ERR_MEMORY
            self._check(Status.ERR_MEMORY)
        return 0

    cdef int _settle_absent(self, dict horizon) except -1:
        """At the end of a resync: join all keys that it brought no state of with what the sender has of them.

        That is nothing, under the sender's horizon. A state that came spelled the horizon out in the key's rows: keys
        whose rows reach it are settled, whatever else has happened to them. Needs the lock.
        """
        cdef LsmIterator* it
        cdef Buffer start
        cdef Buffer empty
        cdef Buffer state
        cdef Head head
        cdef Row* row
        cdef int status = Status.OK
        if not horizon:
            return 0
        buffer_init(&start)
        buffer_init(&empty)
        buffer_init(&state)
        head_init(&head)
        it = self.lsm.iterator()
        try:
            for origin, timestamp in horizon.items():
                row = head_row(&head, origin)
                if row == NULL:
                    raise MemoryError("out of memory for a horizon")
                row.context = timestamp
            if it == NULL or head_encode(&head, &empty) < 0 or put_u8(&start, SPACE_USER) != 0:
                raise MemoryError("out of memory for a horizon")
            with nogil:
                status = self.lsm.seek(it, buffer_slice(&start))
                while status == 1:
                    status = self._settle_one(it, &head, buffer_slice(&empty), &state)
                    if status == 1:
                        status = self.lsm.next(it)
            self._check(status)
        finally:
            if it != NULL:
                self.lsm.iterator_free(it)
            buffer_free(&start)
            buffer_free(&empty)
            buffer_free(&state)
            head_free(&head)
        return 0

    cdef int _settle_one(self, LsmIterator* it, Head* horizon, Slice empty, Buffer* state) noexcept nogil:
        """The key that the iterator stands at. 1, 0 behind the last key, or a negative error."""
        cdef Slice stored = self.lsm.key(it)
        cdef Dot none
        cdef size_t i
        cdef int status
        if stored.data[0] != SPACE_USER:
            return 0
        # Only looked at: joining loads it again.
        if head_decode(&self.theirs, self.lsm.value(it)) < 0:
            return fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
        if not head_kind(&self.theirs) and not head_deadline(&self.theirs):
            return 1
        for i in range(horizon.size):
            # This store's own horizon speaks for rows that collection has left out.
            if max(
                head_context(&self.theirs, horizon.rows[i].origin), vector_get(&self.horizon, horizon.rows[i].origin)
            ) < horizon.rows[i].context:
                break
        else:
            return 1
        none.origin = none.timestamp = 0
        state.size = 0
        if put_change(state, CHANGE_FULL_STATE, none, 0, stored) | put_u8(state, PART_HEAD) | put_slice(state, empty):
            return Status.ERR_MEMORY
        status = self.join_state(buffer_slice(state))
        return status if status < 0 else 1

    cdef int join_state(self, Slice body) noexcept nogil:
        """Join a full state without a dot, which is valid, and log it."""
        cdef int status = self.reserve(body.size)
        if status >= 0:
            status = self.apply_change(body)
        if status >= 0:
            self.drop_group()
            status = put_u8(&self.group, FRAME_STATE) | self.group_put(body)
        return status if status < 0 else self.log_group()
