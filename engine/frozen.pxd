"""A frozen moment of a store: what its operations read while the store goes on.

Thread safety: that of `Store`. Reading takes the store's lock, since both share its block cache.
Invariants: the memory tables and files of the held version never change and outlive the
snapshot; nothing is written through it; after `let_go`, or after the store was closed, every
operation answers ERR_CLOSED.
"""

from libc.stdint cimport uint64_t

from everwrite.mapping cimport StoreMapping
from everwrite.store cimport Store
from everwrite.versions cimport PinnedVersions


cdef class FrozenStore(StoreMapping):
    cdef Store parent
    cdef PinnedVersions pinned
    cdef readonly object manifest       # of a backup: the tables of the version
    cdef readonly object checkpoint
    cdef readonly uint64_t log_end      # what it shows is in the log up to here
    cdef readonly object digest_at_start
