"""Walking a table in key order: from entry to entry, from block to block, reading ahead."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from everwrite.block_cache cimport BlockCache, entries_check, stored_check
from everwrite.coding cimport Slice, slice_compare, slice_of
from everwrite.pins cimport counted_hold, counted_release
from everwrite.prefetch cimport prefetch_line
from everwrite.status cimport Status, fault_corrupt
from everwrite.table_format cimport (
    BLOCK_STORED,
    BLOCK_TRAILER,
    DATA_BLOCK_LIMIT,
    SLOT_MAPPED,
    SLOT_OFFSET_SHIFT,
    Block,
    BlockView,
    Slot,
    Table,
    TableEntry,
    block_data,
    block_view,
    decode_entry,
    entry_offset,
    slot_block,
    view_count,
    view_slot,
)
from everwrite.table_reader cimport table_block_for

cdef enum:
    AHEAD_FIRST = 16 << 10             # what a walk reads at once, at first
    AHEAD_MOST = 256 << 10
    AHEAD_COMPACTION = 1 << 20         # when whole tables are read
    PREFETCH_LINES = 8                 # of the next block


cdef void table_cursor_init(TableCursor* c, Table* table) noexcept nogil:
    memset(c, 0, sizeof(TableCursor))
    c.table = table


cdef void _let_go(TableCursor* c) noexcept nogil:
    if c.holder != NULL:
        counted_release(c.holder)
        c.holder = NULL
    c.content = NULL


cdef void table_cursor_free(TableCursor* c) noexcept nogil:
    _let_go(c)
    free(c.ahead)
    free(c.unpacked)
    c.ahead = NULL
    c.unpacked = NULL


cdef int _reserve(uint8_t** memory, size_t* capacity, size_t size) noexcept nogil:
    cdef uint8_t* grown
    if size <= capacity[0]:
        return Status.OK
    grown = <uint8_t*>realloc(memory[0], size)
    if grown == NULL:
        return Status.ERR_MEMORY
    memory[0] = grown
    capacity[0] = size
    return Status.OK


# ---- blocks ----

cdef void _stand_in(TableCursor* c, const BlockView* view) noexcept nogil:
    """Make a block the current one; the reference to its holder is the cursor's from here on."""
    c.holder = view.holder
    c.content = view.content
    c.count = view_count(c.table, c.number, view)
    c.entries_size = view.entries_size
    c.offsets = c.content + c.entries_size


cdef inline bint _goes_by_mapping(TableCursor* c, BlockCache cache) noexcept nogil:
    # Who reads whole tables past the cache reads faster than pages can be mapped.
    return c.table.mapped != NULL and not cache.bypass


cdef int _read_ahead(TableCursor* c, BlockCache cache, size_t number, bint backwards) noexcept nogil:
    """Read the block and those that will follow it, with one call."""
    cdef Table* table = c.table
    cdef size_t first = number
    cdef size_t end = number + 1
    cdef uint64_t size
    cdef int64_t got
    if cache.cached_only:
        return Status.WOULD_BLOCK
    if c.ahead_size == 0:
        c.ahead_size = AHEAD_FIRST
    if backwards:
        while first > 0 and table.offsets[end] - table.offsets[first - 1] <= c.ahead_size:
            first -= 1
    else:
        while end < table.block_count and table.offsets[end + 1] - table.offsets[first] <= c.ahead_size:
            end += 1
    size = table.offsets[end] - table.offsets[first]
    c.first_ahead = 0
    c.end_ahead = 0
    if _goes_by_mapping(c, cache):
        cache.files.will_need(table.mapping, table.offsets[first], size)
    else:
        if _reserve(&c.ahead, &c.ahead_capacity, size) < 0:
            return Status.ERR_MEMORY
        got = cache.files.read(table.file, table.offsets[first], c.ahead, size)
        if got < 0:
            return <int>got
        if <uint64_t>got < size:
            return fault_corrupt(table.path, table.offsets[first], "the file ends within a block")
        cache.misses += end - first
    c.first_ahead = first
    c.end_ahead = end
    c.ahead_size = AHEAD_MOST if 2 * c.ahead_size > AHEAD_MOST else 2 * c.ahead_size
    if cache.bypass:
        c.ahead_size = AHEAD_COMPACTION
    return Status.OK


