"""The index of ranks; see ranks.pxd for its entries and invariants."""

from libc.stdint cimport UINT64_MAX, uint8_t, uint64_t

from everwrite.coding cimport (
    Buffer,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    load_u64,
    put_bytes,
    put_u8,
    slice_compare,
    slice_of,
    store_u64,
)
from everwrite.join cimport Seen
from everwrite.lsm cimport pin_release
from everwrite.registers cimport RegisterKeyspace
from everwrite.state cimport (
    KIND_SEQUENCE,
    KIND_SORTED_SET,
    SPACE_ORDER,
    SPACE_RANK,
    Collection,
    collection_key,
    element_key,
    head_collection,
    head_count,
    head_decode,
    head_encode,
    head_find,
)
from everwrite.status cimport Status, fault_corrupt
from everwrite.walk cimport Walk, walk_free, walk_init, walk_next


cdef inline Slice _start() noexcept nogil:
    """The place that lies before all others."""
    return slice_of(NULL, 0)


cdef inline int _keep(Buffer* into, Slice place) noexcept nogil:
    into.size = 0
    return Status.OK if put_bytes(into, place.data, place.size) == 0 else Status.ERR_MEMORY


cdef int _broken() noexcept nogil:
    return fault_corrupt(b"key state", 0, b"the index of ranks doesn't fit the order of the elements")


cdef int _span_key(Buffer* into, Slice key, int kind, int level, Slice place) noexcept nogil:
    cdef int failed = collection_key(into, SPACE_RANK, key) | put_u8(into, <uint8_t>kind)
    return failed | put_u8(into, <uint8_t>level) | put_bytes(into, place.data, place.size)


