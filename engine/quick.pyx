"""Plain registers, quickly: see quick.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from everwrite.change cimport PART_REGISTER, REGISTER_TOMBSTONE
from everwrite.clock cimport Dot, vector_raise
from everwrite.coding cimport Buffer, Slice, buffer_reserve, load_u64, slice_of, store_u64
from everwrite.datatypes cimport TypedKeyspace
from everwrite.digest cimport DigestKey, digest_key, leaf_replace, no_sum, register_item
from everwrite.hashing cimport hash64
from everwrite.keyspace cimport FRAME_CHANGES, GROUP_BYTES_LIMIT
from everwrite.memtable cimport Entry, entry_removed, entry_value, memtable_find, memtable_put_at
from everwrite.state cimport (
    PLAIN_BYTES,
    PLAIN_REGISTER,
    PLAIN_TOMBSTONE,
    SPACE_USER,
    head_decode,
    head_expired,
    head_is_plain,
    head_plain_value,
)
from everwrite.status cimport Status, fault_corrupt

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

    cdef int _find_stored(
        self, Slice name, uint64_t key_hash, bint cached_only, Entry** e, Slice* stored
    ) noexcept nogil:
        """1 and what is stored under an entry's key, 0, WOULD_BLOCK (only with `cached_only`) or an error."""
        cdef int found
        e[0] = memtable_find(self.lsm.active, key_hash, name)
        if e[0] != NULL:
            if entry_removed(e[0]):
                return 0
            stored[0] = entry_value(e[0])
            return 1
        self.lsm.set_cached_only(cached_only)
        found = self.lsm._get_older(key_hash, name, &self.pin, stored)
        self.lsm.set_cached_only(False)
        return found

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
        found = self._find_stored(
            name, key_hash if key_hash else hash64(name, self.lsm.seed), cached_only, &e, &stored
        )
        if found <= 0:
            return found
        if head_is_plain(stored):
            value[0] = head_plain_value(stored)
            return 1
        if head_decode(&self.head, stored) != Status.OK:
            return fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
        if self.head.has_expiry and head_expired(&self.head, self.clock.now_ms()):
            return 0
        return self.show_string(&self.head, value)

    cdef int _find_plain(self, Plain* plain) noexcept nogil:
        """Fill in what stands there. 1; WOULD_BLOCK: it isn't plain, not this store's, or not in memory."""
        cdef Slice stored
        cdef int found = self._find_stored(plain.name, plain.key_hash, True, &plain.entry, &stored)
        plain.live = False
        plain.dot.origin = 0
        plain.dot.timestamp = 0
        if found <= 0:
            return 1 if found == 0 else Status.WOULD_BLOCK
        if stored.size < PLAIN_BYTES or (stored.data[0] != PLAIN_REGISTER and stored.data[0] != PLAIN_TOMBSTONE):
            return Status.WOULD_BLOCK
        plain.dot.origin = load_u64(stored.data + 1)
        plain.dot.timestamp = load_u64(stored.data + 9)
        plain.live = stored.data[0] == PLAIN_REGISTER
        return 1 if plain.dot.origin == self.own_origin else Status.WOULD_BLOCK

    cdef int set_quick(self, Slice key, uint64_t key_hash, Slice value) noexcept nogil:
        cdef uint8_t room[SHORT_KEY + 1]
        cdef Plain plain
        cdef int status
        if self.failed or self.refused or key.size > SHORT_KEY or value.size > SHORT_VALUE:
            return Status.WOULD_BLOCK
        room[0] = <uint8_t>SPACE_USER
        memcpy(&room[1], key.data, key.size)
        plain.name = slice_of(room, key.size + 1)
        plain.key_hash = key_hash if key_hash else hash64(plain.name, self.lsm.seed)
        status = self._find_plain(&plain)
        return status if status != 1 else self._write_plain(&plain, value, False)

    cdef int delete_quick(self, Slice key, uint64_t key_hash) noexcept nogil:
        cdef uint8_t room[SHORT_KEY + 1]
        cdef Plain plain
        cdef int status
        if self.failed or self.refused or key.size > SHORT_KEY:
            return Status.WOULD_BLOCK
        room[0] = <uint8_t>SPACE_USER
        memcpy(&room[1], key.data, key.size)
        plain.name = slice_of(room, key.size + 1)
        plain.key_hash = key_hash if key_hash else hash64(plain.name, self.lsm.seed)
        status = self._find_plain(&plain)
        if status != 1:
            return status
        return self._write_plain(&plain, slice_of(NULL, 0), True) if plain.live else 0

    cdef int _write_plain(self, Plain* plain, Slice value, bint tombstone) noexcept nogil:
        """What delta_begin, put_register, merge and log_change come to for a plain key. Returns 1 or an error."""
        cdef uint8_t head[PLAIN_BYTES + SHORT_VALUE]
        cdef size_t group_before = self.group.size
        cdef size_t size = CHANGE_HEAD + _varint_size(plain.name.size) + plain.name.size
        cdef Buffer* group = &self.group
        cdef DigestKey place
        cdef uint8_t* at
        cdef Dot dot
        cdef int status
        size += REGISTER_HEAD + _varint_size(value.size) + value.size
        # What other stores could not take in one batch must not get into the log.
        if group.size + size > GROUP_BYTES_LIMIT:
            return Status.ERR_TOO_LARGE
        # What can fail comes first.
        if buffer_reserve(group, size + 8) < 0:
            return Status.ERR_MEMORY
        dot.origin = self.own_origin
        dot.timestamp = self.clock.tick()
        head[0] = <uint8_t>(PLAIN_TOMBSTONE if tombstone else PLAIN_REGISTER)
        _put_dot(&head[1], dot)
        # memcpy takes no NULL, not even for no bytes.
        if value.size:
            memcpy(&head[<size_t>PLAIN_BYTES], value.data, value.size)
        status = memtable_put_at(
            self.lsm.active, plain.entry, plain.key_hash, plain.name, slice_of(head, PLAIN_BYTES + value.size)
        )
        if status < 0:
            return status
        self.lsm.bytes_put += plain.name.size + PLAIN_BYTES + value.size
        # The group: the frame's kind, then the length and the bytes of each change.
        at = group.data + group.size
        if group_before == 0:
            at[0] = <uint8_t>FRAME_CHANGES
            at += 1
        at = _put_varint(at, size)
        at[0] = 0
        at = _put_dot(at + 1, dot)
        store_u64(at, plain.dot.timestamp)
        at = _put_varint(at + 8, plain.name.size)
        memcpy(at, plain.name.data, plain.name.size)
        at += plain.name.size
        at[0] = <uint8_t>PART_REGISTER
        at[1] = <uint8_t>(REGISTER_TOMBSTONE if tombstone else 0)
        at = _put_varint(_put_dot(at + 2, plain.dot), value.size)
        if value.size:
            memcpy(at, value.data, value.size)
        group.size = at + value.size - group.data

        place = digest_key(plain.name)
        leaf_replace(
            self.leaves,
            place,
            register_item(plain.dot, place) if plain.live else no_sum(),
            no_sum() if tombstone else register_item(dot, place),
        )
        self.live_keys += <uint64_t>(not tombstone) - <uint64_t>plain.live
        self.user_change_count += 1
        self.local_changes += 1
        if vector_raise(&self.applied, dot.origin, dot.timestamp) < 0:
            return self._fail(Status.ERR_MEMORY)
        if not self.grouping:
            status = self.log_group()
        return status if status < 0 else 1

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
