"""Python's way to the typed operations: bytes in, Python values out, committed on return.

Each function takes the store's lock, runs one native operation, commits, and turns a status
into an exception. `database` wraps them in mappings and handles.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free

from everwrite.arguments cimport bytes_slice, bytes_slices, slice_bytes
from everwrite.change cimport put_register
from everwrite.coding cimport Slice
from everwrite.datatypes cimport (
    KIND_MAP,
    KIND_SET,
    SET_KEEPTTL,
    SET_NX,
    SET_XX,
)
from everwrite.scans cimport Elements, Keys
from everwrite.state cimport MAX_KEY, MAX_VALUE, SPACE_SYSTEM
from everwrite.lsm cimport LsmIterator
from everwrite.state cimport Head, head_decode, head_free, head_init
from everwrite.status cimport Status
from everwrite.store cimport Store

from everwrite.errors import TooLargeError
from everwrite.kinds import KIND_NAMES, KIND_NUMBERS


cdef object released(Store store, int status, Slice value):
    try:
        found = slice_bytes(value) if status == 1 else None
    finally:
        store.unlock()
    store._check(status)
    return found


def get(Store store not None, bytes key not None):
    """The value of a register or counter, or None. Raises WrongTypeError for a set or map."""
    cdef Slice value
    cdef int status
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_get(name, &value)
    return released(store, status, value)


def put(Store store not None, bytes key not None, bytes value not None, int64_t deadline_ms=0, str condition=None,
        bint keep_ttl=False):
    """Write a register; whatever the key held is replaced. Returns whether it was written.

    `deadline_ms`: Unix ms, 0 for none. `condition`: "absent" or "present", else nothing is written.
    """
    cdef int flags = 0
    cdef int status
    cdef int committed
    cdef bint found
    cdef Slice old
    cdef Slice name = bytes_slice(key)
    cdef Slice text = bytes_slice(value)
    if condition == "absent":
        flags |= SET_NX
    elif condition == "present":
        flags |= SET_XX
    if keep_ttl:
        flags |= SET_KEEPTTL
    with nogil:
        store.lock()
        status = store.op_set(name, text, flags, deadline_ms, &old, &found)
        committed = store.commit_held()
    return store._settle(status, committed) == 1


def delete(Store store not None, bytes key not None):
    """Remove a key of any type. Returns whether it existed."""
    cdef int status
    cdef int committed
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_delete(name)
        committed = store.commit_held()
    return store._settle(status, committed) == 1


def kind(Store store not None, bytes key not None):
    """What the key holds: one of `kinds.KIND_NAMES`."""
    cdef int status
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_type(name)
        store.unlock()
    return KIND_NAMES[store._check(status)]


def deadline(Store store not None, bytes key not None):
    """When the key expires, Unix ms; None without a deadline or without the key."""
    cdef int64_t at
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        at = store.op_deadline(name)
        store.unlock()
    if at < -100:
        store._check(<int>(at + 100))
    return at if at >= 0 else None


def expire_at(Store store not None, bytes key not None, int64_t deadline_ms):
    """Set the deadline (Unix ms) of a key; 0 removes it. Returns whether anything changed."""
    cdef int status
    cdef int committed
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_expire_at(name, deadline_ms) if deadline_ms else store.op_persist(name)
        committed = store.commit_held()
    return store._settle(status, committed) == 1


def increment(Store store not None, bytes key not None, int64_t amount):
    """Add to a counter (or to the integer in a register). Returns the new value.

    Raises WrongTypeError, NotAnIntegerError or OverflowError; nothing has changed then.
    """
    cdef int status
    cdef int committed
    cdef int64_t result = 0
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_increment(name, amount, &result)
        committed = store.commit_held()
    store._settle(status, committed)
    return result


cdef int64_t _add_elements(Store store, bytes key, items, int kind) except? -1:
    """Add elements, or, to a map, pairs. Returns how many are new."""
    cdef int64_t added = 0
    cdef int status
    cdef int committed
    cdef size_t count = len(items)
    cdef Slice name = bytes_slice(key)
    cdef Slice* slices = bytes_slices(items)
    with nogil:
        store.lock()
        if count == 0:
            status = Status.ERR_FAILED if store.failed else Status.OK
        elif kind == KIND_SET:
            status = store.op_set_add(name, slices, count, &added)
        else:
            status = store.op_map_set(name, slices, count // 2, &added)
        committed = store.commit_held()
    free(slices)
    store._settle(status, committed)
    return added


def remove_elements(Store store not None, bytes key not None, str of, names not None):
    """Remove what is named (a list of bytes) from a key that holds an `of` (of `kinds.KIND_NAMES`), as one update.

    Elements of a set, fields of a map, members of a sorted set, positions of a sequence. Returns how many were there.
    """
    cdef Slice name = bytes_slice(key)
    cdef int64_t removed = 0
    cdef int kind = KIND_NUMBERS[of]
    cdef int status
    cdef int committed
    cdef size_t count = len(names)
    cdef Slice* slices = bytes_slices(names)
    with nogil:
        store.lock()
        status = store.op_remove_elements(name, kind, slices, count, &removed)
        committed = store.commit_held()
    free(slices)
    store._settle(status, committed)
    return removed


def set_add(Store store not None, bytes key not None, elements):
    """Add elements (a list of bytes) to a set. Returns how many are new."""
    return _add_elements(store, key, elements, KIND_SET)


def set_contains(Store store not None, bytes key not None, bytes element not None):
    """Whether a set holds an element."""
    cdef int status
    cdef Slice name = bytes_slice(key)
    cdef Slice item = bytes_slice(element)
    with nogil:
        store.lock()
        status = store.op_set_contains(name, item)
        store.unlock()
    return store._check(status) == 1


def cardinality(Store store not None, bytes key not None, str of):
    """The number of live elements of a key that holds an `of` (of `kinds.KIND_NAMES`); 0 without the key."""
    cdef int64_t count = 0
    cdef int status
    cdef int wanted = KIND_NUMBERS[of]
    cdef Slice name = bytes_slice(key)
    with nogil:
        store.lock()
        status = store.op_cardinality(name, wanted, &count)
        store.unlock()
    store._check(status)
    return count


def elements(Store store not None, bytes key not None, str of, bytes start=b"", size_t limit=1000):
    """Up to `limit` elements of a set or map from `start` on, as (name, value) pairs in byte order."""
    cdef Elements* it = NULL
    cdef Slice item
    cdef Slice value
    cdef int wanted = KIND_NUMBERS[of]
    cdef Slice name = bytes_slice(key)
    cdef Slice first = bytes_slice(start)
    cdef int status
    found = []
    with nogil:
        store.lock()
        status = store.elements_open_from(name, wanted, first, &it)
    try:
        while status == 1 and len(found) < limit:
            with nogil:
                status = store.elements_next(it, &item, &value)
            if status == 1:
                found.append((item.data[: item.size], value.data[: value.size]))
    finally:
        store.elements_close(it)
        store.unlock()
    store._check(status)
    return found


def map_set(Store store not None, bytes key not None, items):
    """Set fields of a map; `items` is a flat list: field, value, field, value. Returns how many fields are new."""
    return _add_elements(store, key, items, KIND_MAP)


def map_get(Store store not None, bytes key not None, bytes field not None):
    """The value of a map's field, or None."""
    cdef Slice value
    cdef int status
    cdef Slice name = bytes_slice(key)
    cdef Slice item = bytes_slice(field)
    with nogil:
        store.lock()
        status = store.op_map_get(name, item, &value)
    return released(store, status, value)


