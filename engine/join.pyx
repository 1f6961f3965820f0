"""The one join of states; see join.pxd for its laws."""

from everwrite.change cimport dot_at
from everwrite.clock cimport Dot, dot_compare
from everwrite.coding cimport Slice
from everwrite.state cimport Collection, Element, Head, Row, element_add_dot, head_collection, rows_find, rows_insert
from everwrite.status cimport Status


cdef bint seen_covers(const Seen* seen, Dot dot) noexcept nogil:
    cdef const Row* row
    cdef Dot other
    cdef size_t i
    if seen.rows != NULL:
        row = rows_find(seen.rows, seen.row_count, dot.origin)
        return row != NULL and row.context >= dot.timestamp
    if dot.origin == seen.own.origin and dot.timestamp == seen.own.timestamp:
        return True
    for i in range(seen.dot_count):
        other = dot_at(seen.dots, i)
        if other.origin == dot.origin:
            if other.timestamp == dot.timestamp or (seen.vector and other.timestamp > dot.timestamp):
                return True
    return False


cdef int join_row(Row* mine, const Row* theirs) noexcept nogil:
    """One origin's row: each part by its newer timestamp."""
    # No branches: which side of a row is newer can't be predicted.
    cdef bint context = theirs.context > mine.context
    cdef bint counter = theirs.counter > mine.counter
    cdef bint floor = theirs.floor > mine.floor
    mine.context = theirs.context if context else mine.context
    mine.counter = theirs.counter if counter else mine.counter
    mine.total = theirs.total if counter else mine.total
    mine.floor = theirs.floor if floor else mine.floor
    mine.floor_total = theirs.floor_total if floor else mine.floor_total
    return Outcome.CHANGED if context | counter | floor else Outcome.UNCHANGED


cdef int join_rows(Row** mine, size_t* size, size_t* capacity, const Row* theirs, size_t count) noexcept nogil:
    cdef int outcome = Outcome.UNCHANGED
    cdef size_t at = 0
    cdef size_t i
    for i in range(count):
        # Both are sorted: one walk.
        while at < size[0] and mine[0][at].origin < theirs[i].origin:
            at += 1
        if at == size[0] or mine[0][at].origin != theirs[i].origin:
            if rows_insert(mine, size, capacity, theirs[i].origin) == NULL:
                return Status.ERR_MEMORY
        outcome |= join_row(&mine[0][at], &theirs[i])
    return outcome


cdef int join_register(Head* mine, Dot dot, bint tombstone, Slice value, Dot over) noexcept nogil:
    """The newer dot wins. With the same dot, the tombstone does: the write ended at its deadline.

    `over` is the write that the incoming one replaced (0, 0: none): when that isn't what
    stands here, the two were concurrent, and the loser's dot is kept for the curious.
    """
    cdef int order
    cdef int outcome
    if not mine.has_register:
        order = -1
    else:
        order = dot_compare(mine.dot, dot)
    if order == 0:
        if tombstone and not mine.tombstone:
            mine.tombstone = True
            mine.value.size = 0
            return Outcome.CHANGED
        return Outcome.UNCHANGED
    outcome = Outcome.CHANGED if order < 0 else Outcome.UNCHANGED
    if mine.has_register and mine.dot.origin != dot.origin:
        if order > 0:
            outcome |= Outcome.CONFLICT
            if not mine.has_lost or dot_compare(dot, mine.lost) > 0:
                mine.has_lost = True
                mine.lost = dot
        elif not (mine.dot.origin == over.origin and mine.dot.timestamp <= over.timestamp):
            outcome |= Outcome.CONFLICT
            mine.has_lost = True
            mine.lost = mine.dot
    if order < 0:
        mine.has_register = True
        mine.dot = dot
        mine.tombstone = tombstone
        mine.value = value
        if tombstone:
            mine.value.size = 0
    return outcome


cdef int join_expiry(Head* mine, Dot dot, long long deadline) noexcept nogil:
    if mine.has_expiry and dot_compare(mine.expiry_dot, dot) >= 0:
        return Outcome.UNCHANGED
    mine.has_expiry = True
    mine.expiry_dot = dot
    mine.deadline = deadline
    return Outcome.CHANGED


