"""The log-structured merge tree: what a key's newest value is, across memory tables and table files."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

import secrets

from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, buffer_slice, put_bytes, slice_equal, slice_of
from everwrite.hashing cimport hash64
from everwrite.memtable cimport (
    Entry,
    Memtable,
    entry_removed,
    entry_value,
    memtable_find,
    memtable_new,
    memtable_put,
    memtable_remove,
)
from everwrite.merge_iterator cimport (
    Merge,
    merge_add_memtable,
    merge_free,
    merge_init,
    merge_key,
    merge_next,
    merge_refresh_newest,
    merge_removed,
    merge_seek,
    merge_value,
)
from everwrite.pins cimport Counted, counted_hold, counted_release, ew_load, ew_store
from everwrite.status cimport Status, check
from everwrite.threads cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)


cdef struct LsmIterator:
    Memtable* active                   # a reference each
    Version* version
    unsigned long long epoch           # of the Lsm when these two were taken
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


cdef Version* _version_new(size_t frozen_count) noexcept nogil:
    cdef Version* version = <Version*>calloc(1, sizeof(Version))
    if version == NULL:
        return NULL
    version.frozen = <Memtable**>calloc(frozen_count + 1, sizeof(void*))
    if version.frozen == NULL:
        free(version)
        return NULL
    version.refs = 1
    version.frozen_count = frozen_count
    return version


cdef inline Slice _slice(bytes data):
    return slice_of(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline bytes _bytes(Slice s):
    return (<const char*>s.data)[:s.size] if s.size else b""


cdef class Lsm:
    """An ordered map of bytes to bytes.

    The mapping methods are for tools and tests: callers with many operations use the native
    ones. Like these, they must be serialised by the caller.
    """

    def __cinit__(self, *args, **kwargs):
        self.seed = secrets.randbits(64)
        pthread_mutex_init(&self.mutex, NULL)
        self.active = memtable_new(self.seed)
        self.version = _version_new(0)
        if self.active == NULL or self.version == NULL:
            raise MemoryError

    def __init__(self, files, folder, *, size_t memtable_bytes=64 << 20, size_t block_cache_bytes=64 << 20):
        """Open the map in `folder`; `memtable_bytes` is when the memory table wants to be frozen."""
        self.memtable_bytes = memtable_bytes

    def __dealloc__(self):
        if self.version != NULL:
            self._release_version(self.version)
        if self.active != NULL:
            counted_release(&self.active.counted)
        pthread_mutex_destroy(&self.mutex)

    # ---- versions ----

    cdef Version* _hold_version(self) noexcept nogil:
        cdef Version* version
        pthread_mutex_lock(&self.mutex)
        version = self.version
        version.refs += 1
        pthread_mutex_unlock(&self.mutex)
        return version

    cdef void _release_version(self, Version* version) noexcept nogil:
        cdef int refs
        cdef size_t i
        pthread_mutex_lock(&self.mutex)
        version.refs -= 1
        refs = version.refs
        pthread_mutex_unlock(&self.mutex)
        if refs == 0:
            for i in range(version.frozen_count):
                counted_release(&version.frozen[i].counted)
            free(version.frozen)
            free(version)

    # ---- reading ----

    cdef int get(self, Slice key, Pin* pin, Slice* value) noexcept nogil:
        cdef uint64_t key_hash = hash64(key, self.seed)
        cdef Entry* e = memtable_find(self.active, key_hash, key)
        if e == NULL:
            return self._get_older(key_hash, key, pin, value)
        if entry_removed(e):
            return 0
        value[0] = entry_value(e)
        return 1

    cdef int _get_older(self, uint64_t key_hash, Slice key, Pin* pin, Slice* value) noexcept nogil:
        cdef Version* version = self._hold_version()
        cdef int found = 0
        cdef Entry* e
        cdef size_t i
        for i in range(version.frozen_count):
            e = memtable_find(version.frozen[i], key_hash, key)
            if e != NULL:
                if not entry_removed(e):
                    _pin(pin, &version.frozen[i].counted)
                    value[0] = entry_value(e)
                    found = 1
                break
        self._release_version(version)
        return found

    # ---- writing ----

    cdef int put(self, Slice key, Slice value) noexcept nogil:
        return memtable_put(self.active, hash64(key, self.seed), key, value)

    cdef int remove(self, Slice key) noexcept nogil:
        return memtable_remove(self.active, hash64(key, self.seed), key)

    cdef bint wants_freeze(self) noexcept nogil:
        return self.active.memory > self.memtable_bytes

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
            self._release_version(it.version)
        if it.active != NULL:
            counted_release(&it.active.counted)
        buffer_free(&it.resume)
        free(it)

    cdef int _renew(self, LsmIterator* it) noexcept nogil:
        """Look at the newest version from here on. Positions are lost."""
        cdef unsigned long long epoch = ew_load(&self.epoch)
        cdef Version* version = self._hold_version()
        cdef Merge merge
        cdef size_t i
        if merge_init(&merge, version.frozen_count + 1) < 0:
            self._release_version(version)
            return Status.ERR_MEMORY
        merge_add_memtable(&merge, self.active)
        for i in range(version.frozen_count):
            merge_add_memtable(&merge, version.frozen[i])
        merge_free(&it.merge)
        it.merge = merge
        if it.version != NULL:
            self._release_version(it.version)
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
            status = merge_next(&it.merge)
        it.standing = status == 1
        return status

    cdef int seek(self, LsmIterator* it, Slice key) noexcept nogil:
        cdef int status
        it.standing = False
        if it.epoch != ew_load(&self.epoch):
            # `key` may be what key() returned, and then lies in what is let go.
            it.resume.size = 0
            if put_bytes(&it.resume, key.data, key.size) < 0:
                return Status.ERR_MEMORY
            key = buffer_slice(&it.resume)
            status = self._renew(it)
            if status < 0:
                return status
        it.active_count = it.active.count
        return self._skip_removed(it, merge_seek(&it.merge, key))

    cdef int next(self, LsmIterator* it) noexcept nogil:
        cdef int status
        cdef Slice key
        if not it.standing:
            return 0
        it.standing = False
        if it.epoch != ew_load(&self.epoch):
            key = merge_key(&it.merge)
            it.resume.size = 0
            if put_bytes(&it.resume, key.data, key.size) < 0:
                return Status.ERR_MEMORY
            key = buffer_slice(&it.resume)
            status = self._renew(it)
            if status < 0:
                return status
            it.active_count = it.active.count
            status = merge_seek(&it.merge, key)
            if status == 1 and slice_equal(merge_key(&it.merge), key):
                status = merge_next(&it.merge)
            return self._skip_removed(it, status)
        if it.active_count != it.active.count:
            it.active_count = it.active.count
            status = merge_refresh_newest(&it.merge)
            if status < 0:
                return status
        return self._skip_removed(it, merge_next(&it.merge))

    cdef Slice key(self, LsmIterator* it) noexcept nogil:
        return merge_key(&it.merge)

    cdef Slice value(self, LsmIterator* it) noexcept nogil:
        return merge_value(&it.merge)

    # ---- freezing ----

    cdef int _freeze(self, Memtable* fresh) noexcept nogil:
        cdef Version* version
        cdef Version* old
        cdef size_t i
        pthread_mutex_lock(&self.mutex)
        old = self.version
        version = _version_new(old.frozen_count + 1)
        if version == NULL:
            pthread_mutex_unlock(&self.mutex)
            return Status.ERR_MEMORY
        version.frozen[0] = self.active
        for i in range(old.frozen_count):
            version.frozen[i + 1] = old.frozen[i]
            counted_hold(&old.frozen[i].counted)
        self.active = fresh
        self.version = version
        ew_store(&self.epoch, self.epoch + 1)
        pthread_mutex_unlock(&self.mutex)
        self._release_version(old)
        return Status.OK

    def freeze(self, bytes checkpoint not None):
        """Make the memory table immutable and start a new one.

        `checkpoint` describes the state up to here; it is installed together with the file
        that this table is written to.
        """
        cdef Memtable* fresh = memtable_new(self.seed)
        if fresh == NULL:
            raise MemoryError
        if self._freeze(fresh) < 0:
            counted_release(&fresh.counted)
            raise MemoryError

    def frozen_count(self):
        """How many frozen tables wait to be written to files."""
        cdef size_t count
        cdef Version* version
        with nogil:
            version = self._hold_version()
            count = version.frozen_count
            self._release_version(version)
        return count

    def statistics(self):
        """Flat counters; sizes in bytes."""
        return {
            "memtable_bytes": self.active.memory,
            "memtable_keys": self.active.count - self.active.removed,
            "frozen": self.frozen_count(),
        }

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
        with nogil:
            status = self.put(k, v)
        check(status)

    def __delitem__(self, bytes key not None):
        """Remove a key, whether it is there or not: finding out would cost a read."""
        cdef Slice k = _slice(key)
        cdef int status
        with nogil:
            status = self.remove(k)
        check(status)

    def items(self, bytes start not None=b""):
        """Yield (key, value) in key order from the first key that is >= `start`, with writes made meanwhile."""
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
