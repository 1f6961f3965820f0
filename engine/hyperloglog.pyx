"""HyperLogLog; see hyperloglog.pxd."""

from libc.math cimport llround, sqrt
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from everwrite.change cimport ELEMENT_WRITE
from everwrite.coding cimport Slice, slice_of
from everwrite.hashing cimport hash64
from everwrite.quick cimport QuickKeyspace
from everwrite.state cimport REGISTERS_BYTES, Kind, element_decode
from everwrite.status cimport Status, fault_corrupt
from everwrite.walk cimport Walk, walk_free, walk_next

cdef extern from *:
    """
    #define EW_LEADING_ZEROS(x) ((x) ? __builtin_clzll(x) : 64)
    """
    int EW_LEADING_ZEROS(uint64_t x) noexcept nogil

# Part of the format: sketches of different stores must put an item in the same place.
cdef uint64_t _hash(Slice item) noexcept nogil:
    return hash64(item, <uint64_t>0x9fb21c651e98df25)


cdef int sketch_group_of(Slice item) noexcept nogil:
    return <int>(_hash(item) >> (64 - SKETCH_BITS)) // SKETCH_GROUP


cdef void sketch_add(uint8_t* registers, Slice item) noexcept nogil:
    cdef uint64_t hashed = _hash(item)
    cdef size_t place = hashed >> (64 - SKETCH_BITS)
    cdef int rank = EW_LEADING_ZEROS(hashed << SKETCH_BITS) + 1
    if rank > SKETCH_RANK_MAX:
        rank = SKETCH_RANK_MAX
    if rank > registers[place]:
        registers[place] = <uint8_t>rank


