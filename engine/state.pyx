"""The state of a key: codecs and the questions that a state answers by itself.

Nothing here combines two states; that is `join`'s alone.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove, memset

from everwrite.clock cimport Dot, dot_compare
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    get_bytes,
    get_slice,
    get_u8,
    get_u64,
    get_varint,
    put_bytes,
    put_slice,
    put_u8,
    put_u64,
    put_varint,
    reader_left,
    reader_of,
    slice_of,
)
from everwrite.decimals cimport parse_integer, write_decimal
from everwrite.status cimport Status

cdef enum HeadFlag:
    HAS_REGISTER = 1
    IS_TOMBSTONE = 2
    HAS_EXPIRY = 4
    HAS_ROWS = 8           # else the context is exactly the register's dot
    HAS_COLLECTIONS = 16
    HAS_LOST = 32
    KNOWN_HEAD_FLAGS = 63
    HAS_RANKS = 128        # of a collection's kind

cdef enum RowFlag:
    HAS_COUNTER = 1
    HAS_FLOOR = 2
    KNOWN_ROW_FLAGS = 3


# ---- rows ----

cdef const Row* rows_find(const Row* rows, size_t size, uint64_t origin) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if rows[i].origin >= origin:
            return &rows[i] if rows[i].origin == origin else NULL
    return NULL


cdef Row* rows_insert(Row** rows, size_t* size, size_t* capacity, uint64_t origin) noexcept nogil:
    cdef size_t at = 0
    cdef size_t grown
    cdef Row* moved
    while at < size[0] and rows[0][at].origin < origin:
        at += 1
    if at < size[0] and rows[0][at].origin == origin:
        return &rows[0][at]
    if size[0] == capacity[0]:
        grown = capacity[0] * 2 if capacity[0] else 4
        moved = <Row*>realloc(rows[0], grown * sizeof(Row))
        if moved == NULL:
            return NULL
        rows[0] = moved
        capacity[0] = grown
    memmove(&rows[0][at + 1], &rows[0][at], (size[0] - at) * sizeof(Row))
    memset(&rows[0][at], 0, sizeof(Row))
    rows[0][at].origin = origin
    size[0] += 1
    return &rows[0][at]


cdef bint row_live(const Row* row) noexcept nogil:
    return row.counter > row.floor


cdef bint rows_sum(const Row* rows, size_t size, wide_t* sum, Dot* newest) noexcept nogil:
    """The exact sum of the live contributions, and the newest live increment's dot."""
    cdef size_t i
    cdef bint any_live = False
    cdef Dot dot
    cdef wide_t total = 0
    newest.origin = 0
    newest.timestamp = 0
    for i in range(size):
        if not row_live(&rows[i]):
            continue
        any_live = True
        # Totals wrap: only their difference means something.
        total = total + <int64_t>(<uint64_t>rows[i].total - <uint64_t>rows[i].floor_total)
        dot.origin = rows[i].origin
        dot.timestamp = rows[i].counter
        if dot_compare(dot, newest[0]) > 0:
            newest[0] = dot
    sum[0] = total
    return any_live


cdef int64_t saturate(wide_t value) noexcept nogil:
    """Concurrent increments may leave 64 bits together: the nearest end shows then, everywhere the same."""
    if value > INT64_MAX:
        return INT64_MAX
    if value < INT64_MIN:
        return INT64_MIN
    return <int64_t>value


cdef int _encode_rows(const Row* rows, size_t size, bint with_context, Buffer* into) noexcept nogil:
    cdef size_t i
    cdef int failed = put_varint(into, size)
    cdef uint8_t flags
    for i in range(size):
        flags = 0
        if rows[i].counter:
            flags |= RowFlag.HAS_COUNTER
        if rows[i].floor:
            flags |= RowFlag.HAS_FLOOR
        failed |= put_u64(into, rows[i].origin)
        failed |= put_u8(into, flags)
        if with_context:
            failed |= put_u64(into, rows[i].context)
        if flags & RowFlag.HAS_COUNTER:
            failed |= put_u64(into, rows[i].counter)
            failed |= put_u64(into, <uint64_t>rows[i].total)
        if flags & RowFlag.HAS_FLOOR:
            failed |= put_u64(into, rows[i].floor)
            failed |= put_u64(into, <uint64_t>rows[i].floor_total)
    return Status.ERR_MEMORY if failed else Status.OK


