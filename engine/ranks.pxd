"""The index of ranks of sorted sets and sequences: which element has a rank, which rank a place in the order has.

A B+ tree of counts over the order of the live elements (Bayer and McCreight 1972, with the subtree sizes of Knuth,
The Art of Computer Programming 3, 6.2.3), whose nodes aren't pages: each branch is an entry of the store, so that it
shares memory, files, snapshots and undoing with the elements. A *place* is what elements are ordered by, as bytes:
score and member, or position. A *span* of level 1 reaches from its place to that of the next one of its level; its
entry holds how many live elements lie in it. A span of level 2 holds spans of level 1, and so on: its *steps*.

An entry is: space byte, length of the key (4 bytes, big-endian), key, kind, level (from 1), place; the value is the
count (8 bytes). The head of the key tells the number of levels. The index is derived and local, made at the first
question that a walk wouldn't answer quickly, from then on written in the same step as the elements, and dropped when
the collection becomes small or is cleared.

Invariants, while the head tells of levels: each level begins with a span at the empty place; the places of a level are
among those of the level below; a count is the sum of the steps' counts; no span, nor the highest level as a whole, has
more than SPAN_MAX steps; without levels there is no entry.
Thread safety: everything needs the keyspace's lock.
"""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.join cimport Seen
from everwrite.registers cimport RegisterKeyspace
from everwrite.walk cimport Walk


cdef enum:
    SPAN_MAX = 128             # steps of a span; one with more is split in the middle
    SPAN_MIN = 32              # one with fewer is joined to a neighbour under the same span
    SPAN_JOINED = 96           # ... unless both together have more than this; also what a new index fills
    NEAR = 128                 # up to so many elements from an end are walked
    RANKED_FROM = 256          # live elements of a collection that gets an index
    RANKED_UNTIL = 64          # ... and that loses it again
    RANKED_LARGE = 65536       # an index of so many elements is worth a table file before the next start


cdef struct Level:
    # A walk along a level of the loaded key's order: of level 0, the elements themselves.
    Walk walk
    bint counted               # its entries hold counts
    Slice place                # where it stands; borrowed, until it moves
    uint64_t count             # elements of the span; 1 for an element


cdef struct Extent:
    # Where a span begins and the next one of its level does.
    Slice first
    Slice end
    bint open                  # there is no next one
    uint64_t elements


cdef class RankedKeyspace(RegisterKeyspace):
    cdef Buffer rank_entry
    cdef Buffer span_start
    cdef Buffer span_end
    cdef Buffer span_middle
    cdef Buffer place_found
    cdef bint listed_before            # whether the element that is being joined was alive
    cdef bint ranks_off                # for a store that only collects what is left of another
    cdef bint ranks_unlogged           # a large index was made since the last freeze: no log tells of it
    cdef uint64_t rank_steps           # entries that were visited to find ranks and places, or to keep them
    cdef uint64_t ranks_made

    # How many live elements of the loaded key lie before a place, be it taken or not.
    cdef int rank_of(self, int kind, Slice place, uint64_t* rank) noexcept nogil
    # The place of the live element with this rank, into place_found: 1, or 0 when there are no more.
    cdef int rank_find(self, int kind, uint64_t rank) noexcept nogil
    # A live element has come to (1) or gone from (-1) a place of the loaded key: order, head and count tell already.
    cdef int rank_note(self, int kind, Slice place, int difference) noexcept nogil
    cdef int rank_drop(self, int kind) noexcept nogil

    cdef int _level_open(self, Level* at) noexcept nogil
    cdef void _level_close(self, Level* at) noexcept nogil
    # All of them: 1 standing, 0 the level ends there, negative error.
    cdef int _level_from(self, Level* at, int kind, int level, Slice place) noexcept nogil         # first one >= place
    cdef int _level_back_from(self, Level* at, int kind, int level, Slice place) noexcept nogil    # last one <= place
    cdef int _level_next(self, Level* at) noexcept nogil
    cdef int _level_previous(self, Level* at) noexcept nogil
    cdef int _level_move(self, Level* at, bint reverse) noexcept nogil
    cdef int _level_aim(self, Level* at, int kind, int level, Slice place) noexcept nogil

    cdef int _pass_spans(self, Level* at, int kind, int level, Slice place, uint64_t* rank) noexcept nogil
    cdef int _find_below(self, Level* at, int kind, int level, uint64_t rank) noexcept nogil
    cdef int _find_along(self, Level* at, int kind, uint64_t rank, uint64_t count) noexcept nogil

    cdef int _rank_ready(self, int kind) noexcept nogil
    cdef int _rank_make(self, int kind) noexcept nogil
    cdef int _rank_make_level(self, Level* at, int kind, int level, uint64_t* spans) noexcept nogil
    cdef int _put_ranked_head(self) noexcept nogil

    cdef int _note_spans(
        self, Level* at, int kind, int levels, Slice place, int difference, uint64_t* lowest
    ) noexcept nogil
    cdef int _put_span(self, int kind, int level, Slice place, uint64_t count) noexcept nogil
    cdef int _remove_span(self, int kind, int level, Slice place) noexcept nogil
    cdef int _is_span(self, Level* at, int kind, int level, Slice place) noexcept nogil
    cdef int _measure(
        self, Level* at, int kind, int level, const Extent* extent, uint64_t upto, uint64_t* steps,
        uint64_t* elements
    ) noexcept nogil
    cdef int _extent(self, Level* at, Buffer* first, Buffer* end, Extent* extent) noexcept nogil
    cdef int _split(self, Level* at, int kind, Slice place) noexcept nogil
    cdef int _split_level(self, Level* at, int kind, int level, int levels, Slice place) noexcept nogil
    cdef int _join(self, Level* at, int kind, Slice place) noexcept nogil
    cdef int _join_level(self, Level* at, int kind, int level, int levels, Slice place) noexcept nogil
    cdef int _under_one(self, Level* at, int kind, int level, int levels, Slice place) noexcept nogil
    cdef int _steps(self, Level* at, int kind, int level, const Extent* span, uint64_t* steps) noexcept nogil
    cdef int _join_two(
        self, Level* at, int kind, int level, const Extent* left, const Extent* right, uint64_t steps,
        const Extent* other
    ) noexcept nogil
