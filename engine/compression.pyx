"""zstd frames, bounded in size before anything is allocated for them."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

import zstandard

from everwrite.coding cimport Buffer, Slice, put_bytes
from everwrite.status cimport Status


cdef int compress(object compressor, Slice raw, Buffer* into) noexcept with gil:
    cdef bytes frame
    try:
        frame = compressor.compress((<const char*>raw.data)[:raw.size])
    except MemoryError:
        return Status.ERR_MEMORY
    if put_bytes(into, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame)) < 0:
        return Status.ERR_MEMORY
    return Status.OK


cdef int decompress(object decompressor, Slice frame, uint8_t* into, size_t size) noexcept with gil:
    cdef bytes held
    cdef bytes raw
    try:
        held = (<const char*>frame.data)[:frame.size]
        # What would be allocated is what the frame's header says.
        if zstandard.frame_content_size(held) != size:
            return Status.ERR_DECODE
        raw = decompressor.decompress(held, max_output_size=size)
    except MemoryError:
        return Status.ERR_MEMORY
    except zstandard.ZstdError:
        return Status.ERR_DECODE
    if <size_t>PyBytes_GET_SIZE(raw) != size:
        return Status.ERR_DECODE
    memcpy(into, PyBytes_AS_STRING(raw), size)
    return Status.OK
