"""What other replicas have of some keys and this store hasn't: asked for, answered and joined.

This is the first phase of a read or write at a quorum (Attiya, Bar-Noy, Dolev, *Sharing memory robustly in
message-passing systems*, 1995). A key's causal context stands for its state, exactly: replicas with the same context
hold the same. So a question is the contexts that the asking store has of the keys, and who answers sends states only
of those keys of which it knows more. It keeps nothing of a question.
"""

from libc.stdint cimport SIZE_MAX, uint8_t, uint64_t
from libc.string cimport memcpy

from everwrite.change cimport Change, change_parse, is_part
from everwrite.clock cimport Dot
from everwrite.coding cimport (
    Buffer, Reader, Slice, buffer_free, buffer_init, buffer_reserve, get_bytes, get_slice, get_varint, load_u64,
    reader_left, reader_of, slice_of, store_u64, store_varint,
)
from everwrite.state cimport MAX_KEY, SPACE_USER, Row
from everwrite.status cimport Status
from everwrite.store cimport Store

from everwrite import exchange
from everwrite.errors import ProtocolError, TooLargeError
from everwrite.parts import as_body, split_state

cdef enum:
    PAIR_BYTES = 16           # origin and timestamp
    VARINT_BYTES_MAX = 10
    PIECE_KEYS_MAX = 4096     # of a question, looked at for one piece of its answer


cdef struct Item:
    # Of a question: a key, and the context that the asking store has of it.
    Slice key
    const uint8_t* pairs
    size_t count


cdef struct ContextWalk:
    # Where a walk along the loaded key's context stands.
    size_t row
    size_t behind


cdef inline bint _next_dot(Store store, ContextWalk* walk, Dot* dot) noexcept nogil:
    """The next entry of the loaded key's context, which is that of its rows and the horizon, by ascending origin."""
    cdef const Row* row
    cdef const Dot* behind
    while walk.row < store.head.size or walk.behind < store.horizon.size:
        row = &store.head.rows[walk.row] if walk.row < store.head.size else NULL
        behind = &store.horizon.dots[walk.behind] if walk.behind < store.horizon.size else NULL
        dot.timestamp = 0
        dot.origin = row.origin if behind == NULL or (row != NULL and row.origin < behind.origin) else behind.origin
        if row != NULL and row.origin == dot.origin:
            dot.timestamp = row.context
            walk.row += 1
        if behind != NULL and behind.origin == dot.origin:
            dot.timestamp = max(dot.timestamp, behind.timestamp)
            walk.behind += 1
        if dot.timestamp:
            return True
    return False


# ---- asking ----

cdef int put_question(Store store, Slice key, Buffer* out) noexcept nogil:
    cdef ContextWalk walk
    cdef Dot dot
    cdef uint8_t* at
    cdef size_t pairs = 0
    cdef int status = store.failed if store.failed else store.load(SPACE_USER, key)
    if status < 0:
        return status
    walk.row = walk.behind = 0
    while _next_dot(store, &walk, &dot):
        pairs += 1
    if buffer_reserve(out, key.size + PAIR_BYTES * pairs + 2 * VARINT_BYTES_MAX) < 0:
        return Status.ERR_MEMORY
    at = out.data + out.size
    at += store_varint(at, key.size)
    memcpy(at, key.data, key.size)
    at += key.size
    at += store_varint(at, pairs)
    walk.row = walk.behind = 0
    while _next_dot(store, &walk, &dot):
        store_u64(at, dot.origin)
        store_u64(at + 8, dot.timestamp)
        at += PAIR_BYTES
    out.size = at - out.data
    return Status.OK


def question(Store store not None, keys):
    """A question for what other stores know of these users' keys beyond this one: bytes for `answer`.

    `keys`: up to any number of them; one that isn't there counts, too. Raises TooLargeError for a key over 64 KiB.
    """
    cdef Buffer asked
    cdef Slice name
    cdef int status = Status.OK
    buffer_init(&asked)
    try:
        for key in keys:
            if len(key) > MAX_KEY:
                raise TooLargeError(f"key {key[:64]!r} has {len(key)} bytes; the limit is {MAX_KEY}")
            name = slice_of(<const uint8_t*><bytes>key, len(key))
            with nogil:
                store.lock()
                status = put_question(store, name, &asked)
                store.unlock()
            store._check(status)
        return asked.data[: asked.size] if asked.size else b""
    finally:
        buffer_free(&asked)


# ---- answering ----

cdef inline Dot _pair_at(const uint8_t* pairs, size_t index) noexcept nogil:
    cdef Dot dot
    dot.origin = load_u64(pairs + PAIR_BYTES * index)
    dot.timestamp = load_u64(pairs + PAIR_BYTES * index + 8)
    return dot


cdef int _next_item(Reader* r, Item* item) noexcept nogil:
    """Read an item and check all of it: OK or ERR_DECODE."""
    cdef uint64_t count
    cdef uint64_t before = 0
    cdef Dot dot
    cdef size_t i
    item.key = get_slice(r)
    count = get_varint(r)
    if r.failed or item.key.size > <size_t>MAX_KEY or count > reader_left(r) // PAIR_BYTES:
        return Status.ERR_DECODE
    item.count = count
    item.pairs = get_bytes(r, PAIR_BYTES * item.count).data
    for i in range(item.count):
        dot = _pair_at(item.pairs, i)
        if dot.timestamp == 0 or (i and dot.origin <= before):
            return Status.ERR_DECODE
        before = dot.origin
    return Status.OK


