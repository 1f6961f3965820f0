# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Native loops around the engine's own kernels, for test_kernels.py; built by its fixture, never installed."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from everwrite.clock cimport Vector, vector_compare, vector_free, vector_init, vector_load, vector_merge
from everwrite.coding cimport slice_of
from everwrite.digest cimport digest_key, head_item, leaf_replace, leaves_bytes, leaves_new
from everwrite.join cimport join_head
from everwrite.state cimport Head, Row, Sum, head_free, head_init, head_row


cdef class Vectors:
    """Pairs of version vectors."""

    cdef Vector* items
    cdef size_t count

    def __init__(self, pairs):
        self.count = len(pairs)
        self.items = <Vector*>calloc(2 * self.count, sizeof(Vector))
        for i, pair in enumerate(pairs):
            for side in range(2):
                vector_init(&self.items[2 * i + side])
                vector_load(&self.items[2 * i + side], pair[side])

    def __dealloc__(self):
        cdef size_t i
        for i in range(2 * self.count):
            vector_free(&self.items[i])
        free(self.items)

    def compare(self, size_t rounds):
        """Compare every pair `rounds` times: how often each order came out."""
        cdef uint64_t found[4]
        cdef size_t _round
        cdef size_t i
        for i in range(4):
            found[i] = 0
        with nogil:
            for _round in range(rounds):
                for i in range(self.count):
                    found[vector_compare(&self.items[2 * i], &self.items[2 * i + 1])] += 1
        return [found[0], found[1], found[2], found[3]]

    def merge(self, size_t rounds):
        """Merge the second of every pair into the first, `rounds` times. Returns the sum of all timestamps then."""
        cdef size_t _round
        cdef size_t i
        cdef size_t j
        cdef uint64_t total = 0
        with nogil:
            for _round in range(rounds):
                for i in range(self.count):
                    vector_merge(&self.items[2 * i], &self.items[2 * i + 1])
            for i in range(self.count):
                for j in range(self.items[2 * i].size):
                    total += self.items[2 * i].dots[j].timestamp
        return total


cdef class Heads:
    """Pairs of heads: rows of (origin, context, counter, total), with `register` a register of the newest context."""

    cdef Head* items
    cdef size_t count

    def __init__(self, pairs, bint register):
        cdef Head* head
        cdef Row* row
        self.count = len(pairs)
        self.items = <Head*>calloc(2 * self.count, sizeof(Head))
        for i, pair in enumerate(pairs):
            for side in range(2):
                head = &self.items[2 * i + side]
                head_init(head)
                for origin, context, counter, total in pair[side]:
                    row = head_row(head, origin)
                    row.context = context
                    row.counter = counter
                    row.total = total
                    if register and context > head.dot.timestamp:
                        head.has_register = True
                        head.dot.origin = origin
                        head.dot.timestamp = context
                        head.value = slice_of(b"v", 1)

    def __dealloc__(self):
        cdef size_t i
        for i in range(2 * self.count):
            head_free(&self.items[i])
        free(self.items)

    def join(self, size_t rounds):
        """Join each pair `rounds` times, alternating sides and starting anew. Returns (sum of totals, winners' sum)."""
        cdef Head mine
        cdef Head* start
        cdef const Head* theirs
        cdef uint64_t totals = 0
        cdef uint64_t winners = 0
        cdef size_t _round
        cdef size_t i
        cdef size_t j
        cdef Row rows[64]
        cdef Row* place = rows
        with nogil:
            for _round in range(rounds):
                for i in range(self.count):
                    start = &self.items[2 * i + (_round & 1)]
                    theirs = &self.items[2 * i + 1 - (_round & 1)]
                    mine = start[0]
                    for j in range(start.size):
                        rows[j] = start.rows[j]
                    mine.rows = place
                    mine.capacity = 64
                    join_head(&mine, theirs)
                    for j in range(mine.size):
                        totals += <uint64_t>mine.rows[j].total
                    winners += mine.dot.timestamp
        return totals, winners

    def update_leaves(self, list keys, size_t rounds):
        """For every pair: the key's item of the first out of its leaf, the second's in, then the other way round.

        `keys`: entry keys. `rounds` is even, so that the leaves hold the firsts' items in the end; they are returned.
        """
        cdef Sum* leaves = leaves_new()
        cdef const unsigned char** names = <const unsigned char**>calloc(self.count, sizeof(char*))
        cdef size_t* sizes = <size_t*>calloc(self.count, sizeof(size_t))
        cdef size_t _round
        cdef size_t i
        cdef Sum none
        none.low = none.high = 0
        for i in range(self.count):
            names[i] = <const unsigned char*><bytes>keys[i]
            sizes[i] = len(keys[i])
        with nogil:
            for i in range(self.count):
                leaf_replace(
                    leaves, digest_key(slice_of(names[i], sizes[i])), none,
                    head_item(&self.items[2 * i], digest_key(slice_of(names[i], sizes[i]))),
                )
            for _round in range(rounds):
                for i in range(self.count):
                    _update(
                        leaves, names[i], sizes[i],
                        &self.items[2 * i + (_round & 1)], &self.items[2 * i + 1 - (_round & 1)],
                    )
        held = leaves_bytes(leaves)
        free(leaves)
        free(names)
        free(sizes)
        return held


cdef inline void _update(
    Sum* leaves, const unsigned char* name, size_t size, const Head* old, const Head* new
) noexcept nogil:
    place = digest_key(slice_of(name, size))
    leaf_replace(leaves, place, head_item(old, place), head_item(new, place))
