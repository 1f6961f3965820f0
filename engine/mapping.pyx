"""The native mapping: see mapping.pxd."""

from cpython.bytes cimport PyBytes_Check
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t

import operator

from everwrite.arguments cimport bytes_slice, check_bytes, slice_bytes
from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, buffer_slice, put_bytes
from everwrite.groups cimport GroupedStore
from everwrite.scan_iterator cimport count_strings, open_scan
from everwrite.status cimport Status

cdef extern from "Python.h":
    # With the lock held an exception must not jump over its release: the pointer is looked at after that.
    PyObject* raw_bytes "PyBytes_FromStringAndSize"(const char* data, Py_ssize_t size) noexcept
    void Py_DECREF(PyObject* raw) noexcept

_TTL_LIMIT = 1e12                # seconds, some 31,000 years
_missing = object()


cdef inline object _take(PyObject* raw):
    """The object of a new reference."""
    found = <object>raw
    Py_DECREF(raw)
    return found


cdef class StoreMapping(GroupedStore):
    """An open store as a mapping of bytes to bytes, without what Python adds to it in `Database`."""

    # ---- the lock and the operations under it ----

    cdef object lookup(self, object key):
        cdef Slice name
        cdef Slice value
        cdef PyObject* raw = NULL
        cdef int status
        if not PyBytes_Check(key):
            check_bytes(key)
        name = bytes_slice(key)
        if self.trylock():
            status = self.get_quick(name, 0, &value)
            if status == 1:
                raw = raw_bytes(<const char*>value.data, value.size)
            self.unlock()
            if status == 1:
                if raw == NULL:
                    raise MemoryError(f"out of memory for a value of {value.size} bytes")
                return _take(raw)
            if status == 0:
                return None
            if status != Status.WOULD_BLOCK:
                self._check(status)
        return self._wait_for(name, False)

    cdef object _wait_for(self, Slice name, bint erase):
        """The value of a key, or None; with `erase`, it is deleted then. Without the GIL."""
        cdef Buffer copy
        cdef Slice value
        cdef int status
        cdef int committed = Status.OK
        buffer_init(&copy)
        with nogil:
            self.lock()
            status = self.op_get(name, &value)
            if status == 1 and put_bytes(&copy, value.data, value.size) != 0:
                status = Status.ERR_MEMORY
            if not erase:
                self.unlock()
            else:
                if status == 1:
                    status = self.op_delete(name)
                committed = self.commit_held()
        try:
            if self._settle(status, committed) if erase else self._check(status):
                return slice_bytes(buffer_slice(&copy))
            return None
        finally:
            buffer_free(&copy)

    cdef int write(self, Slice key, Slice value, int64_t deadline_ms) except -1:
        cdef Slice old
        cdef bint found
        cdef int status
        cdef int committed
        if deadline_ms == 0 and self.trylock():
            status = self.set_quick(key, 0, value)
            if status != Status.WOULD_BLOCK:
                self._checked_release(status)
                return 0
            self.unlock()
        with nogil:
            self.lock()
            status = self.op_set(key, value, 0, deadline_ms, &old, &found)
            committed = self.commit_held()
        self._settle(status, committed)
        return 0

    cdef bint erase(self, Slice key) except -1:
        cdef int status
        cdef int committed
        if self.trylock():
            status = self.delete_quick(key, 0)
            if status != Status.WOULD_BLOCK:
                return self._checked_release(status) == 1
            self.unlock()
        with nogil:
            self.lock()
            status = self.op_delete(key)
            committed = self.commit_held()
        return self._settle(status, committed) == 1

    # ---- one key ----

    def __getitem__(self, key):
        """The value of a register, or a counter's as decimal text. Raises KeyError, and WrongTypeError for a set."""
        found = self.lookup(key)
        if found is None:
            raise KeyError(key)
        return found

    def get(self, key, default=None, /):
        """The value of a register or counter, or `default` when the key doesn't exist. Raises WrongTypeError."""
        found = self.lookup(key)
        return default if found is None else found

    def __contains__(self, key):
        """Whether the key holds a register or counter."""
        cdef Slice name
        cdef Slice value
        cdef int status = Status.WOULD_BLOCK
        check_bytes(key)
        name = bytes_slice(key)
        if self.trylock():
            status = self.get_quick(name, 0, &value)
            self.unlock()
        if status == Status.WOULD_BLOCK:
            with nogil:
                self.lock()
                status = self.op_get(name, &value)
                self.unlock()
        return status != Status.ERR_WRONG_TYPE and self._check(status) == 1

    def __setitem__(self, key, value):
        """Write a register that never expires; whatever the key held is replaced."""
        check_bytes(key)
        check_bytes(value)
        self.write(bytes_slice(key), bytes_slice(value), 0)

    def __delitem__(self, key):
        """Delete a key of any type. Raises KeyError when it doesn't exist."""
        check_bytes(key)
        if not self.erase(bytes_slice(key)):
            raise KeyError(key)

    def put(self, key, value, *, ttl=None):
        """Write a value that expires `ttl` seconds from now (None: never), everywhere at that moment.

        Raises ValueError when `ttl` is not positive, TooLargeError.
        """
        cdef int64_t deadline_ms = 0 if ttl is None else self.deadline_after(ttl)
        check_bytes(key)
        check_bytes(value)
        self.write(bytes_slice(key), bytes_slice(value), deadline_ms)

    def delete(self, key, /):
        """Delete a key of any type; returns whether it existed."""
        check_bytes(key)
        return self.erase(bytes_slice(key))

    def pop(self, key, default=_missing, /):
        """Take a register or counter out and return its value. Without the key: `default`, else KeyError.

        Raises WrongTypeError, and leaves everything as it is, when the key holds a set or map.
        """
        check_bytes(key)
        found = self._wait_for(bytes_slice(key), True)
        if found is not None:
            return found
        if default is _missing:
            raise KeyError(key)
        return default

    def setdefault(self, key, default, /):
        """The value of a register or counter; when the key doesn't exist, `default` (bytes), which is written first."""
        cdef Buffer copy
        cdef Slice name
        cdef Slice text
        cdef Slice value
        cdef Slice old
        cdef bint found
        cdef int status
        cdef int committed
        check_bytes(key)
        check_bytes(default)
        name = bytes_slice(key)
        text = bytes_slice(default)
        buffer_init(&copy)
        with nogil:
            self.lock()
            status = self.op_get(name, &value)
            if status == 1 and put_bytes(&copy, value.data, value.size) != 0:
                status = Status.ERR_MEMORY
            elif status == 0:
                status = self.op_set(name, text, 0, 0, &old, &found)
                status = 0 if status == 1 else status
            committed = self.commit_held()
        try:
            return slice_bytes(buffer_slice(&copy)) if self._settle(status, committed) else default
        finally:
            buffer_free(&copy)

    # ---- deadlines ----

    cdef int64_t deadline_after(self, object ttl) except -1:
        if not isinstance(ttl, (int, float)):
            raise TypeError(f"ttl is {ttl!r}; it must be a number of seconds")
        if not 0 < ttl < _TTL_LIMIT:
            raise ValueError(f"ttl is {ttl!r}; it must be more than 0 and less than {_TTL_LIMIT:g} seconds")
        return self.clock.now_ms() + max(1, round(ttl * 1000))

    cdef bint _change_deadline(self, object key, int64_t deadline_ms) except -1:
        """Set it, or, with 0, take it away."""
        cdef Slice name
        cdef int status
        cdef int committed
        check_bytes(key)
        name = bytes_slice(key)
        with nogil:
            self.lock()
            status = self.op_expire_at(name, deadline_ms) if deadline_ms else self.op_persist(name)
            committed = self.commit_held()
        return self._settle(status, committed) == 1

    def expire(self, key, ttl, /):
        """Let a key of any type expire `ttl` seconds from now; returns whether there was such a key.

        Raises ValueError when `ttl` is not positive: delete the key instead.
        """
        return self._change_deadline(key, self.deadline_after(ttl))

    def persist(self, key, /):
        """Take a key's deadline away; returns whether it had one."""
        return self._change_deadline(key, 0)

    def ttl(self, key, /):
        """Seconds until a key of any type expires, or None when it has no deadline. Raises KeyError."""
        cdef Slice name
        cdef int64_t deadline_ms
        cdef int64_t left_ms
        check_bytes(key)
        name = bytes_slice(key)
        with nogil:
            self.lock()
            deadline_ms = self.op_deadline(name)
            left_ms = deadline_ms - self.clock.now_ms()
            self.unlock()
        if deadline_ms < -100:
            self._check(<int>(deadline_ms + 100))
        if deadline_ms == -2:
            raise KeyError(key)
        return None if deadline_ms == -1 else max(left_ms, 0) / 1000.0

    # ---- all keys ----

    def scan(self, prefix=b"", start=None, stop=None, *, reverse=False, keys=True, values=True, limit=None):
        """Iterate over registers and counters in byte order of their keys, as (key, value) pairs.

        `prefix`, `start` (inclusive) and `stop` (exclusive) bound the keys; `reverse`: from the last one down.
        Without `values` it yields keys, without `keys` values. `limit`: how many at most.
        Reads ahead in chunks, each of which shows the store as it is at one moment; writing meanwhile is allowed.
        Raises ValueError for a negative `limit` or when neither keys nor values are wanted.
        """
        for bound in (prefix, start, stop):
            if bound is not None:
                check_bytes(bound)
        if not keys and not values:
            raise ValueError("keys and values are both False: there is nothing to yield")
        limit = None if limit is None else operator.index(limit)
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit!r}; it must be None or 0 and more")
        return open_scan(self, prefix, start, stop, reverse, keys, values, -1 if limit is None else limit)

    def __iter__(self):
        """The keys of registers and counters in byte order."""
        return open_scan(self, b"", None, None, False, True, False, -1)

    def __len__(self):
        """How many registers and counters there are: counted, in time proportional to all keys."""
        return count_strings(self, -1)

    def __bool__(self):
        """Whether there is a register or counter."""
        return count_strings(self, 1) > 0
