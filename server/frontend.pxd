"""The tick: all client sockets of a node, served natively."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.coding cimport Buffer
from everwrite.server.client cimport Client
from everwrite.server.commands cimport COMMANDS_MAX, Call, Command, Family
from everwrite.server.connection cimport Connection, ConnectionList, Source
from everwrite.server.cursors cimport Cursors
from everwrite.server.poller cimport POLL_EVENTS_MAX, PollEvent
from everwrite.server.resp cimport Reply
from everwrite.store cimport Store


cdef enum:
    LATENCY_BUCKETS = 18        # the last one is open


cdef struct Counters:
    uint64_t connections_received
    uint64_t connections_rejected
    uint64_t protocol_errors
    uint64_t commands_processed
    uint64_t commands_failed    # answered with MISCONF after a failed commit
    uint64_t bytes_received
    uint64_t bytes_sent
    uint64_t ticks
    uint64_t rounds
    uint64_t commits
    uint64_t calls[COMMANDS_MAX]
    uint64_t family_calls[4]
    uint64_t latency[4][LATENCY_BUCKETS]
    uint64_t latency_sum_ns[4]


@cython.final
cdef class Frontend:
    cdef Store store
    cdef object handler
    cdef object log
    cdef dict clients_by_id
    cdef dict listeners_by_fd
    cdef int poller
    cdef Source wake
    cdef int wake_write
    cdef int spare                      # a descriptor to give up when there are no others, see _accept
    cdef size_t clients_max
    cdef size_t buffer_bytes_max
    cdef size_t buffer_bytes            # of all connections' buffers
    cdef Connection* first
    cdef size_t connected
    cdef uint64_t newest_id
    cdef uint8_t* received              # RECEIVE_BYTES, shared by all connections
    cdef PollEvent events[POLL_EVENTS_MAX]
    cdef ConnectionList touched
    cdef ConnectionList ready
    cdef ConnectionList dead
    cdef ConnectionList handed          # connections whose command goes up to Python, in order
    cdef Buffer handed_args
    cdef Buffer scratch
    cdef Cursors cursors
    cdef Reply reply_writer
    cdef Call call
    cdef Counters counters
    cdef uint64_t round_calls[4]
    cdef size_t lingering
    cdef bint locked
    cdef bint wrote                     # in this tick
    cdef uint64_t seen_timestamp
    cdef uint64_t round_timestamp
    cdef bint store_failed
    cdef bint draining
    cdef bint ticking
    cdef bint closed
    cdef int64_t now_ns

    cdef int _round(self) noexcept nogil
    cdef void _serve(self, int count) noexcept nogil
    cdef bint _rounds(self, int* left) noexcept nogil
    cdef void _finish_round(self) noexcept nogil
    cdef void _count_latency(self, int family, uint64_t calls, int64_t nanoseconds) noexcept nogil
    cdef void _accept(self, Source* listener) noexcept nogil
    cdef void _admit(self, int descriptor) noexcept nogil
    cdef void _receive(self, Connection* c) noexcept nogil
    cdef void _run(self, Connection* c, const uint8_t* data, size_t size) noexcept nogil
    cdef void _execute(self, Connection* c) noexcept nogil
    cdef void _hand_up(self, Connection* c) noexcept nogil
    cdef void _break_off(self, Connection* c, const char* error) noexcept nogil
    cdef void _touch(self, Connection* c) noexcept nogil
    cdef void _make_ready(self, Connection* c) noexcept nogil
    cdef void _flush(self, Connection* c) noexcept nogil
    cdef void _watch(self, Connection* c, int interest) noexcept nogil
    cdef void _account(self, Connection* c) noexcept nogil
    cdef void _close(self, Connection* c) noexcept nogil
    cdef void _drop_idle(self) noexcept nogil
    cdef void _append(self, Connection* c, bytes data)
    cdef Client _client(self, Connection* c)
    cdef int _answer_handed(self) except -1
    cdef object _reap(self)
