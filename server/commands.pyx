"""The table of commands: names, arities, keys, handlers, and what COMMAND DOCS says of them."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from everwrite.coding cimport Slice
from everwrite.server.collection_commands cimport (
    run_hdel,
    run_hexists,
    run_hget,
    run_hgetall,
    run_hincrby,
    run_hlen,
    run_hmget,
    run_hmset,
    run_hset,
    run_sadd,
    run_scard,
    run_sismember,
    run_smembers,
    run_srem,
)
from everwrite.server.key_commands cimport (
    run_dbsize,
    run_deadline,
    run_del,
    run_echo,
    run_exists,
    run_expire,
    run_expireat,
    run_expiretime,
    run_memory,
    run_persist,
    run_pexpire,
    run_pexpireat,
    run_pexpiretime,
    run_ping,
    run_pttl,
    run_scan,
    run_ttl,
    run_type,
)
from everwrite.server.once_commands cimport run_once
from everwrite.server.replies cimport reply_sent, reply_wrong_arity
from everwrite.server.resp cimport ReplyFailure, reply_error, reply_raw
from everwrite.server.string_commands cimport (
    run_decr,
    run_decrby,
    run_get,
    run_getdel,
    run_incr,
    run_incrby,
    run_mget,
    run_mset,
    run_set,
    run_strlen,
)
from everwrite.store cimport Store

from typing import NamedTuple

cdef enum:
    NAME_BYTES_MAX = 16
    SLOTS = 256             # a power of two, well above the number of commands

cdef Command table[COMMANDS_MAX]
cdef int table_size = 0
cdef int slots[SLOTS]       # 1 + index into the table, 0: empty
memset(slots, 0, sizeof(slots))


class CommandInfo(NamedTuple):
    """What COMMAND and COMMAND DOCS tell of a command; `keys` is (first, last, step) as there."""

    name: str
    arity: int
    flags: tuple[str, ...]
    keys: tuple[int, int, int]
    group: str
    since: str
    summary: str


cdef inline uint64_t _upper(uint64_t word) noexcept nogil:
    """ASCII upper case of eight bytes at once: clear bit 5 of the bytes in 'a'..'z'."""
    cdef uint64_t low = word & <uint64_t>0x7f7f7f7f7f7f7f7f
    cdef uint64_t from_a = low + <uint64_t>0x1f1f1f1f1f1f1f1f
    cdef uint64_t after_z = low + <uint64_t>0x0505050505050505
    return word ^ ((((from_a ^ after_z) & ~word) & <uint64_t>0x8080808080808080) >> 2)


cdef inline void _words(Slice name, uint64_t* words) noexcept nogil:
    words[0] = 0
    words[1] = 0
    memcpy(words, name.data, name.size)
    words[0] = _upper(words[0])
    words[1] = _upper(words[1])


cdef inline size_t _slot(const uint64_t* words) noexcept nogil:
    return <size_t>(((words[0] ^ (words[1] * 3)) * <uint64_t>0x9e3779b97f4a7c15) >> 56)


cdef const Command* find_command(Slice name) noexcept nogil:
    cdef uint64_t words[2]
    cdef size_t slot
    cdef Command* command
    if name.size == 0 or name.size > NAME_BYTES_MAX:
        return NULL
    _words(name, words)
    slot = _slot(words)
    while slots[slot]:
        command = &table[slots[slot] - 1]
        if command.name[0] == words[0] and command.name[1] == words[1] and strlen(command.text) == name.size:
            return command
        slot = (slot + 1) & (SLOTS - 1)
    return NULL


cdef const Command* command_at(int index) noexcept nogil:
    return &table[index]


cdef void reply_unknown(Call* call) noexcept nogil:
    cdef size_t i, before, start, size
    reply_raw(call.reply, b"-ERR unknown command '", 22)
    reply_sent(call.reply, call.args[0], 128)
    reply_raw(call.reply, b"', with args beginning with: ", 29)
    start = call.reply.out.size
    for i in range(1, call.count):
        before = call.reply.out.size - start
        if before >= 128 or call.reply.failed:
            break
        size = 128 - before
        reply_raw(call.reply, b"'", 1)
        reply_sent(call.reply, call.args[i], size)
        reply_raw(call.reply, b"' ", 2)
    reply_raw(call.reply, b"\r\n", 2)


cdef bint _check_keys(const Command* command, Call* call) noexcept nogil:
    cdef size_t i = command.first_key
    cdef size_t last = command.last_key if command.last_key >= 0 else call.count + command.last_key
    while i <= last and i < call.count:
        if call.args[i].size > KEY_BYTES_MAX:
            reply_error(call.reply, b"ERR key is too long: keys may have 65536 bytes")
            return False
        i += command.key_step
    return True


cdef bint check_call(const Command* command, Call* call) noexcept nogil:
    if (command.arity > 0 and call.count != <size_t>command.arity) or (
        command.arity < 0 and call.count < <size_t>-command.arity
    ):
        reply_wrong_arity(call.reply, command.text)
        return False
    return command.first_key == 0 or _check_keys(command, call)


cdef void run_command(Store store, const Command* command, Call* call) noexcept nogil:
    cdef size_t mark = call.reply.out.size
    cdef int failure
    if not check_call(command, call):
        return
    call.scratch.size = 0
    command.run(store, call)
    if call.reply.failed:
        # Over the limit, or out of memory: nothing of it can have been sent yet.
        failure = call.reply.failed
        call.reply.out.size = mark
        call.reply.failed = 0
        if failure == ReplyFailure.REPLY_TOO_LARGE:
            reply_error(call.reply, b"ERR the reply is too large: ask for less at a time")
        else:
            reply_error(call.reply, b"OOM out of memory while building the reply")


cdef object _define(
    str name, int arity, int family, tuple keys, Handler run, str flags, str group, str since, str summary
):
    """Add a command to the native table. Returns its description."""
    global table_size
    cdef bytes upper = name.upper().encode()
    cdef Command* command
    cdef Slice text
    cdef size_t slot
    if len(upper) > NAME_BYTES_MAX or table_size == COMMANDS_MAX:
        raise ValueError(f"no room in the command table for {name}")
    command = &table[table_size]
    memset(command, 0, sizeof(Command))
    text.data = <const uint8_t*><const char*>upper
    text.size = len(upper)
    _words(text, command.name)
    lower = name.encode()
    memcpy(command.text, <const char*>lower, len(lower))
    command.index = table_size
    command.arity = arity
    command.family = family
    command.first_key, command.last_key, command.key_step = keys
    command.run = run
    slot = _slot(command.name)
    while slots[slot]:
        slot = (slot + 1) & (SLOTS - 1)
    table_size += 1
    slots[slot] = table_size
    return CommandInfo(name, arity, tuple(flags.split()), keys, group, since, summary)


cdef tuple ONE = (1, 1, 1)
cdef tuple EVERY = (1, -1, 1)
cdef tuple NO_KEYS = (0, 0, 0)


cdef list _define_reads():
    cdef int r = Family.FAMILY_READ
    return [
        _define("get", 2, r, ONE, run_get, "readonly fast", "string", "1.0.0", "Get the value of a key"),
        _define("mget", -2, r, EVERY, run_mget, "readonly fast", "string", "1.0.0", "Get the values of several keys"),
        _define("strlen", 2, r, ONE, run_strlen, "readonly fast", "string", "2.2.0", "Get the length of a value"),
        _define("exists", -2, r, EVERY, run_exists, "readonly fast", "generic", "1.0.0", "Count the keys that exist"),
        _define("type", 2, r, ONE, run_type, "readonly fast", "generic", "1.0.0", "Get the type of a key"),
        _define("ttl", 2, r, ONE, run_ttl, "readonly fast", "generic", "1.0.0", "Get the time to live in seconds"),
        _define("pttl", 2, r, ONE, run_pttl, "readonly fast", "generic", "2.6.0", "Get the time to live in ms"),
        _define("expiretime", 2, r, ONE, run_expiretime, "readonly fast", "generic", "7.0.0",
                "Get the expiry as Unix time in seconds"),
        _define("pexpiretime", 2, r, ONE, run_pexpiretime, "readonly fast", "generic", "7.0.0",
                "Get the expiry as Unix time in ms"),
        _define("dbsize", 1, r, NO_KEYS, run_dbsize, "readonly fast", "server", "1.0.0", "Count the keys"),
        _define("scan", -2, r, NO_KEYS, run_scan, "readonly", "generic", "2.8.0", "Iterate over the keys"),
        _define("memory", -2, r, (2, 2, 1), run_memory, "readonly", "server", "4.0.0",
                "Estimate the memory of a key: MEMORY USAGE key [SAMPLES n]"),
        _define("smembers", 2, r, ONE, run_smembers, "readonly", "set", "1.0.0", "Get all members of a set"),
        _define("sismember", 3, r, ONE, run_sismember, "readonly fast", "set", "1.0.0", "Test for a member of a set"),
        _define("scard", 2, r, ONE, run_scard, "readonly fast", "set", "1.0.0", "Count the members of a set"),
        _define("hget", 3, r, ONE, run_hget, "readonly fast", "hash", "2.0.0", "Get the value of a field"),
        _define("hmget", -3, r, ONE, run_hmget, "readonly fast", "hash", "2.0.0", "Get the values of several fields"),
        _define("hgetall", 2, r, ONE, run_hgetall, "readonly", "hash", "2.0.0", "Get all fields and values of a hash"),
        _define("hexists", 3, r, ONE, run_hexists, "readonly fast", "hash", "2.0.0", "Test for a field of a hash"),
        _define("hlen", 2, r, ONE, run_hlen, "readonly fast", "hash", "2.0.0", "Count the fields of a hash"),
    ]


cdef list _define_writes():
    cdef int w = Family.FAMILY_WRITE
    cdef str plain = "write denyoom fast"
    return [
        _define("set", -3, w, ONE, run_set, "write denyoom", "string", "1.0.0", "Set the value of a key"),
        _define("mset", -3, w, (1, -1, 2), run_mset, "write denyoom", "string", "1.0.1", "Set several keys at once"),
        _define("getdel", 2, w, ONE, run_getdel, "write fast", "string", "6.2.0", "Get a value and delete its key"),
        _define("incr", 2, w, ONE, run_incr, plain, "string", "1.0.0", "Add one to a counter"),
        _define("decr", 2, w, ONE, run_decr, plain, "string", "1.0.0", "Take one from a counter"),
        _define("incrby", 3, w, ONE, run_incrby, plain, "string", "1.0.0", "Add to a counter"),
        _define("decrby", 3, w, ONE, run_decrby, plain, "string", "1.0.0", "Take from a counter"),
        _define("del", -2, w, EVERY, run_del, "write", "generic", "1.0.0", "Delete keys"),
        _define("expire", -3, w, ONE, run_expire, "write fast", "generic", "1.0.0", "Let a key expire in seconds"),
        _define("pexpire", -3, w, ONE, run_pexpire, "write fast", "generic", "2.6.0", "Let a key expire in ms"),
        _define("expireat", -3, w, ONE, run_expireat, "write fast", "generic", "1.2.0",
                "Let a key expire at a Unix time in seconds"),
        _define("pexpireat", -3, w, ONE, run_pexpireat, "write fast", "generic", "2.6.0",
                "Let a key expire at a Unix time in ms"),
        _define("persist", 2, w, ONE, run_persist, "write fast", "generic", "2.2.0", "Take the expiry off a key"),
        _define("sadd", -3, w, ONE, run_sadd, plain, "set", "1.0.0", "Add members to a set"),
        _define("srem", -3, w, ONE, run_srem, "write fast", "set", "1.0.0", "Remove members from a set"),
        _define("hset", -4, w, ONE, run_hset, plain, "hash", "2.0.0", "Set fields of a hash"),
        _define("hmset", -4, w, ONE, run_hmset, plain, "hash", "2.0.0", "Set fields of a hash (use HSET)"),
        _define("hdel", -3, w, ONE, run_hdel, "write fast", "hash", "2.0.0", "Delete fields of a hash"),
        _define("hincrby", 4, w, ONE, run_hincrby, plain, "hash", "2.0.0", "Add to a counter in a hash"),
        _define("ew.once", -4, w, (3, 3, 1), run_once, "write denyoom", "everwrite", "0.1.0",
                "Run a write with an id: EW.ONCE id command key ...; the same id again gets the same answer"),
    ]


cdef list _define_others():
    cdef int c = Family.FAMILY_CONNECTION
    cdef int p = Family.FAMILY_CONTROL
    cdef str setup = "noscript loading stale fast"
    return [
        _define("ping", -1, c, NO_KEYS, run_ping, "fast", "connection", "1.0.0", "Answer PONG, or the message"),
        _define("echo", 2, c, NO_KEYS, run_echo, "loading stale fast", "connection", "1.0.0", "Answer the message"),
        _define("hello", -1, p, NO_KEYS, NULL, setup, "connection", "6.0.0", "Shake hands: protocol, name"),
        _define("auth", -2, p, NO_KEYS, NULL, setup, "connection", "1.0.0", "Authenticate the connection"),
        _define("select", 2, p, NO_KEYS, NULL, "loading stale fast", "connection", "1.0.0", "Select database 0"),
        _define("client", -2, p, NO_KEYS, NULL, "noscript loading stale", "connection", "2.4.0",
                "Ask or tell about connections"),
        _define("reset", 1, p, NO_KEYS, NULL, setup, "connection", "6.2.0", "Reset the connection"),
        _define("quit", -1, p, NO_KEYS, NULL, setup, "connection", "1.0.0", "Close the connection"),
        _define("command", -1, p, NO_KEYS, NULL, "loading stale", "server", "2.8.13", "Describe commands"),
        _define("config", -2, p, NO_KEYS, NULL, "admin noscript loading stale", "server", "2.0.0",
                "Get configuration: CONFIG GET pattern"),
        _define("info", -1, p, NO_KEYS, NULL, "loading stale", "server", "1.0.0", "Get information and statistics"),
        _define("time", 1, p, NO_KEYS, NULL, "loading stale fast", "server", "2.6.0", "Get the node's time"),
        _define("cluster", -2, p, NO_KEYS, NULL, "", "cluster", "3.0.0", "Answers that there is no slot cluster"),
        _define("module", -2, p, NO_KEYS, NULL, "admin noscript", "server", "4.0.0", "List modules: there are none"),
        _define("wait", 3, p, NO_KEYS, NULL, "", "generic", "3.0.0",
                "Wait until other regions have acknowledged this connection's writes"),
        _define("ew.consistency", -1, p, NO_KEYS, NULL, "fast", "everwrite", "0.1.0",
                "Tell or set the consistency level of this connection: EW.CONSISTENCY [ONE|LOCAL_QUORUM|ALL]"),
        _define("ew.deadline", 2, c, NO_KEYS, run_deadline, "fast", "everwrite", "0.1.0",
                "Bound in ms how long the next command waits for other nodes"),
        _define("ew.why", 2, p, ONE, NULL, "readonly", "everwrite", "0.1.0",
                "Explain a key: its context, and which region wrote what is visible"),
    ]


TABLE = tuple(_define_reads() + _define_writes() + _define_others())
