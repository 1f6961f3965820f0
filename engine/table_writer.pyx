"""Write side of table files: entries become blocks, blocks become a file."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from everwrite.checksum cimport crc32c
from everwrite.coding cimport (
    Buffer,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    put_bytes,
    put_slice,
    put_u8,
    put_u16,
    put_u32,
    put_u64,
    put_varint,
    slice_of,
)
from everwrite.compression cimport Zstd
from everwrite.files cimport Files, OpenMode
from everwrite.hashing cimport hash64
from everwrite.index_writer cimport IndexWriter
from everwrite.key_order cimport common_prefix
from everwrite.status cimport Status, check
from everwrite.table_format cimport (
    BLOCK_STORED,
    BLOCK_TARGET,
    BLOCK_TRAILER,
    BLOCK_ZSTD,
    ENTRY_HEADER_MAX,
    FOOTER_CHECKED,
    FOOTER_SIZE,
    KEY_HASH_SEED,
    OFFSET_BITS,
    TABLE_MAGIC,
    TABLE_VERSION,
    block_checksum,
)

cdef enum:
    HAND_OVER_SIZE = 1 << 20
    # What is written is sent to the device in steps: else the last sync would make everybody wait who uses it.
    SYNC_STEP = 16 << 20
    ALL_TRIED = 8
    SOME_TRIED = 16


cdef int _replace(Buffer* buffer, Slice content) noexcept nogil:
    buffer.size = 0
    return put_bytes(buffer, content.data, content.size)


cdef class TableWriter:
    """Writes one table file, which must not exist yet or is replaced.

    `oldest_flush`, `newest_flush`: the numbers of the flushes whose entries it will hold. `level`: zstd's. What the
    index needs to know of more than `index_entries` entries is kept in a scratch file beside the table's.
    """

    def __init__(
        self, Files files not None, bytes path not None, uint64_t oldest_flush, uint64_t newest_flush, *, int level=1,
        size_t index_entries=1 << 20
    ):
        self.files = files
        self.path = path
        self.oldest_flush = oldest_flush
        self.newest_flush = newest_flush
        self.zstd = Zstd(level=level)
        self.index = IndexWriter(files, path + b".tmp", index_entries)
        self.file = check(files.open(path, OpenMode.OPEN_FRESH))

    def __cinit__(self, *args, **kwargs):
        self.file = -1
        buffer_init(&self.pending)
        buffer_init(&self.block)
        buffer_init(&self.offsets)
        buffer_init(&self.frame)
        buffer_init(&self.directory)
        buffer_init(&self.smallest)
        buffer_init(&self.largest)

    def __dealloc__(self):
        if self.file >= 0:
            self.files.close(self.file)
        buffer_free(&self.pending)
        buffer_free(&self.block)
        buffer_free(&self.offsets)
        buffer_free(&self.frame)
        buffer_free(&self.directory)
        buffer_free(&self.smallest)
        buffer_free(&self.largest)

    def smallest_key(self):
        """The first key added."""
        return (<const char*>self.smallest.data)[:self.smallest.size] if self.smallest.size else b""

    def largest_key(self):
        """The last key of a finished table."""
        return (<const char*>self.largest.data)[:self.largest.size] if self.largest.size else b""

    cdef int add(self, Slice key, Slice value, bint removed) noexcept nogil:
        cdef size_t at
        cdef int status
        # A large value gets a block of its own, so that reading its neighbours doesn't read it.
        if self.block.size and (
            self.block.size + key.size + value.size + ENTRY_HEADER_MAX + self.offsets.size + 4 > BLOCK_TARGET
        ):
            status = self._close_block()
            if status < 0:
                return status
        if self.block.size == 0:
            status = self._start_block(key)
            if status < 0:
                return status
        at = self.block.size
        if (
            put_u16(&self.offsets, <uint16_t>at) < 0
            or put_varint(&self.block, key.size) < 0
            or put_varint(&self.block, (<uint64_t>value.size << 1) | removed) < 0
        ):
            return Status.ERR_MEMORY
        self.last_key_at = self.block.size
        self.last_key_size = key.size
        if (
            put_bytes(&self.block, key.data, key.size) < 0
            or put_bytes(&self.block, value.data, value.size) < 0
        ):
            return Status.ERR_MEMORY
        self.entries += 1
        self.removed += removed
        return self.index.add(hash64(key, KEY_HASH_SEED), (self.blocks << OFFSET_BITS) | at)

    cdef int _start_block(self, Slice key) noexcept nogil:
        """Choose the block's index key: the shortest that is > the key before and <= the block's first key."""
        cdef Slice separator = slice_of(key.data, 0)
        if self.blocks > 0:
            separator.size = common_prefix(buffer_slice(&self.largest), key, key.size) + 1
        elif _replace(&self.smallest, key) < 0:
            return Status.ERR_MEMORY
        # The directory wants the block's size before its key, which is known only when it is closed.
        return Status.ERR_MEMORY if _replace(&self.frame, separator) < 0 else Status.OK

    cdef int _close_block(self) noexcept nogil:
        cdef Slice separator
        cdef uint64_t size = 0
        cdef size_t separator_size = self.frame.size
        cdef int status
        if (
            _replace(&self.largest, slice_of(self.block.data + self.last_key_at, self.last_key_size)) < 0
            or put_bytes(&self.block, self.offsets.data, self.offsets.size) < 0
            or put_u16(&self.block, <uint16_t>(self.offsets.size // 2)) < 0
        ):
            return Status.ERR_MEMORY
        # Where nothing shrinks, trying costs more than all the rest: then only some blocks are tried.
        if self.incompressible < ALL_TRIED or self.blocks % SOME_TRIED == 0:
            status = self.zstd.compress(buffer_slice(&self.block), &self.frame)
            if status < 0:
                return status
            self.incompressible += 1
        separator = slice_of(self.frame.data, separator_size)
        # What is stored as it is can be read where it lies, without a copy of it in the cache: compression has to save
        # a quarter to be worth more.
        if separator_size < self.frame.size <= separator_size + self.block.size - self.block.size // 4:
            self.incompressible = 0
            status = self._write_block(
                slice_of(self.frame.data + separator_size, self.frame.size - separator_size), self.block.size,
                BLOCK_ZSTD, &size,
            )
        else:
            status = self._write_stored(buffer_slice(&self.block), &size)
        if status == Status.OK and (
            put_varint(&self.directory, size) < 0 or put_slice(&self.directory, separator) < 0
        ):
            status = Status.ERR_MEMORY
        self.blocks += 1
        self.block.size = 0
        self.offsets.size = 0
        return status

    cdef int _write_block(self, Slice body, size_t content_size, int kind, uint64_t* size) noexcept nogil:
        cdef size_t start = self.pending.size
        if (
            put_bytes(&self.pending, body.data, body.size) < 0
            or put_u8(&self.pending, <uint8_t>kind) < 0
            or put_u32(&self.pending, <uint32_t>content_size) < 0
            or put_u32(&self.pending, block_checksum(self.pending.data + start, body.size + 5, self.size)) < 0
        ):
            return Status.ERR_MEMORY
        size[0] = body.size + BLOCK_TRAILER
        self.size += size[0]
        return self._hand_over() if self.pending.size >= HAND_OVER_SIZE else Status.OK

    cdef int _write_stored(self, Slice content, uint64_t* size) noexcept nogil:
        return self._write_block(content, content.size, BLOCK_STORED, size)

    cdef int _hand_over(self) noexcept nogil:
        cdef int status = self.files.write(
            self.file, self.size - self.pending.size, self.pending.data, self.pending.size
        )
        self.unsynced += self.pending.size
        self.pending.size = 0
        if status == Status.OK and self.unsynced >= SYNC_STEP:
            self.unsynced = 0
            status = self.files.sync(self.file)
        return status

    cdef int _write_index(self) noexcept nogil:
        cdef uint64_t size = 0
        cdef uint64_t _i
        cdef int status = self.index.arrange(self.blocks)
        if status < 0:
            return status
        for _i in range(self.index.page_count):
            status = self.index.make_page()
            if status == Status.OK:
                status = self._write_stored(buffer_slice(&self.index.page), &size)
            if status < 0:
                return status
            if put_varint(&self.directory, size) < 0:
                return Status.ERR_MEMORY
        return Status.OK

    cdef int _write_properties(self, uint64_t* size) noexcept nogil:
        cdef Buffer body
        cdef int status
        buffer_init(&body)
        if (
            put_varint(&body, self.entries) < 0
            or put_varint(&body, self.removed) < 0
            or put_varint(&body, self.blocks) < 0
            or put_varint(&body, self.oldest_flush) < 0
            or put_varint(&body, self.newest_flush) < 0
            or put_slice(&body, buffer_slice(&self.smallest)) < 0
            or put_slice(&body, buffer_slice(&self.largest)) < 0
        ):
            status = Status.ERR_MEMORY
        else:
            status = self._write_stored(buffer_slice(&body), size)
        buffer_free(&body)
        return status

    cdef int _write_footer(self, uint64_t directory_size, uint64_t properties_size) noexcept nogil:
        cdef size_t start = self.pending.size
        cdef int _i
        if put_u64(&self.pending, directory_size) < 0 or put_u64(&self.pending, properties_size) < 0:
            return Status.ERR_MEMORY
        for _i in range(4):
            if put_u64(&self.pending, 0) < 0:
                return Status.ERR_MEMORY
        if (
            put_u32(&self.pending, TABLE_VERSION) < 0
            or put_u32(&self.pending, crc32c(0, self.pending.data + start, FOOTER_CHECKED)) < 0
            or put_bytes(&self.pending, TABLE_MAGIC, 8) < 0
        ):
            return Status.ERR_MEMORY
        self.size += FOOTER_SIZE
        return self._hand_over()

    cdef int finish(self) noexcept nogil:
        cdef uint64_t directory_size = 0
        cdef uint64_t properties_size = 0
        cdef int status = self._close_block()
        if status == Status.OK:
            status = self._write_index()
        if status == Status.OK:
            status = self._write_stored(buffer_slice(&self.directory), &directory_size)
        if status == Status.OK:
            status = self._write_properties(&properties_size)
        if status == Status.OK:
            status = self._write_footer(directory_size, properties_size)
        if status == Status.OK:
            status = self.files.sync(self.file)
        if status == Status.OK:
            status = self.files.close(self.file)
            self.file = -1
        return status
