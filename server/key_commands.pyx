"""Commands on keys of any type, and the few on the connection that need no Python."""

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp

from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, buffer_slice, put_bytes, put_u8, slice_of
from everwrite.decimals cimport parse_integer, write_decimal
from everwrite.server.commands cimport Call, note_lookup
from everwrite.server.cursors cimport cursors_add, cursors_find
from everwrite.server.glob cimport glob_literal_prefix, glob_match
from everwrite.server.once_commands cimport MARK_BYTES, is_record, record_end
from everwrite.server.replies cimport (
    is_word,
    reply_count,
    reply_error_about,
    reply_not_integer,
    reply_status,
    reply_syntax_error,
    reply_wrong_arity,
)
from everwrite.server.resp cimport (
    Reply,
    reply_array,
    reply_bulk,
    reply_error,
    reply_integer,
    reply_null,
    reply_ok,
    reply_raw,
    reply_simple,
)
from everwrite.status cimport Status
from everwrite.store cimport Elements, Keys, Kind, Store

from everwrite.kinds import KIND_NAMES

# Types that Redis doesn't have go by the engine's names, as those of modules do; none of its commands takes them.
_TYPE_NAMES = [b"hash" if name == "map" else name.encode() for name in KIND_NAMES]
cdef const char* type_names[Kind.KIND_SEQUENCE + 1]
for _kind, _name in enumerate(_TYPE_NAMES):
    type_names[_kind] = _name

cdef enum:
    DEADLINE_MS_MAX = 3600000

# What one call of SCAN may do, whatever its COUNT and pattern say.
cdef enum:
    SCAN_VISITS_MAX = 10000
    SCAN_BYTES_MAX = 1 << 20
    SCAN_STEPS_MAX = 1 << 23
    SCAN_PATTERN_BYTES_MAX = 1024

# An entry's share of the tables beside its bytes, as MEMORY USAGE counts it.
cdef enum:
    ENTRY_OVERHEAD_BYTES = 48
    MEMORY_SAMPLES = 5

# op_deadline keeps its errors apart from its answers.
cdef enum:
    DEADLINE_NONE = -1
    DEADLINE_NO_KEY = -2
    DEADLINE_ERRORS_BELOW = -100


cdef void run_del(Store store, Call* call) noexcept nogil:
    cdef size_t i
    cdef int64_t removed = 0
    cdef int status = 0, ended = 0
    if call.count > 2:
        store.batch_begin()
    for i in range(1, call.count):
        status = store.op_delete(call.args[i])
        if status < 0:
            break
        removed += status
    if call.count > 2:
        ended = store.batch_end()
    reply_count(call.reply, status if status < 0 else ended, removed)


cdef void run_exists(Store store, Call* call) noexcept nogil:
    cdef size_t i
    cdef int64_t found = 0
    cdef int kind
    for i in range(1, call.count):
        kind = store.op_type(call.args[i])
        if kind < 0:
            reply_status(call.reply, kind)
            return
        note_lookup(call, kind != Kind.KIND_NONE)
        found += kind != Kind.KIND_NONE
    reply_integer(call.reply, found)


cdef void run_type(Store store, Call* call) noexcept nogil:
    cdef int kind = store.op_type(call.args[1])
    if kind < 0:
        reply_status(call.reply, kind)
    else:
        reply_simple(call.reply, type_names[kind])


cdef void _time_left(Store store, Call* call, bint absolute, bint seconds) noexcept nogil:
    cdef int64_t answer = store.op_deadline(call.args[1])
    if answer < DEADLINE_ERRORS_BELOW:
        reply_status(call.reply, <int>(answer - DEADLINE_ERRORS_BELOW))
        return
    if answer >= 0:
        if not absolute:
            answer -= store.now_ms()
            if answer < 0:
                answer = 0
        if seconds:
            answer = answer // 1000 + (answer % 1000 >= 500)
    reply_integer(call.reply, answer)


cdef void run_ttl(Store store, Call* call) noexcept nogil:
    _time_left(store, call, False, True)


cdef void run_pttl(Store store, Call* call) noexcept nogil:
    _time_left(store, call, False, False)


cdef void run_expiretime(Store store, Call* call) noexcept nogil:
    _time_left(store, call, True, True)


cdef void run_pexpiretime(Store store, Call* call) noexcept nogil:
    _time_left(store, call, True, False)


