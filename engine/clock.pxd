"""The one clock type: hybrid logical timestamps and version vectors.

A timestamp is 64 bits: 48 of wall-clock milliseconds, 16 of logical counter. A version
vector maps origin (uint64) to timestamp; compare, merge and cover are defined here only.
"""

from libc.stdint cimport int64_t, uint16_t, uint64_t


cdef struct Dot:
    uint64_t origin
    uint64_t timestamp


cdef struct Vector:
    # Sorted by origin, no duplicates, no zero timestamps.
    Dot* dots
    size_t size
    size_t capacity


cdef enum Order:
    # Bits: 1 the first lacks something of the second, 2 the second of the first.
    EQUAL = 0
    BEFORE = 1      # the first is covered by the second
    AFTER = 2
    CONCURRENT = 3


cdef void vector_init(Vector* v) noexcept nogil
cdef void vector_free(Vector* v) noexcept nogil
cdef uint64_t vector_get(const Vector* v, uint64_t origin) noexcept nogil
cdef int vector_raise(Vector* v, uint64_t origin, uint64_t timestamp) noexcept nogil   # max; -1 when out of memory
# Take an origin back to an earlier timestamp (0: to nothing), when what came since was never shown to anybody.
cdef void vector_lower(Vector* v, uint64_t origin, uint64_t timestamp) noexcept nogil
cdef int vector_merge(Vector* into, const Vector* other) noexcept nogil
cdef bint vector_covers(const Vector* v, uint64_t origin, uint64_t timestamp) noexcept nogil
cdef int vector_compare(const Vector* a, const Vector* b) noexcept nogil
cdef int vector_load(Vector* v, object mapping) except -1
cdef dict vector_dict(const Vector* v)
cdef int dot_compare(Dot a, Dot b) noexcept nogil       # by timestamp, then origin: -1, 0, 1


cdef class HybridClock:
    # Never issues a timestamp twice, and none at or below one it has seen.
    cdef uint64_t last
    cdef int64_t manual_ms          # 0: the system's clock
    cdef uint64_t max_drift_ms
    cdef int64_t now_ms(self) noexcept nogil
    cdef uint64_t tick(self) noexcept nogil
    cdef int observe(self, uint64_t timestamp) noexcept nogil    # OK, or ERR_DRIFT (nothing merged)
