"""What the frames of the log hold; see frames.pxd. docs/formats/change.md has the bytes."""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.change cimport Change, change_check, change_parse
from everwrite.clock cimport Dot, vector_raise
from everwrite.coding cimport (
    Reader, Slice, buffer_free, buffer_init, get_slice, get_u8, get_u64, get_varint, put_bytes, put_u8,
    put_varint, reader_left, reader_of, slice_of, store_varint,
)
from everwrite.keyspace cimport (
    FRAME_CHANGES, FRAME_CLAIM, FRAME_HORIZON, FRAME_JOIN, FRAME_PIECE, FRAME_STATE,
)
from everwrite.status cimport Status, fault_corrupt

PIECE_BYTES = 16 << 20
"""Of states that are logged in pieces, so much goes into a frame."""

cdef enum:
    # The kind of a piece's frame, its number, and of a state's first piece the state's length.
    PIECE_HEAD_BYTES = 21


cdef void pieces_init(Pieces* pieces) noexcept nogil:
    buffer_init(&pieces.bytes)
    pieces.count = 0


cdef void pieces_free(Pieces* pieces) noexcept nogil:
    buffer_free(&pieces.bytes)
    pieces_init(pieces)


cdef int pieces_add(Pieces* pieces, Reader* r) noexcept nogil:
    cdef uint64_t number = get_varint(r)
    if number == 0:
        # What came before was left behind by a join that got no further.
        pieces_free(pieces)
    if r.failed or number != pieces.count:
        pieces_free(pieces)
        return Status.ERR_DECODE
    pieces.count += 1
    return Status.OK if put_bytes(&pieces.bytes, r.at, reader_left(r)) == 0 else Status.ERR_MEMORY


cdef int pieces_joined(const Pieces* pieces, Reader* r, Reader* states) noexcept nogil:
    cdef uint64_t count = get_varint(r)
    states[0] = reader_of(slice_of(pieces.bytes.data, pieces.bytes.size))
    return Status.OK if not r.failed and count and count == pieces.count else Status.ERR_DECODE


cdef class FramedKeyspace(RefusingKeyspace):
    """Keys that can be had again from the log's frames."""

    def __cinit__(self, *args, **kwargs):
        pieces_init(&self.pieces)

    def __dealloc__(self):
        pieces_free(&self.pieces)

    # ---- replaying ----

    cdef int replay_frame(self, Slice payload) noexcept nogil:
        cdef Reader r = reader_of(payload)
        cdef Reader states
        cdef int kind = get_u8(&r)
        cdef uint64_t count
        cdef uint64_t _i
        cdef Dot dot
        cdef int status = Status.OK
        if kind == FRAME_PIECE:
            status = pieces_add(&self.pieces, &r)
            if status == Status.ERR_DECODE:
                return fault_corrupt(b"log", 0, b"a piece of states in the log doesn't follow the one before it")
            return status
        if kind == FRAME_CHANGES:
            status = self._replay_changes(&r)
        elif kind == FRAME_JOIN:
            if pieces_joined(&self.pieces, &r, &states) < 0:
                return fault_corrupt(b"log", 0, b"pieces of states that are joined in the log are missing")
            status = self._replay_changes(&states)
            if status >= 0:
                status = self._replay_changes(&r)
        elif kind == FRAME_STATE:
            status = self.apply_change(slice_of(r.at, reader_left(&r)))
        elif kind == FRAME_CLAIM or kind == FRAME_HORIZON:
            count = get_varint(&r)
            for _i in range(count):
                dot.origin = get_u64(&r)
                dot.timestamp = get_u64(&r)
                if r.failed or vector_raise(
                    &self.applied if kind == FRAME_CLAIM else &self.horizon, dot.origin, dot.timestamp
                ) < 0:
                    return fault_corrupt(b"log", 0, b"a claim or horizon in the log can't be decoded")
        else:
            return fault_corrupt(b"log", 0, b"a log frame of an unknown kind")
        pieces_free(&self.pieces)
        return status if status < 0 else Status.OK

    cdef int _replay_changes(self, Reader* r) noexcept nogil:
        cdef Change change
        cdef Slice body
        cdef int status = Status.OK
        while reader_left(r) and status >= 0:
            body = get_slice(r)
            if r.failed or change_parse(body, &change) < 0 or change_check(&change) < 0:
                return fault_corrupt(b"log", 0, b"a change in the log can't be decoded")
            status = self.apply_change(body)
            if status == Status.ERR_GUARD:
                return fault_corrupt(b"log", 0, b"a change in the log builds on one that is missing")
            if change.dot.timestamp > self.clock.last:
                self.clock.last = change.dot.timestamp
            if vector_raise(&self.applied, change.dot.origin, change.dot.timestamp) < 0:
                return Status.ERR_MEMORY
        return status

    # ---- states too large for a frame ----

    cdef uint64_t log_pieces(self, list states) except 0:
        cdef Slice frame[2]
        cdef uint8_t head[PIECE_HEAD_BYTES]
        cdef Slice state
        cdef size_t limit = PIECE_BYTES
        cdef size_t at
        cdef uint64_t count = 0
        cdef int status
        for each in states:
            state = slice_of(<const uint8_t*><bytes>each, len(each))
            at = 0
            while at < state.size:
                head[0] = FRAME_PIECE
                frame[0] = slice_of(head, 1 + store_varint(head + 1, count))
                if at == 0:
                    frame[0].size += store_varint(head + frame[0].size, state.size)
                frame[1] = slice_of(state.data + at, min(limit, state.size - at))
                with nogil:
                    status = self.reserve(frame[0].size + frame[1].size)
                    if status >= 0:
                        status = self._logged(self.wal.append_parts(frame, 2))
                self._check(status)
                at += frame[1].size
                count += 1
        return count

    cdef int join_begin(self, uint64_t count) noexcept nogil:
        """Begin the frame that joins what so many pieces before it hold; changes may follow in it."""
        self.drop_group()
        if put_u8(&self.group, FRAME_JOIN) | put_varint(&self.group, count):
            return self._fail(Status.ERR_MEMORY)
        return Status.OK
