"""Read side of table files: open, look a key up, walk in order."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, strdup

from everwrite.block_cache cimport BlockCache, block_parse, block_read
from everwrite.bloom cimport BLOOM_LINE, bloom_may_contain
from everwrite.checksum cimport crc32c
from everwrite.coding cimport (
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_reserve,
    buffer_slice,
    get_slice,
    get_varint,
    load_u32,
    load_u64,
    put_bytes,
    reader_of,
    slice_compare,
    slice_of,
)
from everwrite.files cimport Files, OpenMode
from everwrite.key_order cimport common_prefix, key_head
from everwrite.pins cimport counted_release
from everwrite.status cimport Status, fault_corrupt
from everwrite.table_format cimport (
    BLOCK_TRAILER,
    FOOTER_CHECKED,
    FOOTER_SIZE,
    TABLE_MAGIC,
    TABLE_VERSION,
    Block,
    BlockHandle,
    TableEntry,
    decode_entry,
    decode_handle,
    decode_restart,
)

cdef enum:
    KEY_ROOM = 64


# ---- opening ----

cdef int _read_footer(Files files, Table* table, BlockHandle* handles) noexcept nogil:
    """Check the footer and set the handles of index, filter and properties, which fill the file's end without a gap."""
    cdef uint8_t footer[FOOTER_SIZE]
    cdef uint64_t place = table.size - FOOTER_SIZE
    cdef uint64_t position = place
    cdef int64_t got = files.size(table.file)
    cdef int i
    if got < 0:
        return <int>got
    if <uint64_t>got != table.size or table.size < FOOTER_SIZE:
        return fault_corrupt(table.path, <uint64_t>got, "the file doesn't have the size that the manifest names")
    got = files.read(table.file, place, footer, FOOTER_SIZE)
    if got < 0:
        return <int>got
    if got != FOOTER_SIZE or memcmp(footer + 56, TABLE_MAGIC, 8) != 0:
        return fault_corrupt(table.path, place, "the file doesn't end as a table does")
    if crc32c(0, footer, FOOTER_CHECKED) != load_u32(footer + FOOTER_CHECKED):
        return fault_corrupt(table.path, place, "the checksum of the footer doesn't match")
    if load_u32(footer + 48) != TABLE_VERSION:
        fault_corrupt(table.path, place + 48, "a table of a format version that this release doesn't know")
        return Status.ERR_FORMAT
    for i in range(2, -1, -1):
        handles[i].offset = load_u64(footer + 16 * i)
        handles[i].size = load_u64(footer + 16 * i + 8)
        if (
            handles[i].size <= BLOCK_TRAILER
            or handles[i].size > position
            or handles[i].offset != position - handles[i].size
        ):
            return fault_corrupt(table.path, place, "the footer's blocks don't fit the file")
        position = handles[i].offset
    return Status.OK


cdef int _read_properties(Table* table) noexcept nogil:
    cdef Reader r = reader_of(slice_of(table.properties.data, table.properties.size))
    table.entries = get_varint(&r)
    table.removed = get_varint(&r)
    table.smallest = get_slice(&r)
    table.largest = get_slice(&r)
    if r.failed or r.at != r.end:
        return fault_corrupt(table.path, table.properties.offset, "malformed properties")
    return Status.OK


cdef int _prepare_index(Table* table) noexcept nogil:
    """Check all index entries, and set apart what a search compares first."""
    cdef size_t count = table.index.restarts
    cdef BlockHandle handle
    cdef Reader r
    cdef TableEntry e
    cdef Slice first
    cdef size_t i
    table.heads = <uint64_t*>malloc(count * sizeof(uint64_t))
    if table.heads == NULL:
        return Status.ERR_MEMORY
    for i in range(count):
        if not decode_restart(table.index, i, &r, &e) or not decode_handle(e.value, table.index.offset, &handle):
            return _damaged(table, table.index)
        if i == 1:
            first = e.suffix
    if count > 1:
        table.index_skip = common_prefix(first, e.suffix, first.size)
    for i in range(1, count):
        decode_restart(table.index, i, &r, &e)
        table.heads[i] = key_head(e.suffix, table.index_skip)
    return Status.OK


cdef int _read_ends(Files files, Table* table) noexcept nogil:
    """Read all that a table keeps in memory while it is open. These blocks are stored, so no decompressor is needed."""
    cdef BlockHandle handles[3]
    cdef Block* blocks[3]
    cdef int status = _read_footer(files, table, handles)
    cdef int i
    if status < 0:
        return status
    for i in range(3):
        status = block_read(files, None, table.file, table.path, table.number, handles[i], handles[i].size, &blocks[i])
        if status < 0:
            return status
        if i == 0:
            table.index = blocks[0]
        elif i == 1:
            table.filter = blocks[1]
        else:
            table.properties = blocks[2]
    if table.filter.size == 0 or table.filter.size % BLOOM_LINE != 0:
        return fault_corrupt(table.path, table.filter.offset, "a filter of an impossible size")
    status = block_parse(table.index, table.path)
    if status == Status.OK:
        status = _read_properties(table)
    return _prepare_index(table) if status == Status.OK else status