cdef int _stand_in_ahead(TableCursor* c, BlockCache cache, size_t number) noexcept nogil:
    """Check a block where it lies in what was read ahead, and unpack it when it is compressed."""
    cdef Table* table = c.table
    cdef uint64_t offset = table.offsets[number]
    cdef size_t size = table.offsets[number + 1] - offset
    cdef const uint8_t* stored
    cdef size_t content_size = 0
    cdef BlockView view
    cdef Block* block
    cdef int status
    if not _goes_by_mapping(c, cache):
        stored = c.ahead + (offset - table.offsets[c.first_ahead])
    else:
        stored = table.mapped + offset
        if cache.cached_only and not cache.is_resident(table, offset, size):
            return Status.WOULD_BLOCK
        if stored[size - BLOCK_TRAILER] == BLOCK_STORED:
            status = cache.check_mapped(table, number, &view)
            if status == Status.OK:
                _stand_in(c, &view)
            return status
        cache.misses += 1
    if cache.has_room() and size <= 2 * AHEAD_FIRST:
        status = cache.unpack(table, number, stored, &block)
        if status == Status.OK:
            block_view(block, &view)
            _stand_in(c, &view)
        return status
    status = stored_check(table.path, offset, stored, size, DATA_BLOCK_LIMIT, &content_size)
    if status < 0:
        return status
    if stored[size - BLOCK_TRAILER] != BLOCK_STORED:
        if _reserve(&c.unpacked, &c.unpacked_capacity, content_size) < 0:
            return Status.ERR_MEMORY
        status = cache.zstd.decompress(slice_of(stored, size - BLOCK_TRAILER), c.unpacked, content_size)
        if status == Status.ERR_DECODE:
            return fault_corrupt(table.path, offset, "a block can't be decompressed to its size")
        if status < 0:
            return status
        stored = c.unpacked
    status = entries_check(table.path, offset, stored, content_size, &c.entries_size, &c.count)
    if status < 0:
        return status
    c.content = stored
    c.offsets = stored + c.entries_size
    return Status.OK


cdef inline void _prefetch_block(TableCursor* c, BlockCache cache, bint backwards) noexcept nogil:
    """The processor follows a block's entries by itself, but not from one block to the next."""
    cdef size_t number = c.number - 1 if backwards else c.number + 1
    cdef const uint8_t* at
    cdef Slot slot
    cdef size_t i
    if cache.bypass or number >= c.table.block_count:
        return
    slot = c.table.cached[number]
    if slot == 0:
        return
    if slot & SLOT_MAPPED:
        at = c.table.mapped + (slot >> SLOT_OFFSET_SHIFT)
    else:
        at = block_data(slot_block(slot))
        prefetch_line(slot_block(slot))
    prefetch_line(at + c.entries_size)
    prefetch_line(at + c.entries_size + 64)
    for i in range(PREFETCH_LINES):
        prefetch_line(at + (c.entries_size - 64 * i if backwards else 64 * i))


cdef int _enter(TableCursor* c, BlockCache cache, size_t number, bint walking, bint backwards) noexcept nogil:
    """Make a data block the current one. `walking`: its neighbour was, and its other neighbour will be."""
    cdef BlockView view
    cdef int status
    _let_go(c)
    c.number = number
    if not cache.bypass and view_slot(c.table, number, &view):
        cache.hits += 1
        counted_hold(view.holder)
        _stand_in(c, &view)
    else:
        if not c.first_ahead <= number < c.end_ahead:
            if not walking and not cache.bypass:
                c.ahead_size = AHEAD_FIRST
                status = cache.load(c.table, number, &view)
                if status == Status.OK:
                    _stand_in(c, &view)
                return status
            status = _read_ahead(c, cache, number, backwards)
            if status < 0:
                return status
        status = _stand_in_ahead(c, cache, number)
        if status < 0:
            c.content = NULL
            return status
    if walking:
        _prefetch_block(c, cache, backwards)
    return Status.OK


