"""Sequences: lists whose items keep their places, whoever inserts where.

An element is an item, named by its position (see positions.pxd); of several values that were written to
one position at once the newest shows. A removed item leaves nothing behind. Items have no counter rows.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.bounded_counters cimport BoundedKeyspace
from everwrite.coding cimport Buffer, Slice
from everwrite.positions cimport Place
from everwrite.state cimport Element
from everwrite.walk cimport Walk


cdef enum Where:
    # Where items are inserted.
    AT_INDEX = 0
    BEFORE_POSITION = 1
    AFTER_POSITION = 2


cdef struct Items:
    # An open walk along a sequence: see items_open.
    Walk walk
    Element element


cdef class SequencedKeyspace(BoundedKeyspace):
    cdef Buffer left_name
    cdef Buffer right_name
    cdef Buffer item_name
    cdef Buffer popped
    cdef Place place                # where the last insert put its items; place_name tells their names

    # Items from one end, or, with `edge`, from the position on (`beyond`: from the next one on).
    # Returns 1 (*it is open), 0 (no such key, *it is NULL), or an error.
    cdef int items_open(self, Slice key, bint reverse, const Slice* edge, bint beyond, Items** it) noexcept nogil
    cdef int items_next(self, Items* it, Slice* position, Slice* value) noexcept nogil         # 1, 0 at the end
    cdef void items_close(self, Items* it) noexcept nogil
    # A walk that stands on the item with this index: 1, or 0 when there is none.
    cdef int items_open_at(
        self, Slice key, uint64_t index, bint from_end, Items** it, Slice* position, Slice* value
    ) noexcept nogil

    # Insert values, in this order, together; an index beyond the end is the end.
    # ERR_NOT_A_POSITION when a position is none.
    cdef int op_sequence_insert(
        self, Slice key, int where, Slice position, uint64_t index, const Slice* values, size_t count
    ) noexcept nogil
    # The value of an item that is there: 1, or 0 when it isn't.
    cdef int op_sequence_set(self, Slice key, Slice position, Slice value) noexcept nogil
    cdef int op_sequence_set_at(self, Slice key, uint64_t index, bint from_end, Slice value) noexcept nogil
    # Take out an item: 1, its position in item_name and its value, or 0 when there is none.
    cdef int op_sequence_pop(self, Slice key, uint64_t index, bint from_end, Slice* value) noexcept nogil
    cdef int op_sequence_get(self, Slice key, Slice position, Slice* value) noexcept nogil
    # How many items lie before a position, be it taken or not.
    cdef int op_sequence_index(self, Slice key, Slice position, uint64_t* index) noexcept nogil

    cdef int _items_start(self, bint reverse, const Slice* edge, bint beyond, Items** it) noexcept nogil
    cdef int _open_at(
        self, uint64_t index, bint from_end, Items** it, Slice* position, Slice* value
    ) noexcept nogil
    cdef int _write_item(self, Slice position, Slice value) noexcept nogil
    cdef int _name_at(self, Slice key, uint64_t index, bint from_end, Buffer* text) noexcept nogil
    cdef int _nearest(self, bint reverse, const Slice* edge, bint beyond, Buffer* into) noexcept nogil
    cdef int _find_gap(self, int where, Slice position, uint64_t index) noexcept nogil
    cdef int _load_item(self, Slice key, Slice position) noexcept nogil
