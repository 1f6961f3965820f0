"""What a store holds, as sums: the leaves of the Merkle tree, maintained by every write.

An item is a 128-bit hash of what is alive of a key; a leaf is the sum modulo 2^128 of the items
whose keys' hashes begin with the leaf's number (Bellare and Micciancio 1997: a set's hash that one
member can be taken out of). So a write costs one subtraction and one addition, and any range of
hashes has the sum of its parts: the tree above the leaves needs no storage.

Invariant: an item follows from the live dots, contributions and deadlines alone. Tombstones,
floors of what is dead, contexts and the wall clock don't enter: stores that have collected or
expired differently agree. docs/formats/digest.md has the definition.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport Slice
from everwrite.hashing cimport ew_fold_product, hash64
from everwrite.prefetch cimport prefetch_line
from everwrite.state cimport (
    Collection,
    Element,
    Head,
    Sum,
    element_live,
    head_deadline,
    head_live_kinds,
    head_string_live,
    row_live,
)
from everwrite.table_format cimport KEY_HASH_SEED

cdef enum:
    LEAF_BITS = 14
    LEAVES = 1 << LEAF_BITS

cdef enum DigestTag:
    TAG_REGISTER = 1
    TAG_ROW = 2
    TAG_AMOUNT = 3
    TAG_KIND = 4
    TAG_ELEMENTS = 5
    TAG_DEADLINE = 6
    TAG_DOT = 7


cdef struct DigestKey:
    uint64_t first             # hash64 of the entry's key with the tables' seed: its upper bits choose the leaf
    uint64_t second


cdef inline DigestKey digest_key_from(uint64_t first, Slice entry_key) noexcept nogil:
    cdef DigestKey key
    key.first = first
    key.second = hash64(entry_key, <uint64_t>0x2d358dccaa6c78a5)
    return key


cdef inline DigestKey digest_key(Slice entry_key) noexcept nogil:
    return digest_key_from(hash64(entry_key, KEY_HASH_SEED), entry_key)


cdef inline DigestKey _absorb(DigestKey state, uint64_t tag, uint64_t x, uint64_t y) noexcept nogil:
    cdef uint64_t a = state.first ^ x
    cdef uint64_t b = (state.second ^ y) + tag * <uint64_t>0x9e3779b97f4a7c15
    # Each half keeps the other operand, so that a product with zero loses nothing.
    state.first = ew_fold_product(a ^ <uint64_t>0xa0761d6478bd642f, b ^ <uint64_t>0xe7037ed1a0b428db) + b
    state.second = ew_fold_product(a ^ <uint64_t>0x8ebc6af09c88c6e3, b ^ <uint64_t>0x589965cc75374cc3) ^ a
    return state


cdef inline Sum _as_sum(DigestKey state) noexcept nogil:
    cdef Sum sum
    sum.low = state.first
    sum.high = state.second
    return sum


cdef inline Sum no_sum() noexcept nogil:
    cdef Sum sum
    sum.low = 0
    sum.high = 0
    return sum


cdef inline void sum_add(Sum* into, Sum item) noexcept nogil:
    into.low += item.low
    into.high += item.high + (into.low < item.low)


cdef inline void sum_subtract(Sum* into, Sum item) noexcept nogil:
    into.high -= item.high + (into.low < item.low)
    into.low -= item.low


cdef inline Sum element_item(const Element* element, int kind, Slice name) noexcept nogil:
    """What a live element adds to its head's sum; 0 when nothing of it is alive."""
    cdef DigestKey state
    cdef size_t i
    if not element_live(element):
        return no_sum()
    state.first = hash64(name, <uint64_t>0x8bb84b93962eacc9 + <uint64_t>kind)
    state.second = hash64(name, <uint64_t>0x4b33a62ed433d4a3 + <uint64_t>kind)
    for i in range(element.size):
        state = _absorb(state, TAG_DOT, element.dots[i].dot.origin, element.dots[i].dot.timestamp)
    for i in range(element.row_count):
        if row_live(&element.rows[i]):
            state = _absorb(state, TAG_ROW, element.rows[i].origin, element.rows[i].counter)
            state = _absorb(
                state, TAG_AMOUNT, <uint64_t>element.rows[i].total - <uint64_t>element.rows[i].floor_total, 0
            )
    return _as_sum(state)


cdef inline Sum register_item(Dot dot, DigestKey state) noexcept nogil:
    """`head_item` of a key that holds a register without a deadline, and nothing else."""
    return _as_sum(_absorb(state, TAG_REGISTER, dot.origin, dot.timestamp))


cdef inline Sum counter_item(Dot dot, uint64_t total, DigestKey state) noexcept nogil:
    """`head_item` of a key that holds the increments of one origin, never reset, and nothing else."""
    return _as_sum(_absorb(_absorb(state, TAG_ROW, dot.origin, dot.timestamp), TAG_AMOUNT, total, 0))


cdef inline Sum head_item(const Head* head, DigestKey state) noexcept nogil:
    """The item of a key whose entry has this hash; 0 when nothing of it is alive."""
    cdef int64_t deadline
    cdef bint collections = head.collection_count != 0 and head_live_kinds(head) != 0
    cdef const Collection* held
    cdef size_t i
    cdef int j
    if not collections and not head_string_live(head):
        return no_sum()
    if head.has_register and not head.tombstone:
        state = _absorb(state, TAG_REGISTER, head.dot.origin, head.dot.timestamp)
    for i in range(head.size):
        if row_live(&head.rows[i]):
            state = _absorb(state, TAG_ROW, head.rows[i].origin, head.rows[i].counter)
            state = _absorb(state, TAG_AMOUNT, <uint64_t>head.rows[i].total - <uint64_t>head.rows[i].floor_total, 0)
    if collections:
        for j in range(head.collection_count):
            held = &head.collections[j]
            if held.count:
                # It decides which kind shows.
                state = _absorb(state, TAG_KIND + held.kind * 256, held.newest.origin, held.newest.timestamp)
        state = _absorb(state, TAG_ELEMENTS, head.sum.low, head.sum.high)
    if head.has_expiry:
        deadline = head_deadline(head)
        if deadline:
            state = _absorb(state, TAG_DEADLINE, head.expiry_dot.origin, head.expiry_dot.timestamp)
            state = _absorb(state, TAG_DEADLINE, <uint64_t>deadline, 0)
    return _as_sum(state)


cdef inline size_t leaf_of(DigestKey key) noexcept nogil:
    return key.first >> (64 - LEAF_BITS)


cdef inline void leaf_prefetch(const Sum* leaves, DigestKey key) noexcept nogil:
    prefetch_line(&leaves[leaf_of(key)])


cdef inline void leaf_replace(Sum* leaves, DigestKey key, Sum old, Sum new) noexcept nogil:
    cdef Sum* leaf = &leaves[leaf_of(key)]
    sum_subtract(leaf, old)
    sum_add(leaf, new)


cdef Sum* leaves_new() noexcept nogil                  # all zero; NULL when out of memory; free() lets it go
cdef bytes leaves_bytes(const Sum* leaves)             # 16 bytes each: low, high, little-endian
cdef int leaves_load(Sum* leaves, object data) except -1
cdef bytes leaves_root(const Sum* leaves)
