"""States of keys in parts; see parts.pyx for why a part isn't joined by itself.

Invariant: the bytes that wait are those received, never in proportion to a number that was only announced.
"""

from libc.stdint cimport uint8_t

from everwrite.coding cimport Slice


cdef class PartStore:
    cdef dict waiting                   # (scope, key, name, count) -> index -> bytes
    cdef list forgotten                 # scopes of states that were given up; the owner clears it
    cdef size_t bytes

    cdef object take(self, object scope, Slice body)
    cdef object forget(self, object named)
    cdef bint waits(self, object scope) except -1


cdef list part_slices(const uint8_t* data, size_t size, bint groups)
