"""The loaded key's elements; see elements.pxd for the invariants."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

from everwrite.change cimport CHANGE_FULL_STATE, PART_ELEMENT_STATE, PART_HEAD, Part, part_next, put_change
from everwrite.clock cimport Dot, vector_free, vector_get, vector_init
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    put_bytes,
    put_slice,
    put_u8,
    reader_of,
    slice_compare,
    slice_of,
)
from everwrite.digest cimport element_item, no_sum, sum_add, sum_subtract
from everwrite.join cimport CHANGED, CONFLICT, Seen, join_element
from everwrite.lsm cimport LsmIterator, pin_init, pin_release
from everwrite.state cimport (
    ELEMENT_KIND_COUNT,
    MAX_STATE,
    Collection,
    Kind,
    Row,
    Sum,
    element_clear,
    element_counts,
    element_decode,
    element_encode,
    element_free,
    element_init,
    element_key,
    element_live,
    head_collection,
    head_context,
    head_encode,
    head_find,
    head_free,
    head_init,
    head_row,
)
from everwrite.status cimport Status, fault_corrupt, fault_key
from everwrite.walk cimport Walk, walk_free, walk_init, walk_next


cdef class ElementStore:
    """The key that is loaded, and its elements; `Keyspace` loads keys and merges changes into them."""

    def __cinit__(self):
        head_init(&self.head)
        head_init(&self.theirs)
        vector_init(&self.horizon)
        element_init(&self.element)
        element_init(&self.their_element)
        pin_init(&self.element_pin)
        buffer_init(&self.key)
        buffer_init(&self.element_key)
        buffer_init(&self.encoded)

    def __dealloc__(self):
        pin_release(&self.element_pin)
        head_free(&self.head)
        vector_free(&self.horizon)
        head_free(&self.theirs)
        element_free(&self.element)
        element_free(&self.their_element)
        buffer_free(&self.key)
        buffer_free(&self.element_key)
        buffer_free(&self.encoded)

    cdef Slice loaded_key(self) noexcept nogil:
        return slice_of(self.key.data + 1, self.key.size - 1)

    cdef int load_element(self, int kind, Slice name) noexcept nogil:
        cdef Slice stored
        cdef int found
        pin_release(&self.element_pin)
        if element_key(&self.element_key, self.loaded_key(), kind, name) != 0:
            return Status.ERR_MEMORY
        found = self.lsm.get(buffer_slice(&self.element_key), &self.element_pin, &stored)
        if found <= 0:
            element_clear(&self.element)
            return found
        if element_decode(&self.element, stored) != Status.OK:
            return fault_corrupt(b"key state", 0, b"an element can't be decoded")
        return 1

    cdef Slice element_name(self) noexcept nogil:
        # Space, length of the key and kind stand around the key.
        cdef size_t start = 5 + self.key.size
        return slice_of(self.element_key.data + start, self.element_key.size - start)

    cdef int walk_elements(self, int kind, Walk* walk) noexcept nogil:
        cdef int failed = walk_init(walk, self.lsm)
        failed |= element_key(&walk.prefix, self.loaded_key(), kind, slice_of(NULL, 0))
        failed |= put_bytes(&walk.edge, walk.prefix.data, walk.prefix.size)
        return Status.ERR_MEMORY if failed else Status.OK

    cdef uint64_t key_context(self, uint64_t origin) noexcept nogil:
        return max(head_context(&self.head, origin), vector_get(&self.horizon, origin))

    cdef int spell_out_context(self) noexcept nogil:
        cdef Row* row
        cdef size_t i
        for i in range(self.horizon.size):
            row = head_row(&self.head, self.horizon.dots[i].origin)
            if row == NULL:
                return Status.ERR_MEMORY
            if row.context < self.horizon.dots[i].timestamp:
                row.context = self.horizon.dots[i].timestamp
        return Status.OK

    cdef int encode_state(self, Buffer* into, Dot dot) noexcept nogil:
        """The loaded key as a full-state change named by `dot` (0, 0: none). Lasts: appended to `into`."""
        cdef Walk walk
        cdef Slice name
        cdef int failed
        cdef int status = Status.OK
        cdef int kind
        cdef int i
        # Whoever joins it knows another horizon, or none.
        failed = self.spell_out_context()
        failed |= put_change(into, CHANGE_FULL_STATE, dot, 0, buffer_slice(&self.key))
        failed |= self._encode_shared_head()
        failed |= put_u8(into, PART_HEAD) | put_slice(into, buffer_slice(&self.encoded))
        if failed:
            return Status.ERR_MEMORY
        for i in range(self.head.collection_count):
            kind = self.head.collections[i].kind
            status = self.walk_elements(kind, &walk)
            while status >= 0:
                status = walk_next(&walk, self.lsm, &name)
                if status <= 0:
                    break
                failed = put_u8(into, PART_ELEMENT_STATE) | put_u8(into, <uint8_t>kind)
                failed |= put_slice(into, name) | put_slice(into, self.lsm.value(walk.it))
                if failed:
                    status = Status.ERR_MEMORY
                elif into.size > MAX_STATE:
                    status = fault_key(Status.ERR_STATE_TOO_LARGE, self.loaded_key())
            walk_free(&walk, self.lsm)
            if status < 0:
                return status
        return Status.OK

    cdef int _encode_shared_head(self) noexcept nogil:
        """The head for other stores, into `encoded`: without what it says of local indexes."""
        cdef int levels[ELEMENT_KIND_COUNT]
        cdef int failed
        cdef int i
        for i in range(self.head.collection_count):
            levels[i] = self.head.collections[i].levels
            self.head.collections[i].levels = 0
        self.encoded.size = 0
        failed = head_encode(&self.head, &self.encoded)
        for i in range(self.head.collection_count):
            self.head.collections[i].levels = levels[i]
        return failed

    # ---- joining ----

    cdef int merge_element(self, int kind, bint present, const Seen* seen) noexcept nogil:
        """Join `their_element` into `element`, which stands under `element_key`, and store it."""
        cdef bint live_before = present and element_live(&self.element)
        cdef bint live
        cdef Collection* held
        cdef Slice name = self.element_name()
        cdef Sum item = element_item(&self.element, kind, name) if live_before else no_sum()
        cdef int status = self.element_before(kind, live_before)
        if status < 0:
            return status
        status = join_element(&self.element, self.head.rows, self.head.size, &self.their_element, seen)
        if status < 0:
            return status
        if status & CONFLICT:
            self.conflicts_add_remove += 1
        if not status & CHANGED:
            return Status.OK
        if self.element.size == 0 and self.element.row_count == 0:
            # Nothing to keep: the context of the key tells that the element was removed.
            status = self.lsm.remove(buffer_slice(&self.element_key)) if present else Status.OK
        else:
            self.encoded.size = 0
            if element_encode(&self.element, &self.encoded) < 0:
                return Status.ERR_MEMORY
            status = self.lsm.put(buffer_slice(&self.element_key), buffer_slice(&self.encoded))
        if status < 0:
            return status
        live = element_live(&self.element)
        sum_subtract(&self.head.sum, item)
        sum_add(&self.head.sum, element_item(&self.element, kind, name))
        # Also for an element of floors alone: the head must tell that the kind has entries.
        held = head_collection(&self.head, kind)
        if held == NULL:
            return Status.ERR_MEMORY
        if element_counts(kind, self.element_name()):
            if live and not live_before:
                held.count += 1
            elif live_before and not live:
                held.count -= 1
        return self.element_after(kind, live)

    cdef int element_before(self, int kind, bint live) noexcept nogil:
        return Status.OK

    cdef int element_after(self, int kind, bint live) noexcept nogil:
        return Status.OK

    cdef int sweep_kinds(self, int mask, const Seen* seen, const Slice* parts) noexcept nogil:
        """`_sweep` for every kind in the mask that this side or, with `parts`, the other has elements of."""
        cdef int status
        cdef int kind
        for kind in range(Kind.KIND_SET, Kind.KIND_SEQUENCE + 1):
            if mask >> kind & 1 and (
                head_find(&self.head, kind) != NULL or (parts != NULL and head_find(&self.theirs, kind) != NULL)
            ):
                status = self._sweep(kind, seen, parts)
                if status < 0:
                    return status
        return Status.OK

    cdef int _sweep(self, int kind, const Seen* seen, const Slice* parts) noexcept nogil:
        """Join every element of one kind with what the other side has of it.

        `parts` NULL: the other side has no element (a clear). Else they are a full state's
        encoded parts, in the order of the iteration, and both sequences are walked together.
        """
        cdef LsmIterator* it = self.lsm.iterator()
        cdef Reader r
        cdef Part part
        cdef Buffer prefix
        cdef Slice stored_key
        cdef Slice name
        cdef int status
        cdef int more_theirs = 0
        cdef int at_mine
        cdef int order
        if it == NULL:
            return Status.ERR_MEMORY
        buffer_init(&prefix)
        status = element_key(&prefix, self.loaded_key(), kind, slice_of(NULL, 0))
        if parts != NULL:
            r = reader_of(parts[0])
            more_theirs = self._next_of_kind(&r, kind, &part)
        at_mine = self.lsm.seek(it, buffer_slice(&prefix)) if status == 0 else status
        while at_mine >= 0 and more_theirs >= 0:
            if at_mine:
                stored_key = self.lsm.key(it)
                if stored_key.size < prefix.size or memcmp(stored_key.data, prefix.data, prefix.size) != 0:
                    at_mine = 0
            if not at_mine and not more_theirs:
                break
            if at_mine:
                name = slice_of(stored_key.data + prefix.size, stored_key.size - prefix.size)
            order = -1 if not more_theirs else (1 if not at_mine else slice_compare(name, part.name))
            element_clear(&self.element)
            element_clear(&self.their_element)
            if order <= 0:
                self.element_key.size = 0
                status = put_bytes(&self.element_key, stored_key.data, stored_key.size)
                if status == 0:
                    status = element_decode(&self.element, self.lsm.value(it))
            else:
                status = element_key(&self.element_key, self.loaded_key(), kind, part.name)
            if status == 0 and order >= 0:
                status = element_decode(&self.their_element, part.value)
            if status == 0:
                status = self.merge_element(kind, order <= 0, seen)
            if status < 0:
                break
            if order >= 0:
                more_theirs = self._next_of_kind(&r, kind, &part)
            if order <= 0:
                at_mine = self.lsm.next(it)
        self.lsm.iterator_free(it)
        buffer_free(&prefix)
        if status < 0:
            return status
        return at_mine if at_mine < 0 else (more_theirs if more_theirs < 0 else Status.OK)

    cdef int _next_of_kind(self, Reader* r, int kind, Part* part) noexcept nogil:
        cdef int status
        while True:
            status = part_next(r, part)
            if status <= 0:
                return status
            if part.tag == PART_ELEMENT_STATE and part.kind == kind:
                return 1
