"""Commands on sets and hashes: arguments in, store operations, replies in Redis's shapes."""

from libc.stdint cimport int64_t

from everwrite.coding cimport Slice, put_bytes
from everwrite.decimals cimport parse_integer
from everwrite.server.commands cimport Call, note_lookup, reply_value
from everwrite.server.replies cimport reply_count, reply_not_integer, reply_status, reply_wrong_arity
from everwrite.server.resp cimport (
    reply_array,
    reply_bulk,
    reply_error,
    reply_integer,
    reply_map,
    reply_ok,
    reply_set,
)
from everwrite.status cimport Status
from everwrite.store cimport Elements, Kind, Store


cdef void run_sadd(Store store, Call* call) noexcept nogil:
    cdef int64_t added = 0
    cdef int status = store.op_set_add(call.args[1], call.args + 2, call.count - 2, &added)
    reply_count(call.reply, status, added)


cdef void run_srem(Store store, Call* call) noexcept nogil:
    cdef int64_t removed = 0
    cdef int status = store.op_remove_elements(call.args[1], Kind.KIND_SET, call.args + 2, call.count - 2, &removed)
    reply_count(call.reply, status, removed)


cdef void _reply_elements(Store store, Call* call, int kind) noexcept nogil:
    """SMEMBERS and HGETALL: the count first, then every element as it stands under the same lock."""
    cdef Elements* it = NULL
    cdef Slice name, value
    cdef int64_t count = 0, sent = 0
    cdef size_t mark = call.reply.out.size
    cdef int status = store.op_cardinality(call.args[1], kind, &count)
    if status >= 0:
        status = store.elements_open(call.args[1], kind, &it)
    if status < 0:
        reply_status(call.reply, status)
        return
    note_lookup(call, status > 0)
    if kind == Kind.KIND_SET:
        reply_set(call.reply, count if status else 0)
    else:
        reply_map(call.reply, count if status else 0)
    if status == 0:
        return
    while not call.reply.failed:
        status = store.elements_next(it, &name, &value)
        if status <= 0:
            break
        reply_bulk(call.reply, name)
        if kind == Kind.KIND_MAP:
            reply_bulk(call.reply, value)
        sent += 1
    store.elements_close(it)
    if call.reply.failed:
        return
    if status < 0 or sent != count:
        # A reply that doesn't hold what its head announced would put the connection out of step for good.
        call.reply.out.size = mark
        if status < 0:
            reply_status(call.reply, status)
        else:
            reply_error(call.reply, b"ERR internal error: the number of elements contradicts the elements")


cdef void run_smembers(Store store, Call* call) noexcept nogil:
    _reply_elements(store, call, Kind.KIND_SET)


cdef void run_sismember(Store store, Call* call) noexcept nogil:
    cdef int found = store.op_set_contains(call.args[1], call.args[2])
    if found >= 0:
        note_lookup(call, found)
    reply_count(call.reply, found, found)


cdef void run_scard(Store store, Call* call) noexcept nogil:
    cdef int64_t count = 0
    cdef int status = store.op_cardinality(call.args[1], Kind.KIND_SET, &count)
    if status >= 0:
        note_lookup(call, count > 0)
    reply_count(call.reply, status, count)


cdef int _set_fields(Store store, Call* call, const char* name, int64_t* added) noexcept nogil:
    """HSET and HMSET. False: the error was replied."""
    cdef int status = Status.OK
    cdef const Slice* pairs = call.args + 2
    cdef size_t at = call.count
    if call.count % 2:
        reply_wrong_arity(call.reply, name)
        return False
    if call.count > 4:
        # One change is one dot, and of two values of a field under one dot the store keeps the first;
        # of a field named twice Redis keeps the last: so the pairs go in from the end.
        while at > 2 and status == Status.OK:
            at -= 2
            status = put_bytes(call.scratch, &call.args[at], 2 * sizeof(Slice))
        pairs = <const Slice*>call.scratch.data
    if status < 0:
        reply_status(call.reply, Status.ERR_MEMORY)
        return False
    status = store.op_map_set(call.args[1], pairs, (call.count - 2) // 2, added)
    if status < 0:
        reply_status(call.reply, status)
        return False
    return True


cdef void run_hset(Store store, Call* call) noexcept nogil:
    cdef int64_t added = 0
    if _set_fields(store, call, b"hset", &added):
        reply_integer(call.reply, added)


cdef void run_hmset(Store store, Call* call) noexcept nogil:
    cdef int64_t added = 0
    if _set_fields(store, call, b"hmset", &added):
        reply_ok(call.reply)


cdef void run_hget(Store store, Call* call) noexcept nogil:
    cdef Slice value
    cdef int found = store.op_map_get(call.args[1], call.args[2], &value)
    reply_value(call, found, value)


cdef void run_hmget(Store store, Call* call) noexcept nogil:
    cdef size_t i
    cdef size_t mark = call.reply.out.size
    cdef Slice value
    cdef int found
    reply_array(call.reply, <int64_t>call.count - 2)
    for i in range(2, call.count):
        found = store.op_map_get(call.args[1], call.args[i], &value)
        if found < 0:
            call.reply.out.size = mark
            reply_status(call.reply, found)
            return
        reply_value(call, found, value)
        if call.reply.failed:
            return


cdef void run_hgetall(Store store, Call* call) noexcept nogil:
    _reply_elements(store, call, Kind.KIND_MAP)


cdef void run_hdel(Store store, Call* call) noexcept nogil:
    cdef int64_t removed = 0
    cdef int status = store.op_remove_elements(call.args[1], Kind.KIND_MAP, call.args + 2, call.count - 2, &removed)
    reply_count(call.reply, status, removed)


cdef void run_hexists(Store store, Call* call) noexcept nogil:
    cdef Slice value
    cdef int found = store.op_map_get(call.args[1], call.args[2], &value)
    if found >= 0:
        note_lookup(call, found)
    reply_count(call.reply, found, found)


cdef void run_hlen(Store store, Call* call) noexcept nogil:
    cdef int64_t count = 0
    cdef int status = store.op_cardinality(call.args[1], Kind.KIND_MAP, &count)
    if status >= 0:
        note_lookup(call, count > 0)
    reply_count(call.reply, status, count)


cdef void run_hincrby(Store store, Call* call) noexcept nogil:
    cdef int64_t amount = 0, result = 0
    cdef int status
    if not parse_integer(call.args[3], &amount):
        reply_not_integer(call.reply)
        return
    status = store.op_map_increment(call.args[1], call.args[2], amount, &result)
    if status == Status.ERR_NOT_INTEGER:
        reply_error(call.reply, b"ERR hash value is not an integer")
    else:
        reply_count(call.reply, status, result)
