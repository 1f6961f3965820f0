"""Blocks from file to memory: read, check, decompress, cache."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import zstandard

from everwrite.coding cimport load_u32, slice_of
from everwrite.compression cimport decompress
from everwrite.files cimport Files
from everwrite.pins cimport counted_hold, counted_init, counted_release
from everwrite.status cimport Status, fault_corrupt
from everwrite.table_format cimport (
    BLOCK_STORED,
    BLOCK_TRAILER,
    BLOCK_ZSTD,
    DATA_BLOCK_LIMIT,
    Block,
    BlockHandle,
    block_checksum,
)


cdef void _block_drop(void* block) noexcept nogil:
    free(block)


cdef Block* _block_new(uint64_t number, uint64_t offset, size_t size) noexcept nogil:
    cdef Block* block = <Block*>malloc(sizeof(Block) + size)
    if block == NULL:
        return NULL
    counted_init(&block.counted, _block_drop)
    block.number = number
    block.offset = offset
    block.size = size
    block.entries_size = size
    block.restarts = 0
    block.data = <uint8_t*>block + sizeof(Block)
    return block


cdef int _unpack(
    object decompressor, const uint8_t* stored, const char* path, uint64_t number, BlockHandle handle,
    size_t raw_limit, Block** out
) noexcept nogil:
    """From checked or unchecked stored bytes to a block. The checksum comes first: nothing else is believed before."""
    cdef size_t body_size = handle.size - BLOCK_TRAILER
    cdef uint8_t kind = stored[body_size]
    cdef uint32_t raw_size = load_u32(stored + body_size + 1)
    cdef int status
    if block_checksum(stored, handle.size - 4, handle.offset) != load_u32(stored + body_size + 5):
        return fault_corrupt(path, handle.offset, "the checksum of a block doesn't match")
    if kind == BLOCK_STORED and raw_size != body_size:
        return fault_corrupt(path, handle.offset, "a block's size contradicts its handle")
    if kind > BLOCK_ZSTD or raw_size > raw_limit:
        return fault_corrupt(path, handle.offset, "a block is of an unknown kind or over the size limit")
    out[0] = _block_new(number, handle.offset, raw_size)
    if out[0] == NULL:
        return Status.ERR_MEMORY
    if kind == BLOCK_STORED:
        memcpy(out[0].data, stored, raw_size)
        return Status.OK
    status = decompress(decompressor, slice_of(stored, body_size), out[0].data, raw_size)
    if status < 0:
        counted_release(&out[0].counted)
        out[0] = NULL
        if status == Status.ERR_DECODE:
            return fault_corrupt(path, handle.offset, "a block can't be decompressed to its size")
    return status


cdef int block_read(
    Files files, object decompressor, int file, const char* path, uint64_t number, BlockHandle handle,
    size_t raw_limit, Block** out
) noexcept nogil:
    cdef uint8_t* stored = <uint8_t*>malloc(handle.size)
    cdef int64_t got
    cdef int status
    out[0] = NULL
    if stored == NULL:
        return Status.ERR_MEMORY
    got = files.read(file, handle.offset, stored, handle.size)
    if got < 0:
        status = <int>got
    elif <uint64_t>got < handle.size:
        status = fault_corrupt(path, handle.offset, "the file ends within a block")
    else:
        status = _unpack(decompressor, stored, path, number, handle, raw_limit, out)
    free(stored)
    return status


cdef int block_parse(Block* block, const char* path) noexcept nogil:
    cdef uint32_t restarts
    if block.size < 8:
        return fault_corrupt(path, block.offset, "a block has no room for its restart points")
    restarts = load_u32(block.data + block.size - 4)
    if restarts == 0 or restarts > (block.size - 4) // 4:
        return fault_corrupt(path, block.offset, "a block has no room for its restart points")
    block.restarts = restarts
    block.entries_size = block.size - 4 - 4 * <size_t>restarts
    return Status.OK


cdef inline uint64_t _place_hash(uint64_t number, uint64_t offset) noexcept nogil:
    cdef uint64_t h = (number * <uint64_t>0x9e3779b97f4a7c15) ^ (offset * <uint64_t>0xc2b2ae3d27d4eb4f)
    return h ^ (h >> 29)


cdef inline size_t _weight(const Block* block) noexcept nogil:
    return sizeof(Block) + block.size


cdef class BlockCache:
    """Blocks of table files in memory, at most `limit` bytes of them."""

    def __init__(self, Files files not None, size_t limit):
        self.files = files
        self.limit = limit
        self.decompressor = zstandard.ZstdDecompressor()
        self.bucket_count = 64
        self.buckets = <Block**>calloc(self.bucket_count, sizeof(void*))
        if self.buckets == NULL:
            raise MemoryError

    def __dealloc__(self):
        while self.hand != NULL:
            self._evict()
        free(self.buckets)

    cdef int fetch(self, int file, const char* path, uint64_t number, BlockHandle handle, Block** out) noexcept nogil:
        cdef Block* block = self.buckets[_place_hash(number, handle.offset) & (self.bucket_count - 1)]
        cdef int status
        while block != NULL:
            if block.number == number and block.offset == handle.offset:
                block.used = True
                self.hits += 1
                counted_hold(&block.counted)
                out[0] = block
                return Status.OK
            block = block.bucket_next
        if self.cached_only:
            return Status.WOULD_BLOCK
        self.misses += 1
        status = block_read(
            self.files, self.decompressor, file, path, number, handle, DATA_BLOCK_LIMIT, &block
        )
        if status < 0:
            return status
        status = block_parse(block, path)
        if status < 0:
            counted_release(&block.counted)
            return status
        # One huge value must not push everything else out.
        if _weight(block) <= self.limit // 4:
            self._insert(block)
        out[0] = block
        return Status.OK

    cdef void _insert(self, Block* block) noexcept nogil:
        cdef Block** bucket
        if self.count >= self.bucket_count and self._grow() < 0:
            return
        while self.bytes + _weight(block) > self.limit:
            self._evict()
        bucket = &self.buckets[_place_hash(block.number, block.offset) & (self.bucket_count - 1)]
        block.bucket_next = bucket[0]
        bucket[0] = block
        block.used = False
        if self.hand == NULL:
            block.ring_next = block
            block.ring_previous = block
            self.hand = block
        else:
            block.ring_next = self.hand
            block.ring_previous = self.hand.ring_previous
            block.ring_previous.ring_next = block
            self.hand.ring_previous = block
        self.count += 1
        self.bytes += _weight(block)
        counted_hold(&block.counted)

    cdef void _evict(self) noexcept nogil:
        """Let go of the next block that hasn't been used since the hand last passed it."""
        cdef Block* block = self.hand
        cdef Block** link
        while block.used:
            block.used = False
            block = block.ring_next
        link = &self.buckets[_place_hash(block.number, block.offset) & (self.bucket_count - 1)]
        while link[0] != block:
            link = &link[0].bucket_next
        link[0] = block.bucket_next
        self.hand = block.ring_next if block.ring_next != block else NULL
        block.ring_previous.ring_next = block.ring_next
        block.ring_next.ring_previous = block.ring_previous
        self.count -= 1
        self.bytes -= _weight(block)
        counted_release(&block.counted)

    cdef int _grow(self) noexcept nogil:
        cdef size_t wanted = self.bucket_count * 2
        cdef Block** buckets = <Block**>calloc(wanted, sizeof(void*))
        cdef Block* block
        cdef Block* following
        cdef size_t i
        cdef size_t at
        if buckets == NULL:
            return Status.ERR_MEMORY
        for i in range(self.bucket_count):
            block = self.buckets[i]
            while block != NULL:
                following = block.bucket_next
                at = _place_hash(block.number, block.offset) & (wanted - 1)
                block.bucket_next = buckets[at]
                buckets[at] = block
                block = following
        free(self.buckets)
        self.buckets = buckets
        self.bucket_count = wanted
        return Status.OK