cdef int _decode_rows(
    Row** rows, size_t* size, size_t* capacity, bint with_context, Reader* r
) noexcept nogil:
    cdef uint64_t count = get_varint(r)
    cdef uint64_t i
    cdef uint64_t origin
    cdef uint64_t previous = 0
    cdef uint8_t flags
    cdef Row* row
    for i in range(count):
        origin = get_u64(r)
        flags = get_u8(r)
        if r.failed or flags & ~RowFlag.KNOWN_ROW_FLAGS or (i and origin <= previous):
            return Status.ERR_DECODE
        previous = origin
        row = rows_insert(rows, size, capacity, origin)
        if row == NULL:
            return Status.ERR_MEMORY
        if with_context:
            row.context = get_u64(r)
        if flags & RowFlag.HAS_COUNTER:
            row.counter = get_u64(r)
            row.total = <int64_t>get_u64(r)
        if flags & RowFlag.HAS_FLOOR:
            row.floor = get_u64(r)
            row.floor_total = <int64_t>get_u64(r)
    return Status.ERR_DECODE if r.failed else Status.OK


# ---- heads ----

cdef inline Dot _get_dot(Reader* r) noexcept nogil:
    cdef Dot dot
    dot.origin = get_u64(r)
    dot.timestamp = get_u64(r)
    return dot


cdef inline int _put_dot(Buffer* into, Dot dot) noexcept nogil:
    return put_u64(into, dot.origin) | put_u64(into, dot.timestamp)


cdef void head_init(Head* head) noexcept nogil:
    memset(head, 0, sizeof(Head))


cdef void head_free(Head* head) noexcept nogil:
    free(head.rows)
    free(head.collections)
    memset(head, 0, sizeof(Head))


cdef void head_clear(Head* head) noexcept nogil:
    cdef Row* rows = head.rows
    cdef size_t capacity = head.capacity
    cdef Collection* collections = head.collections
    memset(head, 0, sizeof(Head))
    head.collections = collections
    head.rows = rows
    head.capacity = capacity


cdef uint64_t head_context(const Head* head, uint64_t origin) noexcept nogil:
    cdef const Row* row = rows_find(head.rows, head.size, origin)
    return 0 if row == NULL else row.context


cdef Row* head_row(Head* head, uint64_t origin) noexcept nogil:
    return rows_insert(&head.rows, &head.size, &head.capacity, origin)


cdef const Collection* head_find(const Head* head, int kind) noexcept nogil:
    cdef int i
    for i in range(head.collection_count):
        if head.collections[i].kind == kind:
            return &head.collections[i]
    return NULL


cdef int _reserve_collections(Head* head) noexcept nogil:
    if head.collections == NULL:
        head.collections = <Collection*>calloc(ELEMENT_KIND_COUNT, sizeof(Collection))
    return Status.OK if head.collections != NULL else Status.ERR_MEMORY


cdef Collection* head_collection(Head* head, int kind) noexcept nogil:
    cdef int at = 0
    cdef int i
    if _reserve_collections(head) < 0:
        return NULL
    while at < head.collection_count and head.collections[at].kind < kind:
        at += 1
    if at == head.collection_count or head.collections[at].kind != kind:
        for i in range(head.collection_count, at, -1):
            head.collections[i] = head.collections[i - 1]
        memset(&head.collections[at], 0, sizeof(Collection))
        head.collections[at].kind = kind
        head.collection_count += 1
    return &head.collections[at]


