"""Python's way to the operations on multi-value registers, flags, max and min registers and HyperLogLogs.

As in `access`: each function takes the store's lock, runs one native operation, commits, and turns a
status into an exception.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free

import operator

from everwrite.arguments cimport bytes_slice, bytes_slices
from everwrite.coding cimport Slice
from everwrite.registers cimport extreme_shown
from everwrite.state cimport KIND_FLAG, KIND_MAX, KIND_MIN, KIND_MULTI
from everwrite.store cimport Store

from everwrite.errors import OverflowError


def multi_set(Store store not None, bytes key not None, bytes value not None):
    """Write a multi-value register: the values that this store has seen are replaced."""
    _write(store, key, KIND_MULTI, value)


cdef int _write(Store store, bytes key, int kind, bytes value) except -1:
    cdef int status
    cdef Slice name = bytes_slice(key)
    cdef Slice text = bytes_slice(value)
    with nogil:
        store.lock()
        status = store.op_register_write(name, kind, text)
        store.unlock()
    store._checked_commit(status)
    return 0


def multi_values(Store store not None, bytes key not None):
    """The concurrent values of a multi-value register, oldest first; empty without the key."""
    cdef int status
    cdef size_t i
    cdef Slice name = bytes_slice(key)
    found = ()
    with nogil:
        store.lock()
        status = store.op_register_load(name, KIND_MULTI)
    try:
        if status == 1:
            found = tuple([
                store.element.dots[i].value.data[: store.element.dots[i].value.size] for i in range(store.element.size)
            ])
    finally:
        store.unlock()
    store._check(status)
    return found


def flag_enable(Store store not None, bytes key not None):
    """Enable a flag."""
    _write(store, key, KIND_FLAG, b"")


def flag_disable(Store store not None, bytes key not None):
    """Disable a flag. Returns whether it was enabled."""
    cdef int status
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_flag_disable(name)
        store.unlock()
    return store._checked_commit(status) == 1


def flag_enabled(Store store not None, bytes key not None):
    """Whether a flag is enabled."""
    cdef int status
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_register_load(name, KIND_FLAG)
        store.unlock()
    return store._check(status) == 1


cdef int _extreme(str of) except -1:
    return KIND_MAX if of == "max" else KIND_MIN


def extreme_update(Store store not None, bytes key not None, str of, value):
    """Write a max (`of` "max") or min register if `value` beats what it shows. Returns what it shows then."""
    cdef int64_t shown = 0
    cdef int64_t wanted
    cdef int kind = _extreme(of)
    cdef int status
    cdef Slice name = bytes_slice(key)
    value = operator.index(value)
    if not -(1 << 63) <= value < 1 << 63:
        raise OverflowError(f"the value is {value!r}; it must be an integer of 64 bits with sign")
    wanted = value
    with nogil:
        store.lock()
        status = store.op_extreme_update(name, kind, wanted, &shown)
        store.unlock()
    store._checked_commit(status)
    return shown


def extreme_value(Store store not None, bytes key not None, str of):
    """What a max (`of` "max") or min register shows; None without the key."""
    cdef int64_t shown = 0
    cdef int kind = _extreme(of)
    cdef int status
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_register_load(name, kind)
        if status == 1:
            shown = extreme_shown(&store.element, kind)
        store.unlock()
    return shown if store._check(status) == 1 else None


def sketch_add(Store store not None, bytes key not None, items):
    """Add items (a list of bytes) to a HyperLogLog. Returns whether that changed it."""
    return _grow(store, key, items, False)


def sketch_merge(Store store not None, bytes key not None, sources):
    """Add what the HyperLogLogs at other keys hold. Returns whether that changed it."""
    return _grow(store, key, sources, True)


cdef bint _grow(Store store, bytes key, items, bint merges) except? False:
    cdef bint grew = False
    cdef int status
    cdef Slice name = bytes_slice(key)
    cdef size_t count = len(items)
    cdef Slice* slices = bytes_slices(items)
    with nogil:
        store.lock()
        if merges:
            status = store.op_sketch_merge(name, slices, count, &grew)
        else:
            status = store.op_sketch_add(name, slices, count, &grew)
        store.unlock()
    free(slices)
    store._checked_commit(status)
    return grew


def sketch_count(Store store not None, keys):
    """How many different items were added to the HyperLogLogs at `keys` together, estimated."""
    cdef int64_t items = 0
    cdef int status
    cdef size_t count = len(keys)
    cdef Slice* slices = bytes_slices(keys)
    with nogil:
        store.lock()
        status = store.op_sketch_count(slices, count, &items)
        store.unlock()
    free(slices)
    store._check(status)
    return items
