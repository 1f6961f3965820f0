"""Reading a table file to the end whatever is damaged in it: what is wrong, and what can still be read."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

import os

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport (
    Buffer, Slice, buffer_free, buffer_init, buffer_slice, put_bytes, slice_compare, slice_equal,
)
from everwrite.files cimport Files
from everwrite.hashing cimport hash64
from everwrite.index_writer cimport IndexWriter
from everwrite.pins cimport counted_release
from everwrite.status cimport Status, check, last_fault
from everwrite.table_format cimport (
    KEY_HASH_SEED,
    OFFSET_BITS,
    Block,
    BlockView,
    Table,
    TableEntry,
    block_data,
    decode_entry,
    entry_offset,
    view_count,
)
from everwrite.table_reader cimport table_close, table_open, table_separator

from everwrite.errors import CorruptionError
from everwrite.manifest import TableDamage


cdef inline bytes _bytes(Slice s):
    return (<const char*>s.data)[:s.size] if s.size else b""


cdef class _Reading:
    """One table file, opened for reading it all."""

    cdef Files files
    cdef BlockCache cache
    cdef Table* table
    cdef Buffer last                   # the key before
    cdef IndexWriter index             # what the hash index must be
    cdef uint64_t entries
    cdef uint64_t removed
    cdef str path

    def __cinit__(self, *args):
        buffer_init(&self.last)

    def __init__(self, Files files not None, path, uint64_t number, uint64_t size):
        cdef bytes raw = os.fsencode(path)
        self.path = os.fsdecode(path)
        self.files = files
        self.cache = BlockCache(files, 0, bypass=True)
        # The file may lie where nothing can be written: all is kept in memory.
        self.index = IndexWriter(files, raw, <size_t>1 << 48)
        # Not through a mapping: what the device refuses is to be an error here.
        check(table_open(files, raw, number, size, False, &self.table))

    def __dealloc__(self):
        if self.table != NULL:
            table_close(self.files, self.table)
        buffer_free(&self.last)

    cdef object _next_key(self, size_t number):
        return _bytes(table_separator(self.table, number + 1)) if number + 1 < self.table.block_count else None

    cdef object damage(self, uint64_t offset, str reason, object first, object following):
        return TableDamage(self.path, offset, reason, first, following)

    cdef object block_damage(self, size_t number, str reason):
        return self.damage(
            self.table.offsets[number], reason, _bytes(table_separator(self.table, number)), self._next_key(number)
        )

    cdef str fault(self, int status):
        """The reason of a failed read; other failures than damage are raised."""
        if status != Status.ERR_CORRUPT:
            check(status)
        return (<bytes>last_fault().reason).decode("utf-8", "replace")

    cdef str entry(self, size_t number, const BlockView* block, size_t i, TableEntry* e):
        """Decode entry `i` of a block and hold it against what must be true of it. What is wrong, or None."""
        cdef Slice separator
        cdef const uint8_t* offsets = block.content + block.entries_size
        cdef size_t begin = entry_offset(offsets, i)
        cdef size_t end = block.entries_size
        if i + 1 < view_count(self.table, number, block):
            end = entry_offset(offsets, i + 1)
        if (
            (i == 0 and begin != 0)
            or end <= begin
            or not decode_entry(block.content + begin, block.content + end, e)
            or e.value.data + e.value.size != block.content + end
        ):
            return "a malformed entry"
        if self.entries > 0 and slice_compare(e.key, buffer_slice(&self.last)) <= 0:
            return "the keys aren't in order"
        if i == 0 and slice_compare(e.key, table_separator(self.table, number)) < 0:
            return "a key lies before the block's index key"
        if number + 1 < self.table.block_count:
            separator = table_separator(self.table, number + 1)
            if slice_compare(e.key, separator) >= 0:
                return "a key lies behind the next block's index key"
        return None

    cdef int note(self, size_t number, const BlockView* block, size_t i, const TableEntry* e) except -1:
        cdef uint64_t begin = entry_offset(block.content + block.entries_size, i)
        self.last.size = 0
        if put_bytes(&self.last, e.key.data, e.key.size) < 0:
            raise MemoryError
        check(self.index.add(hash64(e.key, KEY_HASH_SEED), (<uint64_t>number << OFFSET_BITS) | begin))
        self.entries += 1
        self.removed += e.removed
        return 0

    cdef object check_block(self, size_t number):
        """None, or what is wrong with a data block."""
        cdef BlockView block
        cdef TableEntry e
        cdef size_t i
        cdef int status
        cdef str wrong
        with nogil:
            status = self.cache.load(self.table, number, &block)
        if status < 0:
            return self.block_damage(number, self.fault(status))
        try:
            for i in range(view_count(self.table, number, &block)):
                wrong = self.entry(number, &block, i, &e)
                if wrong is not None:
                    return self.block_damage(number, wrong)
                if number == 0 and i == 0 and not slice_equal(e.key, self.table.smallest):
                    return self.block_damage(number, "the first key isn't the one that the properties name")
                self.note(number, &block, i, &e)
        finally:
            counted_release(block.holder)
        return None

    cdef object check_page(self, size_t number, bint compare):
        cdef Block* page
        cdef int status
        cdef size_t place = self.table.block_count + number
        if compare:
            with nogil:
                status = self.index.make_page()
            check(status)
        with nogil:
            status = self.cache.load_page(self.table, place, &page)
        if status < 0:
            return self.damage(self.table.offsets[place], self.fault(status), None, None)
        try:
            if not compare:
                return None
            if page.size != self.index.page.size or memcmp(block_data(page), self.index.page.data, page.size) != 0:
                return self.damage(
                    self.table.offsets[place], "a page of the hash index doesn't match the entries", None, None
                )
        finally:
            counted_release(&page.counted)
        return None

    def report(self):
        """All damage, in the order of the file."""
        cdef size_t i
        cdef int status
        found = []
        for i in range(self.table.block_count):
            damage = self.check_block(i)
            if damage is not None:
                found.append(damage)
        whole = not found
        if whole:
            if self.entries != self.table.entries or self.removed != self.table.removed:
                found.append(
                    self.damage(self.table.properties.offset, "the properties count other entries", None, None)
                )
            if not slice_equal(buffer_slice(&self.last), self.table.largest):
                found.append(
                    self.damage(self.table.properties.offset, "the properties name another last key", None, None)
                )
            whole = not found
        if whole:
            with nogil:
                status = self.index.arrange(self.table.block_count)
            check(status)
        for i in range(self.table.page_count):
            damage = self.check_page(i, whole)
            if damage is not None:
                found.append(damage)
        return found

    def flushes(self):
        """The numbers of the oldest and the newest flush whose entries the file holds."""
        return self.table.oldest_flush, self.table.newest_flush

    def readable(self):
        """Yield the entries of all blocks that aren't damaged, up to where one is malformed."""
        cdef BlockView block
        cdef TableEntry e
        cdef size_t number
        cdef size_t i
        cdef int status
        for number in range(self.table.block_count):
            with nogil:
                status = self.cache.load(self.table, number, &block)
            if status < 0:
                self.fault(status)
                continue
            found = []
            try:
                for i in range(view_count(self.table, number, &block)):
                    if self.entry(number, &block, i, &e) is not None:
                        break
                    self.note(number, &block, i, &e)
                    found.append((_bytes(e.key), None if e.removed else _bytes(e.value)))
            finally:
                counted_release(block.holder)
            yield from found


def verify_table(Files files not None, path, uint64_t number, uint64_t size):
    """Read the whole table file `path` and return what is wrong with it, a list of `TableDamage`; [] when nothing is.

    Every checksum, the order of the keys, what the properties say, and every entry's place in the hash index.
    `size`: what the file must have. Raises `FormatError` for a newer format, and `StorageError` when reading fails.
    """
    try:
        return _Reading(files, path, number, size).report()
    except CorruptionError as damage:
        return [TableDamage(os.fsdecode(path), damage.offset, str(damage), None, None)]


def readable_entries(Files files not None, path, uint64_t number, uint64_t size):
    """Yield (key, value) for all entries of a table file that can be read, in key order; the value of a remove marker
    is None.

    Raises `CorruptionError` when its footer, properties or directory is damaged, so that there is no telling where the
    blocks are, and `FormatError` and `StorageError` as `verify_table` does.
    """
    yield from _Reading(files, path, number, size).readable()


def table_flushes(Files files not None, path, uint64_t number, uint64_t size):
    """The numbers of the oldest and newest flush in a table file: of two tables of a map, the one with the greater
    numbers is the newer. Raises as `readable_entries` does."""
    return _Reading(files, path, number, size).flushes()
