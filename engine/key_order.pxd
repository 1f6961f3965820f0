"""Byte-string order by eight bytes at a time, for searches that touch as few keys as possible."""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Slice, load_u64_big


cdef inline uint64_t key_head(Slice key, size_t skip) noexcept nogil:
    """Eight bytes from `skip` on, big-endian, with zeros behind the end: ordered as the keys are, but for ties."""
    cdef uint64_t head = 0
    cdef size_t size
    cdef size_t i
    if key.size >= skip + 8:
        return load_u64_big(key.data + skip)
    size = key.size - skip if key.size > skip else 0
    for i in range(size):
        head |= <uint64_t>key.data[skip + i] << (56 - 8 * i)
    return head


cdef inline size_t common_prefix(Slice a, Slice b, size_t limit) noexcept nogil:
    """How many bytes the two begin with alike, at most `limit`."""
    cdef size_t size = a.size if a.size < b.size else b.size
    cdef size_t i = 0
    if size > limit:
        size = limit
    while i < size and a.data[i] == b.data[i]:
        i += 1
    return i
