"""Plain registers, quickly: see quick.pxd."""

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from everwrite.change cimport PART_COUNTER, PART_REGISTER, REGISTER_TOMBSTONE
from everwrite.clock cimport Dot, vector_raise
from everwrite.coding cimport Buffer, Slice, buffer_reserve, load_u64, slice_of, store_u64
from everwrite.datatypes cimport TypedKeyspace
from everwrite.digest cimport DigestKey, counter_item, digest_key, leaf_prefetch, leaf_replace, no_sum, register_item
from everwrite.hashing cimport hash64
from everwrite.keyspace cimport FRAME_CHANGES, GROUP_BYTES_LIMIT
from everwrite.memtable cimport Entry, memtable_put_at
from everwrite.state cimport (
    PLAIN_BYTES,
    PLAIN_COUNTER,
    PLAIN_COUNTER_BYTES,
    PLAIN_REGISTER,
    PLAIN_TOMBSTONE,
    SPACE_USER,
    Sum,
    head_decode,
    head_expired,
    head_is_plain,
    head_plain_value,
)
from everwrite.status cimport Status, fault_corrupt, fault_key

cdef enum:
    SHORT_KEY = 255              # keys up to so many bytes are put together on the stack
    SHORT_VALUE = 4000           # longer ones gain nothing from it
    CHANGE_HEAD = 25             # flags, dot, previous
    REGISTER_HEAD = 18           # tag, flags, dot


cdef inline uint8_t* _put_varint(uint8_t* at, uint64_t value) noexcept nogil:
    while value >= 0x80:
        at[0] = <uint8_t>(value | 0x80)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


cdef inline size_t _varint_size(uint64_t value) noexcept nogil:
    return 1 if value < 0x80 else (2 if value < 0x4000 else 3)


cdef inline uint8_t* _put_dot(uint8_t* at, Dot dot) noexcept nogil:
    store_u64(at, dot.origin)
    store_u64(at + 8, dot.timestamp)
    return at + 16


