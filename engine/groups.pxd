"""Many operations under one acquisition of the lock, with the memory of later ones fetched while earlier ones run.

Thread safety: as the store's. The lock is taken with the GIL held when it is free, and the GIL
kept for what memory can answer; for everything else it is let go. But for the calls of a batch,
nobody waits for the GIL while holding the lock: others would queue for both.
"""

from everwrite.coding cimport Slice
from everwrite.store cimport Store


cdef class GroupedStore(Store):
    cdef int run_batch(self, list keys, list values) except -1              # see write_batch.pxd

    cdef size_t run(
        self, const Slice* keys, const Slice* values, size_t start, size_t stop, bint waits, int* status, size_t* erased
    ) noexcept nogil
    cdef size_t run_group(self, list keys, list values, Py_ssize_t start, Py_ssize_t stop) except? 0
    cdef int lookup_group(self, list keys, Py_ssize_t start, Py_ssize_t stop, list into) except -1
    cdef int _lookup_late(self, list keys, list late, list into, Py_ssize_t offset) except -1
    cdef int run_operations(self, list keys, list values, bint outermost) except -1
    cdef int _run_held(self, const Slice* keys, const Slice* values, size_t start, size_t stop) except -1
