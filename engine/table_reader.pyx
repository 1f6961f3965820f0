"""Read side of table files: open, look a key up, walk by hash."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcmp, strdup

from everwrite.block_cache cimport BlockCache, slots_close, slots_new, stored_check
from everwrite.block_pool cimport block_new
from everwrite.checksum cimport crc32c
from everwrite.coding cimport (
    Reader,
    Slice,
    buffer_free,
    buffer_init,
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
from everwrite.hashing cimport hash64
from everwrite.key_order cimport common_prefix, key_head
from everwrite.pins cimport Counted, counted_hold, counted_release
from everwrite.prefetch cimport prefetch_line
from everwrite.status cimport Status, fault_corrupt, fault_format
from everwrite.table_format cimport (
    BLOCK_STORED,
    BLOCK_TRAILER,
    FOOTER_CHECKED,
    FOOTER_SIZE,
    KEY_HASH_SEED,
    LINE_HEADER,
    LINE_SIZE,
    OFFSET_BITS,
    PAGE_LINES,
    RESIDENCE_BITS,
    SPILL_ALL,
    SPILL_FROM,
    SPILL_NONE,
    TABLE_MAGIC,
    TABLE_VERSION,
    SLOT_MAPPED,
    SLOT_OFFSET_BITS,
    SLOT_OFFSET_SHIFT,
    Block,
    BlockView,
    Slot,
    Table,
    TableEntry,
    block_data,
    decode_entry,
    full_product,
    index_line_entries,
    index_lines,
    index_location_bits,
    lowest_bit,
    matching_bytes,
    packed_entry,
    slot_block,
    slot_use,
    view_slot,
)
cdef enum:
    COPY_ONE_OF = 8 - 1                # keys, masks
    PUSH_ONE_OF = 512 - 1


# ---- opening ----

cdef int _read_block(Files files, Table* table, uint64_t offset, uint64_t size, Block** out) noexcept nogil:
    """Read the directory or the properties, which stay in memory while the table is open."""
    cdef Block* block = block_new(NULL, offset, size)
    cdef size_t content_size = 0
    cdef int64_t got
    cdef uint8_t* stored
    cdef int status
    out[0] = block
    if block == NULL:
        return Status.ERR_MEMORY
    stored = <uint8_t*>block_data(block)
    got = files.read(table.file, offset, stored, size)
    if got < 0:
        return <int>got
    if <uint64_t>got < size:
        return fault_corrupt(table.path, offset, "the file ends within a block")
    status = stored_check(table.path, offset, stored, size, size, &content_size)
    if status < 0:
        return status
    if stored[size - BLOCK_TRAILER] != BLOCK_STORED:
        return fault_corrupt(table.path, offset, "a block of an unknown kind")
    block.size = <uint32_t>content_size
    return Status.OK


cdef int _read_footer(Files files, Table* table) noexcept nogil:
    """Check the footer, and read the two blocks before it."""
    cdef uint8_t footer[FOOTER_SIZE]
    cdef uint64_t place = table.size - FOOTER_SIZE
    cdef uint64_t directory_size
    cdef uint64_t properties_size
    cdef int64_t got = files.size(table.file)
    cdef int status
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
        return fault_format(table.path, load_u32(footer + 48))
    directory_size = load_u64(footer)
    properties_size = load_u64(footer + 8)
    if (
        properties_size <= BLOCK_TRAILER
        or properties_size > place
        or directory_size <= BLOCK_TRAILER
        or directory_size > place - properties_size
    ):
        return fault_corrupt(table.path, place, "the footer's blocks don't fit the file")
    place -= properties_size
    status = _read_block(files, table, place, properties_size, &table.properties)
    if status == Status.OK:
        status = _read_block(files, table, place - directory_size, directory_size, &table.directory)
    return status


cdef int _read_properties(Table* table) noexcept nogil:
    cdef Reader r = reader_of(slice_of(block_data(table.properties), table.properties.size))
    table.entries = get_varint(&r)
    table.removed = get_varint(&r)
    table.block_count = get_varint(&r)
    table.oldest_flush = get_varint(&r)
    table.newest_flush = get_varint(&r)
    table.smallest = get_slice(&r)
    table.largest = get_slice(&r)
    if (
        r.failed
        or r.at != r.end
        or table.entries == 0
        or table.block_count == 0
        # Each entry and each block takes more than a byte: nothing is allocated for numbers beyond the file's size.
        or table.entries > table.size
        or table.block_count > table.size
    ):
        return fault_corrupt(table.path, table.properties.offset, "malformed properties")
    table.location_bits = index_location_bits(table.block_count)
    table.line_entries = index_line_entries(table.location_bits)
    table.lines = index_lines(table.entries, table.line_entries)
    table.page_count = (table.lines - 1) // PAGE_LINES + 1
    return Status.OK


cdef int _read_directory(Table* table) noexcept nogil:
    """Where all blocks and pages are; they fill the file up to the directory."""
    cdef const uint8_t* content = block_data(table.directory)
    cdef Reader r = reader_of(slice_of(content, table.directory.size))
    cdef uint64_t at = 0
    cdef uint64_t size
    cdef size_t count = table.block_count + table.page_count
    cdef size_t i
    table.offsets = <uint64_t*>malloc((count + 1) * sizeof(uint64_t))
    table.separators = <uint32_t*>malloc(table.block_count * sizeof(uint32_t))
    table.heads = <uint64_t*>malloc(table.block_count * sizeof(uint64_t))
    table.slots = slots_new(count)
    if table.offsets == NULL or table.separators == NULL or table.heads == NULL or table.slots == NULL:
        return Status.ERR_MEMORY
    table.cached = table.slots.slots
    for i in range(count):
        size = get_varint(&r)
        if r.failed or size <= BLOCK_TRAILER or size > table.directory.offset - at:
            return fault_corrupt(table.path, table.directory.offset, "a block of the directory doesn't fit the file")
        table.offsets[i] = at
        at += size
        if i < table.block_count:
            table.separators[i] = <uint32_t>(r.at - content)
            get_slice(&r)
    table.offsets[count] = at
    if r.failed or r.at != r.end or at != table.directory.offset:
        return fault_corrupt(table.path, table.directory.offset, "the directory doesn't match the file")
    table.memory = sizeof(Table) + count * 16 + table.block_count * 12 + table.directory.size + table.properties.size
    return _prepare_separators(table)


cdef int _prepare_separators(Table* table) noexcept nogil:
    """Set apart what a search compares first. They are in ascending order, or the search would lie."""
    cdef size_t count = table.block_count
    cdef Slice first
    cdef size_t i
    if table_separator(table, 0).size != 0:
        return fault_corrupt(table.path, table.directory.offset, "the first index key isn't empty")
    for i in range(1, count):
        if slice_compare(table_separator(table, i - 1), table_separator(table, i)) >= 0:
            return fault_corrupt(table.path, table.directory.offset, "the index keys aren't in order")
    if count > 1:
        first = table_separator(table, 1)
        table.head_skip = common_prefix(first, table_separator(table, count - 1), first.size)
    for i in range(1, count):
        table.heads[i] = key_head(table_separator(table, i), table.head_skip)
    return Status.OK


cdef Slice table_separator(const Table* table, size_t number) noexcept nogil:
    cdef const uint8_t* content = block_data(table.directory)
    cdef Reader r
    r.at = content + table.separators[number]
    r.end = content + table.directory.size
    r.failed = False
    return get_slice(&r)


cdef int table_open(
    Files files, const char* path, uint64_t number, uint64_t size, bint mapped, Table** out
) noexcept nogil:
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
        status = _read_footer(files, table)
    if status == Status.OK:
        status = _read_properties(table)
    if status == Status.OK:
        status = _read_directory(table)
    if status < 0:
        table_close(files, table)
        return status
    # The file has the size that a mapping is read within: what was cut off would end the process.
    if mapped and size >> SLOT_OFFSET_BITS == 0 and size <= <size_t>-1:
        table.residence = <uint8_t*>calloc((size >> RESIDENCE_BITS) + 1, 1)
        if table.residence != NULL:
            table.mapping = files.map_read(table.file, size)
        if table.mapping != NULL:
            table.mapped = table.mapping.data
    out[0] = table
    return Status.OK


cdef void table_close(Files files, Table* table) noexcept nogil:
    # A failed close of a file that was only read, or a file that stays behind and is removed at the next
    # opening, loses nothing: there is nobody to tell.
    if table.file >= 0:
        files.close(table.file)
    if table.obsolete:
        files.unlink(table.path)
    if table.slots != NULL:
        slots_close(table.slots)
    if table.mapping != NULL:
        counted_release(&table.mapping.counted)
    if table.directory != NULL:
        counted_release(&table.directory.counted)
    if table.properties != NULL:
        counted_release(&table.properties.counted)
    free(table.residence)
    free(table.offsets)
    free(table.separators)
    free(table.heads)
    free(table.path)
    free(table)


# ---- searching by hash ----

cdef void table_prefetch(const Table* table, uint64_t key_hash) noexcept nogil:
    cdef uint64_t fraction
    cdef uint64_t line = full_product(key_hash, table.lines, &fraction)
    cdef uint64_t page = line // PAGE_LINES
    cdef const Block* block = slot_block(table.cached[table.block_count + page])
    if block != NULL:
        prefetch_line(block_data(block) + (line - page * PAGE_LINES) * LINE_SIZE)


cdef void table_prefetch_entry(const Table* table, uint64_t key_hash) noexcept nogil:
    cdef uint64_t fraction = 0
    cdef uint64_t place = full_product(key_hash, table.lines, &fraction)
    cdef uint64_t number = place // PAGE_LINES
    cdef const Block* page = slot_block(table.cached[table.block_count + number])
    cdef const Block* block
    cdef const uint8_t* line
    cdef const uint8_t* entry
    cdef uint64_t packed
    cdef unsigned candidates
    cdef Slot slot
    if page == NULL:
        return
    line = block_data(page) + (place - number * PAGE_LINES) * LINE_SIZE
    candidates = matching_bytes(line + LINE_HEADER, fraction >> 56) & ((<unsigned>1 << (line[0] & 31)) - 1)
    while candidates:
        packed = packed_entry(line, table.line_entries, table.location_bits + 4, lowest_bit(candidates))
        candidates &= candidates - 1
        if packed & 15 == (fraction >> 52) & 15 and packed >> (4 + OFFSET_BITS) < table.block_count:
            slot = table.cached[packed >> (4 + OFFSET_BITS)]
            if slot == 0:
                continue
            entry = table.mapped + (slot >> SLOT_OFFSET_SHIFT)
            if not slot & SLOT_MAPPED:
                block = slot_block(slot)
                prefetch_line(block)
                entry = block_data(block)
            entry += (packed >> 4) & ((<uint64_t>1 << OFFSET_BITS) - 1)
            prefetch_line(entry)
            prefetch_line(entry + 64)
            prefetch_line(entry + 128)


cdef int entry_at(Table* table, const BlockView* view, uint64_t location, TableEntry* e) noexcept nogil:
    cdef size_t offset = location & ((<uint64_t>1 << OFFSET_BITS) - 1)
    if offset >= view.entries_size or not decode_entry(view.content + offset, view.content + view.entries_size, e):
        return fault_corrupt(
            table.path, table.offsets[location >> OFFSET_BITS], "the index names a place where no entry begins"
        )
    return Status.OK


cdef inline bint _wants_copy(BlockCache cache, uint64_t fraction) noexcept nogil:
    """Whether a lookup in a mapping is one of the few that copy their block into the cache.

    A part of the keys, by their hashes: most blocks have some, and the more often a block is read, the sooner one of
    them. Fewer do where another block must go for it.
    """
    cdef uint64_t drawn = fraction >> 32
    return not cache.passing and drawn & COPY_ONE_OF == 0 and (cache.has_room() or drawn & PUSH_ONE_OF == 0)


cdef int _look(
    Table* table, BlockCache cache, Block* page, bint* held, Slice key, uint64_t fraction, uint64_t location,
    Counted** out, Slice* value
) noexcept nogil:
    """Whether the entry at a place is the key's. With TABLE_FOUND, *out has one reference."""
    cdef uint64_t number = location >> OFFSET_BITS
    cdef BlockView view
    cdef TableEntry e
    cdef int status
    cdef bint fresh = False
    if number >= table.block_count:
        return fault_corrupt(table.path, table.offsets[table.block_count], "the index names a block beyond the last")
    if (
        cache.bypass
        or not view_slot(table, number, &view)
        or (view.holder == <Counted*>table.mapping and _wants_copy(cache, fraction))
    ):
        # What is loaded may push the page out, where the search may have to go on.
        if not held[0]:
            counted_hold(&page.counted)
            held[0] = True
        status = cache.load(table, number, &view)
        if status < 0:
            return status
        fresh = True
    else:
        cache.hits += 1
    status = entry_at(table, &view, location, &e)
    if status == Status.OK:
        if e.key.size != key.size or memcmp(e.key.data, key.data, key.size) != 0:
            status = TABLE_ABSENT
        else:
            status = TABLE_REMOVED if e.removed else TABLE_FOUND
    if status == TABLE_FOUND:
        value[0] = e.value
        out[0] = view.holder
        if not fresh:
            counted_hold(view.holder)
    elif fresh:
        counted_release(view.holder)
    return status


