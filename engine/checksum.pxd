"""CRC-32C (Castagnoli), the checksum of every stored block and frame."""

from libc.stdint cimport uint32_t


# `crc` is 0, or the result for the bytes before these: crc32c(crc32c(0, a), b) is the checksum of a + b.
cdef uint32_t crc32c(uint32_t crc, const void* data, size_t size) noexcept nogil
