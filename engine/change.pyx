"""Codec of changes. The format's page is docs/formats/change.md."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from everwrite.clock cimport Dot
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    get_bytes,
    get_slice,
    get_u8,
    get_u16,
    get_u64,
    get_varint,
    load_u64,
    put_slice,
    put_u8,
    put_u16,
    put_u64,
    put_varint,
    reader_left,
    reader_of,
    slice_compare,
    slice_of,
)
from everwrite.positions cimport position_valid
from everwrite.state cimport (
    CREATION_NAME,
    GIVEN_NAME,
    KIND_BOUNDED,
    KIND_SEQUENCE,
    KINDS_WITH_ROWS,
    USED_NAME,
    ELEMENT_KINDS,
    MAX_KEY,
    MAX_VALUE,
    SPACE_SYSTEM,
    SPACE_USER,
    Element,
    Head,
    Row,
    element_decode,
    element_free,
    element_init,
    element_value_size,
    head_context,
    head_decode,
    head_find,
    head_free,
    head_init,
    is_element_kind,
    row_live,
)
from everwrite.status cimport Status


cdef int change_parse(Slice body, Change* change) noexcept nogil:
    cdef Reader r = reader_of(body)
    change.body = body
    change.flags = get_u8(&r)
    change.dot.origin = get_u64(&r)
    change.dot.timestamp = get_u64(&r)
    change.previous = get_u64(&r)
    change.key = get_slice(&r)
    if r.failed or change.flags & ~ChangeFlag.KNOWN_CHANGE_FLAGS or change.flags == ChangeFlag.CHANGE_PART:
        return Status.ERR_DECODE
    if change.key.size < 1 or change.key.size > <size_t>MAX_KEY + 1:
        return Status.ERR_DECODE
    if change.key.data[0] != SPACE_USER and change.key.data[0] != SPACE_SYSTEM:
        return Status.ERR_DECODE
    change.parts = slice_of(r.at, reader_left(&r))
    return Status.OK


cdef int _counted(Reader* r, size_t width, const uint8_t** items, size_t* count) noexcept nogil:
    cdef uint64_t n = get_varint(r)
    if r.failed or n > reader_left(r) // width:
        r.failed = True
        return Status.ERR_DECODE
    items[0] = get_bytes(r, n * width).data
    count[0] = n
    return Status.OK


cdef inline bint _value_fits(int kind, Slice value) noexcept nogil:
    cdef int size = element_value_size(kind)
    return value.size <= MAX_VALUE if size < 0 else value.size == <size_t>size


cdef bint _name_fits(int kind, Slice name) noexcept nogil:
    if kind == KIND_BOUNDED:
        return name.size == CREATION_NAME or name.size == USED_NAME or name.size == GIVEN_NAME
    if kind == KIND_SEQUENCE:
        return name.size <= MAX_KEY and position_valid(name)
    return name.size <= MAX_KEY


cdef inline bint _rows_fit(int kind, size_t rows) noexcept nogil:
    return rows == 0 or KINDS_WITH_ROWS >> kind & 1


cdef int part_next(Reader* r, Part* part) noexcept nogil:
    if reader_left(r) == 0:
        return Status.ERR_DECODE if r.failed else 0
    part.tag = get_u8(r)
    part.dot_count = 0
    part.floor_count = 0
    if part.tag == PartTag.PART_REGISTER:
        part.flags = get_u8(r)
        part.over.origin = get_u64(r)
        part.over.timestamp = get_u64(r)
        part.value = get_slice(r)
        if part.flags > 3 or part.flags == RegisterFlag.REGISTER_EXPIRED or part.value.size > MAX_VALUE:
            return Status.ERR_DECODE
    elif part.tag == PartTag.PART_COUNTER:
        part.total = <int64_t>get_u64(r)
    elif part.tag == PartTag.PART_FLOORS:
        _counted(r, 24, &part.floors, &part.floor_count)
    elif part.tag == PartTag.PART_EXPIRY:
        part.deadline = <int64_t>get_u64(r)
        if part.deadline < 0:
            return Status.ERR_DECODE
    elif part.tag == PartTag.PART_ELEMENT:
        part.kind = get_u8(r)
        part.name = get_slice(r)
        part.flags = get_u8(r)
        if part.flags & ElementFlag.ELEMENT_WRITE:
            part.value = get_slice(r)
        if part.flags & ElementFlag.ELEMENT_TOTAL:
            part.total = <int64_t>get_u64(r)
        _counted(r, 16, &part.dots, &part.dot_count)
        _counted(r, 24, &part.floors, &part.floor_count)
        if part.flags > 3 or not is_element_kind(part.kind) or not _name_fits(part.kind, part.name):
            return Status.ERR_DECODE
        if not _rows_fit(part.kind, part.floor_count + (part.flags & ElementFlag.ELEMENT_TOTAL)):
            return Status.ERR_DECODE
        if part.flags & ElementFlag.ELEMENT_WRITE and not _value_fits(part.kind, part.value):
            return Status.ERR_DECODE
    elif part.tag == PartTag.PART_CLEAR:
        part.kind = get_u16(r)
        _counted(r, 16, &part.dots, &part.dot_count)
        if part.kind == 0 or part.kind & ~ELEMENT_KINDS:
            return Status.ERR_DECODE
    elif part.tag == PartTag.PART_HEAD:
        part.value = get_slice(r)
    elif part.tag == PartTag.PART_ELEMENT_STATE:
        part.kind = get_u8(r)
        part.name = get_slice(r)
        part.value = get_slice(r)
        if not is_element_kind(part.kind) or not _name_fits(part.kind, part.name):
            return Status.ERR_DECODE
    else:
        return Status.ERR_DECODE
    return Status.ERR_DECODE if r.failed else 1


cdef int change_check(const Change* change) noexcept nogil:
    """Whether every part can be decoded and stands where it may: so that applying can't stop half-way."""
    cdef Reader r = reader_of(change.parts)
    cdef Part part
    cdef Head head
    cdef Element element
    cdef Slice last_name = slice_of(NULL, 0)
    cdef int last_kind = 0
    cdef int status
    cdef size_t i
    cdef bint full = (change.flags & ChangeFlag.CHANGE_FULL_STATE) != 0
    cdef bint part_of_one = is_part(change)
    # The head stands in the first part; the others begin with an element.
    cdef bint first = not (part_of_one and change.previous & <uint64_t>0xFFFFFFFF)
    cdef bint headless = not first
    if part_of_one and not _part_fits(change):
        return Status.ERR_DECODE
    head_init(&head)
    element_init(&element)
    while True:
        status = part_next(&r, &part)
        if status <= 0:
            break
        if full:
            if (part.tag == PartTag.PART_HEAD) != first:
                status = Status.ERR_DECODE
            elif first:
                status = head_decode(&head, part.value)
                for i in range(<size_t>head.collection_count):
                    # An index of another store is not here.
                    if head.collections[i].levels:
                        status = Status.ERR_DECODE
            elif part.tag != PartTag.PART_ELEMENT_STATE:
                status = Status.ERR_DECODE
            elif last_kind and (
                part.kind < last_kind or (part.kind == last_kind and slice_compare(part.name, last_name) <= 0)
            ):
                status = Status.ERR_DECODE
            else:
                last_kind = part.kind
                last_name = part.name
                status = element_decode(&element, part.value)
                if not headless and head_find(&head, part.kind) == NULL:
                    status = Status.ERR_DECODE
                if not _rows_fit(part.kind, element.row_count):
                    status = Status.ERR_DECODE
                for i in range(element.size):
                    if not _value_fits(part.kind, element.dots[i].value):
                        status = Status.ERR_DECODE
        elif part.tag == PartTag.PART_HEAD or part.tag == PartTag.PART_ELEMENT_STATE:
            status = Status.ERR_DECODE
        if status < 0:
            break
        first = False
    head_free(&head)
    element_free(&element)
    if status == 0 and full and (first or (headless and last_kind == 0)):
        return Status.ERR_DECODE
    return status


