"""The merge of ordered sources."""

from libc.stdlib cimport calloc, free
from libc.string cimport memmove

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport (
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    put_bytes,
    slice_compare,
    slice_equal,
)
from everwrite.key_order cimport key_head
from everwrite.memtable cimport Memtable, MemtableCursor, entry_key, entry_removed, entry_value
from everwrite.memtable_order cimport (
    cursor_next,
    cursor_previous,
    cursor_seek,
    cursor_seek_back,
    cursor_seek_last,
)
from everwrite.status cimport Status
from everwrite.table_cursor cimport (
    table_cursor_free,
    table_cursor_init,
    table_cursor_next,
    table_cursor_previous,
    table_cursor_seek,
    table_cursor_seek_back,
    table_cursor_seek_last,
)
from everwrite.table_format cimport Table


cdef int merge_init(Merge* m, size_t capacity) noexcept nogil:
    m.count = 0
    m.live = 0
    m.backwards = False
    buffer_init(&m.turn)
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
    buffer_free(&m.turn)
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


# ---- both kinds of source as one: 1 and the key, 0 at the end, negative error ----

cdef inline int _arrived(Source* source, int status) noexcept nogil:
    if source.file.table != NULL:
        if status == 1:
            source.key = source.file.key
            source.head = key_head(source.key, 0)
        return status
    if status < 0 or source.memory.entry == NULL:
        return status
    source.key = entry_key(source.memory.entry)
    source.head = key_head(source.key, 0)
    return 1


cdef inline int _source_step(Source* source, BlockCache cache, bint backwards) noexcept nogil:
    if source.file.table != NULL:
        return _arrived(
            source,
            table_cursor_previous(&source.file, cache) if backwards else table_cursor_next(&source.file, cache),
        )
    return _arrived(source, cursor_previous(&source.memory) if backwards else cursor_next(&source.memory))


cdef int _source_seek(Source* source, BlockCache cache, Slice key) noexcept nogil:
    if source.file.table != NULL:
        return _arrived(source, table_cursor_seek(&source.file, cache, key))
    return _arrived(source, cursor_seek(&source.memory, source.memory.table, key))


cdef int _source_seek_back(Source* source, BlockCache cache, Slice key, bint or_equal) noexcept nogil:
    if source.file.table != NULL:
        return _arrived(source, table_cursor_seek_back(&source.file, cache, key, or_equal))
    return _arrived(source, cursor_seek_back(&source.memory, source.memory.table, key, or_equal))


cdef int _source_seek_last(Source* source, BlockCache cache) noexcept nogil:
    if source.file.table != NULL:
        return _arrived(source, table_cursor_seek_last(&source.file, cache))
    return _arrived(source, cursor_seek_last(&source.memory, source.memory.table))


# ---- the order of the sources ----

cdef inline bint _goes_before(const Source* a, const Source* b, bint backwards) noexcept nogil:
    cdef int c
    if a.head != b.head:
        return (a.head < b.head) ^ backwards
    c = slice_compare(a.key, b.key)
    if c != 0:
        return (c < 0) ^ backwards
    return a.age < b.age


cdef inline bint _same_key(const Source* a, const Source* b) noexcept nogil:
    return a.head == b.head and slice_equal(a.key, b.key)


cdef void _enter(Merge* m, Source* source) noexcept nogil:
    """Put a source in its place among the live ones."""
    cdef size_t i = m.live
    while i > 0 and _goes_before(source, m.order[i - 1], m.backwards):
        m.order[i] = m.order[i - 1]
        i -= 1
    m.order[i] = source
    m.live += 1


cdef void _leave(Merge* m, size_t position) noexcept nogil:
    memmove(&m.order[position], &m.order[position + 1], (m.live - position - 1) * sizeof(void*))
    m.live -= 1


cdef inline void _sink(Merge* m, size_t position) noexcept nogil:
    """The source at `position` has moved on: one comparison suffices while it stays ahead of the others."""
    cdef Source* source = m.order[position]
    while position + 1 < m.live and _goes_before(m.order[position + 1], source, m.backwards):
        m.order[position] = m.order[position + 1]
        position += 1
    m.order[position] = source


cdef int _gather(Merge* m, Source* source, int status) noexcept nogil:
    if status < 0:
        m.live = 0
        return status
    if status == 1:
        _enter(m, source)
    return Status.OK


cdef int merge_seek(Merge* m, BlockCache cache, Slice key) noexcept nogil:
    cdef size_t i
    cdef int status
    m.live = 0
    m.backwards = False
    for i in range(m.count):
        status = _gather(m, &m.sources[i], _source_seek(&m.sources[i], cache, key))
        if status < 0:
            return status
    return 1 if m.live > 0 else 0


cdef int merge_seek_back(Merge* m, BlockCache cache, Slice key, bint or_equal) noexcept nogil:
    cdef size_t i
    cdef int status
    m.live = 0
    m.backwards = True
    for i in range(m.count):
        status = _gather(m, &m.sources[i], _source_seek_back(&m.sources[i], cache, key, or_equal))
        if status < 0:
            return status
    return 1 if m.live > 0 else 0


cdef int merge_seek_last(Merge* m, BlockCache cache) noexcept nogil:
    cdef size_t i
    cdef int status
    m.live = 0
    m.backwards = True
    for i in range(m.count):
        status = _gather(m, &m.sources[i], _source_seek_last(&m.sources[i], cache))
        if status < 0:
            return status
    return 1 if m.live > 0 else 0


cdef int _step(Merge* m, BlockCache cache) noexcept nogil:
    cdef size_t same = 1
    cdef int status
    while same < m.live and _same_key(m.order[same], m.order[0]):
        same += 1
    # The first one goes last: the others are compared with the key that lies in its memory.
    while same > 0:
        same -= 1
        status = _source_step(m.order[same], cache, m.backwards)
        if status < 0:
            m.live = 0
            return status
        if status == 0:
            _leave(m, same)
        else:
            _sink(m, same)
    return 1 if m.live > 0 else 0


cdef int _turn(Merge* m) noexcept nogil:
    """Keep the current key, for the sources are about to move."""
    cdef Slice key = m.order[0].key
    m.turn.size = 0
    return Status.ERR_MEMORY if put_bytes(&m.turn, key.data, key.size) < 0 else Status.OK


cdef int merge_next(Merge* m, BlockCache cache) noexcept nogil:
    cdef int status
    if m.live == 0:
        return 0
    if m.backwards:
        if _turn(m) < 0:
            return Status.ERR_MEMORY
        status = merge_seek(m, cache, buffer_slice(&m.turn))
        if status <= 0 or not slice_equal(m.order[0].key, buffer_slice(&m.turn)):
            return status
    return _step(m, cache)


cdef int merge_previous(Merge* m, BlockCache cache) noexcept nogil:
    if m.live == 0:
        return 0
    if not m.backwards:
        if _turn(m) < 0:
            return Status.ERR_MEMORY
        return merge_seek_back(m, cache, buffer_slice(&m.turn), False)
    return _step(m, cache)


cdef int merge_refresh_newest(Merge* m, BlockCache cache) noexcept nogil:
    cdef Source* newest = &m.sources[0]
    cdef size_t i
    cdef int status
    cdef MemtableCursor before = newest.memory
    if m.backwards:
        status = _source_seek_back(newest, cache, m.order[0].key, True)
    else:
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