cdef class QuickKeyspace(TypedKeyspace):
    """A keyspace that takes the quick way where it can."""

    cdef int get_quick(self, Slice key, uint64_t key_hash, Slice* value) noexcept nogil:
        return self._get_short(key, key_hash, True, value)

    cdef int _get_short(self, Slice key, uint64_t key_hash, bint cached_only, Slice* value) noexcept nogil:
        cdef uint8_t room[SHORT_KEY + 1]
        cdef Slice name = slice_of(room, key.size + 1)
        cdef Slice stored
        cdef Entry* e
        cdef int found
        if self.failed:
            return Status.ERR_FAILED
        if key.size > SHORT_KEY:
            return Status.WOULD_BLOCK
        room[0] = <uint8_t>SPACE_USER
        memcpy(&room[1], key.data, key.size)
        self.lsm.set_cached_only(cached_only)
        found = self.lsm.find(
            name, key_hash if key_hash else hash64(name, self.lsm.seed), 0, &e, &self.pin, &stored
        )
        self.lsm.set_cached_only(False)
        if found <= 0:
            return found
        if head_is_plain(stored):
            value[0] = head_plain_value(stored)
            return 1
        if head_decode(&self.head, stored) != Status.OK:
            return fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
        if self.head.has_expiry and head_expired(&self.head, self.clock.now_ms()):
            return 0
        found = self.show_string(&self.head, value)
        return fault_key(found, key) if found < 0 else found

    cdef int _find_plain(self, Plain* plain, uint8_t* room, Slice key, uint64_t key_hash) noexcept nogil:
        """Fill in what stands there. 1; WOULD_BLOCK: it isn't plain, this store's, in memory, and to be written."""
        cdef Slice stored
        cdef int found
        if self.failed or self.refused or key.size > SHORT_KEY:
            return Status.WOULD_BLOCK
        room[0] = <uint8_t>SPACE_USER
        memcpy(&room[1], key.data, key.size)
        plain.name = slice_of(room, key.size + 1)
        plain.key_hash = key_hash if key_hash else hash64(plain.name, self.lsm.seed)
        plain.place = digest_key(plain.name)
        leaf_prefetch(self.leaves, plain.place)
        self.lsm.set_cached_only(True)
        self.lsm.set_overwriting(True)
        found = self.lsm.find(plain.name, plain.key_hash, plain.place.first, &plain.entry, &self.pin, &stored)
        self.lsm.set_overwriting(False)
        self.lsm.set_cached_only(False)
        plain.form = 0
        plain.dot.origin = 0
        plain.dot.timestamp = 0
        plain.total = 0
        if found <= 0:
            return 1 if found == 0 else Status.WOULD_BLOCK
        if stored.size < PLAIN_BYTES:
            return Status.WOULD_BLOCK
        plain.form = stored.data[0]
        if plain.form == PLAIN_COUNTER:
            # One row that has nothing but a counter, as of its context.
            if (
                stored.size != PLAIN_COUNTER_BYTES
                or stored.data[1] != 1
                or stored.data[10] != 1
                or memcmp(stored.data + 11, stored.data + 19, 8) != 0
            ):
                return Status.WOULD_BLOCK
            plain.dot.origin = load_u64(stored.data + 2)
            plain.dot.timestamp = load_u64(stored.data + 19)
            plain.total = <int64_t>load_u64(stored.data + 27)
        elif plain.form == PLAIN_REGISTER or plain.form == PLAIN_TOMBSTONE:
            plain.dot.origin = load_u64(stored.data + 1)
            plain.dot.timestamp = load_u64(stored.data + 9)
        else:
            return Status.WOULD_BLOCK
        return 1 if plain.dot.origin == self.own_origin else Status.WOULD_BLOCK

    cdef int set_quick(self, Slice key, uint64_t key_hash, Slice value) noexcept nogil:
        cdef uint8_t room[SHORT_KEY + 1]
        cdef Plain plain
        cdef int status = Status.WOULD_BLOCK
        if value.size <= SHORT_VALUE:
            status = self._find_plain(&plain, room, key, key_hash)
        if status != 1 or plain.form == PLAIN_COUNTER:
            return Status.WOULD_BLOCK
        return self._write_register(&plain, value, False)

    cdef int delete_quick(self, Slice key, uint64_t key_hash) noexcept nogil:
        cdef uint8_t room[SHORT_KEY + 1]
        cdef Plain plain
        if self._find_plain(&plain, room, key, key_hash) != 1 or plain.form == PLAIN_COUNTER:
            return Status.WOULD_BLOCK
        return self._write_register(&plain, slice_of(NULL, 0), True) if plain.form == PLAIN_REGISTER else 0

    cdef int increment_quick(self, Slice key, int64_t amount, int64_t* result) noexcept nogil:
        cdef uint8_t room[SHORT_KEY + 1]
        cdef uint8_t head[PLAIN_COUNTER_BYTES]
        cdef uint8_t part[9]
        cdef Plain plain
        cdef Dot dot
        if self._find_plain(&plain, room, key, 0) != 1 or (plain.form != PLAIN_COUNTER and plain.form != 0):
            return Status.WOULD_BLOCK
        if (amount > 0 and plain.total > INT64_MAX - amount) or (amount < 0 and plain.total < INT64_MIN - amount):
            return Status.WOULD_BLOCK
        result[0] = plain.total + amount
        dot.origin = self.own_origin
        dot.timestamp = self.clock.tick()
        head[0] = <uint8_t>PLAIN_COUNTER
        head[1] = 1
        store_u64(&head[2], dot.origin)
        head[10] = 1
        store_u64(&head[11], dot.timestamp)
        store_u64(&head[19], dot.timestamp)
        store_u64(&head[27], <uint64_t>result[0])
        part[0] = <uint8_t>PART_COUNTER
        store_u64(&part[1], <uint64_t>result[0])
        return self._write_plain(
            &plain, dot, slice_of(head, PLAIN_COUNTER_BYTES), slice_of(part, 9), slice_of(NULL, 0), True
        )

    cdef int _write_register(self, Plain* plain, Slice value, bint tombstone) noexcept nogil:
        cdef uint8_t head[PLAIN_BYTES + SHORT_VALUE]
        cdef uint8_t part[REGISTER_HEAD + 3]
        cdef Dot dot
        dot.origin = self.own_origin
        dot.timestamp = self.clock.tick()
        head[0] = <uint8_t>(PLAIN_TOMBSTONE if tombstone else PLAIN_REGISTER)
        _put_dot(&head[1], dot)
        if value.size:
            memcpy(&head[<size_t>PLAIN_BYTES], value.data, value.size)
        part[0] = <uint8_t>PART_REGISTER
        part[1] = <uint8_t>(REGISTER_TOMBSTONE if tombstone else 0)
        _put_varint(_put_dot(&part[2], plain.dot), value.size)
        return self._write_plain(
            plain,
            dot,
            slice_of(head, PLAIN_BYTES + value.size),
            slice_of(part, REGISTER_HEAD + _varint_size(value.size)),
            value,
            not tombstone,
        )

    cdef int _write_plain(self, Plain* plain, Dot dot, Slice head, Slice part, Slice value, bint live) noexcept nogil:
        cdef Buffer* group = &self.group
        cdef size_t size = CHANGE_HEAD + _varint_size(plain.name.size) + plain.name.size + part.size + value.size
        cdef bint live_before = plain.form != 0 and plain.form != PLAIN_TOMBSTONE
        cdef uint8_t* at
        cdef int status
        # What other stores could not take in one batch must not get into the log.
        if group.size + self.borrowed_bytes + size > GROUP_BYTES_LIMIT:
            return fault_key(Status.ERR_TOO_LARGE, plain.name)
        # What can fail comes first.
        if buffer_reserve(group, size + 8) < 0:
            return Status.ERR_MEMORY
        status = self.reserve(size)
        if status < 0:
            return status
        status = memtable_put_at(self.lsm.active, plain.entry, plain.key_hash, plain.name, head)
        if status < 0:
            return status
        self.lsm.bytes_put += plain.name.size + head.size
        # The group: the frame's kind, then the length and the bytes of each change.
        at = group.data + group.size
        if group.size == 0:
            at[0] = <uint8_t>FRAME_CHANGES
            at += 1
        at = _put_varint(at, size)
        at[0] = 0
        at = _put_dot(at + 1, dot)
        store_u64(at, plain.dot.timestamp)
        at = _put_varint(at + 8, plain.name.size)
        memcpy(at, plain.name.data, plain.name.size)
        at += plain.name.size
        memcpy(at, part.data, part.size)
        at += part.size
        # memcpy takes no NULL, not even for no bytes.
        if value.size:
            memcpy(at, value.data, value.size)
        group.size = at + value.size - group.data

        self._replace_item(plain, dot, head)
        self.live_keys += <uint64_t>live - <uint64_t>live_before
        self.user_change_count += 1
        self.local_changes += 1
        if vector_raise(&self.applied, dot.origin, dot.timestamp) < 0:
            return self._fail(Status.ERR_MEMORY)
        if not self.grouping:
            status = self.log_group()
        return status if status < 0 else 1

    cdef void _replace_item(self, const Plain* plain, Dot dot, Slice head) noexcept nogil:
        """The key's part of the digest: out with what it was, in with what it is."""
        cdef DigestKey place = plain.place
        cdef Sum before = no_sum()
        cdef Sum after = no_sum()
        if plain.form == PLAIN_REGISTER:
            before = register_item(plain.dot, place)
        elif plain.form == PLAIN_COUNTER:
            before = counter_item(plain.dot, <uint64_t>plain.total, place)
        if head.data[0] == PLAIN_REGISTER:
            after = register_item(dot, place)
        elif head.data[0] == PLAIN_COUNTER:
            after = counter_item(dot, load_u64(head.data + 27), place)
        leaf_replace(self.leaves, place, before, after)

    # ---- the operations of everybody ----

    cdef int op_get(self, Slice key, Slice* value) noexcept nogil:
        # Here a file may be read. Only a long key is left to the general way.
        cdef int status = self._get_short(key, 0, False, value)
        return status if status != Status.WOULD_BLOCK else TypedKeyspace.op_get(self, key, value)

    cdef int op_set(
        self, Slice key, Slice value, int flags, int64_t deadline_ms, Slice* old, bint* found
    ) noexcept nogil:
        cdef int status = Status.WOULD_BLOCK
        if flags == 0 and deadline_ms == 0:
            status = self.set_quick(key, 0, value)
        if status != Status.WOULD_BLOCK:
            return status
        return TypedKeyspace.op_set(self, key, value, flags, deadline_ms, old, found)

    cdef int op_delete(self, Slice key) noexcept nogil:
        cdef int status = self.delete_quick(key, 0)
        return status if status != Status.WOULD_BLOCK else TypedKeyspace.op_delete(self, key)

    cdef int op_increment(self, Slice key, int64_t amount, int64_t* result) noexcept nogil:
        cdef int status = self.increment_quick(key, amount, result)
        if status != Status.WOULD_BLOCK:
            return status if status < 0 else Status.OK
        return TypedKeyspace.op_increment(self, key, amount, result)
