"""The seam between the tick and the system's readiness interface.

Level-triggered. A poller is a file descriptor that is itself readable while anything in it
is ready, so that an outer loop can wait for it. Every function returns -1 with errno on failure.
"""


cdef enum Interest:
    WATCH_NOTHING = 0       # only failures and hang-ups are reported
    WATCH_READ = 1
    WATCH_WRITE = 2


cdef enum:
    POLL_EVENTS_MAX = 256


cdef struct PollEvent:
    void* owner
    bint readable           # also at end of stream and on failure: a read tells which
    bint writable


cdef int poller_open() noexcept nogil                  # a descriptor, closed with close()
cdef int poller_add(int poller, int descriptor, void* owner, int interest) noexcept nogil
cdef int poller_change(int poller, int descriptor, void* owner, int interest) noexcept nogil
cdef int poller_remove(int poller, int descriptor) noexcept nogil
# The number of events, at most `capacity` (and POLL_EVENTS_MAX); doesn't wait.
cdef int poller_take(int poller, PollEvent* events, int capacity) noexcept nogil
# Wait until anything is ready, for less than a second. True: something is.
cdef bint poller_pause(int poller, long nanoseconds) noexcept nogil
