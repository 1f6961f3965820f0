"""A change: one update of one key, as it stands in the log and travels between stores.

docs/formats/change.md shows the bytes. A *delta* carries the change alone, with the guard
that tells what it builds on; a *full state* carries the key whole, and builds on nothing.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport Buffer, Reader, Slice
from everwrite.state cimport Row

cdef enum ChangeFlag:
    CHANGE_FULL_STATE = 1
    CHANGE_PART = 2            # with it: a part of a full state, see parts.pyx
    KNOWN_CHANGE_FLAGS = 3

cdef enum PartTag:
    PART_REGISTER = 1
    PART_COUNTER = 2
    PART_FLOORS = 3
    PART_EXPIRY = 4
    PART_ELEMENT = 5
    PART_CLEAR = 6
    PART_HEAD = 7
    PART_ELEMENT_STATE = 8

cdef enum RegisterFlag:
    REGISTER_TOMBSTONE = 1
    REGISTER_EXPIRED = 2       # the write named by `over` ended at its deadline: a tombstone with that very dot

cdef enum ElementFlag:
    ELEMENT_WRITE = 1          # adds a dot (the change's own) with a value
    ELEMENT_TOTAL = 2          # the origin's running total of a map field


cdef struct Change:
    uint8_t flags
    Dot dot                    # names this update
    uint64_t previous          # the origin's update of this key before this one; 0: none
    Slice key                  # space byte + key
    Slice parts
    Slice body                 # all of it


cdef struct Part:
    int tag
    uint8_t flags
    Dot over                   # register: the write that this one replaces
    Slice value
    int64_t total
    int64_t deadline
    int kind                   # element and element state: a Kind; clear: a mask of them
    Slice name
    const uint8_t* dots        # removed dots or clear vector: 16 bytes each
    size_t dot_count
    const uint8_t* floors      # origin, timestamp, total: 24 bytes each
    size_t floor_count


cdef int change_parse(Slice body, Change* change) noexcept nogil     # header only: OK or ERR_DECODE
cdef int change_check(const Change* change) noexcept nogil           # every part well-formed: OK or ERR_DECODE
# Of a change (or, with `state`, a full state without a dot) from outside: well-formed to the last byte?
# *newest rises to its newest timestamp.
cdef int change_validate(Slice body, bint state, uint64_t* newest) noexcept nogil
cdef bint is_state(const Change* change) noexcept nogil              # a full state that no dot names
cdef bint is_part(const Change* change) noexcept nogil
cdef bint full_state_covers(const Change* change, Dot dot) noexcept nogil   # of a full state that is valid
cdef int part_next(Reader* r, Part* part) noexcept nogil             # 1, 0 at the end, ERR_DECODE
cdef Dot dot_at(const uint8_t* dots, size_t index) noexcept nogil
cdef void floor_at(const uint8_t* floors, size_t index, Row* row) noexcept nogil

cdef int put_change(Buffer* into, uint8_t flags, Dot dot, uint64_t previous, Slice key) noexcept nogil
cdef int put_register(Buffer* into, uint8_t flags, Dot over, Slice value) noexcept nogil
cdef int put_counter(Buffer* into, int64_t total) noexcept nogil
cdef int put_expiry(Buffer* into, int64_t deadline) noexcept nogil
cdef int put_floors(Buffer* into, const Row* rows, size_t size) noexcept nogil   # of the live rows; nothing when none
cdef int put_dot(Buffer* into, Dot dot) noexcept nogil
cdef int put_floor_list(Buffer* into, const Row* rows, size_t size) noexcept nogil
cdef int put_clear(Buffer* into, int mask, const Row* rows, size_t size) noexcept nogil
