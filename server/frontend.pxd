"""The tick: all client sockets of a node, served natively."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.coding cimport Buffer
from everwrite.server.commands cimport COMMANDS_MAX, Call, Command, Family
from everwrite.server.connection cimport Connection
from everwrite.server.cursors cimport Cursors
from everwrite.server.levels cimport LeveledConnections
from everwrite.server.resp cimport Reply
from everwrite.server.poller cimport POLL_EVENTS_MAX, PollEvent


cdef enum:
    LATENCY_BUCKETS = 18        # the last one is open


cdef struct Counters:
    uint64_t protocol_errors
    uint64_t commands_processed
    uint64_t commands_failed    # answered with MISCONF after a failed commit
    uint64_t bytes_received
    uint64_t ticks
    uint64_t rounds
    uint64_t commits
    uint64_t calls[COMMANDS_MAX]
    uint64_t family_calls[4]
    uint64_t latency[4][LATENCY_BUCKETS]
    uint64_t latency_sum_ns[4]


@cython.final
cdef class Frontend(LeveledConnections):
    cdef object handler
    cdef object log
    cdef uint8_t* received              # RECEIVE_BYTES, shared by all connections
    cdef PollEvent events[POLL_EVENTS_MAX]
    cdef Buffer handed_args
    cdef Buffer scratch
    cdef Cursors cursors
    cdef Call call
    cdef Counters counters
    cdef uint64_t round_calls[4]
    cdef bint locked
    cdef bint wrote                     # in this tick
    cdef uint64_t seen_timestamp
    cdef uint64_t round_timestamp
    cdef bint store_failed

    cdef int _round(self) noexcept nogil
    cdef void _serve(self, int count) noexcept nogil
    cdef bint _rounds(self, int* left) noexcept nogil
    cdef void _finish_round(self) noexcept nogil
    cdef void _count_latency(self, int family, uint64_t calls, int64_t nanoseconds) noexcept nogil
    cdef void _receive(self, Connection* c) noexcept nogil
    cdef void _run(self, Connection* c, const uint8_t* data, size_t size) noexcept nogil
    cdef void _lock(self) noexcept nogil
    cdef Reply* _begin_reply(self, Connection* c) noexcept nogil
    cdef bint _may_run(self, Connection* c, const uint8_t* data, size_t size) noexcept nogil
    cdef void _execute(self, Connection* c) noexcept nogil
    cdef void _hand_up(self, Connection* c) noexcept nogil
    cdef void _break_off(self, Connection* c, const char* error) noexcept nogil
    cdef int _answer_handed(self) except -1
