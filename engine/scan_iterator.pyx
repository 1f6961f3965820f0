"""Scans: see scan_iterator.pxd."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport PyObject, Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

cimport cython

from everwrite.coding cimport (
    Buffer,
    Slice,
    buffer_free,
    buffer_init,
    buffer_reserve,
    buffer_slice,
    load_u32,
    put_bytes,
    slice_compare,
    slice_equal,
    slice_of,
    store_u32,
)
from everwrite.datatypes cimport KIND_STRING
from everwrite.state cimport (
    SPACE_USER,
    head_decode,
    head_expired,
    head_free,
    head_init,
    head_is_plain,
    head_kind,
    head_plain_value,
)
from everwrite.status cimport Status, fault_corrupt
from everwrite.store cimport Store

cdef extern from *:
    """
    /* A pair of new bytes objects. The tuple that was handed out last serves again when nobody else holds it. */
    static PyObject* ew_pair(
        PyObject** last, const char* key, Py_ssize_t key_size, const char* value, Py_ssize_t value_size
    ) {
        PyObject *first, *second, *old, *pair = *last;
        first = PyBytes_FromStringAndSize(key, key_size);
        if (first == NULL) return NULL;
        second = PyBytes_FromStringAndSize(value, value_size);
        if (second == NULL) { Py_DECREF(first); return NULL; }
        if (pair != NULL && Py_REFCNT(pair) == 1) {
            PyObject* old_first = PyTuple_GET_ITEM(pair, 0);
            PyObject* old_second = PyTuple_GET_ITEM(pair, 1);
            PyTuple_SET_ITEM(pair, 0, first);
            PyTuple_SET_ITEM(pair, 1, second);
            Py_INCREF(pair);
            Py_DECREF(old_first);
            Py_DECREF(old_second);
            return pair;
        }
        pair = PyTuple_New(2);
        if (pair == NULL) { Py_DECREF(first); Py_DECREF(second); return NULL; }
        PyTuple_SET_ITEM(pair, 0, first);
        PyTuple_SET_ITEM(pair, 1, second);
        old = *last;
        Py_INCREF(pair);
        *last = pair;
        Py_XDECREF(old);
        return pair;
    }
    """
    object ew_pair(
        PyObject** last, const char* key, Py_ssize_t key_size, const char* value, Py_ssize_t value_size
    )

cdef enum:
    ITEM_HEADER = 8
    FIRST_CHUNK_ITEMS = 16
    LARGEST_CHUNK_ITEMS = 256
    CHUNK_BYTES = 256 << 10           # a chunk ends behind the item that fills it
    LOOKS = 4096                      # entries looked at under one acquisition of the lock, shown or not
    UNORDERED_FEW = 256               # new keys whose order is made within some microseconds


# A collector that cleared the reference to the store first would leave __dealloc__ without its locks.
@cython.no_gc_clear
cdef class Scan:
    """An iterator over a range of registers and counters. Made by `Database.scan`."""

    def __cinit__(self):
        buffer_init(&self.lower)
        buffer_init(&self.upper)
        buffer_init(&self.chunk)
        buffer_init(&self.resume)
        head_init(&self.head)
        # Of no store, until `open_scan` says which.
        self.ended = True

    def __dealloc__(self):
        self.finish()
        buffer_free(&self.lower)
        buffer_free(&self.upper)
        buffer_free(&self.chunk)
        buffer_free(&self.resume)
        head_free(&self.head)
        Py_XDECREF(self.pair)

    cdef void finish(self) noexcept:
        """Let go of what the iterator holds in memory and files."""
        if self.it == NULL or self.store.forked:
            # In a forked child, other threads of the parent may have held the locks that this would need.
            return
        if not self.store.trylock():
            with nogil:
                self.store.lock()
        self.store.lsm.iterator_free(self.it)
        self.it = NULL
        self.store.unlock()

    def __iter__(self):
        return self

    def __next__(self):
        cdef const uint8_t* item
        cdef uint32_t key_size
        cdef uint32_t value_size
        if self.busy:
            raise ValueError("another thread is reading from this scan; give each thread a scan of its own")
        while self.at == self.chunk.size:
            if self.ended:
                raise StopIteration
            self.busy = True
            try:
                self.fill()
            finally:
                self.busy = False
        item = self.chunk.data + self.at
        key_size = load_u32(item)
        value_size = load_u32(item + 4)
        item += ITEM_HEADER
        self.at += ITEM_HEADER + key_size + value_size
        if not self.with_values:
            return PyBytes_FromStringAndSize(<const char*>item, key_size)
        if not self.with_keys:
            return PyBytes_FromStringAndSize(<const char*>item + key_size, value_size)
        return ew_pair(&self.pair, <const char*>item, key_size, <const char*>item + key_size, value_size)

    cdef int fill(self) except -1:
        """Read the next chunk, which may turn out empty, or find that there is none."""
        cdef int status
        if self.store.failed:
            self.store._check(Status.ERR_FAILED)
        if not self.store.trylock():
            with nogil:
                self.store.lock()
        self.at = self.chunk.size = 0
        if not self.waits and self.store.lsm.active.pending_count <= UNORDERED_FEW:
            self.store.lsm.set_cached_only(True)
            status = self.read_chunk()
            self.store.lsm.set_cached_only(False)
        else:
            status = Status.WOULD_BLOCK
        if status == Status.WOULD_BLOCK:
            self.waits = self.store.lsm.active.pending_count <= UNORDERED_FEW
            with nogil:
                status = self.read_chunk()
        if status != 1 and self.it != NULL:
            self.store.lsm.iterator_free(self.it)
            self.it = NULL
        self.store.unlock()
        if status != 1:
            self.ended = True
        if status < 0:
            self.chunk.size = 0
            self.store._check(status)
        if self.chunk_items < LARGEST_CHUNK_ITEMS:
            self.chunk_items *= 2
        return 0

    cdef int seek(self) noexcept nogil:
        """To the entry behind the one that was looked at last, or to the first one."""
        cdef Slice bound
        cdef int status
        if self.it == NULL:
            self.it = self.store.lsm.iterator()
            if self.it == NULL:
                return Status.ERR_MEMORY
        if self.reverse:
            bound = buffer_slice(&self.resume if self.resume.size else &self.upper)
            status = self.store.lsm.seek_for_prev(self.it, bound)
            if status == 1 and slice_equal(self.store.lsm.key(self.it), bound):
                status = self.store.lsm.prev(self.it)
            return status
        if not self.resume.size:
            return self.store.lsm.seek(self.it, buffer_slice(&self.lower))
        status = self.store.lsm.seek(self.it, buffer_slice(&self.resume))
        if status == 1 and slice_equal(self.store.lsm.key(self.it), buffer_slice(&self.resume)):
            status = self.store.lsm.next(self.it)
        return status

    cdef int read_chunk(self) noexcept nogil:
        """1: there may be more; 0: this was the last; a negative status. WOULD_BLOCK leaves the position as it was."""
        cdef size_t items = 0
        cdef size_t wanted = self.chunk_items
        cdef int64_t now_ms = self.store.clock.now_ms()
        cdef int looks = 0
        cdef int status
        cdef Slice key
        self.chunk.size = 0
        if self.store.failed:
            return Status.ERR_FAILED
        if 0 <= self.left < <int64_t>wanted:
            wanted = self.left
        if wanted == 0:
            return 0
        if self.it == NULL or not self.standing:
            status = self.seek()
        elif self.reverse:
            status = self.store.lsm.prev(self.it)
        else:
            status = self.store.lsm.next(self.it)
        self.standing = False
        while status == 1:
            key = self.store.lsm.key(self.it)
            if self.reverse:
                if slice_compare(key, buffer_slice(&self.lower)) < 0:
                    return 0
            elif slice_compare(key, buffer_slice(&self.upper)) >= 0:
                return 0
            status = self.take(key, now_ms)
            if status < 0:
                return status
            items += status
            looks += 1
            if items == wanted or looks == LOOKS or self.chunk.size >= CHUNK_BYTES:
                self.resume.size = 0
                if put_bytes(&self.resume, key.data, key.size) != 0:
                    return Status.ERR_MEMORY
                self.standing = True
                break
            status = self.store.lsm.prev(self.it) if self.reverse else self.store.lsm.next(self.it)
        if status < 0:
            return status
        if self.left > 0:
            self.left -= items
        return 1 if self.standing and self.left != 0 else 0

    cdef int take(self, Slice key, int64_t now_ms) noexcept nogil:
        """Add an entry to the chunk, when it is a register or counter. Returns 1 or 0, or a negative status."""
        cdef Slice stored = self.store.lsm.value(self.it)
        cdef Slice value
        cdef int status
        if head_is_plain(stored):
            value = head_plain_value(stored)
        else:
            if head_decode(&self.head, stored) < 0:
                return fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
            if head_kind(&self.head) != KIND_STRING or head_expired(&self.head, now_ms):
                return 0
            status = self.store.show_string(&self.head, &value)
            if status != 1:
                return status
        key = slice_of(key.data + 1, key.size - 1 if self.with_keys else 0)
        if not self.with_values:
            value.size = 0
        if buffer_reserve(&self.chunk, ITEM_HEADER + key.size + value.size) < 0:
            return Status.ERR_MEMORY
        store_u32(self.chunk.data + self.chunk.size, <uint32_t>key.size)
        store_u32(self.chunk.data + self.chunk.size + 4, <uint32_t>value.size)
        memcpy(self.chunk.data + self.chunk.size + ITEM_HEADER, key.data, key.size)
        memcpy(self.chunk.data + self.chunk.size + ITEM_HEADER + key.size, value.data, value.size)
        self.chunk.size += ITEM_HEADER + key.size + value.size
        return 1


cdef object _behind(bytes prefix):
    """The first key behind all that begin with `prefix`, of which one byte isn't 255."""
    prefix = prefix.rstrip(b"\xff")
    cdef Py_ssize_t last = len(prefix) - 1
    return prefix[:last] + bytes([prefix[last] + 1])