cdef int _search_page(
    Table* table, BlockCache cache, Block* page, bint* held, uint64_t home, Slice key, uint64_t fraction,
    Counted** holder, Slice* value
) noexcept nogil:
    cdef uint8_t upper = fraction >> 56
    cdef uint64_t lower = (fraction >> 52) & 15
    cdef uint32_t bits = table.location_bits + 4
    cdef uint64_t packed
    cdef uint64_t i = home
    cdef uint64_t lines = page.size // LINE_SIZE
    cdef const uint8_t* line
    cdef uint8_t spill
    cdef unsigned candidates
    cdef int status
    while i < lines:
        line = block_data(page) + i * LINE_SIZE
        if line[0] > table.line_entries:
            return fault_corrupt(table.path, page.offset, "a line of the index has too many entries")
        candidates = matching_bytes(line + LINE_HEADER, upper) & ((<unsigned>1 << line[0]) - 1)
        while candidates:
            packed = packed_entry(line, table.line_entries, bits, lowest_bit(candidates))
            candidates &= candidates - 1
            if packed & 15 == lower:
                status = _look(table, cache, page, held, key, fraction, packed >> 4, holder, value)
                if status != TABLE_ABSENT:
                    return status
        spill = line[1]
        if spill == SPILL_NONE:
            return TABLE_ABSENT
        if spill != SPILL_ALL and (i != home or upper < spill - SPILL_FROM):
            return TABLE_ABSENT
        i += 1
    return fault_corrupt(table.path, page.offset, "a page of the index ends before its entries do")


