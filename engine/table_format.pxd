"""The format of table files: blocks, entries, hash index, footer. The bytes are described in docs/formats/table.md.

A table is an immutable sorted run of entries: data blocks, pages of the hash index, a directory of
both, a properties block, a footer.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t

from everwrite.checksum cimport crc32c
from everwrite.coding cimport Slice, store_u64
from everwrite.file_mapping cimport FileMapping
from everwrite.memtable cimport KEY_SIZE_LIMIT, VALUE_SIZE_LIMIT
from everwrite.pins cimport Counted


cdef enum:
    TABLE_VERSION = 2
    FOOTER_SIZE = 64
    FOOTER_CHECKED = 52                # bytes of the footer that its checksum covers
    BLOCK_TRAILER = 9                  # kind u8, content size u32, checksum u32
    BLOCK_STORED = 0                   # kinds: the body as it is,
    BLOCK_ZSTD = 1                     # or one zstd frame
    BLOCK_TARGET = 4080                # a data block is closed before its content exceeds this
    OFFSET_BITS = 12                   # of where an entry begins in such a block
    DATA_BLOCK_LIMIT = BLOCK_TARGET + VALUE_SIZE_LIMIT + 2 * KEY_SIZE_LIMIT
    ENTRY_HEADER_MAX = 20              # two varints
    KEY_HASH_SEED = 0                  # of the hashes that order the index
    LINE_SIZE = 64                     # of the index: a processor's cache line
    LINE_HEADER = 2                    # count, spill
    PAGE_LINES = 60                    # home lines of a page
    FINGERPRINT_BITS = 12
    LINE_ENTRIES_MAX = 31
    # What a line's spill says of the entries whose home is this line or an earlier one:
    SPILL_NONE = 0                     # none of them lies in a later line,
    SPILL_ALL = 1                      # some of earlier lines do, so all of this line's,
    SPILL_FROM = 2                     # those do whose fingerprint's upper 8 bits are at least the spill less this

cdef extern from *:
    """
    #ifndef EW_TABLE_FORMAT
    #define EW_TABLE_FORMAT
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #ifdef __SSE2__
      #include <emmintrin.h>
    #endif
    #define EW_TABLE_MAGIC "EWTABLE\\n"

    static inline unsigned ew_lowest_bit(unsigned bits) { return (unsigned)__builtin_ctz(bits); }

    /* The upper and lower half of a 128-bit product. */
    static inline uint64_t ew_product(uint64_t a, uint64_t b, uint64_t* low) {
    #ifdef __SIZEOF_INT128__
        unsigned __int128 product = (unsigned __int128)a * b;
        *low = (uint64_t)product;
        return (uint64_t)(product >> 64);
    #else
        uint64_t al = a & 0xffffffffu, ah = a >> 32, bl = b & 0xffffffffu, bh = b >> 32;
        uint64_t ll = al * bl, lh = al * bh, hl = ah * bl, hh = ah * bh;
        uint64_t middle = (ll >> 32) + (lh & 0xffffffffu) + (hl & 0xffffffffu);
        *low = (middle << 32) | (ll & 0xffffffffu);
        return hh + (lh >> 32) + (hl >> 32) + (middle >> 32);
    #endif
    }

    /* Bit k: byte k of the line's fingerprints is `byte`. Reads 32 bytes. */
    static inline unsigned ew_matches(const uint8_t* fingerprints, uint8_t byte) {
    #ifdef __SSE2__
        __m128i wanted = _mm_set1_epi8((char)byte);
        unsigned low = (unsigned)_mm_movemask_epi8(
            _mm_cmpeq_epi8(wanted, _mm_loadu_si128((const __m128i*)fingerprints)));
        unsigned high = (unsigned)_mm_movemask_epi8(
            _mm_cmpeq_epi8(wanted, _mm_loadu_si128((const __m128i*)(fingerprints + 16))));
        return low | high << 16;
    #else
        unsigned found = 0;
        for (int i = 0; i < 32; i++) found |= (unsigned)(fingerprints[i] == byte) << i;
        return found;
    #endif
    }

    static inline uint64_t ew_word(const uint8_t* at) {
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        uint64_t word;
        memcpy(&word, at, 8);
        return word;
    #else
        uint64_t word = 0;
        for (int i = 7; i >= 0; i--) word = word << 8 | at[i];
        return word;
    #endif
    }

    /* A varint of at most 5 bytes. NULL: there is none before the end. */
    static inline const uint8_t* ew_varint(const uint8_t* at, const uint8_t* end, uint64_t* value) {
        uint64_t sum = 0;
        for (int shift = 0; shift < 35 && at < end; shift += 7) {
            uint8_t byte = *at++;
            sum |= (uint64_t)(byte & 0x7f) << shift;
            if (byte < 0x80) { *value = sum; return at; }
        }
        return NULL;
    }

    /* The entry at `at`: 0 when malformed. */
    static inline int ew_entry(
        const uint8_t* at, const uint8_t* end, const uint8_t** key, size_t* key_size,
        const uint8_t** value, size_t* value_size, int* removed)
    {
        uint64_t size, tag;
        if (end - at >= 4 && at[0] < 0x80 && at[1] < 0x80) {
            size = at[0];
            tag = at[1];
            at += 2;
        } else if (end - at >= 4 && at[0] < 0x80 && at[2] < 0x80) {
            size = at[0];
            tag = (at[1] & 0x7f) | (uint64_t)at[2] << 7;
            at += 3;
        } else {
            at = ew_varint(at, end, &size);
            if (at == NULL || (at = ew_varint(at, end, &tag)) == NULL) return 0;
        }
        if (size > (size_t)(end - at) || (tag >> 1) > (size_t)(end - at) - size) return 0;
        *key = at;
        *key_size = size;
        *value = at + size;
        *value_size = tag >> 1;
        *removed = tag & 1;
        return 1;
    }

    static inline unsigned ew_offset(const uint8_t* offsets, size_t i) {
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        uint16_t word;
        memcpy(&word, offsets + 2 * i, 2);
        return word;
    #else
        return (unsigned)offsets[2 * i] | (unsigned)offsets[2 * i + 1] << 8;
    #endif
    }
    #endif
    """
    const char* TABLE_MAGIC "EW_TABLE_MAGIC"
    unsigned lowest_bit "ew_lowest_bit"(unsigned bits) noexcept nogil
    uint64_t full_product "ew_product"(uint64_t a, uint64_t b, uint64_t* low) noexcept nogil
    unsigned matching_bytes "ew_matches"(const uint8_t* fingerprints, uint8_t byte) noexcept nogil
    uint64_t load_word "ew_word"(const uint8_t* at) noexcept nogil
    bint _entry "ew_entry"(
        const uint8_t* at, const uint8_t* end, const uint8_t** key, size_t* key_size,
        const uint8_t** value, size_t* value_size, bint* removed
    ) noexcept nogil
    unsigned _offset "ew_offset"(const uint8_t* offsets, size_t i) noexcept nogil


cdef enum:
    SLOT_USED = 1
    SLOT_MAPPED = 2
    SLOT_SIZE_SHIFT = 4
    SLOT_SIZE_MASK = (1 << 12) - 1
    SLOT_OFFSET_SHIFT = 16
    SLOT_OFFSET_BITS = 64 - 16

# What leads to a block. 0: it must be read. The address of a `Block`, and SLOT_USED when it was used since the hand of
# the cache last passed. Or, of a data block that was checked where it lies in the table's mapping, SLOT_MAPPED, where
# its offsets begin (0: in a block of one entry, see `view_slot`), and its offset in the file.
ctypedef uint64_t Slot


cdef struct Block:
    # A block in memory, checked and decompressed; its content lies behind this header, which has 64 bytes, so that
    # lines of the index are lines of the processor's cache.
    Counted counted
    void* pool                         # where its memory came from; NULL: malloc
    TableSlots* owner                  # whose slot leads here; NULL: in no cache
    uint64_t offset                    # in the file
    uint32_t size                      # of the content
    uint32_t count                     # entries of a data block
    Slot leaves                        # what its slot holds when the cache has pushed it out
    uint64_t unused[1]                 # keeps the content where a line begins


cdef struct TableSlots:
    # What is in memory of a table: data blocks, then index pages, by number. One reference is the table's, one each
    # cached block's. Serialised by the caller of the block cache.
    Counted counted
    size_t count
    Slot* slots


cdef struct BlockView:
    # A data block in memory, and what keeps it there: a `Block`, or the mapping that it lies in.
    const uint8_t* content
    size_t entries_size                # behind them, the offsets of the entries
    Counted* holder


cdef enum:
    RESIDENCE_BITS = 18                # of a mapping, as many pages as one question to the system is about


cdef enum Residence:
    # What the system said of a part of a mapping when it was first asked.
    RESIDENCE_UNKNOWN = 0
    RESIDENCE_WHOLE = 1                # all of it was in memory
    RESIDENCE_MIXED = 2


cdef struct Table:
    Table* next                        # in the list of tables to be closed
    int refs                           # by versions; under the mutex of the Lsm
    bint obsolete                      # no version will hold it again: the file goes with the last reference
    int file
    uint64_t number
    uint64_t size
    char* path
    uint64_t entries                   # remove markers included
    uint64_t removed
    uint64_t oldest_flush              # the numbers of the flushes whose entries these are
    uint64_t newest_flush
    Slice smallest                     # keys, in `properties`
    Slice largest
    # The index: see `IndexShape`.
    uint64_t lines
    uint32_t line_entries
    uint32_t location_bits
    size_t block_count                 # of data blocks
    size_t page_count
    uint64_t* offsets                  # of blocks, then pages, then the directory: block i ends where i + 1 begins
    TableSlots* slots
    Slot* cached                       # slots.slots
    FileMapping* mapping               # of the whole file, or NULL
    const uint8_t* mapped              # its bytes
    uint8_t* residence                 # a Residence for each group of 2^RESIDENCE_BITS of them
    Block* directory
    Block* properties
    uint32_t* separators               # where in `directory` the index keys are; see there
    uint64_t* heads                    # of the index keys behind their first `head_skip` bytes, which all share;
    size_t head_skip                   # the first index key is empty, and is left out of both
    size_t memory                      # bytes that an open table takes


cdef struct TableEntry:
    Slice key
    Slice value
    bint removed


cdef inline Slot mapped_slot(uint64_t offset, size_t entries_size, size_t count) noexcept nogil:
    """Leads to a checked block in the mapping; 0: there is no saying how large the block is."""
    if 0 < entries_size <= SLOT_SIZE_MASK:
        return offset << SLOT_OFFSET_SHIFT | entries_size << SLOT_SIZE_SHIFT | SLOT_MAPPED
    return offset << SLOT_OFFSET_SHIFT | SLOT_MAPPED if count == 1 and entries_size else 0


cdef inline Block* slot_block(Slot slot) noexcept nogil:
    return <Block*><uintptr_t>(slot & ~<Slot>SLOT_USED)


cdef inline Block* slot_use(Slot* slot) noexcept nogil:
    """The block that a slot leads to, which counts as used; NULL: there is none. Not for what is mapped."""
    if slot[0] != 0 and not slot[0] & SLOT_USED:
        slot[0] |= SLOT_USED
    return slot_block(slot[0])


cdef inline size_t table_content_size(const Table* table, size_t number) noexcept nogil:
    """How large the content of a block is that isn't compressed."""
    return table.offsets[number + 1] - table.offsets[number] - BLOCK_TRAILER


