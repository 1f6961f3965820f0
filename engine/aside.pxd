"""What waits to be joined; see aside.pyx.

Invariant: nothing here is part of any key's state, of `applied` or of the log.
"""

from libc.stdint cimport int64_t, uint8_t

from everwrite.change cimport Change
from everwrite.durable cimport DurableKeyspace
from everwrite.parts cimport PartStore


cdef class AsideKeyspace(DurableKeyspace):
    cdef dict resync                    # states of a resync received so far: id -> indexes
    cdef dict kept                      # pulled states that their groups wait for: key -> (bytes, context)
    cdef size_t kept_bytes
    cdef PartStore parts                # of states that aren't whole yet
    cdef int64_t set_aside_ms           # when one of either came last
    cdef list _take_parts(self, object scope, const uint8_t* data, size_t size, bint groups)


# The causal context of a full state that is valid, as a dict of origin to timestamp.
cdef dict context_of(const Change* change)
