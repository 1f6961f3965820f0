"""Clients' commands at consistency levels; levels.pxd says how."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport strlen

from everwrite.coding cimport Buffer, buffer_free, buffer_init, buffer_slice, put_bytes
from everwrite.freshness cimport put_question
from everwrite.server.commands cimport KEY_BYTES_MAX, Command, find_command
from everwrite.server.connection cimport KEPT_BUFFER_BYTES, ConnectionState, list_push, monotonic_ns
from everwrite.server.once_commands cimport ID_BYTES, put_record_key, run_once
from everwrite.server.replies cimport reply_status
from everwrite.server.resp cimport Parsed, parser_free, parser_init, parser_next, parser_restart, reply_error
from everwrite.status cimport Status

cdef enum:
    ASKED_COMMANDS_MAX = 1024       # of one connection at a time
    QUESTION_BYTES_MAX = 1 << 18    # above it the question goes as it is, and the next ones make another
    COMMAND_BYTES_MAX = 16 << 20    # above it, with what else is asked for, a command is refused


cdef class LeveledConnections(Connections):
    """Connections whose commands have consistency levels.

    `asker(number, answers, question)` is called once a tick and level, and sends the question to `answers` other
    replicas; `answered` is called for it later, once. Without other replicas (`set_region`) every level is ONE.
    """

    def __cinit__(self, *serving, **limits):
        cdef int level
        parser_init(&self.scout)
        for level in range(LEVELS):
            buffer_init(&self.questions[level])
        self.default_level = LEVEL_LOCAL_QUORUM
        self.timeout_ns = 2_000_000_000
        self.replicas = self.alive = 1

    def __dealloc__(self):
        cdef int level
        parser_free(&self.scout)
        for level in range(LEVELS):
            buffer_free(&self.questions[level])

    # -- what the shell calls

    def set_levels(self, asker, *, consistency, double timeout_seconds):
        """Say whom to ask, the level of connections that name none, and how long a command may wait (seconds)."""
        self.asker = asker
        self.default_level = int(consistency)
        self.timeout_ns = <int64_t>(timeout_seconds * 1e9)

    def set_region(self, int replicas, int alive, uint64_t quorum_held, uint64_t all_held, *, bint recovering=False):
        """Say how many replicas the region has, how many are alive, and how far they hold this node's updates.

        `replicas` and `alive` count this node. `quorum_held`, `all_held`: the timestamps up to which a quorum, and
        all, hold this node's own updates durably. `recovering`: this node may lack what it once acknowledged.
        """
        self.replicas = replicas
        self.alive = alive
        self.recovering = recovering
        self.quorum_held = quorum_held
        self.all_held = all_held
        with nogil:
            self._release()
        self.woken()

    def answered(self, uint64_t number, int received):
        """The question `number` is over: so many replicas, this node among them, have answered for its keys.

        The next `tick` goes on with the commands that waited: call it soon, nothing else makes `fileno` readable.
        """
        cdef size_t i, kept = 0
        cdef Connection* c
        for i in range(self.asking.size):
            c = self.asking.items[i]
            if not c.asking or c.ask_number != number:
                self.asking.items[kept] = c
                kept += 1
                continue
            c.asking = False
            if c.credit and received < self.required(self.level_of(c)):
                c.refusal = REFUSAL_READ_TIMEOUT
                c.answers_received = received
            self._resume(c)
        self.asking.size = kept
        self.reap()

    def expire(self):
        """Give up what has waited for too long; to be called every few hundredths of a second."""
        cdef int64_t now = monotonic_ns()
        cdef size_t i, kept = 0
        cdef Connection* c
        for i in range(self.asking.size):
            c = self.asking.items[i]
            if c.deadline_ns > now and c.state != ConnectionState.CONNECTION_DEAD:
                self.asking.items[kept] = c
                kept += 1
                continue
            c.asking = False
            if c.credit:
                c.refusal = REFUSAL_READ_TIMEOUT
                c.answers_received = 1
            self._resume(c)
        self.asking.size = kept
        kept = 0
        for i in range(self.held.size):
            c = self.held.items[i]
            if c.held_deadline_ns > now and c.state != ConnectionState.CONNECTION_DEAD:
                self.held.items[kept] = c
                kept += 1
            else:
                self._give_up(c)
        self.held.size = kept
        self.woken()

    @property
    def waiting(self):
        """Number of connections whose commands wait for other replicas."""
        return self.asking.size + self.held.size

    def level_statistics(self):
        """Counters and gauges of the levels, by name."""
        return {
            "region_replicas": self.replicas,
            "region_alive": self.alive,
            "clients_asking": self.asking.size,
            "clients_held": self.held.size,
            "questions": self.level_counters.questions,
            "commands_asked": self.level_counters.asked,
            "replies_held": self.level_counters.held,
            "unavailable": self.level_counters.unavailable,
            "read_timeouts": self.level_counters.read_timeouts,
            "write_timeouts": self.level_counters.write_timeouts,
        }

    # -- the first phase

    cdef bint ask(self, Connection* c, const uint8_t* data, size_t size) noexcept nogil:
        cdef int level = self.level_of(c)
        cdef Buffer* question = &self.questions[level]
        cdef const Command* command
        cdef size_t at = 0, consumed = 0, key
        cdef size_t mark, last, asked = 0
        cdef int status = 0
        if self.recovering or self.alive < self.required(level):
            c.refusal = REFUSAL_UNAVAILABLE
            self.refuse(c)
            c.refusal = 0
            return False
        if question.size == 0:
            self.newest_question += 1
            self.question_numbers[level] = self.newest_question
        while asked < ASKED_COMMANDS_MAX and question.size < QUESTION_BYTES_MAX and at < size:
            if parser_next(&self.scout, data + at, size - at, &consumed) != Parsed.PARSE_COMMAND:
                break
            at += consumed
            command = find_command(self.scout.args[0])
            if not self.is_shared(c, command):
                break
            mark = question.size
            asked += 1
            last = command.last_key if command.last_key >= 0 else self.scout.count + command.last_key
            key = command.first_key
            while key <= last and key < self.scout.count and status >= 0 and question.size <= COMMAND_BYTES_MAX:
                if self.scout.args[key].size <= KEY_BYTES_MAX:
                    status = put_question(self.store, self.scout.args[key], question)
                key += command.key_step
            if command.run == run_once and self.scout.count > 3 and self.scout.args[1].size == ID_BYTES:
                status = min(status, self._ask_for_record(question))
            if question.size > COMMAND_BYTES_MAX:
                question.size = mark
                asked -= 1
                break
        # What is left of an incomplete command is none of the scout's.
        parser_restart(&self.scout)
        if status < 0:
            reply_status(&self.reply_writer, status)
            return False
        if asked == 0 and at:
            reply_error(&self.reply_writer, b"ERR too many keys for one command at this consistency level; nothing was "
                        b"done: ask for fewer at a time, or at the level ONE")
            return False
        c.credit = asked
        if question.size:
            self.level_counters.asked += asked
            c.ask_number = self.question_numbers[level]
            c.asking = True
            c.deadline_ns = monotonic_ns() + (c.limit_ns if c.limit_ns else self.timeout_ns)
            list_push(&self.asking, c)
        return True

    cdef int _ask_for_record(self, Buffer* question) noexcept nogil:
        """Ask, too, whether the write that the scout has found was applied elsewhere already. A Status."""
        cdef Buffer name
        cdef int status
        buffer_init(&name)
        status = put_record_key(&name, self.scout.args[1], self.scout.args[3])
        if status == 0 and name.size <= KEY_BYTES_MAX:
            status = put_question(self.store, buffer_slice(&name), question)
        buffer_free(&name)
        return Status.ERR_MEMORY if status > 0 else status

    cdef int send_questions(self) except -1:
        """Hand up what this tick asks for."""
        cdef int level
        cdef Buffer* question
        for level in range(LEVELS):
            question = &self.questions[level]
            if question.size == 0:
                continue
            text = question.data[: question.size]
            question.size = 0
            if question.capacity > KEPT_BUFFER_BYTES:
                buffer_free(question)
            self.level_counters.questions += 1
            self.asker(self.question_numbers[level], self.required(level) - 1, text)
        return 0

    cdef void refuse(self, Connection* c) noexcept nogil:
        cdef char text[200]
        cdef int required = self.required(self.level_of(c))
        if self.recovering and c.refusal == REFUSAL_UNAVAILABLE:
            reply_error(&self.reply_writer, b"LOADING this node is catching up with its region; nothing was done: "
                        b"ask another node, or again soon")
            return
        if c.refusal == REFUSAL_UNAVAILABLE:
            self.level_counters.unavailable += 1
            snprintf(text, sizeof(text), b"UNAVAILABLE too few replicas of this region are alive; nothing was done: "
                     b"try again, or ask for the level ONE (required %d, alive %d)", required, self.alive)
        else:
            self.level_counters.read_timeouts += 1
            snprintf(text, sizeof(text), b"READTIMEOUT too few replicas answered in time; nothing was done: try again "
                     b"(received %d, required %d)", <int>c.answers_received, required)
        reply_error(&self.reply_writer, text)

    cdef void _resume(self, Connection* c) noexcept nogil:
        if c.state == ConnectionState.CONNECTION_OPEN:
            self.make_ready(c)

    # -- the last phase

    cdef void note_write(self, Connection* c, size_t start, uint64_t timestamp) noexcept nogil:
        cdef size_t span[2]
        if timestamp <= self.reached(self.level_of(c)):
            return
        if c.held_timestamp == 0:
            # The deadline of the question that was before it: a later one has its own.
            c.held_deadline_ns = c.deadline_ns
        c.held_timestamp = timestamp
        # Of the levels at which it wrote in this round the strictest: a later command may change its own.
        c.held_level = max(c.held_level, self.level_of(c))
        span[0] = start
        span[1] = c.output.size
        if put_bytes(&c.spans, span, sizeof(span)) < 0:
            # Its reply can't be taken back, so it must not go out unacknowledged.
            self.drop(c)

    cdef void hold(self, Connection* c) noexcept nogil:
        if c.spans.size == 0:
            if not c.asking:
                c.deadline_ns = 0
            return
        if c.held_deadline_ns == 0:
            c.held_deadline_ns = monotonic_ns() + self.timeout_ns
        c.held = True
        self.level_counters.held += 1
        list_push(&self.held, c)

    cdef void let_go(self, Connection* c) noexcept nogil:
        c.held = False
        c.held_timestamp = 0
        c.held_level = 0
        c.held_deadline_ns = 0
        if not c.asking:
            c.deadline_ns = 0

    cdef void _release(self) noexcept nogil:
        """Send what is acknowledged by now."""
        cdef size_t i, kept = 0
        cdef Connection* c
        for i in range(self.held.size):
            c = self.held.items[i]
            reached = self.reached(c.held_level)
            if c.held_timestamp > reached and c.state != ConnectionState.CONNECTION_DEAD:
                self.held.items[kept] = c
                kept += 1
                continue
            self.let_go(c)
            c.spans.size = 0
            if c.state != ConnectionState.CONNECTION_DEAD:
                self.flush(c)
                self.make_ready(c)
        self.held.size = kept

    cdef void _give_up(self, Connection* c) noexcept nogil:
        """Answer the writes that wait as having an unknown outcome."""
        cdef char text[240]
        cdef int level = c.held_level, required = self.required(level)
        cdef int received = 1 if level != LEVEL_ALL or self.quorum_held < c.held_timestamp else self.replicas // 2 + 1
        cdef Buffer before = c.output
        cdef const size_t* span = <const size_t*>c.spans.data
        cdef size_t i, at = 0, count = c.spans.size // (2 * sizeof(size_t))
        cdef int failed = 0
        self.let_go(c)
        if c.state == ConnectionState.CONNECTION_DEAD:
            c.spans.size = 0
            return
        snprintf(text, sizeof(text),
                 b"-WRITETIMEOUT written here, but not acknowledged by enough replicas in time: it still spreads, but "
                 b"whether it survives is unknown (received %d, required %d)\r\n", received, required)
        buffer_init(&c.output)
        for i in range(count):
            failed |= put_bytes(&c.output, before.data + at, span[2 * i] - at)
            failed |= put_bytes(&c.output, text, strlen(text))
            at = span[2 * i + 1]
        failed |= put_bytes(&c.output, before.data + at, before.size - at)
        buffer_free(&before)
        c.spans.size = 0
        self.level_counters.write_timeouts += count
        if failed:
            self.drop(c)
            return
        self.flush(c)
        self.make_ready(c)