cdef int _join_registers(Head* mine, const Head* theirs) noexcept nogil:
    """A write that one side has seen and no longer has is over, even if what came after it has been collected there."""
    cdef Dot none
    cdef bint seen_here = theirs.has_register and _covers(mine.rows, mine.size, theirs.dot)
    cdef bint seen_there = mine.has_register and _covers(theirs.rows, theirs.size, mine.dot)
    none.origin = 0
    none.timestamp = 0
    if mine.has_register and theirs.has_register and dot_compare(mine.dot, theirs.dot) == 0:
        return join_register(mine, theirs.dot, theirs.tombstone, theirs.value, none)
    if seen_there and (seen_here or not theirs.has_register):
        # Its tombstone stays: what is concurrent with it and older must not show here.
        if seen_here and dot_compare(theirs.dot, mine.dot) > 0:
            mine.dot = theirs.dot
        elif mine.tombstone:
            return Outcome.UNCHANGED
        mine.tombstone = True
        mine.value.size = 0
        return Outcome.CHANGED
    if not theirs.has_register or seen_here:
        return Outcome.UNCHANGED
    if seen_there:
        mine.has_register = False
    return join_register(mine, theirs.dot, theirs.tombstone, theirs.value, none)


cdef int _join_deadlines(Head* mine, const Head* theirs) noexcept nogil:
    """As of registers: a deadline that one side has seen and no longer has is over."""
    if theirs.has_expiry:
        if mine.has_expiry and dot_compare(mine.expiry_dot, theirs.expiry_dot) >= 0:
            return Outcome.UNCHANGED
        if _covers(mine.rows, mine.size, theirs.expiry_dot):
            return Outcome.UNCHANGED
        return join_expiry(mine, theirs.expiry_dot, theirs.deadline)
    if mine.has_expiry and _covers(theirs.rows, theirs.size, mine.expiry_dot):
        mine.has_expiry = False
        return Outcome.CHANGED
    return Outcome.UNCHANGED


cdef int join_head(Head* mine, const Head* theirs) noexcept nogil:
    """All of a head but the element counts, which follow from joining the elements."""
    cdef int outcome = Outcome.UNCHANGED
    cdef Collection* held
    cdef int status
    cdef int i
    outcome |= _join_registers(mine, theirs)
    outcome |= _join_deadlines(mine, theirs)
    for i in range(theirs.collection_count):
        held = head_collection(mine, theirs.collections[i].kind)
        if held == NULL:
            return Status.ERR_MEMORY
        if dot_compare(theirs.collections[i].newest, held.newest) > 0:
            held.newest = theirs.collections[i].newest
            outcome |= Outcome.CHANGED
    status = join_rows(&mine.rows, &mine.size, &mine.capacity, theirs.rows, theirs.size)
    return status if status < 0 else outcome | status


cdef bint _covers(const Row* rows, size_t size, Dot dot) noexcept nogil:
    cdef const Row* row = rows_find(rows, size, dot.origin)
    return row != NULL and row.context >= dot.timestamp


cdef bint _has_dot(const Element* element, Dot dot) noexcept nogil:
    cdef size_t i
    for i in range(element.size):
        if dot_compare(element.dots[i].dot, dot) == 0:
            return True
    return False


cdef int join_element(
    Element* mine, const Row* context, size_t context_size, const Element* theirs, const Seen* seen
) noexcept nogil:
    """Add-wins: a write stays unless the side that lacks it has seen it.

    `context` is the causal context of the key on this side, before this join.
    """
    cdef int outcome = Outcome.UNCHANGED
    cdef int status
    cdef size_t kept = 0
    cdef size_t i
    cdef bint removed_some = False
    for i in range(mine.size):
        if _has_dot(theirs, mine.dots[i].dot) or not seen_covers(seen, mine.dots[i].dot):
            mine.dots[kept] = mine.dots[i]
            kept += 1
        else:
            removed_some = True
    if removed_some or seen.dot_count:
        outcome = Outcome.CHANGED if removed_some else Outcome.UNCHANGED
        if kept and theirs.size == 0:
            # A removal met a write that it hadn't seen: the write stays.
            outcome |= Outcome.CONFLICT
    mine.size = kept
    for i in range(theirs.size):
        if not _has_dot(mine, theirs.dots[i].dot) and not _covers(context, context_size, theirs.dots[i].dot):
            if element_add_dot(mine, theirs.dots[i].dot, theirs.dots[i].value) < 0:
                return Status.ERR_MEMORY
            outcome |= Outcome.CHANGED
    status = join_rows(&mine.rows, &mine.row_count, &mine.row_capacity, theirs.rows, theirs.row_count)
    return status if status < 0 else outcome | status