cdef uint64_t head_count(const Head* head, int kind) noexcept nogil:
    cdef const Collection* held = head_find(head, kind)
    return 0 if held == NULL else held.count


cdef int head_live_kinds(const Head* head) noexcept nogil:
    cdef int mask = 0
    cdef int i
    for i in range(head.collection_count):
        if head.collections[i].count:
            mask |= 1 << head.collections[i].kind
    return mask


cdef int _decode_collections(Head* head, Reader* r) noexcept nogil:
    cdef int count = get_u8(r)
    cdef int previous = 0
    cdef int ranked
    cdef int i
    if count == 0 or count > ELEMENT_KIND_COUNT:
        return Status.ERR_DECODE
    if _reserve_collections(head) < 0:
        return Status.ERR_MEMORY
    for i in range(count):
        ranked = get_u8(r)
        head.collections[i].kind = ranked & ~HeadFlag.HAS_RANKS
        head.collections[i].newest = _get_dot(r)
        head.collections[i].count = get_varint(r)
        head.collections[i].levels = get_u8(r) if ranked & HeadFlag.HAS_RANKS else 0
        if head.collections[i].kind <= previous or not is_element_kind(head.collections[i].kind):
            return Status.ERR_DECODE
        if ranked & HeadFlag.HAS_RANKS and not 0 < head.collections[i].levels <= Limit.RANK_LEVELS_MAX:
            return Status.ERR_DECODE
        previous = head.collections[i].kind
    head.collection_count = count
    head.sum.low = get_u64(r)
    head.sum.high = get_u64(r)
    return Status.ERR_DECODE if r.failed else Status.OK


cdef int _encode_collections(const Head* head, Buffer* into) noexcept nogil:
    cdef int failed = put_u8(into, <uint8_t>head.collection_count)
    cdef const Collection* held
    cdef int i
    for i in range(head.collection_count):
        held = &head.collections[i]
        failed |= put_u8(into, <uint8_t>(held.kind | (HeadFlag.HAS_RANKS if held.levels else 0)))
        failed |= _put_dot(into, held.newest) | put_varint(into, held.count)
        if held.levels:
            failed |= put_u8(into, <uint8_t>held.levels)
    return failed | put_u64(into, head.sum.low) | put_u64(into, head.sum.high)


cdef int head_decode(Head* head, Slice stored) noexcept nogil:
    cdef Reader r = reader_of(stored)
    cdef uint8_t flags = get_u8(&r)
    cdef Row* row
    cdef int status
    head_clear(head)
    if r.failed or flags & ~HeadFlag.KNOWN_HEAD_FLAGS:
        return Status.ERR_DECODE
    if flags & HeadFlag.HAS_REGISTER:
        head.has_register = True
        head.tombstone = (flags & HeadFlag.IS_TOMBSTONE) != 0
        head.dot = _get_dot(&r)
    if flags & HeadFlag.HAS_EXPIRY:
        head.has_expiry = True
        head.expiry_dot = _get_dot(&r)
        head.deadline = <int64_t>get_u64(&r)
    if flags & HeadFlag.HAS_LOST:
        head.has_lost = True
        head.lost = _get_dot(&r)
    if flags & HeadFlag.HAS_COLLECTIONS:
        status = _decode_collections(head, &r)
        if status < 0:
            return status
    if flags & HeadFlag.HAS_ROWS:
        status = _decode_rows(&head.rows, &head.size, &head.capacity, True, &r)
        if status < 0:
            return status
    elif head.has_register:
        row = head_row(head, head.dot.origin)
        if row == NULL:
            return Status.ERR_MEMORY
        row.context = head.dot.timestamp
    if r.failed:
        return Status.ERR_DECODE
    head.value = get_bytes(&r, reader_left(&r))
    return Status.OK


