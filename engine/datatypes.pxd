"""The typed operations on keys: each reads, makes a guarded delta, and merges it.

All `op_*` methods need the lock and no GIL. Slices that an operation returns are valid until
the next operation or `unlock`. A negative result is a `Status`. One operation is one change
with one dot, however many elements it names.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.keyspace cimport Keyspace
from everwrite.lsm cimport LsmIterator
from everwrite.state cimport Element, Head


cdef enum Kind:
    KIND_NONE = 0
    KIND_STRING = 1      # register and counter together: value = integer base + increments
    KIND_SET = 2
    KIND_MAP = 3         # what Redis calls a hash


cdef enum SetFlag:
    SET_NX = 1
    SET_XX = 2
    SET_KEEPTTL = 4
    SET_WANT_OLD = 8     # fill *old; WRONG_TYPE when the key holds a set or map


cdef struct Elements:
    # An open iteration over a set or map: see elements_open.
    LsmIterator* it
    Buffer prefix
    Buffer start
    Element element
    char text[32]
    bint started


cdef struct Keys:
    # An open iteration over keys: see keys_open.
    LsmIterator* it
    Buffer start
    Head head
    int64_t now
    bint started


cdef class TypedKeyspace(Keyspace):
    cdef Buffer encoded_old          # the value that SET ... GET replaced
    cdef bint expired                # the key that `begin` named is past its deadline
    cdef bint absent                 # ... or holds nothing alive

    cdef int begin(self, Slice key) noexcept nogil                         # its Kind, expiry applied
    cdef int _put_removals(self, int keep) noexcept nogil
    cdef int _put_resets(self) noexcept nogil
    cdef int _put_clears(self, int mask) noexcept nogil
    cdef int _put_field_floors(self) noexcept nogil
    cdef int _put_element(
        self, int kind, Slice name, uint8_t flags, Slice value, int64_t total, bint removes
    ) noexcept nogil
    cdef int _put_elements(
        self, int kind, const Slice* items, size_t count, bint with_values, int64_t* added
    ) noexcept nogil
    cdef int _remove_elements(
        self, Slice key, int kind, const Slice* names, size_t count, int64_t* removed
    ) noexcept nogil
    cdef int _shown_element(self, Slice* value) noexcept nogil
    cdef int _expire_now(self) noexcept nogil

    cdef int op_type(self, Slice key) noexcept nogil                       # a Kind
    cdef int64_t op_count(self) noexcept nogil                             # live keys (DBSIZE)
    cdef int op_delete(self, Slice key) noexcept nogil                     # 1 existed, 0 not
    # Unix ms; 1, or 0 no such key; a past deadline deletes
    cdef int op_expire_at(self, Slice key, int64_t deadline_ms) noexcept nogil
    cdef int op_persist(self, Slice key) noexcept nogil                    # 1 a deadline was removed, else 0
    # Unix ms; -1 without deadline, -2 no such key; errors are < -100 (Status - 100)
    cdef int64_t op_deadline(self, Slice key) noexcept nogil

    cdef int op_get(self, Slice key, Slice* value) noexcept nogil          # 1, 0, ERR_WRONG_TYPE
    # 1 written, 0 not (NX/XX). deadline_ms 0: none. With SET_WANT_OLD, *found tells whether *old is set.
    cdef int op_set(
        self, Slice key, Slice value, int flags, int64_t deadline_ms, Slice* old, bint* found
    ) noexcept nogil
    cdef int op_increment(self, Slice key, int64_t amount, int64_t* result) noexcept nogil

    cdef int op_set_add(self, Slice key, const Slice* elements, size_t count, int64_t* added) noexcept nogil
    cdef int op_set_remove(self, Slice key, const Slice* elements, size_t count, int64_t* removed) noexcept nogil
    cdef int op_set_contains(self, Slice key, Slice element) noexcept nogil      # 1, 0
    # SCARD (KIND_SET), HLEN (KIND_MAP)
    cdef int op_cardinality(self, Slice key, int kind, int64_t* count) noexcept nogil

    # pairs: field, value, field, value ...; count is the number of pairs
    cdef int op_map_set(self, Slice key, const Slice* pairs, size_t count, int64_t* added) noexcept nogil
    cdef int op_map_get(self, Slice key, Slice field, Slice* value) noexcept nogil      # 1, 0
    cdef int op_map_remove(self, Slice key, const Slice* fields, size_t count, int64_t* removed) noexcept nogil
    cdef int op_map_increment(self, Slice key, Slice field, int64_t amount, int64_t* result) noexcept nogil

    # Live elements of a set or map in byte order. Returns 1 (*it is open), 0 (no such key, *it is NULL), or an error.
    cdef int elements_open(self, Slice key, int kind, Elements** it) noexcept nogil
    cdef int elements_open_from(self, Slice key, int kind, Slice start, Elements** it) noexcept nogil
    cdef int elements_next(self, Elements* it, Slice* name, Slice* value) noexcept nogil   # 1, 0 at the end
    cdef void elements_close(self, Elements* it) noexcept nogil

    # Live keys in byte order, from the first that is >= start. The lock is held from open to close.
    cdef Keys* keys_open(self, Slice start) noexcept nogil                 # NULL when out of memory
    cdef int keys_next(self, Keys* it, Slice* key, int* kind) noexcept nogil     # 1, 0 at the end
    cdef void keys_close(self, Keys* it) noexcept nogil

    # Remove up to `limit` keys that are past their deadline; returns how many were looked at.
    cdef int op_reap(self, int limit) noexcept nogil
    cdef bint reap_due(self) noexcept nogil