cdef enum ExpireFlag:
    EXPIRE_NX = 1
    EXPIRE_XX = 2
    EXPIRE_GT = 4
    EXPIRE_LT = 8


cdef int _expire_flags(Call* call) noexcept nogil:
    """Read what follows EXPIRE key time. -1: the error was replied."""
    cdef int flags = 0
    cdef size_t i
    for i in range(3, call.count):
        if is_word(call.args[i], b"NX"):
            flags |= EXPIRE_NX
        elif is_word(call.args[i], b"XX"):
            flags |= EXPIRE_XX
        elif is_word(call.args[i], b"GT"):
            flags |= EXPIRE_GT
        elif is_word(call.args[i], b"LT"):
            flags |= EXPIRE_LT
        else:
            reply_error_about(call.reply, b"ERR Unsupported option ", call.args[i], b"")
            return -1
    if flags & EXPIRE_NX and flags & (EXPIRE_XX | EXPIRE_GT | EXPIRE_LT):
        reply_error(call.reply, b"ERR NX and XX, GT or LT options at the same time are not compatible")
        return -1
    if flags & EXPIRE_GT and flags & EXPIRE_LT:
        reply_error(call.reply, b"ERR GT and LT options at the same time are not compatible")
        return -1
    return flags


cdef bint _expire_allowed(int flags, int64_t deadline, int64_t current) noexcept nogil:
    """Whether the flags let `deadline` replace `current`; a key without one lives for ever."""
    if flags & EXPIRE_NX and current != DEADLINE_NONE:
        return False
    if flags & EXPIRE_XX and current == DEADLINE_NONE:
        return False
    if flags & EXPIRE_GT and (current == DEADLINE_NONE or deadline <= current):
        return False
    return not (flags & EXPIRE_LT and current != DEADLINE_NONE and deadline >= current)


cdef void _expire(Store store, Call* call, const char* name, bint seconds, bint relative) noexcept nogil:
    cdef int64_t deadline = 0, base = 0, unit_ms = 1000 if seconds else 1, current
    cdef int flags = _expire_flags(call), status
    cdef char text[80]
    if flags < 0:
        return
    if not parse_integer(call.args[2], &deadline):
        reply_not_integer(call.reply)
        return
    if relative:
        base = store.now_ms()
    if deadline > (INT64_MAX - base) // unit_ms or deadline < INT64_MIN // unit_ms:
        snprintf(text, sizeof(text), b"ERR invalid expire time in '%s' command", name)
        reply_error(call.reply, text)
        return
    deadline = deadline * unit_ms + base
    if flags:
        current = store.op_deadline(call.args[1])
        if current < DEADLINE_ERRORS_BELOW:
            reply_status(call.reply, <int>(current - DEADLINE_ERRORS_BELOW))
            return
        if current == DEADLINE_NO_KEY or not _expire_allowed(flags, deadline, current):
            reply_integer(call.reply, 0)
            return
    # The store takes positive times; whatever is before 1970 is past all the same.
    status = store.op_expire_at(call.args[1], deadline if deadline > 0 else 1)
    reply_count(call.reply, status, status)


cdef void run_expire(Store store, Call* call) noexcept nogil:
    _expire(store, call, b"expire", True, True)


cdef void run_pexpire(Store store, Call* call) noexcept nogil:
    _expire(store, call, b"pexpire", False, True)


cdef void run_expireat(Store store, Call* call) noexcept nogil:
    _expire(store, call, b"expireat", True, False)


cdef void run_pexpireat(Store store, Call* call) noexcept nogil:
    _expire(store, call, b"pexpireat", False, False)


cdef void run_persist(Store store, Call* call) noexcept nogil:
    cdef int status = store.op_persist(call.args[1])
    reply_count(call.reply, status, status)


cdef void run_dbsize(Store store, Call* call) noexcept nogil:
    reply_integer(call.reply, store.op_count())


cdef struct ScanRequest:
    uint64_t cursor
    int64_t count           # keys to visit
    Slice pattern
    bint has_pattern
    Slice type_name
    bint has_type