cdef bint _part_fits(const Change* change) noexcept nogil:
    cdef uint64_t count = change.previous >> 32
    return change.dot.timestamp == 0 and count >= 2 and (change.previous & <uint64_t>0xFFFFFFFF) < count


cdef Dot dot_at(const uint8_t* dots, size_t index) noexcept nogil:
    cdef Dot dot
    dot.origin = load_u64(dots + index * 16)
    dot.timestamp = load_u64(dots + index * 16 + 8)
    return dot


cdef void floor_at(const uint8_t* floors, size_t index, Row* row) noexcept nogil:
    cdef const uint8_t* at = floors + index * 24
    row.origin = load_u64(at)
    row.context = 0
    row.counter = 0
    row.total = 0
    row.floor = load_u64(at + 8)
    row.floor_total = <int64_t>load_u64(at + 16)


cdef int put_dot(Buffer* into, Dot dot) noexcept nogil:
    return put_u64(into, dot.origin) | put_u64(into, dot.timestamp)


cdef int put_change(Buffer* into, uint8_t flags, Dot dot, uint64_t previous, Slice key) noexcept nogil:
    return put_u8(into, flags) | put_dot(into, dot) | put_u64(into, previous) | put_slice(into, key)


cdef int put_register(Buffer* into, uint8_t flags, Dot over, Slice value) noexcept nogil:
    return (
        put_u8(into, PartTag.PART_REGISTER) | put_u8(into, flags) | put_dot(into, over) | put_slice(into, value)
    )