cdef inline void block_view(Block* block, BlockView* view) noexcept nogil:
    view.content = block_data(block)
    view.entries_size = block.size - 2 - 2 * <size_t>block.count
    view.holder = &block.counted


cdef inline size_t view_count(const Table* table, size_t number, const BlockView* view) noexcept nogil:
    """How many entries a data block has."""
    if table.mapping != NULL and view.holder == &table.mapping.counted:
        return (table_content_size(table, number) - 2 - view.entries_size) >> 1
    return (<Block*>view.holder).count


cdef inline bint view_slot(Table* table, size_t number, BlockView* view) noexcept nogil:
    """A data block that is in memory, without a reference; False: it isn't."""
    cdef Slot slot = table.cached[number]
    if slot & SLOT_MAPPED:
        # All from the slot, with no look at anything else of the block's before its entry.
        view.content = table.mapped + (slot >> SLOT_OFFSET_SHIFT)
        view.entries_size = (slot >> SLOT_SIZE_SHIFT) & SLOT_SIZE_MASK
        if view.entries_size == 0:
            view.entries_size = table_content_size(table, number) - 4
        view.holder = &table.mapping.counted
        return True
    if slot == 0:
        return False
    block_view(slot_use(&table.cached[number]), view)
    return True


cdef inline const uint8_t* block_data(const Block* block) noexcept nogil:
    return <const uint8_t*>block + sizeof(Block)


