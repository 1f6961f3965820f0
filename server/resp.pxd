"""The Redis serialization protocol, RESP2 and RESP3: an incremental parser and a reply encoder.

Sans-I/O. The caller keeps the received bytes of one connection contiguous from the start of
the command that isn't complete yet; `parser_next` never looks at a byte twice, and
allocates in proportion to what was received, never to what a length announces.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from everwrite.coding cimport Buffer, Slice, buffer_reserve
from everwrite.decimals cimport write_decimal


cdef enum Parsed:
    PARSE_MORE = 0          # the command isn't complete yet
    PARSE_COMMAND = 1       # args[:count] is a command
    PARSE_ERROR = -1        # the peer broke the protocol: see parser_error; nothing after it can be understood
    PARSE_MEMORY = -2


cdef enum Limit:
    ARGUMENTS_MAX = 1 << 20
    BULK_BYTES_MAX = 64 << 20
    INLINE_BYTES_MAX = 64 << 10
    HEADER_BYTES_MAX = 32           # digits and sign of a count or length
    REQUEST_BYTES_MAX = 96 << 20    # one command with its framing
    REPLY_BYTES_MAX = 512 << 20     # one reply


cdef struct Parser:
    # While a command is incomplete, args[i].data is an offset from the start of the command.
    # Invariant: count <= capacity; a finished command stays in args until the next call.
    Slice* args
    size_t count
    size_t capacity
    int64_t remaining       # arguments still to come; 0 between commands
    int64_t bulk            # length of the argument being received, -1 when its header is next
    size_t scanned          # bytes of the command that were looked at
    Buffer words            # the unquoted words of an inline command
    char error[80]


cdef void parser_init(Parser* p) noexcept nogil
cdef void parser_free(Parser* p) noexcept nogil
# Forget the last command, and give back the memory that an unusually large one took.
cdef void parser_restart(Parser* p) noexcept nogil
# Look for one command at the start of data. *consumed is the number of bytes to drop: the
# command's, and with PARSE_MORE those of empty lines and empty arrays before it.
# The arguments of a command point into `data` (or, for an inline command, into the parser).
cdef int parser_next(Parser* p, const uint8_t* data, size_t size, size_t* consumed) noexcept nogil


cdef enum ReplyFailure:
    REPLY_MEMORY = 1
    REPLY_TOO_LARGE = 2


cdef struct Reply:
    # A writer of replies. `failed` (a ReplyFailure, or 0) is sticky; `limit` bounds the bytes in `out`.
    Buffer* out
    int protocol            # 2 or 3
    int failed
    size_t limit


cdef inline uint8_t* reply_room(Reply* r, size_t extra) noexcept nogil:
    """The place for `extra` more bytes, or NULL after marking the reply as failed."""
    if r.failed:
        return NULL
    if r.out.size + extra > r.limit:
        r.failed = ReplyFailure.REPLY_TOO_LARGE
        return NULL
    if buffer_reserve(r.out, extra) < 0:
        r.failed = ReplyFailure.REPLY_MEMORY
        return NULL
    return r.out.data + r.out.size


cdef inline void reply_header(Reply* r, char type_byte, int64_t value) noexcept nogil:
    """A type byte, a number, CRLF: integers, and the head of bulks, arrays, maps and sets."""
    cdef uint8_t* at = reply_room(r, 24)
    cdef size_t used
    if at == NULL:
        return
    at[0] = <uint8_t>type_byte
    used = 1 + write_decimal(at + 1, value)
    at[used] = c'\r'
    at[used + 1] = c'\n'
    r.out.size += used + 2


cdef inline void reply_raw(Reply* r, const void* data, size_t size) noexcept nogil:
    cdef uint8_t* at = reply_room(r, size)
    if at != NULL and size:
        memcpy(at, data, size)
        r.out.size += size


cdef inline void reply_integer(Reply* r, int64_t value) noexcept nogil:
    reply_header(r, c':', value)


cdef inline void reply_array(Reply* r, int64_t count) noexcept nogil:
    reply_header(r, c'*', count)


cdef inline void reply_ok(Reply* r) noexcept nogil:
    reply_raw(r, b"+OK\r\n", 5)


cdef inline void reply_bulk(Reply* r, Slice value) noexcept nogil:
    cdef uint8_t* at = reply_room(r, value.size + 28)
    cdef size_t used
    if at == NULL:
        return
    at[0] = c'$'
    used = 1 + write_decimal(at + 1, <int64_t>value.size)
    at[used] = c'\r'
    at[used + 1] = c'\n'
    used += 2
    if value.size:
        memcpy(at + used, value.data, value.size)
    used += value.size
    at[used] = c'\r'
    at[used + 1] = c'\n'
    r.out.size += used + 2


cdef inline void reply_null(Reply* r) noexcept nogil:
    if r.protocol == 3:
        reply_raw(r, b"_\r\n", 3)
    else:
        reply_raw(r, b"$-1\r\n", 5)


cdef inline void reply_set(Reply* r, int64_t count) noexcept nogil:
    """The head of a set of `count` members; an array in RESP2."""
    reply_header(r, c'~' if r.protocol == 3 else c'*', count)


cdef inline void reply_map(Reply* r, int64_t count) noexcept nogil:
    """The head of a map of `count` pairs; a flat array in RESP2."""
    if r.protocol == 3:
        reply_header(r, c'%', count)
    else:
        reply_header(r, c'*', 2 * count)


cdef void reply_simple(Reply* r, const char* text) noexcept nogil      # +text
cdef void reply_error(Reply* r, const char* text) noexcept nogil       # -text, with its code ("ERR ...")
