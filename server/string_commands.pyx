"""Commands on strings and counters: arguments in, store operations, replies in Redis's shapes."""

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t

from everwrite.coding cimport Slice
from everwrite.decimals cimport parse_integer
from everwrite.server.commands cimport Call, note_lookup, reply_value
from everwrite.server.replies cimport is_word, reply_count, reply_not_integer, reply_status, reply_syntax_error
from everwrite.server.resp cimport (
    reply_array,
    reply_bulk,
    reply_error,
    reply_null,
    reply_ok,
)
from everwrite.status cimport Status
from everwrite.store cimport SetFlag, Store


cdef struct SetOptions:
    int flags               # of SetFlag
    int64_t deadline_ms     # Unix ms, 0: none


cdef void run_get(Store store, Call* call) noexcept nogil:
    cdef Slice value
    cdef int found = store.op_get(call.args[1], &value)
    reply_value(call, found, value)


cdef bint _deadline(Store store, Slice text, bint seconds, bint relative, Call* call, int64_t* deadline) noexcept nogil:
    """Read SET's time. False: the error was replied."""
    cdef int64_t value = 0
    if not parse_integer(text, &value):
        reply_not_integer(call.reply)
        return False
    if value > 0 and (not seconds or value <= INT64_MAX // 1000):
        if seconds:
            value *= 1000
        if not relative:
            deadline[0] = value
            return True
        deadline[0] = store.now_ms()
        if value <= INT64_MAX - deadline[0]:
            deadline[0] += value
            return True
    reply_error(call.reply, b"ERR invalid expire time in 'set' command")
    return False


cdef bint _set_options(Store store, Call* call, SetOptions* options) noexcept nogil:
    """Read what follows SET key value. False: the error was replied."""
    cdef size_t i = 3
    cdef bint timed = False, seconds, relative
    cdef size_t time_at = 0
    cdef Slice word
    options.flags = 0
    options.deadline_ms = 0
    seconds = relative = False
    while i < call.count:
        word = call.args[i]
        if is_word(word, b"NX") and not options.flags & SetFlag.SET_XX:
            options.flags |= SetFlag.SET_NX
        elif is_word(word, b"XX") and not options.flags & SetFlag.SET_NX:
            options.flags |= SetFlag.SET_XX
        elif is_word(word, b"GET"):
            options.flags |= SetFlag.SET_WANT_OLD
        elif is_word(word, b"KEEPTTL") and not timed:
            options.flags |= SetFlag.SET_KEEPTTL
        elif (
            not timed
            and not options.flags & SetFlag.SET_KEEPTTL
            and i + 1 < call.count
            and (is_word(word, b"EX") or is_word(word, b"PX") or is_word(word, b"EXAT") or is_word(word, b"PXAT"))
        ):
            timed = True
            seconds = word.data[0] == c'E' or word.data[0] == c'e'
            relative = word.size == 2
            i += 1
            time_at = i
        else:
            reply_syntax_error(call.reply)
            return False
        i += 1
    # The time is looked at last: a syntax error anywhere goes before it.
    return not timed or _deadline(store, call.args[time_at], seconds, relative, call, &options.deadline_ms)


cdef void run_set(Store store, Call* call) noexcept nogil:
    cdef SetOptions options
    cdef Slice old
    cdef bint found = False
    cdef int written
    if call.count == 3:
        written = store.op_set(call.args[1], call.args[2], 0, 0, &old, &found)
        if written < 0:
            reply_status(call.reply, written)
        else:
            reply_ok(call.reply)
        return
    if not _set_options(store, call, &options):
        return
    written = store.op_set(call.args[1], call.args[2], options.flags, options.deadline_ms, &old, &found)
    if written < 0:
        reply_status(call.reply, written)
    elif options.flags & SetFlag.SET_WANT_OLD and found:
        reply_bulk(call.reply, old)
    elif options.flags & SetFlag.SET_WANT_OLD or written == 0:
        reply_null(call.reply)
    else:
        reply_ok(call.reply)


cdef void run_mget(Store store, Call* call) noexcept nogil:
    cdef size_t i
    cdef int found
    cdef size_t mark = call.reply.out.size
    cdef Slice value
    reply_array(call.reply, <int64_t>call.count - 1)
    for i in range(1, call.count):
        found = store.op_get(call.args[i], &value)
        if found == Status.ERR_WRONG_TYPE:
            # Like in Redis, another type counts as absent here.
            found = 0
        if found < 0:
            call.reply.out.size = mark
        reply_value(call, found, value)
        if found < 0 or call.reply.failed:
            return


cdef void run_mset(Store store, Call* call) noexcept nogil:
    cdef size_t i
    cdef int status = 0, ended
    cdef Slice old
    cdef bint found = False
    if call.count % 2 == 0:
        reply_error(call.reply, b"ERR wrong number of arguments for 'mset' command")
        return
    store.batch_begin()
    store.values_stay = True
    for i in range(1, call.count, 2):
        status = store.op_set(call.args[i], call.args[i + 1], 0, 0, &old, &found)
        if status < 0:
            break
    ended = store.batch_end()
    if status < 0 or ended < 0:
        reply_status(call.reply, status if status < 0 else ended)
    else:
        reply_ok(call.reply)


cdef void run_getdel(Store store, Call* call) noexcept nogil:
    cdef Slice value
    cdef size_t mark = call.reply.out.size
    cdef int status = store.op_get(call.args[1], &value)
    # The value goes first: it lives until the next operation only.
    reply_value(call, status, value)
    if status <= 0 or call.reply.failed:
        return
    status = store.op_delete(call.args[1])
    if status < 0:
        call.reply.out.size = mark
        reply_status(call.reply, status)


cdef void run_strlen(Store store, Call* call) noexcept nogil:
    cdef Slice value
    cdef int found = store.op_get(call.args[1], &value)
    if found >= 0:
        note_lookup(call, found)
    reply_count(call.reply, found, <int64_t>value.size if found > 0 else 0)


cdef void _increment(Store store, Call* call, int64_t amount) noexcept nogil:
    cdef int64_t result = 0
    cdef int status = store.op_increment(call.args[1], amount, &result)
    reply_count(call.reply, status, result)


cdef void run_incr(Store store, Call* call) noexcept nogil:
    _increment(store, call, 1)


cdef void run_decr(Store store, Call* call) noexcept nogil:
    _increment(store, call, -1)


cdef void run_incrby(Store store, Call* call) noexcept nogil:
    cdef int64_t amount = 0
    if parse_integer(call.args[2], &amount):
        _increment(store, call, amount)
    else:
        reply_not_integer(call.reply)


cdef void run_decrby(Store store, Call* call) noexcept nogil:
    cdef int64_t amount = 0
    if not parse_integer(call.args[2], &amount):
        reply_not_integer(call.reply)
    elif amount == INT64_MIN:
        reply_error(call.reply, b"ERR decrement would overflow")
    else:
        _increment(store, call, -amount)
