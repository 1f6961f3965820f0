"""Bounded counters: integers that never fall below a minimum, whoever decrements wherever.

After Balegas et al., Extending eventually consistent cloud databases for enforcing numeric
invariants (2015): whoever increments gains the right to decrement as much, rights move by
transfers, and a decrement without rights is refused. A counter lives in *generations*: each
creation opens one, a delete ends those that it has seen, and what is written to an ended one counts no more.

Elements, with integers in names big-endian, in values little-endian:
  generation                   the creation; its value is the minimum (8 bytes, signed)
  generation, origin           what the origin has decremented in all
  generation, origin, origin   what it has incremented in all
  generation, origin, other    what it has handed over to the other in all
A generation is the dot of its creation (origin, timestamp: 16 bytes), an amount 8 bytes, unsigned.
Invariants: only `origin` writes its amounts, and they only grow (what an earlier incarnation left
over is handed over by the store's present one); a change names, as guards, the dots of the
transfers that it relies on, so that in every state that includes it nobody has given away more than he had.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport Buffer, Slice
from everwrite.sorted_sets cimport SortedKeyspace
from everwrite.state cimport wide_t


cdef struct Generation:
    Dot dot
    int64_t minimum


cdef struct Cell:
    # One amount of a generation that is alive. target: the origin itself for increments, 0 for decrements.
    size_t generation
    uint64_t origin
    uint64_t target
    uint64_t amount
    Dot dot


cdef class BoundedKeyspace(SortedKeyspace):
    # Of the key that was read last.
    cdef Generation* generations
    cdef size_t generation_count
    cdef size_t generation_capacity
    cdef Cell* cells
    cdef size_t cell_count
    cdef size_t cell_capacity

    # Fills generations and cells. KIND_NONE, KIND_BOUNDED, or an error.
    cdef int bounded_read(self, Slice key) noexcept nogil
    cdef int64_t bounded_value(self) noexcept nogil
    cdef int64_t bounded_minimum(self) noexcept nogil
    cdef wide_t bounded_rights(self, size_t generation, uint64_t origin) noexcept nogil

    # Amounts are positive. Each is one change, or none when it fails.
    cdef int op_bounded_increment(self, Slice key, int64_t minimum, uint64_t amount, int64_t* value) noexcept nogil
    # ERR_NO_RIGHTS: this origin holds less; generations and cells tell who holds what.
    cdef int op_bounded_decrement(self, Slice key, uint64_t amount, int64_t* value) noexcept nogil
    cdef int op_bounded_transfer(self, Slice key, uint64_t target, uint64_t amount) noexcept nogil
    # What earlier incarnations of this store left becomes its present one's: *amount says how much.
    cdef int op_bounded_reclaim(self, Slice key, uint64_t* amount) noexcept nogil

    cdef int _add_generation(self, Dot dot, Slice value) noexcept nogil
    cdef int _add_cell(self, Slice name) noexcept nogil
    cdef const Cell* _find_cell(self, size_t generation, uint64_t origin, uint64_t target) noexcept nogil
    cdef bint _takes_part(self, size_t generation, uint64_t origin) noexcept nogil
    cdef int _spend(self, uint64_t target, uint64_t amount) noexcept nogil
    cdef int _put_cell(
        self, size_t generation, uint64_t origin, uint64_t target, uint64_t amount, uint64_t more
    ) noexcept nogil
    cdef int _put_cell_name(self, Buffer* into, Dot generation, uint64_t origin, uint64_t target) noexcept nogil
    cdef size_t _list_guards(self, size_t generation, uint64_t origin, wide_t spent, bint put) noexcept nogil