cdef inline uint32_t block_checksum(const uint8_t* body, size_t size, uint64_t offset) noexcept nogil:
    """Over body, kind and raw size (`size` bytes in all), then the offset: a block is valid in its place only."""
    cdef uint8_t place[8]
    store_u64(place, offset)
    return crc32c(crc32c(0, body, size), place, 8)


cdef inline bint decode_entry(const uint8_t* at, const uint8_t* end, TableEntry* e) noexcept nogil:
    """The entry at `at`. False: malformed."""
    return _entry(at, end, &e.key.data, &e.key.size, &e.value.data, &e.value.size, &e.removed)


cdef inline unsigned entry_offset(const uint8_t* offsets, size_t i) noexcept nogil:
    """Where entry `i` begins, from the array at the end of a data block."""
    return _offset(offsets, i)


cdef inline uint32_t index_location_bits(uint64_t blocks) noexcept nogil:
    """How many bits tell a block and a place in it."""
    cdef uint32_t bits = 1
    while (blocks - 1) >> bits:
        bits += 1
    return bits + OFFSET_BITS


cdef inline uint32_t index_line_entries(uint32_t location_bits) noexcept nogil:
    """How many entries a line has room for."""
    cdef uint32_t room = (LINE_SIZE - LINE_HEADER) * 8 // (FINGERPRINT_BITS + location_bits)
    return room if room < LINE_ENTRIES_MAX else LINE_ENTRIES_MAX


cdef inline uint64_t index_lines(uint64_t entries, uint32_t line_entries) noexcept nogil:
    """How many home lines an index has: filled to nine tenths."""
    return entries * 10 // (9 * <uint64_t>line_entries) + 1


cdef inline uint64_t packed_entry(const uint8_t* line, uint32_t line_entries, uint32_t bits, uint32_t k) noexcept nogil:
    """The lower four bits of entry k's fingerprint, then its location. May read 7 bytes beyond the line."""
    cdef uint32_t at = k * bits
    return (
        load_word(line + LINE_HEADER + line_entries + (at >> 3)) >> (at & 7)
    ) & ((<uint64_t>1 << bits) - 1)
