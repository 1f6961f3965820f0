"""A connected client as Python sees it."""

cimport cython
from libc.stdint cimport int64_t

from everwrite.server.connection cimport ConnectionState, monotonic_ns

from everwrite.server.commands import TABLE as _TABLE


@cython.final
cdef class Client:
    """A connected Redis client, as Python sees it; made when a command of it first goes up to Python.

    Attributes: `id`; `name`, `lib_name`, `lib_version` (set by CLIENT SETNAME and SETINFO, "" until
    then); `address` and `local_address` ("host:port"); `created` (Unix seconds).
    """

    def __init__(self):
        raise TypeError("clients are made by a Frontend")

    @property
    def closed(self):
        """Whether the connection is gone; its other properties keep their last sense or are zero."""
        return self.connection == NULL or self.connection.state == ConnectionState.CONNECTION_DEAD

    @property
    def protocol(self):
        """The RESP version that replies are written in: 2 or 3."""
        return self.connection.protocol if self.connection != NULL else 2

    @protocol.setter
    def protocol(self, int version):
        if version not in (2, 3):
            raise ValueError(f"RESP version {version}: 2 and 3 are known")
        if self.connection != NULL:
            self.connection.protocol = version

    @property
    def last_write_timestamp(self):
        """The store's timestamp after this connection's newest write, 0 before the first."""
        return self.connection.last_write_timestamp if self.connection != NULL else 0

    @property
    def level(self):
        """The consistency level that the connection asked for (a number of `consistency.Level`), 0: none."""
        return self.connection.level if self.connection != NULL else 0

    @level.setter
    def level(self, int level):
        if self.connection != NULL:
            self.connection.level = level

    @property
    def limit_seconds(self):
        """How long the next command may wait for other replicas, 0: as long as any."""
        return self.connection.limit_ns / 1e9 if self.connection != NULL else 0.0

    @limit_seconds.setter
    def limit_seconds(self, double seconds):
        if self.connection != NULL:
            self.connection.limit_ns = <int64_t>(seconds * 1e9)

    @property
    def commands(self):
        """Number of commands that the connection has sent."""
        return self.connection.commands if self.connection != NULL else 0

    @property
    def last_command(self):
        """Name of the newest known command, or ""."""
        if self.connection == NULL or self.connection.last_command < 0:
            return ""
        return _TABLE[self.connection.last_command].name

    @property
    def idle_seconds(self):
        """Seconds since the connection last sent anything."""
        if self.connection == NULL:
            return 0.0
        return (monotonic_ns() - self.connection.active_ns) / 1e9

    @property
    def deferred(self):
        """Whether a reply is owed by `Frontend.reply`."""
        return self.connection != NULL and bool(self.connection.deferred)

    @property
    def buffer_bytes(self):
        """Memory of the connection's buffers: (input, output)."""
        if self.connection == NULL:
            return (0, 0)
        return (self.connection.input.capacity, self.connection.output.capacity)

    @property
    def descriptor(self):
        """The socket's file descriptor, or -1."""
        return -1 if self.closed else self.connection.source.descriptor

    def close_after_reply(self):
        """Close the connection once its output is sent, with the reply to the current command."""
        if self.connection != NULL and self.connection.state == ConnectionState.CONNECTION_OPEN:
            self.connection.state = ConnectionState.CONNECTION_CLOSING
