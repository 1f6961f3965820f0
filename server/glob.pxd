"""Redis's glob patterns: `*`, `?`, `[a-c^x]` and backslash."""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Slice


# Whether the whole of `text` matches. *steps counts comparisons: at most len(pattern) * len(text).
cdef bint glob_match(Slice pattern, Slice text, uint64_t* steps) noexcept nogil
# How many bytes at the start of the pattern stand for themselves.
cdef size_t glob_literal_prefix(Slice pattern) noexcept nogil
