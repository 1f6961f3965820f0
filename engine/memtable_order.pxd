"""The order of a memory table: a B+ tree over its entries, brought up to date when it is asked for."""

from everwrite.coding cimport Slice
from everwrite.memtable cimport Memtable, MemtableCursor


# Merge the pending keys into the tree. Safe on a table without writers from several threads.
cdef int order_update(Memtable* t) noexcept nogil                               # OK or ERR_MEMORY
cdef void order_free(Memtable* t) noexcept nogil

# All of them: OK or ERR_MEMORY; `entry` is where the cursor then stands, NULL when there is no such entry.
# The seeks: the first entry whose key is >= `key`; the last whose key is < `key` (or <=); the last of all.
cdef int cursor_seek(MemtableCursor* c, Memtable* t, Slice key) noexcept nogil
cdef int cursor_seek_back(MemtableCursor* c, Memtable* t, Slice key, bint or_equal) noexcept nogil
cdef int cursor_seek_last(MemtableCursor* c, Memtable* t) noexcept nogil
# Entries inserted since, ahead of the cursor, are met. Must stand on an entry.
cdef int cursor_next(MemtableCursor* c) noexcept nogil
cdef int cursor_previous(MemtableCursor* c) noexcept nogil
