"""Merging sorted sources into one table file."""

from libc.stdint cimport uint64_t

from everwrite.block_cache cimport BlockCache
from everwrite.files cimport Files
from everwrite.merge_iterator cimport Merge


# Writes what `m` shows to the file `path`, synced, and returns its manifest.TableInfo; None, and
# no file, when nothing is left. Remove markers are left out when nothing older remains below.
cdef object merge_to_table(
    Files files, BlockCache cache, str path, uint64_t number, Merge* m, bint drop_removed
)