cdef void sketch_pack(const uint8_t* group, uint8_t* packed) noexcept nogil:
    cdef size_t i
    for i in range(SKETCH_GROUP // 4):
        packed[3 * i] = group[4 * i] | group[4 * i + 1] << 6
        packed[3 * i + 1] = group[4 * i + 1] >> 2 | group[4 * i + 2] << 4
        packed[3 * i + 2] = group[4 * i + 2] >> 4 | group[4 * i + 3] << 2


cdef void sketch_raise(uint8_t* group, const uint8_t* packed) noexcept nogil:
    cdef uint8_t four[4]
    cdef size_t i
    cdef size_t j
    for i in range(SKETCH_GROUP // 4):
        four[0] = packed[3 * i] & 63
        four[1] = (packed[3 * i] >> 6 | packed[3 * i + 1] << 2) & 63
        four[2] = (packed[3 * i + 1] >> 4 | packed[3 * i + 2] << 4) & 63
        four[3] = packed[3 * i + 2] >> 2
        for j in range(4):
            # Whoever wrote this may have written ranks that no item has.
            if four[j] > SKETCH_RANK_MAX:
                four[j] = SKETCH_RANK_MAX
            if four[j] > group[4 * i + j]:
                group[4 * i + j] = four[j]


cdef double _sigma(double x) noexcept nogil:
    """The share of registers that are still zero, corrected for small cardinalities; x < 1."""
    cdef double y = 1
    cdef double z = x
    cdef double before = -1
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


cdef double _tau(double x) noexcept nogil:
    """The share of registers that are full, corrected for large cardinalities."""
    cdef double y = 1
    cdef double z = 1 - x
    cdef double before = -1
    if x == 0 or x == 1:
        return 0
    while z != before:
        x = sqrt(x)
        before = z
        y *= 0.5
        z -= (1 - x) * (1 - x) * y
    return z / 3


cdef int64_t sketch_count(const uint8_t* registers) noexcept nogil:
    """Ertl, New cardinality estimation algorithms for HyperLogLog sketches (2017), the improved raw estimator."""
    cdef uint32_t counts[4][64]
    cdef double histogram[64]
    cdef double z
    cdef int k
    cdef size_t i
    memset(counts, 0, sizeof(counts))
    for i in range(0, SKETCH_REGISTERS, 4):
        # Neighbours are often equal: one row for all would make each addition wait for the one before.
        counts[0][registers[i]] += 1
        counts[1][registers[i + 1]] += 1
        counts[2][registers[i + 2]] += 1
        counts[3][registers[i + 3]] += 1
    for k in range(64):
        histogram[k] = counts[0][k] + counts[1][k] + counts[2][k] + counts[3][k]
    if histogram[0] == SKETCH_REGISTERS:
        return 0
    z = SKETCH_REGISTERS * _tau(1 - histogram[SKETCH_RANK_MAX] / SKETCH_REGISTERS)
    for k in range(SKETCH_RANK_MAX - 1, 0, -1):
        z = 0.5 * (z + histogram[k])
    z += SKETCH_REGISTERS * _sigma(histogram[0] / SKETCH_REGISTERS)
    # 1 / (2 ln 2), the constant of the infinite-precision estimator.
    z = 0.72134752044448170368 * SKETCH_REGISTERS * SKETCH_REGISTERS / z
    # Only registers that nobody's items can have filled lead beyond what an int64 holds.
    return llround(z) if z < 9.2e18 else <int64_t>9200000000000000000


cdef class HyperLogLogKeyspace(QuickKeyspace):
    """HyperLogLog operations on keys."""

    cdef void _forget(self) noexcept nogil:
        memset(self.registers, 0, sizeof(self.registers))

    cdef bint _grows(self, int group) noexcept nogil:
        """Join `element`, which shows what stands there, into the group's registers; did they bring anything new?"""
        cdef uint8_t shown[64]
        cdef uint8_t* mine = &self.registers[group * SKETCH_GROUP]
        cdef bint grows = False
        cdef size_t i
        memset(shown, 0, sizeof(shown))
        if not self.expired:
            for i in range(self.element.size):
                sketch_raise(shown, self.element.dots[i].value.data)
        for i in range(SKETCH_GROUP):
            if mine[i] > shown[i]:
                grows = True
            else:
                mine[i] = shown[i]
        return grows

    cdef int _write_sketch(self, Slice key, bint* grew) noexcept nogil:
        """Raise the key's registers to those of `self.registers`, by one change; nothing when they aren't higher."""
        cdef uint8_t packed[REGISTERS_BYTES]
        cdef bint grows[SKETCH_GROUPS]
        cdef uint8_t zero[SKETCH_GROUP]
        cdef uint8_t name
        cdef int group
        cdef int status = self.begin_as(key, Kind.KIND_HYPERLOGLOG)
        grew[0] = False
        memset(zero, 0, sizeof(zero))
        memset(grows, 0, sizeof(grows))
        for group in range(SKETCH_GROUPS):
            if status < 0:
                return status
            name = <uint8_t>group
            if memcmp(zero, &self.registers[group * SKETCH_GROUP], SKETCH_GROUP) != 0:
                status = self.load_element(Kind.KIND_HYPERLOGLOG, slice_of(&name, 1))
                if status >= 0:
                    grows[group] = self._grows(group)
                    grew[0] |= grows[group]
        if status < 0 or not grew[0]:
            return status
        status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(Kind.KIND_HYPERLOGLOG)
        for group in range(SKETCH_GROUPS):
            if status < 0:
                return status
            if not grows[group]:
                continue
            name = <uint8_t>group
            status = self.load_element(Kind.KIND_HYPERLOGLOG, slice_of(&name, 1))
            if status >= 0:
                sketch_pack(&self.registers[group * SKETCH_GROUP], packed)
                status = self._put_element(
                    Kind.KIND_HYPERLOGLOG, slice_of(&name, 1), ELEMENT_WRITE, slice_of(packed, sizeof(packed)), 0, True
                )
        return status if status < 0 else self.delta_end()

    cdef int _collect(self, Slice key) noexcept nogil:
        """Raise `self.registers` to those of a key."""
        cdef Walk walk
        cdef Slice name
        cdef size_t i
        cdef int status = self.begin_as(key, Kind.KIND_HYPERLOGLOG)
        if status <= 0:
            return status
        status = self.walk_elements(Kind.KIND_HYPERLOGLOG, &walk)
        while status >= 0:
            status = walk_next(&walk, self.lsm, &name)
            if status <= 0:
                break
            # A name that no writer of ours makes says nothing about any register.
            if name.size == 1:
                if element_decode(&self.element, self.lsm.value(walk.it)) < 0:
                    status = fault_corrupt(b"key state", 0, b"an element can't be decoded")
                    break
                for i in range(self.element.size):
                    sketch_raise(&self.registers[name.data[0] * SKETCH_GROUP], self.element.dots[i].value.data)
        walk_free(&walk, self.lsm)
        return status if status < 0 else Status.OK

    cdef int op_sketch_add(self, Slice key, const Slice* items, size_t count, bint* grew) noexcept nogil:
        cdef size_t i
        cdef int group
        cdef int status
        for i in range(count):
            sketch_add(self.registers, items[i])
        status = self._write_sketch(key, grew)
        for i in range(count):
            group = sketch_group_of(items[i])
            memset(&self.registers[group * SKETCH_GROUP], 0, SKETCH_GROUP)
        return status

    cdef int op_sketch_count(self, const Slice* keys, size_t count, int64_t* items) noexcept nogil:
        cdef size_t i
        cdef int status = Status.OK
        items[0] = 0
        for i in range(count):
            if status >= 0:
                status = self._collect(keys[i])
        if status >= 0:
            items[0] = sketch_count(self.registers)
        self._forget()
        return status if status < 0 else Status.OK

    cdef int op_sketch_merge(self, Slice key, const Slice* sources, size_t count, bint* grew) noexcept nogil:
        cdef size_t i
        cdef int status = Status.OK
        grew[0] = False
        for i in range(count):
            if status >= 0:
                status = self._collect(sources[i])
        if status >= 0:
            status = self._write_sketch(key, grew)
        self._forget()
        return status
