"""Operations in groups: see groups.pxd."""

from cpython.bytes cimport PyBytes_Check, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from everwrite.arguments cimport bytes_slice, check_bytes, slice_bytes
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_slice,
    get_slice,
    get_u8,
    put_slice,
    put_u8,
    reader_of,
    slice_of,
)
from everwrite.status cimport Status
from everwrite.store cimport Store

cdef enum:
    # Operations of a group under one acquisition of the lock. Long enough for their memory to be fetched ahead,
    # short enough for others not to wait.
    GROUP_OPERATIONS = 256
    GROUP_BYTES = 1 << 20
    HELD_OPERATIONS = 512        # more of them let the GIL go
    SLOT_AHEAD = 16              # how far ahead of an operation its slot in the index is fetched; a power of two
    ENTRY_AHEAD = 8              # and its entry


cdef class GroupedStore(Store):
    """A store whose operations can come in groups."""

    cdef size_t run(
        self, const Slice* keys, const Slice* values, size_t start, size_t stop, bint waits, int* status, size_t* erased
    ) noexcept nogil:
        """Write, or, where a value's data is NULL, delete keys[start:stop], with memory fetched ahead.

        Needs the lock. Returns where it ended: at `stop`; or at an operation that failed with *status; or, unless
        `waits`, at one that can't be done at once.
        """
        cdef uint64_t hashes[SLOT_AHEAD]
        cdef Slice old
        cdef bint found
        cdef size_t slot = start
        cdef size_t entry = start
        cdef size_t at = start
        status[0] = Status.OK
        while at < stop:
            while slot < stop and slot < at + SLOT_AHEAD:
                hashes[slot & (SLOT_AHEAD - 1)] = self.prefetch(keys[slot])
                slot += 1
            while entry < stop and entry < at + ENTRY_AHEAD:
                self.prefetch_entry(hashes[entry & (SLOT_AHEAD - 1)])
                entry += 1
            if values[at].data == NULL:
                status[0] = self.delete_quick(keys[at], hashes[at & (SLOT_AHEAD - 1)])
            else:
                status[0] = self.set_quick(keys[at], hashes[at & (SLOT_AHEAD - 1)], values[at])
            if status[0] == Status.WOULD_BLOCK:
                if not waits:
                    return at
                if values[at].data == NULL:
                    status[0] = self.op_delete(keys[at])
                else:
                    status[0] = self.op_set(keys[at], values[at], 0, 0, &old, &found)
            if status[0] < 0:
                return at
            if values[at].data == NULL:
                erased[0] += status[0]
            at += 1
        return at

    # ---- many keys ----

    cdef int lookup_group(self, list keys, Py_ssize_t start, Py_ssize_t stop, list into) except -1:
        """Append the values of keys[start:stop], with memory fetched ahead, under one acquisition of the lock."""
        cdef uint64_t hashes[SLOT_AHEAD]
        cdef Slice value
        cdef Py_ssize_t slot = start
        cdef Py_ssize_t entry = start
        cdef Py_ssize_t at
        cdef int status = Status.OK
        cdef list late = None
        if not self.trylock():
            with nogil:
                self.lock()
        try:
            for at in range(start, stop):
                while slot < stop and slot < at + SLOT_AHEAD:
                    hashes[slot & (SLOT_AHEAD - 1)] = self.prefetch(bytes_slice(keys[slot]))
                    slot += 1
                while entry < stop and entry < at + ENTRY_AHEAD:
                    self.prefetch_entry(hashes[entry & (SLOT_AHEAD - 1)])
                    entry += 1
                status = self.get_quick(bytes_slice(keys[at]), hashes[at & (SLOT_AHEAD - 1)], &value)
                if status == 1:
                    into.append(slice_bytes(value))
                    continue
                into.append(None)
                if status == Status.WOULD_BLOCK:
                    if late is None:
                        late = []
                    late.append(at)
                elif status < 0:
                    break
        finally:
            self.unlock()
        if status < 0 and status != Status.WOULD_BLOCK:
            self._check(status)
        if late is not None:
            self._lookup_late(keys, late, into, len(into) - stop)
        return 0

    cdef int _lookup_late(self, list keys, list late, list into, Py_ssize_t offset) except -1:
        """Those of a group that files have to be read for: without the GIL."""
        cdef size_t count = len(late)
        cdef Slice* names = <Slice*>malloc(count * sizeof(Slice))
        cdef Buffer found
        cdef Reader reader
        cdef Slice value
        cdef size_t i
        cdef int status = Status.OK
        buffer_init(&found)
        try:
            if names == NULL:
                raise MemoryError("out of memory for a group of keys")
            for i in range(count):
                names[i] = bytes_slice(keys[late[i]])
            with nogil:
                self.lock()
                for i in range(count):
                    status = self.op_get(names[i], &value)
                    if status < 0:
                        break
                    if put_u8(&found, status == 1) != 0 or (status == 1 and put_slice(&found, value) != 0):
                        status = Status.ERR_MEMORY
                        break
                self.unlock()
            self._check(status)
            reader = reader_of(buffer_slice(&found))
            for i in range(count):
                if get_u8(&reader):
                    into[<Py_ssize_t>late[i] + offset] = slice_bytes(get_slice(&reader))
        finally:
            free(names)
            buffer_free(&found)
        return 0

    def get_many(self, keys, /):
        """The values of `keys` (an iterable of bytes), as a list: None for each that doesn't exist.

        Quicker than as many `get`: keys are looked up in groups, while the memory of others is on its way.
        Raises WrongTypeError as `get`.
        """
        cdef list names = list(keys)
        cdef list found = []
        cdef Py_ssize_t start = 0
        cdef Py_ssize_t stop
        self._check(Status.ERR_FAILED if self.failed else Status.OK)
        for name in names:
            check_bytes(name)
        while start < len(names):
            stop = min(start + GROUP_OPERATIONS, len(names))
            self.lookup_group(names, start, stop, found)
            start = stop
        return found

    cdef size_t run_group(self, list keys, list values, Py_ssize_t start, Py_ssize_t stop) except? 0:
        """Write, or, without `values`, delete keys[start:stop] as one frame of the log. Returns how many were deleted.

        When one fails, those before it stay.
        """
        cdef size_t count = stop - start
        cdef Slice* names = <Slice*>malloc(2 * count * sizeof(Slice))
        cdef size_t erased = 0
        cdef size_t done = 0
        cdef size_t i
        cdef int logged
        cdef int committed
        cdef int status = Status.WOULD_BLOCK
        if names == NULL:
            raise MemoryError("out of memory for a group of operations")
        for i in range(count):
            names[i] = bytes_slice(keys[start + i])
            names[count + i] = slice_of(NULL, 0) if values is None else bytes_slice(values[start + i])
        if self.trylock():
            self.batch_begin()
            self.values_stay = True
            done = self.run(names, names + count, 0, count, False, &status, &erased)
            if status != Status.WOULD_BLOCK:
                logged = self.batch_end()
                free(names)
                self._checked_release(logged if logged < 0 else status)
                return erased
        else:
            with nogil:
                self.lock()
            self.batch_begin()
            self.values_stay = True
        with nogil:
            self.run(names, names + count, done, count, True, &status, &erased)
            logged = self.batch_end()
            committed = self.commit_held()
        free(names)
        self._settle(logged if logged < 0 else status, committed)
        return erased

    def put_many(self, pairs, /):
        """Write many registers: `pairs` is a mapping, or an iterable of (key, value).

        Quicker than as many writes, but not atomic as `batch` is: pairs are written in groups, and when one is
        refused (TypeError, TooLargeError) those before it stay written.
        """
        cdef list names = []
        cdef list texts = []
        cdef Py_ssize_t size = 0
        self._check(Status.ERR_FAILED if self.failed else Status.OK)
        if hasattr(pairs, "keys"):
            pairs = pairs.items()
        try:
            for key, value in pairs:
                check_bytes(key)
                check_bytes(value)
                names.append(key)
                texts.append(value)
                size += PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(value)
                if len(names) == GROUP_OPERATIONS or size >= GROUP_BYTES:
                    full, names = names, []
                    full_texts, texts = texts, []
                    size = 0
                    self.run_group(full, full_texts, 0, len(full))
        finally:
            if names:
                self.run_group(names, texts, 0, len(names))

    def delete_many(self, keys, /):
        """Delete keys (an iterable of bytes) of any type; returns how many existed. In groups, as `put_many`."""
        cdef list names = list(keys)
        cdef Py_ssize_t erased = 0
        cdef Py_ssize_t start = 0
        cdef Py_ssize_t stop
        self._check(Status.ERR_FAILED if self.failed else Status.OK)
        for name in names:
            check_bytes(name)
        while start < len(names):
            stop = min(start + GROUP_OPERATIONS, len(names))
            erased += self.run_group(names, None, start, stop)
            start = stop
        return erased

    # ---- batches ----

    cdef int run_batch(self, list keys, list values) except -1:
        """Run operations together, or none of them; see `write_batch`."""
        cdef int status
        if not self.trylock():
            with nogil:
                self.lock()
        if self.atomic:
            # Inside of another batch's operation: a part of that.
            try:
                return self.run_operations(keys, values, False)
            finally:
                self.unlock()
        status = self.atomic_begin()
        if status == Status.OK:
            try:
                self.run_operations(keys, values, True)
            except BaseException:
                with nogil:
                    self.atomic_rollback()
                    self.unlock()
                raise
            status = self.atomic_end()
        self._checked_release(status)
        return 0

    cdef int run_operations(self, list keys, list values, bint outermost) except -1:
        """Run what a batch recorded, with the lock held: calls one by one, writes and deletes in runs.

        Only the lists of the outermost batch live until it is logged.
        """
        cdef size_t count = len(keys)
        cdef Slice* names = <Slice*>malloc(2 * count * sizeof(Slice))
        cdef size_t start = 0
        cdef size_t stop
        try:
            if names == NULL:
                raise MemoryError("out of memory for a batch")
            while start < count:
                stop = start
                while stop < count and PyBytes_Check(keys[stop]):
                    names[stop] = bytes_slice(keys[stop])
                    value = values[stop]
                    names[count + stop] = slice_of(NULL, 0) if value is None else bytes_slice(value)
                    stop += 1
                if stop > start:
                    self.values_stay = outermost
                    try:
                        self._run_held(names, names + count, start, stop)
                    finally:
                        self.values_stay = False
                if stop < count:
                    keys[stop](*values[stop])
                    stop += 1
                start = stop
        finally:
            free(names)
        return 0

    cdef int _run_held(self, const Slice* keys, const Slice* values, size_t start, size_t stop) except -1:
        cdef size_t erased = 0
        cdef int status = Status.WOULD_BLOCK
        if stop - start <= HELD_OPERATIONS:
            start = self.run(keys, values, start, stop, False, &status, &erased)
        if status == Status.WOULD_BLOCK:
            with nogil:
                self.run(keys, values, start, stop, True, &status, &erased)
        self._check(status)
        return 0
