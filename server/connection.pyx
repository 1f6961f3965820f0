"""One client's socket with its buffers. Knows bytes, not commands."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove, strlen
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close

from everwrite.coding cimport buffer_free, buffer_init
from everwrite.server.resp cimport Slice, parser_free, parser_init


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t

    cdef struct sockaddr:
        unsigned short sa_family

    cdef struct sockaddr_storage:
        unsigned short ss_family

    int accept4(int listener, sockaddr* address, socklen_t* size, int flags)
    ssize_t recv(int descriptor, void* data, size_t size, int flags)
    ssize_t send(int descriptor, const void* data, size_t size, int flags)
    int shutdown(int descriptor, int how)
    int setsockopt(int descriptor, int level, int option, const void* value, socklen_t size)
    int getpeername(int descriptor, sockaddr* address, socklen_t* size)
    int getsockname(int descriptor, sockaddr* address, socklen_t* size)
    int AF_INET, AF_INET6, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_KEEPALIVE
    int MSG_NOSIGNAL, MSG_DONTWAIT, MSG_PEEK, SHUT_WR

cdef extern from "<netinet/in.h>" nogil:
    cdef struct sockaddr_in:
        uint16_t sin_port
        int sin_addr

    cdef struct sockaddr_in6:
        uint16_t sin6_port
        int sin6_addr

    uint16_t ntohs(uint16_t value)
    int IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY, TCP_KEEPIDLE

cdef extern from "<arpa/inet.h>" nogil:
    const char* inet_ntop(int family, const void* address, char* text, socklen_t size)

# Seconds of silence after which the kernel asks whether the peer still lives.
cdef int KEEPALIVE_SECONDS = 300
# More at a time would only fill the socket's buffer.
cdef size_t SEND_BYTES_MAX = 1 << 20


cdef Connection* connection_new(int descriptor, uint64_t id) noexcept nogil:
    cdef Connection* c = <Connection*>calloc(1, sizeof(Connection))
    if c == NULL:
        return NULL
    c.source.kind = SourceKind.SOURCE_CLIENT
    c.source.descriptor = descriptor
    c.id = id
    c.protocol = 2
    c.last_command = -1
    parser_init(&c.parser)
    buffer_init(&c.input)
    buffer_init(&c.output)
    buffer_init(&c.spans)
    return c


cdef void connection_free(Connection* c) noexcept nogil:
    parser_free(&c.parser)
    buffer_free(&c.input)
    buffer_free(&c.output)
    buffer_free(&c.spans)
    free(c)


cdef size_t connection_bytes(const Connection* c) noexcept nogil:
    return (
        c.input.capacity + c.output.capacity + c.spans.capacity
        + c.parser.words.capacity + c.parser.capacity * sizeof(Slice)
    )


cdef int connection_send(Connection* c) noexcept nogil:
    cdef size_t waiting = output_waiting(c)
    cdef ssize_t count = 0
    if waiting:
        count = send(
            c.source.descriptor,
            c.output.data + c.sent,
            waiting if waiting < SEND_BYTES_MAX else SEND_BYTES_MAX,
            MSG_NOSIGNAL | MSG_DONTWAIT,
        )
        if count < 0:
            return 0 if errno == EAGAIN or errno == EINTR else -1
        c.sent += count
    if c.sent < c.output.size:
        if c.sent > OUTPUT_SOFT_BYTES_MAX and c.sent > c.output.size // 2:
            memmove(c.output.data, c.output.data + c.sent, c.output.size - c.sent)
            c.output.size -= c.sent
            c.sent = 0
        return 0
    c.sent = 0
    c.output.size = 0
    if c.output.capacity > KEPT_BUFFER_BYTES:
        buffer_free(&c.output)
    return 1


cdef int64_t socket_receive(int descriptor, void* data, size_t size) noexcept nogil:
    cdef ssize_t count = recv(descriptor, data, size, MSG_DONTWAIT)
    if count > 0:
        return count
    if count < 0 and (errno == EAGAIN or errno == EINTR):
        return 0
    return -1


cdef bint socket_ended(int descriptor) noexcept nogil:
    cdef char byte
    cdef ssize_t count = recv(descriptor, &byte, 1, MSG_DONTWAIT | MSG_PEEK)
    return count == 0 or (count < 0 and errno != EAGAIN and errno != EINTR)


cdef bint socket_broken(int descriptor) noexcept nogil:
    cdef char byte
    return recv(descriptor, &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0 and errno != EAGAIN and errno != EINTR


cdef void input_drop(Connection* c, size_t used) noexcept nogil:
    if used and used < c.input.size:
        memmove(c.input.data, c.input.data + used, c.input.size - used)
    c.input.size -= used
    if c.input.size == 0 and c.input.capacity > KEPT_BUFFER_BYTES:
        buffer_free(&c.input)


cdef int listener_accept(int listener) noexcept nogil:
    return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)


cdef void socket_tune(int descriptor) noexcept nogil:
    """No delay for small replies, and keep-alive; a socket that takes neither (a Unix one) works all the same."""
    cdef int on = 1
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
    if setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) == 0:
        setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, &KEEPALIVE_SECONDS, sizeof(KEEPALIVE_SECONDS))


cdef void _address_text(const sockaddr_storage* address, char* text) noexcept nogil:
    cdef char host[ADDRESS_BYTES]
    host[0] = 0
    if address.ss_family == AF_INET:
        inet_ntop(AF_INET, &(<const sockaddr_in*>address).sin_addr, host, sizeof(host))
        snprintf(text, ADDRESS_BYTES, b"%s:%d", host, <int>ntohs((<const sockaddr_in*>address).sin_port))
    elif address.ss_family == AF_INET6:
        inet_ntop(AF_INET6, &(<const sockaddr_in6*>address).sin6_addr, host, sizeof(host))
        snprintf(text, ADDRESS_BYTES, b"[%s]:%d", host, <int>ntohs((<const sockaddr_in6*>address).sin6_port))
    else:
        snprintf(text, ADDRESS_BYTES, b"local")


cdef void socket_addresses(int descriptor, char* peer, char* local) noexcept nogil:
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(address)
    address.ss_family = 0
    getpeername(descriptor, <sockaddr*>&address, &size)
    _address_text(&address, peer)
    size = sizeof(address)
    address.ss_family = 0
    getsockname(descriptor, <sockaddr*>&address, &size)
    _address_text(&address, local)


cdef void socket_end_output(int descriptor) noexcept nogil:
    shutdown(descriptor, SHUT_WR)


cdef void socket_refuse(int descriptor, const char* reply) noexcept nogil:
    send(descriptor, reply, strlen(reply), MSG_NOSIGNAL | MSG_DONTWAIT)
    close(descriptor)


cdef int list_reserve(ConnectionList* list_, size_t capacity) noexcept nogil:
    cdef Connection** grown
    if capacity <= list_.capacity:
        return 0
    if capacity < 2 * list_.capacity:
        capacity = 2 * list_.capacity
    grown = <Connection**>realloc(list_.items, capacity * sizeof(Connection*))
    if grown == NULL:
        return -1
    list_.items = grown
    list_.capacity = capacity
    return 0


cdef void list_free(ConnectionList* list_) noexcept nogil:
    free(list_.items)
    list_.items = NULL
    list_.size = 0
    list_.capacity = 0


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef int64_t unix_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000
