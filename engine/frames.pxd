"""What the frames of the log hold: written when that is too large for one frame, and replayed at an open.

States that other stores sent may be larger than a frame. They are logged in pieces, and joined by the frame behind
these. Pieces alone are nobody's: a crash, or a disk that filled up, may have left them without it.
Invariant: pieces and the frame that joins them are written under one hold of the store's lock, so that neither
a checkpoint nor the start of a stream lies between them.
"""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Buffer, Reader, Slice
from everwrite.refusals cimport RefusingKeyspace


cdef struct Pieces:
    # Those that were read last, one behind the other.
    Buffer bytes
    uint64_t count


cdef class FramedKeyspace(RefusingKeyspace):
    cdef Pieces pieces                  # while the log is replayed

    cdef int replay_frame(self, Slice payload) noexcept nogil
    cdef int _replay_changes(self, Reader* r) noexcept nogil
    # Log states in pieces, for a frame that `join_begin` starts. Returns how many pieces. Needs the lock.
    cdef uint64_t log_pieces(self, list states) except 0
    cdef int join_begin(self, uint64_t count) noexcept nogil


cdef void pieces_init(Pieces* pieces) noexcept nogil
cdef void pieces_free(Pieces* pieces) noexcept nogil
# The content of a FRAME_PIECE. OK, ERR_MEMORY, or ERR_DECODE: it doesn't follow the one before it, and all are dropped.
cdef int pieces_add(Pieces* pieces, Reader* r) noexcept nogil
# The content of a FRAME_JOIN, up to its changes: *states becomes what the pieces are made of, each state a slice.
cdef int pieces_joined(const Pieces* pieces, Reader* r, Reader* states) noexcept nogil
