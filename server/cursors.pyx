"""SCAN's cursors. The declarations say what holds."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from everwrite.coding cimport Slice, slice_of


cdef int cursors_init(Cursors* table, uint64_t generation) noexcept nogil:
    table.entries = <Cursor*>calloc(CURSORS_MAX, sizeof(Cursor))
    table.generation = generation & (((<uint64_t>1) << CURSOR_GENERATION_BITS) - 1)
    table.used = 0
    table.key_bytes = 0
    return 0 if table.entries != NULL else -1


cdef void _drop(Cursors* table, Cursor* entry) noexcept nogil:
    if entry.number:
        table.used -= 1
        table.key_bytes -= entry.size
        free(entry.key)
        entry.key = NULL
        entry.size = 0
        entry.number = 0
        entry.previous = 0


cdef void cursors_free(Cursors* table) noexcept nogil:
    cdef size_t i
    if table.entries != NULL:
        for i in range(CURSORS_MAX):
            _drop(table, &table.entries[i])
        free(table.entries)
        table.entries = NULL


cdef Cursor* _entry(Cursors* table, uint64_t number) noexcept nogil:
    cdef Cursor* entry = &table.entries[number & (CURSORS_MAX - 1)]
    return entry if number and entry.number == number else NULL


cdef bint cursors_find(Cursors* table, uint64_t number, Slice* key) noexcept nogil:
    cdef Cursor* entry = _entry(table, number)
    if entry == NULL:
        return False
    key[0] = slice_of(entry.key, entry.size)
    return True


cdef Cursor* _oldest(Cursors* table) noexcept nogil:
    cdef Cursor* oldest = NULL
    cdef size_t i
    for i in range(CURSORS_MAX):
        if table.entries[i].number and (oldest == NULL or table.entries[i].number < oldest.number):
            oldest = &table.entries[i]
    return oldest


cdef uint64_t cursors_add(Cursors* table, Slice key, uint64_t previous) noexcept nogil:
    cdef unsigned char* copy = <unsigned char*>malloc(key.size if key.size else 1)
    cdef Cursor* before = _entry(table, previous)
    cdef size_t slot
    if copy == NULL:
        return 0
    if key.size:
        memcpy(copy, key.data, key.size)
    if before != NULL and before.previous:
        before = _entry(table, before.previous)
        if before != NULL:
            _drop(table, before)
    while table.used == CURSORS_MAX or (table.used and table.key_bytes + key.size > CURSOR_BYTES_MAX):
        _drop(table, _oldest(table))
    table.generation = (table.generation + 1) & (((<uint64_t>1) << CURSOR_GENERATION_BITS) - 1)
    if table.generation == 0:
        table.generation = 1
    # The slots fill in turn; where scans have freed some, look on from there.
    slot = table.generation & (CURSORS_MAX - 1)
    while table.entries[slot].number:
        slot = (slot + 1) & (CURSORS_MAX - 1)
    table.entries[slot].number = table.generation << CURSOR_SLOT_BITS | slot
    table.entries[slot].previous = previous
    table.entries[slot].key = copy
    table.entries[slot].size = key.size
    table.used += 1
    table.key_bytes += key.size
    return table.entries[slot].number
