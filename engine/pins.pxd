"""Reference-counted native memory, shared between threads without the GIL.

A counted struct has `Counted` as its first member. Whoever holds a reference may read it;
the last one to let go runs `drop`.
"""

cdef extern from *:
    """
    #ifndef EW_PINS
    #define EW_PINS
    static inline void ew_count_up(int* refs) { __atomic_fetch_add(refs, 1, __ATOMIC_RELAXED); }
    static inline int ew_count_down(int* refs) { return __atomic_sub_fetch(refs, 1, __ATOMIC_ACQ_REL); }
    static inline unsigned long long ew_load(const unsigned long long* at) {
        return __atomic_load_n(at, __ATOMIC_ACQUIRE);
    }
    static inline void* ew_exchange(void** at, void* value) { return __atomic_exchange_n(at, value, __ATOMIC_ACQ_REL); }
    static inline void ew_store(unsigned long long* at, unsigned long long value) {
        __atomic_store_n(at, value, __ATOMIC_RELEASE);
    }
    #endif
    """
    void ew_count_up(int* refs) noexcept nogil
    int ew_count_down(int* refs) noexcept nogil
    unsigned long long ew_load(const unsigned long long* at) noexcept nogil
    void ew_store(unsigned long long* at, unsigned long long value) noexcept nogil
    void* ew_exchange(void** at, void* value) noexcept nogil


cdef struct Counted:
    int refs
    void (*drop)(void*) noexcept nogil


cdef inline void counted_init(Counted* c, void (*drop)(void*) noexcept nogil) noexcept nogil:
    c.refs = 1
    c.drop = drop


cdef inline void counted_hold(Counted* c) noexcept nogil:
    ew_count_up(&c.refs)


cdef inline void counted_release(Counted* c) noexcept nogil:
    if ew_count_down(&c.refs) == 0:
        c.drop(c)
