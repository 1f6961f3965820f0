"""Blocks from file to memory: read, check, decompress, cache."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

from everwrite.block_pool cimport block_new, block_pool_new, block_weight
from everwrite.coding cimport load_u32, slice_of
from everwrite.compression cimport Zstd
from everwrite.files cimport Files
from everwrite.pins cimport counted_hold, counted_init, counted_release
from everwrite.prefetch cimport prefetch_line
from everwrite.status cimport Status, fault_corrupt
from everwrite.table_format cimport (
    BLOCK_STORED,
    BLOCK_TARGET,
    BLOCK_TRAILER,
    BLOCK_ZSTD,
    DATA_BLOCK_LIMIT,
    LINE_SIZE,
    RESIDENCE_BITS,
    RESIDENCE_MIXED,
    RESIDENCE_UNKNOWN,
    RESIDENCE_WHOLE,
    SLOT_USED,
    Block,
    BlockView,
    Slot,
    Table,
    TableSlots,
    block_checksum,
    block_data,
    block_view,
    entry_offset,
    mapped_slot,
    slot_use,
    view_slot,
)

cdef enum:
    LOOK_AHEAD = 8                     # slots that the hand asks the processor for
    RESERVE_SHARE = 2                  # open tables push out at most this part of the cache


cdef void _slots_drop(void* memory) noexcept nogil:
    free(memory)


cdef TableSlots* slots_new(size_t count) noexcept nogil:
    cdef TableSlots* slots = <TableSlots*>calloc(1, sizeof(TableSlots) + count * sizeof(Slot))
    if slots == NULL:
        return NULL
    counted_init(&slots.counted, _slots_drop)
    slots.count = count
    slots.slots = <Slot*>(<uint8_t*>slots + sizeof(TableSlots))
    return slots


cdef void slots_close(TableSlots* slots) noexcept nogil:
    # What is cached goes when the hand of the cache has come by twice: it isn't for this thread to touch.
    counted_release(&slots.counted)


cdef int stored_check(
    const char* path, uint64_t offset, const uint8_t* stored, size_t size, size_t limit, size_t* content_size
) noexcept nogil:
    """The checksum comes first: nothing else is believed before."""
    cdef size_t body_size = size - BLOCK_TRAILER
    cdef uint8_t kind = stored[body_size]
    if block_checksum(stored, size - 4, offset) != load_u32(stored + body_size + 5):
        return fault_corrupt(path, offset, "the checksum of a block doesn't match")
    content_size[0] = load_u32(stored + body_size + 1)
    if kind == BLOCK_STORED and content_size[0] != body_size:
        return fault_corrupt(path, offset, "a block's size contradicts its place")
    if kind > BLOCK_ZSTD or content_size[0] > limit:
        return fault_corrupt(path, offset, "a block is of an unknown kind or over the size limit")
    return Status.OK


cdef int entries_check(
    const char* path, uint64_t offset, const uint8_t* content, size_t size, size_t* entries_size, size_t* count
) noexcept nogil:
    cdef size_t found
    if size < 6:
        return fault_corrupt(path, offset, "a block has no room for an entry")
    found = entry_offset(content + size - 2, 0)
    if found == 0 or 2 * found + 2 > size or (found > 1 and size > BLOCK_TARGET):
        return fault_corrupt(path, offset, "a block has no room for its entries")
    entries_size[0] = size - 2 - 2 * found
    count[0] = found
    return Status.OK


cdef class BlockCache:
    """Blocks of table files in memory, at most `limit` bytes of them. `bypass`: none are kept, nor looked for."""

    def __init__(self, Files files not None, size_t limit, *, bint bypass=False):
        self.files = files
        self.limit = limit
        self.bypass = bypass
        self.zstd = Zstd()
        if not bypass:
            self.pool = block_pool_new()
            if self.pool == NULL:
                raise MemoryError

    def __dealloc__(self):
        while self.count > 0:
            self._evict()
        free(self.ring)
        if self.pool != NULL:
            counted_release(&self.pool.counted)

    cdef bint has_room(self) noexcept nogil:
        return not self.bypass and self.bytes + self.reserved + 2 * BLOCK_TARGET <= self.limit

    cdef void reserve(self, size_t bytes) noexcept nogil:
        self.reserved = bytes if bytes < self.limit // RESERVE_SHARE else self.limit // RESERVE_SHARE
        while self.count > 0 and self.bytes + self.reserved > self.limit:
            self._evict()

    cdef int fetch(self, Table* table, size_t number, BlockView* out) noexcept nogil:
        if self.bypass or not view_slot(table, number, out):
            return self.load(table, number, out)
        self.hits += 1
        counted_hold(out.holder)
        return Status.OK

    cdef int load(self, Table* table, size_t number, BlockView* out) noexcept nogil:
        cdef Block* block
        cdef int status
        if table.mapped != NULL and not self.bypass:
            return self._load_mapped(table, number, out)
        status = self._read(table, number, &block)
        if status == Status.OK:
            block_view(block, out)
        return status

    cdef int fetch_page(self, Table* table, size_t number, Block** out) noexcept nogil:
        cdef Block* block = NULL if self.bypass else slot_use(&table.cached[number])
        if block == NULL:
            return self._read(table, number, out)
        self.hits += 1
        counted_hold(&block.counted)
        out[0] = block
        return Status.OK

    cdef int load_page(self, Table* table, size_t number, Block** out) noexcept nogil:
        return self._read(table, number, out)

    cdef int _load_mapped(self, Table* table, size_t number, BlockView* out) noexcept nogil:
        """Check a data block where it lies, once and for all; unpack it when it is compressed. When it was checked
        before, copy it into the cache."""
        cdef uint64_t offset = table.offsets[number]
        cdef size_t size = table.offsets[number + 1] - offset
        cdef const uint8_t* stored = table.mapped + offset
        cdef bint checked = view_slot(table, number, out)
        # Of a large block a copy is of no use, nor where it would be let go of at once.
        cdef bint stays = size > BLOCK_TARGET + BLOCK_TRAILER or block_weight(size) > self.limit // 4
        cdef Block* block
        cdef int status
        if checked and stays:
            counted_hold(out.holder)
            return Status.OK
        if not self.cached_only:
            if not checked:
                # A block lies on two pages or more: the device fetches them at once.
                self.files.will_need(table.mapping, offset, size)
        elif size > 2 * BLOCK_TARGET or not self.is_resident(table, offset, size):
            return Status.WOULD_BLOCK
        if stored[size - BLOCK_TRAILER] == BLOCK_STORED and not checked:
            return self.check_mapped(table, number, out)
        self.misses += not checked
        self.hits += checked
        status = self.unpack(table, number, stored, &block)
        if status == Status.OK:
            block_view(block, out)
        return status

    cdef bint is_resident(self, Table* table, uint64_t offset, size_t size) noexcept nogil:
        """Whether reading a block that hasn't been checked yet waits for no device, as far as can be told.

        Of a table that was written just now the system has every page: a question for each of its blocks would take
        longer than the lookups. What it answered for a whole group stays, as does a block's slot once it is checked.
        """
        cdef uint64_t group = offset >> RESIDENCE_BITS
        cdef uint64_t start
        cdef uint64_t left
        while group <= (offset + size - 1) >> RESIDENCE_BITS:
            if table.residence[group] == RESIDENCE_UNKNOWN:
                start = group << RESIDENCE_BITS
                left = min(table.size - start, <uint64_t>1 << RESIDENCE_BITS)
                table.residence[group] = (
                    RESIDENCE_WHOLE if self.files.is_resident(table.mapping, start, left) else RESIDENCE_MIXED
                )
            if table.residence[group] != RESIDENCE_WHOLE:
                return self.files.is_resident(table.mapping, offset, size)
            group += 1
        return True

    cdef int check_mapped(self, Table* table, size_t number, BlockView* out) noexcept nogil:
        """Where it lies, once and for all."""
        cdef uint64_t offset = table.offsets[number]
        cdef const uint8_t* stored = table.mapped + offset
        cdef size_t content_size = 0
        cdef size_t count = 0
        cdef int status
        self.misses += 1
        status = stored_check(
            table.path, offset, stored, table.offsets[number + 1] - offset, DATA_BLOCK_LIMIT, &content_size
        )
        if status == Status.OK:
            status = entries_check(table.path, offset, stored, content_size, &out.entries_size, &count)
        if status < 0:
            return status
        table.cached[number] = mapped_slot(offset, out.entries_size, count)
        out.content = stored
        out.holder = &table.mapping.counted
        counted_hold(out.holder)
        return Status.OK

    cdef int _read(self, Table* table, size_t number, Block** out) noexcept nogil:
        cdef uint8_t* stored
        cdef Block* block
        cdef uint64_t offset = table.offsets[number]
        cdef size_t size = table.offsets[number + 1] - offset
        cdef int64_t got
        cdef int status
        out[0] = NULL
        # The usual block that the system has in memory is copied faster than a caller could let the GIL go for it.
        if self.cached_only and size > 2 * BLOCK_TARGET:
            return Status.WOULD_BLOCK
        block = block_new(self.pool, offset, size)
        if block == NULL:
            return Status.ERR_MEMORY
        stored = <uint8_t*>block_data(block)
        if self.cached_only:
            got = self.files.read_resident(table.file, offset, stored, size)
        else:
            got = self.files.read(table.file, offset, stored, size)
        self.misses += got != Status.WOULD_BLOCK
        if got < 0:
            status = <int>got
        elif not self.cached_only and <uint64_t>got < size:
            status = fault_corrupt(table.path, offset, "the file ends within a block")
        elif stored[size - BLOCK_TRAILER] != BLOCK_STORED:
            status = self.unpack(table, number, stored, out)
        else:
            # It is used where it was read: what follows its content is of no harm.
            status = self._adopt(table, number, stored, size, block, out)
            if status == Status.OK:
                return status
        counted_release(&block.counted)
        return status

    cdef int _adopt(
        self, Table* table, size_t number, const uint8_t* stored, size_t size, Block* block, Block** out
    ) noexcept nogil:
        """Check a block that isn't compressed; with `stored` in its place."""
        cdef size_t content_size = 0
        cdef int status = stored_check(
            table.path, table.offsets[number], stored, size,
            table.size if number >= table.block_count else DATA_BLOCK_LIMIT, &content_size,
        )
        if status == Status.OK:
            block.size = <uint32_t>content_size
            status = self._admit(table, number, block)
        if status == Status.OK:
            out[0] = block
        return status

    cdef int _admit(self, Table* table, size_t number, Block* block) noexcept nogil:
        """Check the form of a block's content, and put it in the cache."""
        cdef size_t entries_size
        cdef size_t count = 0
        cdef int status
        if number < table.block_count:
            status = entries_check(table.path, block.offset, block_data(block), block.size, &entries_size, &count)
            if status < 0:
                return status
            block.count = <uint32_t>count
        elif block.size == 0 or block.size % LINE_SIZE != 0:
            return fault_corrupt(table.path, block.offset, "a page of the index is no whole number of lines")
        # One huge value must not push everything else out.
        if not self.bypass and block_weight(block.size) <= self.limit // 4:
            self._insert(table, number, block)
        return Status.OK

    cdef int unpack(self, Table* table, size_t number, const uint8_t* stored, Block** out) noexcept nogil:
        cdef uint64_t offset = table.offsets[number]
        cdef size_t size = table.offsets[number + 1] - offset
        cdef size_t content_size = 0
        cdef uint8_t* content
        cdef Block* block
        cdef bint as_it_is
        cdef int status = stored_check(
            table.path, offset, stored, size, table.size if number >= table.block_count else DATA_BLOCK_LIMIT,
            &content_size,
        )
        if status < 0:
            return status
        block = block_new(self.pool, offset, content_size)
        if block == NULL:
            return Status.ERR_MEMORY
        content = <uint8_t*>block_data(block)
        as_it_is = stored[size - BLOCK_TRAILER] == BLOCK_STORED
        if as_it_is:
            memcpy(content, stored, content_size)
        else:
            status = self.zstd.decompress(slice_of(stored, size - BLOCK_TRAILER), content, content_size)
            if status == Status.ERR_DECODE:
                status = fault_corrupt(table.path, offset, "a block can't be decompressed to its size")
        if status == Status.OK:
            status = self._admit(table, number, block)
        if status < 0:
            counted_release(&block.counted)
            return status
        if as_it_is and table.mapped != NULL and number < table.block_count:
            block.leaves = mapped_slot(offset, block.size - 2 - 2 * <size_t>block.count, block.count)
        out[0] = block
        return Status.OK

    cdef void _insert(self, Table* table, size_t number, Block* block) noexcept nogil:
        cdef size_t weight = block_weight(block.size)
        if self.count == self.capacity and self._grow() < 0:
            return
        while self.count > 0 and self.bytes + self.reserved + weight > self.limit:
            self._evict()
        if self.bytes + self.reserved + weight > self.limit:
            return
        self.ring[self.count].block = block
        self.ring[self.count].slot = &table.cached[number]
        self.count += 1
        self.bytes += weight
        # A page of the index serves twenty times as many keys as a data block: it gets a round before it is used.
        table.cached[number] = <Slot><uintptr_t>block | (SLOT_USED if number >= table.block_count else 0)
        block.owner = table.slots
        counted_hold(&table.slots.counted)
        counted_hold(&block.counted)

    cdef void _evict(self) noexcept nogil:
        """Let go of the next block that hasn't been used since the hand last passed it."""
        cdef Resident* at
        cdef Block* block
        while True:
            if self.hand >= self.count:
                self.hand = 0
            at = &self.ring[self.hand]
            if self.hand + LOOK_AHEAD < self.count:
                prefetch_line(at[LOOK_AHEAD].slot)
            if not at.slot[0] & SLOT_USED:
                break
            at.slot[0] &= ~<Slot>SLOT_USED
            self.hand += 1
        block = at.block
        at.slot[0] = block.leaves
        # The last one takes its place, and is passed by once.
        self.count -= 1
        at[0] = self.ring[self.count]
        self.hand += 1
        if self.hand < self.count:
            prefetch_line(self.ring[self.hand].block)
        self.bytes -= block_weight(block.size)
        counted_release(&block.owner.counted)
        counted_release(&block.counted)

    cdef int _grow(self) noexcept nogil:
        cdef size_t wanted = self.capacity * 2 if self.capacity else 64
        cdef Resident* ring = <Resident*>realloc(self.ring, wanted * sizeof(Resident))
        if ring == NULL:
            return Status.ERR_MEMORY
        self.ring = ring
        self.capacity = wanted
        return Status.OK
