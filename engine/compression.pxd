"""zstd by way of the `zstandard` package. Both functions take the GIL themselves: call them without it."""

from libc.stdint cimport uint8_t

from everwrite.coding cimport Buffer, Slice


# Appends one frame that holds `raw`. OK or ERR_MEMORY.
cdef int compress(object compressor, Slice raw, Buffer* into) noexcept with gil
# Fills exactly `size` bytes. ERR_DECODE: the frame is damaged, or holds another number of bytes.
cdef int decompress(object decompressor, Slice frame, uint8_t* into, size_t size) noexcept with gil
