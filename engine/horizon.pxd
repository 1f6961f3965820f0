"""What lies behind the horizon; see horizon.pyx.

Invariants: the horizon only grows; `applied` covers it; what a restart begins with is the horizon of the checkpoint,
and frames of the log raise it where they stand, so that every update is joined under the horizon it was joined under.
"""

from everwrite.aside cimport AsideKeyspace
from everwrite.clock cimport Vector
from everwrite.coding cimport Buffer, Slice
from everwrite.lsm cimport LsmIterator
from everwrite.state cimport Head


cdef class HorizonKeyspace(AsideKeyspace):
    # Raise `applied` or the horizon, and log that. Needs the lock.
    cdef int _log_vector(self, int kind, Vector* held, dict dots) except -1
    cdef int _write_durably(self) except? -1
    cdef int _settle_absent(self, dict horizon) except -1
    cdef int _settle_one(self, LsmIterator* it, Head* horizon, Slice empty, Buffer* state) noexcept nogil
    cdef int join_state(self, Slice body) noexcept nogil
