"""EW.ONCE: a write with an id, applied once however often it is sent.

What it answered is kept in a register of its own, written in one atomic group with what the command changes:
both are in the log or neither, and they reach other stores together. docs/protocols/redis.md has its format.
"""

from libc.string cimport memcmp

from everwrite.coding cimport Buffer, Slice, put_bytes
from everwrite.server.commands cimport Call
from everwrite.store cimport Store

cdef enum:
    ID_BYTES = 16
    SLOT_BYTES = 10         # the part of an id that names its record; the rest is a number that grows
    MARK_BYTES = 9

cdef enum:
    # How long an answer is kept after it was given.
    RECORD_MS = 600000


cdef inline const char* record_mark() noexcept nogil:
    """What the keys of all records begin with; nobody else's do."""
    return b"\0ew.once\0"


cdef inline const char* record_end() noexcept nogil:
    """The first key, of MARK_BYTES, that comes behind those of all records."""
    return b"\0ew.once\1"


cdef inline bint is_record(Slice key) noexcept nogil:
    return key.size >= MARK_BYTES and memcmp(key.data, record_mark(), MARK_BYTES) == 0


cdef inline int put_record_key(Buffer* out, Slice id, Slice key) noexcept nogil:
    """Append the key of the record of a command on `key` with this id; 0 or ERR_MEMORY.

    It ends with the key, so that whatever places keys can place both alike.
    """
    return (
        put_bytes(out, record_mark(), MARK_BYTES)
        | put_bytes(out, id.data, SLOT_BYTES)
        | put_bytes(out, key.data, key.size)
    )


cdef void run_once(Store store, Call* call) noexcept nogil