# ---- entries ----

cdef inline int _take(TableCursor* c, size_t position) noexcept nogil:
    """Stand on an entry of the current block."""
    cdef TableEntry e
    if not decode_entry(
        c.content + entry_offset(c.offsets, position), c.content + c.entries_size, &e
    ):
        _let_go(c)
        return fault_corrupt(c.table.path, c.table.offsets[c.number], "a block has a malformed entry")
    c.position = position
    c.key = e.key
    c.value = e.value
    c.removed = e.removed
    return 1


cdef int _rank(TableCursor* c, Slice key, bint after_equal, size_t* rank) noexcept nogil:
    """How many keys of the current block are smaller than `key`, or, with `after_equal`, not greater."""
    cdef size_t low = 0
    cdef size_t high = c.count
    cdef size_t middle
    cdef int order
    while low < high:
        middle = (low + high) >> 1
        if _take(c, middle) < 0:
            return Status.ERR_CORRUPT
        order = slice_compare(c.key, key)
        if order < 0 or (order == 0 and after_equal):
            low = middle + 1
        else:
            high = middle
    rank[0] = low
    return Status.OK


cdef int _next_block(TableCursor* c, BlockCache cache) noexcept nogil:
    cdef int status
    if c.number + 1 >= c.table.block_count:
        _let_go(c)
        return 0
    status = _enter(c, cache, c.number + 1, True, False)
    return status if status < 0 else _take(c, 0)


cdef int _previous_block(TableCursor* c, BlockCache cache) noexcept nogil:
    cdef int status
    if c.number == 0:
        _let_go(c)
        return 0
    status = _enter(c, cache, c.number - 1, True, True)
    return status if status < 0 else _take(c, c.count - 1)


cdef int table_cursor_next(TableCursor* c, BlockCache cache) noexcept nogil:
    if c.content == NULL:
        return 0
    if c.position + 1 < c.count:
        return _take(c, c.position + 1)
    return _next_block(c, cache)


cdef int table_cursor_previous(TableCursor* c, BlockCache cache) noexcept nogil:
    if c.content == NULL:
        return 0
    if c.position > 0:
        return _take(c, c.position - 1)
    return _previous_block(c, cache)


cdef int _enter_for(TableCursor* c, BlockCache cache, Slice key, bint after_equal, size_t* rank) noexcept nogil:
    """Enter the block that may hold `key`, and find the key's place in it."""
    cdef size_t number = table_block_for(c.table, key)
    cdef int status = Status.OK
    if c.content == NULL or c.number != number:
        status = _enter(c, cache, number, cache.bypass, False)
    return _rank(c, key, after_equal, rank) if status == Status.OK else status


cdef int table_cursor_seek(TableCursor* c, BlockCache cache, Slice key) noexcept nogil:
    cdef size_t rank = 0
    cdef int status
    if slice_compare(key, c.table.largest) > 0:
        _let_go(c)
        return 0
    status = _enter_for(c, cache, key, False, &rank)
    if status < 0:
        return status
    return _take(c, rank) if rank < c.count else _next_block(c, cache)


cdef int table_cursor_seek_back(TableCursor* c, BlockCache cache, Slice key, bint or_equal) noexcept nogil:
    cdef size_t rank = 0
    cdef int status
    if slice_compare(key, c.table.smallest) < 0:
        _let_go(c)
        return 0
    status = _enter_for(c, cache, key, or_equal, &rank)
    if status < 0:
        return status
    return _take(c, rank - 1) if rank > 0 else _previous_block(c, cache)


cdef int table_cursor_seek_last(TableCursor* c, BlockCache cache) noexcept nogil:
    cdef int status = _enter(c, cache, c.table.block_count - 1, False, True)
    return status if status < 0 else _take(c, c.count - 1)