cdef int head_encode(const Head* head, Buffer* into) noexcept nogil:
    cdef uint8_t flags = 0
    cdef int failed
    if head.has_register:
        flags |= HeadFlag.HAS_REGISTER
        if head.tombstone:
            flags |= HeadFlag.IS_TOMBSTONE
    if head.has_expiry:
        flags |= HeadFlag.HAS_EXPIRY
    if head.has_lost:
        flags |= HeadFlag.HAS_LOST
    if head.collection_count:
        flags |= HeadFlag.HAS_COLLECTIONS
    if not (
        head.has_register
        and head.size == 1
        and head.rows[0].origin == head.dot.origin
        and head.rows[0].context == head.dot.timestamp
        and head.rows[0].counter == 0
        and head.rows[0].floor == 0
    ):
        flags |= HeadFlag.HAS_ROWS
    failed = put_u8(into, flags)
    if head.has_register:
        failed |= _put_dot(into, head.dot)
    if head.has_expiry:
        failed |= _put_dot(into, head.expiry_dot)
        failed |= put_u64(into, <uint64_t>head.deadline)
    if head.has_lost:
        failed |= _put_dot(into, head.lost)
    if flags & HeadFlag.HAS_COLLECTIONS:
        failed |= _encode_collections(head, into)
    if flags & HeadFlag.HAS_ROWS:
        failed |= _encode_rows(head.rows, head.size, True, into)
    if head.has_register and not head.tombstone:
        failed |= put_bytes(into, head.value.data, head.value.size)
    return Status.ERR_MEMORY if failed else Status.OK


cdef bint head_string_live(const Head* head) noexcept nogil:
    cdef size_t i
    if head.has_register and not head.tombstone:
        return True
    for i in range(head.size):
        if row_live(&head.rows[i]):
            return True
    return False


cdef int head_kind(const Head* head) noexcept nogil:
    """The kind that shows: of the alive ones, the one with the newest dot."""
    cdef int kind = Kind.KIND_NONE
    cdef Dot best
    cdef wide_t sum
    cdef int i
    best.origin = 0
    best.timestamp = 0
    if head.collection_count == 0:
        return Kind.KIND_STRING if head_string_live(head) else Kind.KIND_NONE
    if rows_sum(head.rows, head.size, &sum, &best):
        kind = Kind.KIND_STRING
    if head.has_register and not head.tombstone:
        kind = Kind.KIND_STRING
        if dot_compare(head.dot, best) > 0:
            best = head.dot
    for i in range(head.collection_count):
        if head.collections[i].count and dot_compare(head.collections[i].newest, best) > 0:
            best = head.collections[i].newest
            kind = head.collections[i].kind
    return kind


cdef int64_t head_deadline(const Head* head) noexcept nogil:
    # A register written after the deadline was set has cleared it.
    if not head.has_expiry or (head.has_register and dot_compare(head.expiry_dot, head.dot) < 0):
        return 0
    return head.deadline


cdef bint head_expired(const Head* head, int64_t now_ms) noexcept nogil:
    cdef int64_t deadline = head_deadline(head)
    return deadline != 0 and deadline <= now_ms


# ---- elements ----

cdef void element_init(Element* element) noexcept nogil:
    memset(element, 0, sizeof(Element))


cdef void element_free(Element* element) noexcept nogil:
    free(element.dots)
    free(element.rows)
    memset(element, 0, sizeof(Element))


cdef void element_clear(Element* element) noexcept nogil:
    element.size = 0
    element.row_count = 0


cdef int element_value_size(int kind) noexcept nogil:
    if kind == Kind.KIND_SET or kind == Kind.KIND_FLAG:
        return 0
    if kind == Kind.KIND_MAX or kind == Kind.KIND_MIN or kind == Kind.KIND_BOUNDED or kind == Kind.KIND_SORTED_SET:
        return 8
    if kind == Kind.KIND_HYPERLOGLOG:
        return REGISTERS_BYTES
    return -1


