"""Positions in a sequence; see positions.pxd for the tree and the bytes."""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.coding cimport (
    Buffer,
    Slice,
    buffer_free,
    buffer_init,
    put_bytes,
    put_u8,
    slice_compare,
    slice_of,
)
from everwrite.status cimport Status

cdef enum Side:
    LEFT = 0x40
    RIGHT = 0x80

cdef enum:
    GROUP_SIZE = 17
    LAST_BYTE = 0x80


# ---- the bytes ----

cdef inline void _store_big(uint8_t* at, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        at[i] = <uint8_t>(value >> (56 - 8 * i))


cdef inline uint64_t _load_big(const uint8_t* at) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(8):
        value = (value << 8) | at[i]
    return value


cdef size_t _store_number(uint8_t* at, uint64_t value, uint8_t flip) noexcept nogil:
    """A length and big-endian bytes: such numbers sort as they count, and with `flip` 0xff the other way."""
    cdef size_t size = 0
    cdef size_t i
    while size < 8 and value >> (8 * size):
        size += 1
    at[0] = <uint8_t>size ^ flip
    for i in range(size):
        at[1 + i] = <uint8_t>(value >> (8 * (size - 1 - i))) ^ flip
    return 1 + size


cdef int _load_number(Slice name, size_t* at, uint8_t flip, uint64_t* value) noexcept nogil:
    cdef size_t size
    cdef size_t i
    if at[0] >= name.size:
        return Status.ERR_DECODE
    size = name.data[at[0]] ^ flip
    if size > 8 or name.size - at[0] - 1 < size:
        return Status.ERR_DECODE
    if size and name.data[at[0] + 1] == flip:
        return Status.ERR_DECODE       # a leading zero: there must be one name of a position only
    value[0] = 0
    for i in range(size):
        value[0] = (value[0] << 8) | (name.data[at[0] + 1 + i] ^ flip)
    at[0] += 1 + size
    return Status.OK


cdef int segment_next(Slice name, size_t at, Segment* segment) noexcept nogil:
    cdef uint8_t flip
    cdef uint64_t since = 0
    if at + 1 == name.size and name.data[at] == LAST_BYTE:
        return 0
    if at + GROUP_SIZE > name.size or (name.data[at] != Side.LEFT and name.data[at] != Side.RIGHT):
        return Status.ERR_DECODE
    segment.on_left = name.data[at] == Side.LEFT
    flip = 0xFF if segment.on_left else 0
    segment.start = at
    segment.opened = _load_big(name.data + at + 1)
    if segment.on_left:
        segment.opened = ~segment.opened
    segment.origin = _load_big(name.data + at + 9)
    segment.item = at + GROUP_SIZE
    segment.end = segment.item
    if (
        _load_number(name, &segment.end, flip, &since) < 0
        or _load_number(name, &segment.end, flip, &segment.index) < 0
        or since > ~segment.opened
    ):
        return Status.ERR_DECODE
    segment.timestamp = segment.opened + since
    return 1


cdef int _last_segment(Slice name, Segment* segment) noexcept nogil:
    """The item's own segment. OK, or ERR_DECODE."""
    cdef size_t at = 0
    cdef int status = Status.ERR_DECODE
    while True:
        status = segment_next(name, at, segment)
        if status <= 0:
            break
        at = segment.end
    return Status.ERR_DECODE if status < 0 or at == 0 else Status.OK


cdef bint position_valid(Slice name) noexcept nogil:
    cdef Segment segment
    return _last_segment(name, &segment) == Status.OK


# ---- where a new item goes ----

cdef struct Gap:
    # Two neighbours and who inserts between them.
    Slice left
    Slice right
    size_t common              # bytes that both begin with
    Segment before             # the neighbours' own segments
    Segment behind
    uint64_t origin
    uint64_t timestamp


cdef void _open_group(Place* place, Slice path, bint on_left, const Gap* gap) noexcept nogil:
    place.path = path
    place.on_left = on_left
    place.since = 0
    place.group_size = GROUP_SIZE
    place.group[0] = Side.LEFT if on_left else Side.RIGHT
    _store_big(&place.group[1], ~gap.timestamp if on_left else gap.timestamp)
    _store_big(&place.group[9], gap.origin)


cdef inline bint _head_before(const uint8_t* head, size_t size, Slice name, size_t at) noexcept nogil:
    """Whether bytes that continue `name[:at]` with `head` sort before `name`. They never are its prefix."""
    return slice_compare(slice_of(head, size), slice_of(name.data + at, min(size, name.size - at))) < 0


cdef bint _fits(const Gap* gap, const Place* place) noexcept nogil:
    """Whether the place, which begins with a part of a neighbour's name, lies between the neighbours.

    The neighbour that it takes its path from and the other share `common` bytes: beyond these,
    the path alone decides on which side of the other it lies.
    """
    cdef uint8_t item[9]
    cdef const uint8_t* head = place.group
    cdef size_t size = place.group_size
    cdef size_t at = place.path.size
    if size == 0:
        size = _store_number(item, place.since, 0xFF if place.on_left else 0)
        head = item
    if gap.left.size and (place.path.data == gap.left.data or at <= gap.common):
        if _head_before(head, size, gap.left, at):
            return False
    if gap.right.size and (place.path.data == gap.right.data or at <= gap.common):
        if not _head_before(head, size, gap.right, at):
            return False
    return True


cdef bint _continue_run(const Gap* gap, const Segment* own, Slice name, Place* place) noexcept nogil:
    """In the group of a neighbour, behind the last or before the first item of this store's run."""
    if gap.timestamp <= own.timestamp:
        return False
    place.path = slice_of(name.data, own.item)
    place.group_size = 0
    place.on_left = own.on_left
    place.since = gap.timestamp - own.opened
    return _fits(gap, place)


cdef bint _beside_left(const Gap* gap, Place* place) noexcept nogil:
    """Stay with this store's item on the left."""
    if not gap.before.on_left and _continue_run(gap, &gap.before, gap.left, place):
        return True
    _open_group(place, slice_of(gap.left.data, gap.before.end), False, gap)
    return _fits(gap, place)


cdef bint _beside_right(const Gap* gap, Place* place) noexcept nogil:
    """Stay with this store's item on the right."""
    if gap.behind.on_left and _continue_run(gap, &gap.behind, gap.right, place):
        return True
    _open_group(place, slice_of(gap.right.data, gap.behind.end), True, gap)
    return _fits(gap, place)


cdef bint _highest(const Gap* gap, Slice name, bint on_left, Place* place) noexcept nogil:
    """The group nearest to the root on the side of `name` or of an item above it, that lies in the gap."""
    cdef Segment segment
    cdef size_t at = 0
    cdef int status
    cdef bint outermost = (gap.left.size if on_left else gap.right.size) == 0
    while True:
        status = segment_next(name, at, &segment)
        if status == 0 or segment.on_left == on_left or (at == 0 and outermost):
            _open_group(place, slice_of(name.data, at), on_left, gap)
            if _fits(gap, place):
                return True
        if status <= 0:
            return False
        at = segment.end


cdef int place_between(Slice left, Slice right, uint64_t origin, uint64_t timestamp, Place* place) noexcept nogil:
    """Who goes on with a run of his own stays inside of it, so that runs of several stores at one
    place never mix; anybody else opens a group as near to the root as the neighbours allow.
    """
    cdef Gap gap
    cdef Place other
    cdef bint mine_left = False
    cdef bint mine_right = False
    cdef bint found
    gap.left = left
    gap.right = right
    gap.origin = origin
    gap.timestamp = timestamp
    gap.common = 0
    if left.size:
        if _last_segment(left, &gap.before) < 0:
            return Status.ERR_DECODE
        mine_left = gap.before.origin == origin
    if right.size:
        if _last_segment(right, &gap.behind) < 0:
            return Status.ERR_DECODE
        mine_right = gap.behind.origin == origin
    while gap.common < left.size and gap.common < right.size and left.data[gap.common] == right.data[gap.common]:
        gap.common += 1
    if mine_left and mine_right and gap.behind.timestamp > gap.before.timestamp:
        # The newer of two own neighbours is the one of the run that is being written.
        if _beside_right(&gap, place):
            return Status.OK
        mine_right = False
    if mine_left and _beside_left(&gap, place):
        return Status.OK
    if mine_right and _beside_right(&gap, place):
        return Status.OK
    if left.size == 0 and right.size == 0:
        _open_group(place, left, False, &gap)
        return Status.OK
    found = left.size != 0 and _highest(&gap, left, False, place)
    if right.size and _highest(&gap, right, True, &other) and (not found or other.path.size < place.path.size):
        place[0] = other
        found = True
    return Status.OK if found else Status.ERR_DECODE


cdef int place_name(const Place* place, uint64_t index, uint64_t count, Buffer* into) noexcept nogil:
    cdef uint8_t item[18]
    cdef uint8_t flip = 0xFF if place.on_left else 0
    cdef size_t size = _store_number(item, place.since, flip)
    size += _store_number(&item[size], count - 1 - index if place.on_left else index, flip)
    into.size = 0
    return (
        put_bytes(into, place.path.data, place.path.size)
        | put_bytes(into, place.group, place.group_size)
        | put_bytes(into, item, size)
        | put_u8(into, LAST_BYTE)
    )


def between(bytes left, bytes right, origin, timestamp, size_t count=1):
    """Positions for `count` items that a store inserts between two neighbours, in list order.

    `left`, `right`: positions, or None for the ends of the list. `origin`, `timestamp`: of the
    inserting update, 64 bits each. Raises ValueError when a neighbour isn't a position, or when
    `left` doesn't lie before `right`.
    """
    cdef Place place
    cdef Buffer name
    cdef size_t i
    cdef Slice before = slice_of(NULL, 0)
    cdef Slice behind = slice_of(NULL, 0)
    if left is not None:
        before = slice_of(<const uint8_t*>left, len(left))
    if right is not None:
        behind = slice_of(<const uint8_t*>right, len(right))
    if left is not None and right is not None and left >= right:
        raise ValueError(f"position {left!r} doesn't lie before {right!r}")
    if left == b"" or right == b"" or place_between(before, behind, origin, timestamp, &place) < 0:
        raise ValueError(f"{left!r} or {right!r} is not a position")
    made = []
    buffer_init(&name)
    try:
        for i in range(count):
            if place_name(&place, i, count, &name) != 0:
                raise MemoryError("out of memory for a position")
            made.append(name.data[: name.size])
    finally:
        buffer_free(&name)
    return made


def is_position(bytes name not None):
    """Whether the bytes are a position."""
    return position_valid(slice_of(<const uint8_t*>name, len(name)))
