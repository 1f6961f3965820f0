"""What other stores have sent and can't be joined yet: pulled states that wait for their group, and parts of states.

Bounded, in memory only, and forgotten when nobody adds to it for long: whoever still needs it asks again.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.change cimport (
    Change, Part, change_parse, change_validate, full_state_covers, is_part, part_next,
)
from everwrite.clock cimport Dot, vector_covers
from everwrite.coding cimport Reader, Slice, reader_of, slice_of
from everwrite.durable cimport DurableKeyspace
from everwrite.parts cimport PartStore, part_slices
from everwrite.state cimport MAX_STATE, Head, head_decode, head_free, head_init
from everwrite.status cimport Status, check

from everwrite.errors import ClockDriftError, ProtocolError, TooLargeError, shown_key

STATE_BYTES_MAX = MAX_STATE
"""A state that other stores send, or all those that one group of changes needs."""

KEPT_BYTES = 1 << 30
"""States that were pulled, kept until the group that needs them can be applied; the oldest go first."""

IDLE_MS = 600_000
"""After so long without another, states that were pulled and parts of states are forgotten."""


cdef class AsideKeyspace(DurableKeyspace):
    """A store that sets aside what it can't join yet: `InboundKeyspace` says when it can."""

    def __cinit__(self, *args, **kwargs):
        self.resync = {}
        self.kept = {}
        self.parts = PartStore()

    def _kept_context(self, bytes key):
        kept = self.kept.get(key)
        return {} if kept is None else kept[1]

    cdef list _take_parts(self, object scope, const uint8_t* data, size_t size, bint groups):
        """Set aside the parts of states in a body: (key, state) pairs of those that are whole now. Needs the lock."""
        cdef uint64_t newest = 0
        cdef size_t start
        cdef size_t length
        cdef Change change
        cdef Slice state
        done = []
        for offset, count in part_slices(data, size, groups):
            start = offset
            length = count
            self.set_aside_ms = self.clock.now_ms()
            whole = self.parts.take(scope, slice_of(data + start, length))
            while self.parts.forgotten:
                # Its batches don't count as received any more: the claim would mark what was dropped as applied.
                self.resync.pop(self.parts.forgotten.pop(), None)
            if whole is None:
                continue
            state = slice_of(<const uint8_t*><bytes>whole, len(whole))
            if change_validate(state, True, &newest) < 0:
                raise ProtocolError("malformed state: its parts don't make a whole; nothing of it was joined")
            if self.clock.observe(newest) < 0:
                raise ClockDriftError("a state has a timestamp too far ahead of this node's clock; it wasn't joined")
            change_parse(state, &change)
            _check_size(change.key.data[: change.key.size], len(whole))
            done.append((change.key.data[: change.key.size], whole))
        return done

    def supply_state(self, need, bytes state not None):
        """Keep the state of the key that `need` (a `Need`) names, as the sender's `key_state` gave it.

        Or a part of it (`parts.split_state`); returns whether the state is whole now. It is joined with
        the group that needs it, once all that the group needs is there. Raises ProtocolError when it isn't
        that key's state or doesn't reach what was needed, ClockDriftError when it holds a timestamp too far
        ahead, TooLargeError when it is larger than all that may be kept.
        """
        cdef Change change
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
            raise ProtocolError(
                f"the state that the peer sent for key {shown_key(key[1:])} is malformed; nothing was applied"
            )
        if is_part(&change):
            with nogil:
                self.lock()
            try:
                self.set_aside_ms = self.clock.now_ms()
                state = self.parts.take(need, given)
            finally:
                self.unlock()
            return state is not None and self.supply_state(need, state)
        dot.origin = need.origin
        dot.timestamp = need.timestamp
        with nogil:
            self.lock()
        try:
            self._check(Status.ERR_FAILED if self.failed else Status.OK)
            if not full_state_covers(&change, dot):
                raise ProtocolError(
                    f"the state that the peer sent for key {shown_key(key[1:])} lacks update {need.timestamp} of "
                    f"origin {need.origin:#018x}; nothing was applied"
                )
            if self.clock.observe(newest) < 0:
                raise ClockDriftError(
                    f"the state of key {shown_key(key[1:])} has a timestamp too far ahead of this node's clock; "
                    "nothing was merged"
                )
            if not vector_covers(&self.applied, dot.origin, dot.timestamp):
                self._keep(key, state)
            return True
        finally:
            self.unlock()

    def _keep(self, bytes key, bytes state):
        """Keep a valid state for the group that needs it."""
        cdef Change change
        _check_size(key, len(state))
        change_parse(slice_of(<const uint8_t*>state, len(state)), &change)
        self._drop_kept(key)
        self.set_aside_ms = self.clock.now_ms()
        self.kept[key] = state, context_of(&change)
        self.kept_bytes += len(state)
        while self.kept_bytes > KEPT_BYTES:
            # Asked for by a link that has gone, most likely. Whoever still needs it asks again.
            self._drop_kept(next(iter(self.kept)))

    def _forget_idle(self):
        """Let go of states and parts that nobody has added to for long: the link that asked for them has gone."""
        cdef int64_t now = self.clock.now_ms()
        if (self.kept or self.parts.waiting) and abs(now - self.set_aside_ms) > IDLE_MS:
            self.kept.clear()
            self.kept_bytes = 0
            while self.parts.waiting:
                named = next(iter(self.parts.waiting))
                self.resync.pop(named[0], None)
                self.parts.forget(named)

    def _drop_kept(self, bytes key):
        kept = self.kept.pop(key, None)
        if kept is not None:
            self.kept_bytes -= len(kept[0])


cdef dict context_of(const Change* change):
    """The causal context of a full state that is valid, as a dict of origin to timestamp."""
    cdef Reader r = reader_of(change.parts)
    cdef Part part
    cdef Head head
    cdef size_t i
    part_next(&r, &part)
    head_init(&head)
    try:
        check(head_decode(&head, part.value))
        return {head.rows[i].origin: head.rows[i].context for i in range(head.size)}
    finally:
        head_free(&head)


cdef int _check_size(bytes key, size_t size) except -1:
    # Before it is merged: what can't be logged must not be in memory either.
    if size > STATE_BYTES_MAX:
        raise TooLargeError(
            f"the state of key {shown_key(key[1:])} has {size} bytes; the limit is {STATE_BYTES_MAX}: split the key"
        )
    return 0
