"""Streams: what leaves a store is its log, in log order, from a cursor (Bayou's prefix property).

Memory per receiver is constant: a position, a version vector and one batch.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from everwrite.change cimport PART_CLEAR, PART_ELEMENT, Change, Part, change_parse, dot_at, part_next
from everwrite.clock cimport (
    Dot, vector_covers, vector_dict, vector_free, vector_get, vector_init, vector_load, vector_raise,
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
    put_slice,
    reader_left,
    reader_of,
    slice_of,
)
from everwrite.keyspace cimport FRAME_CHANGES, FRAME_CLAIM, FRAME_HORIZON, FRAME_JOIN
from everwrite.state cimport Head
from everwrite.status cimport Status, check, fault_corrupt
from everwrite.store cimport Store
from everwrite.wal_reader cimport WalReader

from everwrite.batch import CHANGES, encode_batch
from everwrite.errors import ClosedError, LogCutError
from everwrite.parts import as_body, split_state


# Keys whose states went ahead of a change, remembered per stream: beyond, one may be sent once more.
SHOWN_MAX = 256


cdef list _guards(const Change* change):
    """What a delta builds on: (origin, timestamp) pairs."""
    cdef Reader r = reader_of(change.parts)
    cdef Part part
    cdef Dot dot
    cdef size_t i
    dots = [(change.dot.origin, change.previous)]
    while part_next(&r, &part) == 1:
        if part.tag == PART_ELEMENT or part.tag == PART_CLEAR:
            for i in range(part.dot_count):
                dot = dot_at(part.dots, i)
                dots.append((dot.origin, dot.timestamp))
    return dots


cdef class Stream:
    """A cursor over a store's log for a receiver whose applied vector is `since`.

    Made by `Store.open_stream`. Not thread-safe.
    """

    def __cinit__(self):
        vector_init(&self.handed_out)
        buffer_init(&self.body)
        self.wanted = NULL
        self.shown = {}
        self.waiting = []

    def __init__(self, Store store not None, WalReader reader not None, since, store_ids):
        self.store = store
        self.reader = reader
        vector_load(&self.handed_out, since)
        self.everything = store_ids is None
        if store_ids is not None:
            ids = sorted(set(store_ids))
            self.wanted = <uint64_t*>malloc((len(ids) or 1) * sizeof(uint64_t))
            if self.wanted == NULL:
                raise MemoryError("out of memory for a stream")
            for each in ids:
                self.wanted[self.wanted_count] = each
                self.wanted_count += 1

    def __dealloc__(self):
        vector_free(&self.handed_out)
        buffer_free(&self.body)
        free(self.wanted)

    cdef bint _wants(self, uint64_t origin) noexcept nogil:
        cdef size_t i
        if self.everything:
            return True
        for i in range(self.wanted_count):
            if self.wanted[i] == origin >> 16:
                return True
        return False

    cdef uint64_t _limit(self) noexcept nogil:
        # Nothing leaves that a crash of this node could take back (with durability `always`).
        return self.store.wal.durable if self.store.sync_always else self.store.wal.written

    cdef int _take(self, Slice payload, size_t* taken) noexcept nogil:
        """Append what the receiver lacks of one log frame to the body, as one group."""
        cdef Reader r = reader_of(payload)
        cdef Change change
        cdef Slice body
        cdef Buffer group
        cdef uint64_t count
        cdef uint64_t _i
        cdef uint64_t origin
        cdef uint64_t timestamp
        cdef int kind = get_u8(&r)
        cdef int status = Status.OK
        cdef int pushed
        taken[0] = 0
        if kind == FRAME_CLAIM or kind == FRAME_HORIZON:
            # This store learned these updates as states, they were never in its log; or it may have forgotten them.
            count = get_varint(&r)
            for _i in range(count):
                origin = get_u64(&r)
                timestamp = get_u64(&r)
                if self._wants(origin) and not vector_covers(&self.handed_out, origin, timestamp):
                    return Status.ERR_GUARD
            return Status.OK
        if kind == FRAME_JOIN:
            # What it joins besides is for this store's own recovery, as all states in the log are.
            get_varint(&r)
        elif kind != FRAME_CHANGES:
            return Status.OK
        buffer_init(&group)
        while reader_left(&r) and status == Status.OK:
            body = get_slice(&r)
            status = change_parse(body, &change)
            if status < 0 or r.failed:
                status = fault_corrupt(b"log", self.reader.position, b"a change in a log frame can't be decoded")
            elif self._wants(change.dot.origin) and not vector_covers(
                &self.handed_out, change.dot.origin, change.dot.timestamp
            ):
                if taken[0] == 0:
                    self.frame_origin = change.dot.origin
                    self.frame_after = vector_get(&self.handed_out, change.dot.origin)
                if self.everything and self._builds_on_more(&change):
                    with gil:
                        try:
                            pushed = self._push_state(&change, &group)
                            taken[0] += pushed
                        except BaseException as error:
                            # Raised again where the native walk has come back to Python.
                            self.failure = error
                            status = Status.ERR_FAILED
                            break
                taken[0] += 1
                self.last_timestamp = change.dot.timestamp
                if put_slice(&group, body) != 0 or vector_raise(
                    &self.handed_out, change.dot.origin, change.dot.timestamp
                ) < 0:
                    status = Status.ERR_MEMORY
        if status == Status.OK and group.size:
            if self.holding:
                with gil:
                    self.waiting.append((group.data[: group.size], taken[0]))
                    taken[0] = 0
            elif put_slice(&self.body, slice_of(group.data, group.size)) != 0:
                status = Status.ERR_MEMORY
        buffer_free(&group)
        return status

    cdef bint _builds_on_more(self, const Change* change) noexcept nogil:
        """Whether a delta's guard names an update that the receiver isn't known to hold.

        This store may have it from a state that it pulled or reconciled, outside of the log's order.
        """
        cdef Reader r = reader_of(change.parts)
        cdef Part part
        cdef Dot dot
        cdef size_t i
        if change.previous and not vector_covers(&self.handed_out, change.dot.origin, change.previous):
            return True
        while part_next(&r, &part) == 1:
            if part.tag == PART_ELEMENT or part.tag == PART_CLEAR:
                for i in range(part.dot_count):
                    dot = dot_at(part.dots, i)
                    if not vector_covers(&self.handed_out, dot.origin, dot.timestamp):
                        return True
        return False

    cdef int _push_state(self, const Change* change, Buffer* group) except -1:
        """Put the key's state in front of a change whose receiver can't be asked whether it lacks it.

        Returns how many states that were: none when one that went before reaches far enough.
        """
        cdef Dot none
        cdef Head* head
        cdef Buffer state
        cdef int status
        key = change.key.data[: change.key.size]
        shown = self.shown.get(key)
        if shown is not None and all(shown.get(origin, 0) >= stamp for origin, stamp in _guards(change)):
            return 0
        none.origin = none.timestamp = 0
        buffer_init(&state)
        try:
            with nogil:
                self.store.lock()
                status = self.store.load(change.key.data[0], slice_of(change.key.data + 1, change.key.size - 1))
                if status >= 0:
                    status = self.store.encode_state(&state, none)
            head = &self.store.head
            context = {head.rows[i].origin: head.rows[i].context for i in range(head.size)}
            self.store.unlock()
            check(status)
            parts = split_state(state.data[: state.size])
            if len(parts) == 1 and put_slice(group, buffer_slice(&state)) != 0:
                raise MemoryError("out of memory for a stream")
        finally:
            buffer_free(&state)
        self.pushed = True
        if len(parts) > 1:
            # Each is a group, in as many batches as it takes: the receiver keeps the state for the group that follows.
            self.waiting += [(as_body([part]), 1) for part in parts]
            self.holding = True
        self.shown.pop(key, None)
        self.shown[key] = context
        if len(self.shown) > SHOWN_MAX:
            del self.shown[next(iter(self.shown))]
        return len(parts) == 1

    def next_batch(self, size_t max_changes=100, size_t max_bytes=1 << 20):
        """The next batch for the receiver, or None when it has all that may leave this store.

        A batch ends with the first atomic group that reaches `max_changes` changes or `max_bytes`
        bytes before compression. Raises LogCutError when the log no longer holds what comes next,
        ClosedError after `close`.
        """
        cdef Slice payload
        cdef size_t taken
        cdef size_t count = 0
        cdef uint64_t limit
        cdef int status = 1
        if self.closed or self.store.closed:
            raise ClosedError("the stream or its store is closed")
        before = self.sent
        self.body.size = 0
        while status == 1:
            while self.waiting and count < max_changes and self.body.size < max_bytes:
                group, taken = self.waiting.pop(0)
                if put_slice(&self.body, slice_of(<const unsigned char*><bytes>group, len(group))) != 0:
                    raise MemoryError("out of memory for a stream")
                count += taken
            self.holding = len(self.waiting) != 0
            if self.holding or count >= max_changes or self.body.size >= max_bytes:
                break
            with nogil:
                limit = self._limit()
                while status == 1 and count < max_changes and self.body.size < max_bytes and not self.holding:
                    status = self.reader.next(limit, &payload)
                    if status == 1:
                        status = self._take(payload, &taken)
                        count += taken
                        if status == Status.OK:
                            status = 1
        if status == Status.ERR_GUARD:
            raise LogCutError(
                "the receiver lacks updates that this store learned by a resync, not from a log, or may have collected"
            )
        if self.failure is not None:
            raise self.failure
        check(status)
        if count == 0:
            return None
        if self.pushed:
            # States may carry what was written since: it must be durable before it leaves.
            with nogil:
                status = self.store._write_log(True)
            check(status)
            self.pushed = False
        self.changes += count
        after = self.sent
        # Unfiltered, also what the batch builds on: a receiver that lacks any of it sees the gap at once.
        spans = [
            (origin, before.get(origin, 0), upto)
            for origin, upto in after.items()
            if self.everything or before.get(origin, 0) != upto
        ]
        return encode_batch(CHANGES, spans, count, self.body.data[: self.body.size])

    @property
    def sent(self):
        """Version vector (dict of origin to timestamp) of what the receiver holds after all batches so far."""
        held = vector_dict(&self.handed_out)
        if self.waiting:
            held[self.frame_origin] = self.frame_after
        return held

    def caught_up(self):
        """Whether nothing is waiting to be handed out."""
        return not self.waiting and self.reader.position >= self._limit()

    def pending(self):
        """About how many changes lie between the cursor and the log's end; 0 exactly when caught up."""
        cdef uint64_t limit = self._limit()
        if self.reader.position >= limit:
            return len(self.waiting)
        return max(1, (limit - self.reader.position) // self.store.average_change_bytes())

    def close(self):
        """Let go of the log. Idempotent."""
        self.closed = True
