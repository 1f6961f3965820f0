"""Native mutexes. Never take one of them while waiting for the GIL, nor the GIL while holding one."""

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
