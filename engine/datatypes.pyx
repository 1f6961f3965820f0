"""Register, counter, set and map operations; see datatypes.pxd."""

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint64_t

from everwrite.atomic cimport AtomicKeyspace
from everwrite.change cimport (
    ELEMENT_TOTAL,
    ELEMENT_WRITE,
    PART_ELEMENT,
    REGISTER_EXPIRED,
    REGISTER_TOMBSTONE,
    put_clear,
    put_counter,
    put_dot,
    put_expiry,
    put_floor_list,
    put_floors,
    put_register,
)
from everwrite.clock cimport Dot
from everwrite.coding cimport (
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    put_bytes,
    put_slice,
    put_u8,
    put_u64,
    put_varint,
    slice_of,
)
from everwrite.decimals cimport parse_integer
from everwrite.memtable cimport LARGE_VALUE
from everwrite.state cimport (
    KINDS_WITH_ROWS,
    MAX_KEY,
    MAX_VALUE,
    SPACE_USER,
    Element,
    Head,
    Row,
    element_decode,
    element_live,
    head_count,
    head_deadline,
    head_expired,
    head_kind,
    head_live_kinds,
    head_string_live,
    row_live,
    rows_find,
    show,
)
from everwrite.status cimport Status, fault_corrupt, fault_key
from everwrite.walk cimport Walk, walk_free, walk_next


cdef Slice _empty() noexcept nogil:
    return slice_of(NULL, 0)


cdef int _sum_checked(int64_t a, int64_t b, int64_t* result) noexcept nogil:
    if (b > 0 and a > INT64_MAX - b) or (b < 0 and a < INT64_MIN - b):
        return Status.ERR_OVERFLOW
    result[0] = a + b
    return Status.OK


cdef int64_t _wrapping_add(int64_t a, int64_t b) noexcept nogil:
    return <int64_t>(<uint64_t>a + <uint64_t>b)


cdef int _next_total(const Row* row, bint reset, int64_t amount, int64_t* total) noexcept nogil:
    """The origin's running total after `amount`; refuses when its own live part would overflow."""
    cdef int64_t live = 0
    total[0] = amount
    if row == NULL:
        return Status.OK
    total[0] = _wrapping_add(row.total, amount)
    if row_live(row) and not reset:
        live = <int64_t>(<uint64_t>row.total - <uint64_t>row.floor_total)
    return _sum_checked(live, amount, &live)


