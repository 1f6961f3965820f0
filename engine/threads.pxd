"""Native mutexes and conditions. Never take one of them while waiting for the GIL, nor the GIL while holding one."""

from libc.stdint cimport int64_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)

cdef extern from *:
    """
    #ifndef EW_RECURSIVE_MUTEX
    #define EW_RECURSIVE_MUTEX
    #include <pthread.h>
    static inline int ew_recursive_mutex_init(pthread_mutex_t* mutex) {
        pthread_mutexattr_t attributes;
        int failed = pthread_mutexattr_init(&attributes);
        if (failed) return failed;
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
        failed = pthread_mutex_init(mutex, &attributes);
        pthread_mutexattr_destroy(&attributes);
        return failed;
    }
    #endif
    """
    # One that the thread which holds it may take again.
    int ew_recursive_mutex_init(pthread_mutex_t* mutex) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass
    int pthread_cond_destroy(pthread_cond_t* condition)
    int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex)
    int pthread_cond_signal(pthread_cond_t* condition)
    int pthread_cond_broadcast(pthread_cond_t* condition)

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #include <time.h>

    static inline uint64_t ew_monotonic_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }

    /* Waits that a wall clock which steps doesn't lengthen. */
    static inline void ew_cond_init(pthread_cond_t* condition) {
    #ifdef __APPLE__
        pthread_cond_init(condition, NULL);
    #else
        pthread_condattr_t attributes;
        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        pthread_cond_init(condition, &attributes);
        pthread_condattr_destroy(&attributes);
    #endif
    }

    static inline void ew_cond_wait_ms(pthread_cond_t* condition, pthread_mutex_t* mutex, int64_t milliseconds) {
        struct timespec until;
    #ifdef __APPLE__
        until.tv_sec = (time_t)(milliseconds / 1000);
        until.tv_nsec = (long)(milliseconds % 1000) * 1000000;
        pthread_cond_timedwait_relative_np(condition, mutex, &until);
    #else
        uint64_t at = ew_monotonic_ns() + (uint64_t)milliseconds * 1000000u;
        until.tv_sec = (time_t)(at / 1000000000u);
        until.tv_nsec = (long)(at % 1000000000u);
        pthread_cond_timedwait(condition, mutex, &until);
    #endif
    }
    """
    uint64_t ew_monotonic_ns() noexcept nogil
    void ew_cond_init(pthread_cond_t* condition) noexcept nogil
    void ew_cond_wait_ms(pthread_cond_t* condition, pthread_mutex_t* mutex, int64_t milliseconds) noexcept nogil

cdef extern from *:
    """
    #include <stdint.h>
    /* What was stored before a position was raised, whoever sees the new one on another thread sees, too. */
    static inline void ew_raise(uint64_t* position, uint64_t value) {
        __atomic_store_n(position, value, __ATOMIC_RELEASE);
    }
    static inline uint64_t ew_position(uint64_t* position) { return __atomic_load_n(position, __ATOMIC_ACQUIRE); }
    """
    void ew_raise(uint64_t* position, uint64_t value) noexcept nogil
    uint64_t ew_position(uint64_t* position) noexcept nogil
