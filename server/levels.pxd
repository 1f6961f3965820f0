"""Clients' commands at consistency levels: what asks other replicas first, and what waits for their acknowledgement.

A command with keys at a level above ONE goes through two phases. First the replicas are asked for what they have
of its keys and this node hasn't; then it runs like any other; last, if it wrote, its reply waits until enough
replicas have acknowledged this node's log up to it. A connection's commands never overtake each other.

Invariants: a connection is in `asking` while `c.asking`, in `held` while `c.held`; no command runs meanwhile, and
nothing is sent while it is held.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from everwrite.coding cimport Buffer
from everwrite.server.commands cimport Command
from everwrite.server.connection cimport Connection
from everwrite.server.connections cimport Connections
from everwrite.server.resp cimport Parser, Reply
from everwrite.store cimport Store


cdef enum LevelNumber:
    LEVEL_ONE = 1
    LEVEL_LOCAL_QUORUM = 2
    LEVEL_ALL = 3
    LEVELS = 4


cdef enum Refusal:
    REFUSAL_READ_TIMEOUT = 1
    REFUSAL_UNAVAILABLE = 2


cdef struct LevelCounters:
    uint64_t questions          # sent up, each for many commands
    uint64_t asked              # commands that replicas were asked for
    uint64_t held               # replies that waited
    uint64_t unavailable
    uint64_t read_timeouts
    uint64_t write_timeouts


cdef class LeveledConnections(Connections):
    cdef Store store
    cdef object asker
    cdef Reply reply_writer
    cdef Parser scout                   # looks at the commands that may be asked for together
    cdef Buffer questions[LEVELS]       # by level: what this tick's commands ask for
    cdef uint64_t question_numbers[LEVELS]
    cdef uint64_t newest_question
    cdef int default_level
    cdef int64_t timeout_ns
    cdef int replicas                   # of the region, this node among them
    cdef int alive
    cdef bint recovering
    cdef uint64_t quorum_held           # own updates up to here are held by a quorum, and by all
    cdef uint64_t all_held
    cdef LevelCounters level_counters

    cdef inline int level_of(self, const Connection* c) noexcept nogil:
        return c.level if c.level else self.default_level

    cdef inline int required(self, int level) noexcept nogil:
        return 1 if level == LEVEL_ONE else self.replicas if level == LEVEL_ALL else self.replicas // 2 + 1

    cdef inline uint64_t reached(self, int level) noexcept nogil:
        """Up to where enough replicas hold this node's updates."""
        return self.all_held if level == LEVEL_ALL else self.quorum_held

    # Whether the replicas have to take part in this command of the connection.
    cdef inline bint is_shared(self, const Connection* c, const Command* command) noexcept nogil:
        return (
            self.replicas > 1
            and command != NULL
            and command.first_key > 0
            and command.run != NULL
            and self.level_of(c) != LEVEL_ONE
        )

    # Let the replicas be asked for the keys of the commands from the start of `data` on; the store is locked.
    # False: the first one is refused, which was replied.
    cdef bint ask(self, Connection* c, const uint8_t* data, size_t size) noexcept nogil
    # Refuse a command that the replicas have not answered for.
    cdef void refuse(self, Connection* c) noexcept nogil
    cdef int _ask_for_record(self, Buffer* question) noexcept nogil
    # Note the reply of a write, which begins at `start` in the output and tells of updates up to `timestamp`.
    cdef void note_write(self, Connection* c, size_t start, uint64_t timestamp) noexcept nogil
    # Hold back the replies of this round, if they tell of what is to be acknowledged.
    cdef void hold(self, Connection* c) noexcept nogil
    cdef int send_questions(self) except -1

    cdef void let_go(self, Connection* c) noexcept nogil
    cdef void _release(self) noexcept nogil
    cdef void _give_up(self, Connection* c) noexcept nogil
    cdef void _resume(self, Connection* c) noexcept nogil
