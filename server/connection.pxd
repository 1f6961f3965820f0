"""One client's socket with its buffers. Knows bytes, not commands.

Invariants: output[sent:] is what the peer hasn't been given; input is what isn't parsed yet, from
the start of a command; a DEAD connection's descriptor is closed and its memory lives until it is reaped.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.coding cimport Buffer
from everwrite.server.resp cimport Parser


cdef enum SourceKind:
    SOURCE_CLIENT = 0
    SOURCE_LISTENER = 1
    SOURCE_WAKE = 2


cdef enum ConnectionState:
    CONNECTION_OPEN = 0
    CONNECTION_CLOSING = 1      # closed once the output is sent; nothing more is read
    CONNECTION_LINGERING = 2    # our half is shut; what still comes is thrown away, so that the last reply isn't
    CONNECTION_DEAD = 3


cdef enum:
    RECEIVE_BYTES = 64 << 10
    OUTPUT_SOFT_BYTES_MAX = 1 << 20     # above it a client's commands wait until it has read
    KEPT_BUFFER_BYTES = 16 << 10        # larger buffers are given back when they are empty
    LINGER_BYTES_MAX = 1 << 20
    ADDRESS_BYTES = 64


cdef struct Source:
    # What the poller's events point to; the first field of every kind.
    int kind
    int descriptor


cdef struct Connection:
    Source source
    uint64_t id
    int state
    int protocol                # 2 or 3
    int interest                # what the poller watches
    bint deferred               # Python owes a reply; later commands wait
    bint handed                 # that command still waits for its turn in this tick
    bint paused                 # too much output waits; later commands wait
    bint touched                # in the round's list of connections to send to
    bint ready                  # in the list of connections to go on with unasked
    size_t mark                 # output.size when the round touched it
    uint64_t replies            # of this round
    Parser parser
    Buffer input
    Buffer output
    size_t sent
    size_t discarded            # bytes thrown away while lingering
    size_t accounted            # of its buffers, in the frontend's total
    uint64_t last_write_timestamp
    int level                   # consistency level, 0: the frontend's
    bint asking                 # the commands at its head wait until other replicas have answered
    bint held                   # its replies wait until other replicas have acknowledged its writes
    int refusal                 # why the commands of `credit` are refused, 0: they run
    uint64_t ask_number         # of the question that it waits for
    size_t credit               # commands at its head that the replicas have answered for
    size_t answers_received     # by which it was refused
    uint64_t held_timestamp     # up to which its replies tell of updates that are to be acknowledged, 0: none
    int held_level              # at which
    Buffer spans                # of `output`, the replies to writes that wait: pairs of size_t, start and end
    int64_t limit_ns            # how long its next command may wait, 0: as long as any
    int64_t deadline_ns         # monotonic time at which what it has asked for is given up, 0: nothing
    int64_t held_deadline_ns    # the same for replies that are held
    int64_t created_ms          # Unix
    int64_t active_ns           # monotonic time of the newest bytes received
    uint64_t commands
    int last_command            # index into the command table, -1: none yet
    char peer[ADDRESS_BYTES]
    char local[ADDRESS_BYTES]
    Connection* previous
    Connection* next


cdef struct ConnectionList:
    # Grown when connections are made, so that adding one that isn't in it can't fail.
    Connection** items
    size_t size
    size_t capacity


cdef inline bint must_wait(const Connection* c) noexcept nogil:
    """Whether the commands that it sends wait their turn."""
    return c.deferred or c.asking or c.held


cdef Connection* connection_new(int descriptor, uint64_t id) noexcept nogil        # NULL: out of memory
cdef void connection_free(Connection* c) noexcept nogil
cdef size_t connection_bytes(const Connection* c) noexcept nogil                   # memory of its buffers
cdef inline size_t output_waiting(const Connection* c) noexcept nogil:
    return c.output.size - c.sent

# One send(2) of what waits. 1: all sent, 0: the socket is full, -1: the connection is gone.
cdef int connection_send(Connection* c) noexcept nogil
# One recv(2). The number of bytes, 0 when there are none now, -1 at the end or on failure.
cdef int64_t socket_receive(int descriptor, void* data, size_t size) noexcept nogil
cdef bint socket_ended(int descriptor) noexcept nogil          # the peer is gone and has sent nothing more
cdef bint socket_broken(int descriptor) noexcept nogil         # nothing can be sent to the peer any more
# Drop `used` bytes at the front of the input, and the memory of a large one that is empty.
cdef void input_drop(Connection* c, size_t used) noexcept nogil

cdef int listener_accept(int listener) noexcept nogil          # a non-blocking descriptor, or -1 with errno
cdef void socket_tune(int descriptor) noexcept nogil
cdef void socket_addresses(int descriptor, char* peer, char* local) noexcept nogil
cdef void socket_end_output(int descriptor) noexcept nogil
cdef void socket_refuse(int descriptor, const char* reply) noexcept nogil          # best effort, then close

cdef int64_t monotonic_ns() noexcept nogil
cdef int64_t unix_ms() noexcept nogil

cdef int list_reserve(ConnectionList* list_, size_t capacity) noexcept nogil       # -1: out of memory
cdef void list_free(ConnectionList* list_) noexcept nogil
cdef inline void list_push(ConnectionList* list_, Connection* c) noexcept nogil:
    list_.items[list_.size] = c
    list_.size += 1
