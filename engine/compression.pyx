"""zstd frames, bounded in size before anything is allocated for them.

The `zstandard` package contains the zstd library. Where one of its extension modules exports the library's functions,
as in its wheels, their addresses are looked up once, so that nothing is linked against and no header is needed. A
build of the package that hides them is used through its Python interface.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uintptr_t
from libc.string cimport memcpy

import ctypes
import importlib.util

import zstandard

from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, buffer_reserve, put_bytes
from everwrite.status cimport Status, check

# The declarations are those of zstd.h, section "Explicit context", stable since zstd 1.0.
ctypedef void* (*Create)() noexcept nogil
ctypedef size_t (*Free)(void* context) noexcept nogil
ctypedef size_t (*Bound)(size_t size) noexcept nogil
ctypedef unsigned (*IsError)(size_t code) noexcept nogil
ctypedef unsigned long long (*FrameSize)(const void* source, size_t size) noexcept nogil
ctypedef size_t (*Compress)(
    void* context, void* into, size_t capacity, const void* source, size_t size, int level
) noexcept nogil
ctypedef size_t (*Decompress)(
    void* context, void* into, size_t capacity, const void* source, size_t size
) noexcept nogil


cdef struct Library:
    Create create_compressing
    Create create_decompressing
    Free free_compressing
    Free free_decompressing
    Bound bound
    IsError is_error
    FrameSize frame_size
    Compress compress
    Decompress decompress


cdef Library _library
cdef bint _native = False


cdef uintptr_t _address(object library, str name) except? 0:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value


cdef bint _take_functions(str path):
    """Look the functions up in a shared object. False: it doesn't show them."""
    global _native
    try:
        library = ctypes.CDLL(path)
        _library.create_compressing = <Create>_address(library, "ZSTD_createCCtx")
        _library.create_decompressing = <Create>_address(library, "ZSTD_createDCtx")
        _library.free_compressing = <Free>_address(library, "ZSTD_freeCCtx")
        _library.free_decompressing = <Free>_address(library, "ZSTD_freeDCtx")
        _library.bound = <Bound>_address(library, "ZSTD_compressBound")
        _library.is_error = <IsError>_address(library, "ZSTD_isError")
        _library.frame_size = <FrameSize>_address(library, "ZSTD_getFrameContentSize")
        _library.compress = <Compress>_address(library, "ZSTD_compressCCtx")
        _library.decompress = <Decompress>_address(library, "ZSTD_decompressDCtx")
    except (OSError, AttributeError):
        return False
    _native = True
    return True


def _find_library():
    # The package has two extension modules with zstd inside. Its wheels hide the functions in one and not in the other.
    for name in ("zstandard._cffi", "zstandard.backend_c"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and _take_functions(spec.origin):
            break


_find_library()


cdef class Zstd:
    """Compresses and decompresses frames. `native=False`: through the package's Python interface in any case."""

    def __init__(self, int level=1, bint native=True):
        self.level = level
        self.native = native and _native
        if not self.native:
            self.compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
            self.decompressor = zstandard.ZstdDecompressor()

    def __dealloc__(self):
        if self.compressing != NULL:
            _library.free_compressing(self.compressing)
        if self.decompressing != NULL:
            _library.free_decompressing(self.decompressing)

    cdef int compress(self, Slice raw, Buffer* into) noexcept nogil:
        cdef size_t room
        cdef size_t made
        if not self.native:
            return self._compress_with_gil(raw, into)
        if self.compressing == NULL:
            self.compressing = _library.create_compressing()
        room = _library.bound(raw.size)
        if self.compressing == NULL or buffer_reserve(into, room) < 0:
            return Status.ERR_MEMORY
        made = _library.compress(self.compressing, into.data + into.size, room, raw.data, raw.size, self.level)
        # With room for the worst case there is nothing left to fail but memory.
        if _library.is_error(made):
            return Status.ERR_MEMORY
        into.size += made
        return Status.OK

    cdef int decompress(self, Slice frame, uint8_t* into, size_t size) noexcept nogil:
        cdef size_t made
        if not self.native:
            return self._decompress_with_gil(frame, into, size)
        if _library.frame_size(frame.data, frame.size) != size:
            return Status.ERR_DECODE
        if self.decompressing == NULL:
            self.decompressing = _library.create_decompressing()
            if self.decompressing == NULL:
                return Status.ERR_MEMORY
        made = _library.decompress(self.decompressing, into, size, frame.data, frame.size)
        return Status.OK if not _library.is_error(made) and made == size else Status.ERR_DECODE

    cdef int _compress_with_gil(self, Slice raw, Buffer* into) noexcept with gil:
        cdef bytes frame
        try:
            frame = self.compressor.compress((<const char*>raw.data)[:raw.size])
        except MemoryError:
            return Status.ERR_MEMORY
        if put_bytes(into, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame)) < 0:
            return Status.ERR_MEMORY
        return Status.OK

    cdef int _decompress_with_gil(self, Slice frame, uint8_t* into, size_t size) noexcept with gil:
        cdef bytes held
        cdef bytes raw
        try:
            held = (<const char*>frame.data)[:frame.size]
            # What would be allocated is what the frame's header says.
            if zstandard.frame_content_size(held) != size:
                return Status.ERR_DECODE
            raw = self.decompressor.decompress(held, max_output_size=size)
        except MemoryError:
            return Status.ERR_MEMORY
        except zstandard.ZstdError:
            return Status.ERR_DECODE
        if <size_t>PyBytes_GET_SIZE(raw) != size:
            return Status.ERR_DECODE
        memcpy(into, PyBytes_AS_STRING(raw), size)
        return Status.OK

    # ---- for tools and tests ----

    def frame(self, bytes raw not None):
        """The zstd frame of `raw`."""
        cdef Buffer made
        cdef Slice source
        cdef int status
        source.data = <const uint8_t*>PyBytes_AS_STRING(raw)
        source.size = PyBytes_GET_SIZE(raw)
        buffer_init(&made)
        try:
            with nogil:
                status = self.compress(source, &made)
            check(status)
            return (<const char*>made.data)[:made.size]
        finally:
            buffer_free(&made)

    def content(self, bytes frame not None, size_t size):
        """The `size` bytes that a frame holds. Raises `ProtocolError` when it doesn't."""
        cdef Slice source
        cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
        cdef uint8_t* into = <uint8_t*>PyBytes_AS_STRING(made)
        cdef int status
        source.data = <const uint8_t*>PyBytes_AS_STRING(frame)
        source.size = PyBytes_GET_SIZE(frame)
        with nogil:
            status = self.decompress(source, into, size)
        check(status)
        return made
