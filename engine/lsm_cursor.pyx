"""A place in an Lsm's map that can be moved both ways: for tools and tests. Native callers use Lsm's own iterators."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from everwrite.coding cimport Slice, slice_of
from everwrite.lsm cimport Lsm, LsmIterator
from everwrite.status cimport check
from everwrite.table_reader cimport HashCursor, hash_cursor_free, hash_cursor_init, hash_cursor_next
from everwrite.versions cimport Version

from everwrite.errors import ClosedError


cdef inline bytes _bytes(Slice s):
    return (<const char*>s.data)[:s.size] if s.size else b""


cdef class LsmCursor:
    """Stands on an entry of `lsm`, or nowhere. Every move returns the (key, value) it leads to, or None.

    Sees writes made meanwhile. Like the map's own methods, these must be serialised by the caller.
    """

    cdef Lsm lsm
    cdef LsmIterator* it

    def __init__(self, Lsm lsm not None):
        if lsm.closed:
            raise ClosedError("the map is closed")
        self.lsm = lsm
        self.it = lsm.iterator()
        if self.it == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.it != NULL:
            self.lsm.iterator_free(self.it)

    cdef object _arrived(self, int status):
        if check(status) == 0:
            return None
        return _bytes(self.lsm.key(self.it)), _bytes(self.lsm.value(self.it))

    def seek(self, bytes key not None):
        """Go to the first entry whose key is >= `key`."""
        return self._arrived(self.lsm.seek(self.it, slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))))

    def seek_for_prev(self, bytes key not None):
        """Go to the last entry whose key is <= `key`."""
        return self._arrived(self.lsm.seek_for_prev(self.it, slice_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))))

    def last(self):
        """Go to the last entry."""
        return self._arrived(self.lsm.seek_last(self.it))

    def next(self):
        """Go to the next entry in key order."""
        return self._arrived(self.lsm.next(self.it))

    def prev(self):
        """Go to the entry before."""
        return self._arrived(self.lsm.prev(self.it))


def table_items_by_hash(Lsm lsm not None, uint64_t first, uint64_t last):
    """For each table file, newest first: its (hash, key, value) whose hash lies in [first, last], by hash.

    The value of a remove marker is None. The hash is the fixed one of table files, see docs/formats/table.md.
    """
    cdef Version* version = lsm.versions.hold()
    cdef HashCursor c
    cdef size_t i
    tables = []
    try:
        for i in range(version.table_count):
            found = []
            hash_cursor_init(&c, version.tables[i], first, last)
            try:
                while check(hash_cursor_next(&c, lsm.cache)) == 1:
                    found.append((c.key_hash, _bytes(c.key), None if c.removed else _bytes(c.value)))
            finally:
                hash_cursor_free(&c)
            tables.append(found)
    finally:
        lsm.versions.release(version)
    return tables
