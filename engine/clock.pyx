"""Hybrid logical clock (Kulkarni et al. 2014) and version vectors (Parker et al. 1983).

Compare, merge and cover are defined here and nowhere else.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from everwrite.status cimport Status

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_REALTIME
    int clock_gettime(int clock, timespec* at)


cdef void vector_init(Vector* v) noexcept nogil:
    v.dots = NULL
    v.size = 0
    v.capacity = 0


cdef void vector_free(Vector* v) noexcept nogil:
    free(v.dots)
    vector_init(v)


cdef size_t _lower_bound(const Vector* v, uint64_t origin) noexcept nogil:
    cdef size_t low = 0
    cdef size_t high = v.size
    cdef size_t middle
    while low < high:
        middle = (low + high) // 2
        if v.dots[middle].origin < origin:
            low = middle + 1
        else:
            high = middle
    return low


cdef uint64_t vector_get(const Vector* v, uint64_t origin) noexcept nogil:
    cdef size_t at = _lower_bound(v, origin)
    if at < v.size and v.dots[at].origin == origin:
        return v.dots[at].timestamp
    return 0


cdef int vector_raise(Vector* v, uint64_t origin, uint64_t timestamp) noexcept nogil:
    cdef size_t at = _lower_bound(v, origin)
    cdef size_t capacity
    cdef Dot* grown
    if at < v.size and v.dots[at].origin == origin:
        if v.dots[at].timestamp < timestamp:
            v.dots[at].timestamp = timestamp
        return Status.OK
    if timestamp == 0:
        return Status.OK
    if v.size == v.capacity:
        capacity = v.capacity * 2 if v.capacity else 4
        grown = <Dot*>realloc(v.dots, capacity * sizeof(Dot))
        if grown == NULL:
            return Status.ERR_MEMORY
        v.dots = grown
        v.capacity = capacity
    memmove(&v.dots[at + 1], &v.dots[at], (v.size - at) * sizeof(Dot))
    v.dots[at].origin = origin
    v.dots[at].timestamp = timestamp
    v.size += 1
    return Status.OK


cdef void vector_lower(Vector* v, uint64_t origin, uint64_t timestamp) noexcept nogil:
    cdef size_t at = _lower_bound(v, origin)
    if at >= v.size or v.dots[at].origin != origin:
        return
    if timestamp:
        v.dots[at].timestamp = timestamp
        return
    v.size -= 1
    memmove(&v.dots[at], &v.dots[at + 1], (v.size - at) * sizeof(Dot))


cdef inline bint _same_origins(const Vector* a, const Vector* b) noexcept nogil:
    # Almost always so: the members of a cluster change far less often than what they write.
    cdef uint64_t differs = 0
    cdef size_t i
    if a.size != b.size:
        return False
    for i in range(a.size):
        differs |= a.dots[i].origin ^ b.dots[i].origin
    return differs == 0


cdef int vector_merge(Vector* into, const Vector* other) noexcept nogil:
    cdef uint64_t timestamp
    cdef size_t i
    if _same_origins(into, other):
        for i in range(into.size):
            timestamp = other.dots[i].timestamp
            into.dots[i].timestamp = timestamp if timestamp > into.dots[i].timestamp else into.dots[i].timestamp
        return Status.OK
    for i in range(other.size):
        if vector_raise(into, other.dots[i].origin, other.dots[i].timestamp) < 0:
            return Status.ERR_MEMORY
    return Status.OK


cdef bint vector_covers(const Vector* v, uint64_t origin, uint64_t timestamp) noexcept nogil:
    return vector_get(v, origin) >= timestamp


cdef int vector_compare(const Vector* a, const Vector* b) noexcept nogil:
    """An `Order`: how `a` stands to `b`."""
    cdef size_t i = 0
    cdef size_t j = 0
    cdef uint64_t differs = 0
    cdef bint less = False
    cdef bint more = False
    if a.size == b.size:
        # One pass without branches: which way two clocks differ can't be predicted.
        for i in range(a.size):
            differs |= a.dots[i].origin ^ b.dots[i].origin
            less |= a.dots[i].timestamp < b.dots[i].timestamp
            more |= a.dots[i].timestamp > b.dots[i].timestamp
        if differs == 0:
            return less | (more << 1)
        i = 0
        less = more = False
    while i < a.size or j < b.size:
        if j >= b.size or (i < a.size and a.dots[i].origin < b.dots[j].origin):
            more = True
            i += 1
        elif i >= a.size or b.dots[j].origin < a.dots[i].origin:
            less = True
            j += 1
        else:
            if a.dots[i].timestamp < b.dots[j].timestamp:
                less = True
            elif a.dots[i].timestamp > b.dots[j].timestamp:
                more = True
            i += 1
            j += 1
    return less | (more << 1)


cdef int vector_load(Vector* v, object mapping) except -1:
    """Replace `v` by a Python mapping of origin to timestamp.

    Raises ValueError when an origin or timestamp is not an unsigned 64-bit integer.
    """
    v.size = 0
    for origin, timestamp in mapping.items():
        if not (isinstance(origin, int) and isinstance(timestamp, int)):
            raise ValueError(f"a version vector maps int to int, not {origin!r} to {timestamp!r}")
        if not (0 <= origin < 1 << 64 and 0 <= timestamp < 1 << 64):
            raise ValueError(f"origin {origin} or timestamp {timestamp} is not an unsigned 64-bit integer")
        if vector_raise(v, origin, timestamp) < 0:
            raise MemoryError("out of memory for a version vector")
    return 0


cdef dict vector_dict(const Vector* v):
    cdef size_t i
    return {v.dots[i].origin: v.dots[i].timestamp for i in range(v.size)}


cdef int dot_compare(Dot a, Dot b) noexcept nogil:
    """The total order that settles ties everywhere: by timestamp, then by origin."""
    if a.timestamp != b.timestamp:
        return -1 if a.timestamp < b.timestamp else 1
    if a.origin != b.origin:
        return -1 if a.origin < b.origin else 1
    return 0


cdef class HybridClock:
    """Issues timestamps: 48 bits of wall-clock milliseconds, 16 of logical counter.

    Not thread-safe: the store's lock serialises it.
    """

    def __cinit__(self, uint64_t max_drift_ms=500):
        self.last = 0
        self.manual_ms = 0
        self.max_drift_ms = max_drift_ms

    cdef int64_t now_ms(self) noexcept nogil:
        cdef timespec at
        if self.manual_ms:
            return self.manual_ms
        clock_gettime(CLOCK_REALTIME, &at)
        return <int64_t>at.tv_sec * 1000 + at.tv_nsec // 1000000

    cdef uint64_t tick(self) noexcept nogil:
        """A timestamp above every one issued or observed."""
        cdef uint64_t wall = <uint64_t>self.now_ms() << 16
        self.last = wall if wall > self.last else self.last + 1
        return self.last

    cdef int observe(self, uint64_t timestamp) noexcept nogil:
        """Take note of a remote timestamp. Refuses (merging nothing) one beyond the drift bound."""
        if timestamp <= self.last:
            return Status.OK
        if (timestamp >> 16) > <uint64_t>self.now_ms() + self.max_drift_ms:
            return Status.ERR_DRIFT
        self.last = timestamp
        return Status.OK


# ---- the same operations on Python mappings, for code that isn't hot ----

def compare(a, b) -> str:
    """How version vector `a` (mapping of origin to timestamp) stands to `b`.

    Returns "equal", "before", "after" or "concurrent".
    """
    cdef Vector x
    cdef Vector y
    vector_init(&x)
    vector_init(&y)
    try:
        vector_load(&x, a)
        vector_load(&y, b)
        return ("equal", "before", "after", "concurrent")[vector_compare(&x, &y)]
    finally:
        vector_free(&x)
        vector_free(&y)


def merge(*vectors) -> dict[int, int]:
    """The least version vector that covers all of `vectors` (mappings of origin to timestamp)."""
    cdef Vector into
    cdef Vector other
    vector_init(&into)
    vector_init(&other)
    try:
        for vector in vectors:
            vector_load(&other, vector)
            if vector_merge(&into, &other) < 0:
                raise MemoryError("out of memory for a version vector")
        return vector_dict(&into)
    finally:
        vector_free(&into)
        vector_free(&other)


def covers(a, b) -> bool:
    """Whether version vector `a` includes all that `b` includes."""
    return compare(a, b) in ("equal", "after")


def physical_ms(timestamp: int) -> int:
    """The wall-clock part of a timestamp, Unix milliseconds."""
    return timestamp >> 16


def logical(timestamp: int) -> int:
    """The logical counter of a timestamp, 0 to 65,535."""
    return timestamp & 0xFFFF
