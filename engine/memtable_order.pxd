"""The order of a memory table: a B+ tree over its entries, brought up to date when it is asked for."""

from everwrite.coding cimport Slice
from everwrite.memtable cimport Memtable, MemtableCursor


# Merge the pending keys into the tree. Safe on a table without writers from several threads.
cdef int order_update(Memtable* t) noexcept nogil                               # OK or ERR_MEMORY
cdef void order_free(Memtable* t) noexcept nogil

# The cursor then stands on the first entry whose key is >= `key`, or at the end (entry NULL).
cdef int cursor_seek(MemtableCursor* c, Memtable* t, Slice key) noexcept nogil   # OK or ERR_MEMORY
# Entries inserted since, ahead of the cursor, are met. Must not stand at the end.
cdef int cursor_next(MemtableCursor* c) noexcept nogil                          # OK or ERR_MEMORY
