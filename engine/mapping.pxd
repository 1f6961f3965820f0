"""The store as a mapping of bytes, natively: what `database.Database` is made of.

Thread safety: as the store's. How methods deal with the lock and the GIL is told in groups.pxd.
"""

from libc.stdint cimport int64_t

from everwrite.coding cimport Slice
from everwrite.groups cimport GroupedStore


cdef class StoreMapping(GroupedStore):
    cdef object lookup(self, object key)                                     # the value, or None
    cdef int write(self, Slice key, Slice value, int64_t deadline_ms) except -1
    cdef bint erase(self, Slice key) except -1                               # whether it existed
    cdef bint _change_deadline(self, object key, int64_t deadline_ms) except -1
    cdef int64_t deadline_after(self, object ttl) except -1

    cdef object _wait_for(self, Slice name, bint erase)
