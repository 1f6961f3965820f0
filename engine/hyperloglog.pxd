"""HyperLogLog: how many different items were added, in a fixed space, to about 0.8 %.

2^14 registers of six bits in 256 elements of 64, so that an addition's delta carries one element.
A register only grows; an element's view is the maximum over its dots, register by register, and
a write's value includes what it observed. docs/formats/state.md has the bytes and the hash.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.coding cimport Slice
from everwrite.quick cimport QuickKeyspace
from everwrite.state cimport Element

cdef enum:
    SKETCH_BITS = 14
    SKETCH_REGISTERS = 1 << SKETCH_BITS
    SKETCH_GROUP = 64                                  # registers an element
    SKETCH_GROUPS = SKETCH_REGISTERS // SKETCH_GROUP
    SKETCH_RANK_MAX = 64 - SKETCH_BITS + 1


cdef void sketch_add(uint8_t* registers, Slice item) noexcept nogil
cdef int sketch_group_of(Slice item) noexcept nogil
cdef void sketch_pack(const uint8_t* group, uint8_t* packed) noexcept nogil        # 64 registers, 48 bytes
cdef void sketch_raise(uint8_t* group, const uint8_t* packed) noexcept nogil       # to what 48 bytes hold
cdef int64_t sketch_count(const uint8_t* registers) noexcept nogil                 # all of them


cdef class HyperLogLogKeyspace(QuickKeyspace):
    # Registers of the operation under way; all zero between operations.
    cdef uint8_t registers[16384]

    cdef int op_sketch_add(self, Slice key, const Slice* items, size_t count, bint* grew) noexcept nogil
    # Of all keys together.
    cdef int op_sketch_count(self, const Slice* keys, size_t count, int64_t* items) noexcept nogil
    cdef int op_sketch_merge(self, Slice key, const Slice* sources, size_t count, bint* grew) noexcept nogil
    cdef int _collect(self, Slice key) noexcept nogil
    cdef int _write_sketch(self, Slice key, bint* grew) noexcept nogil
    cdef bint _grows(self, int group) noexcept nogil
    cdef void _forget(self) noexcept nogil
