"""Keys and their states; see keyspace.pxd for the invariants."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from everwrite.change cimport (
    CHANGE_FULL_STATE,
    ELEMENT_TOTAL,
    ELEMENT_WRITE,
    PART_CLEAR,
    PART_COUNTER,
    PART_ELEMENT,
    PART_EXPIRY,
    PART_FLOORS,
    PART_HEAD,
    PART_REGISTER,
    REGISTER_EXPIRED,
    REGISTER_TOMBSTONE,
    Change,
    Part,
    change_parse,
    dot_at,
    floor_at,
    part_next,
    put_change,
    put_register,
)
from everwrite.clock cimport Dot, dot_compare, vector_covers, vector_free, vector_get, vector_init, vector_raise
from everwrite.coding cimport (
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    put_bytes,
    put_u8,
    put_varint,
    reader_left,
    reader_of,
    slice_of,
    store_varint,
)
from everwrite.digest cimport DigestKey, digest_key, head_item, leaf_replace, leaves_new
from everwrite.join cimport (
    CONFLICT,
    Seen,
    join_expiry,
    join_head,
    join_register,
    join_rows,
)
from everwrite.lsm cimport pin_init, pin_release
from everwrite.memtable cimport LARGE_VALUE
from everwrite.state cimport (
    ELEMENT_KINDS,
    SPACE_USER,
    Collection,
    Head,
    Row,
    Sum,
    element_add_dot,
    element_clear,
    entry_key,
    head_clear,
    head_collection,
    head_context,
    head_deadline,
    head_decode,
    head_encode,
    head_kind,
    head_row,
    head_string_live,
    put_expiry_key,
)
from everwrite.status cimport Status, fault_corrupt, fault_key
from everwrite.threads cimport (
    ew_recursive_mutex_init,
    pthread_mutex_destroy,
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_mutex_unlock,
)


cdef class Keyspace(ElementStore):
    """The states of all keys; `TypedKeyspace` adds the typed operations, `Store` files and threads."""

    def __cinit__(self):
        ew_recursive_mutex_init(&self.mutex)
        vector_init(&self.applied)
        pin_init(&self.pin)
        buffer_init(&self.expiry_key)
        buffer_init(&self.delta)
        buffer_init(&self.group)
        self.leaves = leaves_new()
        if self.leaves == NULL:
            raise MemoryError

    def __dealloc__(self):
        pin_release(&self.pin)
        vector_free(&self.applied)
        buffer_free(&self.expiry_key)
        buffer_free(&self.delta)
        buffer_free(&self.group)
        free(self.borrowed)
        free(self.frame)
        free(self.leaves)
        pthread_mutex_destroy(&self.mutex)

    cdef void lock(self) noexcept nogil:
        pthread_mutex_lock(&self.mutex)

    cdef bint trylock(self) noexcept nogil:
        return pthread_mutex_trylock(&self.mutex) == 0

    cdef void unlock(self) noexcept nogil:
        pthread_mutex_unlock(&self.mutex)

    cdef uint64_t last_timestamp(self) noexcept nogil:
        cdef size_t i
        for i in range(self.applied.size):
            if self.applied.dots[i].origin == self.own_origin:
                return self.applied.dots[i].timestamp
        return 0

    cdef int64_t now_ms(self) noexcept nogil:
        return self.clock.now_ms()

    cdef int _fail(self, int status) noexcept nogil:
        # Memory may hold a half-merged change now: nothing may be served or written from it.
        self.failed = status
        return status

    # ---- loading ----

    cdef int load(self, int space, Slice key) noexcept nogil:
        cdef Slice stored
        cdef int found
        pin_release(&self.pin)
        if entry_key(&self.key, space, key) != 0:
            return Status.ERR_MEMORY
        found = self.lsm.get(buffer_slice(&self.key), &self.pin, &stored)
        if found <= 0:
            head_clear(&self.head)
            return found
        if head_decode(&self.head, stored) != Status.OK:
            return fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
        return 1

    cdef uint64_t prefetch(self, Slice key) noexcept nogil:
        cdef uint8_t name[128]
        if key.size >= sizeof(name):
            return 0
        name[0] = <uint8_t>SPACE_USER
        memcpy(&name[1], key.data, key.size)
        return self.lsm.prefetch(slice_of(name, key.size + 1))

    cdef void prefetch_entry(self, uint64_t key_hash) noexcept nogil:
        self.lsm.prefetch_entry(key_hash)

    # ---- local updates ----

    cdef int delta_begin(self) noexcept nogil:
        cdef Dot dot
        cdef uint64_t previous = head_context(&self.head, self.own_origin)
        if self.refused:
            return self.refused
        if previous == 0 and self.head.size:
            # Collection may have left the row out.
            previous = vector_get(&self.horizon, self.own_origin)
        dot.origin = self.own_origin
        dot.timestamp = self.clock.tick()
        self.delta.size = 0
        self.large.size = 0
        return put_change(&self.delta, 0, dot, previous, buffer_slice(&self.key))

    cdef int delta_end(self) noexcept nogil:
        cdef Change change
        cdef int status
        cdef size_t size = self.delta.size
        if self.large.size:
            size += self.large.size + LENGTH_BYTES_MAX
        # What other stores could not take in one batch must not get into the log.
        if self.group.size + self.borrowed_bytes + size > GROUP_BYTES_LIMIT:
            return fault_key(Status.ERR_TOO_LARGE, self.loaded_key())
        status = self.reserve(size)
        if status < 0:
            return status
        status = change_parse(buffer_slice(&self.delta), &change)
        if status < 0:
            return self._fail(Status.ERR_MEMORY)
        status = self.merge(&change)
        if status < 0:
            return status
        self.local_changes += 1
        if vector_raise(&self.applied, change.dot.origin, change.dot.timestamp) < 0:
            return self._fail(Status.ERR_MEMORY)
        return self._log_large() if self.large.size else self.log_change(change.body)

    cdef int put_large_register(self, Slice value) noexcept nogil:
        """The part of a register write, in `delta`, whose value goes straight from where it is to log and table."""
        cdef int failed = put_register(&self.delta, 0, self.head.dot, slice_of(NULL, 0))
        self.large = value
        self.large_at = self.delta.size - 1
        return failed

    # ---- the log ----

    cdef void batch_begin(self) noexcept nogil:
        self.grouping = True

    cdef int batch_end(self) noexcept nogil:
        self.grouping = False
        self.values_stay = False
        return self.log_group()

    cdef int reserve(self, uint64_t size) noexcept nogil:
        if self.refused:
            return self.refused
        return self.wal.reserve(self.group.size + self.borrowed_bytes + size + CHANGE_HEAD_BYTES)

    cdef int log_change(self, Slice body) noexcept nogil:
        cdef Slice parts[2]
        cdef uint8_t head[CHANGE_HEAD_BYTES]
        if not self.grouping and self.group.size == 0:
            # Straight from where it is to the log.
            head[0] = FrameKind.FRAME_CHANGES
            parts[0] = slice_of(head, 1 + store_varint(head + 1, body.size))
            parts[1] = body
            return self._logged(self.wal.append_parts(parts, 2))
        if self.group.size == 0 and put_u8(&self.group, FrameKind.FRAME_CHANGES) != 0:
            return self._fail(Status.ERR_MEMORY)
        if put_varint(&self.group, body.size) != 0:
            return self._fail(Status.ERR_MEMORY)
        # The next update of the group makes its own delta in the place of this one.
        if (
            put_bytes(&self.group, body.data, body.size) if body.data == self.delta.data else self.group_put(body)
        ) != 0:
            return self._fail(Status.ERR_MEMORY)
        return Status.OK if self.grouping else self.log_group()

    cdef int _log_large(self) noexcept nogil:
        """Log the delta with the large value in its place."""
        cdef uint8_t length[10]
        cdef Slice before = slice_of(self.delta.data, self.large_at)
        cdef Slice behind = slice_of(self.delta.data + self.large_at + 1, self.delta.size - self.large_at - 1)
        cdef int length_size = store_varint(length, self.large.size)
        cdef int failed = 0
        if self.group.size == 0:
            failed = put_u8(&self.group, FrameKind.FRAME_CHANGES)
        failed |= put_varint(&self.group, before.size + length_size + self.large.size + behind.size)
        failed |= put_bytes(&self.group, before.data, before.size) | put_bytes(&self.group, length, length_size)
        failed |= self.group_put(self.large) | put_bytes(&self.group, behind.data, behind.size)
        self.large.size = 0
        if failed:
            return self._fail(Status.ERR_MEMORY)
        return Status.OK if self.grouping else self.log_group()

    cdef int group_put(self, Slice bytes) noexcept nogil:
        cdef size_t capacity
        cdef void* grown
        if bytes.size < LARGE_VALUE or (self.grouping and not self.values_stay):
            return put_bytes(&self.group, bytes.data, bytes.size)
        if self.borrowed_count == self.borrowed_capacity:
            capacity = self.borrowed_capacity * 2 if self.borrowed_capacity else 8
            grown = realloc(self.borrowed, capacity * sizeof(Borrowed))
            if grown == NULL:
                return Status.ERR_MEMORY
            self.borrowed = <Borrowed*>grown
            grown = realloc(self.frame, (2 * capacity + 1) * sizeof(Slice))
            if grown == NULL:
                return Status.ERR_MEMORY
            self.frame = <Slice*>grown
            self.borrowed_capacity = capacity
        self.borrowed[self.borrowed_count].at = self.group.size
        self.borrowed[self.borrowed_count].bytes = bytes
        self.borrowed_count += 1
        self.borrowed_bytes += bytes.size
        return Status.OK

    cdef void drop_group(self) noexcept nogil:
        self.group.size = 0
        self.borrowed_count = 0
        self.borrowed_bytes = 0
        self.values_stay = False

    cdef int log_group(self) noexcept nogil:
        cdef size_t at = 0
        cdef size_t i
        cdef int status
        if self.group.size == 0:
            return Status.OK
        if self.borrowed_count == 0:
            status = self.wal.append(buffer_slice(&self.group))
            self.group.size = 0
            return self._logged(status)
        for i in range(self.borrowed_count):
            self.frame[2 * i] = slice_of(self.group.data + at, self.borrowed[i].at - at)
            self.frame[2 * i + 1] = self.borrowed[i].bytes
            at = self.borrowed[i].at
        self.frame[2 * self.borrowed_count] = slice_of(self.group.data + at, self.group.size - at)
        status = self.wal.append_parts(self.frame, 2 * self.borrowed_count + 1)
        self.drop_group()
        return self._logged(status)

    cdef int _logged(self, int status) noexcept nogil:
        # There was room: the log itself has failed. Memory is whole, but nothing may be built on it any more.
        if status < 0:
            self.refused = Status.ERR_FAILED
        return status

    # ---- merging ----

    cdef bint includes(self, uint64_t origin, uint64_t timestamp) noexcept nogil:
        return self.key_context(origin) >= timestamp or vector_covers(&self.applied, origin, timestamp)

    cdef int guard(self, const Change* change) noexcept nogil:
        """Whether the loaded key's context reaches all that the change builds on."""
        cdef Reader r
        cdef Part part
        cdef Dot dot
        cdef size_t i
        if change.dot.timestamp and self.key_context(change.dot.origin) >= change.dot.timestamp:
            return Merge.DUPLICATE
        if change.flags & CHANGE_FULL_STATE:
            return Status.OK
        if not self.includes(change.dot.origin, change.previous):
            return Status.ERR_GUARD
        r = reader_of(change.parts)
        while part_next(&r, &part) == 1:
            if part.tag != PART_ELEMENT and part.tag != PART_CLEAR:
                continue
            for i in range(part.dot_count):
                dot = dot_at(part.dots, i)
                if not self.includes(dot.origin, dot.timestamp):
                    return Status.ERR_GUARD
        return Status.OK

    cdef int apply_change(self, Slice body) noexcept nogil:
        cdef Change change
        cdef int status = change_parse(body, &change)
        if status < 0:
            return status
        status = self.load(change.key.data[0], slice_of(change.key.data + 1, change.key.size - 1))
        if status < 0:
            return status
        status = self.guard(&change)
        if status != Status.OK:
            return status
        return self.merge(&change)

    cdef int merge(self, const Change* change) noexcept nogil:
        """state' = join(state, change), for the loaded key. A failure inside leaves the store failed."""
        cdef int kind_before = head_kind(&self.head)
        cdef int64_t deadline_before = head_deadline(&self.head)
        cdef int alive_before = _kinds_alive(&self.head)
        cdef DigestKey place = digest_key(buffer_slice(&self.key))
        cdef Sum item = head_item(&self.head, place)
        cdef Row* row
        cdef int status
        if change.flags & CHANGE_FULL_STATE:
            status = self._merge_full(change)
        else:
            status = self._merge_delta(change)
        if status < 0:
            return self._fail(status)
        if change.dot.timestamp:
            row = head_row(&self.head, change.dot.origin)
            if row == NULL:
                return self._fail(Status.ERR_MEMORY)
            if row.context < change.dot.timestamp:
                row.context = change.dot.timestamp
        if alive_before <= 1 and _kinds_alive(&self.head) > 1:
            self.conflicts_type += 1
        if self.key.data[0] == SPACE_USER:
            self.user_change_count += 1
        status = self._store_head(kind_before, deadline_before, place, item)
        return self._fail(status) if status < 0 else Status.OK

    cdef int _merge_delta(self, const Change* change) noexcept nogil:
        cdef Reader r = reader_of(change.parts)
        cdef Part part
        cdef Seen seen
        cdef Row row
        cdef int status
        cdef size_t i
        cdef bint own = change.dot.origin == self.own_origin
        seen.rows = NULL
        seen.own = change.dot
        while True:
            status = part_next(&r, &part)
            if status <= 0:
                return status
            seen.dots = part.dots
            seen.dot_count = part.dot_count
            seen.vector = part.tag == PART_CLEAR
            if part.tag == PART_REGISTER:
                if part.flags & REGISTER_EXPIRED:
                    if not self.head.has_register or dot_compare(self.head.dot, part.over) <= 0:
                        status = join_register(&self.head, part.over, True, part.value, part.over)
                else:
                    if self.large.size and change.body.data == self.delta.data:
                        part.value = self.large
                    status = join_register(
                        &self.head, change.dot, part.flags & REGISTER_TOMBSTONE, part.value, part.over
                    )
                    if status & CONFLICT and not own:
                        self.conflicts_lww += 1
            elif part.tag == PART_COUNTER:
                row.origin = change.dot.origin
                row.context = 0
                row.counter = change.dot.timestamp
                row.total = part.total
                row.floor = 0
                status = join_rows(&self.head.rows, &self.head.size, &self.head.capacity, &row, 1)
            elif part.tag == PART_FLOORS:
                for i in range(part.floor_count):
                    floor_at(part.floors, i, &row)
                    status = join_rows(&self.head.rows, &self.head.size, &self.head.capacity, &row, 1)
                    if status < 0:
                        break
            elif part.tag == PART_EXPIRY:
                status = join_expiry(&self.head, change.dot, part.deadline)
            elif part.tag == PART_CLEAR:
                status = self.sweep_kinds(part.kind, &seen, NULL)
            elif part.tag == PART_ELEMENT:
                status = self._delta_element(change, &part, &seen)
            if status < 0:
                return status

    cdef int _delta_element(self, const Change* change, const Part* part, const Seen* seen) noexcept nogil:
        cdef Row row
        cdef Collection* held
        cdef int status = Status.OK
        cdef size_t i
        element_clear(&self.their_element)
        if part.flags & ELEMENT_WRITE:
            status = element_add_dot(&self.their_element, change.dot, part.value)
        if part.flags & ELEMENT_TOTAL:
            row.origin = change.dot.origin
            row.context = 0
            row.counter = change.dot.timestamp
            row.total = part.total
            row.floor = 0
            status |= join_rows(
                &self.their_element.rows, &self.their_element.row_count, &self.their_element.row_capacity, &row, 1
            )
        for i in range(part.floor_count):
            floor_at(part.floors, i, &row)
            status |= join_rows(
                &self.their_element.rows, &self.their_element.row_count, &self.their_element.row_capacity, &row, 1
            )
        if status < 0:
            return status
        if part.flags:
            held = head_collection(&self.head, part.kind)
            if held == NULL:
                return Status.ERR_MEMORY
            if dot_compare(change.dot, held.newest) > 0:
                held.newest = change.dot
        status = self.load_element(part.kind, part.name)
        if status < 0:
            return status
        return self.merge_element(part.kind, status == 1, seen)

    cdef int _merge_full(self, const Change* change) noexcept nogil:
        cdef Reader r = reader_of(change.parts)
        cdef Part part
        cdef Seen seen
        cdef Slice elements
        cdef int status = part_next(&r, &part)
        cdef size_t i
        if status != 1 or part.tag != PART_HEAD:
            return Status.ERR_DECODE
        status = head_decode(&self.theirs, part.value)
        if status < 0:
            return status
        if self.spell_out_context() < 0:
            return Status.ERR_MEMORY
        elements = slice_of(r.at, reader_left(&r))
        for i in range(self.theirs.size):
            # Whoever lets a state in has checked the drift. After a restart, too, what is written next must be newer.
            if self.theirs.rows[i].context > self.clock.last:
                self.clock.last = self.theirs.rows[i].context
        seen.rows = self.theirs.rows
        seen.row_count = self.theirs.size
        seen.dots = NULL
        seen.dot_count = 0
        seen.vector = False
        status = self.sweep_kinds(ELEMENT_KINDS, &seen, &elements)
        if status < 0:
            return status
        status = join_head(&self.head, &self.theirs)
        if status >= 0 and status & CONFLICT:
            self.conflicts_lww += 1
        return status

    cdef int _store_head(self, int kind_before, int64_t deadline_before, DigestKey place, Sum item) noexcept nogil:
        cdef int status
        cdef int kind = head_kind(&self.head)
        cdef int64_t deadline
        cdef Slice value = self.head.value
        self.encoded.size = 0
        if value.size >= LARGE_VALUE:
            # It stands at the end of an encoded head, and needn't be copied to there first.
            self.head.value.size = 0
        status = head_encode(&self.head, &self.encoded)
        self.head.value.size = value.size
        if status < 0:
            return status
        if value.size >= LARGE_VALUE:
            status = self.lsm.put_parts(buffer_slice(&self.key), buffer_slice(&self.encoded), value)
        else:
            status = self.lsm.put(buffer_slice(&self.key), buffer_slice(&self.encoded))
        if status < 0 or self.key.data[0] != SPACE_USER:
            return status
        leaf_replace(self.leaves, place, item, head_item(&self.head, place))
        if kind and not kind_before:
            self.live_keys += 1
        elif kind_before and not kind:
            self.live_keys -= 1
        deadline = head_deadline(&self.head) if kind else 0
        if not kind_before:
            deadline_before = 0
        if deadline != deadline_before:
            return self._index_expiry(deadline_before, deadline)
        return Status.OK

    cdef int _index_expiry(self, int64_t before, int64_t after) noexcept nogil:
        cdef int status = Status.OK
        if before:
            status = put_expiry_key(&self.expiry_key, before, self.loaded_key())
            if status == 0:
                status = self.lsm.remove(buffer_slice(&self.expiry_key))
        if status >= 0 and after:
            status = put_expiry_key(&self.expiry_key, after, self.loaded_key())
            if status == 0:
                status = self.lsm.put(buffer_slice(&self.expiry_key), slice_of(NULL, 0))
            if after < self.next_deadline:
                self.next_deadline = after
        return status


cdef int _kinds_alive(const Head* head) noexcept nogil:
    cdef int alive = head_string_live(head)
    cdef int i
    for i in range(head.collection_count):
        alive += head.collections[i].count != 0
    return alive
