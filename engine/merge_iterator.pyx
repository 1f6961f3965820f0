"""The merge of ordered sources."""

from libc.stdlib cimport calloc, free
from libc.string cimport memmove

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Slice, buffer_slice, slice_compare, slice_equal
from everwrite.memtable cimport Memtable, MemtableCursor, entry_key, entry_removed, entry_value
from everwrite.memtable_order cimport cursor_next, cursor_seek
from everwrite.status cimport Status
from everwrite.table_reader cimport (
    Table,
    table_cursor_free,
    table_cursor_init,
    table_cursor_next,
    table_cursor_seek,
)


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
    cdef size_t i
    for i in range(m.count):
        if m.sources[i].file.table != NULL:
            table_cursor_free(&m.sources[i].file)
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


cdef void merge_add_table(Merge* m, Table* t) noexcept nogil:
    cdef Source* source = &m.sources[m.count]
    source.age = m.count
    table_cursor_init(&source.file, t)
    m.count += 1


cdef inline int _arrived(Source* source, int status) noexcept nogil:
    """Both kinds of cursor as one: 1 and the key, 0 at the end, negative error."""
    if source.file.table != NULL:
        source.key = buffer_slice(&source.file.key)
        return status
    if status < 0 or source.memory.entry == NULL:
        return status
    source.key = entry_key(source.memory.entry)
    return 1


cdef int _source_seek(Source* source, BlockCache cache, Slice key) noexcept nogil:
    if source.file.table != NULL:
        return _arrived(source, table_cursor_seek(&source.file, cache, key))
    return _arrived(source, cursor_seek(&source.memory, source.memory.table, key))


cdef int _source_next(Source* source, BlockCache cache) noexcept nogil:
    if source.file.table != NULL:
        return _arrived(source, table_cursor_next(&source.file, cache))
    return _arrived(source, cursor_next(&source.memory))


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


cdef int merge_seek(Merge* m, BlockCache cache, Slice key) noexcept nogil:
    cdef size_t i
    cdef int status
    m.live = 0
    for i in range(m.count):
        status = _source_seek(&m.sources[i], cache, key)
        if status < 0:
            m.live = 0
            return status
        if status == 1:
            _enter(m, &m.sources[i])
    return 1 if m.live > 0 else 0


cdef int merge_next(Merge* m, BlockCache cache) noexcept nogil:
    cdef size_t same = 1
    cdef int status
    if m.live == 0:
        return 0
    while same < m.live and slice_equal(m.order[same].key, m.order[0].key):
        same += 1
    # The first one goes last: the others are compared with the key that lies in its memory.
    while same > 0:
        same -= 1
        status = _source_next(m.order[same], cache)
        if status < 0:
            m.live = 0
            return status
        if status == 0:
            _leave(m, same)
        else:
            _sink(m, same)
    return 1 if m.live > 0 else 0


cdef int merge_refresh_newest(Merge* m, BlockCache cache) noexcept nogil:
    cdef Source* newest = &m.sources[0]
    cdef size_t i
    cdef int status
    cdef MemtableCursor before = newest.memory
    status = _source_seek(newest, cache, m.order[0].key)
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
    if m.order[0].file.table != NULL:
        return m.order[0].file.value
    return entry_value(m.order[0].memory.entry)


cdef bint merge_removed(const Merge* m) noexcept nogil:
    if m.order[0].file.table != NULL:
        return m.order[0].file.removed
    return entry_removed(m.order[0].memory.entry)
