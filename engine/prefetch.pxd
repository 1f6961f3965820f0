"""Hints to the processor that a place in memory is about to be read."""

cdef extern from *:
    """
    #ifndef EW_PREFETCH_LINE
    #define EW_PREFETCH_LINE
    static inline void ew_prefetch_line(const void* at) { __builtin_prefetch(at); }
    #endif
    """
    void prefetch_line "ew_prefetch_line"(const void* at) noexcept nogil
