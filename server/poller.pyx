"""Readiness by epoll(7). A kqueue version replaces this file and nothing else."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void* ptr

    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data

    int epoll_create1(int flags)
    int epoll_ctl(int poller, int operation, int descriptor, epoll_event* event)
    int epoll_wait(int poller, epoll_event* events, int capacity, int timeout_ms)

    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP


cdef extern from "<poll.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd* descriptors, unsigned long count, const timespec* timeout, const void* signals)
    short POLLIN


cdef int poller_open() noexcept nogil:
    return epoll_create1(EPOLL_CLOEXEC)


cdef int _control(int poller, int operation, int descriptor, void* owner, int interest) noexcept nogil:
    cdef epoll_event event
    event.events = 0
    if interest & Interest.WATCH_READ:
        event.events |= EPOLLIN
    if interest & Interest.WATCH_WRITE:
        event.events |= EPOLLOUT
    event.data.ptr = owner
    return epoll_ctl(poller, operation, descriptor, &event)


cdef int poller_add(int poller, int descriptor, void* owner, int interest) noexcept nogil:
    return _control(poller, EPOLL_CTL_ADD, descriptor, owner, interest)


cdef int poller_change(int poller, int descriptor, void* owner, int interest) noexcept nogil:
    return _control(poller, EPOLL_CTL_MOD, descriptor, owner, interest)


cdef int poller_remove(int poller, int descriptor) noexcept nogil:
    return _control(poller, EPOLL_CTL_DEL, descriptor, NULL, Interest.WATCH_NOTHING)


cdef int poller_take(int poller, PollEvent* events, int capacity) noexcept nogil:
    cdef epoll_event found[POLL_EVENTS_MAX]
    cdef int count, i
    if capacity > POLL_EVENTS_MAX:
        capacity = POLL_EVENTS_MAX
    count = epoll_wait(poller, found, capacity, 0)
    if count < 0:
        return 0 if errno == EINTR else -1
    for i in range(count):
        events[i].owner = found[i].data.ptr
        events[i].readable = (found[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0
        events[i].writable = (found[i].events & (EPOLLOUT | EPOLLERR)) != 0
    return count


cdef bint poller_pause(int poller, long nanoseconds) noexcept nogil:
    cdef pollfd watched
    cdef timespec timeout
    watched.fd = poller
    watched.events = POLLIN
    timeout.tv_sec = 0
    timeout.tv_nsec = nanoseconds
    return ppoll(&watched, 1, &timeout, NULL) > 0
