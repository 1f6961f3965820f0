"""Positions in a sequence: byte strings, each unique for ever, whose order is the order of the list.

A position is a path in a tree of items, after Weidner and Kleppmann, The Art of the Fugue
(2023): an item hangs on the left or on the right of another, and what hangs on its left lies
before it. Beyond Fugue, items of one store that follow each other share a *group*, so that a
run costs one level however long it is, and groups on the same side of an item are ordered by
the time when they were opened, so that one who adds beside another's run needs no level below it.

docs/formats/state.md shows the bytes. A path is a number of segments and a last byte:
  side           1  0x40 left of the item before (of the whole list, in the first segment), 0x80 right of it
  opened         8  big-endian timestamp of the group
  origin         8  big-endian, of the group
  since, index   1 + n each: a length and so many big-endian bytes: time since `opened`, and
                    place among the items of one update
  last byte      1  0x80
On the left, opened, since and index are complemented: there the newest comes first.

Invariants: names are compared as bytes; a path is a prefix of the paths on its right, and only of these.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.coding cimport Buffer, Slice


cdef struct Segment:
    # One level of a path; offsets are in bytes from the start of the name.
    bint on_left
    uint64_t opened
    uint64_t origin
    uint64_t timestamp         # of the update that made the item
    uint64_t index
    size_t start               # of its side byte
    size_t item                # of `since`
    size_t end                 # behind `index`: the next segment's side byte, or the last byte


cdef struct Place:
    # Where new items go: the names of all of them begin with `prefix`.
    Slice path                 # borrowed from a neighbour's name
    uint8_t group[17]          # side, opened, origin; used when group_size is not 0
    size_t group_size
    bint on_left
    uint64_t since


cdef int segment_next(Slice name, size_t at, Segment* segment) noexcept nogil   # 1, 0 at the last byte, ERR_DECODE
cdef bint position_valid(Slice name) noexcept nogil
# Where items go that `origin` inserts at `timestamp` between two neighbours (size 0: the end of the list there).
# OK, or ERR_DECODE when a neighbour isn't a position.
cdef int place_between(Slice left, Slice right, uint64_t origin, uint64_t timestamp, Place* place) noexcept nogil
# The name of item `index` of `count` that go to the same place in one update, written over `into`.
cdef int place_name(const Place* place, uint64_t index, uint64_t count, Buffer* into) noexcept nogil
