"""Bytes that come from Python and go to it. The GIL is held in all of this."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from libc.stdlib cimport free, malloc

from everwrite.coding cimport Slice, slice_of


cdef inline Slice bytes_slice(object data) noexcept:
    """The bytes of an object that is known to be bytes; borrowed from it."""
    return slice_of(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline object slice_bytes(Slice found):
    return PyBytes_FromStringAndSize(<const char*>found.data, found.size)


cdef inline int check_bytes(object value) except -1:
    """Raises TypeError, which says what to do, for anything but bytes."""
    if PyBytes_Check(value):
        return 0
    kind = type(value).__name__
    hint = "encode text first, as in key.encode()" if isinstance(value, str) else "convert it with bytes(...)"
    raise TypeError(f"keys, values and elements are bytes, not {kind}: {hint}")


cdef inline Slice* bytes_slices(items) except? NULL:
    """Borrowed slices of a list, tuple or dict of bytes; free() them."""
    cdef size_t i = 0
    cdef Slice* slices = <Slice*>malloc((len(items) or 1) * sizeof(Slice))
    if slices == NULL:
        raise MemoryError("out of memory for an operation's arguments")
    try:
        for item in items:
            check_bytes(item)
            slices[i] = bytes_slice(item)
            i += 1
    except TypeError:
        free(slices)
        raise
    return slices
