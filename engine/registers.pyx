"""Multi-value register, flag, max and min register; see registers.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.change cimport ELEMENT_WRITE
from everwrite.coding cimport Slice, load_u64, slice_of, store_u64
from everwrite.hyperloglog cimport HyperLogLogKeyspace
from everwrite.state cimport MAX_VALUE, Element, Kind
from everwrite.status cimport Status, fault_key


cdef Slice _empty() noexcept nogil:
    return slice_of(NULL, 0)


cdef int64_t extreme_shown(const Element* element, int kind) noexcept nogil:
    cdef int64_t best = <int64_t>load_u64(element.dots[0].value.data)
    cdef int64_t value
    cdef size_t i
    for i in range(1, element.size):
        value = <int64_t>load_u64(element.dots[i].value.data)
        if (value > best) == (kind == Kind.KIND_MAX):
            best = value
    return best


cdef class RegisterKeyspace(HyperLogLogKeyspace):
    """Operations on registers of other kinds than the plain one."""

    cdef int op_register_load(self, Slice key, int kind) noexcept nogil:
        cdef int status = self.begin_as(key, kind)
        if status <= 0:
            return status
        status = self.load_element(kind, _empty())
        return status if status < 0 else self.element.size > 0

    cdef int op_register_write(self, Slice key, int kind, Slice value) noexcept nogil:
        cdef int status
        if value.size > MAX_VALUE:
            return fault_key(Status.ERR_TOO_LARGE, key)
        status = self.begin_as(key, kind)
        if status >= 0:
            status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(kind)
        if status == Status.OK:
            status = self.load_element(kind, _empty())
        if status >= 0:
            status = self._put_element(kind, _empty(), ELEMENT_WRITE, value, 0, True)
        return status if status < 0 else self.delta_end()

    cdef int op_flag_disable(self, Slice key) noexcept nogil:
        cdef int status = self.op_register_load(key, Kind.KIND_FLAG)
        if status <= 0:
            return status
        status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(Kind.KIND_FLAG)
        if status == Status.OK:
            status = self.load_element(Kind.KIND_FLAG, _empty())
        if status >= 0:
            status = self._put_element(Kind.KIND_FLAG, _empty(), 0, _empty(), 0, True)
        if status == Status.OK:
            status = self.delta_end()
        return status if status < 0 else 1

    cdef int op_extreme_update(self, Slice key, int kind, int64_t value, int64_t* shown) noexcept nogil:
        cdef uint8_t encoded[8]
        cdef int status = self.op_register_load(key, kind)
        if status < 0:
            return status
        if status:
            shown[0] = extreme_shown(&self.element, kind)
            if value == shown[0] or (value > shown[0]) != (kind == Kind.KIND_MAX):
                return 0
        shown[0] = value
        store_u64(encoded, <uint64_t>value)
        status = self.op_register_write(key, kind, slice_of(encoded, sizeof(encoded)))
        return status if status < 0 else 1
