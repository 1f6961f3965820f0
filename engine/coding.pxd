"""Byte-level coding shared by every format: slices, growable buffers, varints, fixed-width integers.

All integers are little-endian unless a name says otherwise. A reader never trusts a
length: each `get_*` checks against the end and reports failure instead of reading on.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy


cdef struct Slice:
    # Borrowed bytes; the owner says how long they live.
    const uint8_t* data
    size_t size


cdef struct Buffer:
    # Owned, growable bytes. Invariant: size <= capacity; data is NULL only if capacity is 0.
    uint8_t* data
    size_t size
    size_t capacity


cdef struct Reader:
    # A cursor over borrowed bytes. `failed` is sticky: after it is set every get returns 0 or an empty slice.
    const uint8_t* at
    const uint8_t* end
    bint failed


cdef inline Slice slice_of(const void* data, size_t size) noexcept nogil:
    cdef Slice s
    s.data = <const uint8_t*>data
    s.size = size
    return s


cdef inline int slice_compare(Slice a, Slice b) noexcept nogil:
    cdef int c = memcmp(a.data, b.data, a.size if a.size < b.size else b.size)
    if c != 0:
        return c
    return -1 if a.size < b.size else (1 if a.size > b.size else 0)


cdef inline bint slice_equal(Slice a, Slice b) noexcept nogil:
    return a.size == b.size and memcmp(a.data, b.data, a.size) == 0


cdef inline void buffer_init(Buffer* b) noexcept nogil:
    b.data = NULL
    b.size = 0
    b.capacity = 0


cdef inline void buffer_free(Buffer* b) noexcept nogil:
    free(b.data)
    b.data = NULL
    b.size = 0
    b.capacity = 0


cdef inline Slice buffer_slice(Buffer* b) noexcept nogil:
    return slice_of(b.data, b.size)


cdef inline int buffer_reserve(Buffer* b, size_t extra) noexcept nogil:
    """Make room for `extra` more bytes. Returns 0, or -1 when out of memory (nothing changed)."""
    cdef size_t need = b.size + extra
    cdef size_t capacity
    cdef uint8_t* grown
    if need <= b.capacity:
        return 0
    capacity = b.capacity * 2 if b.capacity >= 64 else 64
    if capacity < need:
        capacity = need
    grown = <uint8_t*>realloc(b.data, capacity)
    if grown == NULL:
        return -1
    b.data = grown
    b.capacity = capacity
    return 0


cdef inline int put_bytes(Buffer* b, const void* data, size_t size) noexcept nogil:
    if size == 0:
        return 0
    if buffer_reserve(b, size) < 0:
        return -1
    memcpy(b.data + b.size, data, size)
    b.size += size
    return 0


cdef inline int put_u8(Buffer* b, uint8_t value) noexcept nogil:
    if buffer_reserve(b, 1) < 0:
        return -1
    b.data[b.size] = value
    b.size += 1
    return 0


cdef inline void store_u32(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = value & 0xff
    at[1] = (value >> 8) & 0xff
    at[2] = (value >> 16) & 0xff
    at[3] = (value >> 24) & 0xff


cdef inline void store_u32_big(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = value >> 24
    at[1] = (value >> 16) & 0xff
    at[2] = (value >> 8) & 0xff
    at[3] = value & 0xff


cdef inline uint32_t load_u32(const uint8_t* at) noexcept nogil:
    return <uint32_t>at[0] | (<uint32_t>at[1] << 8) | (<uint32_t>at[2] << 16) | (<uint32_t>at[3] << 24)


cdef inline void store_u64(uint8_t* at, uint64_t value) noexcept nogil:
    store_u32(at, <uint32_t>value)
    store_u32(at + 4, <uint32_t>(value >> 32))


cdef inline uint64_t load_u64(const uint8_t* at) noexcept nogil:
    return <uint64_t>load_u32(at) | (<uint64_t>load_u32(at + 4) << 32)


cdef inline int put_u16(Buffer* b, uint16_t value) noexcept nogil:
    if buffer_reserve(b, 2) < 0:
        return -1
    b.data[b.size] = value & 0xff
    b.data[b.size + 1] = value >> 8
    b.size += 2
    return 0


cdef inline uint64_t load_u64_big(const uint8_t* at) noexcept nogil:
    return (
        (<uint64_t>at[0] << 56) | (<uint64_t>at[1] << 48) | (<uint64_t>at[2] << 40) | (<uint64_t>at[3] << 32)
        | (<uint64_t>at[4] << 24) | (<uint64_t>at[5] << 16) | (<uint64_t>at[6] << 8) | at[7]
    )


cdef inline int put_u32(Buffer* b, uint32_t value) noexcept nogil:
    if buffer_reserve(b, 4) < 0:
        return -1
    store_u32(b.data + b.size, value)
    b.size += 4
    return 0


cdef inline int put_u64(Buffer* b, uint64_t value) noexcept nogil:
    if buffer_reserve(b, 8) < 0:
        return -1
    store_u64(b.data + b.size, value)
    b.size += 8
    return 0


cdef inline int store_varint(uint8_t* at, uint64_t value) noexcept nogil:
    """Lay out `value`; `at` has room for 10 bytes. Returns how many it took."""
    cdef int size = 0
    while value >= 0x80:
        at[size] = <uint8_t>(value | 0x80)
        value >>= 7
        size += 1
    at[size] = <uint8_t>value
    return size + 1


cdef inline int put_varint(Buffer* b, uint64_t value) noexcept nogil:
    """LEB128, 1 to 10 bytes."""
    if buffer_reserve(b, 10) < 0:
        return -1
    while value >= 0x80:
        b.data[b.size] = <uint8_t>(value | 0x80)
        b.size += 1
        value >>= 7
    b.data[b.size] = <uint8_t>value
    b.size += 1
    return 0


cdef inline int put_slice(Buffer* b, Slice s) noexcept nogil:
    """A varint length, then the bytes."""
    if put_varint(b, s.size) < 0:
        return -1
    return put_bytes(b, s.data, s.size)


cdef inline Reader reader_of(Slice s) noexcept nogil:
    cdef Reader r
    r.at = s.data
    r.end = s.data + s.size
    r.failed = False
    return r


cdef inline size_t reader_left(Reader* r) noexcept nogil:
    return r.end - r.at


cdef inline uint8_t get_u8(Reader* r) noexcept nogil:
    cdef uint8_t value
    if r.failed or r.end - r.at < 1:
        r.failed = True
        return 0
    value = r.at[0]
    r.at += 1
    return value


cdef inline uint16_t get_u16(Reader* r) noexcept nogil:
    cdef uint16_t value
    if r.failed or r.end - r.at < 2:
        r.failed = True
        return 0
    value = <uint16_t>(r.at[0] | <uint16_t>r.at[1] << 8)
    r.at += 2
    return value


cdef inline uint32_t get_u32(Reader* r) noexcept nogil:
    cdef uint32_t value
    if r.failed or r.end - r.at < 4:
        r.failed = True
        return 0
    value = load_u32(r.at)
    r.at += 4
    return value


cdef inline uint64_t get_u64(Reader* r) noexcept nogil:
    cdef uint64_t value
    if r.failed or r.end - r.at < 8:
        r.failed = True
        return 0
    value = load_u64(r.at)
    r.at += 8
    return value


cdef inline uint64_t get_varint(Reader* r) noexcept nogil:
    cdef uint64_t value = 0
    cdef int shift = 0
    cdef uint8_t byte
    while shift < 64:
        if r.failed or r.at >= r.end:
            r.failed = True
            return 0
        byte = r.at[0]
        r.at += 1
        if shift == 63 and byte > 1:
            r.failed = True
            return 0
        value |= (<uint64_t>(byte & 0x7f)) << shift
        if byte < 0x80:
            return value
        shift += 7
    r.failed = True
    return 0


cdef inline Slice get_bytes(Reader* r, size_t size) noexcept nogil:
    cdef Slice s = slice_of(r.at, 0)
    if r.failed or <size_t>(r.end - r.at) < size:
        r.failed = True
        return s
    s.size = size
    r.at += size
    return s


cdef inline Slice get_slice(Reader* r) noexcept nogil:
    cdef uint64_t size = get_varint(r)
    return get_bytes(r, size)
