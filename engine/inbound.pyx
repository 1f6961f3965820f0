"""What comes from other stores: batches of changes, states and claims, checked, applied and logged.

An atomic group becomes visible at once, and is one frame of the log, with the states that had to be
pulled for it: all guards are checked before anything of it is merged.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.aside cimport context_of
from everwrite.change cimport (
    PART_CLEAR, PART_ELEMENT, Change, Part, change_parse, change_validate, dot_at, is_part, is_state, part_next,
)
from everwrite.clock cimport (
    Dot, Vector, vector_covers, vector_dict, vector_free, vector_get, vector_init, vector_raise,
)
from everwrite.coding cimport (
    Reader, Slice, get_slice, reader_left, reader_of, slice_of,
)
from everwrite.horizon cimport HorizonKeyspace
from everwrite.keyspace cimport CHANGE_HEAD_BYTES, DUPLICATE, FRAME_CLAIM, FRAME_HORIZON
from everwrite.status cimport Status

from everwrite.aside import STATE_BYTES_MAX
from everwrite.batch import CHANGES, CLAIM, STATES, decode_batch, decode_horizon
from everwrite.clock import merge
from everwrite.errors import ClockDriftError, ClosedError, GapError, ProtocolError, TooLargeError
from everwrite.need import Need

FRAME_STATES_BYTES = 240 << 20
"""States, and the changes that need them, that go into one frame of the log; more go in pieces before it."""

RESYNCS_OPEN = 64
"""Resyncs whose batches are remembered until their claim; the oldest are forgotten."""


cdef class InboundKeyspace(HorizonKeyspace):
    """A store that takes in what others send: `Store` adds what it sends itself."""

    # ---- batches in ----

    def apply_batch(self, bytes batch not None):
        """Apply a batch from another store; durable after `commit_log`.

        Returns None, or a `Need`: a change builds on updates that this store lacks. Nothing of its atomic
        group is applied then. Hand the sender's `key_state` to `supply_state`, which keeps it until all that
        the group needs is there, and apply the batch again: what is in is skipped.
        Raises GapError (the batch starts beyond what this store holds), ProtocolError (malformed),
        ClockDriftError, TooLargeError; nothing was applied then.
        """
        cdef const uint8_t* data
        cdef size_t size
        cdef uint64_t newest = 0
        cdef uint64_t count
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
            self._forget_idle()
            if envelope.kind == CLAIM:
                # One that brings nothing must not cost this store its position index.
                states_came = self.resync.pop(envelope.resync, None) is not None
                if any(vector_get(&self.applied, span.origin) < span.upto for span in envelope.spans):
                    self._accept_claim(envelope)
                    states_came = True
                self.resyncs += states_came
                return None
            whole = []
            if not states or envelope.index not in self.resync.get(envelope.resync, ()):
                whole = self._take_parts(envelope.resync if states else None, data, size, not states)
            if not states:
                for key, state in whole:
                    # Sent ahead of a change: kept for its group, as if it had been asked for.
                    self._keep(key, state)
                need = self._apply_groups(data, size)
                if need is not None:
                    self.pulls += 1
                    return need
            else:
                self._join_states(data, size, whole)
                self.resync.setdefault(envelope.resync, set()).add(envelope.index)
                while len(self.resync) > RESYNCS_OPEN:
                    del self.resync[next(iter(self.resync))]
            for span in envelope.spans:
                if vector_raise(&self.applied, span.origin, span.upto) < 0:
                    raise MemoryError("out of memory for a version vector")
        finally:
            self.unlock()
        return None

    def needs(self, bytes batch not None, size_t limit):
        """Up to `limit` `Need`s that `apply_batch(batch)` is going to return, as far as can be told beforehand.

        So that a receiver can ask for many keys at once. Of each key only the first group that isn't applied
        yet counts: whether a later one fits depends on that. Raises ProtocolError as `apply_batch`.
        """
        cdef Reader r
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
                for need in self._group_needs(get_slice(&r), keys, set()):
                    found.append(need)
        finally:
            self.unlock()
        return found[:limit]

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
        if envelope.kind == CLAIM and (
            self.parts.waits(envelope.resync)
            or envelope.count > len(received)
            or not all(index in received for index in range(envelope.count))
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
        horizon = decode_horizon(envelope.body)
        # What the sender has no key for any more, it has seen and collected.
        self._settle_absent(horizon)
        self._log_vector(FRAME_CLAIM, &self.applied, {span.origin: span.upto for span in envelope.spans})
        if horizon:
            # All that this store has yet to see was made by stores that had this behind them, as for the sender.
            self._log_vector(FRAME_HORIZON, &self.horizon, horizon)
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

    # ---- groups ----

    cdef bint _group_applied(self, Slice body) noexcept nogil:
        """Whether all changes of a group are in already: states that were sent ahead of them, too, then."""
        cdef Reader group = reader_of(body)
        cdef Change change
        while reader_left(&group):
            change_parse(get_slice(&group), &change)
            if change.dot.timestamp and not vector_covers(&self.applied, change.dot.origin, change.dot.timestamp):
                return False
        return True

    cdef int _group_fits(self, Slice body) noexcept nogil:
        """Whether every guard of a group holds on what is stored already: 1; 0: that takes a closer look."""
        cdef Reader group = reader_of(body)
        cdef Change change
        cdef int status
        while reader_left(&group):
            change_parse(get_slice(&group), &change)
            if is_state(&change):
                return 0
            if vector_covers(&self.applied, change.dot.origin, change.dot.timestamp):
                continue
            status = self.load(change.key.data[0], slice_of(change.key.data + 1, change.key.size - 1))
            if status < 0:
                return status
            if self.guard(&change) == Status.ERR_GUARD:
                return 0
        return 1

    cdef list _group_needs(self, Slice body, set passed, set used):
        """The needs of a group: changes that fit neither on the store nor on what comes before them.

        That is earlier changes of the group (they share an origin), states that were sent ahead of a
        change, and states that `supply_state` keeps. Keys in `passed` belong to earlier groups and aren't looked
        at; the group's are added. Keys whose kept states are needed are added to `used`. Needs the lock.
        """
        cdef Reader group = reader_of(body)
        cdef Change change
        needs = []
        reached = {}
        while reader_left(&group):
            change_parse(get_slice(&group), &change)
            key = change.key.data[: change.key.size]
            if key in passed:
                continue
            if is_state(&change):
                reached[key] = merge(reached.get(key, {}), context_of(&change))
                continue
            if vector_covers(&self.applied, change.dot.origin, change.dot.timestamp):
                continue
            self._check(self.load(change.key.data[0], slice_of(change.key.data + 1, change.key.size - 1)))
            if self.guard(&change) == Status.ERR_GUARD and not self._reaches(&change, reached.get(key, {})):
                if self._reaches(&change, merge(reached.get(key, {}), self._kept_context(key))):
                    used.add(key)
                else:
                    needs.append(Need(key, change.dot.origin, change.dot.timestamp))
                    # Whatever else the group does to the key, one state brings all of it.
                    passed.add(key)
            reached.setdefault(key, {})[change.dot.origin] = change.dot.timestamp
        passed.update(reached)
        return needs

    cdef bint _reaches(self, const Change* change, dict context) except -1:
        """Whether the loaded key's context together with `context` has all that the change builds on."""
        cdef Reader r = reader_of(change.parts)
        cdef Part part
        cdef Dot dot
        cdef size_t i
        if context.get(change.dot.origin, 0) >= change.dot.timestamp:
            return True
        if context.get(change.dot.origin, 0) < change.previous and not self.includes(
            change.dot.origin, change.previous
        ):
            return False
        while part_next(&r, &part) == 1:
            if part.tag != PART_ELEMENT and part.tag != PART_CLEAR:
                continue
            for i in range(part.dot_count):
                dot = dot_at(part.dots, i)
                if context.get(dot.origin, 0) < dot.timestamp and not self.includes(dot.origin, dot.timestamp):
                    return False
        return True

    cdef object _apply_groups(self, const uint8_t* data, size_t size):
        """Apply groups in order; None, or the first need of one that doesn't fit: nothing of that one is in."""
        cdef Reader r = reader_of(slice_of(data, size))
        cdef Slice body
        cdef int status
        while True:
            with nogil:
                status = self._apply_fitting(&r, &body)
            if status != Status.ERR_GUARD:
                self._check(status)
                return None
            used = set()
            needs = self._group_needs(body, set(), used)
            if needs:
                return needs[0]
            keys = self._keys_of_group(body)
            kept = [self.kept[key][0] for key in keys if key in used]
            size = sum(map(len, kept)) + body.size
            if size > STATE_BYTES_MAX:
                raise TooLargeError(
                    f"a group of changes and the states that it needs have {size} bytes; the limit is {STATE_BYTES_MAX}"
                )
            self._check(self._apply_with_states(body, kept, size > FRAME_STATES_BYTES))
            for key in keys:
                self._drop_kept(key)

    cdef int _apply_fitting(self, Reader* r, Slice* body) noexcept nogil:
        """Apply groups whose guards hold on what is stored. ERR_GUARD: *body, the last one, needs a closer look."""
        cdef Reader group
        cdef int status
        while reader_left(r):
            body[0] = get_slice(r)
            if self._group_applied(body[0]):
                continue
            group = reader_of(body[0])
            get_slice(&group)
            if reader_left(&group):
                # One change finds out by itself whether it fits; of several none may be in before all do.
                status = self._group_fits(body[0])
                if status != 1:
                    return Status.ERR_GUARD if status == 0 else status
            # With room in the log for all of it, or none is applied.
            status = self.reserve(body[0].size)
            if status < 0:
                return status
            self.batch_begin()
            self.values_stay = True
            status = self._apply_group(body[0], reader_left(&group) == 0)
            if status < 0:
                return status
        return Status.OK

    cdef int _apply_with_states(self, Slice body, list states, bint in_pieces) except? -1:
        """One frame for all of it: neither a reader nor a crash gets between the states and the changes."""
        cdef Slice state
        cdef uint64_t pieces = self.log_pieces(states) if in_pieces else 0
        cdef uint64_t size = 0 if in_pieces else sum(len(each) + CHANGE_HEAD_BYTES for each in states)
        cdef int status = self.reserve(body.size + size + CHANGE_HEAD_BYTES)
        if status >= 0 and in_pieces:
            status = self.join_begin(pieces)
        if status < 0:
            return status
        self.batch_begin()
        self.values_stay = True
        for each in states:
            state = slice_of(<const uint8_t*><bytes>each, len(each))
            with nogil:
                status = self.apply_change(state)
                if status >= 0 and not in_pieces:
                    status = self.log_change(state)
            if status < 0:
                self.grouping = False
                self.drop_group()
                return self._fail(status)
        with nogil:
            status = self._apply_group(body, False)
        return status

    cdef list _keys_of_group(self, Slice body):
        """The keys of a group, each once, in order."""
        cdef Reader group = reader_of(body)
        cdef Change change
        keys = {}
        while reader_left(&group):
            change_parse(get_slice(&group), &change)
            keys[change.key.data[: change.key.size]] = None
        return list(keys)

    cdef int _apply_group(self, Slice body, bint unchecked) noexcept nogil:
        """Merge and log a group as the rest of a frame that has begun.

        Its guards are known to hold in this order, or it is one change `unchecked`: then ERR_GUARD says that
        it doesn't fit, and nothing happened.
        """
        cdef Reader group = reader_of(body)
        cdef Change change
        cdef bint counts
        cdef int status = Status.OK
        while reader_left(&group):
            change_parse(get_slice(&group), &change)
            counts = not is_state(&change)
            if counts and vector_covers(&self.applied, change.dot.origin, change.dot.timestamp):
                continue
            status = self.apply_change(change.body)
            if status >= 0:
                self.duplicate_changes += counts and status == DUPLICATE
                self.applied_changes += counts
                # Logged even if the state has it already: the log is where others recover it from.
                status = self.log_change(change.body)
            if status >= 0 and counts:
                status = vector_raise(&self.applied, change.dot.origin, change.dot.timestamp)
            if status < 0:
                self.grouping = False
                if unchecked and self.group.size == 0:
                    return status
                # Half a group must be neither served nor logged.
                self.drop_group()
                return self._fail(status)
        return self.batch_end()

    cdef int _join_states(self, const uint8_t* data, size_t size, list whole) except -1:
        """Join the states of a body, and those that its parts have completed. Needs the lock."""
        cdef Slice state
        cdef int status
        with nogil:
            status = self._apply_states(data, size)
        self._check(status)
        for _, each in whole:
            if len(each) > FRAME_STATES_BYTES:
                self._check(self._apply_with_states(slice_of(NULL, 0), [each], True))
                continue
            state = slice_of(<const uint8_t*><bytes>each, len(each))
            with nogil:
                status = self.join_state(state)
            self._check(status)
        return 0

    cdef int _apply_states(self, const uint8_t* data, size_t size) noexcept nogil:
        cdef Reader r = reader_of(slice_of(data, size))
        cdef Slice body
        cdef Change change
        cdef int status = Status.OK
        while reader_left(&r) and status >= 0:
            body = get_slice(&r)
            change_parse(body, &change)
            if not is_part(&change):
                status = self.join_state(body)
        return status


cdef int _check_spans(const uint8_t* data, size_t size, Vector* held, const Vector* upto) noexcept nogil:
    """Whether a well-formed body holds, of each origin in its order, changes after `held` that end at `upto`.

    The changes of one group share their origin; parts of states stand in groups of their own.
    """
    cdef Reader r = reader_of(slice_of(data, size))
    cdef Reader group
    cdef Change change
    cdef uint64_t origin
    cdef bint parts
    cdef bint changes
    cdef size_t i
    while reader_left(&r):
        group = reader_of(get_slice(&r))
        origin = 0
        parts = changes = False
        while reader_left(&group):
            change_parse(get_slice(&group), &change)
            if is_part(&change):
                parts = True
            else:
                changes = True
            if parts and changes:
                return Status.ERR_DECODE
            if change.dot.timestamp == 0:
                continue
            if origin and change.dot.origin != origin:
                return Status.ERR_DECODE
            origin = change.dot.origin
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
