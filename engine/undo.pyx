"""Notes of what memory table entries were; see undo.pxd."""

from libc.stdlib cimport free, realloc

from everwrite.coding cimport Slice, buffer_free, buffer_init, put_bytes, slice_of
from everwrite.status cimport Status

cdef enum:
    KEPT_NOTES = 4096
    KEPT_BYTES = 1 << 20


cdef void undo_init(Undo* undo) noexcept nogil:
    undo.notes = NULL
    undo.count = 0
    undo.capacity = 0
    buffer_init(&undo.bytes)


cdef void undo_free(Undo* undo) noexcept nogil:
    free(undo.notes)
    buffer_free(&undo.bytes)
    undo_init(undo)


cdef void undo_clear(Undo* undo) noexcept nogil:
    undo.count = 0
    undo.bytes.size = 0
    if undo.capacity > KEPT_NOTES or undo.bytes.capacity > KEPT_BYTES:
        undo_free(undo)


cdef int undo_reserve(Undo* undo) noexcept nogil:
    cdef size_t capacity
    cdef Note* grown
    if undo.count < undo.capacity:
        return Status.OK
    capacity = undo.capacity * 2 if undo.capacity else 64
    grown = <Note*>realloc(undo.notes, capacity * sizeof(Note))
    if grown == NULL:
        return Status.ERR_MEMORY
    undo.notes = grown
    undo.capacity = capacity
    return Status.OK


cdef void undo_missing(Undo* undo, void* entry) noexcept nogil:
    undo.notes[undo.count].entry = entry
    undo.notes[undo.count].before = Before.WAS_MISSING
    undo.count += 1


cdef int undo_present(Undo* undo, void* entry, bint removed, Slice value) noexcept nogil:
    cdef Note* note
    if undo_reserve(undo) < 0:
        return Status.ERR_MEMORY
    note = &undo.notes[undo.count]
    note.entry = entry
    note.before = Before.WAS_REMOVED if removed else Before.WAS_VALUE
    note.at = undo.bytes.size
    note.size = 0
    if not removed:
        note.size = value.size
        if put_bytes(&undo.bytes, value.data, value.size) != 0:
            return Status.ERR_MEMORY
    undo.count += 1
    return Status.OK


cdef Slice undo_value(const Undo* undo, const Note* note) noexcept nogil:
    return slice_of(undo.bytes.data + note.at, note.size)
