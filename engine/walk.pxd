"""A walk along those entries of a map whose keys begin with a prefix, forwards or in reverse."""

from libc.string cimport memcmp

from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, buffer_slice, slice_equal, slice_of
from everwrite.lsm cimport Lsm, LsmIterator


cdef struct Walk:
    # Made by walk_init; prefix, edge and the direction are set before the first step.
    LsmIterator* it
    Buffer prefix          # what the entries' keys begin with
    Buffer edge            # where to begin: in reverse, the last one of interest
    bint reverse
    bint beyond_edge       # an entry at the edge itself isn't wanted
    bint started


cdef inline int walk_init(Walk* walk, Lsm lsm) noexcept nogil:
    """0, or -1 when out of memory; walk_free is due in either case."""
    buffer_init(&walk.prefix)
    buffer_init(&walk.edge)
    walk.reverse = False
    walk.beyond_edge = False
    walk.started = False
    walk.it = lsm.iterator()
    return 0 if walk.it != NULL else -1


cdef inline int walk_next(Walk* walk, Lsm lsm, Slice* rest) noexcept nogil:
    """To the next entry: 1, and what stands behind the prefix in its key; 0 at the end; or an error."""
    cdef Slice stored
    cdef int status
    cdef bint on = walk.started
    if not on:
        walk.started = True
        if walk.reverse:
            status = lsm.seek_for_prev(walk.it, buffer_slice(&walk.edge))
        else:
            status = lsm.seek(walk.it, buffer_slice(&walk.edge))
        on = status > 0 and walk.beyond_edge and slice_equal(lsm.key(walk.it), buffer_slice(&walk.edge))
    if on:
        status = lsm.prev(walk.it) if walk.reverse else lsm.next(walk.it)
    if status <= 0:
        return status
    stored = lsm.key(walk.it)
    if stored.size < walk.prefix.size or memcmp(stored.data, walk.prefix.data, walk.prefix.size) != 0:
        return 0
    rest[0] = slice_of(stored.data + walk.prefix.size, stored.size - walk.prefix.size)
    return 1


cdef inline void walk_free(Walk* walk, Lsm lsm) noexcept nogil:
    if walk.it != NULL:
        lsm.iterator_free(walk.it)
    buffer_free(&walk.prefix)
    buffer_free(&walk.edge)