cdef int element_add_dot(Element* element, Dot dot, Slice value) noexcept nogil:
    cdef size_t at = 0
    cdef size_t capacity
    cdef ElementDot* grown
    while at < element.size and dot_compare(element.dots[at].dot, dot) < 0:
        at += 1
    if at < element.size and dot_compare(element.dots[at].dot, dot) == 0:
        return Status.OK
    if element.size == element.capacity:
        capacity = element.capacity * 2 if element.capacity else 4
        grown = <ElementDot*>realloc(element.dots, capacity * sizeof(ElementDot))
        if grown == NULL:
            return Status.ERR_MEMORY
        element.dots = grown
        element.capacity = capacity
    memmove(&element.dots[at + 1], &element.dots[at], (element.size - at) * sizeof(ElementDot))
    element.dots[at].dot = dot
    element.dots[at].value = value
    element.size += 1
    return Status.OK


cdef int element_decode(Element* element, Slice stored) noexcept nogil:
    cdef Reader r = reader_of(stored)
    cdef uint64_t count = get_varint(&r)
    cdef uint64_t _i
    cdef Dot dot
    cdef Slice value
    cdef int status
    element_clear(element)
    for _i in range(count):
        dot = _get_dot(&r)
        value = get_slice(&r)
        if r.failed:
            return Status.ERR_DECODE
        if element_add_dot(element, dot, value) < 0:
            return Status.ERR_MEMORY
    status = _decode_rows(&element.rows, &element.row_count, &element.row_capacity, False, &r)
    if status == Status.OK and reader_left(&r):
        return Status.ERR_DECODE
    return status


cdef int element_encode(const Element* element, Buffer* into) noexcept nogil:
    cdef size_t i
    cdef int failed = put_varint(into, element.size)
    for i in range(element.size):
        failed |= _put_dot(into, element.dots[i].dot)
        failed |= put_slice(into, element.dots[i].value)
    failed |= _encode_rows(element.rows, element.row_count, False, into)
    return Status.ERR_MEMORY if failed else Status.OK


cdef bint element_live(const Element* element) noexcept nogil:
    cdef size_t i
    if element.size:
        return True
    for i in range(element.row_count):
        if row_live(&element.rows[i]):
            return True
    return False


cdef bint element_counts(int kind, Slice name) noexcept nogil:
    return kind != Kind.KIND_BOUNDED or name.size == CREATION_NAME


# ---- what is shown ----

cdef int show(
    bint has_base, Dot base_dot, Slice base, const Row* rows, size_t size, char* scratch, Slice* shown
) noexcept nogil:
    cdef wide_t sum
    cdef int64_t number = 0
    cdef Dot newest
    if not rows_sum(rows, size, &sum, &newest):
        if has_base:
            shown[0] = base
            return 1
        return 0
    if has_base and not parse_integer(base, &number):
        # Text met increments that it hadn't seen: the newer of the two shows.
        if dot_compare(base_dot, newest) > 0:
            shown[0] = base
            return 1
        number = 0
    shown[0] = slice_of(scratch, write_decimal(<uint8_t*>scratch, saturate(sum + number)))
    return 1


# ---- keys of entries ----

cdef int entry_key(Buffer* into, int space, Slice key) noexcept nogil:
    into.size = 0
    return put_u8(into, <uint8_t>space) | put_bytes(into, key.data, key.size)


cdef int element_key(Buffer* into, Slice key, int kind, Slice name) noexcept nogil:
    cdef int failed = collection_key(into, Space.SPACE_ELEMENT, key)
    return failed | put_u8(into, <uint8_t>kind) | put_bytes(into, name.data, name.size)


cdef int put_expiry_key(Buffer* into, int64_t deadline, Slice key) noexcept nogil:
    cdef int shift
    cdef int failed
    into.size = 0
    failed = put_u8(into, <uint8_t>Space.SPACE_EXPIRY)
    for shift in range(56, -8, -8):
        failed |= put_u8(into, <uint8_t>((<uint64_t>deadline >> shift) & 0xFF))
    return failed | put_bytes(into, key.data, key.size)
