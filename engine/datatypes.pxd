"""The typed operations on keys: each reads, makes a guarded delta, and merges it.

All `op_*` methods need the lock and no GIL. Slices that an operation returns are valid until
the next operation or `unlock`. A negative result is a `Status`. One operation is one change
with one dot, however many elements it names.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.atomic cimport AtomicKeyspace
from everwrite.coding cimport Buffer, Slice
from everwrite.state cimport KIND_MAP, KIND_NONE, KIND_SET, KIND_STRING, MAX_KEY, Element, Head, Kind
from everwrite.status cimport Status, fault_key


cdef enum SetFlag:
    SET_NX = 1
    SET_XX = 2
    SET_KEEPTTL = 4
    SET_WANT_OLD = 8     # fill *old; WRONG_TYPE when the key holds a set or map


cdef class TypedKeyspace(AtomicKeyspace):
    cdef Buffer encoded_old          # the value that SET ... GET replaced
    cdef bint expired                # the key that `begin` named is past its deadline
    cdef bint absent                 # ... or holds nothing alive

    cdef int begin(self, Slice key) noexcept nogil                         # its Kind, expiry applied

    cdef inline int begin_as(self, Slice key, int kind) noexcept nogil:
        """As `begin`, but ERR_WRONG_TYPE when the key holds something else than a `kind`."""
        cdef int held = self.begin(key)
        return held if held <= 0 or held == kind else fault_key(Status.ERR_WRONG_TYPE, key)

    cdef inline int load_as(self, Slice key, int kind, Slice name) noexcept nogil:
        """Load an element of a key: 1, or 0 when it isn't there; ERR_WRONG_TYPE as `begin_as`."""
        cdef int status = self.begin_as(key, kind)
        if status <= 0:
            return status
        return self.load_element(kind, name) if name.size <= <size_t>MAX_KEY else 0

    cdef int _put_removals(self, int keep) noexcept nogil
    cdef int _put_resets(self) noexcept nogil
    cdef int _put_clears(self, int mask) noexcept nogil
    cdef int _put_element_floors(self, int kind) noexcept nogil
    cdef int _put_element(
        self, int kind, Slice name, uint8_t flags, Slice value, int64_t total, bint removes
    ) noexcept nogil
    cdef int _put_elements(
        self, int kind, const Slice* items, size_t count, bint with_values, int64_t* added
    ) noexcept nogil
    cdef int _shown_element(self, Slice* value) noexcept nogil

    cdef int op_type(self, Slice key) noexcept nogil                       # a Kind
    cdef int64_t op_count(self) noexcept nogil                             # live keys (DBSIZE)
    cdef int op_delete(self, Slice key) noexcept nogil                     # 1 existed, 0 not
    # Unix ms; 1, or 0 no such key; a past deadline deletes
    cdef int op_expire_at(self, Slice key, int64_t deadline_ms) noexcept nogil
    cdef int op_persist(self, Slice key) noexcept nogil                    # 1 a deadline was removed, else 0
    # Unix ms; -1 without deadline, -2 no such key; errors are < -100 (Status - 100)
    cdef int64_t op_deadline(self, Slice key) noexcept nogil

    cdef int op_get(self, Slice key, Slice* value) noexcept nogil          # 1, 0, ERR_WRONG_TYPE
    # As op_get, of a decoded head that hasn't expired.
    cdef int show_string(self, const Head* head, Slice* value) noexcept nogil
    # 1 written, 0 not (NX/XX). deadline_ms 0: none. With SET_WANT_OLD, *found tells whether *old is set.
    cdef int op_set(
        self, Slice key, Slice value, int flags, int64_t deadline_ms, Slice* old, bint* found
    ) noexcept nogil
    cdef int op_increment(self, Slice key, int64_t amount, int64_t* result) noexcept nogil

    cdef int op_set_add(self, Slice key, const Slice* elements, size_t count, int64_t* added) noexcept nogil
    cdef int op_set_contains(self, Slice key, Slice element) noexcept nogil      # 1, 0
    # Take out elements of a set, fields of a map, ...; *removed: how many were there
    cdef int op_remove_elements(
        self, Slice key, int kind, const Slice* names, size_t count, int64_t* removed
    ) noexcept nogil
    # How many elements are alive of a set, fields of a map, ...
    cdef int op_cardinality(self, Slice key, int kind, int64_t* count) noexcept nogil

    # pairs: field, value, field, value ...; count is the number of pairs
    cdef int op_map_set(self, Slice key, const Slice* pairs, size_t count, int64_t* added) noexcept nogil
    cdef int op_map_get(self, Slice key, Slice field, Slice* value) noexcept nogil      # 1, 0
    cdef int op_map_increment(self, Slice key, Slice field, int64_t amount, int64_t* result) noexcept nogil


# What a set's element or a map's field shows: 1 and *value, or 0. `text` holds 24 bytes for a number.
cdef int show_element(const Element* element, char* text, Slice* value) noexcept nogil
