"""The Redis serialization protocol, RESP2 and RESP3.

The grammar, the limits' error texts and the inline form are those of Redis 7
(https://redis.io/docs/latest/develop/reference/protocol-spec/); where Redis looks on
without a word (a bulk that isn't followed by CRLF), this parser reports the error.
"""

cimport cython
from libc.stdio cimport snprintf
from libc.stdint cimport int64_t, uint8_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, strlen

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, put_bytes, put_u8, slice_of

from everwrite.decimals cimport parse_integer

from everwrite import errors

# Argument tables above this are given back once their command is done.
cdef size_t KEPT_ARGUMENTS = 1024
cdef size_t KEPT_WORDS_BYTES = 4096

# How a line may end.
cdef enum Line:
    LINE_MORE = 0
    LINE_FOUND = 1
    LINE_TOO_LONG = -1


cdef void parser_init(Parser* p) noexcept nogil:
    p.args = NULL
    p.count = 0
    p.capacity = 0
    p.remaining = 0
    p.bulk = -1
    p.scanned = 0
    buffer_init(&p.words)
    p.error[0] = 0


cdef void parser_free(Parser* p) noexcept nogil:
    free(p.args)
    buffer_free(&p.words)
    parser_init(p)


cdef int _fail(Parser* p, const char* text) noexcept nogil:
    snprintf(p.error, sizeof(p.error), b"%s", text)
    return Parsed.PARSE_ERROR


cdef int _add(Parser* p, size_t offset, size_t size) noexcept nogil:
    """Note an argument by its offset; the table grows with what was received."""
    cdef size_t capacity
    cdef Slice* grown
    if p.count == p.capacity:
        capacity = p.capacity * 2 if p.capacity else 8
        grown = <Slice*>realloc(p.args, capacity * sizeof(Slice))
        if grown == NULL:
            return Parsed.PARSE_MEMORY
        p.args = grown
        p.capacity = capacity
    p.args[p.count].data = <const uint8_t*><uintptr_t>offset
    p.args[p.count].size = size
    p.count += 1
    return 0


cdef void _rebase(Parser* p, const uint8_t* base) noexcept nogil:
    cdef size_t i
    for i in range(p.count):
        p.args[i].data = base + <uintptr_t>p.args[i].data


cdef int _header(const uint8_t* data, size_t size, size_t start, size_t* end) noexcept nogil:
    """Find the CRLF of a count or length line whose type byte is at `start`; *end is where the CR stands."""
    cdef size_t window = size - start
    cdef const void* found
    if window > Limit.HEADER_BYTES_MAX + 2:
        window = Limit.HEADER_BYTES_MAX + 2
    found = memchr(data + start, c'\r', window)
    if found == NULL:
        return Line.LINE_TOO_LONG if window == Limit.HEADER_BYTES_MAX + 2 else Line.LINE_MORE
    end[0] = <const uint8_t*>found - data
    return Line.LINE_FOUND if end[0] + 1 < size else Line.LINE_MORE


