"""The sockets of a node's clients: accepted, watched, written to, accounted for, closed. Knows bytes, not commands.

Thread safety: none; everything is called from the thread of the trio loop.
"""

from libc.errno cimport EMFILE, ENFILE, errno
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.unistd cimport close, write

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from everwrite.coding cimport put_bytes
from everwrite.server.client cimport Client
from everwrite.server.connection cimport (
    OUTPUT_SOFT_BYTES_MAX,
    ConnectionState,
    SourceKind,
    connection_bytes,
    connection_free,
    connection_new,
    connection_send,
    list_free,
    list_reserve,
    listener_accept,
    must_wait,
    output_waiting,
    socket_addresses,
    socket_end_output,
    socket_refuse,
    socket_tune,
    unix_ms,
)
from everwrite.server.poller cimport Interest, poller_add, poller_change, poller_open, poller_remove

import os

cdef enum:
    ACCEPTS_MAX = 64
    LINGERING_MAX = 64


cdef class Connections:
    """The clients' sockets and listeners of a `Frontend`, which says what the bytes mean.

    `clients_max` bounds the connections; `buffer_bytes_max` the memory of all their buffers together.
    """

    def __cinit__(self, *serving, clients_max=10000, buffer_bytes_max=1 << 30):
        self.clients_by_id = {}
        self.listeners_by_fd = {}
        self.clients_max = clients_max
        self.buffer_bytes_max = buffer_bytes_max
        self.wake.kind = SourceKind.SOURCE_WAKE
        self.wake.descriptor = self.wake_write = self.poller = self.spare = -1
        self.poller = poller_open()
        if self.poller < 0:
            raise OSError(errno, f"can't make a poller: {os.strerror(errno)}")
        self.wake.descriptor, self.wake_write = os.pipe()
        os.set_blocking(self.wake.descriptor, False)
        os.set_blocking(self.wake_write, False)
        self.spare = open_file(b"/dev/null", O_RDONLY | O_CLOEXEC)
        if poller_add(self.poller, self.wake.descriptor, &self.wake, Interest.WATCH_READ) < 0:
            raise OSError(errno, f"can't watch a pipe: {os.strerror(errno)}")

    def __dealloc__(self):
        cdef Connection* c = self.first
        cdef Connection* after
        while c != NULL:
            after = c.next
            if c.state != ConnectionState.CONNECTION_DEAD:
                close(c.source.descriptor)
            connection_free(c)
            c = after
        for descriptor in (self.poller, self.wake.descriptor, self.wake_write, self.spare):
            if descriptor >= 0:
                close(descriptor)
        list_free(&self.touched)
        list_free(&self.ready)
        list_free(&self.dead)
        list_free(&self.handed)
        list_free(&self.asking)
        list_free(&self.held)

    # -- what the shell calls

    def add_listener(self, sock):
        """Accept clients from a listening socket, which the frontend owns from now on."""
        cdef _Listener listener
        if self.closed or self.draining:
            raise ValueError("the frontend no longer accepts clients")
        sock.setblocking(False)
        listener = _Listener()
        listener.sock = sock
        listener.source.kind = SourceKind.SOURCE_LISTENER
        listener.source.descriptor = sock.fileno()
        if poller_add(self.poller, listener.source.descriptor, &listener.source, Interest.WATCH_READ) < 0:
            raise OSError(errno, f"can't watch the listening socket: {os.strerror(errno)}")
        self.listeners_by_fd[listener.source.descriptor] = listener

    def fileno(self):
        """The descriptor that is readable while `tick` has something to do."""
        return self.poller

    def reply(self, uint64_t client_id, bytes data not None):
        """Give the answer that the handler owed to a client. False when the client is gone or is owed none."""
        cdef Client client = self.clients_by_id.get(client_id)
        if client is None or client.closed or not client.connection.deferred:
            return False
        client.connection.deferred = False
        self.append(client.connection, data)
        self.flush(client.connection)
        self.make_ready(client.connection)
        self.woken()
        return True

    def wake_up(self):
        """Make `fileno` readable, so that there is a tick."""
        if not self.closed and write(self.wake_write, b"w", 1) < 0:
            # The pipe is full: the poller is readable as it is.
            pass

    def close_client(self, uint64_t client_id):
        """Close a connection at once. False when there is none with this id."""
        cdef Connection* c = self.first
        while c != NULL:
            if c.id == client_id and c.state != ConnectionState.CONNECTION_DEAD:
                self.drop(c)
                if not self.ticking:
                    self.reap()
                return True
            c = c.next
        return False

    def drain(self):
        """Stop accepting. The following ticks answer what was received and close each connection that is quiet."""
        if self.draining or self.closed:
            return
        self.draining = True
        self._close_listeners()
        write(self.wake_write, b"w", 1)

    def close_all(self):
        """Close every connection and listener at once. Idempotent; the descriptor of `fileno` goes with it."""
        cdef Connection* c = self.first
        if self.closed:
            return
        self.draining = True
        self._close_listeners()
        while c != NULL:
            self.drop(c)
            c = c.next
        self.reap()
        self.closed = True
        close(self.poller)
        self.poller = -1

    @property
    def connected_clients(self):
        """Number of open connections; 0 ends a drain."""
        return self.connected

    def clients(self):
        """The connected clients, a list."""
        cdef Connection* c = self.first
        found = []
        while c != NULL:
            if c.state == ConnectionState.CONNECTION_OPEN:
                found.append(self.client_of(c))
            c = c.next
        return found

    # -- connections

    cdef void accept(self, Source* listener) noexcept nogil:
        cdef int descriptor, _i
        for _i in range(ACCEPTS_MAX):
            descriptor = listener_accept(listener.descriptor)
            if descriptor < 0:
                if (errno == EMFILE or errno == ENFILE) and self.spare >= 0:
                    # Out of descriptors: give one up to tell the client, or the listener would stay
                    # readable and keep the loop busy.
                    close(self.spare)
                    descriptor = listener_accept(listener.descriptor)
                    if descriptor >= 0:
                        self.traffic.connections_rejected += 1
                        socket_refuse(descriptor, b"-ERR max number of clients reached\r\n")
                    self.spare = open_file(b"/dev/null", O_RDONLY | O_CLOEXEC)
                return
            self._admit(descriptor)

    cdef void _admit(self, int descriptor) noexcept nogil:
        cdef Connection* c = NULL
        cdef size_t needed = self.connected + self.dead.size + 1
        if self.connected >= self.clients_max:
            self.traffic.connections_rejected += 1
            socket_refuse(descriptor, b"-ERR max number of clients reached\r\n")
            return
        # A connection becomes ready at most once while the ready ones are being run, hence twice.
        if (
            list_reserve(&self.touched, needed) == 0
            and list_reserve(&self.ready, 2 * needed) == 0
            and list_reserve(&self.dead, needed) == 0
            and list_reserve(&self.handed, needed) == 0
            and list_reserve(&self.asking, needed) == 0
            and list_reserve(&self.held, needed) == 0
        ):
            c = connection_new(descriptor, self.newest_id + 1)
        if c == NULL or poller_add(self.poller, descriptor, c, Interest.WATCH_READ) < 0:
            self.traffic.connections_rejected += 1
            socket_refuse(descriptor, b"-ERR out of memory\r\n")
            if c != NULL:
                connection_free(c)
            return
        self.newest_id += 1
        self.traffic.connections_received += 1
        c.interest = Interest.WATCH_READ
        c.created_ms = unix_ms()
        c.active_ns = self.now_ns
        socket_tune(descriptor)
        socket_addresses(descriptor, c.peer, c.local)
        c.next = self.first
        if self.first != NULL:
            self.first.previous = c
        self.first = c
        self.connected += 1

    cdef void make_ready(self, Connection* c) noexcept nogil:
        """Go on with what a connection has buffered, without waiting for its socket."""
        if c.state != ConnectionState.CONNECTION_OPEN or must_wait(c) or c.paused:
            return
        self.watch(c, c.interest | Interest.WATCH_READ)
        if c.input.size and not c.ready:
            c.ready = True
            list_push(&self.ready, c)

    cdef void watch(self, Connection* c, int interest) noexcept nogil:
        if c.interest != interest:
            if poller_change(self.poller, c.source.descriptor, c, interest) < 0:
                self.drop(c)
                return
            c.interest = interest

    cdef void account(self, Connection* c) noexcept nogil:
        cdef size_t now = connection_bytes(c)
        self.buffer_bytes += now - c.accounted
        c.accounted = now

    cdef void drop(self, Connection* c) noexcept nogil:
        if c.state == ConnectionState.CONNECTION_DEAD:
            return
        if c.state == ConnectionState.CONNECTION_LINGERING:
            self.lingering -= 1
        c.state = ConnectionState.CONNECTION_DEAD
        close(c.source.descriptor)
        self.buffer_bytes -= c.accounted
        c.accounted = 0
        self.connected -= 1
        list_push(&self.dead, c)

    cdef void drop_idle(self) noexcept nogil:
        """While draining: close the connections that have nothing in flight."""
        cdef Connection* c = self.first
        while c != NULL:
            if not must_wait(c) and not c.ready and output_waiting(c) == 0:
                self.drop(c)
            c = c.next

    cdef void flush(self, Connection* c) noexcept nogil:
        """Send what waits, and watch for what the connection's state makes of the rest."""
        cdef size_t before = output_waiting(c)
        cdef int sent
        if c.held:
            self.watch(c, c.interest & ~Interest.WATCH_WRITE)
            return
        sent = connection_send(c)
        if sent < 0:
            self.drop(c)
            return
        self.traffic.bytes_sent += before - output_waiting(c)
        self.account(c)
        if c.paused and output_waiting(c) <= OUTPUT_SOFT_BYTES_MAX // 2:
            c.paused = False
            self.make_ready(c)
        if sent == 0:
            self.watch(c, c.interest | Interest.WATCH_WRITE)
        elif c.state == ConnectionState.CONNECTION_CLOSING:
            # Closing a socket with unread input resets it, and the peer may lose the reply: shut our
            # half, and throw away what comes until the peer closes too.
            if self.lingering >= LINGERING_MAX:
                self.drop(c)
                return
            self.lingering += 1
            c.state = ConnectionState.CONNECTION_LINGERING
            socket_end_output(c.source.descriptor)
            self.watch(c, Interest.WATCH_READ)
        elif c.interest & Interest.WATCH_WRITE:
            self.watch(c, c.interest & ~Interest.WATCH_WRITE)

    # -- Python's part

    cdef Client client_of(self, Connection* c):
        cdef Client client = self.clients_by_id.get(c.id)
        if client is None:
            client = Client.__new__(Client)
            client.connection = c
            client.id = c.id
            client.address = (<bytes>c.peer).decode()
            client.local_address = (<bytes>c.local).decode()
            client.created = c.created_ms / 1000
            client.name = client.lib_name = client.lib_version = ""
            self.clients_by_id[c.id] = client
        return client

    cdef void append(self, Connection* c, bytes data):
        if put_bytes(&c.output, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)) < 0:
            self.drop(c)
        else:
            self.account(c)

    cdef object woken(self):
        """Outside of a tick, connections may have become ready: let there be one."""
        if not self.ticking:
            if self.ready.size or self.draining:
                self.wake_up()
            self.reap()

    cdef object reap(self):
        """Free the connections that died, when no list holds them any more."""
        cdef size_t i, kept = 0, waiting = 0
        cdef Connection* c
        cdef Client client
        if self.dead.size == 0:
            return
        for i in range(self.ready.size):
            if self.ready.items[i].state != ConnectionState.CONNECTION_DEAD:
                self.ready.items[kept] = self.ready.items[i]
                kept += 1
        self.ready.size = kept
        for i in range(self.dead.size):
            c = self.dead.items[i]
            if c.asking or c.held:
                # A list holds it until its answer comes or is given up.
                self.dead.items[waiting] = c
                waiting += 1
                continue
            client = self.clients_by_id.pop(c.id, None)
            if client is not None:
                client.connection = NULL
            if c.previous != NULL:
                c.previous.next = c.next
            else:
                self.first = c.next
            if c.next != NULL:
                c.next.previous = c.previous
            connection_free(c)
        self.dead.size = waiting

    def _close_listeners(self):
        cdef _Listener listener
        for listener in self.listeners_by_fd.values():
            poller_remove(self.poller, listener.source.descriptor)
            listener.sock.close()
        self.listeners_by_fd.clear()


cdef class _Listener:
    # The poller holds the address of `source`: the object lives as long as it is watched.
    cdef Source source
    cdef object sock
