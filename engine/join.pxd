"""THE join. Nothing else in the system merges two states.

Laws, for every function here: associative, commutative, idempotent; `mine` only grows in
the lattice's order. A state or delta arrives decoded; `Seen` is the causal context it
brings: exact dots for a delta, a version vector (the contexts of rows) for a full state.
Almeida, Shoker, Baquero: Delta state replicated data types (2018).
"""

from libc.stdint cimport uint64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport Slice
from everwrite.state cimport Element, Head, Row


cdef struct Seen:
    const Row* rows            # a full state's context, or NULL
    size_t row_count
    const unsigned char* dots  # 16 bytes each: a delta's removed dots or a clear's vector
    size_t dot_count
    bint vector                # the dots are a version vector: each covers its origin up to its timestamp
    Dot own                    # a delta's own dot


cdef enum Outcome:
    UNCHANGED = 0
    CHANGED = 1
    CONFLICT = 2               # added to CHANGED or UNCHANGED: concurrent writes met


cdef bint seen_covers(const Seen* seen, Dot dot) noexcept nogil
cdef int join_row(Row* mine, const Row* theirs) noexcept nogil
cdef int join_rows(Row** mine, size_t* size, size_t* capacity, const Row* theirs, size_t count) noexcept nogil
cdef int join_register(Head* mine, Dot dot, bint tombstone, Slice value, Dot over) noexcept nogil
cdef int join_expiry(Head* mine, Dot dot, long long deadline) noexcept nogil
cdef int join_head(Head* mine, const Head* theirs) noexcept nogil
cdef int join_element(
    Element* mine, const Row* context, size_t context_size, const Element* theirs, const Seen* seen
) noexcept nogil
