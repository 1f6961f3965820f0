"""Merging sorted sources into one table file, and the choice of what to merge."""

from libc.stdint cimport uint8_t, uint64_t

import os

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport slice_of
from everwrite.files cimport Files
from everwrite.merge_iterator cimport (
    Merge,
    merge_key,
    merge_next,
    merge_removed,
    merge_seek,
    merge_value,
)
from everwrite.status cimport check
from everwrite.table_writer cimport TableWriter

from everwrite.errors import StorageError
from everwrite.manifest import TableInfo

TABLES_MAX = 8
# Merged at once when there are more: wide enough that an entry isn't rewritten at every flush.
WINDOW = 4
# What is kept in memory of the entries of a table that is being written; 16 bytes each, twice.
INDEX_ENTRIES = 1 << 20


def pick_run(tables):
    """Which adjacent tables to merge: (start, stop) in `tables` (of TableInfo, newest first), or None.

    Size-tiered: when all newer tables together reach the size of the oldest, or their remove
    markers may hide half of its entries, everything is merged, so that at most about half of
    the disk space in use is garbage. Else, when there are more than TABLES_MAX, the smallest
    adjacent ones.
    """
    if len(tables) < 2:
        return None
    *newer, oldest = tables
    if sum(table.size for table in newer) >= oldest.size:
        return 0, len(tables)
    if 2 * sum(table.removed for table in newer) >= oldest.entries:
        return 0, len(tables)
    if len(tables) <= TABLES_MAX:
        return None
    start = min(range(len(tables) - WINDOW + 1), key=lambda i: sum(table.size for table in tables[i:i + WINDOW]))
    return start, start + WINDOW


def pick_all(tables):
    """All tables, as `pick_run` would name them; None when that would change nothing."""
    if not tables or (len(tables) == 1 and tables[0].removed == 0):
        return None
    return 0, len(tables)


cdef int _copy(TableWriter writer, Merge* m, BlockCache cache, bint drop_removed) noexcept nogil:
    cdef uint8_t nothing = 0
    cdef int status = merge_seek(m, cache, slice_of(&nothing, 0))
    cdef int written
    while status == 1:
        if not (drop_removed and merge_removed(m)):
            written = writer.add(merge_key(m), merge_value(m), merge_removed(m))
            if written < 0:
                return written
        status = merge_next(m, cache)
    if status == 0 and writer.entries > 0:
        status = writer.finish()
    return status


cdef object merge_to_table(
    Files files, BlockCache cache, str path, uint64_t number, tuple flushes, Merge* m, bint drop_removed
):
    cdef TableWriter writer = TableWriter(files, os.fsencode(path), *flushes, index_entries=INDEX_ENTRIES)
    cdef int status
    try:
        with nogil:
            status = _copy(writer, m, cache, drop_removed)
        check(status)
    except BaseException:
        try:
            files.remove(path)
        except StorageError:
            pass  # the first failure is the one to report; the next opening removes the file
        raise
    if writer.entries == 0:
        files.remove(path)
        return None
    return TableInfo(
        number, writer.size, writer.entries, writer.removed, writer.smallest_key(), writer.largest_key()
    )
