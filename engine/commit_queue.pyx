"""Threads that wait for the log to be durable; see commit_queue.pxd."""

from libc.stdint cimport uint64_t

from everwrite.threads cimport (
    ew_cond_init,
    pthread_cond_destroy,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_t,
    pthread_mutex_unlock,
)


cdef void commit_wait(CommitQueue* queue, uint64_t wanted, pthread_mutex_t* state) noexcept nogil:
    cdef Waiter waiter
    waiter.wanted = wanted
    waiter.called = False
    waiter.next = NULL
    pthread_mutex_init(&waiter.sleep, NULL)
    ew_cond_init(&waiter.wake)
    if queue.last == NULL:
        queue.first = &waiter
    else:
        queue.last.next = &waiter
    queue.last = &waiter
    pthread_mutex_unlock(state)
    pthread_mutex_lock(&waiter.sleep)
    while not waiter.called:
        pthread_cond_wait(&waiter.wake, &waiter.sleep)
    pthread_mutex_unlock(&waiter.sleep)
    pthread_cond_destroy(&waiter.wake)
    pthread_mutex_destroy(&waiter.sleep)


cdef Waiter* commit_take(CommitQueue* queue, uint64_t durable) noexcept nogil:
    cdef Waiter* leader = NULL
    cdef Waiter* covered = NULL
    cdef Waiter** end = &covered
    cdef Waiter* waiter = queue.first
    cdef Waiter* following
    queue.first = queue.last = NULL
    while waiter != NULL:
        following = waiter.next
        waiter.next = NULL
        if waiter.wanted <= durable:
            end[0] = waiter
            end = &waiter.next
        elif leader == NULL:
            leader = waiter
        else:
            if queue.last == NULL:
                queue.first = waiter
            else:
                queue.last.next = waiter
            queue.last = waiter
        waiter = following
    if leader == NULL:
        return covered
    # The device has nothing to do before the leader is awake.
    leader.next = covered
    return leader


cdef void commit_call(Waiter* waiter) noexcept nogil:
    cdef Waiter* following
    while waiter != NULL:
        # It is gone as soon as it is awake.
        following = waiter.next
        pthread_mutex_lock(&waiter.sleep)
        waiter.called = True
        pthread_cond_signal(&waiter.wake)
        pthread_mutex_unlock(&waiter.sleep)
        waiter = following