cdef int table_get(
    Table* table, BlockCache cache, Slice key, uint64_t key_hash, Counted** holder, Slice* value
) noexcept nogil:
    cdef uint64_t fraction
    cdef uint64_t line = full_product(key_hash, table.lines, &fraction)
    cdef uint64_t number = line // PAGE_LINES
    cdef Block* page = NULL if cache.bypass else slot_use(&table.cached[table.block_count + number])
    cdef bint held = page == NULL
    cdef int status
    if held:
        status = cache.load_page(table, table.block_count + number, &page)
        if status < 0:
            return status
    else:
        cache.hits += 1
    status = _search_page(table, cache, page, &held, line - number * PAGE_LINES, key, fraction, holder, value)
    if held:
        counted_release(&page.counted)
    return status


# ---- searching by key ----

cdef size_t table_block_for(const Table* table, Slice key) noexcept nogil:
    """The last one whose index key is <= `key`; the first one's always is."""
    cdef size_t low = 1
    cdef size_t high = table.block_count
    cdef size_t middle
    cdef uint64_t head
    cdef Slice shared
    cdef int c
    if high > 1 and table.head_skip > 0:
        shared = slice_of(table_separator(table, 1).data, table.head_skip)
        c = slice_compare(slice_of(key.data, key.size if key.size < shared.size else shared.size), shared)
        if c != 0:
            return 0 if c < 0 else high - 1
    head = key_head(key, table.head_skip)
    while low < high:
        middle = (low + high) >> 1
        if table.heads[middle] == head:
            c = slice_compare(table_separator(table, middle), key)
        else:
            c = -1 if table.heads[middle] < head else 1
        if c <= 0:
            low = middle + 1
        else:
            high = middle
    return low - 1


