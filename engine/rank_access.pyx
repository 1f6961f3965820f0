"""Python's way to elements by their ranks: ranks and slices of sorted sets, slices of sequences.

As in `access`: each function takes the store's lock, runs native operations, commits, and turns a status into an
exception.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free

from everwrite.arguments cimport bytes_slice, bytes_slices
from everwrite.coding cimport Slice
from everwrite.sequences cimport Items
from everwrite.sorted_sets cimport Members
from everwrite.state cimport KIND_SEQUENCE, KIND_SORTED_SET, head_count
from everwrite.status cimport Status
from everwrite.store cimport Store

cdef enum:
    # Elements of a slice that are further apart are found one by one, nearer ones by walking.
    FAR_APART = 64


# ---- sorted sets ----

def sorted_set_rank(Store store not None, bytes key not None, bytes member not None, bint reverse=False):
    """How many members come before (in reverse: behind) a member; None when it isn't there."""
    cdef Slice name = bytes_slice(key)
    cdef Slice item = bytes_slice(member)
    cdef uint64_t rank = 0
    cdef int status
    with nogil:
        store.lock()
        status = store.op_sorted_set_rank(name, item, &rank)
        if status == 1 and reverse:
            rank = head_count(&store.head, KIND_SORTED_SET) - 1 - rank
        store.unlock()
    return rank if store._check(status) else None


def sorted_set_count(Store store not None, bytes key not None, double first, double last):
    """How many members have scores from `first` to `last`, both included."""
    cdef Slice name = bytes_slice(key)
    cdef uint64_t count = 0
    cdef int status
    with nogil:
        store.lock()
        status = store.op_sorted_set_count(name, first, last, &count)
        store.unlock()
    store._check(status)
    return count


def sorted_set_at(Store store not None, bytes key not None, uint64_t rank, bint from_end=False):
    """The member with this rank, counted from the end or not, as (member, score); None beyond the ends."""
    cdef int status = Status.OK
    with nogil:
        store.lock()
    try:
        found = _member_at(store, key, rank, from_end, &status)
    finally:
        store.unlock()
    store._check(status)
    return found


cdef object _member_at(Store store, bytes key, uint64_t rank, bint from_end, int* status):
    """What `sorted_set_at` returns. Needs the lock."""
    cdef Slice name = bytes_slice(key)
    cdef Slice member
    cdef double score = 0.0
    with nogil:
        status[0] = store.op_sorted_set_at(name, rank, from_end, &member, &score)
    return (member.data[: member.size], score) if status[0] == 1 else None


def sorted_set_slice(Store store not None, bytes key not None, index not None, bint remove=False):
    """The members with the ranks that a slice names, in its order, as (member, score); taken out with `remove`."""
    return _slice(store, key, KIND_SORTED_SET, index, remove)


cdef list _slice(Store store, bytes key, int kind, index, bint remove):
    """The elements of a sorted set or sequence that a slice names, at one moment, as (name, what it holds)."""
    cdef Slice name = bytes_slice(key)
    cdef Slice* slices = NULL
    cdef int64_t count = 0
    cdef size_t taken
    cdef int status = Status.OK
    cdef list found = []
    with nogil:
        store.lock()
    try:
        with nogil:
            status = store.op_cardinality(name, kind, &count)
        if status >= 0:
            wanted = range(*index.indices(count))
            if kind == KIND_SORTED_SET:
                found = _members_in(store, key, wanted, &status)
            else:
                found = _items_in(store, key, wanted, &status)
        if status >= 0 and remove and found:
            names = [each for each, _ in found]
            slices = bytes_slices(names)
            taken = len(names)
            with nogil:
                status = store.op_remove_elements(name, kind, slices, taken, &count)
    finally:
        free(slices)
        store.unlock()
    if remove:
        store._checked_commit(status)
    else:
        store._check(status)
    return found


cdef list _members_in(Store store, bytes key, ranks, int* status):
    """The members with the ranks of a `range`, all of which there are. Needs the lock."""
    cdef Members* it = NULL
    cdef Slice name = bytes_slice(key)
    cdef Slice member
    cdef Slice place
    cdef double score = 0.0
    cdef double last
    cdef bint reverse = ranks.step < 0
    cdef size_t apart = abs(ranks.step)
    cdef size_t skipped = 0
    cdef size_t left = len(ranks)
    found = []
    if left == 0:
        return found
    if apart > FAR_APART:
        for rank in ranks:
            each = _member_at(store, key, rank, False, status)
            if each is None:
                break
            found.append(each)
        return found
    first = _member_at(store, key, ranks.start, False, status)
    if first is None:
        return found
    place = bytes_slice(first[0])
    score = first[1]
    last = float("-inf") if reverse else float("inf")
    with nogil:
        status[0] = store.members_open(name, score, last, reverse, &place, True, &it)
    try:
        while status[0] == 1 and left:
            with nogil:
                status[0] = store.members_next(it, &member, &score)
            if status[0] == 1 and skipped == 0:
                found.append((member.data[: member.size], score))
                left -= 1
            skipped = skipped - 1 if skipped else apart - 1
    finally:
        store.members_close(it)
    return found


def sorted_set_pop_at(Store store not None, bytes key not None, uint64_t rank, bint from_end=False):
    """Take out the member with this rank, counted from the end or not: (member, score), or None beyond the ends."""
    cdef Slice name = bytes_slice(key)
    cdef Slice member
    cdef int64_t removed = 0
    cdef int status = Status.OK
    with nogil:
        store.lock()
    try:
        found = _member_at(store, key, rank, from_end, &status)
        if found is not None:
            member = bytes_slice(found[0])
            with nogil:
                status = store.op_remove_elements(name, KIND_SORTED_SET, &member, 1, &removed)
    finally:
        store.unlock()
    store._checked_commit(status)
    return found


# ---- sequences ----

def sequence_slice(Store store not None, bytes key not None, index not None, bint remove=False):
    """The items with the indexes that a slice names, in its order, as (position, value); taken out with `remove`."""
    return _slice(store, key, KIND_SEQUENCE, index, remove)


cdef list _items_in(Store store, bytes key, indexes, int* status):
    """The items with the indexes of a `range`, all of which there are. Needs the lock."""
    cdef size_t left = len(indexes)
    cdef list found = []
    if left == 0:
        return found
    if indexes.step < 0:
        return _items_in(store, key, indexes[::-1], status)[::-1]
    if indexes.step > FAR_APART:
        for index in indexes:
            _items_along(store, key, index, 1, 1, found, status)
        return found
    _items_along(store, key, indexes.start, indexes.step, left, found, status)
    return found


cdef int _items_along(
    Store store, bytes key, uint64_t index, size_t apart, size_t count, list found, int* status
) except -1:
    """Each `apart`-th item from the one with the index on, up to `count` of them, to `found`."""
    cdef Items* it = NULL
    cdef Slice name = bytes_slice(key)
    cdef Slice item
    cdef Slice value
    cdef size_t _i
    if status[0] < 0:
        return 0
    with nogil:
        status[0] = store.items_open_at(name, index, False, &it, &item, &value)
    try:
        while status[0] == 1:
            found.append((item.data[: item.size], value.data[: value.size]))
            count -= 1
            if count == 0:
                break
            with nogil:
                for _i in range(apart):
                    status[0] = store.items_next(it, &item, &value)
                    if status[0] != 1:
                        break
    finally:
        store.items_close(it)
    return 0
