"""Hints to the processor that a place in memory is about to be read.

Assembly rather than __builtin_prefetch: a function that only calls that one counts as free of
effects, and gcc 12 drops the calls of such functions.
"""

cdef extern from *:
    """
    #ifndef EW_PREFETCH_LINE
    #define EW_PREFETCH_LINE
    static inline void ew_prefetch_line(const void* at) {
    #if defined(__GNUC__) && defined(__x86_64__)
        __asm__ volatile("prefetcht0 %0" : : "m"(*(const char*)at));
    #elif defined(__GNUC__) && defined(__aarch64__)
        __asm__ volatile("prfm pldl1keep, %0" : : "Q"(*(const char*)at));
    #elif defined(__GNUC__)
        __builtin_prefetch(at);
    #else
        (void)at;
    #endif
    }
    #endif
    """
    void prefetch_line "ew_prefetch_line"(const void* at) noexcept nogil