cdef bint _parse_cursor(Slice text, uint64_t* cursor) noexcept nogil:
    cdef size_t i
    cdef uint64_t value = 0
    if text.size > 20:
        return False
    for i in range(text.size):
        if text.data[i] < c'0' or text.data[i] > c'9':
            return False
        if value > (<uint64_t>0xffffffffffffffff - (text.data[i] - c'0')) // 10:
            return False
        value = value * 10 + (text.data[i] - c'0')
    cursor[0] = value
    return True


cdef bint _scan_request(Call* call, ScanRequest* request) noexcept nogil:
    """Read SCAN's arguments. False: the error was replied."""
    cdef size_t i = 2
    request.count = 10
    request.has_pattern = request.has_type = False
    if not _parse_cursor(call.args[1], &request.cursor):
        reply_error(call.reply, b"ERR invalid cursor")
        return False
    while i < call.count:
        if i + 1 < call.count and is_word(call.args[i], b"COUNT"):
            if not parse_integer(call.args[i + 1], &request.count):
                reply_not_integer(call.reply)
                return False
            if request.count < 1:
                reply_syntax_error(call.reply)
                return False
        elif i + 1 < call.count and is_word(call.args[i], b"MATCH"):
            request.pattern = call.args[i + 1]
            request.has_pattern = not (request.pattern.size == 1 and request.pattern.data[0] == c'*')
        elif i + 1 < call.count and is_word(call.args[i], b"TYPE"):
            request.type_name = call.args[i + 1]
            request.has_type = True
        else:
            reply_syntax_error(call.reply)
            return False
        i += 2
    if request.has_pattern and request.pattern.size > SCAN_PATTERN_BYTES_MAX:
        reply_error(call.reply, b"ERR the pattern is longer than 1024 bytes")
        return False
    if request.count > SCAN_VISITS_MAX:
        request.count = SCAN_VISITS_MAX
    return True


cdef bint _scan_wants(const ScanRequest* request, Slice key, int kind, uint64_t* steps) noexcept nogil:
    cdef const char* name
    if request.has_type:
        # Kind names are in lower case; the argument may not be.
        name = type_names[kind]
        for i in range(request.type_name.size):
            if name[i] == 0 or (request.type_name.data[i] | 32) != <unsigned char>name[i]:
                return False
        if name[request.type_name.size] != 0:
            return False
    return not request.has_pattern or glob_match(request.pattern, key, steps)


cdef int _scan_visit(
    Store store, Call* call, const ScanRequest* request, Slice start, Slice prefix, int64_t* found, uint64_t* cursor
) noexcept nogil:
    """Visit keys from `start`; matches go to call.scratch. Sets *cursor, 0 at the end. A Status."""
    cdef Reply keys
    cdef Slice key
    cdef int kind = 0, status = 1
    cdef int64_t visited = 0
    cdef uint64_t steps = 0
    cdef Keys* it = store.keys_open(start)
    if it == NULL:
        return Status.ERR_MEMORY
    keys.out = call.scratch
    keys.protocol = call.reply.protocol
    keys.failed = 0
    keys.limit = call.reply.limit
    while True:
        status = store.keys_next(it, &key, &kind)
        if status <= 0 or (prefix.size and (key.size < prefix.size or memcmp(key.data, prefix.data, prefix.size) != 0)):
            break
        if is_record(key):
            # However many there are: they lie side by side.
            store.keys_close(it)
            it = store.keys_open(slice_of(<const uint8_t*>record_end(), MARK_BYTES))
            if it == NULL:
                return Status.ERR_MEMORY
            continue
        visited += 1
        if _scan_wants(request, key, kind, &steps):
            reply_bulk(&keys, key)
            found[0] += 1
        if visited >= request.count or keys.out.size > SCAN_BYTES_MAX or steps > SCAN_STEPS_MAX:
            cursor[0] = cursors_add(call.cursors, key, request.cursor)
            if cursor[0] == 0:
                status = Status.ERR_MEMORY
            break
    store.keys_close(it)
    if keys.failed:
        return Status.ERR_MEMORY
    return status if status < 0 else Status.OK