cdef int _multibulk(Parser* p, const uint8_t* data, size_t size) noexcept nogil:
    """Go on with an array of bulks; p.remaining > 0. Returns a Parsed."""
    cdef size_t end = 0
    cdef int found
    cdef int64_t value = 0
    while p.remaining > 0:
        if p.bulk < 0:
            if p.scanned >= size:
                return Parsed.PARSE_MORE
            if data[p.scanned] != c'$':
                snprintf(p.error, sizeof(p.error), b"Protocol error: expected '$', got '%c'",
                         data[p.scanned] if 32 <= data[p.scanned] < 127 else <int>c'?')
                return Parsed.PARSE_ERROR
            found = _header(data, size, p.scanned, &end)
            if found == Line.LINE_MORE:
                return Parsed.PARSE_MORE
            if found == Line.LINE_TOO_LONG:
                return _fail(p, b"Protocol error: too big bulk count string")
            if (
                data[end + 1] != c'\n'
                or not parse_integer(slice_of(data + p.scanned + 1, end - p.scanned - 1), &value)
                or value < 0
                or value > Limit.BULK_BYTES_MAX
            ):
                return _fail(p, b"Protocol error: invalid bulk length")
            if end + 4 + <size_t>value > Limit.REQUEST_BYTES_MAX:
                return _fail(p, b"Protocol error: request over 100663296 bytes")
            p.bulk = value
            p.scanned = end + 2
        if size - p.scanned < <size_t>p.bulk + 2:
            return Parsed.PARSE_MORE
        end = p.scanned + <size_t>p.bulk
        if data[end] != c'\r' or data[end + 1] != c'\n':
            return _fail(p, b"Protocol error: expected CRLF after bulk string")
        if _add(p, p.scanned, <size_t>p.bulk) < 0:
            return Parsed.PARSE_MEMORY
        p.scanned = end + 2
        p.bulk = -1
        p.remaining -= 1
    return Parsed.PARSE_COMMAND


cdef inline bint _blank(uint8_t c) noexcept nogil:
    return c == c' ' or (9 <= c <= 13)


