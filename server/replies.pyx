"""Error replies that more than one command gives, in Redis's words."""

from libc.stdio cimport snprintf
from libc.string cimport strerror, strlen

from everwrite.coding cimport Slice
from everwrite.server.resp cimport Reply, reply_error, reply_raw, reply_room
from everwrite.status cimport Fault, Status, last_fault


cdef void _reply_fault(Reply* reply, int status) noexcept nogil:
    """What was read from a file can't be trusted, or wasn't there: say which file and where."""
    cdef char text[900]
    cdef Fault* fault = last_fault()
    cdef size_t i
    if status == Status.ERR_CORRUPT:
        snprintf(text, sizeof(text), b"ERR stored data is damaged: %s at byte offset %llu: %s; "
                 b"restore the file from a replica or a backup", fault.path, fault.offset, fault.reason)
    else:
        snprintf(text, sizeof(text), b"ERR can't read stored data: %s: %s: %s", fault.path, fault.reason,
                 strerror(fault.error_number))
    for i in range(strlen(text)):
        if text[i] == c'\r' or text[i] == c'\n':
            text[i] = c' '
    reply_error(reply, text)


cdef void reply_status(Reply* reply, int status) noexcept nogil:
    if status == Status.ERR_WRONG_TYPE:
        reply_error(reply, b"WRONGTYPE Operation against a key holding the wrong kind of value")
    elif status == Status.ERR_NOT_INTEGER:
        reply_not_integer(reply)
    elif status == Status.ERR_OVERFLOW:
        reply_error(reply, b"ERR increment or decrement would overflow")
    elif status == Status.ERR_TOO_LARGE:
        reply_error(reply, b"ERR too long: a key, member or field may have 65536 bytes, a value 67108864")
    elif status == Status.ERR_MEMORY:
        reply_error(reply, b"OOM out of memory; the command was not run to its end")
    elif status == Status.ERR_FAILED:
        reply_error(reply, b"MISCONF Errors writing to the log: the store stopped after an earlier failure; "
                    b"mend the disk and restart the node")
    elif status == Status.ERR_READ_ONLY:
        # Not READONLY: on that, clients go looking for another master. On a full disk Redis says MISCONF as well.
        reply_error(reply, b"MISCONF Errors writing to the log: the disk is full: nothing was changed, and reads "
                    b"go on; writes work again by themselves once there is space")
    elif status == Status.ERR_CLOSED:
        reply_error(reply, b"ERR the store is closed")
    elif status == Status.ERR_CORRUPT or status == Status.ERR_IO:
        _reply_fault(reply, status)
    else:
        reply_error(reply, b"ERR internal error: unexpected status of the store")


cdef void reply_wrong_arity(Reply* reply, const char* name) noexcept nogil:
    cdef char text[96]
    snprintf(text, sizeof(text), b"ERR wrong number of arguments for '%s' command", name)
    reply_error(reply, text)


cdef void reply_sent(Reply* reply, Slice sent, size_t limit) noexcept nogil:
    cdef unsigned char* at
    cdef size_t i, size = sent.size if sent.size < limit else limit
    at = reply_room(reply, size)
    if at == NULL:
        return
    for i in range(size):
        if sent.data[i] == 0:
            size = i
            break
        at[i] = c' ' if sent.data[i] == c'\r' or sent.data[i] == c'\n' else sent.data[i]
    reply.out.size += size


cdef void reply_error_about(Reply* reply, const char* before, Slice sent, const char* after) noexcept nogil:
    reply_raw(reply, b"-", 1)
    reply_raw(reply, before, strlen(before))
    reply_sent(reply, sent, 128)
    reply_raw(reply, after, strlen(after))
    reply_raw(reply, b"\r\n", 2)


cdef void reply_syntax_error(Reply* reply) noexcept nogil:
    reply_error(reply, b"ERR syntax error")


cdef void reply_not_integer(Reply* reply) noexcept nogil:
    reply_error(reply, b"ERR value is not an integer or out of range")


cdef bint is_word(Slice word, const char* name) noexcept nogil:
    cdef size_t i
    if word.size != strlen(name):
        return False
    for i in range(word.size):
        if (word.data[i] - 32 if c'a' <= word.data[i] <= c'z' else word.data[i]) != <unsigned char>name[i]:
            return False
    return True
