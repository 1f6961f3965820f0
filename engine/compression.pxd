"""zstd by way of the `zstandard` package, without the GIL where its extension shows the library's functions."""

from libc.stdint cimport uint8_t

from everwrite.coding cimport Buffer, Slice


cdef class Zstd:
    # Thread safety: one thread at a time.
    cdef int level
    cdef readonly bint native          # without the GIL
    cdef void* compressing             # the library's contexts, made when first needed
    cdef void* decompressing
    cdef object compressor             # where the functions aren't to be had: the package's own
    cdef object decompressor

    # Appends one frame that holds `raw`. OK or ERR_MEMORY.
    cdef int compress(self, Slice raw, Buffer* into) noexcept nogil
    # Fills exactly `size` bytes. ERR_DECODE: the frame is damaged, or holds another number of bytes.
    cdef int decompress(self, Slice frame, uint8_t* into, size_t size) noexcept nogil

    cdef int _compress_with_gil(self, Slice raw, Buffer* into) noexcept with gil
    cdef int _decompress_with_gil(self, Slice frame, uint8_t* into, size_t size) noexcept with gil
