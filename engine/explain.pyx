"""Why a key shows what it shows."""

from libc.stdint cimport int64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport Slice, slice_of
from everwrite.registers cimport extreme_shown
from everwrite.state cimport (
    KIND_BOUNDED,
    KIND_FLAG,
    KIND_HYPERLOGLOG,
    KIND_MAP,
    KIND_MAX,
    KIND_MIN,
    KIND_MULTI,
    KIND_NONE,
    KIND_SEQUENCE,
    KIND_SET,
    KIND_SORTED_SET,
    KIND_STRING,
    Collection,
    head_deadline,
    row_live,
    rows_sum,
    wide_t,
)
from everwrite.store cimport Store

from everwrite.kinds import KIND_NAMES

# By which rule the elements of a kind make up what it shows.
RULES = {
    KIND_SET: "add-wins set: an element stays unless a remove has seen its add",
    KIND_MULTI: "multi-value register: every value that no later write has seen",
    KIND_FLAG: "flag: enabled while an enabling is left that no disabling has seen",
    KIND_MAX: "max register: the largest value that no delete has seen",
    KIND_MIN: "min register: the smallest value that no delete has seen",
    KIND_HYPERLOGLOG: "HyperLogLog: estimated from the union of all additions that no delete has seen",
    KIND_BOUNDED: "bounded counter: per creation that no delete has seen, what was added less what was used up",
    KIND_SORTED_SET: "sorted set: per member, the newest score that no remove has seen, plus its increments",
    KIND_SEQUENCE: "sequence: every item that no remove has seen, by position, each with its newest value",
    KIND_MAP: "map: per field, the newest write that no remove has seen, plus its increments",
}


cdef dict _dot(Dot dot):
    return {
        "origin": dot.origin,
        "timestamp": dot.timestamp,
        "physical_ms": dot.timestamp >> 16,
        "logical": dot.timestamp & 0xFFFF,
    }


def why(Store store not None, bytes key not None):
    """What a key shows and by which rule; origins as ints, times in Unix ms.

    Returns a dict: "key", "type", "value" (of all types that show one), "visible" (the dot of the write that shows, or
    None), "rule" (words), "context" (origin -> timestamp), "lost" (dots of concurrent register writes that lost, the
    newest only), "expires_at_ms" (or None), "substates" (what the key holds of each type that it was ever written as,
    and always of register, counter, set and map).
    """
    cdef Slice name = slice_of(<const unsigned char*>key, len(key))
    cdef Slice value
    cdef wide_t total
    cdef int64_t number = 0
    cdef Dot newest
    cdef int status
    cdef Collection held
    cdef size_t i
    cdef int j
    with nogil:
        store.lock()
        status = store.begin(name)
    try:
        store._check(status)
        what = status
        head = store.head
        visible = None
        expired = store.expired
        context = {head.rows[i].origin: head.rows[i].context for i in range(head.size)}
        live = rows_sum(head.rows, head.size, &total, &newest)
        written = bool(head.has_register and not head.tombstone)
        substates = {
            "register": None if not head.has_register else {
                "dot": _dot(head.dot), "deleted": bool(head.tombstone),
            },
            "counter": [
                {
                    "origin": head.rows[i].origin,
                    "amount": _difference(head.rows[i].total, head.rows[i].floor_total),
                    "timestamp": head.rows[i].counter,
                }
                for i in range(head.size)
                if row_live(&head.rows[i])
            ],
            "set": {"elements": 0, "newest": None},
            "map": {"fields": 0, "newest": None},
        }
        for j in range(head.collection_count):
            held = head.collections[j]
            substates[KIND_NAMES[held.kind]] = {
                "fields" if held.kind == KIND_MAP else "elements": held.count,
                "newest": _dot(held.newest) if held.count else None,
            }
            if held.kind == what:
                visible = _dot(held.newest)
        if what == KIND_STRING:
            by_rows = live and (not written or newest.timestamp > head.dot.timestamp)
            visible = _dot(newest) if by_rows else _dot(head.dot)
        answer = {
            "key": key,
            "type": KIND_NAMES[what],
            "visible": visible,
            "rule": _rule(what, written, live, bool(head.has_register), expired, bool(head.has_lost), substates),
            "context": context,
            "lost": [_dot(head.lost)] if head.has_lost else [],
            "expires_at_ms": head_deadline(&head) or None,
            "substates": substates,
        }
        if what == KIND_MULTI or what == KIND_MAX or what == KIND_MIN:
            with nogil:
                status = store.op_register_load(name, what)
            if store._check(status) and what == KIND_MULTI:
                answer["value"] = [
                    store.element.dots[i].value.data[: store.element.dots[i].value.size]
                    for i in range(store.element.size)
                ]
            elif status:
                answer["value"] = extreme_shown(&store.element, what)
        elif what == KIND_FLAG:
            answer["value"] = True
        elif what == KIND_HYPERLOGLOG:
            with nogil:
                status = store.op_sketch_count(&name, 1, &number)
            store._check(status)
            answer["value"] = number
        elif what == KIND_BOUNDED:
            with nogil:
                status = store.bounded_read(name)
            answer["value"] = store.bounded_value() if store._check(status) else 0
        elif what == KIND_STRING:
            with nogil:
                status = store.op_get(name, &value)
            # Its deadline may have passed since it was looked at.
            answer["value"] = value.data[: value.size] if store._check(status) else b""
        return answer
    finally:
        store.unlock()


cdef object _difference(int64_t total, int64_t floor):
    return <int64_t>(<unsigned long long>total - <unsigned long long>floor)


def _rule(what, written, live, has_register, expired, has_lost, substates):
    alive = ["string"] if written or live else []
    alive += [name for name in KIND_NAMES if name in substates and substates[name]["newest"]]
    if expired:
        return "expired: the deadline has passed"
    if what == KIND_NONE:
        return "deleted: nothing written is left that no delete has seen" if has_register else "never written"
    if len(alive) > 1:
        return f"type clash: {' and '.join(alive)} were written concurrently; the newest dot shows"
    if what in RULES:
        return RULES[what]
    if live:
        return "counter: the register's integer plus every increment that no reset has seen"
    if has_lost:
        return "lww: concurrent writes met; the highest timestamp won, then the highest origin"
    return "lww: the highest timestamp, then the highest origin"
