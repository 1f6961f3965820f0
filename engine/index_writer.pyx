"""Write side of a table's hash index.

Lines are filled in the order of the hashes; what doesn't fit its home line goes to the next one that has room, as
in a hash table with buckets and linear probing whose buckets are kept in order (Amble and Knuth, "Ordered hash
tables", 1974), so that a search knows when to stop.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from everwrite.coding cimport buffer_free, buffer_init, buffer_reserve, put_bytes, store_u64
from everwrite.status cimport Status
from everwrite.table_format cimport (
    LINE_HEADER,
    LINE_SIZE,
    PAGE_LINES,
    SPILL_ALL,
    SPILL_FROM,
    SPILL_NONE,
    full_product,
    index_line_entries,
    index_lines,
    index_location_bits,
    load_word,
)

cdef enum:
    READ_ROOM = 8                      # packed entries are written as words, which may reach beyond their line


cdef void index_init(IndexWriter* w) noexcept nogil:
    memset(w, 0, sizeof(IndexWriter))
    buffer_init(&w.entries)
    buffer_init(&w.page)


cdef void index_free(IndexWriter* w) noexcept nogil:
    buffer_free(&w.entries)
    buffer_free(&w.page)
    free(w.sorted)
    free(w.starts)
    w.sorted = NULL
    w.starts = NULL


cdef int index_add(IndexWriter* w, uint64_t hash, uint64_t location) noexcept nogil:
    cdef IndexEntry e
    e.hash = hash
    e.location = location
    return Status.ERR_MEMORY if put_bytes(&w.entries, &e, sizeof(IndexEntry)) < 0 else Status.OK


cdef void _sort_line(IndexEntry* entries, uint64_t count) noexcept nogil:
    """Few entries, but for keys that somebody chose to share their hashes' upper bits: heapsort bounds those."""
    cdef uint64_t i
    cdef uint64_t j
    cdef IndexEntry e
    if count > 64:
        _heap_sort(entries, count)
        return
    for i in range(1, count):
        e = entries[i]
        j = i
        while j > 0 and entries[j - 1].hash > e.hash:
            entries[j] = entries[j - 1]
            j -= 1
        entries[j] = e


cdef void _sift(IndexEntry* entries, uint64_t root, uint64_t end) noexcept nogil:
    cdef IndexEntry e = entries[root]
    cdef uint64_t child = 2 * root + 1
    while child < end:
        if child + 1 < end and entries[child].hash < entries[child + 1].hash:
            child += 1
        if entries[child].hash <= e.hash:
            break
        entries[root] = entries[child]
        root = child
        child = 2 * root + 1
    entries[root] = e


cdef void _heap_sort(IndexEntry* entries, uint64_t count) noexcept nogil:
    cdef uint64_t i = count // 2
    cdef IndexEntry e
    while i > 0:
        i -= 1
        _sift(entries, i, count)
    i = count - 1
    while i > 0:
        e = entries[0]
        entries[0] = entries[i]
        entries[i] = e
        _sift(entries, 0, i)
        i -= 1


cdef int index_arrange(IndexWriter* w, uint64_t block_count) noexcept nogil:
    cdef IndexEntry* entries = <IndexEntry*>w.entries.data
    cdef uint64_t count = w.entries.size // sizeof(IndexEntry)
    cdef uint64_t fraction
    cdef uint64_t line
    cdef uint64_t i
    w.location_bits = index_location_bits(block_count)
    w.line_entries = index_line_entries(<unsigned>w.location_bits)
    w.lines = index_lines(count, <unsigned>w.line_entries)
    w.page_count = (w.lines - 1) // PAGE_LINES + 1
    w.sorted = <IndexEntry*>malloc(count * sizeof(IndexEntry))
    w.starts = <uint64_t*>calloc(w.lines + 2, sizeof(uint64_t))
    if w.sorted == NULL or w.starts == NULL:
        return Status.ERR_MEMORY
    # A counting sort by line: starts[line + 1] counts, then tells where to put the line's next entry.
    for i in range(count):
        w.starts[full_product(entries[i].hash, w.lines, &fraction) + 2] += 1
    for i in range(2, w.lines + 2):
        w.starts[i] += w.starts[i - 1]
    for i in range(count):
        line = full_product(entries[i].hash, w.lines, &fraction)
        w.sorted[w.starts[line + 1]] = entries[i]
        w.starts[line + 1] += 1
    buffer_free(&w.entries)
    for i in range(w.lines):
        _sort_line(w.sorted + w.starts[i], w.starts[i + 1] - w.starts[i])
    return Status.OK


cdef int _reserve_lines(IndexWriter* w, size_t lines) noexcept nogil:
    """Let the page have at least so many lines; new ones are empty."""
    cdef size_t size = lines * LINE_SIZE
    if size <= w.page.size:
        return Status.OK
    if buffer_reserve(&w.page, size - w.page.size + READ_ROOM) < 0:
        return Status.ERR_MEMORY
    memset(w.page.data + w.page.size, 0, size - w.page.size + READ_ROOM)
    w.page.size = size
    return Status.OK


cdef void _mark_spill(IndexWriter* w, uint64_t home, uint64_t place, uint8_t upper) noexcept nogil:
    """An entry lies in a later line than its home: tell the lines that it passed."""
    cdef uint8_t* line = w.page.data + home * LINE_SIZE
    cdef uint64_t i
    if line[1] == SPILL_NONE:
        line[1] = SPILL_FROM + (upper if upper < 255 - SPILL_FROM else 255 - SPILL_FROM)
    for i in range(home + 1, place):
        w.page.data[i * LINE_SIZE + 1] = SPILL_ALL


cdef void _put_in_line(IndexWriter* w, uint8_t* line, uint64_t fraction, uint64_t location) noexcept nogil:
    cdef size_t at = line[0] * (w.location_bits + 4)
    cdef uint8_t* place = line + LINE_HEADER + w.line_entries + (at >> 3)
    cdef uint64_t packed = (location << 4) | ((fraction >> 52) & 15)
    line[LINE_HEADER + line[0]] = <uint8_t>(fraction >> 56)
    store_u64(place, load_word(place) | (packed << (at & 7)))
    line[0] += 1


cdef int index_page(IndexWriter* w, uint64_t number) noexcept nogil:
    cdef uint64_t first = number * PAGE_LINES
    cdef uint64_t homes = PAGE_LINES if w.lines - first > PAGE_LINES else w.lines - first
    cdef uint64_t place = 0
    cdef uint64_t home
    cdef uint64_t fraction
    cdef uint64_t i
    w.page.size = 0
    if _reserve_lines(w, homes) < 0:
        return Status.ERR_MEMORY
    for home in range(homes):
        for i in range(w.starts[first + home], w.starts[first + home + 1]):
            full_product(w.sorted[i].hash, w.lines, &fraction)
            if place < home:
                place = home
            if w.page.data[place * LINE_SIZE] == w.line_entries:
                place += 1
                if _reserve_lines(w, place + 1) < 0:
                    return Status.ERR_MEMORY
            if place > home:
                _mark_spill(w, home, place, <uint8_t>(fraction >> 56))
            _put_in_line(w, w.page.data + place * LINE_SIZE, fraction, w.sorted[i].location)
    return Status.OK
