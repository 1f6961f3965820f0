"""States of single keys out of a store and into it, outside of the log's order; for `reconcile`.

What is joined here is logged as a state without a dot, before anything that builds on it. It
raises the contexts of keys, never `applied`: which prefix of each origin's log the store holds
is another question, and only changes and claims answer it.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.change cimport PART_HEAD, Change, Part, change_parse, is_part, part_next
from everwrite.clock cimport Dot, vector_get
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    get_slice,
    reader_left,
    reader_of,
    slice_of,
)
from everwrite.keyspace cimport Keyspace
from everwrite.state cimport SPACE_USER, Head, head_decode, head_free, head_init
from everwrite.status cimport Status, check
from everwrite.store cimport Store

from everwrite.errors import ClockDriftError, ProtocolError


def contexts(Keyspace store not None, list keys):
    """The causal contexts of these users' keys, each a dict of origin to timestamp; of absent ones, the horizon."""
    cdef Slice name
    cdef int status
    cdef size_t i
    result = []
    for key in keys:
        name = slice_of(<const uint8_t*><bytes>key, len(key))
        with nogil:
            store.lock()
            status = store.failed if store.failed else store.load(SPACE_USER, name)
            if status >= 0 and store.spell_out_context() < 0:
                status = Status.ERR_MEMORY
        held = {store.head.rows[i].origin: store.head.rows[i].context for i in range(store.head.size)}
        store.unlock()
        check(status)
        result.append({origin: stamp for origin, stamp in held.items() if stamp})
    return result


def collect_states(Store store not None, list keys, size_t limit):
    """The states of as many of these users' keys, from the first on, as `limit` bytes hold; at least of one.

    Returns (states, keys looked at), the states as bytes; one over the limit comes alone. What isn't there has
    none, unless it may have been collected: then the horizon is its state. Everything in them is durable.
    """
    cdef Buffer state
    cdef Dot none
    cdef Slice name
    cdef size_t size = 0
    cdef size_t looked = 0
    cdef int status = 0
    none.origin = none.timestamp = 0
    states = []
    buffer_init(&state)
    try:
        for key in keys:
            name = slice_of(<const uint8_t*><bytes>key, len(key))
            state.size = 0
            with nogil:
                store.lock()
                status = store.failed if store.failed else store.load(SPACE_USER, name)
                if status == 1 or (status == 0 and store.horizon.size):
                    status = store.encode_state(&state, none)
                    status = status if status < 0 else 1
                store.unlock()
            store._check(status)
            if status == 1:
                if states and size + state.size > limit:
                    break
                size += state.size
                states.append(state.data[: state.size])
            looked += 1
        with nogil:
            status = store._write_log(True)
        store._check(status)
        return states, looked
    finally:
        buffer_free(&state)


cdef uint64_t _newest_of(const uint8_t* data, size_t size, uint64_t origin) noexcept nogil:
    """The newest timestamp of `origin` in the contexts of well-formed states."""
    cdef Reader r = reader_of(slice_of(data, size))
    cdef Reader parts
    cdef Change change
    cdef Part part
    cdef Head head
    cdef uint64_t newest = 0
    cdef size_t i
    head_init(&head)
    while reader_left(&r):
        change_parse(get_slice(&r), &change)
        parts = reader_of(change.parts)
        if part_next(&parts, &part) == 1 and part.tag == PART_HEAD and head_decode(&head, part.value) == Status.OK:
            for i in range(head.size):
                if head.rows[i].origin == origin:
                    newest = max(newest, head.rows[i].context)
    head_free(&head)
    return newest


cdef bint _brings_news(Store store, const uint8_t* data, size_t size) except -1:
    """Whether a whole, valid state has updates of its key that aren't in here. Needs the lock."""
    cdef Change change
    cdef Reader parts
    cdef Part part
    cdef size_t i
    if store.horizon.size:
        # A context that reaches behind it doesn't tell: a late write may have met a delete on one side only.
        return True
    change_parse(slice_of(data, size), &change)
    parts = reader_of(change.parts)
    part_next(&parts, &part)
    check(head_decode(&store.theirs, part.value))
    store._check(store.load(change.key.data[0], slice_of(change.key.data + 1, change.key.size - 1)))
    for i in range(store.theirs.size):
        if store.key_context(store.theirs.rows[i].origin) < store.theirs.rows[i].context:
            return True
    return False


def join_states(Store store not None, bytes body not None, size_t count, scope not None):
    """Join `count` states of keys or parts of states, as in a batch of states; durable after `Store.commit_log`.

    What is held already is neither joined nor logged again. `scope`: whatever no other conversation has, to tell its
    parts of states by. Returns (how many states brought news, the keys, with space bytes, whose parts are complete).
    Raises ProtocolError (malformed, or with updates of this store's own that it never made) and
    ClockDriftError; nothing was joined then.
    """
    cdef const uint8_t* data = <const uint8_t*>body
    cdef size_t size = len(body)
    cdef uint64_t newest = 0
    cdef int status
    cdef size_t joined = 0
    cdef Reader r
    cdef const uint8_t* at
    cdef Slice state
    cdef Change change
    with nogil:
        status = store._validate(True, data, size, count, &newest)
    if status < 0:
        raise ProtocolError("malformed states: one of them can't be decoded; nothing of them was joined")
    with nogil:
        store.lock()
    try:
        store._check(Status.ERR_FAILED if store.failed else Status.OK)
        if _newest_of(data, size, store.own_origin) > vector_get(&store.applied, store.own_origin):
            raise ProtocolError(
                f"the states have updates of this store's own origin {store.own_origin:#018x} which it never made: "
                "two stores share an origin (was the directory copied while open?); nothing of them was joined"
            )
        if store.clock.observe(newest) < 0:
            raise ClockDriftError(
                f"the states have a timestamp {(newest >> 16) - store.clock.now_ms()} ms ahead of this node's clock; "
                f"max_clock_drift is {store.clock.max_drift_ms} ms: set the sender's clock right"
            )
        # Parts of a state that is large come in several messages of one conversation.
        whole = store._take_parts(scope, data, size, False)
        r = reader_of(slice_of(data, size))
        while reader_left(&r):
            at = r.at
            state = get_slice(&r)
            change_parse(state, &change)
            if not is_part(&change) and _brings_news(store, state.data, state.size):
                store._join_states(at, r.at - at, [])
                joined += 1
        for key, each in whole:
            if _brings_news(store, <const uint8_t*><bytes>each, len(each)):
                store._join_states(NULL, 0, [(key, each)])
                joined += 1
        return joined, {key for key, _ in whole}
    finally:
        store.unlock()
