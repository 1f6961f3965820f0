"""The tick: all client sockets of a node, served natively.

One call of `Frontend.tick` runs a few rounds. A round takes the sockets that are ready,
receives, parses and executes under one lock of the store, commits once, and only then sends
the replies. Commands that need Python end the round; they are handed up in order, and a
connection whose command is up there waits with its later ones.

Thread safety: none; everything is called from the thread of the trio loop. The store may be used by
other threads meanwhile.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset, strlen
from posix.unistd cimport read

from cpython.bytes cimport PyBytes_FromStringAndSize

from everwrite.coding cimport (
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_reserve,
    buffer_slice,
    get_slice,
    get_varint,
    put_bytes,
    put_slice,
    put_varint,
    reader_of,
)
from everwrite.server.commands cimport check_call, find_command, reply_unknown, run_command
from everwrite.server.connection cimport (
    KEPT_BUFFER_BYTES,
    LINGER_BYTES_MAX,
    OUTPUT_SOFT_BYTES_MAX,
    RECEIVE_BYTES,
    ConnectionState,
    Source,
    SourceKind,
    input_drop,
    list_push,
    monotonic_ns,
    must_wait,
    output_waiting,
    socket_broken,
    socket_ended,
    socket_receive,
    unix_ms,
)
from everwrite.server.cursors cimport cursors_free, cursors_init
from everwrite.server.levels cimport LeveledConnections
from everwrite.server.lookahead cimport Lookahead, look_ahead
from everwrite.server.poller cimport Interest, poller_pause, poller_take
from everwrite.server.replies cimport is_word, reply_status
from everwrite.server.resp cimport REPLY_BYTES_MAX, Parsed, Reply, parser_next, reply_error, reply_raw
from everwrite.status cimport Status
from everwrite.store cimport Store

import logging

from everwrite.server.commands import TABLE as _TABLE
from everwrite.server.resp import Error, encode

cdef enum:
    ROUNDS_MAX = 32
    TICK_NS_MAX = 2000000
    # A client that was just answered asks again at once, or not at all. Waiting here for this long costs less
    # than the outer loop's turn, which takes about as much of the processor as five requests.
    PAUSE_NS = 50000
    COMMANDS_PER_TURN_MAX = 1024        # of one connection, before the others get theirs
    GATHERS_MAX = 4
    HANDED_BYTES_MAX = 1 << 20          # arguments of one command that goes up to Python
    REPLY_BYTES_MIN = 1 << 20           # room for a reply that is left even when all buffers are full

TICK_WROTE = 1
TICK_MORE = 2

FAMILIES = ("read", "write", "connection", "control")
# Upper bounds in seconds; the last bucket is open.
LATENCY_BOUNDS = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)
cdef int64_t latency_bounds_ns[LATENCY_BUCKETS]
for _bucket in range(LATENCY_BUCKETS - 1):
    latency_bounds_ns[_bucket] = int(LATENCY_BOUNDS[_bucket] * 1e9)


@cython.final
cdef class Frontend(LeveledConnections):
    """Serves Redis clients from a store.

    `handler(client, args)` answers the commands that need Python: it gets the command's
    arguments (a list of bytes, the name first) and returns the encoded reply, or `None`
    when `reply` will be called later. It must not block. An exception of it is logged and
    answered with an error.

    `clients_max` bounds the connections; `buffer_bytes_max` the memory of all their buffers together.
    """

    def __cinit__(self, Store store not None, handler, **limits):
        self.store = store
        self.handler = handler
        self.log = logging.getLogger("everwrite.frontend")
        buffer_init(&self.handed_args)
        buffer_init(&self.scratch)
        self.received = <uint8_t*>malloc(RECEIVE_BYTES)
        if self.received == NULL or cursors_init(&self.cursors, unix_ms()) < 0:
            raise MemoryError("out of memory")

    def __dealloc__(self):
        buffer_free(&self.handed_args)
        buffer_free(&self.scratch)
        cursors_free(&self.cursors)
        free(self.received)

    # -- what the shell calls

    def tick(self):
        """Serve what is ready. Returns a bit mask: TICK_WROTE, TICK_MORE (call again without waiting)."""
        cdef int left = ROUNDS_MAX
        cdef bint more = True
        if self.closed:
            return 0
        if self.ticking:
            raise RuntimeError("tick called from within a tick")
        self.ticking = True
        self.wrote = False
        self.counters.ticks += 1
        try:
            while more and left > 0:
                with nogil:
                    more = self._rounds(&left)
                if self.handed.size:
                    self._answer_handed()
                    more = True
                self.send_questions()
        finally:
            self.ticking = False
            self.reap()
        return (TICK_WROTE if self.wrote else 0) | (TICK_MORE if more or self.ready.size else 0)

    @property
    def failed(self):
        """Whether a commit failed: from then on data commands are answered with MISCONF."""
        return bool(self.store_failed)

    def statistics(self):
        """Counters and gauges: integers by name, and `commands`, calls by command name (those called only)."""
        cdef Connection* c = self.first
        blocked = 0
        while c != NULL:
            blocked += c.deferred and not c.handed and c.state == ConnectionState.CONNECTION_OPEN
            c = c.next
        return {
            "connected_clients": self.connected,
            "blocked_clients": blocked,
            "clients_max": self.clients_max,
            "failed": int(self.store_failed),
            "connections_received": self.traffic.connections_received,
            "connections_rejected": self.traffic.connections_rejected,
            "commands_processed": self.counters.commands_processed,
            "commands_failed": self.counters.commands_failed,
            "protocol_errors": self.counters.protocol_errors,
            "bytes_received": self.counters.bytes_received,
            "bytes_sent": self.traffic.bytes_sent,
            "buffer_bytes": self.buffer_bytes,
            "keyspace_hits": self.call.hits,
            "keyspace_misses": self.call.misses,
            "scan_cursors": self.cursors.used,
            "ticks": self.counters.ticks,
            "rounds": self.counters.rounds,
            "commits": self.counters.commits,
            **self.level_statistics(),
            "commands": {
                info.name: self.counters.calls[index] for index, info in enumerate(_TABLE) if self.counters.calls[index]
            },
        }

    def latency(self):
        """Time from a command's readiness on the socket to its reply's send, by family of commands.

        Returns (bounds, counts): upper bounds of the buckets in seconds, and per family ("read",
        "write", "connection", "control") a list of counts, one more than bounds (the last is open),
        not cumulative. A round's commands share its time.
        """
        counts = {
            name: [self.counters.latency[family][bucket] for bucket in range(LATENCY_BUCKETS)]
            for family, name in enumerate(FAMILIES)
        }
        return LATENCY_BOUNDS, counts

    def latency_sums(self):
        """Total seconds by family of commands, to go with `latency`."""
        return {name: self.counters.latency_sum_ns[family] / 1e9 for family, name in enumerate(FAMILIES)}

    # -- rounds

    cdef bint _rounds(self, int* left) noexcept nogil:
        """Run rounds until nothing is ready (False), or the limits are reached or Python is needed (True)."""
        cdef int64_t start = monotonic_ns()
        cdef bint served = False
        while left[0] > 0:
            left[0] -= 1
            if self._round() == 0:
                if self.draining:
                    self.drop_idle()
                    return False
                if not served or not poller_pause(self.poller, PAUSE_NS):
                    return False
                served = False
                continue
            served = True
            if self.handed.size or self.now_ns - start > TICK_NS_MAX:
                return True
        return True

    cdef int _round(self) noexcept nogil:
        """Receive, execute, commit, send. Returns how many sources had work."""
        cdef int count, more, gathered = 0
        cdef size_t r, resumed
        cdef Connection* c
        count = poller_take(self.poller, self.events, POLL_EVENTS_MAX)
        if count < 0:
            count = 0
        resumed = self.ready.size
        if count == 0 and resumed == 0:
            return 0
        self.counters.rounds += 1
        self.now_ns = monotonic_ns()
        memset(self.round_calls, 0, sizeof(self.round_calls))
        # Those that become ready again in this round are for the next one.
        for r in range(resumed):
            c = self.ready.items[r]
            c.ready = False
            if c.state == ConnectionState.CONNECTION_OPEN and not must_wait(c):
                self._run(c, c.input.data, c.input.size)
        if resumed:
            for r in range(resumed, self.ready.size):
                self.ready.items[r - resumed] = self.ready.items[r]
            self.ready.size -= resumed
        self._serve(count)
        # A commit costs far more than a look at the poller: let those join it that have become ready meanwhile.
        while gathered < GATHERS_MAX and self.locked and self.store.last_timestamp() != self.round_timestamp:
            more = poller_take(self.poller, self.events, POLL_EVENTS_MAX)
            if more <= 0:
                break
            self._serve(more)
            count += more
            gathered += 1
        self._finish_round()
        return count + <int>resumed

    cdef void _serve(self, int count) noexcept nogil:
        """Handle the first `count` events that the poller reported."""
        cdef int i
        cdef Source* source
        cdef Connection* c
        cdef char drained[64]
        for i in range(count):
            source = <Source*>self.events[i].owner
            if source.kind == SourceKind.SOURCE_CLIENT:
                c = <Connection*>source
                if self.events[i].writable:
                    self.touch(c)
                if self.events[i].readable:
                    self._receive(c)
            elif source.kind == SourceKind.SOURCE_LISTENER:
                self.accept(source)
            else:
                while read(source.descriptor, drained, sizeof(drained)) == <ssize_t>sizeof(drained):
                    pass

    cdef void _finish_round(self) noexcept nogil:
        """Commit what the round wrote, then send its replies."""
        cdef size_t i
        cdef uint64_t _n
        cdef int family, status = Status.OK
        cdef int64_t elapsed
        cdef Connection* c
        cdef bint wrote
        if self.locked:
            wrote = self.store.last_timestamp() != self.round_timestamp
            self.store.unlock()
            self.locked = False
            if wrote:
                self.wrote = True
                self.counters.commits += 1
                status = self.store.commit()
                if status < 0:
                    # Without space the log gets it later: this round is answered as failed, but not those to come.
                    self.store_failed = self.store.failed != 0 or self.store.refused == Status.ERR_FAILED
                    status = Status.ERR_FAILED
        for i in range(self.touched.size):
            c = self.touched.items[i]
            c.touched = False
            if c.state == ConnectionState.CONNECTION_DEAD:
                continue
            if status < 0 and c.replies:
                # Reads of this round may have seen what is not durable: none of its replies goes out.
                c.output.size = c.mark
                self.reply_writer.out = &c.output
                self.reply_writer.failed = 0
                self.reply_writer.limit = c.output.size + REPLY_BYTES_MAX
                self.counters.commands_failed += c.replies
                for _n in range(c.replies):
                    reply_status(&self.reply_writer, status)
                c.spans.size = 0
                self.let_go(c)
                if self.reply_writer.failed:
                    self.drop(c)
                    continue
            self.hold(c)
            self.flush(c)
        self.touched.size = 0
        elapsed = monotonic_ns() - self.now_ns
        for family in range(<int>Family.FAMILY_CONTROL):
            if self.round_calls[family]:
                self._count_latency(family, self.round_calls[family], elapsed)

    cdef void _count_latency(self, int family, uint64_t calls, int64_t nanoseconds) noexcept nogil:
        cdef int bucket = 0
        while bucket < LATENCY_BUCKETS - 1 and nanoseconds > latency_bounds_ns[bucket]:
            bucket += 1
        self.counters.latency[family][bucket] += calls
        self.counters.latency_sum_ns[family] += calls * <uint64_t>nanoseconds

    # -- bytes in, commands, bytes out

    cdef void _receive(self, Connection* c) noexcept nogil:
        cdef int64_t count
        cdef uint8_t* place = self.received
        if c.state == ConnectionState.CONNECTION_DEAD or c.ready:
            return
        if c.deferred and socket_ended(c.source.descriptor):
            self.drop(c)
            return
        # One that has only ended its own half still gets its replies, within the time that they may wait.
        if must_wait(c) and socket_broken(c.source.descriptor):
            self.drop(c)
            return
        if must_wait(c) or c.paused or c.state == ConnectionState.CONNECTION_CLOSING:
            # With output waiting, a peer that is gone shows when it is written to.
            self.watch(c, c.interest & ~Interest.WATCH_READ)
            return
        if c.state == ConnectionState.CONNECTION_OPEN and c.input.size:
            # An incomplete command goes on where its beginning lies.
            if self.buffer_bytes > self.buffer_bytes_max:
                self._break_off(c, b"ERR the node's memory for requests is used up; try again later")
                return
            if buffer_reserve(&c.input, RECEIVE_BYTES) < 0:
                self._break_off(c, b"OOM out of memory for the request")
                return
            place = c.input.data + c.input.size
        count = socket_receive(c.source.descriptor, place, RECEIVE_BYTES)
        if count == 0:
            return
        if c.state == ConnectionState.CONNECTION_LINGERING:
            c.discarded += <size_t>count if count > 0 else 0
            if count < 0 or c.discarded > LINGER_BYTES_MAX:
                self.drop(c)
            return
        if count < 0:
            if output_waiting(c) == 0:
                self.drop(c)
            else:
                c.state = ConnectionState.CONNECTION_CLOSING
                self.touch(c)
            return
        self.counters.bytes_received += <uint64_t>count
        c.active_ns = self.now_ns
        if place != self.received:
            c.input.size += <size_t>count
            self._run(c, c.input.data, c.input.size)
        else:
            self._run(c, place, <size_t>count)

    cdef void _run(self, Connection* c, const uint8_t* data, size_t size) noexcept nogil:
        """Execute the commands at the start of `data`, and keep what is left of it."""
        cdef size_t at = 0, consumed = 0
        cdef int turns = 0, parsed
        cdef bint buffered = data == c.input.data
        cdef Lookahead ahead
        ahead.executed = ahead.seen = ahead.at = 0
        self.touch(c)
        while c.state == ConnectionState.CONNECTION_OPEN and not must_wait(c) and at < size:
            if output_waiting(c) > OUTPUT_SOFT_BYTES_MAX:
                c.paused = True
                break
            if turns == COMMANDS_PER_TURN_MAX:
                break
            parsed = parser_next(&c.parser, data + at, size - at, &consumed)
            at += consumed
            if parsed == Parsed.PARSE_COMMAND:
                turns += 1
                if at < size and self.locked:
                    look_ahead(&ahead, self.store, data, size, at)
                if self.replicas == 1 or self._may_run(c, data + at - consumed, size - at + consumed):
                    self._execute(c)
                elif c.asking:
                    # Once the replicas have answered it begins anew, and then it runs.
                    at -= consumed
                continue
            if parsed == Parsed.PARSE_ERROR:
                self._break_off(c, NULL)
            elif parsed == Parsed.PARSE_MEMORY:
                self._break_off(c, b"OOM out of memory for the request")
            break
        if c.state == ConnectionState.CONNECTION_OPEN:
            if buffered:
                input_drop(c, at)
            elif at < size and put_bytes(&c.input, data + at, size - at) < 0:
                self._break_off(c, b"OOM out of memory for the request")
            if turns == COMMANDS_PER_TURN_MAX:
                self.make_ready(c)
        if c.state != ConnectionState.CONNECTION_DEAD:
            self.account(c)

    cdef Reply* _begin_reply(self, Connection* c) noexcept nogil:
        """The writer of replies, for one of this connection."""
        cdef Reply* reply = &self.reply_writer
        cdef size_t room = self.buffer_bytes_max - self.buffer_bytes if self.buffer_bytes < self.buffer_bytes_max else 0
        reply.out = &c.output
        reply.protocol = c.protocol
        reply.failed = 0
        if room > REPLY_BYTES_MAX:
            room = REPLY_BYTES_MAX
        reply.limit = c.output.size + (room if room > REPLY_BYTES_MIN else REPLY_BYTES_MIN)
        return reply

    cdef void _lock(self) noexcept nogil:
        if not self.locked:
            self.store.lock()
            self.locked = True
            self.round_timestamp = self.seen_timestamp = self.store.last_timestamp()

    cdef bint _may_run(self, Connection* c, const uint8_t* data, size_t size) noexcept nogil:
        """Whether the command at the start of `data` may run now; else it was refused, or other replicas are asked."""
        if not self.is_shared(c, find_command(c.parser.args[0])):
            return True
        if c.credit and c.refusal == 0:
            c.credit -= 1
            return True
        self._begin_reply(c)
        if c.credit:
            c.credit -= 1
            self.refuse(c)
            if c.credit == 0:
                c.refusal = 0
                c.deadline_ns = 0
        else:
            self._lock()
            if self.ask(c, data, size):
                # Without a key that it could be asked for, it is going to be refused.
                c.credit -= not c.asking
                return not c.asking
        self.counters.commands_processed += 1
        self.counters.commands_failed += 1
        c.limit_ns = 0
        c.commands += 1
        c.replies += 1
        if self.reply_writer.failed:
            self.drop(c)
        return False

    cdef void _execute(self, Connection* c) noexcept nogil:
        """Run the command that the connection's parser holds, or hand it up."""
        cdef const Command* command
        cdef Reply* reply = self._begin_reply(c)
        cdef size_t start = c.output.size
        cdef uint64_t timestamp
        cdef bint changed
        self.counters.commands_processed += 1
        c.commands += 1
        c.replies += 1
        self.call.args = c.parser.args
        self.call.count = c.parser.count
        self.call.reply = reply
        self.call.cursors = &self.cursors
        self.call.scratch = &self.scratch
        command = find_command(c.parser.args[0])
        if command == NULL:
            if is_word(c.parser.args[0], b"POST") or is_word(c.parser.args[0], b"HOST:"):
                c.replies -= 1
                self._break_off(c, b"ERR this is not an HTTP port")
            else:
                reply_unknown(&self.call)
        else:
            c.last_command = command.index
            self.counters.calls[command.index] += 1
            if command.family == Family.FAMILY_CONTROL:
                if check_call(command, &self.call):
                    c.replies -= 1
                    self._hand_up(c)
                return
            self.round_calls[command.family] += 1
            if command.family == Family.FAMILY_CONNECTION:
                run_command(self.store, command, &self.call)
                if self.call.limit_ns:
                    c.limit_ns = self.call.limit_ns
                    self.call.limit_ns = 0
            elif self.store_failed:
                self.counters.commands_failed += 1
                reply_status(reply, Status.ERR_FAILED)
            else:
                self._lock()
                run_command(self.store, command, &self.call)
                if command.family == Family.FAMILY_WRITE:
                    timestamp = self.store.last_timestamp()
                    changed = timestamp != self.seen_timestamp
                    # "It is there already" promises as much as "it is there now"; an error promises nothing.
                    if changed or (
                        self.is_shared(c, command) and c.output.size > start and c.output.data[start] != b"-"
                    ):
                        self.seen_timestamp = c.last_write_timestamp = timestamp
                        if self.is_shared(c, command):
                            self.note_write(c, start, timestamp)
                c.limit_ns = 0
        if reply.failed:
            # Not even an error reply could be written: the connection would be out of step.
            self.drop(c)

    cdef void _hand_up(self, Connection* c) noexcept nogil:
        """Keep a copy of the command for Python; its slices are gone after this turn."""
        cdef size_t i, mark = self.handed_args.size
        cdef int failed = put_varint(&self.handed_args, c.parser.count)
        for i in range(c.parser.count):
            failed |= put_slice(&self.handed_args, c.parser.args[i])
            if failed or self.handed_args.size - mark > HANDED_BYTES_MAX:
                self.handed_args.size = mark
                c.replies += 1
                if failed:
                    reply_error(&self.reply_writer, b"OOM out of memory; the command was not run")
                else:
                    reply_error(&self.reply_writer, b"ERR the arguments are longer than this command takes")
                return
        c.deferred = c.handed = True
        list_push(&self.handed, c)

    cdef void _break_off(self, Connection* c, const char* error) noexcept nogil:
        """Answer with an error (the parser's when NULL) and close: what follows can't be understood."""
        self.touch(c)
        self.counters.protocol_errors += 1
        c.replies += 1
        self.reply_writer.out = &c.output
        self.reply_writer.failed = 0
        self.reply_writer.limit = c.output.size + REPLY_BYTES_MIN
        if error != NULL:
            reply_error(&self.reply_writer, error)
        else:
            reply_raw(&self.reply_writer, b"-ERR ", 5)
            self.reply_writer.failed |= put_bytes(&c.output, c.parser.error, strlen(c.parser.error))
            reply_raw(&self.reply_writer, b"\r\n", 2)
        buffer_free(&c.input)
        c.state = ConnectionState.CONNECTION_CLOSING
        if self.reply_writer.failed:
            self.reply_writer.failed = 0
            self.drop(c)

    # -- Python's part

    cdef int _answer_handed(self) except -1:
        """Let the handler answer the commands that were handed up, in order, and send the answers."""
        cdef Reader reader = reader_of(buffer_slice(&self.handed_args))
        cdef Connection* c
        cdef Slice arg
        cdef size_t i
        for i in range(self.handed.size):
            c = self.handed.items[i]
            args = []
            for _ in range(get_varint(&reader)):
                arg = get_slice(&reader)
                args.append(PyBytes_FromStringAndSize(<const char*>arg.data, arg.size))
            if c.state == ConnectionState.CONNECTION_DEAD:
                continue
            try:
                answer = self.handler(self.client_of(c), args)
            except Exception:
                self.log.exception("command %s failed", args[0])
                answer = encode(Error("ERR internal error: see the node's log"))
            c.handed = False
            if answer is None or c.state == ConnectionState.CONNECTION_DEAD:
                continue
            self._count_latency(Family.FAMILY_CONTROL, 1, monotonic_ns() - self.now_ns)
            c.deferred = False
            self.append(c, answer)
            if c.state != ConnectionState.CONNECTION_DEAD:
                self.flush(c)
                self.make_ready(c)
        self.handed.size = 0
        self.handed_args.size = 0
        if self.handed_args.capacity > KEPT_BUFFER_BYTES:
            buffer_free(&self.handed_args)
        if self.scratch.capacity > KEPT_BUFFER_BYTES:
            buffer_free(&self.scratch)
        return 0
