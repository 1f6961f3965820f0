"""Waiting between threads which an exception out of a signal handler, Ctrl-C's for one, can't leave half done.

Such exceptions come between two instructions of Python. There are none in here.
"""

from libc.stdint cimport int64_t
from posix.unistd cimport usleep

import threading

from everwrite.threads cimport (
    ew_cond_init,
    ew_cond_wait_ms,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_t,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)


cdef class Alarm:
    """A flag to wait for, set by one thread and taken back by the one that waited.

    What a `threading.Event` is, but for its lock, which stays taken when `set` is interrupted.
    """

    cdef pthread_mutex_t mutex
    cdef pthread_cond_t rung
    cdef bint is_set

    def __cinit__(self):
        pthread_mutex_init(&self.mutex, NULL)
        ew_cond_init(&self.rung)

    def __dealloc__(self):
        pthread_cond_destroy(&self.rung)
        pthread_mutex_destroy(&self.mutex)

    cpdef void set(self) noexcept:
        """Wake who waits, or comes to wait next."""
        # Nobody keeps it for longer than some instructions.
        pthread_mutex_lock(&self.mutex)
        self.is_set = True
        pthread_cond_broadcast(&self.rung)
        pthread_mutex_unlock(&self.mutex)

    def wait(self, double seconds):
        """Return when it is set, which it isn't any more then, or after `seconds`."""
        cdef int64_t milliseconds = <int64_t>(seconds * 1000)
        with nogil:
            pthread_mutex_lock(&self.mutex)
            if not self.is_set:
                ew_cond_wait_ms(&self.rung, &self.mutex, milliseconds)
            self.is_set = False
            pthread_mutex_unlock(&self.mutex)


def pause(unsigned int microseconds):
    """Sleep, and let a signal handler wait until the caller returns to Python."""
    with nogil:
        usleep(microseconds)


def end_threads(threads not None):
    """Wait until they have ended, but for those never started and the one that asks.

    Returns what a signal handler raised meanwhile, or None.
    """
    interruption = None
    waited_for = list(threads)
    while waited_for:
        thread = waited_for[len(waited_for) - 1]
        try:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()
            waited_for.pop()
        except BaseException as error:
            # The caller's, once all have ended.
            interruption = error
    return interruption
