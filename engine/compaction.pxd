"""Merging sorted sources into one table file."""

from libc.stdint cimport uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.clock cimport Vector
from everwrite.coding cimport Buffer, Slice
from everwrite.files cimport Files
from everwrite.merge_iterator cimport Merge
from everwrite.state cimport Head, Row


cdef enum Collected:
    KEPT = 0
    DROPPED = 1
    SLIMMED = 2


cdef class Collector:
    cdef Vector horizon
    cdef Merge elements
    cdef Head head
    cdef Buffer prefix
    cdef Buffer slimmed                 # the head that `looks` put in the place of another

    cdef int looks(self, Slice key, Slice value, BlockCache cache) noexcept nogil
    cdef bint _is_behind(self, const Row* row) noexcept nogil
    cdef int _slims(self) noexcept nogil
    cdef int _without_elements(self, Slice key, BlockCache cache) noexcept nogil


# Writes what `m` shows to the file `path`, synced, and returns its manifest.TableInfo; None, and
# no file, when nothing is left. Remove markers are left out when nothing older remains below. `flushes`: the
# numbers of the oldest and the newest flush whose entries these are. `collector`: of a merge of all tables.
cdef object merge_to_table(
    Files files, BlockCache cache, str path, uint64_t number, tuple flushes, Merge* m, bint drop_removed,
    Collector collector=*,
)
