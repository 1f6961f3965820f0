"""Types of one element with an empty name: multi-value register, flag, max register, min register.

Their dots are the writes that nothing has removed. A multi-value register shows the values of all of
them, a flag that there is one, a max or min register the largest or smallest of them.
"""

from libc.stdint cimport int64_t, uint8_t

from everwrite.coding cimport Slice
from everwrite.hyperloglog cimport HyperLogLogKeyspace
from everwrite.state cimport Element


cdef class RegisterKeyspace(HyperLogLogKeyspace):
    # 1 and the writes in `element`, 0 when the key doesn't exist.
    cdef int op_register_load(self, Slice key, int kind) noexcept nogil
    cdef int op_register_write(self, Slice key, int kind, Slice value) noexcept nogil      # replaces what is observed
    cdef int op_flag_disable(self, Slice key) noexcept nogil                               # 1 it was enabled, 0 not
    # Writes `value` only when it beats what shows; *shown is what shows then. 1 it was written, 0 not.
    cdef int op_extreme_update(self, Slice key, int kind, int64_t value, int64_t* shown) noexcept nogil


# What a max register's (KIND_MAX) or min register's element with at least one dot shows.
cdef int64_t extreme_shown(const Element* element, int kind) noexcept nogil
