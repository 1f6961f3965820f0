"""Python's way to the operations on sorted sets, bounded counters and sequences.

As in `access`: each function takes the store's lock, runs one native operation, commits, and turns a
status into an exception.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

from everwrite.access cimport released
from everwrite.arguments cimport bytes_slice, bytes_slices
from everwrite.coding cimport Slice, slice_of
from everwrite.positions cimport place_name
from everwrite.sequences cimport AFTER_POSITION, AT_INDEX, BEFORE_POSITION, Items
from everwrite.sorted_sets cimport SCORE_GREATER, SCORE_LESS, SCORE_NEW, SCORE_OLD, Members
from everwrite.state cimport KIND_SORTED_SET, wide_t
from everwrite.status cimport Status
from everwrite.store cimport Store

from everwrite.errors import InsufficientRightsError, shown_key

CONDITIONS = {None: 0, "absent": SCORE_NEW, "present": SCORE_OLD, "greater": SCORE_GREATER, "less": SCORE_LESS}


# ---- sorted sets ----

def sorted_set_add(Store store not None, bytes key not None, scores not None, condition=None):
    """Set scores (a dict of member to float), together as one update.

    `condition`: only "absent" or "present" members, or those whose score it makes "greater" or "less"
    (and absent ones). Returns how many members are new, and how many have another score than before, those included.
    """
    cdef Slice name = bytes_slice(key)
    cdef int64_t added = 0
    cdef int64_t changed = 0
    cdef int status
    cdef int flags = CONDITIONS[condition]
    cdef size_t count = len(scores)
    cdef size_t i
    cdef double* values = <double*>malloc((count or 1) * sizeof(double))
    cdef Slice* members = NULL
    if values == NULL:
        raise MemoryError("out of memory for an operation's arguments")
    try:
        members = bytes_slices(scores)
        for i, score in enumerate(scores.values()):
            values[i] = score
        with nogil:
            store.lock()
            status = store.op_sorted_set_add(name, members, values, count, flags, &added, &changed)
            store.unlock()
    finally:
        free(values)
        free(members)
    store._checked_commit(status)
    return added, changed


def sorted_set_increment(Store store not None, bytes key not None, bytes member not None, double amount):
    """Add to a member's score (absent: 0). Returns the new score."""
    cdef Slice name = bytes_slice(key)
    cdef Slice item = bytes_slice(member)
    cdef int status
    with nogil:
        store.lock()
        status = store.op_sorted_set_increment(name, item, &amount)
        store.unlock()
    store._checked_commit(status)
    return amount


def sorted_set_score(Store store not None, bytes key not None, bytes member not None):
    """The score of a member, or None."""
    cdef Slice name = bytes_slice(key)
    cdef Slice item = bytes_slice(member)
    cdef double score = 0.0
    cdef int status
    with nogil:
        store.lock()
        status = store.op_sorted_set_score(name, item, &score)
        store.unlock()
    return score if store._check(status) else None


def sorted_set_range(Store store not None, bytes key not None, double first, double last, bint reverse,
                     bytes after, size_t limit):
    """Up to `limit` members with scores from `first` to `last` (in reverse, the smaller) as (member, score).

    `after` None: from the first one; else only what comes behind member `after` at score `first`.
    """
    cdef int status = Status.OK
    with nogil:
        store.lock()
    try:
        found = _members(store, key, first, last, reverse, after, limit, &status)
    finally:
        store.unlock()
    store._check(status)
    return found


cdef list _members(
    Store store, bytes key, double first, double last, bint reverse, bytes after, size_t limit, int* status
):
    """What `sorted_set_range` returns. Needs the lock."""
    cdef Members* it = NULL
    cdef Slice name = bytes_slice(key)
    cdef Slice member
    cdef Slice edge
    cdef const Slice* behind = NULL
    cdef double score = 0.0
    found = []
    if after is not None:
        edge = bytes_slice(after)
        behind = &edge
    with nogil:
        status[0] = store.members_open(name, first, last, reverse, behind, False, &it)
    try:
        while status[0] == 1 and len(found) < limit:
            with nogil:
                status[0] = store.members_next(it, &member, &score)
            if status[0] == 1:
                found.append((member.data[: member.size], score))
    finally:
        store.members_close(it)
    return found


