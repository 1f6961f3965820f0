"""The merge of ordered sources."""

from libc.stdlib cimport calloc, free
from libc.string cimport memmove

from everwrite.coding cimport Slice, slice_compare, slice_equal
from everwrite.memtable cimport Memtable, MemtableCursor, entry_key, entry_removed, entry_value
from everwrite.memtable_order cimport cursor_next, cursor_seek
from everwrite.status cimport Status


cdef int merge_init(Merge* m, size_t capacity) noexcept nogil:
    m.count = 0
    m.live = 0
    m.sources = <Source*>calloc(capacity + 1, sizeof(Source))
    m.order = <Source**>calloc(capacity + 1, sizeof(void*))
    if m.sources == NULL or m.order == NULL:
        merge_free(m)
        return Status.ERR_MEMORY
    return Status.OK


cdef void merge_free(Merge* m) noexcept nogil:
    free(m.sources)
    free(m.order)
    m.sources = NULL
    m.order = NULL
    m.count = 0
    m.live = 0


cdef void merge_add_memtable(Merge* m, Memtable* t) noexcept nogil:
    cdef Source* source = &m.sources[m.count]
    source.age = m.count
    source.memory.table = t
    m.count += 1


cdef int _source_seek(Source* source, Slice key) noexcept nogil:
    cdef int status = cursor_seek(&source.memory, source.memory.table, key)
    if status < 0:
        return status
    if source.memory.entry == NULL:
        return 0
    source.key = entry_key(source.memory.entry)
    return 1


cdef int _source_next(Source* source) noexcept nogil:
    cdef int status = cursor_next(&source.memory)
    if status < 0:
        return status
    if source.memory.entry == NULL:
        return 0
    source.key = entry_key(source.memory.entry)
    return 1


cdef inline bint _goes_before(const Source* a, const Source* b) noexcept nogil:
    cdef int c = slice_compare(a.key, b.key)
    return c < 0 or (c == 0 and a.age < b.age)


cdef void _enter(Merge* m, Source* source) noexcept nogil:
    """Put a source in its place among the live ones."""
    cdef size_t i = m.live
    while i > 0 and _goes_before(source, m.order[i - 1]):
        m.order[i] = m.order[i - 1]
        i -= 1
    m.order[i] = source
    m.live += 1


cdef void _leave(Merge* m, size_t position) noexcept nogil:
    memmove(&m.order[position], &m.order[position + 1], (m.live - position - 1) * sizeof(void*))
    m.live -= 1


cdef void _sink(Merge* m, size_t position) noexcept nogil:
    """The source at `position` has moved forward: one comparison suffices while it stays ahead of the others."""
    cdef Source* source = m.order[position]
    while position + 1 < m.live and _goes_before(m.order[position + 1], source):
        m.order[position] = m.order[position + 1]
        position += 1
    m.order[position] = source


cdef int merge_seek(Merge* m, Slice key) noexcept nogil:
    cdef size_t i
    cdef int status
    m.live = 0
    for i in range(m.count):
        status = _source_seek(&m.sources[i], key)
        if status < 0:
            m.live = 0
            return status
        if status == 1:
            _enter(m, &m.sources[i])
    return 1 if m.live > 0 else 0


cdef int merge_next(Merge* m) noexcept nogil:
    cdef size_t same = 1
    cdef int status
    if m.live == 0:
        return 0
    while same < m.live and slice_equal(m.order[same].key, m.order[0].key):
        same += 1
    # The first one goes last: the others are compared with the key that lies in its memory.
    while same > 0:
        same -= 1
        status = _source_next(m.order[same])
        if status < 0:
            m.live = 0
            return status
        if status == 0:
            _leave(m, same)
        else:
            _sink(m, same)
    return 1 if m.live > 0 else 0


cdef int merge_refresh_newest(Merge* m) noexcept nogil:
    cdef Source* newest = &m.sources[0]
    cdef size_t i
    cdef int status
    cdef MemtableCursor before = newest.memory
    status = _source_seek(newest, m.order[0].key)
    if status < 0:
        newest.memory = before
        return status
    for i in range(m.live):
        if m.order[i] == newest:
            _leave(m, i)
            break
    if status == 1:
        _enter(m, newest)
    return Status.OK


cdef Slice merge_key(const Merge* m) noexcept nogil:
    return m.order[0].key


cdef Slice merge_value(const Merge* m) noexcept nogil:
    return entry_value(m.order[0].memory.entry)


cdef bint merge_removed(const Merge* m) noexcept nogil:
    return entry_removed(m.order[0].memory.entry)
