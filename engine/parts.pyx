"""Large states of keys in parts, by elements, and whole again: nothing is joined before all parts are there.

A context says of every element that isn't there that it was removed. So a part of a state can't be joined by
itself: with the whole context it would remove what other parts bring, without it, it would leave elements whose
writes the key doesn't know. docs/formats/change.md has the bytes.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.change cimport (
    CHANGE_FULL_STATE, CHANGE_PART, Change, Part, change_parse, is_part, part_next, put_change,
)
from everwrite.clock cimport Dot
from everwrite.coding cimport (
    Buffer, Reader, Slice, buffer_free, buffer_init, get_slice, put_bytes, put_slice, reader_left, reader_of,
    slice_of,
)
from everwrite.hashing cimport hash64
from everwrite.status cimport Status

from everwrite.errors import ProtocolError, TooLargeError, shown_key

PART_BYTES = 1 << 20
"""A state larger than this goes in parts of about this size; a single larger element makes a larger part."""

WAITING_BYTES = 1 << 30
"""Parts of states that aren't whole yet, in a store; beyond, the oldest state's are forgotten."""


def split_state(bytes state not None, size_t limit=0):
    """The parts of a key's state as `Store.key_state` gives it, in order: itself alone when it isn't large.

    `limit`: bytes of a part, about; 0: `PART_BYTES`.
    """
    cdef Slice whole = slice_of(<const uint8_t*>state, len(state))
    cdef Change change
    cdef Part part
    cdef Reader r
    cdef Dot name
    cdef Buffer into
    cdef const uint8_t* start
    cdef size_t size
    limit = limit or PART_BYTES
    if whole.size <= limit or change_parse(whole, &change) != Status.OK:
        return [state]
    r = reader_of(change.parts)
    pieces = []
    start = r.at
    while part_next(&r, &part) == 1:
        if <size_t>(r.at - start) >= limit or reader_left(&r) == 0:
            pieces.append((start - change.parts.data, r.at - start))
            start = r.at
    if len(pieces) < 2:
        return [state]
    # The same for the same content, so that parts of two states of the key are never taken together.
    name.origin = hash64(whole, len(pieces))
    name.timestamp = 0
    parts = []
    for index, (offset, length) in enumerate(pieces):
        buffer_init(&into)
        try:
            size = length
            if put_change(
                &into, CHANGE_FULL_STATE | CHANGE_PART, name, <uint64_t>len(pieces) << 32 | <uint64_t>index, change.key
            ) or put_bytes(&into, change.parts.data + <size_t>offset, size):
                raise MemoryError("out of memory for a part of a state")
            parts.append(into.data[: into.size])
        finally:
            buffer_free(&into)
    return parts


def as_body(list states not None):
    """The body of a batch of these states or parts."""
    cdef Buffer into
    buffer_init(&into)
    try:
        for each in states:
            if put_slice(&into, slice_of(<const uint8_t*><bytes>each, len(each))) != 0:
                raise MemoryError("out of memory for states")
        return into.data[: into.size] if into.size else b""
    finally:
        buffer_free(&into)


cdef class PartStore:
    """Parts that wait for the others of their state.

    Not thread-safe. `scope` keeps apart what came from different senders or resyncs.
    """

    def __cinit__(self):
        self.waiting = {}
        self.forgotten = []
        self.bytes = 0

    cdef object take(self, object scope, Slice body):
        """The whole state when this part, a valid one, was the last that it lacked; else None."""
        cdef Change change
        cdef Buffer head
        cdef Dot none
        change_parse(body, &change)
        named = (scope, change.key.data[: change.key.size], change.dot.origin, change.previous >> 32)
        held = self.waiting.pop(named, {})
        # The newest last: what has waited longest is forgotten first.
        self.waiting[named] = held
        if change.previous & <uint64_t>0xFFFFFFFF not in held:
            held[change.previous & <uint64_t>0xFFFFFFFF] = body.data[: body.size]
            self.bytes += body.size
        if len(held) < change.previous >> 32:
            while self.bytes > WAITING_BYTES:
                oldest = next(iter(self.waiting))
                self.forgotten.append(oldest[0])
                self.forget(oldest)
                if oldest == named:
                    raise TooLargeError(
                        f"the state of key {shown_key(named[1][1:])} has over {WAITING_BYTES} bytes, which is the "
                        "limit: split the key"
                    )
            return None
        self.forget(named)
        none.origin = none.timestamp = 0
        buffer_init(&head)
        try:
            if put_change(&head, CHANGE_FULL_STATE, none, 0, change.key):
                raise MemoryError("out of memory for a key's state")
            pieces = [head.data[: head.size]]
        finally:
            buffer_free(&head)
        for index in range(len(held)):
            if index not in held:
                raise ProtocolError(f"malformed state of key {shown_key(named[1][1:])}: its parts don't make a whole")
            data = held[index]
            change_parse(slice_of(<const uint8_t*><bytes>data, len(data)), &change)
            pieces.append(memoryview(data)[change.parts.data - <const uint8_t*><bytes>data :])
        return b"".join(pieces)

    cdef object forget(self, object named):
        held = self.waiting.pop(named, None)
        if held is not None:
            self.bytes -= sum(map(len, held.values()))

    cdef bint waits(self, object scope) except -1:
        """Whether a state of this scope lacks parts."""
        return any(named[0] == scope for named in self.waiting)


cdef list part_slices(const uint8_t* data, size_t size, bint groups):
    """The parts in a body of states, or of groups of changes, that is valid, as (offset, size) pairs."""
    cdef Reader r = reader_of(slice_of(data, size))
    cdef Reader group
    cdef Change change
    cdef Slice body
    found = []
    while reader_left(&r):
        body = get_slice(&r)
        group = reader_of(body)
        while True:
            if groups:
                body = get_slice(&group)
            if change_parse(body, &change) == Status.OK and is_part(&change):
                found.append((body.data - data, body.size))
            if not groups or reader_left(&group) == 0:
                break
    return found
