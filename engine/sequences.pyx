"""Sequences; see sequences.pxd."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from everwrite.bounded_counters cimport BoundedKeyspace
from everwrite.change cimport ELEMENT_WRITE
from everwrite.coding cimport (
    Buffer,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    put_bytes,
    put_u8,
    slice_of,
)
from everwrite.positions cimport place_between, place_name, position_valid
from everwrite.state cimport (
    KIND_SEQUENCE,
    MAX_KEY,
    MAX_VALUE,
    element_decode,
    element_free,
    element_init,
    element_key,
    head_count,
)
from everwrite.status cimport Status, fault_corrupt, fault_key
from everwrite.walk cimport walk_free, walk_init, walk_next


cdef class SequencedKeyspace(BoundedKeyspace):
    """Sequences on top of the other types."""

    def __cinit__(self):
        buffer_init(&self.left_name)
        buffer_init(&self.right_name)
        buffer_init(&self.item_name)
        buffer_init(&self.popped)

    def __dealloc__(self):
        buffer_free(&self.left_name)
        buffer_free(&self.right_name)
        buffer_free(&self.item_name)
        buffer_free(&self.popped)

    # ---- walking ----

    cdef int items_open(self, Slice key, bint reverse, const Slice* edge, bint beyond, Items** it) noexcept nogil:
        cdef int status = self.begin_as(key, KIND_SEQUENCE)
        it[0] = NULL
        if status <= 0:
            return status
        status = self._items_start(reverse, edge, beyond, it)
        return status if status < 0 else 1

    cdef int _items_start(self, bint reverse, const Slice* edge, bint beyond, Items** it) noexcept nogil:
        """A walk along the loaded key's items."""
        cdef Slice key = self.loaded_key()
        cdef int failed
        it[0] = <Items*>calloc(1, sizeof(Items))
        if it[0] == NULL:
            return Status.ERR_MEMORY
        element_init(&it[0].element)
        failed = walk_init(&it[0].walk, self.lsm)
        it[0].walk.reverse = reverse
        it[0].walk.beyond_edge = beyond
        failed |= element_key(&it[0].walk.prefix, key, KIND_SEQUENCE, slice_of(NULL, 0))
        failed |= element_key(&it[0].walk.edge, key, KIND_SEQUENCE, edge[0] if edge != NULL else slice_of(NULL, 0))
        if edge == NULL and reverse:
            # Above all positions, which begin with 0x40 or 0x80.
            failed |= put_u8(&it[0].walk.edge, 0xFF)
        if failed:
            self.items_close(it[0])
            it[0] = NULL
            return Status.ERR_MEMORY
        return Status.OK

    cdef int items_next(self, Items* it, Slice* position, Slice* value) noexcept nogil:
        cdef int status = walk_next(&it.walk, self.lsm, position)
        if status <= 0:
            return status
        if element_decode(&it.element, self.lsm.value(it.walk.it)) < 0 or it.element.size == 0:
            return fault_corrupt(b"key state", 0, b"an item of a sequence can't be decoded")
        value[0] = it.element.dots[it.element.size - 1].value
        return 1

    cdef void items_close(self, Items* it) noexcept nogil:
        if it != NULL:
            walk_free(&it.walk, self.lsm)
            element_free(&it.element)
            free(it)

    cdef int _open_at(
        self, uint64_t index, bint from_end, Items** it, Slice* position, Slice* value
    ) noexcept nogil:
        """A walk that stands on the item of the loaded key with the index: 1, or 0 beyond the ends."""
        cdef uint64_t size = head_count(&self.head, KIND_SEQUENCE)
        cdef Slice place
        cdef int status
        it[0] = NULL
        if index >= size:
            return 0
        status = self.rank_find(KIND_SEQUENCE, size - 1 - index if from_end else index)
        if status <= 0:
            return status
        place = buffer_slice(&self.place_found)
        status = self._items_start(False, &place, False, it)
        return status if status < 0 else self.items_next(it[0], position, value)

    cdef int items_open_at(
        self, Slice key, uint64_t index, bint from_end, Items** it, Slice* position, Slice* value
    ) noexcept nogil:
        cdef int status = self.begin_as(key, KIND_SEQUENCE)
        it[0] = NULL
        return status if status <= 0 else self._open_at(index, from_end, it, position, value)

    # ---- operations ----

    cdef int _nearest(self, bint reverse, const Slice* edge, bint beyond, Buffer* into) noexcept nogil:
        """The name of the first item of a walk; empty when there is none."""
        cdef Items* it
        cdef Slice name
        cdef Slice value
        cdef int status = self._items_start(reverse, edge, beyond, &it)
        into.size = 0
        if status == Status.OK:
            status = self.items_next(it, &name, &value)
            if status > 0 and put_bytes(into, name.data, name.size) != 0:
                status = Status.ERR_MEMORY
        self.items_close(it)
        return status if status < 0 else Status.OK

    cdef int _find_gap(self, int where, Slice position, uint64_t index) noexcept nogil:
        """The names on both sides of a place in the loaded key, into left_name and right_name; empty at an end."""
        cdef Slice name
        cdef int status = Status.OK
        self.left_name.size = 0
        self.right_name.size = 0
        if where == Where.AT_INDEX:
            if index >= head_count(&self.head, KIND_SEQUENCE):
                return self._nearest(True, NULL, False, &self.left_name)
            status = self.rank_find(KIND_SEQUENCE, index)
            if status > 0 and put_bytes(&self.right_name, self.place_found.data, self.place_found.size) != 0:
                status = Status.ERR_MEMORY
            if status > 0:
                name = buffer_slice(&self.right_name)
                status = self._nearest(True, &name, True, &self.left_name)
            return status if status < 0 else Status.OK
        # The item at the position, where it is still there, lies on the left of AFTER and on the right of BEFORE.
        status = self._nearest(True, &position, where == Where.BEFORE_POSITION, &self.left_name)
        if status == Status.OK:
            status = self._nearest(False, &position, where == Where.AFTER_POSITION, &self.right_name)
        return status

    cdef int op_sequence_insert(
        self, Slice key, int where, Slice position, uint64_t index, const Slice* values, size_t count
    ) noexcept nogil:
        cdef size_t i
        cdef int kind = self.begin_as(key, KIND_SEQUENCE)
        cdef int status = Status.OK
        if kind < 0:
            return kind
        for i in range(count):
            if values[i].size > <size_t>MAX_VALUE:
                return fault_key(Status.ERR_TOO_LARGE, key)
        if where != Where.AT_INDEX and not position_valid(position):
            return fault_key(Status.ERR_NOT_A_POSITION, key)
        self.left_name.size = 0
        self.right_name.size = 0
        if kind == KIND_SEQUENCE:
            status = self._find_gap(where, position, index)
        if status == Status.OK:
            status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(KIND_SEQUENCE)
        if status == Status.OK:
            status = place_between(
                buffer_slice(&self.left_name), buffer_slice(&self.right_name), self.own_origin, self.clock.last,
                &self.place,
            )
        if status == Status.ERR_DECODE:
            return fault_corrupt(b"key state", 0, b"a position can't be decoded")
        if status < 0:
            return status
        for i in range(count):
            if place_name(&self.place, i, count, &self.item_name) != 0:
                return Status.ERR_MEMORY
            if self.item_name.size > <size_t>MAX_KEY:
                return fault_key(Status.ERR_TOO_LARGE, key)
            if self._put_element(
                KIND_SEQUENCE, buffer_slice(&self.item_name), ELEMENT_WRITE, values[i], 0, False
            ) != 0:
                return Status.ERR_MEMORY
        return self.delta_end()

    cdef int _load_item(self, Slice key, Slice position) noexcept nogil:
        """Load the item at a position: 1, or 0 when it isn't there."""
        return self.load_as(key, KIND_SEQUENCE, position) if position_valid(position) else fault_key(
            Status.ERR_NOT_A_POSITION, key
        )

    cdef int _write_item(self, Slice position, Slice value) noexcept nogil:
        cdef int status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(KIND_SEQUENCE)
        if status == Status.OK:
            status = self.load_element(KIND_SEQUENCE, position)
        if status >= 0:
            status = self._put_element(KIND_SEQUENCE, position, ELEMENT_WRITE, value, 0, True)
        if status == Status.OK:
            status = self.delta_end()
        return status if status < 0 else 1

    cdef int op_sequence_set(self, Slice key, Slice position, Slice value) noexcept nogil:
        cdef int status
        if value.size > <size_t>MAX_VALUE:
            return fault_key(Status.ERR_TOO_LARGE, key)
        status = self._load_item(key, position)
        return status if status <= 0 else self._write_item(position, value)

    cdef int _name_at(self, Slice key, uint64_t index, bint from_end, Buffer* text) noexcept nogil:
        """The item with the index: its position into item_name, and, unless NULL, its value into `text`."""
        cdef Items* it
        cdef Slice name
        cdef Slice value
        cdef int status = self.items_open_at(key, index, from_end, &it, &name, &value)
        self.item_name.size = 0
        if status == 1 and put_bytes(&self.item_name, name.data, name.size) != 0:
            status = Status.ERR_MEMORY
        if status == 1 and text != NULL:
            text.size = 0
            if put_bytes(text, value.data, value.size) != 0:
                status = Status.ERR_MEMORY
        self.items_close(it)
        return status

    cdef int op_sequence_set_at(self, Slice key, uint64_t index, bint from_end, Slice value) noexcept nogil:
        cdef int status
        if value.size > <size_t>MAX_VALUE:
            return fault_key(Status.ERR_TOO_LARGE, key)
        status = self._name_at(key, index, from_end, NULL)
        return status if status <= 0 else self._write_item(buffer_slice(&self.item_name), value)

    cdef int op_sequence_pop(self, Slice key, uint64_t index, bint from_end, Slice* value) noexcept nogil:
        cdef int64_t removed
        cdef Slice name
        cdef int status = self._name_at(key, index, from_end, &self.popped)
        if status <= 0:
            return status
        value[0] = buffer_slice(&self.popped)
        name = buffer_slice(&self.item_name)
        status = self.op_remove_elements(key, KIND_SEQUENCE, &name, 1, &removed)
        return status if status < 0 else 1

    cdef int op_sequence_get(self, Slice key, Slice position, Slice* value) noexcept nogil:
        cdef int status = self._load_item(key, position)
        if status == 1:
            value[0] = self.element.dots[self.element.size - 1].value
        return status

    cdef int op_sequence_index(self, Slice key, Slice position, uint64_t* index) noexcept nogil:
        cdef int status
        index[0] = 0
        if not position_valid(position):
            return fault_key(Status.ERR_NOT_A_POSITION, key)
        status = self.begin_as(key, KIND_SEQUENCE)
        return status if status <= 0 else self.rank_of(KIND_SEQUENCE, position, index)
