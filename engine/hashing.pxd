"""A seeded 64-bit hash of byte strings.

The construction is wyhash's (Wang Yi 2019): 128-bit products folded by exclusive or. The seed
enters both factors of every product, so that without it no input can be chosen that
multiplies by zero or collides on purpose. With seed 0 the result is part of the table
format (the bloom filter), so it must never change.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.coding cimport Slice, load_u32, load_u64

cdef extern from *:
    """
    #ifndef EW_HASHING
    #define EW_HASHING
    static inline unsigned long long ew_fold_product(unsigned long long a, unsigned long long b) {
    #ifdef __SIZEOF_INT128__
        unsigned __int128 product = (unsigned __int128)a * b;
        return (unsigned long long)product ^ (unsigned long long)(product >> 64);
    #else
        unsigned long long al = a & 0xffffffffu, ah = a >> 32, bl = b & 0xffffffffu, bh = b >> 32;
        unsigned long long ll = al * bl, lh = al * bh, hl = ah * bl, hh = ah * bh;
        unsigned long long middle = (ll >> 32) + (lh & 0xffffffffu) + (hl & 0xffffffffu);
        unsigned long long high = hh + (lh >> 32) + (hl >> 32) + (middle >> 32);
        return ((middle << 32) | (ll & 0xffffffffu)) ^ high;
    #endif
    }
    #endif
    """
    uint64_t ew_fold_product(uint64_t a, uint64_t b) noexcept nogil


cdef inline uint64_t hash64(Slice s, uint64_t seed) noexcept nogil:
    cdef uint64_t first = seed ^ <uint64_t>0xa0761d6478bd642f
    cdef uint64_t second = ((seed << 32) | (seed >> 32)) ^ <uint64_t>0xe7037ed1a0b428db
    cdef const uint8_t* at = s.data
    cdef size_t left = s.size
    cdef uint64_t a = 0
    cdef uint64_t b = 0
    if left > 16:
        while left > 16:
            second = ew_fold_product(load_u64(at) ^ first, load_u64(at + 8) ^ second)
            at += 16
            left -= 16
        a = load_u64(s.data + s.size - 16)
        b = load_u64(s.data + s.size - 8)
    elif left >= 8:
        a = load_u64(at)
        b = load_u64(at + left - 8)
    elif left >= 4:
        a = load_u32(at)
        b = load_u32(at + left - 4)
    elif left > 0:
        a = (<uint64_t>at[0] << 16) | (<uint64_t>at[left >> 1] << 8) | at[left - 1]
    return ew_fold_product(
        first ^ <uint64_t>s.size ^ <uint64_t>0x8ebc6af09c88c6e3,
        ew_fold_product(a ^ first, b ^ second) ^ <uint64_t>0x589965cc75374cc3,
    )