cdef int table_open(Files files, const char* path, uint64_t number, uint64_t size, Table** out) noexcept nogil:
    cdef Table* table = <Table*>calloc(1, sizeof(Table))
    cdef int status
    out[0] = NULL
    if table == NULL:
        return Status.ERR_MEMORY
    table.refs = 1
    table.number = number
    table.size = size
    table.file = -1
    table.path = strdup(path)
    if table.path == NULL:
        table_close(files, table)
        return Status.ERR_MEMORY
    status = files.open(path, OpenMode.OPEN_READ)
    if status >= 0:
        table.file = status
        status = _read_ends(files, table)
    if status < 0:
        table_close(files, table)
        return status
    out[0] = table
    return Status.OK


cdef void table_close(Files files, Table* table) noexcept nogil:
    # A failed close of a file that was only read, or a file that stays behind and is removed at the next
    # opening, loses nothing: there is nobody to tell.
    if table.file >= 0:
        files.close(table.file)
    if table.obsolete:
        files.unlink(table.path)
    if table.index != NULL:
        counted_release(&table.index.counted)
    if table.filter != NULL:
        counted_release(&table.filter.counted)
    if table.properties != NULL:
        counted_release(&table.properties.counted)
    free(table.heads)
    free(table.path)
    free(table)


# ---- searching ----

cdef int _damaged(Table* table, const Block* block) noexcept nogil:
    return fault_corrupt(table.path, block.offset, "a block has a malformed entry")


cdef int _last_restart_until(Table* table, Block* block, Slice key, size_t* position) noexcept nogil:
    """1: *position is the last restart point whose key is <= `key`. 0: there is none."""
    cdef size_t low = 0
    cdef size_t high = block.restarts
    cdef size_t middle
    cdef Reader r
    cdef TableEntry e
    while low < high:
        middle = (low + high) >> 1
        if not decode_restart(block, middle, &r, &e):
            return _damaged(table, block)
        if slice_compare(e.suffix, key) <= 0:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return 0
    position[0] = low - 1
    return 1


cdef int _index_handle(Table* table, size_t position, BlockHandle* handle) noexcept nogil:
    cdef Reader r
    cdef TableEntry e
    if not decode_restart(table.index, position, &r, &e) or not decode_handle(e.value, table.index.offset, handle):
        return _damaged(table, table.index)
    return Status.OK


cdef size_t _search_index(Table* table, Slice key) noexcept nogil:
    """The last index entry whose key is <= `key`; the first one's always is."""
    cdef size_t low = 1
    cdef size_t high = table.index.restarts
    cdef size_t middle
    cdef uint64_t head
    cdef Slice shared
    cdef Reader r
    cdef TableEntry e
    cdef int c
    if high > 1 and table.index_skip > 0:
        decode_restart(table.index, 1, &r, &e)
        shared = slice_of(e.suffix.data, table.index_skip)
        c = slice_compare(slice_of(key.data, key.size if key.size < shared.size else shared.size), shared)
        if c != 0:
            return 0 if c < 0 else high - 1
    head = key_head(key, table.index_skip)
    while low < high:
        middle = (low + high) >> 1
        if table.heads[middle] == head:
            decode_restart(table.index, middle, &r, &e)
            c = slice_compare(e.suffix, key)
        else:
            c = -1 if table.heads[middle] < head else 1
        if c <= 0:
            low = middle + 1
        else:
            high = middle
    return low - 1


cdef int _block_for(Table* table, BlockCache cache, Slice key, size_t* position, Block** block) noexcept nogil:
    """The one block that may hold `key`: an index key is > all of the block before, and <= its block's first."""
    cdef BlockHandle handle
    cdef int status
    position[0] = _search_index(table, key)
    status = _index_handle(table, position[0], &handle)
    if status < 0:
        return status
    return cache.fetch(table.file, table.path, table.number, handle, block)


