"""Integers as decimal text, as Redis and the counters of the store have them."""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t

from everwrite.coding cimport Slice


cdef inline bint parse_integer(Slice text, int64_t* value) noexcept nogil:
    """No sign but one minus, no leading zeros or blanks, 64 bits with sign; else False."""
    cdef bint negative = text.size and text.data[0] == c'-'
    cdef size_t digits = text.size - negative
    cdef uint64_t magnitude = 0
    cdef uint8_t digit
    cdef size_t i
    # As many nines as that fit into 64 bits.
    if digits == 0 or digits > 19 or (text.data[negative] == c'0' and text.size > 1):
        return False
    for i in range(negative, text.size):
        digit = <uint8_t>(text.data[i] - c'0')
        if digit > 9:
            return False
        magnitude = magnitude * 10 + digit
    if magnitude > <uint64_t>INT64_MAX + negative:
        return False
    value[0] = <int64_t>(0 - magnitude if negative else magnitude)
    return True


cdef inline size_t write_decimal(uint8_t* at, int64_t value) noexcept nogil:
    """Write `value` in decimal (20 bytes at most, no terminator). Returns the number of bytes."""
    cdef uint8_t digits[24]
    cdef size_t used = 0
    cdef size_t written = 0
    cdef uint64_t left = <uint64_t>value
    if value < 0:
        at[0] = c'-'
        written = 1
        left = 0 - left
    while True:
        digits[used] = <uint8_t>(c'0' + left % 10)
        used += 1
        left = left // 10
        if left == 0:
            break
    while used > 0:
        used -= 1
        at[written] = digits[used]
        written += 1
    return written
