"""The set of frozen memory tables and table files that make up an Lsm, replaced as a whole.

Thread safety: every method may be called from any thread. The mutex is held for a few
instructions, never while waiting for anything.
Invariants: a version is an immutable list, newest first, all tables older than all frozen
ones; whoever holds a reference to it may read all that it lists.
"""

from everwrite.files cimport Files
from everwrite.memtable cimport Memtable
from everwrite.table_format cimport Table
from everwrite.threads cimport pthread_mutex_t


cdef struct Version:
    int refs                           # under the mutex
    Memtable** frozen                  # newest first, a reference each
    size_t frozen_count
    Table** tables                     # newest first, a reference each
    size_t table_count


cdef struct Exchange:
    # How a version differs from the one before it.
    Memtable* frozen                   # NULL, or the new newest frozen table
    size_t flushed                     # so many of the oldest frozen tables go
    size_t first                       # tables[first .. first + merged) go, and their files with them
    size_t merged
    Table* table                       # NULL, or what takes their place


cdef class Versions:
    cdef Files files
    cdef pthread_mutex_t mutex
    cdef Version* current
    cdef Table* graveyard              # tables that no version lists any more
    cdef unsigned long long epoch      # changes with `current`; read it with ew_load

    cdef Version* hold(self) noexcept nogil
    cdef void release(self, Version* version) noexcept nogil
    # Takes over one reference to `frozen` and one to `table`. ERR_MEMORY: nothing has changed.
    cdef int exchange(self, const Exchange* change) noexcept nogil
    # List nothing from here on. ERR_MEMORY: nothing has changed.
    cdef int clear(self) noexcept nogil
    cdef int _replace(self, Version* version) noexcept nogil
    # Close, and remove where they were merged, the tables that nobody reads any more. Whoever
    # read last doesn't do it: removing a large file takes time.
    cdef void bury(self) noexcept nogil


cdef class PinnedVersions(Versions):
    # Shows one version of another `Versions`, until it is unpinned.
    cdef Versions parent
    cdef Version* nothing              # what it shows from then on

    cdef void unpin(self) noexcept nogil


cdef PinnedVersions pin_current(Versions parent)
