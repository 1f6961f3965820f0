"""The state of a key: its head, its elements, and how both are stored.

docs/formats/state.md shows the bytes. A head holds everything of a key except the
elements of its collections, which are entries of their own.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport Buffer, Slice, put_bytes, slice_of, store_u32_big

cdef extern from *:
    # Sums of many 64-bit contributions, before they are brought back to 64 bits.
    ctypedef long long wide_t "__int128"

# The first byte of an entry's key tells what the entry is.
cdef enum Space:
    SPACE_SYSTEM = 1      # + name: head of a system register
    SPACE_USER = 2        # + key: head of a user's key
    SPACE_ELEMENT = 3     # + u32 big-endian length of the key + key + kind + element
    SPACE_EXPIRY = 4      # + u64 big-endian deadline + key: local index, no value
    SPACE_ORDER = 5       # + u32 big-endian length of the key + key + score + member: local index, no value
    SPACE_RANK = 6        # + u32 big-endian length of the key + key + kind + level + place: local index; see ranks.pxd

# What a key can hold. Every kind but the string consists of elements: one join serves them all.
cdef enum Kind:
    KIND_NONE = 0
    KIND_STRING = 1           # register and counter together: value = integer base + increments
    KIND_SET = 2
    KIND_MAP = 3              # what Redis calls a hash
    KIND_MULTI = 4            # multi-value register
    KIND_FLAG = 5
    KIND_MAX = 6
    KIND_MIN = 7
    KIND_HYPERLOGLOG = 8
    KIND_BOUNDED = 9          # bounded counter
    KIND_SORTED_SET = 10
    KIND_SEQUENCE = 11

cdef enum KindMask:
    # Bit k stands for kind k.
    ELEMENT_KINDS = 0x0FFC
    KINDS_WITH_ROWS = 0x0408  # whose elements may hold counter rows: map, sorted set

cdef enum Limit:
    ELEMENT_KIND_COUNT = 10
    CREATION_NAME = 16        # of a bounded counter's elements: see bounded_counters.pxd
    USED_NAME = 24
    GIVEN_NAME = 32
    RANK_LEVELS_MAX = 16
    REGISTERS_BYTES = 48      # an element of a HyperLogLog: 64 registers of six bits
    MAX_KEY = 65536
    MAX_VALUE = 67108864
    MAX_STATE = 1073741824    # of a key, for another store: both have it in memory


cdef inline bint is_element_kind(int kind) noexcept nogil:
    return Kind.KIND_SET <= kind <= Kind.KIND_SEQUENCE


cdef struct Row:
    # What one origin has done to a key. `context` is its entry of the key's causal context;
    # the counter pair is its running total as of `counter`; the floor is what resets have observed.
    uint64_t origin
    uint64_t context
    uint64_t counter
    int64_t total
    uint64_t floor
    int64_t floor_total


cdef struct Sum:
    # A number modulo 2^128; see digest.pxd.
    uint64_t low
    uint64_t high


cdef struct Collection:
    # What a head says of its elements of one kind.
    Dot newest              # newest dot ever added; 0, 0 when only floors came
    uint64_t count          # live elements (derived, local)
    int kind
    int levels              # of the index of ranks, 0: there is none (derived, local)


cdef struct Head:
    # Invariants: rows are sorted by origin, collections by kind; the register's and expiry's dots lie inside
    # the context; a kind with an element entry has a collection.
    bint has_register
    bint tombstone
    Dot dot                 # the register's
    Slice value             # borrowed from the bytes it was decoded from
    bint has_expiry
    Dot expiry_dot
    int64_t deadline        # Unix ms; 0: no deadline
    bint has_lost
    Dot lost                # newest register write that lost to a concurrent one (diagnostics, local)
    Sum sum                 # of the live elements' items (derived, local)
    Row* rows
    size_t size
    size_t capacity
    int collection_count
    Collection* collections  # room for one of each kind, or NULL when there is none


cdef struct ElementDot:
    Dot dot
    Slice value


cdef struct Element:
    # dots: the writes of this element that nothing has removed, sorted by dot.
    # rows: counter contributions of a map field (their `context` is unused), sorted by origin.
    ElementDot* dots
    size_t size
    size_t capacity
    Row* rows
    size_t row_count
    size_t row_capacity


cdef void head_init(Head* head) noexcept nogil
cdef void head_free(Head* head) noexcept nogil
cdef void head_clear(Head* head) noexcept nogil                  # keeps the arrays
cdef int head_decode(Head* head, Slice stored) noexcept nogil    # OK, ERR_DECODE, ERR_MEMORY
cdef int head_encode(const Head* head, Buffer* into) noexcept nogil
cdef uint64_t head_context(const Head* head, uint64_t origin) noexcept nogil
cdef Row* head_row(Head* head, uint64_t origin) noexcept nogil   # found or inserted; NULL when out of memory
cdef const Row* rows_find(const Row* rows, size_t size, uint64_t origin) noexcept nogil
cdef Row* rows_insert(Row** rows, size_t* size, size_t* capacity, uint64_t origin) noexcept nogil

cdef bint row_live(const Row* row) noexcept nogil
cdef bint rows_sum(const Row* rows, size_t size, wide_t* sum, Dot* newest) noexcept nogil   # any live row?
cdef int64_t saturate(wide_t value) noexcept nogil

cdef const Collection* head_find(const Head* head, int kind) noexcept nogil     # NULL: never held any
# Found or inserted; NULL when out of memory.
cdef Collection* head_collection(Head* head, int kind) noexcept nogil
cdef uint64_t head_count(const Head* head, int kind) noexcept nogil             # live elements
cdef int head_live_kinds(const Head* head) noexcept nogil                       # a mask, without the string
cdef bint head_string_live(const Head* head) noexcept nogil
cdef int head_kind(const Head* head) noexcept nogil              # a Kind; expiry isn't looked at
cdef bint head_expired(const Head* head, int64_t now_ms) noexcept nogil
cdef int64_t head_deadline(const Head* head) noexcept nogil      # the effective one; 0: none

cdef void element_init(Element* element) noexcept nogil
cdef void element_free(Element* element) noexcept nogil
cdef void element_clear(Element* element) noexcept nogil
cdef int element_decode(Element* element, Slice stored) noexcept nogil
cdef int element_encode(const Element* element, Buffer* into) noexcept nogil
# How many bytes the values of a kind's elements have; -1: any number.
cdef int element_value_size(int kind) noexcept nogil
cdef int element_add_dot(Element* element, Dot dot, Slice value) noexcept nogil
cdef bint element_live(const Element* element) noexcept nogil
# Whether a key holds a kind while this element of it is alive: of a bounded counter, only its creations tell.
cdef bint element_counts(int kind, Slice name) noexcept nogil

# What a register or field shows: the text of its newest write, or base + increments as decimal text.
# Returns 1 and *shown (borrowed from `base` or written to `scratch`, 24 bytes), or 0 when there is nothing.
cdef int show(
    bint has_base, Dot base_dot, Slice base, const Row* rows, size_t size, char* scratch, Slice* shown
) noexcept nogil

cdef int entry_key(Buffer* into, int space, Slice key) noexcept nogil


cdef inline int collection_key(Buffer* into, int space, Slice key) noexcept nogil:
    """What the keys of all entries of one space that belong to a user's key begin with."""
    cdef uint8_t start[5]
    start[0] = <uint8_t>space
    store_u32_big(&start[1], <uint32_t>key.size)
    into.size = 0
    return put_bytes(into, start, 5) | put_bytes(into, key.data, key.size)


cdef int element_key(Buffer* into, Slice key, int kind, Slice name) noexcept nogil
cdef int put_expiry_key(Buffer* into, int64_t deadline, Slice key) noexcept nogil

cdef enum PlainHead:
    # How the head of a key begins that was only ever written as a register, by one origin, or deleted after that.
    PLAIN_REGISTER = 1
    PLAIN_TOMBSTONE = 3
    PLAIN_BYTES = 17          # flags and dot; the value follows
    # That of a key which only one origin has ever counted up: flags, one row, which counts as of its context.
    PLAIN_COUNTER = 8
    PLAIN_COUNTER_BYTES = 35


cdef inline bint head_is_plain(Slice stored) noexcept nogil:
    """Whether a stored head is nothing but a written register: shown as it is, never expired."""
    return stored.size >= PLAIN_BYTES and stored.data[0] == PLAIN_REGISTER


cdef inline Slice head_plain_value(Slice stored) noexcept nogil:
    return slice_of(stored.data + PLAIN_BYTES, stored.size - PLAIN_BYTES)
