"""Bounded counters; see bounded_counters.pxd for their cells."""

from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc

from everwrite.change cimport ELEMENT_WRITE, PART_ELEMENT, put_dot
from everwrite.clock cimport Dot, dot_compare
from everwrite.coding cimport (
    Buffer,
    Slice,
    buffer_slice,
    load_u64,
    put_bytes,
    put_slice,
    put_u8,
    put_varint,
    slice_of,
    store_u64,
)
from everwrite.sorted_sets cimport SortedKeyspace
from everwrite.state cimport (
    CREATION_NAME,
    GIVEN_NAME,
    KIND_BOUNDED,
    USED_NAME,
    element_decode,
    element_live,
    saturate,
    wide_t,
)
from everwrite.status cimport Status, fault_corrupt, fault_key
from everwrite.walk cimport Walk, walk_free, walk_next


cdef void _store_big(uint8_t* at, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        at[i] = <uint8_t>(value >> (56 - 8 * i))


cdef uint64_t _load_big(const uint8_t* at) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(8):
        value = (value << 8) | at[i]
    return value


cdef Slice _empty() noexcept nogil:
    return slice_of(NULL, 0)


cdef class BoundedKeyspace(SortedKeyspace):
    """Bounded counters on top of the other types."""

    def __dealloc__(self):
        free(self.generations)
        free(self.cells)

    # ---- reading ----

    cdef int _add_generation(self, Dot dot, Slice value) noexcept nogil:
        cdef size_t capacity
        cdef void* grown
        if self.generation_count == self.generation_capacity:
            capacity = self.generation_capacity * 2 or 4
            grown = realloc(self.generations, capacity * sizeof(Generation))
            if grown == NULL:
                return Status.ERR_MEMORY
            self.generations = <Generation*>grown
            self.generation_capacity = capacity
        self.generations[self.generation_count].dot = dot
        self.generations[self.generation_count].minimum = <int64_t>load_u64(value.data)
        self.generation_count += 1
        return Status.OK

    cdef int _add_cell(self, Slice name) noexcept nogil:
        """The amount in `element`, of the newest generation."""
        cdef size_t capacity
        cdef size_t i
        cdef void* grown
        cdef Cell* cell
        if self.cell_count == self.cell_capacity:
            capacity = self.cell_capacity * 2 or 16
            grown = realloc(self.cells, capacity * sizeof(Cell))
            if grown == NULL:
                return Status.ERR_MEMORY
            self.cells = <Cell*>grown
            self.cell_capacity = capacity
        cell = &self.cells[self.cell_count]
        cell.generation = self.generation_count - 1
        cell.origin = _load_big(name.data + CREATION_NAME)
        cell.target = _load_big(name.data + USED_NAME) if name.size == GIVEN_NAME else 0
        cell.amount = 0
        for i in range(self.element.size):
            cell.amount = max(cell.amount, load_u64(self.element.dots[i].value.data))
        cell.dot = self.element.dots[self.element.size - 1].dot
        self.cell_count += 1
        return Status.OK

    cdef int bounded_read(self, Slice key) noexcept nogil:
        cdef Walk walk
        cdef Slice name
        cdef Dot dot
        cdef bint alive = False
        cdef int status = self.begin_as(key, KIND_BOUNDED)
        self.generation_count = 0
        self.cell_count = 0
        if status <= 0:
            return status
        status = self.walk_elements(KIND_BOUNDED, &walk)
        dot.origin = 0
        dot.timestamp = 0
        while status >= 0:
            status = walk_next(&walk, self.lsm, &name)
            if status <= 0:
                break
            if name.size < CREATION_NAME or element_decode(&self.element, self.lsm.value(walk.it)) < 0:
                status = fault_corrupt(b"key state", 0, b"an element of a bounded counter can't be decoded")
                break
            if _load_big(name.data) != dot.origin or _load_big(name.data + 8) != dot.timestamp:
                # A creation sorts before its amounts. Where it is missing a delete took it, for the guards
                # of amounts see to it that it came before them. What was written to it meanwhile stays
                # until the key is deleted again: to remove it here would give rights back to a store that
                # has this removal, but not yet the delete.
                alive = False
                dot.origin = _load_big(name.data)
                dot.timestamp = _load_big(name.data + 8)
            if element_live(&self.element) and self.element.size:
                if name.size == CREATION_NAME:
                    alive = True
                    status = self._add_generation(dot, self.element.dots[self.element.size - 1].value)
                elif alive:
                    status = self._add_cell(name)
        walk_free(&walk, self.lsm)
        return status if status < 0 else KIND_BOUNDED

    cdef wide_t bounded_rights(self, size_t generation, uint64_t origin) noexcept nogil:
        cdef wide_t rights = 0
        cdef const Cell* cell
        cdef size_t i
        for i in range(self.cell_count):
            cell = &self.cells[i]
            if cell.generation != generation:
                continue
            if cell.origin == origin:
                if cell.target == origin:
                    rights = rights + cell.amount
                else:
                    rights = rights - cell.amount
            elif cell.target == origin:
                rights = rights + cell.amount
        return rights

    cdef int64_t bounded_minimum(self) noexcept nogil:
        """Of several generations, created without knowing of each other, the highest minimum binds."""
        cdef int64_t minimum = self.generations[0].minimum if self.generation_count else 0
        cdef size_t i
        for i in range(self.generation_count):
            minimum = max(minimum, self.generations[i].minimum)
        return minimum

    cdef int64_t bounded_value(self) noexcept nogil:
        cdef wide_t value = self.bounded_minimum()
        cdef wide_t left
        cdef size_t generation
        cdef size_t i
        for generation in range(self.generation_count):
            left = 0
            for i in range(self.cell_count):
                if self.cells[i].generation == generation:
                    if self.cells[i].target == self.cells[i].origin:
                        left = left + self.cells[i].amount
                    elif self.cells[i].target == 0:
                        left = left - self.cells[i].amount
            if left > 0:
                value = value + left
        return saturate(value)

    cdef const Cell* _find_cell(self, size_t generation, uint64_t origin, uint64_t target) noexcept nogil:
        cdef size_t i
        for i in range(self.cell_count):
            if (
                self.cells[i].generation == generation
                and self.cells[i].origin == origin
                and self.cells[i].target == target
            ):
                return &self.cells[i]
        return NULL

    cdef bint _takes_part(self, size_t generation, uint64_t origin) noexcept nogil:
        """Whether the origin has an amount of its own in the generation."""
        cdef size_t i
        for i in range(self.cell_count):
            if self.cells[i].generation == generation and self.cells[i].origin == origin:
                return True
        return False

    # ---- parts of a delta ----

    cdef int _put_cell_name(self, Buffer* into, Dot generation, uint64_t origin, uint64_t target) noexcept nogil:
        cdef uint8_t name[32]
        _store_big(&name[0], generation.origin)
        _store_big(&name[8], generation.timestamp)
        _store_big(&name[16], origin)
        _store_big(&name[24], target)
        into.size = 0
        return put_bytes(into, name, GIVEN_NAME if target else (USED_NAME if origin else CREATION_NAME))

    cdef size_t _list_guards(self, size_t generation, uint64_t origin, wide_t spent, bint put) noexcept nogil:
        """The transfers that cover what `origin` spends beyond its own increments; how many. Written when `put`."""
        cdef const Cell* made = self._find_cell(generation, origin, origin)
        cdef wide_t covered = made.amount if made != NULL else 0
        cdef const Cell* cell
        cdef size_t count = 0
        cdef size_t i
        # What this origin wrote itself comes before whatever it writes now.
        if self.generations[generation].dot.origin != self.own_origin and not self._takes_part(
            generation, self.own_origin
        ):
            count += 1
            if put:
                put_dot(&self.delta, self.generations[generation].dot)
        if origin != self.own_origin and made != NULL:
            count += 1
            if put:
                put_dot(&self.delta, made.dot)
        for i in range(self.cell_count):
            cell = &self.cells[i]
            if covered >= spent:
                break
            if cell.generation == generation and cell.target == origin and cell.origin != origin:
                covered = covered + cell.amount
                count += 1
                if put:
                    put_dot(&self.delta, cell.dot)
        return count

    cdef int _put_cell(
        self, size_t generation, uint64_t origin, uint64_t target, uint64_t amount, uint64_t more
    ) noexcept nogil:
        """The amount of a cell after `more` was added, with the guards on what it relies on."""
        cdef uint8_t value[8]
        cdef wide_t spent = 0
        cdef size_t guards
        cdef size_t i
        cdef int failed
        cdef int status = self._put_cell_name(&self.encoded, self.generations[generation].dot, origin, target)
        if status == 0:
            status = self.load_element(KIND_BOUNDED, buffer_slice(&self.encoded))
        if status < 0:
            return status
        if target != origin:
            spent = more
            for i in range(self.cell_count):
                if (
                    self.cells[i].generation == generation
                    and self.cells[i].origin == origin
                    and self.cells[i].target != origin
                ):
                    spent = spent + self.cells[i].amount
        store_u64(value, amount + more)
        guards = self._list_guards(generation, origin, spent, False)
        failed = put_u8(&self.delta, PART_ELEMENT) | put_u8(&self.delta, <uint8_t>KIND_BOUNDED)
        failed |= put_slice(&self.delta, self.element_name()) | put_u8(&self.delta, ELEMENT_WRITE)
        failed |= put_slice(&self.delta, slice_of(value, 8)) | put_varint(&self.delta, self.element.size + guards)
        for i in range(self.element.size):
            failed |= put_dot(&self.delta, self.element.dots[i].dot)
        self._list_guards(generation, origin, spent, True)
        return Status.ERR_MEMORY if failed | put_varint(&self.delta, 0) else Status.OK

    # ---- operations ----

    cdef int op_bounded_increment(self, Slice key, int64_t minimum, uint64_t amount, int64_t* value) noexcept nogil:
        cdef const Cell* cell
        cdef Dot created
        cdef uint8_t number[8]
        cdef uint64_t before = 0
        cdef size_t newest = 0
        cdef size_t i
        cdef int kind = self.bounded_read(key)
        cdef int status
        if kind < 0:
            return kind
        value[0] = self.bounded_value() if self.generation_count else minimum
        if amount > <uint64_t>INT64_MAX or (value[0] > 0 and <int64_t>amount > INT64_MAX - value[0]):
            return fault_key(Status.ERR_OVERFLOW, self.loaded_key())
        value[0] += <int64_t>amount
        for i in range(self.generation_count):
            if dot_compare(self.generations[i].dot, self.generations[newest].dot) > 0:
                newest = i
        if self.generation_count:
            cell = self._find_cell(newest, self.own_origin, self.own_origin)
            before = cell.amount if cell != NULL else 0
            if before > UINT64_MAX - amount:
                return fault_key(Status.ERR_OVERFLOW, self.loaded_key())
        status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(KIND_BOUNDED)
        if status == Status.OK and not self.generation_count:
            created.origin = self.own_origin
            created.timestamp = self.clock.last
            store_u64(number, <uint64_t>minimum)
            status = self._add_generation(created, slice_of(number, 8))
            if status == Status.OK:
                status = self._put_cell_name(&self.encoded, created, 0, 0)
            if status == Status.OK:
                status = self._put_element(
                    KIND_BOUNDED, buffer_slice(&self.encoded), ELEMENT_WRITE, slice_of(number, 8), 0, False
                )
        if status == Status.OK:
            status = self._put_cell(newest, self.own_origin, self.own_origin, before, amount)
        return self.delta_end() if status == Status.OK else status

    cdef int _spend(self, uint64_t target, uint64_t amount) noexcept nogil:
        """Take rights of this origin, from as many generations as it needs. `target` 0: a decrement."""
        cdef const Cell* cell
        cdef wide_t held = 0
        cdef wide_t rights
        cdef uint64_t part
        cdef uint64_t before
        cdef size_t generation
        cdef int status
        for generation in range(self.generation_count):
            rights = self.bounded_rights(generation, self.own_origin)
            if rights > 0:
                held = held + rights
        if held < amount:
            return fault_key(Status.ERR_NO_RIGHTS, self.loaded_key())
        if target == self.own_origin:
            return Status.OK       # handed over to itself: nothing changes
        status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(KIND_BOUNDED)
        for generation in range(self.generation_count):
            rights = self.bounded_rights(generation, self.own_origin)
            if status < 0 or amount == 0:
                break
            if rights <= 0:
                continue
            part = amount if rights > amount else <uint64_t>rights
            cell = self._find_cell(generation, self.own_origin, target)
            before = cell.amount if cell != NULL else 0
            if before > UINT64_MAX - part:
                return fault_key(Status.ERR_OVERFLOW, self.loaded_key())
            status = self._put_cell(generation, self.own_origin, target, before, part)
            amount -= part
        return self.delta_end() if status == Status.OK else status

    cdef int op_bounded_decrement(self, Slice key, uint64_t amount, int64_t* value) noexcept nogil:
        cdef int status = self.bounded_read(key)
        if status < 0:
            return status
        value[0] = self.bounded_value()
        status = self._spend(0, amount)
        if status == Status.OK:
            value[0] -= <int64_t>amount
        return status

    cdef int op_bounded_transfer(self, Slice key, uint64_t target, uint64_t amount) noexcept nogil:
        cdef int status = self.bounded_read(key)
        return self._spend(target, amount) if status >= 0 else status

    cdef int op_bounded_reclaim(self, Slice key, uint64_t* amount) noexcept nogil:
        cdef const Cell* cell
        cdef wide_t rights
        cdef uint64_t origin
        cdef uint64_t before
        cdef size_t generation
        cdef size_t i
        cdef size_t j
        cdef size_t counted = 0
        cdef bint begun = False
        cdef int status = self.bounded_read(key)
        amount[0] = 0
        if status < 0:
            return status
        for i in range(self.cell_count):
            # Every origin that holds anything has got it by its own increments or by a transfer, once or more often.
            generation = self.cells[i].generation
            origin = self.cells[i].target
            if origin >> 16 != self.own_origin >> 16 or origin == self.own_origin:
                continue
            counted = 0
            for j in range(i):
                counted += self.cells[j].generation == generation and self.cells[j].target == origin
            rights = self.bounded_rights(generation, origin)
            if counted or rights <= 0:
                continue
            if not begun:
                begun = True
                status = self.delta_begin()
                if status == Status.OK:
                    status = self._put_removals(KIND_BOUNDED)
            cell = self._find_cell(generation, origin, self.own_origin)
            before = cell.amount if cell != NULL else 0
            if before > UINT64_MAX - <uint64_t>rights:
                return fault_key(Status.ERR_OVERFLOW, self.loaded_key())
            if status == Status.OK:
                status = self._put_cell(generation, origin, self.own_origin, before, <uint64_t>rights)
            if status < 0:
                return status
            amount[0] += <uint64_t>rights
        return self.delta_end() if begun else Status.OK