def sorted_set_pop(Store store not None, bytes key not None, bint from_end, size_t limit):
    """Take out up to `limit` members with the least (or, from the end, the greatest) scores: (member, score) each."""
    cdef double first = float("inf") if from_end else float("-inf")
    cdef Slice name = bytes_slice(key)
    cdef Slice* slices = NULL
    cdef int64_t removed = 0
    cdef size_t count
    cdef int status = Status.OK
    with nogil:
        store.lock()
    try:
        found = _members(store, key, first, -first, from_end, None, limit, &status)
        count = len(found)
        if status >= 0 and count:
            members = [member for member, _ in found]
            slices = bytes_slices(members)
            with nogil:
                status = store.op_remove_elements(name, KIND_SORTED_SET, slices, count, &removed)
    finally:
        free(slices)
        store.unlock()
    store._checked_commit(status)
    return found


# ---- bounded counters ----

def bounded_increment(Store store not None, bytes key not None, int64_t minimum, uint64_t amount):
    """Add to a bounded counter, which is created with this minimum where there is none. Returns the new value."""
    cdef Slice name = bytes_slice(key)
    cdef int64_t value = 0
    cdef int status
    with nogil:
        store.lock()
        status = store.op_bounded_increment(name, minimum, amount, &value)
        store.unlock()
    store._checked_commit(status)
    return value


def bounded_decrement(Store store not None, bytes key not None, uint64_t amount):
    """Subtract from a bounded counter. Returns the new value. Raises InsufficientRightsError, and changes nothing."""
    cdef Slice name = bytes_slice(key)
    cdef int64_t value = 0
    cdef int status
    with nogil:
        store.lock()
        status = store.op_bounded_decrement(name, amount, &value)
    _end_spending(store, key, status, amount, "decrement by")
    return value


def bounded_transfer(Store store not None, bytes key not None, uint64_t target, uint64_t amount):
    """Hand rights of this store over to another origin. Raises InsufficientRightsError; nothing has changed then."""
    cdef Slice name = bytes_slice(key)
    cdef int status
    with nogil:
        store.lock()
        status = store.op_bounded_transfer(name, target, amount)
    _end_spending(store, key, status, amount, "transfer")


cdef int _end_spending(Store store, bytes key, int status, uint64_t amount, str what) except -1:
    """Let go of the lock; when rights were missing, say where they are."""
    rights = {}
    try:
        if status == Status.ERR_NO_RIGHTS:
            rights = _rights(store)
    finally:
        store.unlock()
    if status == Status.ERR_NO_RIGHTS:
        held = rights.pop(store.own_origin, 0)
        elsewhere = ", ".join(f"{n} at origin {origin:#018x}" for origin, n in rights.items()) or "none elsewhere"
        raise InsufficientRightsError(
            f"bounded counter {shown_key(key)}: can't {what} {amount}: this store (origin {store.own_origin:#018x}) "
            f"holds {held} of its rights; {elsewhere}: have them transferred to this store, or do it there",
            requested=amount,
            held=held,
            elsewhere=rights,
        )
    store._checked_commit(status)
    return 0


cdef dict _rights(Store store):
    """Who holds how much of the bounded counter that was read last. Needs the lock."""
    cdef size_t i
    cdef wide_t held
    cdef size_t generation
    rights = {}
    origins = {store.own_origin}
    for i in range(store.cell_count):
        origins.add(store.cells[i].origin)
        if store.cells[i].target:
            origins.add(store.cells[i].target)
    for origin in sorted(origins):
        for generation in range(store.generation_count):
            held = store.bounded_rights(generation, origin)
            if held > 0:
                rights[origin] = rights.get(origin, 0) + <uint64_t>held
    return rights


def bounded_reclaim(Store store not None, bytes key not None):
    """Take over what earlier incarnations of this store still hold. Returns how much."""
    cdef Slice name = bytes_slice(key)
    cdef uint64_t amount = 0
    cdef int status
    with nogil:
        store.lock()
        status = store.op_bounded_reclaim(name, &amount)
        store.unlock()
    store._checked_commit(status)
    return amount


def bounded_state(Store store not None, bytes key not None):
    """(value, minimum, rights by origin) of a bounded counter, or None without the key."""
    cdef Slice name = bytes_slice(key)
    cdef int status
    state = None
    with nogil:
        store.lock()
        status = store.bounded_read(name)
    try:
        if status > 0:
            state = store.bounded_value(), store.bounded_minimum(), _rights(store)
    finally:
        store.unlock()
    store._check(status)
    return state


# ---- sequences ----

