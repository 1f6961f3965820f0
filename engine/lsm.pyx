"""The log-structured merge tree: what a key's newest value is, across memory tables and table files."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free

from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, put_bytes, slice_equal, slice_of
from everwrite.hashing cimport hash64
from everwrite.memtable cimport (
    Entry, Memtable, entry_removed, entry_value, memtable_find, memtable_prefetch_entry, memtable_prefetch_slot,
    memtable_put, memtable_put_parts, memtable_remove,
)
from everwrite.merge_iterator cimport (
    Merge, merge_add_memtable, merge_add_table, merge_free, merge_init, merge_key, merge_next, merge_previous,
    merge_refresh_newest, merge_removed, merge_seek, merge_seek_back, merge_seek_last, merge_value,
)
from everwrite.pins cimport Counted, counted_hold, counted_release, ew_exchange, ew_load
from everwrite.status cimport Status, check
from everwrite.table_format cimport KEY_HASH_SEED
from everwrite.table_reader cimport (
    TABLE_ABSENT, TABLE_FOUND, table_get, table_prefetch, table_prefetch_entry,
)
from everwrite.versions cimport Version


cdef struct LsmIterator:
    Memtable* active                   # a reference each
    Version* version
    unsigned long long epoch           # of the versions when these two were taken
    size_t active_count                # keys of `active` when its place was last looked up
    Merge merge
    bint standing
    Buffer resume                      # the key to go on from, while sources are exchanged


cdef void pin_init(Pin* pin) noexcept nogil:
    pin.block = NULL


cdef void pin_release(Pin* pin) noexcept nogil:
    if pin.block != NULL:
        counted_release(<Counted*>pin.block)
        pin.block = NULL


cdef inline void _pin(Pin* pin, Counted* block) noexcept nogil:
    counted_hold(block)
    pin_release(pin)
    pin.block = block


cdef inline Slice _slice(bytes data):
    return slice_of(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline bytes _bytes(Slice s):
    return (<const char*>s.data)[:s.size] if s.size else b""


cdef class Lsm(LsmFiles):
    """An ordered map of bytes to bytes.

    The mapping methods are for tools and tests: callers with many operations use the native
    ones. Like these, they must be serialised by the caller.
    """

    # ---- reading ----

    cdef int get(self, Slice key, Pin* pin, Slice* value) noexcept nogil:
        cdef Entry* e
        return self.find(key, hash64(key, self.seed), 0, &e, pin, value)

    cdef int find(
        self, Slice key, uint64_t key_hash, uint64_t fixed_hash, Entry** e, Pin* pin, Slice* value
    ) noexcept nogil:
        cdef Version* version
        cdef int found
        cdef size_t i
        memtable_prefetch_slot(self.active, key_hash)
        version = self._take_filled()
        if version != NULL:
            # Each of these places misses the processor's cache: better all at once than one after the other.
            for i in range(version.frozen_count):
                memtable_prefetch_slot(version.frozen[i], key_hash)
            if version.table_count:
                if fixed_hash == 0:
                    fixed_hash = hash64(key, KEY_HASH_SEED)
                for i in range(version.table_count):
                    table_prefetch(version.tables[i], fixed_hash)
        e[0] = memtable_find(self.active, key_hash, key)
        if e[0] != NULL:
            found = not entry_removed(e[0])
            value[0] = entry_value(e[0])
        else:
            found = 0 if version == NULL else self._find_below(version, key, key_hash, fixed_hash, pin, value)
        if version != NULL:
            self._return_version(version)
        return found

    cdef int get_below(self, Slice key, Pin* pin, Slice* value) noexcept nogil:
        cdef Version* version = self._take_filled()
        cdef int found
        if version == NULL:
            return 0
        found = self._find_below(version, key, hash64(key, self.seed), hash64(key, KEY_HASH_SEED), pin, value)
        self._return_version(version)
        return found

    cdef int _find_below(
        self, Version* version, Slice key, uint64_t key_hash, uint64_t fixed_hash, Pin* pin, Slice* value
    ) noexcept nogil:
        cdef Entry* e
        cdef size_t i
        for i in range(version.frozen_count):
            e = memtable_find(version.frozen[i], key_hash, key)
            if e != NULL:
                if entry_removed(e):
                    return 0
                _pin(pin, &version.frozen[i].counted)
                value[0] = entry_value(e)
                return 1
        return self._get_from_tables(version, key, fixed_hash, pin, value)

    cdef Version* _take_filled(self) noexcept nogil:
        """The newest version, with a reference, unless there is nothing in it: then NULL."""
        cdef unsigned long long epoch = ew_load(&self.versions.epoch)
        cdef Version* version
        if epoch == self.empty_epoch:
            return NULL
        version = self._take_version()
        if version.frozen_count == 0 and version.table_count == 0:
            # Taken before the version: when that has changed in between, the note is of an epoch that is over.
            self.empty_epoch = epoch
        return version

    cdef Version* _take_version(self) noexcept nogil:
        """The newest version, with a reference."""
        cdef Version* version
        if self.keeps:
            version = <Version*>ew_exchange(&self.kept, NULL)
            if version != NULL:
                if self.kept_epoch == ew_load(&self.versions.epoch):
                    return version
                self.versions.release(version)
            # Looked at first: when it changes before the version is held, the next read holds once more.
            self.kept_epoch = ew_load(&self.versions.epoch)
        return self.versions.hold()

    cdef void _return_version(self, Version* version) noexcept nogil:
        if self.keeps and self.kept_epoch == ew_load(&self.versions.epoch):
            version = <Version*>ew_exchange(&self.kept, version)
        if version != NULL:
            self.versions.release(version)

    cdef int _get_from_tables(
        self, Version* version, Slice key, uint64_t key_hash, Pin* pin, Slice* value
    ) noexcept nogil:
        cdef Counted* holder
        cdef size_t i
        cdef int status
        if version.table_count == 0:
            return 0
        if self.noted_epoch != ew_load(&self.versions.epoch):
            self._note_tables(version)
        for i in range(version.table_count):
            status = table_get(version.tables[i], self.cache, key, key_hash, &holder, value)
            if status == TABLE_FOUND:
                pin_release(pin)
                pin.block = holder
                return 1
            if status != TABLE_ABSENT:
                return status if status < 0 else 0
        return 0

    cdef void _note_tables(self, const Version* version) noexcept nogil:
        cdef size_t memory = 0
        cdef size_t i
        for i in range(version.table_count):
            memory += version.tables[i].memory
        self.noted_epoch = ew_load(&self.versions.epoch)
        self.cache.reserve(memory)

    cdef void set_cached_only(self, bint value) noexcept nogil:
        self.cache.cached_only = value

    cdef void set_overwriting(self, bint value) noexcept nogil:
        self.cache.passing = value

    # ---- writing ----

    cdef uint64_t prefetch(self, Slice key) noexcept nogil:
        cdef uint64_t key_hash = hash64(key, self.seed)
        cdef Version* version
        cdef uint64_t fixed_hash
        cdef size_t i
        memtable_prefetch_slot(self.active, key_hash)
        if self.empty_epoch == ew_load(&self.versions.epoch):
            return key_hash
        version = self._take_version()
        if version.table_count:
            fixed_hash = hash64(key, KEY_HASH_SEED)
            self.ahead[key_hash & 63] = fixed_hash
            for i in range(version.table_count):
                table_prefetch(version.tables[i], fixed_hash)
        self._return_version(version)
        return key_hash

    cdef void prefetch_entry(self, uint64_t key_hash) noexcept nogil:
        cdef Version* version
        cdef size_t i
        memtable_prefetch_entry(self.active, key_hash)
        if self.empty_epoch == ew_load(&self.versions.epoch):
            return
        version = self._take_version()
        for i in range(version.table_count):
            # Another key may have taken the place: then this fetches in vain.
            table_prefetch_entry(version.tables[i], self.ahead[key_hash & 63])
        self._return_version(version)

    cdef int put(self, Slice key, Slice value) noexcept nogil:
        cdef int status = memtable_put(self.active, hash64(key, self.seed), key, value)
        if status == Status.OK:
            self.bytes_put += key.size + value.size
        return status

    cdef int put_parts(self, Slice key, Slice head, Slice tail) noexcept nogil:
        cdef int status = memtable_put_parts(self.active, hash64(key, self.seed), key, head, tail)
        if status == Status.OK:
            self.bytes_put += key.size + head.size + tail.size
        return status

    cdef int remove(self, Slice key) noexcept nogil:
        cdef int status = memtable_remove(self.active, hash64(key, self.seed), key)
        if status == Status.OK:
            self.bytes_put += key.size
        return status

    cdef bint wants_freeze(self) noexcept nogil:
        return self.active.memory + self.set_aside_bytes > self.memtable_bytes

    # ---- iterating ----

    cdef LsmIterator* iterator(self) noexcept nogil:
        cdef LsmIterator* it = <LsmIterator*>calloc(1, sizeof(LsmIterator))
        if it == NULL:
            return NULL
        buffer_init(&it.resume)
        if self._renew(it) < 0:
            self.iterator_free(it)
            return NULL
        return it

    cdef void iterator_free(self, LsmIterator* it) noexcept nogil:
        if it == NULL:
            return
        merge_free(&it.merge)
        if it.version != NULL:
            self.versions.release(it.version)
        if it.active != NULL:
            counted_release(&it.active.counted)
        buffer_free(&it.resume)
        free(it)

    cdef int _renew(self, LsmIterator* it) noexcept nogil:
        """Look at the newest version from here on. Positions are lost."""
        cdef unsigned long long epoch = ew_load(&self.versions.epoch)
        cdef Version* version = self.versions.hold()
        cdef Merge merge
        cdef size_t i
        if merge_init(&merge, version.frozen_count + version.table_count + 1) < 0:
            self.versions.release(version)
            return Status.ERR_MEMORY
        merge_add_memtable(&merge, self.active)
        for i in range(version.frozen_count):
            merge_add_memtable(&merge, version.frozen[i])
        for i in range(version.table_count):
            merge_add_table(&merge, version.tables[i])
        merge_free(&it.merge)
        it.merge = merge
        if it.version != NULL:
            self.versions.release(it.version)
        it.version = version
        counted_hold(&self.active.counted)
        if it.active != NULL:
            counted_release(&it.active.counted)
        it.active = self.active
        # Taken before the version: when that has changed in between, the next call renews once more.
        it.epoch = epoch
        return Status.OK

    cdef int _skip_removed(self, LsmIterator* it, int status) noexcept nogil:
        while status == 1 and merge_removed(&it.merge):
            status = merge_next(&it.merge, self.cache)
        it.standing = status == 1
        return status

    cdef int _skip_removed_back(self, LsmIterator* it, int status) noexcept nogil:
        while status == 1 and merge_removed(&it.merge):
            status = merge_previous(&it.merge, self.cache)
        it.standing = status == 1
        return status

    cdef int _prepare(self, LsmIterator* it, Slice* key) noexcept nogil:
        """Before a seek: look at the newest version, and keep the key apart, which may be what key() returned."""
        cdef int status
        it.standing = False
        it.resume.size = 0
        if put_bytes(&it.resume, key.data, key.size) < 0:
            return Status.ERR_MEMORY
        if key.size:
            key.data = it.resume.data
        if it.epoch != ew_load(&self.versions.epoch):
            status = self._renew(it)
            if status < 0:
                return status
        it.active_count = it.active.count
        return Status.OK

    cdef int seek(self, LsmIterator* it, Slice key) noexcept nogil:
        cdef int status = self._prepare(it, &key)
        if status < 0:
            return status
        return self._skip_removed(it, merge_seek(&it.merge, self.cache, key))

    cdef int seek_for_prev(self, LsmIterator* it, Slice key) noexcept nogil:
        cdef int status = self._prepare(it, &key)
        if status < 0:
            return status
        return self._skip_removed_back(it, merge_seek_back(&it.merge, self.cache, key, True))

    cdef int seek_last(self, LsmIterator* it) noexcept nogil:
        cdef uint8_t nothing = 0
        cdef Slice key = slice_of(&nothing, 0)
        cdef int status = self._prepare(it, &key)
        if status < 0:
            return status
        return self._skip_removed_back(it, merge_seek_last(&it.merge, self.cache))

    cdef int next(self, LsmIterator* it) noexcept nogil:
        cdef int status
        cdef Slice key
        if not it.standing:
            return 0
        if it.epoch != ew_load(&self.versions.epoch):
            key = merge_key(&it.merge)
            status = self._prepare(it, &key)
            if status < 0:
                return status
            status = merge_seek(&it.merge, self.cache, key)
            if status == 1 and slice_equal(merge_key(&it.merge), key):
                status = merge_next(&it.merge, self.cache)
            return self._skip_removed(it, status)
        it.standing = False
        if it.active_count != it.active.count:
            it.active_count = it.active.count
            status = merge_refresh_newest(&it.merge, self.cache)
            if status < 0:
                return status
        return self._skip_removed(it, merge_next(&it.merge, self.cache))

    cdef int prev(self, LsmIterator* it) noexcept nogil:
        cdef int status
        cdef Slice key
        if not it.standing:
            return 0
        if it.epoch != ew_load(&self.versions.epoch):
            key = merge_key(&it.merge)
            status = self._prepare(it, &key)
            if status < 0:
                return status
            return self._skip_removed_back(it, merge_seek_back(&it.merge, self.cache, key, False))
        it.standing = False
        if it.active_count != it.active.count:
            it.active_count = it.active.count
            status = merge_refresh_newest(&it.merge, self.cache)
            if status < 0:
                return status
        return self._skip_removed_back(it, merge_previous(&it.merge, self.cache))

    cdef Slice key(self, LsmIterator* it) noexcept nogil:
        return merge_key(&it.merge)

    cdef Slice value(self, LsmIterator* it) noexcept nogil:
        return merge_value(&it.merge)

    # ---- the mapping, for tools and tests ----

    def __contains__(self, bytes key not None):
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __getitem__(self, bytes key not None):
        cdef Pin pin
        cdef Slice value
        cdef Slice k = _slice(key)
        cdef int found
        self._check_open()
        pin_init(&pin)
        with nogil:
            found = self.get(k, &pin, &value)
        try:
            if check(found) == 0:
                raise KeyError(key)
            return _bytes(value)
        finally:
            pin_release(&pin)

    def __setitem__(self, bytes key not None, bytes value not None):
        cdef Slice k = _slice(key)
        cdef Slice v = _slice(value)
        cdef int status
        self._check_open()
        with nogil:
            status = self.put(k, v)
        check(status)

    def __delitem__(self, bytes key not None):
        """Remove a key, whether it is there or not: finding out would cost a read."""
        cdef Slice k = _slice(key)
        cdef int status
        self._check_open()
        with nogil:
            status = self.remove(k)
        check(status)

    def items(self, bytes start not None=b""):
        """Yield (key, value) in key order from the first key that is >= `start`, with writes made meanwhile."""
        self._check_open()
        cdef LsmIterator* it = self.iterator()
        cdef Slice at = _slice(start)
        cdef int status
        if it == NULL:
            raise MemoryError
        try:
            with nogil:
                status = self.seek(it, at)
            while check(status) == 1:
                yield _bytes(self.key(it)), _bytes(self.value(it))
                with nogil:
                    status = self.next(it)
        finally:
            self.iterator_free(it)
