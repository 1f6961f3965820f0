"""Status codes of the native code. `status.pyx` is the only place where one becomes an exception."""

from everwrite.coding cimport Slice

cdef enum Status:
    OK = 0
    ERR_MEMORY = -1
    ERR_IO = -2               # errno and path are in the thread's `last_fault`
    ERR_CORRUPT = -3          # path, offset and reason are in `last_fault`
    ERR_CLOSED = -4
    ERR_WRONG_TYPE = -5
    ERR_NOT_INTEGER = -6
    ERR_OVERFLOW = -7
    ERR_TOO_LARGE = -8
    ERR_DECODE = -9           # malformed bytes from outside (a batch, a delta)
    ERR_GUARD = -10           # a guarded delta builds on updates that the key's context lacks
    ERR_DRIFT = -11           # a timestamp too far ahead
    ERR_FAILED = -12          # the store failed earlier (a sync) and stays failed
    ERR_FORMAT = -13          # a format version from the future; path and reason are in `last_fault`
    ERR_CUT = -14             # the log no longer reaches back to where a reader stands
    WOULD_BLOCK = -15         # only memory was to be read, and that has no answer; never an exception: ask again
    ERR_READ_ONLY = -16       # writes are refused for now, nothing was applied; why is in `last_fault`
    ERR_NOT_A_NUMBER = -17    # a score is NaN, or an amount to add isn't finite
    ERR_NO_RIGHTS = -18       # a bounded counter: this origin holds fewer rights than it would spend
    ERR_NOT_A_POSITION = -19  # bytes that name no place in a sequence
    ERR_STATE_TOO_LARGE = -20  # of a key, for another store


cdef enum:
    KEY_SHOWN = 64            # as errors.KEY_SHOWN


cdef struct Fault:
    # The detail behind the newest ERR_IO or ERR_CORRUPT of this thread. Fixed size: no allocation when failing.
    int error_number
    unsigned long long offset
    char path[512]
    char reason[200]
    # Which key an operation was refused for, with this status: its first bytes, and how many it has.
    int refused
    size_t key_size
    char key[KEY_SHOWN]


cdef Fault* last_fault() noexcept nogil
cdef int fault_io(const char* path, const char* what) noexcept nogil
cdef int fault_corrupt(const char* path, unsigned long long offset, const char* reason) noexcept nogil
cdef int fault_format(const char* path, unsigned long long version) noexcept nogil
# Remember which key the operation was for that is refused with this status, which is returned.
cdef int fault_key(int status, Slice key) noexcept nogil

# Raises the exception for a negative status; returns the status otherwise. Needs the GIL.
cdef int check(int status) except? -1
