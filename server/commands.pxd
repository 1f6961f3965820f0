"""The table of commands, and how one runs natively.

A handler runs under the store's lock and without the GIL. It reads `call.args` and writes
exactly one reply; a command without a handler goes up to Python.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.server.cursors cimport Cursors
from everwrite.server.replies cimport reply_status
from everwrite.server.resp cimport Reply, reply_bulk, reply_null
from everwrite.store cimport Store


cdef enum Family:
    FAMILY_READ = 0
    FAMILY_WRITE = 1
    FAMILY_CONNECTION = 2
    FAMILY_CONTROL = 3
    FAMILY_COUNT = 4


cdef enum:
    COMMANDS_MAX = 96
    KEY_BYTES_MAX = 65536


cdef struct Call:
    # args[0] is the command's name. The slices live until the handler returns.
    const Slice* args
    size_t count
    Reply* reply
    Cursors* cursors
    Buffer* scratch         # empty at the start of each command
    uint64_t hits           # reads that found their key, and those that didn't
    uint64_t misses
    int64_t limit_ns        # set by a command that bounds how long the next one may wait; 0: it wasn't


cdef inline void note_lookup(Call* call, bint found) noexcept nogil:
    if found:
        call.hits += 1
    else:
        call.misses += 1


cdef inline void reply_value(Call* call, int found, Slice value) noexcept nogil:
    """The answer to a read: the value (`found` 1), null (0), or the error that a negative `found` is."""
    if found < 0:
        reply_status(call.reply, found)
        return
    note_lookup(call, found)
    if found:
        reply_bulk(call.reply, value)
    else:
        reply_null(call.reply)


ctypedef void (*Handler)(Store store, Call* call) noexcept nogil


cdef struct Command:
    uint64_t name[2]        # upper case, zero-padded
    int index               # into the table, and into a frontend's counters
    int arity               # arguments with the name; negative: at least
    int family
    # Keys are args[first_key], then every key_step-th, to last_key (negative: from the end); first_key 0: none.
    int first_key
    int last_key
    int key_step
    Handler run             # NULL: answered by Python
    char text[20]           # lower case


cdef const Command* find_command(Slice name) noexcept nogil      # NULL when unknown
cdef const Command* command_at(int index) noexcept nogil

# Check the call, run the handler, and turn a reply that failed half-way into an error.
cdef void run_command(Store store, const Command* command, Call* call) noexcept nogil
# Check arity and keys. False: the error was replied.
cdef bint check_call(const Command* command, Call* call) noexcept nogil
cdef void reply_unknown(Call* call) noexcept nogil
