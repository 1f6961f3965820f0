"""Batches: see write_batch.pxd."""

from everwrite.arguments cimport check_bytes
from everwrite.mapping cimport StoreMapping


cdef class WriteBatch:
    """Operations that take effect together or not at all. Made by `Database.batch`; a context manager.

    Inside of the `with` block operations are only recorded: they return None, and reads of the store go on
    showing what it holds. At its end they run in order, with nobody reading in between, and go to the log, to
    the device and to other stores as one. An exception in the block discards them; an operation that fails
    at the end (WrongTypeError, KeyError of `del`, TooLargeError ...) takes back those before it, and raises.

    >>> import tempfile, everwrite
    >>> with everwrite.open(tempfile.mkdtemp()) as db:
    ...     with db.batch() as batch:
    ...         batch[b"name"] = b"Ada"
    ...         batch.counter(b"members").increment()
    ...         batch.set(b"tags").add(b"blue", b"green")
    ...     sorted(db.items()), sorted(db.set(b"tags"))
    ([(b'members', b'1'), (b'name', b'Ada')], [b'blue', b'green'])

    A batch is for one thread at a time. All its updates together hold at most 144 MiB.
    """

    def __init__(self, StoreMapping store not None):
        self.store = store
        self.keys = []
        self.values = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        keys, values = self.keys, self.values
        self.over = True
        self.keys = self.values = []
        if kind is None and keys:
            self.store.run_batch(keys, values)

    def __len__(self):
        """How many operations are recorded."""
        return len(self.keys)

    cdef int record(self, object what, object value) except -1:
        if self.over:
            raise ValueError("this batch has ended; make another with batch()")
        self.keys.append(what)
        self.values.append(value)
        return 0

    # ---- the mapping's writing methods ----

    def __setitem__(self, key, value):
        """Write a register."""
        check_bytes(key)
        check_bytes(value)
        self.record(key, value)

    def __delitem__(self, key):
        """Delete a key of any type; when it doesn't exist by then, the batch fails with KeyError."""
        check_bytes(key)
        self.record(self.store.__delitem__, (key,))

    def put(self, key, value, *, ttl=None):
        """Write a register that expires `ttl` seconds after the batch's end (None: never)."""
        if ttl is None:
            self[key] = value
            return
        check_bytes(key)
        check_bytes(value)
        self.store.deadline_after(ttl)
        self.record(_put, (self.store, key, value, ttl))

    def delete(self, key, /):
        """Delete a key of any type, if it exists by then."""
        check_bytes(key)
        self.record(key, None)

    def put_many(self, pairs, /):
        """Write registers: `pairs` is a mapping, or an iterable of (key, value)."""
        for key, value in pairs.items() if hasattr(pairs, "keys") else pairs:
            self[key] = value

    def delete_many(self, keys, /):
        """Delete keys of any type, those that exist by then."""
        for key in keys:
            self.delete(key)

    def expire(self, key, ttl, /):
        """Let a key of any type expire `ttl` seconds after the batch's end, if it exists by then."""
        check_bytes(key)
        self.store.deadline_after(ttl)
        self.record(self.store.expire, (key, ttl))

    def persist(self, key, /):
        """Take a key's deadline away, if it has one by then."""
        check_bytes(key)
        self.record(self.store.persist, (key,))

    # ---- other types: one line each; their classes name what changes them in WRITES ----

    def counter(self, key, /):
        """The writing methods of `Database.counter`."""
        return Recorder(self, self.store.counter(key))

    def set(self, key, /):
        """The writing methods of `Database.set`."""
        return Recorder(self, self.store.set(key))

    def map(self, key, /):
        """The writing methods of `Database.map`."""
        return Recorder(self, self.store.map(key))

    def multi(self, key, /):
        """The writing methods of `Database.multi`."""
        return Recorder(self, self.store.multi(key))

    def flag(self, key, /):
        """The writing methods of `Database.flag`."""
        return Recorder(self, self.store.flag(key))

    def max(self, key, /):
        """The writing methods of `Database.max`."""
        return Recorder(self, self.store.max(key))

    def min(self, key, /):
        """The writing methods of `Database.min`."""
        return Recorder(self, self.store.min(key))

    def hyperloglog(self, key, /):
        """The writing methods of `Database.hyperloglog`."""
        return Recorder(self, self.store.hyperloglog(key))

    def sorted_set(self, key, /):
        """The writing methods of `Database.sorted_set`."""
        return Recorder(self, self.store.sorted_set(key))

    def bounded_counter(self, key, /, minimum=0):
        """The writing methods of `Database.bounded_counter`."""
        return Recorder(self, self.store.bounded_counter(key, minimum))

    def sequence(self, key, /):
        """The writing methods of `Database.sequence`."""
        return Recorder(self, self.store.sequence(key))


cdef class Recorder:
    """Records the writing methods of one key's view in a batch; its other methods aren't there."""

    def __init__(self, WriteBatch batch not None, view):
        self.batch = batch
        self.view = view

    def __getattr__(self, name):
        if name not in type(self.view).WRITES:
            raise AttributeError(
                f"{type(self.view).__name__}.{name} can't be recorded in a batch: it isn't one of its writes, "
                f"{', '.join(type(self.view).WRITES)}"
            )
        return _Recorded(self.batch, getattr(self.view, name))

    def __setitem__(self, name, value):
        """Record `view[name] = value`."""
        self.batch.record(_writer(self.view, "__setitem__"), (name, value))

    def __delitem__(self, name):
        """Record `del view[name]`; when that doesn't exist by then, the batch fails with KeyError."""
        self.batch.record(_writer(self.view, "__delitem__"), (name,))


cdef object _writer(object view, str name):
    if name not in type(view).WRITES:
        raise TypeError(f"{type(view).__name__} has no items that could be written")
    return getattr(view, name)


cdef class _Recorded:
    cdef WriteBatch batch
    cdef object method

    def __init__(self, WriteBatch batch, method):
        self.batch = batch
        self.method = method

    def __call__(self, *arguments, **named):
        self.batch.record(_call, (self.method, arguments, named))


def _call(method, arguments, named):
    method(*arguments, **named)


def _put(StoreMapping store, key, value, ttl):
    store.put(key, value, ttl=ttl)