cdef bint _is_covered(Store store, const Item* item) noexcept nogil:
    """Whether the item's context covers the loaded key's."""
    cdef ContextWalk walk
    cdef Dot dot
    cdef size_t i = 0
    walk.row = walk.behind = 0
    while _next_dot(store, &walk, &dot):
        while i < item.count and _pair_at(item.pairs, i).origin < dot.origin:
            i += 1
        if i == item.count or _pair_at(item.pairs, i).origin > dot.origin:
            return False
        if _pair_at(item.pairs, i).timestamp < dot.timestamp:
            return False
    return True


cdef int _next_uncovered(Store store, Reader* r, Item* item, size_t* looks) noexcept nogil:
    """The next item of a valid question of which this store knows more: 1, or a negative Status.

    0: at the end, or none was found in as many items as `looks` still allows.
    """
    cdef int status
    while reader_left(r) and looks[0]:
        _next_item(r, item)
        looks[0] -= 1
        store.lock()
        status = store.failed if store.failed else store.load(SPACE_USER, item.key)
        if status >= 0:
            status = not _is_covered(store, item)
        store.unlock()
        if status != 0:
            return status
    return 0


cdef int _put_state(Store store, Slice key, Buffer* into) noexcept nogil:
    cdef Dot none
    cdef int status
    none.origin = none.timestamp = 0
    store.lock()
    status = store.failed if store.failed else store.load(SPACE_USER, key)
    if status >= 0:
        status = store.encode_state(into, none)
    store.unlock()
    return status


def answer(Store store not None, bytes question not None, size_t limit=0):
    """The states of the keys of a question that this store knows more of than who asks, for `join_states`.

    Returns (states, rest): a large state comes as its parts (`parts.split_state`), each an item of its own. After about
    `limit` bytes, or a few thousand keys (with 0: never), what is left is for `answer(rest)`, maybe after no state at
    all; `rest` is empty at the end.
    As safe from a crash as what `open_stream` gives. Raises ProtocolError when the question is malformed.
    """
    cdef Slice asked = slice_of(<const uint8_t*>question, len(question))
    cdef Reader r = reader_of(asked)
    cdef Item item
    cdef Buffer state
    cdef size_t size = 0
    cdef size_t looks = PIECE_KEYS_MAX if limit else SIZE_MAX
    cdef int status = Status.OK
    with nogil:
        while reader_left(&r) and status == Status.OK:
            status = _next_item(&r, &item)
    if status < 0:
        raise ProtocolError("malformed question: one of its keys or contexts can't be decoded; nothing was answered")
    r = reader_of(asked)
    states = []
    answered = set()
    buffer_init(&state)
    try:
        while not limit or size < limit:
            with nogil:
                status = _next_uncovered(store, &r, &item, &looks)
            store._check(status)
            if status == 0:
                break
            key = item.key.data[: item.key.size]
            # A key that many commands want is asked about by each of them.
            if key in answered:
                continue
            answered.add(key)
            state.size = 0
            with nogil:
                status = _put_state(store, item.key, &state)
            store._check(status)
            size += state.size
            states += split_state(state.data[: state.size])
        if states:
            with nogil:
                # What a crash of this store could take back must not leave it.
                status = store._write_log(store.sync_always)
            store._check(status)
        return states, r.at[: reader_left(&r)]
    finally:
        buffer_free(&state)


# ---- joining ----

class Conversation:
    """The answer to one question by one store, which may come in several pieces: the scope of the parts in it."""

    def __init__(self):
        self.keys_in_parts = set()

    @property
    def whole(self):
        """Whether every state of which a part has come was joined: at the end of an answer it must be so."""
        return not self.keys_in_parts


def join_states(Store store not None, states, conversation=None):
    """Join states and parts of states that `answer` gave; durable after `Store.commit_log`. How many brought news.

    `conversation`: the `Conversation` that they belong to, whose later pieces may bring the other parts of a
    state; None: all is there. A state counts with its last part. Raises ProtocolError (malformed, with updates of
    this store's own that it never made, or parts are missing), ClockDriftError, TooLargeError: nothing of `states`
    was joined then, but whole states when only parts are missing.
    """
    cdef Change change
    scope = Conversation() if conversation is None else conversation
    if not states:
        return 0
    joined, keys = exchange.join_states(store, as_body(states), len(states), scope)
    for each in states:
        change_parse(slice_of(<const uint8_t*><bytes>each, len(each)), &change)
        if is_part(&change):
            scope.keys_in_parts.add(change.key.data[: change.key.size])
    scope.keys_in_parts -= keys
    if conversation is None and not scope.whole:
        forget_parts(store, scope)
        raise ProtocolError("the states end in the middle of one: parts of it are missing, and it wasn't joined")
    return joined


def forget_parts(Store store not None, conversation not None):
    """Let go of the parts of a conversation that has ended early."""
    with nogil:
        store.lock()
    try:
        for named in [named for named in store.parts.waiting if named[0] is conversation]:
            store.parts.forget(named)
    finally:
        store.unlock()
