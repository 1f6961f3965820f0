"""What must hold between the entries of a store, and within the frames of its log.

Nothing here changes anything. Faults that can be named are returned as words, not raised.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp

from everwrite.change cimport Change, change_check, change_parse
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    get_slice,
    get_u8,
    get_u64,
    get_varint,
    load_u64,
    put_bytes,
    put_u8,
    reader_left,
    reader_of,
    slice_compare,
    slice_equal,
    slice_of,
)
from everwrite.frozen cimport FrozenStore
from everwrite.keyspace cimport FRAME_CHANGES, FRAME_CLAIM, FRAME_HORIZON, FRAME_JOIN, FRAME_PIECE, FRAME_STATE
from everwrite.lsm cimport LsmIterator
from everwrite.ranks cimport SPAN_MAX
from everwrite.scores cimport element_score, sortable
from everwrite.state cimport (
    KIND_SORTED_SET,
    SPACE_ELEMENT,
    SPACE_EXPIRY,
    SPACE_ORDER,
    SPACE_RANK,
    SPACE_SYSTEM,
    SPACE_USER,
    Collection,
    Element,
    Head,
    collection_key,
    element_counts,
    element_decode,
    element_free,
    element_init,
    element_key,
    element_live,
    head_count,
    head_deadline,
    head_decode,
    head_find,
    head_free,
    head_init,
    head_kind,
    is_element_kind,
)
from everwrite.status cimport Status, check
from everwrite.wal_format cimport WAL_FRAME_BYTES
from everwrite.wal_reader cimport WalReader

cdef enum:
    ENTRIES_AT_ONCE = 1000       # before others get the lock
    FAULTS_MAX = 100             # that are listed one by one

cdef enum Fault:
    NO_FAULT = 0
    BAD_HEAD = 1
    BAD_ELEMENT = 2
    BAD_KEY = 3
    NO_HEAD = 4
    NO_COLLECTION = 5
    WRONG_COUNT = 6
    STRAY_DEADLINE = 7
    UNKNOWN_SPACE = 8
    STRAY_ORDER = 9
    WRONG_RANKS = 10

_FAULTS = {
    WRONG_RANKS: "the index of its ranks counts other elements than there are",
    BAD_HEAD: "its head can't be decoded",
    BAD_ELEMENT: "an element of it can't be decoded",
    BAD_KEY: "an entry's key is malformed",
    NO_HEAD: "it has elements, but no head",
    NO_COLLECTION: "it has elements of a kind that its head doesn't list",
    WRONG_COUNT: "its head counts other live elements than there are",
    STRAY_DEADLINE: "the index of deadlines names one that it doesn't have",
    UNKNOWN_SPACE: "an entry of an unknown kind",
    STRAY_ORDER: "the order of its members names one that it doesn't have, or another score",
}


cdef class _Level:
    """A level of an index of ranks beside the level below it (below the first, the elements), span by span."""

    cdef FrozenStore store
    cdef LsmIterator* it              # on the next step of the level below
    cdef int standing
    cdef Buffer prefix                # of the level's entries; empty: of none
    cdef Buffer below                 # ... and of those of the level below
    cdef size_t key_size
    cdef int number
    cdef int highest                  # as the head says
    cdef uint64_t spans
    cdef uint64_t count               # that the span says it has which is being checked
    cdef bint wrong

    def __cinit__(self, FrozenStore store not None):
        self.store = store
        buffer_init(&self.prefix)
        buffer_init(&self.below)

    def __dealloc__(self):
        buffer_free(&self.prefix)
        buffer_free(&self.below)

    cdef bint holds(self, Slice key) noexcept nogil:
        return (
            self.prefix.size != 0
            and key.size >= self.prefix.size
            and memcmp(key.data, self.prefix.data, self.prefix.size) == 0
        )

    cdef int begin(self, Slice entry, size_t key_size) noexcept nogil:
        cdef Slice key = slice_of(entry.data + 5, key_size)
        cdef int kind = entry.data[key_size + 5]
        cdef const Collection* held
        cdef int failed
        cdef int status = self.store.load(SPACE_USER, key)
        if status < 0:
            return status
        held = head_find(&self.store.head, kind) if status == 1 else NULL
        self.key_size = key_size
        self.number = entry.data[key_size + 6]
        self.highest = 0 if held == NULL else held.levels
        self.spans = 0
        self.wrong = self.number > self.highest
        self.prefix.size = 0
        failed = put_bytes(&self.prefix, entry.data, key_size + 7)
        if self.number > 1:
            self.below.size = 0
            failed |= put_bytes(&self.below, entry.data, key_size + 6) | put_u8(&self.below, <uint8_t>(self.number - 1))
        elif kind == KIND_SORTED_SET:
            failed |= collection_key(&self.below, SPACE_ORDER, key)
        else:
            failed |= element_key(&self.below, key, kind, slice_of(NULL, 0))
        if self.it == NULL:
            self.it = self.store.lsm.iterator()
        if failed or self.it == NULL:
            return Status.ERR_MEMORY
        self.standing = self.store.lsm.seek(self.it, buffer_slice(&self.below))
        return self.standing if self.standing < 0 else Status.OK

    cdef bint step(self, Slice* place) noexcept nogil:
        """Where the next step of the level below lies; False when there are no more."""
        cdef Slice key
        if self.standing != 1:
            return False
        key = self.store.lsm.key(self.it)
        if key.size < self.below.size or memcmp(key.data, self.below.data, self.below.size) != 0:
            return False
        place[0] = slice_of(key.data + self.below.size, key.size - self.below.size)
        return True

    cdef int measure(self, const Slice* end) noexcept nogil:
        """Pass the steps of the span that is being checked: `end` is where the next one begins, NULL: nowhere."""
        cdef uint64_t steps = 0
        cdef uint64_t count = 0
        cdef Slice place
        cdef Slice value
        while self.step(&place) and (end == NULL or slice_compare(place, end[0]) < 0):
            steps += 1
            value = self.store.lsm.value(self.it)
            # Damaged counts are blamed where their own level is checked.
            count += 1 if self.number == 1 else (load_u64(value.data) if value.size == 8 else 0)
            self.standing = self.store.lsm.next(self.it)
        if self.standing < 0:
            return self.standing
        if count != self.count or steps > SPAN_MAX:
            self.wrong = True
        if self.number > 1 and end != NULL and not (self.step(&place) and slice_equal(place, end[0])):
            self.wrong = True
        return Status.OK

    cdef int go_on(self, Slice place, uint64_t count) noexcept nogil:
        """To the next span, which begins at the place and says that it has so many elements."""
        cdef int status = Status.OK
        if self.spans:
            status = self.measure(&place)
        elif place.size:
            self.wrong = True
        self.spans += 1
        self.count = count
        return status

    cdef int end(self) noexcept nogil:
        cdef int status
        if self.prefix.size == 0:
            return Status.OK
        status = self.measure(NULL)
        if self.number == self.highest and self.spans > SPAN_MAX:
            self.wrong = True
        # The key is still named when it is blamed.
        self.prefix.size = 0
        return status

    cdef void close(self) noexcept nogil:
        if self.it != NULL:
            self.store.lsm.iterator_free(self.it)
        self.it = NULL


cdef class _Census:
    """One walk over all entries: what was counted, and what was found wrong."""

    cdef FrozenStore store
    cdef list faults
    cdef LsmIterator* it
    cdef Head head
    cdef Element element
    cdef Buffer group                 # prefix of the elements that are being counted; empty: of none
    cdef size_t group_key             # bytes of the key in it
    cdef uint64_t group_live
    cdef uint64_t entries
    cdef uint64_t keys
    cdef uint64_t deadlines           # that heads have
    cdef uint64_t indexed_deadlines
    cdef uint64_t claimed             # live elements by the heads' counts
    cdef uint64_t live                # ... and by the elements
    cdef uint64_t members             # of sorted sets
    cdef uint64_t ordered             # ... and by the index of their order
    cdef uint64_t claimed_levels      # of indexes of ranks, by the heads
    cdef uint64_t levels              # ... and by the entries
    cdef _Level level                 # the one that is being checked

    def __cinit__(self, FrozenStore store not None):
        self.store = store
        self.faults = []
        self.level = _Level(store)
        head_init(&self.head)
        element_init(&self.element)
        buffer_init(&self.group)

    def __dealloc__(self):
        head_free(&self.head)
        element_free(&self.element)
        buffer_free(&self.group)

    cdef void blame(self, Slice key, int fault) noexcept nogil:
        with gil:
            if len(self.faults) < FAULTS_MAX:
                name = key.data[: min(key.size, <size_t>200)] if key.size else b""
                self.faults.append(f"key {name!r}: {_FAULTS[fault]}")

    cdef int check_head(self, Slice key, Slice value) noexcept nogil:
        cdef int i
        if head_decode(&self.head, value) < 0:
            self.blame(slice_of(key.data + 1, key.size - 1), Fault.BAD_HEAD)
            return Status.OK
        for i in range(self.head.collection_count):
            self.claimed += self.head.collections[i].count
            self.claimed_levels += self.head.collections[i].levels
        if key.data[0] == SPACE_USER and head_kind(&self.head):
            self.keys += 1
            self.deadlines += head_deadline(&self.head) != 0
        return Status.OK

    cdef int end_group(self) noexcept nogil:
        """All elements of one kind of one key were seen: does its head know them?"""
        cdef Slice key = slice_of(self.group.data + 5, self.group_key)
        cdef int kind
        cdef int status
        if self.group.size == 0:
            return Status.OK
        kind = self.group.data[self.group.size - 1]
        status = self.store.load(SPACE_USER, key)
        self.group.size = 0
        if status == 0:
            self.blame(key, Fault.NO_HEAD)
        elif status == 1 and head_find(&self.store.head, kind) == NULL:
            self.blame(key, Fault.NO_COLLECTION)
        elif status == 1 and head_count(&self.store.head, kind) != self.group_live:
            self.blame(key, Fault.WRONG_COUNT)
        return status if status < 0 else Status.OK

    cdef int check_element(self, Slice key, Slice value) noexcept nogil:
        cdef size_t size
        cdef size_t prefix
        cdef int status
        if key.size < 6:
            self.blame(key, Fault.BAD_KEY)
            return Status.OK
        size = <size_t>key.data[1] << 24 | <size_t>key.data[2] << 16 | <size_t>key.data[3] << 8 | key.data[4]
        prefix = size + 6
        if prefix > key.size or not is_element_kind(key.data[prefix - 1]):
            self.blame(key, Fault.BAD_KEY)
            return Status.OK
        if self.group.size != prefix or memcmp(self.group.data, key.data, prefix) != 0:
            status = self.end_group()
            if status < 0:
                return status
            if put_bytes(&self.group, key.data, prefix) < 0:
                return Status.ERR_MEMORY
            self.group_live = 0
            self.group_key = size
        if element_decode(&self.element, value) < 0:
            self.blame(slice_of(key.data + 5, size), Fault.BAD_ELEMENT)
        elif element_live(&self.element):
            if element_counts(key.data[prefix - 1], slice_of(key.data + prefix, key.size - prefix)):
                self.group_live += 1
                self.live += 1
            self.members += key.data[prefix - 1] == KIND_SORTED_SET
        return Status.OK

    cdef int check_order(self, Slice key) noexcept nogil:
        """An entry of the order of a sorted set: is there such a member, with this score?"""
        cdef size_t size
        cdef Slice name
        cdef uint64_t score = 0
        cdef int status
        cdef size_t i
        if key.size < 13:
            self.blame(key, Fault.BAD_KEY)
            return Status.OK
        size = <size_t>key.data[1] << 24 | <size_t>key.data[2] << 16 | <size_t>key.data[3] << 8 | key.data[4]
        if size + 13 > key.size:
            self.blame(key, Fault.BAD_KEY)
            return Status.OK
        for i in range(8):
            score = score << 8 | key.data[5 + size + i]
        name = slice_of(key.data + 5, size)
        self.ordered += 1
        status = self.store.load(SPACE_USER, name)
        if status == 1:
            status = self.store.load_element(KIND_SORTED_SET, slice_of(key.data + 13 + size, key.size - 13 - size))
        if status == 0 or (
            status == 1
            and (not element_live(&self.store.element) or sortable(element_score(&self.store.element)) != score)
        ):
            self.blame(name, Fault.STRAY_ORDER)
        return status if status < 0 else Status.OK

    cdef int check_span(self, Slice key, Slice value) noexcept nogil:
        """An entry of an index of ranks: does the span before it hold what it says?"""
        cdef size_t size
        cdef int status
        if key.size < 7:
            self.blame(key, Fault.BAD_KEY)
            return Status.OK
        size = <size_t>key.data[1] << 24 | <size_t>key.data[2] << 16 | <size_t>key.data[3] << 8 | key.data[4]
        if size + 7 > key.size or key.data[size + 6] == 0 or value.size != 8:
            self.blame(key, Fault.BAD_KEY)
            return Status.OK
        if not self.level.holds(key):
            status = self.end_level()
            if status == Status.OK:
                status = self.level.begin(key, size)
            if status < 0:
                return status
            self.levels += 1
        return self.level.go_on(slice_of(key.data + size + 7, key.size - size - 7), load_u64(value.data))

    cdef int end_level(self) noexcept nogil:
        cdef int status = self.level.end()
        if self.level.wrong:
            self.blame(slice_of(self.level.prefix.data + 5, self.level.key_size), Fault.WRONG_RANKS)
            self.level.wrong = False
        return status

    cdef int check_deadline(self, Slice key) noexcept nogil:
        cdef int64_t deadline = 0
        cdef Slice name
        cdef int status
        cdef size_t i
        if key.size < 9:
            self.blame(key, Fault.BAD_KEY)
            return Status.OK
        for i in range(1, 9):
            deadline = (deadline << 8) | key.data[i]
        name = slice_of(key.data + 9, key.size - 9)
        self.indexed_deadlines += 1
        status = self.store.load(SPACE_USER, name)
        if status == 0 or (
            status == 1 and (not head_kind(&self.store.head) or head_deadline(&self.store.head) != deadline)
        ):
            self.blame(name, Fault.STRAY_DEADLINE)
        return status if status < 0 else Status.OK

    cdef int check_entry(self) noexcept nogil:
        cdef Slice key = self.store.lsm.key(self.it)
        cdef Slice value = self.store.lsm.value(self.it)
        cdef int status
        self.entries += 1
        if key.size == 0:
            self.blame(key, Fault.BAD_KEY)
            return Status.OK
        if key.data[0] == SPACE_ELEMENT:
            return self.check_element(key, value)
        status = self.end_group()
        if status < 0:
            return status
        if key.data[0] == SPACE_SYSTEM or key.data[0] == SPACE_USER:
            return self.check_head(key, value)
        if key.data[0] == SPACE_EXPIRY:
            return self.check_deadline(key)
        if key.data[0] == SPACE_ORDER:
            return self.check_order(key)
        if key.data[0] == SPACE_RANK:
            return self.check_span(key, value)
        self.blame(key, Fault.UNKNOWN_SPACE)
        return Status.OK

    cdef int some(self, int status) noexcept nogil:
        """Go on from where the iterator stands, if `status` says so: 1 there is more, 0 the end, negative error."""
        cdef size_t left = ENTRIES_AT_ONCE
        cdef int checked
        while status == 1 and left:
            left -= 1
            checked = self.check_entry()
            if checked < 0:
                return checked
            status = self.store.lsm.next(self.it)
        if status == 0:
            checked = self.end_group()
            if checked >= 0:
                checked = self.end_level()
            if checked < 0:
                return checked
        return status

    cdef int walk(self) except -1:
        cdef int status
        cdef Slice first = slice_of(<const uint8_t*>b"", 0)
        with nogil:
            self.store.lock()
            self.it = self.store.lsm.iterator()
            status = Status.ERR_MEMORY if self.it == NULL else self.store.lsm.seek(self.it, first)
            self.store.unlock()
        try:
            self.store._check(status)
            while status == 1:
                with nogil:
                    self.store.lock()
                    status = Status.ERR_CLOSED if self.store.failed else self.some(status)
                    self.store.unlock()
                self.store._check(status)
        finally:
            with nogil:
                self.store.lock()
                if self.it != NULL:
                    self.store.lsm.iterator_free(self.it)
                self.level.close()
                self.store.unlock()
        return 0


def check_entries(FrozenStore store not None):
    """Walk all entries: (faults as a list of words, entries seen, live keys seen).

    Checked: every entry can be decoded; elements belong to a head that lists their kind and counts them; the index
    of deadlines, the order of sorted sets and the indexes of ranks are exactly what heads and elements say; the number
    of live keys is what the store counts. Raises CorruptionError when a table can't be read.
    """
    cdef _Census census = _Census(store)
    census.walk()
    if not census.faults:
        for what, found, counted in (
            ("live keys", census.keys, store.live_keys),
            ("entries of the index of deadlines", census.indexed_deadlines, census.deadlines),
            ("live elements", census.live, census.claimed),
            ("entries of the order of sorted sets", census.ordered, census.members),
            ("levels of indexes of ranks", census.levels, census.claimed_levels),
        ):
            if found != counted:
                census.faults.append(f"{what}: there are {found}, but {counted} are counted")
    return census.faults, census.entries, census.keys


cdef int _check_frame(Slice payload) noexcept nogil:
    """OK, or ERR_DECODE."""
    cdef Reader r = reader_of(payload)
    cdef int kind = get_u8(&r)
    cdef uint64_t count
    cdef uint64_t _i
    cdef Change change
    if kind == FRAME_PIECE:
        get_varint(&r)
    elif kind == FRAME_CHANGES or kind == FRAME_JOIN:
        if kind == FRAME_JOIN:
            get_varint(&r)
        while reader_left(&r) and not r.failed:
            if change_parse(get_slice(&r), &change) < 0 or change_check(&change) < 0:
                return Status.ERR_DECODE
    elif kind == FRAME_STATE:
        if change_parse(slice_of(r.at, reader_left(&r)), &change) < 0 or change_check(&change) < 0:
            return Status.ERR_DECODE
    elif kind == FRAME_CLAIM or kind == FRAME_HORIZON:
        count = get_varint(&r)
        for _i in range(count):
            get_u64(&r)
            get_u64(&r)
            if r.failed:
                break
    else:
        return Status.ERR_DECODE
    return Status.ERR_DECODE if r.failed else Status.OK


def check_frames(WalReader reader not None, uint64_t limit):
    """Read the frames from where `reader` stands to `limit`, or to the first that is damaged.

    Returns (frames seen, positions of those that are whole, but hold what isn't a frame's content).
    Raises as `WalReader.read`; `reader.position` then stays at the damage.
    """
    cdef Slice payload
    cdef uint64_t frames = 0
    cdef int status = 1
    malformed = []
    while status == 1:
        with nogil:
            while True:
                status = reader.next(limit, &payload)
                if status != 1:
                    break
                frames += 1
                if _check_frame(payload) < 0:
                    status = 2
                    break
        if status == 2:
            malformed.append(reader.position - payload.size - WAL_FRAME_BYTES)
            status = 1
    check(status)
    return frames, malformed
