"""The format of table files: blocks, entries, footer. The bytes are described in docs/formats/table.md.

A table is an immutable sorted run of entries: data blocks, an index block, a filter block, a
properties block, a footer.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from everwrite.checksum cimport crc32c
from everwrite.coding cimport Reader, Slice, get_bytes, get_varint, load_u32, slice_of, store_u64
from everwrite.memtable cimport KEY_SIZE_LIMIT, VALUE_SIZE_LIMIT
from everwrite.pins cimport Counted


cdef enum:
    TABLE_VERSION = 1
    FOOTER_SIZE = 64
    FOOTER_CHECKED = 52                # bytes of the footer that its checksum covers
    BLOCK_TRAILER = 9                  # kind u8, raw size u32, checksum u32
    BLOCK_STORED = 0                   # kinds: the body as it is,
    BLOCK_ZSTD = 1                     # or one zstd frame
    BLOCK_TARGET = 16 << 10            # a data block is closed when it reaches this
    RESTART_INTERVAL = 4               # entries from one whole key to the next
    DATA_BLOCK_LIMIT = BLOCK_TARGET + VALUE_SIZE_LIMIT + 2 * KEY_SIZE_LIMIT
    KEY_HASH_SEED = 0                  # of the filter's hashes

cdef extern from *:
    """
    #define EW_TABLE_MAGIC "EWTABLE\\n"
    """
    const char* TABLE_MAGIC "EW_TABLE_MAGIC"


cdef struct BlockHandle:
    uint64_t offset
    uint64_t size                      # with the trailer


cdef struct Block:
    # A block in memory, checked and decompressed. `data` are its entries, then the restart
    # points; both lie behind this header.
    Counted counted
    uint64_t number                    # of the table's file
    uint64_t offset                    # in the file
    Block* bucket_next                 # the last four belong to the block cache
    Block* ring_next
    Block* ring_previous
    bint used
    uint32_t restarts
    size_t entries_size
    size_t size
    uint8_t* data


cdef struct TableEntry:
    size_t shared                      # bytes that the key has in common with the one before it
    Slice suffix
    Slice value
    bint removed


cdef inline uint32_t block_checksum(const uint8_t* body, size_t size, uint64_t offset) noexcept nogil:
    """Over body, kind and raw size (`size` bytes in all), then the offset: a block is valid in its place only."""
    cdef uint8_t place[8]
    store_u64(place, offset)
    return crc32c(crc32c(0, body, size), place, 8)


cdef inline bint decode_entry(Reader* r, TableEntry* e) noexcept nogil:
    """The next entry. False: malformed."""
    cdef uint64_t shared = get_varint(r)
    cdef uint64_t unshared = get_varint(r)
    cdef uint64_t tag = get_varint(r)
    if r.failed or shared > KEY_SIZE_LIMIT or unshared > KEY_SIZE_LIMIT or tag >> 1 > VALUE_SIZE_LIMIT:
        return False
    e.shared = shared
    e.removed = tag & 1
    e.suffix = get_bytes(r, unshared)
    e.value = get_bytes(r, tag >> 1)
    return not r.failed


cdef inline size_t restart_offset(const Block* block, size_t i) noexcept nogil:
    return load_u32(block.data + block.entries_size + 4 * i)


cdef inline bint decode_restart(const Block* block, size_t i, Reader* r, TableEntry* e) noexcept nogil:
    """The entry at a restart point, which has its whole key; `r` is left behind it. False: malformed."""
    cdef size_t offset = restart_offset(block, i)
    if offset > block.entries_size:
        return False
    r.at = block.data + offset
    r.end = block.data + block.entries_size
    r.failed = False
    return decode_entry(r, e) and e.shared == 0


cdef inline bint decode_handle(Slice value, uint64_t limit, BlockHandle* handle) noexcept nogil:
    """An index entry's value: a block that lies whole below `limit`. False: it doesn't."""
    cdef Reader r
    r.at = value.data
    r.end = value.data + value.size
    r.failed = False
    handle.offset = get_varint(&r)
    handle.size = get_varint(&r)
    return (
        not r.failed
        and r.at == r.end
        and handle.size > BLOCK_TRAILER
        and handle.offset <= limit
        and handle.size <= limit - handle.offset
    )