cdef class TypedKeyspace(AtomicKeyspace):
    """Keys with types on top of `AtomicKeyspace`."""

    def __cinit__(self):
        buffer_init(&self.encoded_old)

    def __dealloc__(self):
        buffer_free(&self.encoded_old)

    cdef int begin(self, Slice key) noexcept nogil:
        cdef int status
        if self.failed:
            return Status.ERR_FAILED
        if key.size > MAX_KEY:
            return fault_key(Status.ERR_TOO_LARGE, key)
        status = self.load(SPACE_USER, key)
        self.expired = False
        self.absent = True
        if status <= 0:
            return status
        self.expired = self.head.has_expiry and head_expired(&self.head, self.clock.now_ms())
        status = Kind.KIND_NONE if self.expired else head_kind(&self.head)
        self.absent = status == Kind.KIND_NONE
        return status

    # ---- parts of a delta ----

    cdef int _put_element_floors(self, int kind) noexcept nogil:
        """The floors of every element (a map's field, say) with live increments, as an element part each."""
        cdef Walk walk
        cdef Slice name
        cdef size_t i
        cdef int status = self.walk_elements(kind, &walk)
        while status >= 0:
            status = walk_next(&walk, self.lsm, &name)
            if status <= 0:
                break
            if element_decode(&self.element, self.lsm.value(walk.it)) < 0:
                status = fault_corrupt(b"key state", 0, b"an element can't be decoded")
                break
            for i in range(self.element.row_count):
                if row_live(&self.element.rows[i]):
                    status = (
                        put_u8(&self.delta, PART_ELEMENT)
                        | put_u8(&self.delta, <uint8_t>kind)
                        | put_slice(&self.delta, name)
                        | put_u8(&self.delta, 0)
                        | put_varint(&self.delta, 0)
                        | put_floor_list(&self.delta, self.element.rows, self.element.row_count)
                    )
                    break
        walk_free(&walk, self.lsm)
        return status if status < 0 else Status.OK

    cdef int _put_clears(self, int mask) noexcept nogil:
        cdef int status = Status.OK
        cdef int kind
        if mask & KINDS_WITH_ROWS:
            for kind in range(Kind.KIND_MAP, Kind.KIND_SEQUENCE):
                if mask & KINDS_WITH_ROWS & (1 << kind) and status == Status.OK:
                    status = self._put_element_floors(kind)
        if mask and status == Status.OK:
            status = put_clear(&self.delta, mask, self.head.rows, self.head.size)
        return status

    cdef int _put_resets(self) noexcept nogil:
        """Beside a register write: floors of the counter and removal of every element that was observed."""
        cdef int mask = head_live_kinds(&self.head)
        cdef int status = put_floors(&self.delta, self.head.rows, self.head.size)
        return status if status < 0 else self._put_clears(mask)

    cdef int _put_removals(self, int keep) noexcept nogil:
        """Remove what was observed of the other kinds, or, past the deadline, of every kind.

        The register's tombstone takes the dot of the write that it ends: it competes with
        nothing newer, as an observed removal must not.
        """
        cdef int mask
        cdef int status = Status.OK
        if self.expired:
            keep = Kind.KIND_NONE
        if keep != Kind.KIND_STRING and head_string_live(&self.head):
            if self.head.has_register and not self.head.tombstone:
                status |= put_register(
                    &self.delta, REGISTER_TOMBSTONE | REGISTER_EXPIRED, self.head.dot, _empty()
                )
            status |= put_floors(&self.delta, self.head.rows, self.head.size)
        mask = head_live_kinds(&self.head) & ~(1 << keep)
        if status == Status.OK and mask:
            status = self._put_clears(mask)
        if self.absent and status == Status.OK and head_deadline(&self.head):
            # A key that is written anew must not inherit the deadline of what stood there before.
            status = put_expiry(&self.delta, 0)
        return status

    cdef int _put_element(
        self, int kind, Slice name, uint8_t flags, Slice value, int64_t total, bint removes
    ) noexcept nogil:
        """One element part; with `removes`, it removes the observed dots of `element` and floors its counters."""
        cdef size_t i
        cdef int failed = put_u8(&self.delta, PART_ELEMENT) | put_u8(&self.delta, <uint8_t>kind)
        failed |= put_slice(&self.delta, name) | put_u8(&self.delta, flags)
        if flags & ELEMENT_WRITE:
            failed |= put_slice(&self.delta, value)
        if flags & ELEMENT_TOTAL:
            failed |= put_u64(&self.delta, <uint64_t>total)
        failed |= put_varint(&self.delta, self.element.size if removes else 0)
        if removes:
            for i in range(self.element.size):
                failed |= put_dot(&self.delta, self.element.dots[i].dot)
            failed |= put_floor_list(&self.delta, self.element.rows, self.element.row_count)
        else:
            failed |= put_varint(&self.delta, 0)
        return failed

    # ---- keys of any type ----

    cdef int op_type(self, Slice key) noexcept nogil:
        return self.begin(key)

    cdef int64_t op_count(self) noexcept nogil:
        return <int64_t>self.live_keys

    cdef int op_delete(self, Slice key) noexcept nogil:
        cdef int status = self.begin(key)
        if status <= 0:
            return status
        status = self.delta_begin()
        if status == Status.OK:
            status = put_register(&self.delta, REGISTER_TOMBSTONE, self.head.dot, _empty())
        if status == Status.OK:
            status = self._put_resets()
        if status == Status.OK:
            status = self.delta_end()
        return status if status < 0 else 1

    cdef int op_expire_at(self, Slice key, int64_t deadline_ms) noexcept nogil:
        cdef int status
        if deadline_ms <= self.clock.now_ms():
            return TypedKeyspace.op_delete(self, key)
        status = self.begin(key)
        if status <= 0:
            return status
        status = self.delta_begin() | put_expiry(&self.delta, deadline_ms)
        if status == Status.OK:
            status = self.delta_end()
        return status if status < 0 else 1

    cdef int op_persist(self, Slice key) noexcept nogil:
        cdef int status = self.begin(key)
        if status <= 0:
            return status
        if head_deadline(&self.head) == 0:
            return 0
        status = self.delta_begin() | put_expiry(&self.delta, 0)
        if status == Status.OK:
            status = self.delta_end()
        return status if status < 0 else 1

    cdef int64_t op_deadline(self, Slice key) noexcept nogil:
        cdef int status = self.begin(key)
        cdef int64_t deadline
        if status < 0:
            return status - 100
        if status == 0:
            return -2
        deadline = head_deadline(&self.head)
        return deadline if deadline else -1

    # ---- string: register and counter ----

    cdef int op_get(self, Slice key, Slice* value) noexcept nogil:
        cdef int status = self.begin(key)
        if status > 0:
            status = self.show_string(&self.head, value)
        return fault_key(status, key) if status < 0 else status

    cdef int show_string(self, const Head* head, Slice* value) noexcept nogil:
        cdef int kind = head_kind(head)
        if kind != Kind.KIND_STRING:
            return Status.ERR_WRONG_TYPE if kind else 0
        return show(
            head.has_register and not head.tombstone, head.dot, head.value, head.rows, head.size, self.text, value
        )

    cdef int op_set(
        self, Slice key, Slice value, int flags, int64_t deadline_ms, Slice* old, bint* found
    ) noexcept nogil:
        cdef int kind
        cdef int status
        if value.size > MAX_VALUE:
            return fault_key(Status.ERR_TOO_LARGE, key)
        kind = self.begin(key)
        if kind < 0:
            return kind
        if flags & SetFlag.SET_WANT_OLD:
            found[0] = False
            if kind == Kind.KIND_STRING:
                status = TypedKeyspace.op_get(self, key, old)
                if status < 0:
                    return status
                found[0] = status == 1
                if old.data != <const uint8_t*>self.text:
                    # What follows replaces the stored bytes: keep the old ones for the caller.
                    self.encoded_old.size = 0
                    if put_bytes(&self.encoded_old, old.data, old.size) != 0:
                        return Status.ERR_MEMORY
                    old[0] = buffer_slice(&self.encoded_old)
            elif kind != Kind.KIND_NONE:
                return fault_key(Status.ERR_WRONG_TYPE, key)
        if (flags & SetFlag.SET_NX and kind) or (flags & SetFlag.SET_XX and not kind):
            return 0
        if flags & SetFlag.SET_KEEPTTL and kind:
            deadline_ms = head_deadline(&self.head)
        status = self.delta_begin()
        if status == Status.OK:
            if value.size < LARGE_VALUE:
                status = put_register(&self.delta, 0, self.head.dot, value)
            else:
                status = self.put_large_register(value)
        if status == Status.OK:
            status = self._put_resets()
        if status == Status.OK and deadline_ms:
            status = put_expiry(&self.delta, deadline_ms)
        if status == Status.OK:
            status = self.delta_end()
        return status if status < 0 else 1

    cdef int op_increment(self, Slice key, int64_t amount, int64_t* result) noexcept nogil:
        cdef Slice shown
        cdef int64_t current = 0
        cdef int64_t total
        cdef int kind
        cdef int status
        kind = TypedKeyspace.op_get(self, key, &shown)
        if kind < 0:
            return kind
        if kind and not parse_integer(shown, &current):
            return fault_key(Status.ERR_NOT_INTEGER, key)
        status = _sum_checked(current, amount, result)
        if status == Status.OK:
            status = _next_total(
                rows_find(self.head.rows, self.head.size, self.own_origin), self.expired, amount, &total
            )
        if status < 0:
            return fault_key(status, key)
        status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(Kind.KIND_STRING)
        if status == Status.OK:
            status = put_counter(&self.delta, total)
        if status == Status.OK:
            status = self.delta_end()
        return status

    # ---- sets and maps ----

    cdef int _put_elements(
        self, int kind, const Slice* items, size_t count, bint with_values, int64_t* added
    ) noexcept nogil:
        cdef uint64_t before = 0 if self.expired else head_count(&self.head, kind)
        cdef size_t step = 2 if with_values else 1
        cdef size_t i
        cdef int status
        added[0] = 0
        for i in range(count * step):
            if items[i].size > (<size_t>MAX_VALUE if with_values and i % 2 else <size_t>MAX_KEY):
                return fault_key(Status.ERR_TOO_LARGE, self.loaded_key())
        status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(kind)
        for i in range(count):
            if status < 0:
                return status
            status = self.load_element(kind, items[i * step])
            if status >= 0:
                status = self._put_element(
                    kind, items[i * step], ELEMENT_WRITE, items[i * step + 1] if with_values else _empty(), 0, True
                )
        if status == Status.OK:
            status = self.delta_end()
        if status == Status.OK:
            added[0] = <int64_t>(head_count(&self.head, kind) - before)
        return status

    cdef int op_remove_elements(
        self, Slice key, int kind, const Slice* names, size_t count, int64_t* removed
    ) noexcept nogil:
        cdef uint64_t before
        cdef bint begun = False
        cdef size_t i
        cdef int status = self.begin_as(key, kind)
        removed[0] = 0
        if status <= 0:
            return status
        before = head_count(&self.head, kind)
        for i in range(count):
            if names[i].size > MAX_KEY:
                continue
            status = self.load_element(kind, names[i])
            if status < 0:
                return status
            if not element_live(&self.element):
                continue
            if not begun:
                begun = True
                status = self.delta_begin()
                if status == Status.OK:
                    status = self._put_removals(kind)
                if status == Status.OK:
                    status = self.load_element(kind, names[i])
                if status < 0:
                    return status
            status = self._put_element(kind, names[i], 0, _empty(), 0, True)
            if status < 0:
                return status
        if not begun:
            return Status.OK
        status = self.delta_end()
        if status == Status.OK:
            removed[0] = <int64_t>(before - head_count(&self.head, kind))
        return status

    cdef int op_set_add(self, Slice key, const Slice* elements, size_t count, int64_t* added) noexcept nogil:
        cdef int status = self.begin_as(key, Kind.KIND_SET)
        return status if status < 0 else self._put_elements(Kind.KIND_SET, elements, count, False, added)

    cdef int op_set_contains(self, Slice key, Slice element) noexcept nogil:
        cdef int status = self.load_as(key, Kind.KIND_SET, element)
        return status if status <= 0 else element_live(&self.element)

    cdef int op_cardinality(self, Slice key, int kind, int64_t* count) noexcept nogil:
        cdef int status = self.begin_as(key, kind)
        count[0] = 0
        if status <= 0:
            return status
        count[0] = <int64_t>head_count(&self.head, kind)
        return Status.OK

    cdef int op_map_set(self, Slice key, const Slice* pairs, size_t count, int64_t* added) noexcept nogil:
        cdef int status = self.begin_as(key, Kind.KIND_MAP)
        return status if status < 0 else self._put_elements(Kind.KIND_MAP, pairs, count, True, added)

    cdef int _shown_element(self, Slice* value) noexcept nogil:
        return show_element(&self.element, self.text, value)

    cdef int op_map_get(self, Slice key, Slice field, Slice* value) noexcept nogil:
        cdef int status = self.load_as(key, Kind.KIND_MAP, field)
        return status if status <= 0 else self._shown_element(value)

    cdef int op_map_increment(self, Slice key, Slice field, int64_t amount, int64_t* result) noexcept nogil:
        cdef Slice shown
        cdef int64_t current = 0
        cdef int64_t total
        cdef int kind = self.begin_as(key, Kind.KIND_MAP)
        cdef int status
        if kind < 0:
            return kind
        if field.size > MAX_KEY:
            return fault_key(Status.ERR_TOO_LARGE, key)
        status = self.load_element(Kind.KIND_MAP, field)
        if status < 0:
            return status
        if kind and status and self._shown_element(&shown) and not parse_integer(shown, &current):
            return fault_key(Status.ERR_NOT_INTEGER, key)
        status = _sum_checked(current, amount, result)
        if status == Status.OK:
            status = _next_total(
                rows_find(self.element.rows, self.element.row_count, self.own_origin),
                self.expired,
                amount,
                &total,
            )
        if status < 0:
            return fault_key(status, key)
        status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(Kind.KIND_MAP)
        if status == Status.OK:
            status = self._put_element(Kind.KIND_MAP, field, ELEMENT_TOTAL, _empty(), total, False)
        if status == Status.OK:
            status = self.delta_end()
        return status


cdef int show_element(const Element* element, char* text, Slice* value) noexcept nogil:
    cdef Dot none
    none.origin = 0
    none.timestamp = 0
    if element.size:
        return show(
            True,
            element.dots[element.size - 1].dot,
            element.dots[element.size - 1].value,
            element.rows,
            element.row_count,
            text,
            value,
        )
    return show(False, none, _empty(), element.rows, element.row_count, text, value)
