"""Scores: float64 numbers, in the 8 bytes of a value or a row's total, and in bytes that sort as they count."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from everwrite.coding cimport Slice, load_u64, store_u64
from everwrite.state cimport Element, Row, row_live

cdef extern from "<float.h>" nogil:
    const double DBL_MAX

cdef enum:
    SCORE_SIZE = 8


cdef inline double score_of_bits(uint64_t bits) noexcept nogil:
    cdef double score
    memcpy(&score, &bits, 8)
    return score


cdef inline uint64_t score_bits(double score) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &score, 8)
    return bits


cdef inline double held_finite(double score) noexcept nogil:
    """The nearest finite number; 0 for none at all."""
    if score > DBL_MAX:
        return DBL_MAX
    if score < -DBL_MAX:
        return -DBL_MAX
    return score if score == score else 0.0


cdef inline double score_of(Slice value) noexcept nogil:
    """A score as a value holds it, little-endian. What isn't a number, which only strangers send, counts as 0."""
    cdef double score = score_of_bits(load_u64(value.data)) if value.size == SCORE_SIZE else 0.0
    return score + 0.0 if score == score else 0.0


cdef inline void store_score(uint8_t* at, double score) noexcept nogil:
    store_u64(at, score_bits(score + 0.0))


cdef inline double row_amount(const Row* row) noexcept nogil:
    """What one origin's increments that nothing has reset add up to."""
    if not row_live(row):
        return 0.0
    if row.floor == 0:
        return held_finite(score_of_bits(<uint64_t>row.total))
    return held_finite(score_of_bits(<uint64_t>row.total) - score_of_bits(<uint64_t>row.floor_total))


cdef inline double element_score(const Element* element) noexcept nogil:
    """The newest score that was set, plus all increments: summed in the rows' order, so that equal rows show equally.

    A sum never leaves the finite numbers: it stays at the largest.
    """
    cdef double base = score_of(element.dots[element.size - 1].value) if element.size else 0.0
    cdef double sum = 0.0
    cdef size_t i
    for i in range(element.row_count):
        sum = held_finite(sum + row_amount(&element.rows[i]))
    if held_finite(base) != base:
        return base
    return held_finite(base + sum) + 0.0


cdef inline uint64_t sortable(double score) noexcept nogil:
    """An integer that orders as the scores do (no NaN)."""
    cdef uint64_t bits = score_bits(score + 0.0)
    return ~bits if bits >> 63 else bits | (<uint64_t>1 << 63)


cdef inline double of_sortable(uint64_t order) noexcept nogil:
    return score_of_bits(order & ~(<uint64_t>1 << 63) if order >> 63 else ~order)


cdef inline void store_sortable(uint8_t* at, uint64_t order) noexcept nogil:
    cdef int i
    for i in range(8):
        at[i] = <uint8_t>(order >> (56 - 8 * i))


cdef inline uint64_t load_sortable(const uint8_t* at) noexcept nogil:
    cdef uint64_t order = 0
    cdef int i
    for i in range(8):
        order = (order << 8) | at[i]
    return order
