"""A frozen moment of a store; see frozen.pxd."""

import errno
from dataclasses import replace

from everwrite.block_cache cimport BlockCache
from everwrite.clock cimport HybridClock, vector_merge
from everwrite.compaction cimport merge_to_table
from everwrite.digest cimport leaves_bytes
from everwrite.durable cimport SET_ASIDE_URGENT
from everwrite.lsm cimport Lsm
from everwrite.mapping cimport StoreMapping
from everwrite.merge_iterator cimport Merge, merge_add_memtable, merge_free, merge_init
from everwrite.status cimport Status, check
from everwrite.store cimport Store
from everwrite.versions cimport PinnedVersions, Version, pin_current

from everwrite.errors import ClosedError, ReadOnlyError


cdef Lsm _view(Lsm lsm, PinnedVersions pinned):
    """An Lsm that shows the pinned version and nothing else."""
    cdef Lsm view = Lsm.__new__(Lsm)
    view.seed = lsm.seed
    view.memtable_bytes = lsm.memtable_bytes
    view.files = lsm.files
    view.cache = lsm.cache
    view.folder = lsm.folder
    view.checkpoint = lsm.checkpoint
    view.manifest = lsm.manifest
    view.versions = pinned
    return view


cdef class FrozenStore(StoreMapping):
    """A store that shows what `parent` held when it was made. Everything that reads works on it; writes are refused.

    It is no store of its own: no files, no log, no threads. Let go of it with `let_go`.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("a snapshot is made by Database.snapshot")

    @classmethod
    def for_inspection(cls, Store parent not None):
        """As `for_backup`, with the leaves of the digest at that moment in `digest_at_start`."""
        return cls._with_files(parent, True)

    @classmethod
    def for_backup(cls, Store parent not None):
        """As `of`, with what a copy needs besides: `manifest`, `checkpoint`, `identity`; durable in the log."""
        return cls._with_files(parent, False)

    @classmethod
    def _with_files(cls, Store parent, bint with_digest):
        cdef Lsm lsm = parent.lsm
        cdef FrozenStore self
        cdef int status
        parent._check(Status.ERR_FAILED if parent.failed else Status.OK)
        # The manifest changes a moment after the version: neither does while its lock is held.
        with lsm.manifest_lock:
            self = cls.of(parent, True, with_digest)
            self.manifest = replace(lsm.manifest, next_number=lsm.next_number)
        self.identity = parent.identity
        with nogil:
            status = parent._write_log(True)
        try:
            parent._check(status)
        except BaseException:
            self.let_go()
            raise
        return self

    @classmethod
    def of(cls, Store parent not None, bint with_checkpoint=False, bint with_digest=False):
        """Freeze `parent` as it is now. Costs the same for any amount of data.

        Raises ClosedError, and StorageError when the store stopped after a failure.
        """
        cdef FrozenStore self = cls.__new__(cls)
        cdef PinnedVersions pinned
        cdef int copied
        with nogil:
            parent.lock()
        try:
            parent._check(Status.ERR_FAILED if parent.failed else Status.OK)
            if parent.lsm.active.count:
                # Without a checkpoint: many snapshots must not become many table files.
                parent.lsm.freeze(None)
            if with_checkpoint:
                self.checkpoint = parent._checkpoint(parent.wal.end)
                self.log_end = parent.wal.end
            if with_digest:
                self.digest_at_start = leaves_bytes(parent.leaves)
            pinned = pin_current(parent.lsm.versions)
            self.clock = HybridClock(parent.clock.max_drift_ms)
            self.clock.last = parent.clock.last
            self.clock.manual_ms = parent.clock.now_ms()
            self.live_keys = parent.live_keys
            self.own_origin = parent.own_origin
            copied = vector_merge(&self.applied, &parent.applied)
            check(copied)
            copied = vector_merge(&self.horizon, &parent.horizon)
            check(copied)
            self.pinned = pinned
            self.lsm = _view(parent.lsm, pinned)
            self.parent = parent
            self.path = parent.path
            self.durability = parent.durability
            self.store_id = parent.store_id
            self.files = parent.files
            self.wal = parent.wal
            self.refused = Status.ERR_READ_ONLY
            self.log_index = []
            self.durable_vector = {}
            self.closed = False
            self.failed = Status.OK
            parent.snapshots.add(self)
        finally:
            parent.unlock()
        if parent.wake is not None and parent.lsm.set_aside > SET_ASIDE_URGENT:
            parent.wake.set()
        return self

    def write_memory(self, str path, number):
        """Write what no table holds yet to the table file `path`. Returns its `manifest.TableInfo`; None: nothing."""
        cdef Version* version
        cdef Merge merge
        cdef size_t i
        with nogil:
            version = self.pinned.hold()
        try:
            check(merge_init(&merge, version.frozen_count))
            try:
                for i in range(version.frozen_count):
                    merge_add_memtable(&merge, version.frozen[i])
                return merge_to_table(
                    self.files, BlockCache(self.files, 0, bypass=True), path, number, (number, number), &merge,
                    version.table_count == 0,
                )
            finally:
                merge_free(&merge)
        finally:
            with nogil:
                self.pinned.release(version)

    def let_go(self):
        """Answer ClosedError from here on, and let go of the memory and files. Idempotent."""
        if self.closed:
            return
        self.closed = True
        with nogil:
            self.lock()
        self.failed = Status.ERR_CLOSED
        try:
            self.parent.snapshots.discard(self)
        finally:
            # A WeakSet runs Python, in which a signal handler may raise.
            self.unlock()
            with nogil:
                self.pinned.unpin()
                self.parent.lsm.versions.bury()

    cdef void lock(self) noexcept nogil:
        self.parent.lock()

    cdef bint trylock(self) noexcept nogil:
        return self.parent.trylock()

    cdef void unlock(self) noexcept nogil:
        self.parent.unlock()

    cdef int commit(self) noexcept nogil:
        return Status.OK

    cdef int commit_held(self) noexcept nogil:
        self.unlock()
        return Status.OK

    cdef int _check(self, int status) except? -1:
        if status < 0 and self.failed:
            raise ClosedError(f"{self.path}: the snapshot is closed, or the store that it is of")
        if status == Status.ERR_READ_ONLY:
            raise ReadOnlyError(
                errno.EROFS, "a snapshot is for reading only: write to the store that it is of", self.path
            )
        return check(status)

    cdef int _checked_commit(self, int status) except? -1:
        return self._check(status)

    def maintain(self):
        """Nothing: the store that this is of maintains itself."""

    def commit_log(self):
        """Nothing: there is nothing to commit."""

    def _forked(self):
        """In the child of a fork it is closed, as the store is that it is of."""
        self.failed = Status.ERR_CLOSED
        self.closed = True
        self.forked = True