cdef int _find_in_block(Table* table, Block* block, Slice key, Slice* value) noexcept nogil:
    """Look `key` up without building any key.

    `matched` is how many bytes of `key` the entry before has; that entry is smaller. An entry
    that shares more with it than that is smaller too; one that shares less is greater.
    """
    cdef Reader r
    cdef TableEntry e
    cdef size_t position = 0
    cdef size_t matched = 0
    cdef size_t size_before = 0
    cdef size_t i
    cdef size_t limit
    cdef int status = _last_restart_until(table, block, key, &position)
    if status <= 0:
        return status
    if not decode_restart(block, position, &r, &e):
        return _damaged(table, block)
    while True:
        if e.shared > size_before:
            return _damaged(table, block)
        size_before = e.shared + e.suffix.size
        if e.shared < matched:
            return TABLE_ABSENT
        if e.shared == matched:
            limit = key.size - matched if key.size - matched < e.suffix.size else e.suffix.size
            i = 0
            while i < limit and e.suffix.data[i] == key.data[matched + i]:
                i += 1
            matched += i
            if matched == key.size:
                if i < e.suffix.size:
                    return TABLE_ABSENT
                value[0] = e.value
                return TABLE_REMOVED if e.removed else TABLE_FOUND
            if i < e.suffix.size and e.suffix.data[i] > key.data[matched]:
                return TABLE_ABSENT
        if r.at == r.end:
            return TABLE_ABSENT
        if not decode_entry(&r, &e):
            return _damaged(table, block)


cdef int table_get(
    Table* table, BlockCache cache, Slice key, uint64_t filter_hash, Block** block, Slice* value
) noexcept nogil:
    cdef size_t position = 0
    cdef int status
    if not bloom_may_contain(table.filter.data, table.filter.size, filter_hash):
        return TABLE_ABSENT
    if slice_compare(key, table.smallest) < 0 or slice_compare(key, table.largest) > 0:
        return TABLE_ABSENT
    status = _block_for(table, cache, key, &position, block)
    if status < 0:
        return status
    status = _find_in_block(table, block[0], key, value)
    if status != TABLE_FOUND:
        counted_release(&block[0].counted)
        block[0] = NULL
    return status


# ---- walking ----

cdef void table_cursor_init(TableCursor* c, Table* table) noexcept nogil:
    c.table = table
    c.block = NULL
    buffer_init(&c.key)


cdef void _let_go(TableCursor* c) noexcept nogil:
    if c.block != NULL:
        counted_release(&c.block.counted)
        c.block = NULL


cdef void table_cursor_free(TableCursor* c) noexcept nogil:
    _let_go(c)
    buffer_free(&c.key)


cdef int _take(TableCursor* c, const TableEntry* e) noexcept nogil:
    if e.shared > c.key.size:
        return _damaged(c.table, c.block)
    c.key.size = e.shared
    if put_bytes(&c.key, e.suffix.data, e.suffix.size) < 0:
        return Status.ERR_MEMORY
    c.value = e.value
    c.removed = e.removed
    return 1


cdef int _open_next_block(TableCursor* c, BlockCache cache) noexcept nogil:
    """Stand before the first entry of the next block: 1, or 0 behind the last block."""
    cdef BlockHandle handle
    cdef int status
    _let_go(c)
    c.index_position += 1
    if c.index_position >= c.table.index.restarts:
        return 0
    status = _index_handle(c.table, c.index_position, &handle)
    if status < 0:
        return status
    status = cache.fetch(c.table.file, c.table.path, c.table.number, handle, &c.block)
    if status < 0:
        return status
    c.rest.at = c.block.data
    c.rest.end = c.block.data + c.block.entries_size
    c.rest.failed = False
    c.key.size = 0
    return 1


cdef int table_cursor_next(TableCursor* c, BlockCache cache) noexcept nogil:
    cdef TableEntry e
    cdef int status
    if c.block == NULL:
        return 0
    while c.rest.at == c.rest.end:
        status = _open_next_block(c, cache)
        if status <= 0:
            return status
    if not decode_entry(&c.rest, &e):
        return _damaged(c.table, c.block)
    return _take(c, &e)


cdef int table_cursor_seek(TableCursor* c, BlockCache cache, Slice key) noexcept nogil:
    cdef size_t restart = 0
    cdef TableEntry e
    cdef int status
    _let_go(c)
    if slice_compare(key, c.table.largest) > 0:
        return 0
    status = _block_for(c.table, cache, key, &c.index_position, &c.block)
    if status < 0:
        return status
    status = _last_restart_until(c.table, c.block, key, &restart)
    if status < 0:
        return status
    if not decode_restart(c.block, restart if status == 1 else 0, &c.rest, &e):
        return _damaged(c.table, c.block)
    c.key.size = 0
    # An empty key too is to have an address.
    if buffer_reserve(&c.key, KEY_ROOM) < 0:
        return Status.ERR_MEMORY
    status = _take(c, &e)
    while status == 1 and slice_compare(buffer_slice(&c.key), key) < 0:
        status = table_cursor_next(c, cache)
    return status
