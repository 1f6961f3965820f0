"""Sorted sets: members with scores, in the order of the scores.

An element is a member; its dots carry scores that were set (little-endian float64), its rows
increments, as running totals of float64 in the 8 bytes of a total. What is shown is in `scores.pxd`.
The order is an index of its own: for each live member an empty entry under space byte, length
of the key (4 bytes, big-endian), key, score as 8 bytes that sort, member. It is derived, local, and changes with the
element in the same step.
Invariant: a member has exactly one entry in the index, under the score that it shows, while it is alive, and none else.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.ranks cimport RankedKeyspace
from everwrite.walk cimport Walk


cdef enum SortedSetFlag:
    # When a score is written; else always.
    SCORE_NEW = 1          # only to members that aren't there
    SCORE_OLD = 2          # only to members that are there
    SCORE_GREATER = 4      # to a member that is there, only a greater one
    SCORE_LESS = 8         # ... only a smaller one


cdef struct Members:
    # An open walk along the order: see members_open.
    Walk walk
    uint64_t last          # the farthest score of interest, sortable


cdef class SortedKeyspace(RankedKeyspace):
    cdef Buffer order_key
    cdef double score_before        # of the element that is being joined

    # *added counts new members, *changed also those whose score became another. One change; none when
    # nothing is written.
    cdef int op_sorted_set_add(
        self, Slice key, const Slice* members, const double* scores, size_t count, int flags,
        int64_t* added, int64_t* changed
    ) noexcept nogil
    # *score: in, the amount (finite); out, the new score. ERR_OVERFLOW when a sum isn't finite any more.
    cdef int op_sorted_set_increment(self, Slice key, Slice member, double* score) noexcept nogil
    cdef int op_sorted_set_score(self, Slice key, Slice member, double* score) noexcept nogil      # 1, 0

    # How many members come before one that is there: 1, or 0 when it isn't.
    cdef int op_sorted_set_rank(self, Slice key, Slice member, uint64_t* rank) noexcept nogil
    # How many scores lie between two, both included (no NaN).
    cdef int op_sorted_set_count(self, Slice key, double first, double last, uint64_t* count) noexcept nogil
    # The member with so many before it, or, from the end, behind it: 1, or 0 when there is none.
    cdef int op_sorted_set_at(
        self, Slice key, uint64_t rank, bint from_end, Slice* member, double* score
    ) noexcept nogil

    # Members with scores from `first` to `last`, both included; in reverse, `first` is the greater.
    # With `after`, the walk goes on behind the member `after` at score `first`, or, if `included`, at it.
    # Returns 1 (*it is open), 0 (no such key, *it is NULL), or an error.
    cdef int members_open(
        self, Slice key, double first, double last, bint reverse, const Slice* after, bint included, Members** it
    ) noexcept nogil
    cdef int members_next(self, Members* it, Slice* member, double* score) noexcept nogil      # 1, 0 at the end
    cdef void members_close(self, Members* it) noexcept nogil

    cdef int _order_key(self, double score, Slice member) noexcept nogil
    cdef int _put_score(self, Slice member, double score) noexcept nogil
    cdef Slice _place(self) noexcept nogil