cdef class RankedKeyspace(RegisterKeyspace):
    """Counts over the order of elements, on top of the other types."""

    def __cinit__(self):
        buffer_init(&self.rank_entry)
        buffer_init(&self.span_start)
        buffer_init(&self.span_end)
        buffer_init(&self.span_middle)
        buffer_init(&self.place_found)

    def __dealloc__(self):
        buffer_free(&self.rank_entry)
        buffer_free(&self.span_start)
        buffer_free(&self.span_end)
        buffer_free(&self.span_middle)
        buffer_free(&self.place_found)

    # ---- walking along a level ----

    cdef int _level_open(self, Level* at) noexcept nogil:
        return Status.OK if walk_init(&at.walk, self.lsm) == 0 else Status.ERR_MEMORY

    cdef void _level_close(self, Level* at) noexcept nogil:
        walk_free(&at.walk, self.lsm)

    cdef int _level_aim(self, Level* at, int kind, int level, Slice place) noexcept nogil:
        cdef Slice key = self.loaded_key()
        cdef Buffer* prefix = &at.walk.prefix
        cdef int failed
        at.counted = level > 0
        at.walk.started = False
        if level:
            failed = _span_key(prefix, key, kind, level, _start())
        elif kind == KIND_SORTED_SET:
            failed = collection_key(prefix, SPACE_ORDER, key)
        else:
            failed = element_key(prefix, key, kind, _start())
        at.walk.edge.size = 0
        failed |= put_bytes(&at.walk.edge, prefix.data, prefix.size)
        failed |= put_bytes(&at.walk.edge, place.data, place.size)
        return Status.ERR_MEMORY if failed else Status.OK

    cdef int _level_move(self, Level* at, bint reverse) noexcept nogil:
        cdef Slice value
        cdef int status
        at.walk.reverse = reverse
        status = walk_next(&at.walk, self.lsm, &at.place)
        if status <= 0:
            return status
        at.count = 1
        if at.counted:
            value = self.lsm.value(at.walk.it)
            if value.size != 8:
                return _broken()
            at.count = load_u64(value.data)
        self.rank_steps += 1
        return 1

    cdef int _level_from(self, Level* at, int kind, int level, Slice place) noexcept nogil:
        cdef int status = self._level_aim(at, kind, level, place)
        return status if status < 0 else self._level_move(at, False)

    cdef int _level_back_from(self, Level* at, int kind, int level, Slice place) noexcept nogil:
        cdef int status = self._level_aim(at, kind, level, place)
        return status if status < 0 else self._level_move(at, True)

    cdef int _level_next(self, Level* at) noexcept nogil:
        return self._level_move(at, False)

    cdef int _level_previous(self, Level* at) noexcept nogil:
        return self._level_move(at, True)

    # ---- questions ----

    cdef int rank_of(self, int kind, Slice place, uint64_t* rank) noexcept nogil:
        cdef Level at
        cdef int status
        cdef int level = self._rank_ready(kind)
        rank[0] = 0
        if level < 0:
            return level
        status = self._level_open(&at)
        self.span_start.size = 0
        while level and status >= 0:
            status = self._pass_spans(&at, kind, level, place, rank)
            level -= 1
        if status >= 0:
            status = self._level_from(&at, kind, 0, buffer_slice(&self.span_start))
        while status == 1 and slice_compare(at.place, place) < 0:
            rank[0] += 1
            status = self._level_next(&at)
        self._level_close(&at)
        return status if status < 0 else Status.OK

    cdef int _pass_spans(self, Level* at, int kind, int level, Slice place, uint64_t* rank) noexcept nogil:
        """From the span at span_start to the last of its level that doesn't begin behind `place`."""
        cdef uint64_t count
        cdef int status = self._level_from(at, kind, level, buffer_slice(&self.span_start))
        if status == 0:
            return _broken()
        while status == 1:
            count = at.count
            if _keep(&self.span_start, at.place) < 0:
                return Status.ERR_MEMORY
            status = self._level_next(at)
            if status == 1:
                if slice_compare(at.place, place) > 0:
                    break
                rank[0] += count
        return status if status < 0 else Status.OK

    cdef int rank_find(self, int kind, uint64_t rank) noexcept nogil:
        cdef Level at
        cdef uint64_t count = head_count(&self.head, kind)
        cdef int level = 0
        cdef int status
        if rank >= count:
            return 0
        if rank >= NEAR and count - rank > NEAR:
            level = self._rank_ready(kind)
            if level < 0:
                return level
        status = self._level_open(&at)
        if status == Status.OK:
            if level:
                status = self._find_below(&at, kind, level, rank)
            else:
                status = self._find_along(&at, kind, rank, count)
        if status == 1:
            status = 1 if _keep(&self.place_found, at.place) == Status.OK else Status.ERR_MEMORY
        self._level_close(&at)
        # The head counts more elements than the order has.
        return status if status else _broken()

    cdef int _find_below(self, Level* at, int kind, int level, uint64_t rank) noexcept nogil:
        """Down the levels to the element. The walk stands on it at the end."""
        cdef int status = 1
        self.span_start.size = 0
        while True:
            status = self._level_from(at, kind, level, buffer_slice(&self.span_start))
            while status == 1 and rank >= at.count:
                rank -= at.count
                status = self._level_next(at)
            if status != 1 or level == 0:
                return status
            if _keep(&self.span_start, at.place) < 0:
                return Status.ERR_MEMORY
            level -= 1

    cdef int _find_along(self, Level* at, int kind, uint64_t rank, uint64_t count) noexcept nogil:
        """Along the elements from the nearer end."""
        cdef bint back = rank > count // 2
        cdef uint64_t steps = count - 1 - rank if back else rank
        cdef int status
        if back:
            # No place begins with eight such bytes: scores stay below, and positions begin with smaller ones.
            status = self._level_back_from(at, kind, 0, slice_of(b"\xff\xff\xff\xff\xff\xff\xff\xff", 8))
        else:
            status = self._level_from(at, kind, 0, _start())
        while status == 1 and steps:
            steps -= 1
            status = self._level_previous(at) if back else self._level_next(at)
        return status

    # ---- making it, and letting go of it ----

    cdef int _rank_ready(self, int kind) noexcept nogil:
        """How many levels the index has, which is made when it is worth it; 0: walk along the elements."""
        cdef const Collection* held = head_find(&self.head, kind)
        cdef int status
        if held == NULL or self.ranks_off:
            return 0
        if held.levels or held.count < RANKED_FROM or self.refused:
            return held.levels
        status = self._rank_make(kind)
        if status < 0:
            return status
        held = head_find(&self.head, kind)
        return held.levels if held != NULL else _broken()

    cdef int _rank_make(self, int kind) noexcept nogil:
        cdef Level at
        cdef Collection* held
        cdef uint64_t spans = 0
        cdef int level = 0
        cdef int status = self._level_open(&at)
        while status == Status.OK:
            level += 1
            status = self._rank_make_level(&at, kind, level, &spans)
            if spans <= SPAN_MAX:
                break
        self._level_close(&at)
        held = head_collection(&self.head, kind)
        if status < 0 or held == NULL:
            # Entries that no head tells of must not stay.
            if self.rank_drop(kind) < 0:
                return self._fail(Status.ERR_MEMORY)
            return status if status < 0 else Status.ERR_MEMORY
        held.levels = level
        self.ranks_made += 1
        if held.count >= RANKED_LARGE:
            self.ranks_unlogged = True
        status = self._put_ranked_head()
        return self._fail(status) if status < 0 else Status.OK

    cdef int _rank_make_level(self, Level* at, int kind, int level, uint64_t* spans) noexcept nogil:
        cdef uint64_t steps = 0
        cdef uint64_t elements = 0
        cdef uint64_t total = 0
        cdef int status = self._level_from(at, kind, level - 1, _start())
        spans[0] = 0
        self.span_start.size = 0
        while status == 1:
            if steps == SPAN_JOINED:
                status = self._put_span(kind, level, buffer_slice(&self.span_start), elements)
                if status == Status.OK:
                    status = _keep(&self.span_start, at.place)
                if status < 0:
                    break
                spans[0] += 1
                steps = 0
                elements = 0
            steps += 1
            elements += at.count
            total += at.count
            status = self._level_next(at)
        if status < 0:
            return status
        spans[0] += 1
        if total != head_count(&self.head, kind):
            return _broken()
        return self._put_span(kind, level, buffer_slice(&self.span_start), elements)

    cdef int _put_ranked_head(self) noexcept nogil:
        cdef Slice stored
        cdef int status
        self.encoded.size = 0
        if head_encode(&self.head, &self.encoded) < 0:
            return Status.ERR_MEMORY
        status = self.lsm.put(buffer_slice(&self.key), buffer_slice(&self.encoded))
        if status < 0:
            return status
        # The head's value lies where it was stored, which may be elsewhere now.
        pin_release(&self.pin)
        status = self.lsm.get(buffer_slice(&self.key), &self.pin, &stored)
        return head_decode(&self.head, stored) if status > 0 else (status if status < 0 else _broken())

    cdef int rank_drop(self, int kind) noexcept nogil:
        cdef Walk walk
        cdef Slice rest
        cdef Collection* held = head_collection(&self.head, kind)
        cdef int failed = walk_init(&walk, self.lsm)
        cdef int status = Status.OK
        failed |= collection_key(&walk.prefix, SPACE_RANK, self.loaded_key())
        failed |= put_u8(&walk.prefix, <uint8_t>kind)
        failed |= put_bytes(&walk.edge, walk.prefix.data, walk.prefix.size)
        if failed or held == NULL:
            status = Status.ERR_MEMORY
        else:
            held.levels = 0
        while status == Status.OK:
            status = walk_next(&walk, self.lsm, &rest)
            if status <= 0:
                break
            status = self.lsm.remove(self.lsm.key(walk.it))
        walk_free(&walk, self.lsm)
        return status

    cdef int sweep_kinds(self, int mask, const Seen* seen, const Slice* parts) noexcept nogil:
        cdef const Collection* held
        cdef int kind
        cdef int status
        # A clear goes through all elements: the counts would be written for each of them.
        for kind in range(KIND_SORTED_SET, KIND_SEQUENCE + 1):
            held = head_find(&self.head, kind)
            if parts == NULL and mask >> kind & 1 and held != NULL and held.levels:
                status = self.rank_drop(kind)
                if status < 0:
                    return status
        return RegisterKeyspace.sweep_kinds(self, mask, seen, parts)

    # ---- keeping it ----

    cdef int element_before(self, int kind, bint live) noexcept nogil:
        self.listed_before = live
        return Status.OK

    cdef int element_after(self, int kind, bint live) noexcept nogil:
        if kind != KIND_SEQUENCE or live == self.listed_before:
            return Status.OK
        return self.rank_note(kind, self.element_name(), 1 if live else -1)

    cdef int rank_note(self, int kind, Slice place, int difference) noexcept nogil:
        cdef const Collection* held = head_find(&self.head, kind)
        cdef Level at
        cdef uint64_t lowest = 0
        cdef int status
        if held == NULL or held.levels == 0 or self.ranks_off:
            return Status.OK
        if held.count < RANKED_UNTIL:
            return self.rank_drop(kind)
        status = self._level_open(&at)
        if status == Status.OK:
            status = self._note_spans(&at, kind, held.levels, place, difference, &lowest)
        if status == Status.OK:
            if difference > 0 and lowest > SPAN_MAX:
                status = self._split(&at, kind, place)
            elif difference < 0 and lowest < SPAN_MIN:
                status = self._join(&at, kind, place)
        self._level_close(&at)
        return status

    cdef int _note_spans(
        self, Level* at, int kind, int levels, Slice place, int difference, uint64_t* lowest
    ) noexcept nogil:
        """Count on every level; *lowest is then how many elements the span of level 1 has."""
        cdef uint8_t count[8]
        cdef int level
        cdef int status
        for level in range(levels, 0, -1):
            status = self._level_back_from(at, kind, level, place)
            if status == 0 or (status == 1 and difference < 0 and at.count == 0):
                return _broken()
            if status < 0:
                return status
            lowest[0] = at.count + <uint64_t>difference
            store_u64(count, lowest[0])
            status = self.lsm.put(self.lsm.key(at.walk.it), slice_of(count, 8))
            if status < 0:
                return status
        return Status.OK

    cdef int _put_span(self, int kind, int level, Slice place, uint64_t count) noexcept nogil:
        cdef uint8_t value[8]
        store_u64(value, count)
        if _span_key(&self.rank_entry, self.loaded_key(), kind, level, place) != 0:
            return Status.ERR_MEMORY
        return self.lsm.put(buffer_slice(&self.rank_entry), slice_of(value, 8))

    cdef int _remove_span(self, int kind, int level, Slice place) noexcept nogil:
        if _span_key(&self.rank_entry, self.loaded_key(), kind, level, place) != 0:
            return Status.ERR_MEMORY
        return self.lsm.remove(buffer_slice(&self.rank_entry))

    cdef int _is_span(self, Level* at, int kind, int level, Slice place) noexcept nogil:
        """Whether a span of this level begins at the place: 1, 0 or an error."""
        cdef int status = self._level_from(at, kind, level, place)
        return status if status <= 0 else slice_compare(at.place, place) == 0

    cdef int _measure(
        self, Level* at, int kind, int level, const Extent* extent, uint64_t upto, uint64_t* steps,
        uint64_t* elements
    ) noexcept nogil:
        """Count up to `upto` steps of a span of this level. The walk stands on the next one, if there is one."""
        cdef int status = self._level_from(at, kind, level - 1, extent.first)
        steps[0] = 0
        elements[0] = 0
        while status == 1 and steps[0] < upto and (extent.open or slice_compare(at.place, extent.end) < 0):
            steps[0] += 1
            elements[0] += at.count
            status = self._level_next(at)
        return status if status < 0 else Status.OK

    cdef int _extent(self, Level* at, Buffer* first, Buffer* end, Extent* extent) noexcept nogil:
        """The extent of the span that the walk stands on; its places are kept in the buffers."""
        cdef int status = _keep(first, at.place)
        extent.elements = at.count
        if status == Status.OK:
            status = self._level_next(at)
            if status == 1 and _keep(end, at.place) < 0:
                status = Status.ERR_MEMORY
        extent.open = status == 0
        extent.first = buffer_slice(first)
        extent.end = buffer_slice(end)
        return status if status < 0 else Status.OK

    cdef int _split(self, Level* at, int kind, Slice place) noexcept nogil:
        """Split the spans around a place that have too many steps, level by level."""
        cdef int levels = head_find(&self.head, kind).levels
        cdef int level = 0
        cdef int status = 1
        while status == 1 and level <= levels:
            level += 1
            status = self._split_level(at, kind, level, levels, place)
        return status if status < 0 else Status.OK

    cdef int _split_level(self, Level* at, int kind, int level, int levels, Slice place) noexcept nogil:
        """1 when the span of the level was split, 0 when it has room. Above the highest level, one span holds that."""
        cdef Extent whole
        cdef uint64_t steps
        cdef uint64_t elements
        cdef uint64_t before
        cdef int status
        if level > levels:
            whole.first = _start()
            whole.open = True
        else:
            status = self._level_back_from(at, kind, level, place)
            if status <= 0:
                return status if status < 0 else _broken()
            status = self._extent(at, &self.span_start, &self.span_end, &whole)
            if status < 0:
                return status
        status = self._measure(at, kind, level, &whole, UINT64_MAX, &steps, &elements)
        if status < 0 or steps <= SPAN_MAX:
            return status
        status = self._measure(at, kind, level, &whole, steps // 2, &steps, &before)
        if status == Status.OK:
            status = _keep(&self.span_middle, at.place)
        if status == Status.OK:
            status = self._put_span(kind, level, whole.first, before)
        if status == Status.OK:
            status = self._put_span(kind, level, buffer_slice(&self.span_middle), elements - before)
        if status == Status.OK and level > levels:
            head_collection(&self.head, kind).levels = level
        return status if status < 0 else 1

    cdef int _join(self, Level* at, int kind, Slice place) noexcept nogil:
        """Join the spans around a place that have too few steps to neighbours, level by level."""
        cdef int levels = head_find(&self.head, kind).levels
        cdef int level = 0
        cdef int status = 1
        while status == 1 and level < levels:
            level += 1
            status = self._join_level(at, kind, level, levels, place)
        if status != 1 or levels == 1:
            return status if status < 0 else Status.OK
        # Something on the highest level was joined: is it needed any more?
        status = self._level_from(at, kind, levels, _start())
        if status == 1:
            status = self._level_next(at)
        if status != 0:
            return status if status < 0 else Status.OK
        head_collection(&self.head, kind).levels = levels - 1
        return self._remove_span(kind, levels, _start())

    cdef int _join_level(self, Level* at, int kind, int level, int levels, Slice place) noexcept nogil:
        """1 when the span of the level was joined to a neighbour, 0 when not."""
        cdef Extent span
        cdef Extent other
        cdef uint64_t steps
        cdef int status = self._level_back_from(at, kind, level, place)
        if status <= 0:
            return status if status < 0 else _broken()
        status = self._extent(at, &self.span_start, &self.span_end, &span)
        if status == Status.OK:
            status = self._steps(at, kind, level, &span, &steps)
        if status < 0 or steps >= SPAN_MIN:
            return status
        if not span.open:
            status = self._under_one(at, kind, level, levels, span.end)
            if status == 1:
                status = self._level_from(at, kind, level, span.end)
                if status == 1:
                    status = self._extent(at, &self.span_end, &self.span_middle, &other)
                    if status == Status.OK:
                        span.end = other.first
                        status = self._join_two(at, kind, level, &span, &other, steps, &other)
            if status != 0:
                return status
        if span.first.size == 0:
            return 0
        status = self._under_one(at, kind, level, levels, span.first)
        if status == 1:
            status = self._level_from(at, kind, level, span.first)
            if status == 1:
                status = self._level_previous(at)
            if status == 1:
                status = self._extent(at, &self.span_middle, &self.span_end, &other)
                if status == Status.OK:
                    status = self._join_two(at, kind, level, &other, &span, steps, &other)
        return status

    cdef int _under_one(self, Level* at, int kind, int level, int levels, Slice place) noexcept nogil:
        """Whether the span that begins at the place, and the one before it, are steps of the same span."""
        cdef int status
        if level == levels:
            return 1
        status = self._is_span(at, kind, level + 1, place)
        return status if status < 0 else status == 0

    cdef int _steps(self, Level* at, int kind, int level, const Extent* span, uint64_t* steps) noexcept nogil:
        cdef uint64_t elements
        steps[0] = span.elements
        if level == 1:
            return Status.OK
        return self._measure(at, kind, level, span, UINT64_MAX, steps, &elements)

    cdef int _join_two(
        self, Level* at, int kind, int level, const Extent* left, const Extent* right, uint64_t steps,
        const Extent* other
    ) noexcept nogil:
        """Join two spans, of which one is `other` and the other one has so many steps, unless they are too many."""
        cdef uint64_t others
        cdef int status = self._steps(at, kind, level, other, &others)
        if status < 0 or steps + others > SPAN_JOINED:
            return status
        status = self._remove_span(kind, level, right.first)
        if status == Status.OK:
            status = self._put_span(kind, level, left.first, left.elements + right.elements)
        return status if status < 0 else 1
