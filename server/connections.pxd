"""The sockets of a node's clients: accepted, watched, written to, accounted for, closed. Knows bytes, not commands.

Invariants: a connection is in each of the lists at most once, and `reap` frees it when none but `dead` holds it;
all lists have room for all connections, so that adding one can't fail.
"""

from libc.stdint cimport int64_t, uint64_t

from everwrite.server.client cimport Client
from everwrite.server.connection cimport Connection, ConnectionList, ConnectionState, Source, list_push


cdef struct Traffic:
    uint64_t connections_received
    uint64_t connections_rejected
    uint64_t bytes_sent


cdef class Connections:
    cdef dict clients_by_id
    cdef dict listeners_by_fd
    cdef int poller
    cdef Source wake
    cdef int wake_write
    cdef int spare                      # a descriptor to give up when there are no others, see accept
    cdef size_t clients_max
    cdef size_t buffer_bytes_max
    cdef size_t buffer_bytes            # of all connections' buffers
    cdef Connection* first
    cdef size_t connected
    cdef uint64_t newest_id
    cdef ConnectionList touched
    cdef ConnectionList ready
    cdef ConnectionList dead
    cdef ConnectionList handed          # connections whose command goes up to Python, in order
    cdef ConnectionList asking          # those whose commands wait for answers of other replicas
    cdef ConnectionList held            # those whose replies wait for acknowledgements, in order
    cdef Traffic traffic
    cdef size_t lingering
    cdef bint draining
    cdef bint ticking
    cdef bint closed
    cdef int64_t now_ns                 # monotonic, of the round

    cdef inline void touch(self, Connection* c) noexcept nogil:
        """Put a connection on the round's list, and remember where its output of this round begins."""
        if not c.touched and c.state != ConnectionState.CONNECTION_DEAD:
            c.touched = True
            c.mark = c.output.size
            c.replies = 0
            list_push(&self.touched, c)

    cdef void accept(self, Source* listener) noexcept nogil
    cdef void make_ready(self, Connection* c) noexcept nogil
    cdef void flush(self, Connection* c) noexcept nogil
    cdef void watch(self, Connection* c, int interest) noexcept nogil
    cdef void account(self, Connection* c) noexcept nogil
    cdef void drop(self, Connection* c) noexcept nogil
    cdef void drop_idle(self) noexcept nogil
    cdef void append(self, Connection* c, bytes data)
    cdef Client client_of(self, Connection* c)
    cdef object woken(self)
    cdef object reap(self)
    cdef void _admit(self, int descriptor) noexcept nogil
