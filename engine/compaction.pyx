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
    Row,
    element_key,
    head_deadline,
    head_decode,
    head_encode,
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
    """What a merge leaves out because it lies behind the horizon: heads of dead keys, and rows of others.

    A head goes when nothing is alive of its key, all that it tells lies behind the horizon, and no element is left of
    its key, in a merge of all tables: `elements` is a second merge of the same. Heads with counters or their
    floors stay: an origin that was away goes on from its old total.

    A row goes when the horizon covers its context and it has nothing else. Not from a key that has held elements: where
    a store is salvaged without its horizon, their dots must lie inside the context.
    """

    def __cinit__(self, horizon):
        vector_init(&self.horizon)
        buffer_init(&self.prefix)
        buffer_init(&self.slimmed)
        head_init(&self.head)
        vector_load(&self.horizon, horizon)

    def __dealloc__(self):
        merge_free(&self.elements)
        vector_free(&self.horizon)
        buffer_free(&self.prefix)
        buffer_free(&self.slimmed)
        head_free(&self.head)

    cdef int looks(self, Slice key, Slice value, BlockCache cache) noexcept nogil:
        """What becomes of this entry: a `Collected`, or a negative error."""
        cdef size_t i
        if key.data[0] != SPACE_USER or head_decode(&self.head, value) < 0:
            return Collected.KEPT
        if head_kind(&self.head) != KIND_NONE or head_deadline(&self.head):
            return self._slims()
        for i in range(self.head.size):
            if not self._is_behind(&self.head.rows[i]):
                return self._slims()
        if self.head.collection_count == 0:
            return Collected.DROPPED
        for i in range(<size_t>self.head.collection_count):
            if self.head.collections[i].levels:
                # Its index of ranks has entries.
                return Collected.KEPT
        return self._without_elements(slice_of(key.data + 1, key.size - 1), cache)

    cdef bint _is_behind(self, const Row* row) noexcept nogil:
        return not row.counter and not row.floor and vector_covers(&self.horizon, row.origin, row.context)

    cdef int _slims(self) noexcept nogil:
        """The decoded head without the rows that the horizon speaks for."""
        cdef const Row* row
        cdef size_t kept = 0
        cdef size_t i
        if not self.head.has_register or self.head.collection_count:
            return Collected.KEPT
        for i in range(self.head.size):
            row = &self.head.rows[i]
            # The dots of what the head holds lie inside its own context.
            if (
                not self._is_behind(row)
                or row.origin == self.head.dot.origin
                or (self.head.has_expiry and row.origin == self.head.expiry_dot.origin)
            ):
                self.head.rows[kept] = row[0]
                kept += 1
        if kept == self.head.size:
            return Collected.KEPT
        self.head.size = kept
        self.slimmed.size = 0
        if head_encode(&self.head, &self.slimmed) < 0:
            return Status.ERR_MEMORY
        return Collected.SLIMMED

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
                return Collected.DROPPED
            if not merge_removed(&self.elements):
                return Collected.KEPT
            status = merge_next(&self.elements, cache)
        return status if status < 0 else Collected.DROPPED


cdef int _copy(
    TableWriter writer, Merge* m, BlockCache cache, bint drop_removed, Collector collector, bint collects
) noexcept nogil:
    cdef uint8_t nothing = 0
    cdef int status = merge_seek(m, cache, slice_of(&nothing, 0))
    cdef bint removed
    cdef int looked = Collected.KEPT
    cdef int written
    cdef Slice value
    while status == 1:
        removed = merge_removed(m)
        if collects:
            looked = Collected.KEPT if removed else collector.looks(merge_key(m), merge_value(m), cache)
            if looked < 0:
                return looked
            removed = removed or looked == Collected.DROPPED
        if not (drop_removed and removed):
            value = buffer_slice(&collector.slimmed) if looked == Collected.SLIMMED else merge_value(m)
            written = writer.add(merge_key(m), value, removed)
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
