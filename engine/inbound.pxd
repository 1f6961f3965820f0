"""Batches in: what a store takes from others, in whatever order and however often it comes.

Invariants: nothing of a batch is merged before all of it is checked; a group is merged whole or not
at all; what was merged is in the log before anything that builds on it.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.horizon cimport HorizonKeyspace
from everwrite.change cimport Change
from everwrite.coding cimport Reader, Slice


cdef class InboundKeyspace(HorizonKeyspace):
    cdef uint64_t pulls
    cdef uint64_t resyncs

    cdef int _validate(
        self, int states, const uint8_t* data, size_t size, uint64_t count, uint64_t* newest
    ) noexcept nogil
    cdef bint _group_applied(self, Slice body) noexcept nogil
    cdef int _group_fits(self, Slice body) noexcept nogil
    cdef list _group_needs(self, Slice body, set passed, set used)
    cdef list _keys_of_group(self, Slice body)
    cdef bint _reaches(self, const Change* change, dict context) except -1
    cdef object _apply_groups(self, const uint8_t* data, size_t size)
    cdef int _apply_fitting(self, Reader* r, Slice* body) noexcept nogil
    cdef int _apply_with_states(self, Slice body, list states, bint in_pieces) except? -1
    cdef int _apply_group(self, Slice body, bint unchecked) noexcept nogil
    cdef int _join_states(self, const uint8_t* data, size_t size, list whole) except -1
    cdef int _apply_states(self, const uint8_t* data, size_t size) noexcept nogil