cdef int _fill_buffer(Buffer* into, bytes data) except -1:
    if put_bytes(into, <const uint8_t*>data, len(data)) != 0:
        raise MemoryError("out of memory for a scan")
    return 0


cdef Scan open_scan(
    Store store, object prefix, object start, object stop, bint reverse, bint with_keys, bint with_values,
    int64_t limit
):
    cdef Scan scan = Scan.__new__(Scan)
    cdef bytes user = bytes([SPACE_USER])
    lower = user + (prefix if start is None else max(prefix, start))
    upper = _behind(user + prefix)
    if stop is not None:
        upper = min(upper, user + stop)
    scan.store = store
    scan.reverse = reverse
    scan.with_keys = with_keys
    scan.with_values = with_values
    scan.left = limit
    scan.ended = limit == 0 or lower >= upper
    scan.chunk_items = min(limit, LARGEST_CHUNK_ITEMS) if limit > FIRST_CHUNK_ITEMS else FIRST_CHUNK_ITEMS
    _fill_buffer(&scan.lower, lower)
    _fill_buffer(&scan.upper, upper)
    return scan


cdef int64_t count_strings(Store store, int64_t limit) except -1:
    cdef Scan scan = open_scan(store, b"", None, None, False, False, False, limit)
    cdef int64_t counted = 0
    scan.chunk_items = LOOKS
    while not scan.ended:
        scan.fill()
        counted += scan.chunk.size // ITEM_HEADER
    return counted
