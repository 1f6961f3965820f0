"""The bytes of the write-ahead log. docs/formats/wal.md is the full page.

A position is a byte offset in the endless log, segment headers included: the byte at
`position` lies in the segment with the greatest start <= position, at offset `position - start`.

segment: header, frames, zeros
header (64 bytes): magic 8, version u32, zero u32, store id u64, start u64, durable u64, zeros 20, crc u32
frame (20 bytes and the payload): crc u32, length u32, position u64, unsynced u32, payload
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from everwrite.checksum cimport crc32c
from everwrite.coding cimport Slice, load_u32, load_u64, store_u32, store_u64

cdef enum:
    WAL_VERSION = 1
    WAL_HEADER_BYTES = 64
    WAL_FRAME_BYTES = 20              # of a frame's header
    WAL_PAYLOAD_LIMIT = 268435456     # 256 MiB
    WAL_PATH_BYTES = 1024

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    /* Last, and whole: before it nothing is a frame, after it all of it is, also for whoever looks at the file
       after this process was killed. */
    static void ew_publish(uint8_t* at, uint32_t crc, uint32_t length) {
        uint8_t bytes[8] = {
            (uint8_t)crc, (uint8_t)(crc >> 8), (uint8_t)(crc >> 16), (uint8_t)(crc >> 24),
            (uint8_t)length, (uint8_t)(length >> 8), (uint8_t)(length >> 16), (uint8_t)(length >> 24)};
        uint64_t word;
        memcpy(&word, bytes, 8);
        __atomic_thread_fence(__ATOMIC_RELEASE);
    #if defined(__x86_64__) || defined(__aarch64__)
        typedef uint64_t __attribute__((aligned(1), may_alias)) ew_unaligned;
        *(volatile ew_unaligned*)at = word;
    #else
        memcpy(at, &word, 8);
    #endif
    }
    """
    void ew_publish(uint8_t* at, uint32_t crc, uint32_t length) noexcept nogil

# `unsynced` of a frame whose distance to what was durable doesn't fit.
cdef enum:
    WAL_UNSYNCED_UNKNOWN = 0xffffffff


cdef struct FrameHeader:
    uint32_t crc
    uint32_t length       # of the payload
    uint64_t position     # of the frame itself: bytes that were misplaced, or are of an older use, don't pass
    uint32_t unsynced     # position minus what was durable when the frame was appended


cdef inline int wal_path(char* path, const char* folder, uint64_t start) noexcept nogil:
    """The segment's path, into WAL_PATH_BYTES bytes; -1 when it doesn't fit."""
    cdef int length = snprintf(path, WAL_PATH_BYTES, "%s/%016llx.log", folder, <unsigned long long>start)
    return -1 if length < 0 or length >= WAL_PATH_BYTES else 0


cdef inline void wal_put_header(uint8_t* at, uint64_t store_id, uint64_t start, uint64_t durable) noexcept nogil:
    memset(at, 0, WAL_HEADER_BYTES)
    memcpy(at, "EWRTWAL\n", 8)
    store_u32(at + 8, WAL_VERSION)
    store_u64(at + 16, store_id)
    store_u64(at + 24, start)
    store_u64(at + 32, durable)
    store_u32(at + 60, crc32c(0, at, 60))


cdef inline const char* wal_header_damage(const uint8_t* at, uint64_t start) noexcept nogil:
    """What is wrong with a segment header, or NULL. The version may be one that we don't know."""
    if memcmp(at, "EWRTWAL\n", 8) != 0:
        return "this is not the header of a log segment"
    if load_u32(at + 60) != crc32c(0, at, 60):
        return "the segment header doesn't match its checksum"
    if load_u64(at + 24) != start:
        return "the segment header is of another position than the file's name"
    return NULL


cdef inline FrameHeader wal_load_frame(const uint8_t* at) noexcept nogil:
    cdef FrameHeader header
    header.crc = load_u32(at)
    header.length = load_u32(at + 4)
    header.position = load_u64(at + 8)
    header.unsynced = load_u32(at + 16)
    return header


cdef inline void wal_put_frame(
    uint8_t* at, uint64_t position, uint64_t durable, const Slice* parts, size_t count, uint32_t length
) noexcept nogil:
    """Lay out a frame whose payload is `parts`, `length` bytes in all; `at` has room for WAL_FRAME_BYTES + length."""
    cdef uint64_t unsynced = position - durable
    cdef uint8_t* into = at + WAL_FRAME_BYTES
    cdef size_t i
    store_u64(at + 8, position)
    store_u32(at + 16, <uint32_t>unsynced if unsynced < WAL_UNSYNCED_UNKNOWN else WAL_UNSYNCED_UNKNOWN)
    for i in range(count):
        if parts[i].size:
            memcpy(into, parts[i].data, parts[i].size)
            into += parts[i].size
    # The checksum covers the length, which isn't in its place yet.
    ew_publish(at, wal_frame_crc(at, length), length)


cdef inline uint32_t wal_frame_crc(const uint8_t* at, uint32_t length) noexcept nogil:
    """The checksum of the frame at `at`, as if its length field held `length`."""
    cdef uint8_t field[4]
    store_u32(field, length)
    return crc32c(crc32c(0, field, 4), at + 8, WAL_FRAME_BYTES - 8 + <size_t>length)
