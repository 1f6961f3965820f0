"""Groups of updates that are made whole or not at all.

Between `atomic_begin` and its end, under one acquisition of the lock, updates are merged as
they come, but logged as one frame at the end; until then all of it can be taken back.
Thread safety: needs the lock, from the beginning to the end.
What is kept beside the entries goes back in `atomic_rollback`: the counts, the applied vector and the digest's leaves.
Invariants: nothing of the group is in the log before `atomic_end`; after a rollback memory
holds what it held at the beginning, but for the clock, which never goes back.
"""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Slice
from everwrite.digest cimport DigestKey
from everwrite.keyspace cimport Keyspace
from everwrite.memtable cimport Entry
from everwrite.state cimport Sum
from everwrite.undo cimport Undo


cdef struct Counts:
    # What a keyspace counts beside its entries.
    uint64_t live_keys
    uint64_t local_changes
    uint64_t applied_changes
    uint64_t user_change_count
    uint64_t conflicts_lww
    uint64_t conflicts_type
    uint64_t conflicts_add_remove
    uint64_t timestamp                 # the newest of this store's own updates


cdef class AtomicKeyspace(Keyspace):
    cdef Undo undo
    cdef Counts counts
    cdef bint atomic                   # a group is open

    cdef int atomic_begin(self) noexcept nogil         # OK, or why nothing can be written
    cdef int atomic_end(self) noexcept nogil           # logs the group; an error: all of it was taken back
    cdef int atomic_rollback(self) noexcept nogil      # an error leaves the store failed
    cdef int _restore(self) noexcept nogil
    cdef int _restore_entry(self, Entry* e, bint removed, Slice old) noexcept nogil
    cdef int _item(self, bint removed, Slice stored, DigestKey place, Sum* item) noexcept nogil