def map_increment(Store store not None, bytes key not None, bytes field not None, int64_t amount):
    """Add to a map's field. Returns the new value."""
    cdef int64_t result = 0
    cdef int status
    cdef int committed
    cdef Slice name = bytes_slice(key)
    cdef Slice item = bytes_slice(field)
    with nogil:
        store.lock()
        status = store.op_map_increment(name, item, amount, &result)
        committed = store.commit_held()
    store._settle(status, committed)
    return result


def keys(Store store not None, bytes start=b"", size_t limit=1000):
    """Up to `limit` live keys from the first that is >= `start`, as (key, kind) in byte order."""
    cdef Keys* it
    cdef Slice key
    cdef int what = 0
    cdef int status = 1
    cdef Slice first = bytes_slice(start)
    found = []
    with nogil:
        store.lock()
        it = store.keys_open(first)
    try:
        if it == NULL:
            raise MemoryError("out of memory for a scan")
        while status == 1 and len(found) < limit:
            with nogil:
                status = store.keys_next(it, &key, &what)
            if status == 1:
                found.append((key.data[: key.size], KIND_NAMES[what]))
    finally:
        store.keys_close(it)
        store.unlock()
    store._check(status)
    return found


def key_count(Store store not None):
    """The number of live keys of all types."""
    cdef int64_t count
    with nogil:
        store.lock()
        count = store.op_count()
        store.unlock()
    store._check(store.failed)
    return count


# ---- the system's registers: replicated like users' keys, but apart from them ----

def system_get(Store store not None, bytes name not None):
    """The value of a system register, or None."""
    cdef Slice key = bytes_slice(name)
    cdef int status
    found = None
    with nogil:
        store.lock()
        status = Status.ERR_FAILED if store.failed else store.load(SPACE_SYSTEM, key)
    try:
        if status == 1 and store.head.has_register and not store.head.tombstone:
            found = store.head.value.data[: store.head.value.size]
    finally:
        store.unlock()
    store._check(status)
    return found


def system_set(Store store not None, bytes name not None, bytes value not None):
    """Write a system register (last writer wins)."""
    cdef Slice key = bytes_slice(name)
    cdef Slice text = bytes_slice(value)
    cdef int status
    cdef int committed
    if key.size > <size_t>MAX_KEY or text.size > <size_t>MAX_VALUE:
        raise TooLargeError(f"system register {name[:40]!r}: its name or value is over the limit")
    with nogil:
        store.lock()
        status = Status.ERR_FAILED if store.failed else store.load(SPACE_SYSTEM, key)
        if status >= 0:
            status = store.delta_begin() | put_register(&store.delta, 0, store.head.dot, text)
        if status == Status.OK:
            status = store.delta_end()
        committed = store.commit_held()
    store._settle(status, committed)


def system_items(Store store not None, bytes prefix=b""):
    """All system registers whose name begins with `prefix`, as a list of (name, value)."""
    cdef LsmIterator* it = NULL
    cdef Head head
    cdef Slice stored
    cdef int status
    cdef bytes start = bytes([SPACE_SYSTEM]) + prefix
    cdef Slice first = bytes_slice(start)
    found = []
    head_init(&head)
    with nogil:
        store.lock()
    try:
        store._check(store.failed)
        it = store.lsm.iterator()
        if it == NULL:
            raise MemoryError("out of memory for a scan")
        with nogil:
            status = store.lsm.seek(it, first)
        while status == 1:
            stored = store.lsm.key(it)
            name = stored.data[: stored.size]
            if not name.startswith(start):
                break
            status = head_decode(&head, store.lsm.value(it))
            if status == Status.OK and head.has_register and not head.tombstone:
                found.append((name[1:], head.value.data[: head.value.size]))
            with nogil:
                status = status if status < 0 else store.lsm.next(it)
    finally:
        if it != NULL:
            store.lsm.iterator_free(it)
        store.unlock()
        head_free(&head)
    store._check(status)
    return found
