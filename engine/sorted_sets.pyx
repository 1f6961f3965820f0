"""Sorted sets; see sorted_sets.pxd."""

from libc.math cimport isfinite, isnan
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free

from everwrite.change cimport ELEMENT_TOTAL, ELEMENT_WRITE, PART_ELEMENT
from everwrite.coding cimport (
    Buffer,
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
from everwrite.ranks cimport RankedKeyspace
from everwrite.scores cimport (
    SCORE_SIZE,
    element_score,
    load_sortable,
    of_sortable,
    score_bits,
    score_of_bits,
    sortable,
    store_score,
    store_sortable,
)
from everwrite.state cimport (
    KIND_SORTED_SET,
    MAX_KEY,
    SPACE_ORDER,
    Row,
    collection_key,
    element_decode,
    element_live,
    head_count,
    row_live,
    rows_find,
)
from everwrite.status cimport Status, fault_corrupt, fault_key
from everwrite.walk cimport walk_free, walk_init, walk_next


cdef int _put_order_key(Buffer* into, Slice key, uint64_t order, Slice member) noexcept nogil:
    cdef uint8_t score[8]
    store_sortable(score, order)
    return (
        collection_key(into, SPACE_ORDER, key) | put_bytes(into, score, 8) | put_bytes(into, member.data, member.size)
    )


cdef class SortedKeyspace(RankedKeyspace):
    """Members in the order of their scores, on top of the other types."""

    def __cinit__(self):
        buffer_init(&self.order_key)

    def __dealloc__(self):
        buffer_free(&self.order_key)

    # ---- the index of the order ----

    cdef int _order_key(self, double score, Slice member) noexcept nogil:
        return _put_order_key(&self.order_key, self.loaded_key(), sortable(score), member)

    cdef int element_before(self, int kind, bint live) noexcept nogil:
        if kind == KIND_SORTED_SET and live:
            self.score_before = element_score(&self.element)
        return RankedKeyspace.element_before(self, kind, live)

    cdef int element_after(self, int kind, bint live) noexcept nogil:
        cdef double score = 0.0
        cdef int status = Status.OK
        if kind != KIND_SORTED_SET:
            return RankedKeyspace.element_after(self, kind, live)
        if live:
            # Values lie where the element stood in the store, and storing it may have overwritten that place.
            if element_decode(&self.element, buffer_slice(&self.encoded)) < 0:
                return Status.ERR_MEMORY
            score = element_score(&self.element)
            if self.listed_before and score == self.score_before:
                return Status.OK
        if self.listed_before:
            status = self._order_key(self.score_before, self.element_name())
            if status == 0:
                status = self.lsm.remove(buffer_slice(&self.order_key))
            if status == 0:
                status = self.rank_note(kind, self._place(), -1)
        if live and status >= 0:
            status = self._order_key(score, self.element_name())
            if status == 0:
                status = self.lsm.put(buffer_slice(&self.order_key), slice_of(NULL, 0))
            if status == 0:
                status = self.rank_note(kind, self._place(), 1)
        return status

    cdef Slice _place(self) noexcept nogil:
        """Where the entry whose key was made last lies in the order: score and member."""
        # Space and length of the key stand before the key, which has its space byte in `key`.
        cdef size_t start = 4 + self.key.size
        return slice_of(self.order_key.data + start, self.order_key.size - start)

    # ---- operations ----

    cdef int _put_score(self, Slice member, double score) noexcept nogil:
        cdef uint8_t value[8]
        store_score(value, score)
        return self._put_element(KIND_SORTED_SET, member, ELEMENT_WRITE, slice_of(value, SCORE_SIZE), 0, True)

    cdef int op_sorted_set_add(
        self, Slice key, const Slice* members, const double* scores, size_t count, int flags,
        int64_t* added, int64_t* changed
    ) noexcept nogil:
        cdef bint begun = False
        cdef bint live
        cdef double score
        cdef size_t i
        cdef int status = self.begin_as(key, KIND_SORTED_SET)
        added[0] = 0
        changed[0] = 0
        if status < 0:
            return status
        for i in range(count):
            if members[i].size > <size_t>MAX_KEY:
                return fault_key(Status.ERR_TOO_LARGE, key)
            if isnan(scores[i]):
                return fault_key(Status.ERR_NOT_A_NUMBER, key)
        for i in range(count):
            status = self.load_element(KIND_SORTED_SET, members[i])
            if status < 0:
                return status
            live = not self.absent and element_live(&self.element)
            if flags & (SortedSetFlag.SCORE_OLD if not live else SortedSetFlag.SCORE_NEW):
                continue
            score = element_score(&self.element) if live else 0.0
            if live and (
                (flags & SortedSetFlag.SCORE_GREATER and not scores[i] > score)
                or (flags & SortedSetFlag.SCORE_LESS and not scores[i] < score)
            ):
                continue
            if not begun:
                begun = True
                status = self.delta_begin()
                if status == Status.OK:
                    status = self._put_removals(KIND_SORTED_SET)
                if status >= 0:
                    # Writing the removals goes through elements, too.
                    status = self.load_element(KIND_SORTED_SET, members[i])
                if status < 0:
                    return status
            if self._put_score(members[i], scores[i]) != 0:
                return Status.ERR_MEMORY
            added[0] += not live
            changed[0] += not live or scores[i] != score
        return self.delta_end() if begun else Status.OK

    cdef int op_sorted_set_increment(self, Slice key, Slice member, double* score) noexcept nogil:
        cdef const Row* row
        cdef double amount = score[0]
        cdef double total = amount
        cdef double shown = amount
        cdef bint anew = False
        cdef int failed
        cdef int status = self.begin_as(key, KIND_SORTED_SET)
        if status < 0:
            return status
        if member.size > <size_t>MAX_KEY:
            return fault_key(Status.ERR_TOO_LARGE, key)
        if not isfinite(amount):
            return fault_key(Status.ERR_NOT_A_NUMBER, key)
        status = self.load_element(KIND_SORTED_SET, member)
        if status < 0:
            return status
        if not self.absent and element_live(&self.element):
            shown += element_score(&self.element)
            if not isfinite(shown) and isfinite(element_score(&self.element)):
                return fault_key(Status.ERR_OVERFLOW, key)
        row = rows_find(self.element.rows, self.element.row_count, self.own_origin)
        if row != NULL:
            # Where nothing is left of the old total the new one starts from zero: floats would lose small
            # amounts beside a large one that no longer counts.
            anew = self.absent or not row_live(row)
            if not anew:
                total += score_of_bits(<uint64_t>row.total)
        if not isfinite(total):
            return fault_key(Status.ERR_OVERFLOW, key)
        if anew:
            # The timestamp below the change's own is nobody else's.
            self.clock.tick()
        status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(KIND_SORTED_SET)
        if status < 0:
            return status
        failed = put_u8(&self.delta, PART_ELEMENT) | put_u8(&self.delta, <uint8_t>KIND_SORTED_SET)
        failed |= put_slice(&self.delta, member) | put_u8(&self.delta, ELEMENT_TOTAL)
        failed |= put_u64(&self.delta, score_bits(total)) | put_varint(&self.delta, 0)
        failed |= put_varint(&self.delta, anew)
        if anew:
            failed |= put_u64(&self.delta, self.own_origin) | put_u64(&self.delta, self.clock.last - 1)
            failed |= put_u64(&self.delta, score_bits(0.0))
        if failed:
            return Status.ERR_MEMORY
        status = self.delta_end()
        if status == Status.OK:
            score[0] = shown
        return status

    cdef int op_sorted_set_score(self, Slice key, Slice member, double* score) noexcept nogil:
        cdef int status = self.load_as(key, KIND_SORTED_SET, member)
        # Of a key that isn't there no element is loaded: `element` is still an earlier one.
        if status <= 0 or not element_live(&self.element):
            return status if status < 0 else 0
        score[0] = element_score(&self.element)
        return 1

    # ---- ranks ----

    cdef int op_sorted_set_rank(self, Slice key, Slice member, uint64_t* rank) noexcept nogil:
        cdef double score = 0.0
        cdef int status = self.op_sorted_set_score(key, member, &score)
        rank[0] = 0
        if status <= 0:
            return status
        if self._order_key(score, member) != 0:
            return Status.ERR_MEMORY
        status = self.rank_of(KIND_SORTED_SET, self._place(), rank)
        return status if status < 0 else 1

    cdef int op_sorted_set_count(self, Slice key, double first, double last, uint64_t* count) noexcept nogil:
        cdef uint8_t score[8]
        cdef uint64_t below = 0
        cdef int status = self.begin_as(key, KIND_SORTED_SET)
        count[0] = 0
        if status <= 0:
            return status
        if sortable(first) > sortable(last):
            return Status.OK
        store_sortable(score, sortable(first))
        status = self.rank_of(KIND_SORTED_SET, slice_of(score, 8), &below)
        if status == Status.OK:
            # Nothing sorts above the greatest number, so there is a next place.
            store_sortable(score, sortable(last) + 1)
            status = self.rank_of(KIND_SORTED_SET, slice_of(score, 8), count)
        count[0] -= below
        return status

    cdef int op_sorted_set_at(
        self, Slice key, uint64_t rank, bint from_end, Slice* member, double* score
    ) noexcept nogil:
        cdef uint64_t count
        cdef int status = self.begin_as(key, KIND_SORTED_SET)
        if status <= 0:
            return status
        count = head_count(&self.head, KIND_SORTED_SET)
        if rank >= count:
            return 0
        status = self.rank_find(KIND_SORTED_SET, count - 1 - rank if from_end else rank)
        if status == 1:
            if self.place_found.size < 8:
                return fault_corrupt(b"key state", 0, b"an entry of a sorted set's order is too short")
            score[0] = of_sortable(load_sortable(self.place_found.data))
            member[0] = slice_of(self.place_found.data + 8, self.place_found.size - 8)
        return status

    # ---- walking along the order ----

    cdef int members_open(
        self, Slice key, double first, double last, bint reverse, const Slice* after, bint included, Members** it
    ) noexcept nogil:
        cdef uint64_t order = sortable(first)
        cdef int failed
        cdef int status = self.begin_as(key, KIND_SORTED_SET)
        it[0] = NULL
        if status <= 0:
            return status
        it[0] = <Members*>calloc(1, sizeof(Members))
        if it[0] == NULL:
            return Status.ERR_MEMORY
        failed = walk_init(&it[0].walk, self.lsm)
        it[0].walk.reverse = reverse
        it[0].walk.beyond_edge = not included and (reverse or after != NULL)
        it[0].last = sortable(last)
        if reverse and after == NULL:
            # Nothing sorts above the greatest number, so there is a next place in the order of bytes.
            order += 1
        failed |= collection_key(&it[0].walk.prefix, SPACE_ORDER, key)
        failed |= _put_order_key(&it[0].walk.edge, key, order, after[0] if after != NULL else slice_of(NULL, 0))
        if failed:
            self.members_close(it[0])
            it[0] = NULL
            return Status.ERR_MEMORY
        return 1

    cdef int members_next(self, Members* it, Slice* member, double* score) noexcept nogil:
        cdef Slice rest
        cdef uint64_t order
        cdef int status = walk_next(&it.walk, self.lsm, &rest)
        if status <= 0:
            return status
        if rest.size < 8:
            return fault_corrupt(b"key state", 0, b"an entry of a sorted set's order is too short")
        order = load_sortable(rest.data)
        if order < it.last if it.walk.reverse else order > it.last:
            return 0
        score[0] = of_sortable(order)
        member[0] = slice_of(rest.data + 8, rest.size - 8)
        return 1

    cdef void members_close(self, Members* it) noexcept nogil:
        if it != NULL:
            walk_free(&it.walk, self.lsm)
            free(it)