cdef void run_scan(Store store, Call* call) noexcept nogil:
    cdef ScanRequest request
    cdef Slice last, prefix
    cdef Buffer start
    cdef int64_t found = 0
    cdef uint64_t cursor = 0
    cdef int status = 0
    cdef unsigned char digits[24]
    if not _scan_request(call, &request):
        return
    prefix = slice_of(NULL, 0)
    if request.has_pattern:
        prefix = slice_of(request.pattern.data, glob_literal_prefix(request.pattern))
    buffer_init(&start)
    if request.cursor:
        if not cursors_find(call.cursors, request.cursor, &last):
            reply_error(call.reply, b"ERR unknown cursor: it was not used for too long, or is of another node; "
                        b"start the scan again with cursor 0")
            return
        # The first key behind `last` in byte order is `last` and a zero byte.
        status = put_bytes(&start, last.data, last.size) | put_u8(&start, 0)
    else:
        status = put_bytes(&start, prefix.data, prefix.size)
    if status == 0:
        status = _scan_visit(store, call, &request, buffer_slice(&start), prefix, &found, &cursor)
    else:
        status = Status.ERR_MEMORY
    buffer_free(&start)
    if status < 0:
        reply_status(call.reply, status)
        return
    reply_array(call.reply, 2)
    reply_bulk(call.reply, slice_of(digits, write_decimal(digits, <int64_t>cursor)))
    reply_array(call.reply, found)
    reply_raw(call.reply, call.scratch.data, call.scratch.size)


cdef int64_t _elements_bytes(Store store, Slice key, int kind, int64_t samples) noexcept nogil:
    """Bytes of a set's or map's entries, from the mean of the first `samples` (0: all). A Status when negative."""
    cdef Elements* it = NULL
    cdef Slice name, value
    cdef int64_t seen = 0, total = 0, count = 0
    cdef int status = store.op_cardinality(key, kind, &count)
    if status < 0:
        return status
    status = store.elements_open(key, kind, &it)
    if status <= 0:
        return status
    while samples == 0 or seen < samples:
        value.size = 0
        status = store.elements_next(it, &name, &value)
        if status <= 0:
            break
        total += <int64_t>(key.size + name.size + value.size) + ENTRY_OVERHEAD_BYTES
        seen += 1
    store.elements_close(it)
    if status < 0:
        return status
    return total * count // seen if seen else 0


cdef void run_memory(Store store, Call* call) noexcept nogil:
    cdef int64_t samples = MEMORY_SAMPLES, bytes_used = 0
    cdef Slice value
    cdef int kind, status
    if not is_word(call.args[1], b"USAGE"):
        reply_error_about(call.reply, b"ERR unknown subcommand '", call.args[1], b"'. Try MEMORY HELP.")
        return
    if call.count < 3:
        reply_wrong_arity(call.reply, b"memory|usage")
        return
    if call.count > 3:
        if call.count != 5 or not is_word(call.args[3], b"SAMPLES"):
            reply_syntax_error(call.reply)
            return
        if not parse_integer(call.args[4], &samples):
            reply_not_integer(call.reply)
            return
        if samples < 0:
            reply_syntax_error(call.reply)
            return
    kind = store.op_type(call.args[2])
    if kind < 0:
        reply_status(call.reply, kind)
        return
    if kind == Kind.KIND_NONE:
        reply_null(call.reply)
        return
    if kind == Kind.KIND_STRING:
        status = store.op_get(call.args[2], &value)
        if status > 0:
            bytes_used = <int64_t>value.size
        elif status < 0:
            bytes_used = status
    else:
        bytes_used = _elements_bytes(store, call.args[2], kind, samples)
    if bytes_used < 0:
        reply_status(call.reply, <int>bytes_used)
    else:
        reply_integer(call.reply, bytes_used + <int64_t>call.args[2].size + ENTRY_OVERHEAD_BYTES)


cdef void run_ping(Store store, Call* call) noexcept nogil:
    if call.count == 1:
        reply_raw(call.reply, b"+PONG\r\n", 7)
    elif call.count == 2:
        reply_bulk(call.reply, call.args[1])
    else:
        reply_wrong_arity(call.reply, b"ping")


cdef void run_echo(Store store, Call* call) noexcept nogil:
    reply_bulk(call.reply, call.args[1])


cdef void run_deadline(Store store, Call* call) noexcept nogil:
    cdef int64_t milliseconds = 0
    if not parse_integer(call.args[1], &milliseconds):
        reply_not_integer(call.reply)
    elif milliseconds < 1 or milliseconds > DEADLINE_MS_MAX:
        reply_error(call.reply, b"ERR deadline out of range: from 1 to 3600000 milliseconds")
    else:
        call.limit_ns = milliseconds * 1000000
        reply_ok(call.reply)
