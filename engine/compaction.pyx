"""Merging sorted sources into one table file, and the choice of what to merge."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

import os

from everwrite.block_cache cimport BlockCache
from everwrite.clock cimport vector_covers, vector_free, vector_init, vector_load
from everwrite.coding cimport Slice, buffer_free, buffer_init, buffer_slice, slice_of
from everwrite.files cimport Files
from everwrite.merge_iterator cimport (
    merge_free,
    merge_key,
    merge_next,
    merge_removed,
    merge_seek,
    merge_value,
)
from everwrite.state cimport (
    KIND_NONE,
    SPACE_USER,
    element_key,
    head_deadline,
    head_decode,
    head_free,
    head_init,
    head_kind,
)
from everwrite.status cimport Status, check
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


cdef class Collector:
    """Which heads a merge leaves out: nothing is alive of their keys, and all that they tell lies behind the horizon.

    A head goes only when no element is left of its key, in a merge of all tables: `elements` is a second merge of
    the same. Heads with counters or their floors stay: an origin that was away goes on from its old total.
    """

    def __cinit__(self, horizon):
        vector_init(&self.horizon)
        buffer_init(&self.prefix)
        head_init(&self.head)
        vector_load(&self.horizon, horizon)

    def __dealloc__(self):
        merge_free(&self.elements)
        vector_free(&self.horizon)
        buffer_free(&self.prefix)
        head_free(&self.head)

    cdef int takes(self, Slice key, Slice value, BlockCache cache) noexcept nogil:
        """Whether this entry is such a head: 1, 0, or a negative error."""
        cdef size_t i
        if key.data[0] != SPACE_USER or head_decode(&self.head, value) < 0:
            return 0
        if head_kind(&self.head) != KIND_NONE or head_deadline(&self.head):
            return 0
        for i in range(self.head.size):
            if self.head.rows[i].counter or self.head.rows[i].floor:
                return 0
            if not vector_covers(&self.horizon, self.head.rows[i].origin, self.head.rows[i].context):
                return 0
        if self.head.collection_count == 0:
            return 1
        for i in range(<size_t>self.head.collection_count):
            if self.head.collections[i].levels:
                # Its index of ranks has entries.
                return 0
        return self._without_elements(slice_of(key.data + 1, key.size - 1), cache)

    cdef int _without_elements(self, Slice key, BlockCache cache) noexcept nogil:
        cdef Slice found
        cdef int status
        if element_key(&self.prefix, key, 0, slice_of(NULL, 0)) != 0:
            return Status.ERR_MEMORY
        # Of all kinds.
        self.prefix.size -= 1
        status = merge_seek(&self.elements, cache, buffer_slice(&self.prefix))
        while status == 1:
            found = merge_key(&self.elements)
            if found.size < self.prefix.size or memcmp(found.data, self.prefix.data, self.prefix.size) != 0:
                return 1
            if not merge_removed(&self.elements):
                return 0
            status = merge_next(&self.elements, cache)
        return status if status < 0 else 1


cdef int _copy(
    TableWriter writer, Merge* m, BlockCache cache, bint drop_removed, Collector collector, bint collects
) noexcept nogil:
    cdef uint8_t nothing = 0
    cdef int status = merge_seek(m, cache, slice_of(&nothing, 0))
    cdef bint removed
    cdef int written
    while status == 1:
        removed = merge_removed(m)
        if collects and not removed:
            written = collector.takes(merge_key(m), merge_value(m), cache)
            if written < 0:
                return written
            removed = written == 1
        if not (drop_removed and removed):
            written = writer.add(merge_key(m), merge_value(m), removed)
            if written < 0:
                return written
        status = merge_next(m, cache)
    if status == 0 and writer.entries > 0:
        status = writer.finish()
    return status


cdef object merge_to_table(
    Files files, BlockCache cache, str path, uint64_t number, tuple flushes, Merge* m, bint drop_removed,
    Collector collector=None,
):
    cdef TableWriter writer = TableWriter(files, os.fsencode(path), *flushes, index_entries=INDEX_ENTRIES)
    cdef bint collects = collector is not None
    cdef int status
    try:
        with nogil:
            status = _copy(writer, m, cache, drop_removed, collector, collects)
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