cdef inline int _hex(uint8_t c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 32
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    return -1


cdef uint8_t _escape(uint8_t c) noexcept nogil:
    if c == c'n':
        return c'\n'
    if c == c'r':
        return c'\r'
    if c == c't':
        return c'\t'
    if c == c'b':
        return 8
    if c == c'a':
        return 7
    return c


cdef int _word(Parser* p, const uint8_t** at, const uint8_t* end) noexcept nogil:
    """Unquote one word of an inline command. 0, PARSE_ERROR (unbalanced quotes), or PARSE_MEMORY."""
    cdef uint8_t quote = 0, c
    cdef size_t start = p.words.size
    cdef const uint8_t* s = at[0]
    while True:
        if s == end:
            if quote:
                return Parsed.PARSE_ERROR
            break
        c = s[0]
        if quote == 0:
            if _blank(c):
                break
            if c == c'"' or c == c"'":
                quote = c
                s += 1
                continue
        elif c == quote:
            # A closing quote ends the word.
            if s + 1 < end and not _blank(s[1]):
                return Parsed.PARSE_ERROR
            s += 1
            break
        elif c == c'\\' and s + 1 < end:
            if quote == c"'":
                if s[1] == c"'":
                    s += 1
                    c = s[0]
            elif s + 3 < end and s[1] == c'x' and _hex(s[2]) >= 0 and _hex(s[3]) >= 0:
                c = <uint8_t>(_hex(s[2]) * 16 + _hex(s[3]))
                s += 3
            else:
                s += 1
                c = _escape(s[0])
        if put_u8(&p.words, c) < 0:
            return Parsed.PARSE_MEMORY
        s += 1
    at[0] = s
    return _add(p, start, p.words.size - start)


cdef int _inline(Parser* p, const uint8_t* data, size_t size) noexcept nogil:
    """A line of blank-separated, possibly quoted words. Returns a Parsed; count may be 0."""
    cdef const void* found
    cdef const uint8_t* at = data
    cdef const uint8_t* end
    cdef int status
    found = memchr(data + p.scanned, c'\n', size - p.scanned)
    if found == NULL:
        p.scanned = size
        if size > Limit.INLINE_BYTES_MAX:
            return _fail(p, b"Protocol error: too big inline request")
        return Parsed.PARSE_MORE
    end = <const uint8_t*>found
    if end - data > Limit.INLINE_BYTES_MAX:
        return _fail(p, b"Protocol error: too big inline request")
    p.scanned = end - data + 1
    if end > data and (end - 1)[0] == c'\r':
        end -= 1
    p.words.size = 0
    while True:
        while at < end and _blank(at[0]):
            at += 1
        if at == end:
            break
        status = _word(p, &at, end)
        if status == Parsed.PARSE_ERROR:
            return _fail(p, b"Protocol error: unbalanced quotes in request")
        if status < 0:
            return status
    return Parsed.PARSE_COMMAND


cdef void parser_restart(Parser* p) noexcept nogil:
    p.count = 0
    p.remaining = 0
    p.bulk = -1
    p.scanned = 0
    if p.capacity > KEPT_ARGUMENTS:
        free(p.args)
        p.args = NULL
        p.capacity = 0
    if p.words.capacity > KEPT_WORDS_BYTES:
        buffer_free(&p.words)


cdef int parser_next(Parser* p, const uint8_t* data, size_t size, size_t* consumed) noexcept nogil:
    cdef size_t start = 0, end = 0
    cdef int status
    cdef int64_t value = 0
    consumed[0] = 0
    if p.remaining == 0 and p.count:
        parser_restart(p)
    while True:
        if start == size:
            return Parsed.PARSE_MORE
        if p.remaining > 0:
            status = _multibulk(p, data + start, size - start)
            if status == Parsed.PARSE_COMMAND:
                _rebase(p, data + start)
                consumed[0] = start + p.scanned
            return status
        if data[start] != c'*':
            status = _inline(p, data + start, size - start)
            if status != Parsed.PARSE_COMMAND:
                return status
            start += p.scanned
            consumed[0] = start
            p.scanned = 0
            if p.count:
                _rebase(p, p.words.data)
                return Parsed.PARSE_COMMAND
            continue
        status = _header(data + start, size - start, 0, &end)
        if status == Line.LINE_MORE:
            return Parsed.PARSE_MORE
        if status == Line.LINE_TOO_LONG:
            return _fail(p, b"Protocol error: too big mbulk count string")
        if (
            data[start + end + 1] != c'\n'
            or not parse_integer(slice_of(data + start + 1, end - 1), &value)
            or value > Limit.ARGUMENTS_MAX
        ):
            return _fail(p, b"Protocol error: invalid multibulk length")
        if value <= 0:
            start += end + 2
            consumed[0] = start
            continue
        p.remaining = value
        p.bulk = -1
        p.scanned = end + 2


cdef void reply_simple(Reply* r, const char* text) noexcept nogil:
    reply_raw(r, b"+", 1)
    reply_raw(r, text, strlen(text))
    reply_raw(r, b"\r\n", 2)


cdef void reply_error(Reply* r, const char* text) noexcept nogil:
    reply_raw(r, b"-", 1)
    reply_raw(r, text, strlen(text))
    reply_raw(r, b"\r\n", 2)


@cython.final
cdef class RespParser:
    """The parser behind the server's connections, for Python: `feed` bytes, get whole commands.

    A command is a list of byte strings. After a `ProtocolError` the connection is
    beyond repair, and every later `feed` raises the same error.
    """

    cdef Parser parser
    cdef Buffer buffer
    cdef bytes broken

    def __cinit__(self):
        parser_init(&self.parser)
        buffer_init(&self.buffer)

    def __dealloc__(self):
        parser_free(&self.parser)
        buffer_free(&self.buffer)

    def feed(self, bytes data not None):
        """Take received bytes. Returns the list of commands that they complete.

        Raises `ProtocolError`, with the text of the error reply. The commands in front of
        the error are lost with it; feed less at a time to get them.
        """
        cdef size_t consumed = 0
        cdef size_t start = 0
        cdef size_t i
        cdef int status
        if self.broken is not None:
            raise errors.ProtocolError(self.broken.decode())
        if put_bytes(&self.buffer, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)) < 0:
            raise MemoryError("out of memory")
        commands = []
        while True:
            status = parser_next(&self.parser, self.buffer.data + start, self.buffer.size - start, &consumed)
            if status == Parsed.PARSE_COMMAND:
                commands.append([
                    PyBytes_FromStringAndSize(<const char*>self.parser.args[i].data, self.parser.args[i].size)
                    for i in range(self.parser.count)
                ])
            start += consumed
            if status == Parsed.PARSE_COMMAND:
                continue
            if status == Parsed.PARSE_MEMORY:
                raise MemoryError("out of memory")
            if status == Parsed.PARSE_ERROR:
                self.broken = <bytes>self.parser.error
                raise errors.ProtocolError(self.broken.decode())
            break
        if start:
            data = PyBytes_FromStringAndSize(<const char*>self.buffer.data + start, self.buffer.size - start)
            self.buffer.size = 0
            put_bytes(&self.buffer, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        return commands

    @property
    def pending_bytes(self):
        """Bytes of the incomplete command at the end."""
        return self.buffer.size

    @property
    def allocated_bytes(self):
        """Memory held for the incomplete command, in bytes."""
        return self.buffer.capacity + self.parser.capacity * sizeof(Slice) + self.parser.words.capacity


class Simple(str):
    """A simple string (`+OK`) for `encode`."""

    __slots__ = ()


class Error(str):
    """An error reply for `encode`, with its code first: `Error("ERR no such client")`."""

    __slots__ = ()


class Verbatim(str):
    """Text for people (`INFO`): a verbatim string in RESP3, a bulk string in RESP2."""

    __slots__ = ()


def encode(value, protocol=2):
    """Encode a reply as bytes; `protocol` is 2 or 3.

    `bytes` and `str` are bulk strings, `None` is null, `list` and `tuple` arrays, `set` and
    `frozenset` sets, `dict` maps (flat arrays in RESP2), `bool` and `float` their RESP3
    types (an integer and a bulk string in RESP2). Line ends in `Simple` and `Error` become
    blanks. Raises `TypeError` for anything else.
    """
    chunks = []
    _encode(value, protocol, chunks)
    return b"".join(chunks)


cdef bytes _line(object text):
    return text.encode().replace(b"\r", b" ").replace(b"\n", b" ")


cdef int _encode_scalar(object value, int protocol, list chunks) except -1:
    """Append the encoding of anything but a container."""
    if value is None:
        chunks.append(b"_\r\n" if protocol == 3 else b"$-1\r\n")
    elif isinstance(value, Simple):
        chunks.append(b"+%s\r\n" % _line(value))
    elif isinstance(value, Error):
        chunks.append(b"-%s\r\n" % _line(value))
    elif isinstance(value, Verbatim) and protocol == 3:
        data = value.encode()
        chunks.append(b"=%d\r\ntxt:%s\r\n" % (len(data) + 4, data))
    elif isinstance(value, bool):
        chunks.append((b"#t\r\n" if value else b"#f\r\n") if protocol == 3 else b":%d\r\n" % value)
    elif isinstance(value, int):
        chunks.append(b":%d\r\n" % value)
    elif isinstance(value, float) and protocol == 3:
        chunks.append(b",%s\r\n" % repr(value).encode())
    elif isinstance(value, (bytes, str, float)):
        data = value if isinstance(value, bytes) else str(value).encode()
        chunks.append(b"$%d\r\n%s\r\n" % (len(data), data))
    else:
        raise TypeError(f"no RESP type for {type(value).__name__}")
    return 0


cdef int _encode(object value, int protocol, list chunks) except -1:
    if isinstance(value, dict):
        chunks.append(b"%%%d\r\n" % len(value) if protocol == 3 else b"*%d\r\n" % (2 * len(value)))
        for name, item in value.items():
            _encode(name, protocol, chunks)
            _encode(item, protocol, chunks)
    elif isinstance(value, (list, tuple, set, frozenset)):
        is_set = isinstance(value, (set, frozenset)) and protocol == 3
        chunks.append(b"%s%d\r\n" % (b"~" if is_set else b"*", len(value)))
        for item in value:
            _encode(item, protocol, chunks)
    else:
        _encode_scalar(value, protocol, chunks)
    return 0
