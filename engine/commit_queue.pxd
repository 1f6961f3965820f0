"""Threads that wait for a position of the log to be durable: group commit.

One thread at a time leads: it syncs for all who came before it began, and then calls those whose positions are
covered, and one more, who leads next. Each sleeps on a condition of its own, so that a sync wakes nobody in vain, and
nobody who is woken queues for a lock that all of them need.
"""

from libc.stdint cimport uint64_t

from everwrite.threads cimport pthread_cond_t, pthread_mutex_t

cdef struct Waiter:
    uint64_t wanted            # the log has to be durable up to here
    bint called                # guarded by `sleep`
    Waiter* next
    pthread_mutex_t sleep
    pthread_cond_t wake

cdef struct CommitQueue:
    Waiter* first              # in the order in which they came
    Waiter* last


# Sleep until called. With `state`, which guards the queue, held; comes back without it.
cdef void commit_wait(CommitQueue* queue, uint64_t wanted, pthread_mutex_t* state) noexcept nogil
# Take out those who want no more than `durable`, and before them the next one, who leads. Needs `state`.
cdef Waiter* commit_take(CommitQueue* queue, uint64_t durable) noexcept nogil
# Wake all of a list. Better without the lock.
cdef void commit_call(Waiter* waiter) noexcept nogil
