"""What a memory table's entries were before a group of changes, so that the whole group can be taken back.

Thread safety: none of its own; it belongs to whoever writes the memory table.
Invariant: notes stand in the order of the changes; taken back in reverse, they end where the group began.
"""

from everwrite.coding cimport Buffer, Slice


cdef enum Before:
    WAS_MISSING = 0                    # the table had no entry: older tables told the value
    WAS_REMOVED = 1
    WAS_VALUE = 2


cdef struct Note:
    void* entry                        # a memtable.Entry: it stays where it is
    Before before
    size_t at                          # of the old value in `bytes`
    size_t size


cdef struct Undo:
    Note* notes
    size_t count
    size_t capacity
    Buffer bytes


cdef void undo_init(Undo* undo) noexcept nogil
cdef void undo_free(Undo* undo) noexcept nogil
# Forget all notes; memory that one large group took is given back.
cdef void undo_clear(Undo* undo) noexcept nogil
# Room for one more note, so that `undo_missing` can't fail after the change.
cdef int undo_reserve(Undo* undo) noexcept nogil                                          # OK or ERR_MEMORY
cdef void undo_missing(Undo* undo, void* entry) noexcept nogil
cdef int undo_present(Undo* undo, void* entry, bint removed, Slice value) noexcept nogil  # OK or ERR_MEMORY
cdef Slice undo_value(const Undo* undo, const Note* note) noexcept nogil
