"""A blocked Bloom filter (Putze, Sanders and Singler 2007): a question costs one cache miss.

The filter is an array of 64-byte lines. A key's 64-bit hash chooses a line by its upper half
and PROBES bits of that line by a second mix of it. About 1 in 80 absent keys passes at
BITS_PER_KEY. Part of the table format: see docs/formats/table.md.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.hashing cimport ew_fold_product


cdef enum:
    BLOOM_LINE = 64
    BLOOM_PROBES = 6
    BLOOM_BITS_PER_KEY = 10


cdef inline size_t bloom_size(size_t keys) noexcept nogil:
    """Bytes of a filter for so many keys: a multiple of the line, at least one."""
    return (keys * BLOOM_BITS_PER_KEY // 8 // BLOOM_LINE + 1) * BLOOM_LINE


cdef inline uint64_t bloom_bits(uint64_t key_hash) noexcept nogil:
    return ew_fold_product(key_hash, <uint64_t>0x9e3779b97f4a7c15)


cdef inline uint8_t* bloom_line(uint8_t* filter, size_t size, uint64_t key_hash) noexcept nogil:
    return filter + ((key_hash >> 32) * (size // BLOOM_LINE) >> 32) * BLOOM_LINE


cdef inline void bloom_add(uint8_t* filter, size_t size, uint64_t key_hash) noexcept nogil:
    cdef uint8_t* line = bloom_line(filter, size, key_hash)
    cdef uint64_t bits = bloom_bits(key_hash)
    cdef int _i
    for _i in range(BLOOM_PROBES):
        line[(bits & 511) >> 3] |= 1 << (bits & 7)
        bits >>= 9


cdef inline bint bloom_may_contain(uint8_t* filter, size_t size, uint64_t key_hash) noexcept nogil:
    cdef uint8_t* line = bloom_line(filter, size, key_hash)
    cdef uint64_t bits = bloom_bits(key_hash)
    cdef int _i
    for _i in range(BLOOM_PROBES):
        if not line[(bits & 511) >> 3] & (1 << (bits & 7)):
            return False
        bits >>= 9
    return True