# ---- walking by hash ----

cdef void hash_cursor_init(HashCursor* c, Table* table, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint64_t fraction
    c.table = table
    c.first = first
    c.last = last
    c.page = full_product(first, table.lines, &fraction) // PAGE_LINES
    c.position = 0
    c.holder = NULL
    buffer_init(&c.found)


cdef void hash_cursor_free(HashCursor* c) noexcept nogil:
    if c.holder != NULL:
        counted_release(c.holder)
        c.holder = NULL
    buffer_free(&c.found)


cdef int _by_hash(const void* a, const void* b) noexcept nogil:
    cdef const HashEntry* left = <const HashEntry*>a
    cdef const HashEntry* right = <const HashEntry*>b
    return -1 if left.hash < right.hash else (1 if left.hash > right.hash else 0)


cdef int _collect(HashCursor* c, BlockCache cache, const Block* page) noexcept nogil:
    """Find the page's entries of the range: only their keys tell the whole hash."""
    cdef Table* table = c.table
    cdef uint32_t bits = table.location_bits + 4
    cdef const uint8_t* line
    cdef HashEntry found
    cdef TableEntry e
    cdef BlockView view
    cdef uint64_t i
    cdef uint32_t k
    cdef int status
    for i in range(page.size // LINE_SIZE):
        line = block_data(page) + i * LINE_SIZE
        if line[0] > table.line_entries:
            return fault_corrupt(table.path, page.offset, "a line of the index has too many entries")
        for k in range(line[0]):
            found.location = packed_entry(line, table.line_entries, bits, k) >> 4
            if found.location >> OFFSET_BITS >= table.block_count:
                return fault_corrupt(table.path, page.offset, "the index names a block beyond the last")
            status = cache.fetch(table, found.location >> OFFSET_BITS, &view)
            if status < 0:
                return status
            status = entry_at(table, &view, found.location, &e)
            if status == Status.OK:
                found.hash = hash64(e.key, KEY_HASH_SEED)
            counted_release(view.holder)
            if status < 0:
                return status
            if c.first <= found.hash <= c.last and put_bytes(&c.found, &found, sizeof(HashEntry)) < 0:
                return Status.ERR_MEMORY
    return Status.OK


cdef int hash_cursor_next(HashCursor* c, BlockCache cache) noexcept nogil:
    cdef uint64_t fraction
    cdef HashEntry* found
    cdef TableEntry e
    cdef BlockView view
    cdef Block* page
    cdef int status
    if c.holder != NULL:
        counted_release(c.holder)
        c.holder = NULL
    while c.position * sizeof(HashEntry) == c.found.size:
        if c.page > full_product(c.last, c.table.lines, &fraction) // PAGE_LINES:
            return 0
        c.found.size = 0
        c.position = 0
        status = cache.fetch_page(c.table, c.table.block_count + c.page, &page)
        if status < 0:
            return status
        status = _collect(c, cache, page)
        counted_release(&page.counted)
        if status < 0:
            return status
        if c.found.size:
            qsort(c.found.data, c.found.size // sizeof(HashEntry), sizeof(HashEntry), _by_hash)
        c.page += 1
    found = <HashEntry*>c.found.data + c.position
    c.position += 1
    status = cache.fetch(c.table, found.location >> OFFSET_BITS, &view)
    if status < 0:
        return status
    c.holder = view.holder
    status = entry_at(c.table, &view, found.location, &e)
    if status < 0:
        return status
    c.key = e.key
    c.value = e.value
    c.removed = e.removed
    c.key_hash = found.hash
    return 1
