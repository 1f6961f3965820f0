"""Error replies that more than one command gives, in Redis's words."""

from libc.stdint cimport int64_t

from everwrite.coding cimport Slice
from everwrite.server.resp cimport Reply, reply_integer


cdef void reply_status(Reply* reply, int status) noexcept nogil          # for a negative Status

cdef inline void reply_count(Reply* reply, int status, int64_t count) noexcept nogil:
    """An integer, or, for a negative Status, its error."""
    if status < 0:
        reply_status(reply, status)
    else:
        reply_integer(reply, count)


cdef void reply_wrong_arity(Reply* reply, const char* name) noexcept nogil
cdef void reply_syntax_error(Reply* reply) noexcept nogil
cdef void reply_not_integer(Reply* reply) noexcept nogil
# An error text around up to 128 bytes that the client sent; line ends in them become blanks.
cdef void reply_error_about(Reply* reply, const char* before, Slice sent, const char* after) noexcept nogil
cdef void reply_sent(Reply* reply, Slice sent, size_t limit) noexcept nogil      # those bytes alone, to the first NUL
# Option names: whether `word` is `name` (upper case) in any case.
cdef bint is_word(Slice word, const char* name) noexcept nogil