cdef int put_counter(Buffer* into, int64_t total) noexcept nogil:
    return put_u8(into, PartTag.PART_COUNTER) | put_u64(into, <uint64_t>total)


cdef int put_expiry(Buffer* into, int64_t deadline) noexcept nogil:
    return put_u8(into, PartTag.PART_EXPIRY) | put_u64(into, <uint64_t>deadline)


cdef int put_floor_list(Buffer* into, const Row* rows, size_t size) noexcept nogil:
    """A count, then for each live row its counter as the floor."""
    cdef size_t i
    cdef size_t live = 0
    cdef int failed
    for i in range(size):
        live += row_live(&rows[i])
    failed = put_varint(into, live)
    for i in range(size):
        if row_live(&rows[i]):
            failed |= put_u64(into, rows[i].origin)
            failed |= put_u64(into, rows[i].counter)
            failed |= put_u64(into, <uint64_t>rows[i].total)
    return failed


cdef int put_floors(Buffer* into, const Row* rows, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if row_live(&rows[i]):
            return put_u8(into, PartTag.PART_FLOORS) | put_floor_list(into, rows, size)
    return 0


cdef int put_clear(Buffer* into, int mask, const Row* rows, size_t size) noexcept nogil:
    """Remove, of the kinds in `mask`, every element write that the rows' contexts cover."""
    cdef size_t i
    cdef size_t count = 0
    cdef int failed = put_u8(into, PartTag.PART_CLEAR) | put_u16(into, <uint16_t>mask)
    for i in range(size):
        count += rows[i].context != 0
    failed |= put_varint(into, count)
    for i in range(size):
        if rows[i].context:
            failed |= put_u64(into, rows[i].origin)
            failed |= put_u64(into, rows[i].context)
    return failed


cdef bint is_part(const Change* change) noexcept nogil:
    return (change.flags & ChangeFlag.CHANGE_PART) != 0


cdef bint is_state(const Change* change) noexcept nogil:
    return change.flags == ChangeFlag.CHANGE_FULL_STATE and change.dot.timestamp == 0


cdef int change_validate(Slice body, bint state, uint64_t* newest) noexcept nogil:
    """A change (or, with `state`, a dotless full state): well-formed to the last byte?"""
    cdef Change change
    cdef Reader r
    cdef Part part
    cdef Head head
    cdef size_t i
    cdef int status = change_parse(body, &change)
    if status < 0:
        return status
    if not state and change.dot.timestamp == 0:
        state = True
    if state:
        if change.dot.timestamp or not change.flags & ChangeFlag.CHANGE_FULL_STATE:
            return Status.ERR_DECODE
    elif change.dot.timestamp == 0:
        return Status.ERR_DECODE
    status = change_check(&change)
    if status < 0:
        return status
    if change.dot.timestamp > newest[0]:
        newest[0] = change.dot.timestamp
    if change.flags & ChangeFlag.CHANGE_FULL_STATE:
        r = reader_of(change.parts)
        if part_next(&r, &part) == 1 and part.tag != PartTag.PART_HEAD:
            return Status.OK
        head_init(&head)
        status = head_decode(&head, part.value)
        for i in range(head.size):
            newest[0] = max(newest[0], max(head.rows[i].context, head.rows[i].counter))
        if head.has_register:
            newest[0] = max(newest[0], head.dot.timestamp)
        head_free(&head)
    return status


cdef bint full_state_covers(const Change* change, Dot dot) noexcept nogil:
    cdef Reader r = reader_of(change.parts)
    cdef Part part
    cdef Head head
    cdef bint covered
    part_next(&r, &part)
    head_init(&head)
    head_decode(&head, part.value)
    covered = head_context(&head, dot.origin) >= dot.timestamp
    head_free(&head)
    return covered
