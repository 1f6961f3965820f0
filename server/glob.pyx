"""Redis's glob patterns, matched without recursion.

A mismatch goes back to the last `*` only, because a `*` takes whatever an earlier one could have
taken; so the work is at most quadratic, where the textbook recursion is exponential.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.coding cimport Slice, slice_of


cdef bint _class(const uint8_t** at, const uint8_t* end, uint8_t c) noexcept nogil:
    """Match `c` against the class whose bracket is at *at; move *at behind it."""
    cdef const uint8_t* p = at[0] + 1
    cdef bint negated = False, matched = False
    cdef uint8_t low, high
    if p < end and p[0] == c'^':
        negated = True
        p += 1
    while p < end:
        if p[0] == c'\\' and p + 1 < end:
            p += 1
            if p[0] == c:
                matched = True
        elif p[0] == c']':
            break
        elif p + 2 < end and p[1] == c'-':
            low = p[0]
            high = p[2]
            if low > high:
                low, high = high, low
            p += 2
            if low <= c <= high:
                matched = True
        elif p[0] == c:
            matched = True
        p += 1
    # Redis takes an unclosed class as closed at the end of the pattern.
    at[0] = p + 1 if p < end else end
    return matched != negated


cdef bint glob_match(Slice pattern, Slice text, uint64_t* steps) noexcept nogil:
    cdef const uint8_t* p = pattern.data
    cdef const uint8_t* p_end = pattern.data + pattern.size
    cdef const uint8_t* t = text.data
    cdef const uint8_t* t_end = text.data + text.size
    cdef const uint8_t* star = NULL         # behind the last `*`
    cdef const uint8_t* resume = NULL       # what of the text that `*` hasn't taken yet
    cdef bint matched
    while True:
        steps[0] += 1
        if p < p_end and p[0] == c'*':
            p += 1
            star = p
            resume = t
            if p == p_end:
                return True
            continue
        if t == t_end:
            if p == p_end:
                return True
            return False
        matched = False
        if p < p_end:
            if p[0] == c'?':
                p += 1
                matched = True
            elif p[0] == c'[':
                matched = _class(&p, p_end, t[0])
            else:
                if p[0] == c'\\' and p + 1 < p_end:
                    p += 1
                matched = p[0] == t[0]
                p += 1
        if matched:
            t += 1
            continue
        if star == NULL:
            return False
        resume += 1
        p = star
        t = resume


cdef size_t glob_literal_prefix(Slice pattern) noexcept nogil:
    cdef size_t i = 0
    while i < pattern.size and pattern.data[i] not in (c'*', c'?', c'[', c'\\'):
        i += 1
    return i


def matches(bytes pattern not None, bytes text not None):
    """Whether the whole of `text` matches the glob `pattern` (`CONFIG GET`, `SCAN MATCH`)."""
    cdef uint64_t steps = 0
    return glob_match(
        slice_of(<const unsigned char*>pattern, len(pattern)), slice_of(<const unsigned char*>text, len(text)), &steps
    )
