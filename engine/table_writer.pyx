"""Write side of table files: entries become blocks, blocks become a file."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import zstandard

from everwrite.bloom cimport bloom_add, bloom_size
from everwrite.checksum cimport crc32c
from everwrite.coding cimport (
    Buffer,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    load_u64,
    put_bytes,
    put_slice,
    put_u8,
    put_u32,
    put_u64,
    put_varint,
    slice_of,
)
from everwrite.compression cimport compress
from everwrite.files cimport Files, OpenMode
from everwrite.hashing cimport hash64
from everwrite.key_order cimport common_prefix
from everwrite.status cimport Status, check
from everwrite.table_format cimport (
    BLOCK_STORED,
    BLOCK_TARGET,
    BLOCK_TRAILER,
    BLOCK_ZSTD,
    FOOTER_CHECKED,
    FOOTER_SIZE,
    KEY_HASH_SEED,
    RESTART_INTERVAL,
    TABLE_MAGIC,
    TABLE_VERSION,
    BlockHandle,
    block_checksum,
)

cdef enum:
    HAND_OVER_SIZE = 1 << 20
    ENTRY_OVERHEAD = 30                # three varints at most


cdef int _encode_entry(Buffer* into, size_t shared, Slice key, Slice value, bint removed) noexcept nogil:
    if (
        put_varint(into, shared) < 0
        or put_varint(into, key.size - shared) < 0
        or put_varint(into, (<uint64_t>value.size << 1) | removed) < 0
        or put_bytes(into, key.data + shared, key.size - shared) < 0
        or put_bytes(into, value.data, value.size) < 0
    ):
        return Status.ERR_MEMORY
    return Status.OK


cdef int _encode_restarts(Buffer* into, const Buffer* restarts) noexcept nogil:
    """Close a block of entries: its restart points, then their number."""
    if put_bytes(into, restarts.data, restarts.size) < 0 or put_u32(into, <uint32_t>(restarts.size // 4)) < 0:
        return Status.ERR_MEMORY
    return Status.OK


cdef int _replace(Buffer* buffer, Slice content) noexcept nogil:
    buffer.size = 0
    return put_bytes(buffer, content.data, content.size)


cdef class TableWriter:
    """Writes one table file, which must not exist yet or is replaced."""

    def __init__(self, Files files not None, bytes path not None, *, int level=1):
        self.file = -1
        self.files = files
        self.path = path
        self.compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
        self.file = check(files.open(path, OpenMode.OPEN_FRESH))

    def __cinit__(self, *args, **kwargs):
        self.file = -1
        buffer_init(&self.pending)
        buffer_init(&self.block)
        buffer_init(&self.restarts)
        buffer_init(&self.index)
        buffer_init(&self.index_restarts)
        buffer_init(&self.separator)
        buffer_init(&self.smallest)
        buffer_init(&self.last)
        buffer_init(&self.hashes)

    def __dealloc__(self):
        if self.file >= 0:
            self.files.close(self.file)
        buffer_free(&self.pending)
        buffer_free(&self.block)
        buffer_free(&self.restarts)
        buffer_free(&self.index)
        buffer_free(&self.index_restarts)
        buffer_free(&self.separator)
        buffer_free(&self.smallest)
        buffer_free(&self.last)
        buffer_free(&self.hashes)

    def smallest_key(self):
        """The first key added."""
        return (<const char*>self.smallest.data)[:self.smallest.size] if self.smallest.size else b""

    def largest_key(self):
        """The newest key added."""
        return (<const char*>self.last.data)[:self.last.size] if self.last.size else b""

    cdef int add(self, Slice key, Slice value, bint removed) noexcept nogil:
        cdef size_t shared = 0
        cdef int status
        # A large value gets a block of its own, so that reading its neighbours doesn't read it.
        if self.block.size and self.block.size + key.size + value.size + ENTRY_OVERHEAD > BLOCK_TARGET:
            status = self._close_block()
            if status < 0:
                return status
        if self.block.size == 0:
            status = self._start_block(key)
            if status < 0:
                return status
        elif self.entries_since_restart < RESTART_INTERVAL:
            shared = common_prefix(buffer_slice(&self.last), key, key.size)
        if self.entries_since_restart == RESTART_INTERVAL:
            self.entries_since_restart = 0
        if self.entries_since_restart == 0 and put_u32(&self.restarts, <uint32_t>self.block.size) < 0:
            return Status.ERR_MEMORY
        if (
            _encode_entry(&self.block, shared, key, value, removed) < 0
            or put_u64(&self.hashes, hash64(key, KEY_HASH_SEED)) < 0
            or _replace(&self.last, key) < 0
            or (self.entries == 0 and _replace(&self.smallest, key) < 0)
        ):
            return Status.ERR_MEMORY
        self.entries_since_restart += 1
        self.entries += 1
        self.removed += removed
        return Status.OK

    cdef int _start_block(self, Slice key) noexcept nogil:
        """Choose the block's index key: the shortest that is > the key before and <= the block's first key."""
        cdef Slice separator = slice_of(key.data, 0)
        if self.entries > 0:
            separator.size = common_prefix(buffer_slice(&self.last), key, key.size) + 1
        self.entries_since_restart = 0
        return Status.ERR_MEMORY if _replace(&self.separator, separator) < 0 else Status.OK

    cdef int _close_block(self) noexcept nogil:
        cdef BlockHandle handle
        cdef Buffer frame
        cdef Buffer value
        cdef int status
        if _encode_restarts(&self.block, &self.restarts) < 0:
            return Status.ERR_MEMORY
        buffer_init(&frame)
        buffer_init(&value)
        status = compress(self.compressor, buffer_slice(&self.block), &frame)
        if status == Status.OK:
            # Decompression costs time at each read: it has to save an eighth to be worth it.
            if frame.size <= self.block.size - self.block.size // 8:
                status = self._write_block(buffer_slice(&frame), self.block.size, BLOCK_ZSTD, &handle)
            else:
                status = self._write_stored(buffer_slice(&self.block), &handle)
        if status == Status.OK and (
            put_varint(&value, handle.offset) < 0
            or put_varint(&value, handle.size) < 0
            or put_u32(&self.index_restarts, <uint32_t>self.index.size) < 0
            or _encode_entry(&self.index, 0, buffer_slice(&self.separator), buffer_slice(&value), False) < 0
        ):
            status = Status.ERR_MEMORY
        buffer_free(&frame)
        buffer_free(&value)
        self.block.size = 0
        self.restarts.size = 0
        return status

    cdef int _write_block(self, Slice body, size_t raw_size, int kind, BlockHandle* handle) noexcept nogil:
        cdef uint64_t offset = self.size
        cdef size_t start = self.pending.size
        if (
            put_bytes(&self.pending, body.data, body.size) < 0
            or put_u8(&self.pending, <uint8_t>kind) < 0
            or put_u32(&self.pending, <uint32_t>raw_size) < 0
            or put_u32(&self.pending, block_checksum(self.pending.data + start, body.size + 5, offset)) < 0
        ):
            return Status.ERR_MEMORY
        handle.offset = offset
        handle.size = body.size + BLOCK_TRAILER
        self.size += handle.size
        return self._hand_over() if self.pending.size >= HAND_OVER_SIZE else Status.OK

    cdef int _write_stored(self, Slice raw, BlockHandle* handle) noexcept nogil:
        return self._write_block(raw, raw.size, BLOCK_STORED, handle)

    cdef int _hand_over(self) noexcept nogil:
        cdef int status = self.files.write(
            self.file, self.size - self.pending.size, self.pending.data, self.pending.size
        )
        self.pending.size = 0
        return status

    cdef int _write_filter(self, BlockHandle* handle) noexcept nogil:
        cdef size_t size = bloom_size(self.entries)
        cdef uint8_t* filter = <uint8_t*>calloc(size, 1)
        cdef size_t i
        cdef int status
        if filter == NULL:
            return Status.ERR_MEMORY
        for i in range(self.entries):
            bloom_add(filter, size, load_u64(self.hashes.data + 8 * i))
        status = self._write_stored(slice_of(filter, size), handle)
        free(filter)
        return status

    cdef int _write_properties(self, BlockHandle* handle) noexcept nogil:
        cdef Buffer body
        cdef int status
        buffer_init(&body)
        if (
            put_varint(&body, self.entries) < 0
            or put_varint(&body, self.removed) < 0
            or put_slice(&body, buffer_slice(&self.smallest)) < 0
            or put_slice(&body, buffer_slice(&self.last)) < 0
        ):
            status = Status.ERR_MEMORY
        else:
            status = self._write_stored(buffer_slice(&body), handle)
        buffer_free(&body)
        return status

    cdef int _write_footer(self, const BlockHandle* handles) noexcept nogil:
        cdef size_t start = self.pending.size
        cdef int i
        for i in range(3):
            if put_u64(&self.pending, handles[i].offset) < 0 or put_u64(&self.pending, handles[i].size) < 0:
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
        cdef BlockHandle handles[3]
        cdef int status = self._close_block()
        if status == Status.OK:
            status = _encode_restarts(&self.index, &self.index_restarts)
        if status == Status.OK:
            status = self._write_stored(buffer_slice(&self.index), &handles[0])
        if status == Status.OK:
            status = self._write_filter(&handles[1])
        if status == Status.OK:
            status = self._write_properties(&handles[2])
        if status == Status.OK:
            status = self._write_footer(handles)
        if status == Status.OK:
            status = self.files.sync(self.file)
        if status == Status.OK:
            status = self.files.close(self.file)
            self.file = -1
        return status
