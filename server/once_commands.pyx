"""EW.ONCE: see once_commands.pxd."""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.coding cimport Slice, buffer_slice, load_u64, put_bytes, put_u64, slice_of
from everwrite.hashing cimport hash64
from everwrite.server.commands cimport Call, Command, Family, check_call, find_command
from everwrite.server.replies cimport reply_error_about, reply_status
from everwrite.server.resp cimport reply_error, reply_null, reply_raw
from everwrite.status cimport Status
from everwrite.store cimport Store

cdef enum:
    # A record: the rest of the id, a hash of the command, and the reply in RESP3.
    NUMBER_BYTES = ID_BYTES - SLOT_BYTES
    HEAD_BYTES = NUMBER_BYTES + 8


cdef uint64_t _hash_of(const Call* call) noexcept nogil:
    """A hash of all words of a command; each one's seeds the next one's, with its length."""
    cdef uint64_t hash = 0
    cdef size_t i
    for i in range(call.count):
        hash = hash64(call.args[i], hash + call.args[i].size)
    return hash


cdef int _compare(const uint8_t* one, const uint8_t* other, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if one[i] != other[i]:
            return <int>one[i] - <int>other[i]
    return 0


cdef void _reply_recorded(Call* call, Slice reply) noexcept nogil:
    if reply.size == 3 and reply.data[0] == c'_':
        reply_null(call.reply)      # the one reply of a write that RESP2 spells differently
    else:
        reply_raw(call.reply, reply.data, reply.size)


cdef bint _replay(Call* call, Slice record, Slice id, uint64_t hash) noexcept nogil:
    """Answer from the record, unless the id is newer than it. Whether it was answered."""
    cdef int newer
    if record.size < HEAD_BYTES:
        reply_error(call.reply, b"ERR EW.ONCE: what is stored under this id is no record of a reply")
        return True
    newer = _compare(id.data + SLOT_BYTES, record.data, NUMBER_BYTES)
    if newer > 0:
        return False
    if newer < 0:
        reply_error(call.reply, b"ERR EW.ONCE: a later id of the same slot was recorded: what this one was "
                    b"answered isn't known any more")
    elif load_u64(record.data + NUMBER_BYTES) != hash:
        reply_error(call.reply, b"ERR EW.ONCE: this id belongs to another command; ids must not be used twice")
    else:
        _reply_recorded(call, slice_of(record.data + HEAD_BYTES, record.size - HEAD_BYTES))
    return True


cdef int _record(Store store, Call* call, Slice id, Slice key, uint64_t hash, size_t mark) noexcept nogil:
    """Write down the reply that stands in the output from `mark` on. A Status."""
    cdef Slice old
    cdef bint found = False
    cdef size_t key_size
    cdef int status
    call.scratch.size = 0
    status = put_record_key(call.scratch, id, key)
    key_size = call.scratch.size
    status |= put_bytes(call.scratch, id.data + SLOT_BYTES, NUMBER_BYTES)
    status |= put_u64(call.scratch, hash)
    status |= put_bytes(call.scratch, call.reply.out.data + mark, call.reply.out.size - mark)
    if status != 0:
        return Status.ERR_MEMORY
    status = store.op_set(
        slice_of(call.scratch.data, key_size),
        slice_of(call.scratch.data + key_size, call.scratch.size - key_size),
        0,
        store.now_ms() + RECORD_MS,
        &old,
        &found,
    )
    return status if status < 0 else Status.OK


cdef void _run_recorded(Store store, const Command* command, Call* call, Call* inner, uint64_t hash) noexcept nogil:
    """Run the command and record its reply, together or not at all."""
    cdef size_t mark = call.reply.out.size
    cdef int protocol = call.reply.protocol
    cdef int status = store.atomic_begin()
    if status < 0:
        reply_status(call.reply, status)
        return
    # Whoever sends it again may speak another version of the protocol.
    call.reply.protocol = 3
    call.scratch.size = 0
    command.run(store, inner)
    call.reply.protocol = protocol
    if call.reply.failed or call.reply.out.data[mark] == c'-':
        # Nothing was done that would have to be remembered.
        store.atomic_rollback()
        return
    status = _record(store, call, call.args[1], inner.args[1], hash, mark)
    if status < 0:
        store.atomic_rollback()
    else:
        status = store.atomic_end()
    if status < 0:
        call.reply.out.size = mark
        reply_status(call.reply, status)
    elif protocol != 3 and call.reply.out.data[mark] == c'_':
        call.reply.out.size = mark
        reply_null(call.reply)


cdef void run_once(Store store, Call* call) noexcept nogil:
    cdef const Command* command
    cdef Call inner = call[0]
    cdef Slice record
    cdef uint64_t hash
    cdef int found
    if call.args[1].size != ID_BYTES:
        reply_error(call.reply, b"ERR EW.ONCE: an id has 16 bytes")
        return
    inner.args = call.args + 2
    inner.count = call.count - 2
    command = find_command(inner.args[0])
    if command == NULL or command.family != Family.FAMILY_WRITE or command.run == run_once:
        reply_error_about(call.reply, b"ERR EW.ONCE: '", inner.args[0], b"' isn't a command that writes")
        return
    if not check_call(command, &inner):
        return
    if command.last_key != command.first_key and inner.count > 2:
        reply_error_about(call.reply, b"ERR EW.ONCE: '", inner.args[0], b"' with several keys can't be recorded; "
                          b"send it key by key")
        return
    hash = _hash_of(&inner)
    if put_record_key(call.scratch, call.args[1], inner.args[1]) != 0:
        reply_status(call.reply, Status.ERR_MEMORY)
        return
    found = store.op_get(buffer_slice(call.scratch), &record)
    if found < 0:
        reply_status(call.reply, found)
    elif found == 0 or not _replay(call, record, call.args[1], hash):
        _run_recorded(store, command, call, &inner, hash)
        call.hits = inner.hits
        call.misses = inner.misses