def sequence_insert(Store store not None, bytes key not None, values not None, uint64_t index, bytes position=None,
                    bint after=False):
    """Insert values (a list of bytes) together, before the item with `index` (beyond the end: at the end), or
    before or after a position. Returns their positions.
    """
    cdef Slice name = bytes_slice(key)
    cdef Slice place = slice_of(NULL, 0)
    cdef Slice* slices = NULL
    cdef int where = AT_INDEX
    cdef size_t count = len(values)
    cdef size_t i
    cdef int status = Status.OK
    made = []
    if position is not None:
        place = bytes_slice(position)
        where = AFTER_POSITION if after else BEFORE_POSITION
    slices = bytes_slices(values)
    with nogil:
        store.lock()
        if count:
            status = store.op_sequence_insert(name, where, place, index, slices, count)
    try:
        if status == Status.OK:
            for i in range(count):
                if place_name(&store.place, i, count, &store.item_name) != 0:
                    raise MemoryError("out of memory for a position")
                made.append(store.item_name.data[: store.item_name.size])
    finally:
        store.unlock()
        free(slices)
    store._checked_commit(status)
    return made


def sequence_items(Store store not None, bytes key not None, size_t limit, bytes edge=None, bint reverse=False):
    """Up to `limit` items as (position, value), from one end, or those beyond the position `edge`."""
    cdef Items* it = NULL
    cdef Slice name = bytes_slice(key)
    cdef Slice item
    cdef Slice value
    cdef Slice at
    cdef const Slice* beyond = NULL
    cdef int status
    found = []
    if edge is not None:
        at = bytes_slice(edge)
        beyond = &at
    with nogil:
        store.lock()
        status = store.items_open(name, reverse, beyond, True, &it)
    try:
        while status == 1 and len(found) < limit:
            with nogil:
                status = store.items_next(it, &item, &value)
            if status == 1:
                found.append((item.data[: item.size], value.data[: value.size]))
    finally:
        store.items_close(it)
        store.unlock()
    store._check(status)
    return found


def sequence_at(Store store not None, bytes key not None, uint64_t index, bint from_end=False):
    """The item with this index, counted from the end or not, as (position, value); None beyond the ends."""
    cdef Items* it = NULL
    cdef Slice name = bytes_slice(key)
    cdef Slice item
    cdef Slice value
    cdef int status
    found = None
    with nogil:
        store.lock()
        status = store.items_open_at(name, index, from_end, &it, &item, &value)
    try:
        if status == 1:
            found = item.data[: item.size], value.data[: value.size]
    finally:
        store.items_close(it)
        store.unlock()
    store._check(status)
    return found


def sequence_index(Store store not None, bytes key not None, bytes position not None):
    """How many items lie before a position, whether an item is there or not."""
    cdef Slice name = bytes_slice(key)
    cdef Slice at = bytes_slice(position)
    cdef uint64_t index = 0
    cdef int status
    with nogil:
        store.lock()
        status = store.op_sequence_index(name, at, &index)
        store.unlock()
    store._check(status)
    return index


def sequence_get(Store store not None, bytes key not None, bytes position not None):
    """The value at a position, or None."""
    cdef Slice name = bytes_slice(key)
    cdef Slice at = bytes_slice(position)
    cdef Slice value
    cdef int status
    with nogil:
        store.lock()
        status = store.op_sequence_get(name, at, &value)
    return released(store, status, value)


def sequence_set(Store store not None, bytes key not None, bytes position not None, bytes value not None):
    """Replace the value at a position. Returns whether an item was there."""
    cdef Slice name = bytes_slice(key)
    cdef Slice at = bytes_slice(position)
    cdef Slice text = bytes_slice(value)
    cdef int status
    with nogil:
        store.lock()
        status = store.op_sequence_set(name, at, text)
        store.unlock()
    return store._checked_commit(status) == 1


def sequence_set_at(Store store not None, bytes key not None, uint64_t index, bint from_end, bytes value not None):
    """Replace the value of the item with this index, counted from the end or not. Returns whether there is one."""
    cdef Slice name = bytes_slice(key)
    cdef Slice text = bytes_slice(value)
    cdef int status
    with nogil:
        store.lock()
        status = store.op_sequence_set_at(name, index, from_end, text)
        store.unlock()
    return store._checked_commit(status) == 1


def sequence_pop(Store store not None, bytes key not None, uint64_t index, bint from_end):
    """Take out the item with this index, counted from the end or not: (position, value), or None beyond the ends."""
    cdef Slice name = bytes_slice(key)
    cdef Slice value
    cdef int status
    found = None
    with nogil:
        store.lock()
        status = store.op_sequence_pop(name, index, from_end, &value)
    try:
        if status == 1:
            found = store.item_name.data[: store.item_name.size], value.data[: value.size]
    finally:
        store.unlock()
    store._checked_commit(status)
    return found
