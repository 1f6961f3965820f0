"""The log-structured merge tree: what a key's newest value is, across memory tables and table files."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free

import os
import re
import secrets
import threading
from collections import deque

from everwrite.block_cache cimport BlockCache
from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, put_bytes, slice_equal, slice_of
from everwrite.compaction cimport Collector, merge_to_table
from everwrite.files cimport Files
from everwrite.hashing cimport hash64
from everwrite.memtable cimport (
    Entry, Memtable, entry_removed, entry_value, memtable_find, memtable_new, memtable_prefetch_entry,
    memtable_prefetch_slot, memtable_put, memtable_put_parts, memtable_remove,
)
from everwrite.merge_iterator cimport (
    Merge, merge_add_memtable, merge_add_table, merge_free, merge_init, merge_key, merge_next, merge_previous,
    merge_refresh_newest, merge_removed, merge_seek, merge_seek_back, merge_seek_last, merge_value,
)
from everwrite.pins cimport Counted, counted_hold, counted_release, ew_exchange, ew_load
from everwrite.status cimport Status, check
from everwrite.table_format cimport KEY_HASH_SEED, Table
from everwrite.table_reader cimport (
    TABLE_ABSENT, TABLE_FOUND, table_close, table_get, table_open, table_prefetch, table_prefetch_entry,
)
from everwrite.versions cimport Exchange, Version, Versions

from everwrite import manifest as manifests
from everwrite.compaction import pick_all, pick_run
from everwrite.errors import ClosedError, CorruptionError

_TABLE_NAME = re.compile(r"\d{16}\.table", re.ASCII)
_SCRATCH_NAME = re.compile(r"(\d{16}\.table|manifest)\.tmp", re.ASCII)
_MANIFEST_NAME = "manifest"


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


cdef class Lsm:
    """An ordered map of bytes to bytes.

    The mapping methods are for tools and tests: callers with many operations use the native
    ones. Like these, they must be serialised by the caller.
    """

    def __cinit__(self, *args, **kwargs):
        self.seed = secrets.randbits(64)
        self.empty_epoch = ~<uint64_t>0
        self.active = memtable_new(self.seed)
        if self.active == NULL:
            raise MemoryError

    def __init__(
        self, Files files not None, folder, *, size_t memtable_bytes=64 << 20, size_t block_cache_bytes=256 << 20,
        bint mapped_reads=True
    ):
        """Open the map in `folder`, which is made when it is missing.

        `memtable_bytes`: when the memory table wants to be frozen. `block_cache_bytes`: limit of
        the blocks of table files kept in memory. `mapped_reads`: table files are read through
        mappings where the file system is fit for it. Raises `CorruptionError` and `FormatError`,
        each naming the file, and `StorageError`.
        """
        self.files = files
        self.folder = os.fsdecode(folder)
        self.memtable_bytes = memtable_bytes
        self.mapped_reads = mapped_reads
        self.cache = BlockCache(files, block_cache_bytes)
        self.versions = Versions(files)
        self.keeps = True
        self.flush_lock = threading.Lock()
        self.compact_lock = threading.Lock()
        self.manifest_lock = threading.Lock()
        self.frozen_checkpoints = deque()
        self.collected = {}
        files.mkdir(self.folder)
        self.manifest = self._load_manifest()
        self.checkpoint = self.manifest.checkpoint
        self.next_number = self.manifest.next_number
        cdef Exchange change
        for i, info in enumerate(self.manifest.tables):
            change = Exchange(frozen=NULL, flushed=0, first=i, merged=0, table=self._open_table(info))
            check(self.versions.exchange(&change))
        self._remove_orphans()

    def __dealloc__(self):
        if self.kept != NULL and self.versions is not None:
            self.versions.release(<Version*>self.kept)
        if self.active != NULL:
            counted_release(&self.active.counted)

    # ---- files ----

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _table_path(self, number):
        return self._path(f"{number:016d}.table")

    def _table_names(self):
        return [name for name in self.files.listdir(self.folder) if _TABLE_NAME.fullmatch(name)]

    def _load_manifest(self):
        path = self._path(_MANIFEST_NAME)
        manifest = manifests.load(self.files, path)
        if manifest is None:
            # Without it there is no telling which of the tables are whole and current.
            if self._table_names():
                raise CorruptionError(
                    f"{path}: the manifest is missing, but there are tables beside it; "
                    "restore the folder from a backup or a replica",
                    path=path,
                )
            manifest = manifests.Manifest()
            manifests.save(self.files, path, manifest)
        else:
            # An earlier process may have renamed it into place and then failed, or died, before the sync of the
            # folder: the checkpoint must not be relied on before a crash can no longer take it back.
            self.files.sync_folder(self.folder)
        return manifest

    def _remove_orphans(self):
        """Remove what a crash has left behind: tables that no manifest came to name, or that it no longer names."""
        named = {os.path.basename(self._table_path(info.number)) for info in self.manifest.tables}
        for name in self.files.listdir(self.folder):
            if _SCRATCH_NAME.fullmatch(name) or (_TABLE_NAME.fullmatch(name) and name not in named):
                self.files.remove(self._path(name))

    cdef Table* _open_table(self, object info) except? NULL:
        cdef Table* table
        cdef bytes path = os.fsencode(self._table_path(info.number))
        cdef const char* raw = path
        cdef uint64_t number = info.number
        cdef uint64_t size = info.size
        cdef int status
        if not self.files.exists(path):
            raise CorruptionError(
                f"{os.fsdecode(path)}: the manifest names this table, but there is no such file; "
                "restore the folder from a backup or a replica",
                path=os.fsdecode(path),
            )
        with nogil:
            status = table_open(self.files, raw, number, size, self.mapped_reads, &table)
        check(status)
        return table

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

    cdef void _drop_kept(self) noexcept nogil:
        """Keep no version: its tables may have been merged."""
        cdef Version* version = <Version*>ew_exchange(&self.kept, NULL)
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

    # ---- freezing, flushing, compacting ----

    def _check_open(self):
        if self.closed:
            raise ClosedError("the map is closed")

    def freeze(self, bytes checkpoint):
        """Make the memory table immutable and start a new one.

        `checkpoint` describes the state up to here; it is installed together with the file
        that this table is written to. None: the table is flushed together with the next one
        that has a checkpoint, into one file, and counts towards `wants_freeze` until then.
        """
        self._check_open()
        cdef Exchange change = Exchange(frozen=self.active, flushed=0, first=0, merged=0, table=NULL)
        cdef Memtable* fresh = memtable_new(self.seed)
        if fresh == NULL:
            raise MemoryError
        self.frozen_checkpoints.append(checkpoint)
        if self.versions.exchange(&change) < 0:
            self.frozen_checkpoints.pop()
            counted_release(&fresh.counted)
            raise MemoryError
        self.set_aside = self.set_aside + 1 if checkpoint is None else 0
        self.set_aside_bytes = self.set_aside_bytes + self.active.memory if checkpoint is None else 0
        self.active = fresh

    def frozen_count(self):
        """How many frozen tables wait to be written to files."""
        return len(self.frozen_checkpoints)

    def set_aside_count(self):
        """How many of the newest frozen tables wait for a freeze with a checkpoint."""
        return self.set_aside

    def flushable_bytes(self):
        """The memory of the frozen tables that `flush_frozen` would write."""
        cdef size_t total = 0
        cdef size_t i
        cdef Version* version
        cdef size_t left_out = self.set_aside
        with nogil:
            version = self.versions.hold()
            for i in range(left_out, version.frozen_count):
                total += version.frozen[i].memory
            self.versions.release(version)
        return total

    def _take_number(self):
        number = self.next_number
        self.next_number += 1
        return number

    cdef object _install(self, object info, tuple tables, object checkpoint, Exchange* change):
        """Make `tables` the ones of the manifest, then of the version. Call under `manifest_lock`.

        When the manifest can't be written, it may or may not have been: the new table's file
        stays, unused, until the map is opened again.
        """
        cdef int status
        change.table = self._open_table(info) if info is not None else NULL
        self.files.sync_folder(self.folder)
        manifest = manifests.Manifest(tables, self.next_number, checkpoint)
        try:
            manifests.save(self.files, self._path(_MANIFEST_NAME), manifest)
            with nogil:
                status = self.versions.exchange(change)
                self._drop_kept()
            check(status)
        except BaseException:
            if change.table != NULL:
                table_close(self.files, change.table)
            raise
        self.manifest = manifest
        self.checkpoint = checkpoint

    def flush_frozen(self):
        """Write the oldest frozen tables, up to the first with a checkpoint, to one file and install it with that.

        False: no frozen table has a checkpoint. Raises `StorageError`; the tables then stay frozen, and the
        call may be repeated.
        """
        cdef Exchange change = Exchange(frozen=NULL, flushed=0, first=0, merged=0, table=NULL)
        cdef Version* version
        cdef Merge merge
        cdef size_t i
        cdef size_t _i
        cdef bint drop_removed
        with self.flush_lock:
            self._check_open()
            points = list(self.frozen_checkpoints)
            found = next((i for i, point in enumerate(points) if point is not None), None)
            if found is None:
                return False
            change.flushed = found + 1
            checkpoint = points[found]
            with nogil:
                version = self.versions.hold()
            try:
                drop_removed = version.table_count == 0
                check(merge_init(&merge, change.flushed))
                try:
                    for i in range(version.frozen_count - change.flushed, version.frozen_count):
                        merge_add_memtable(&merge, version.frozen[i])
                    number = self._take_number()
                    info = merge_to_table(
                        self.files, self.cache, self._table_path(number), number, (number, number), &merge,
                        drop_removed,
                    )
                finally:
                    merge_free(&merge)
            finally:
                with nogil:
                    self.versions.release(version)
            with self.manifest_lock:
                new = (info,) if info is not None else ()
                self._install(info, new + self.manifest.tables, checkpoint, &change)
                for _i in range(change.flushed):
                    self.frozen_checkpoints.popleft()
                self.flushes += 1
                self.bytes_flushed += info.size if info is not None else 0
            with nogil:
                self.versions.bury()
        return True

    def compact(self, horizon=dict):
        """Merge a run of tables when `pick_run` names one. False: there was nothing to do.

        `horizon()` is asked for the version vector behind which dead keys are dropped. Raises `StorageError`;
        everything then stays as it was, and the call may be repeated.
        """
        return self._compact(pick_run, horizon)

    def compact_all(self, horizon=dict):
        """Merge all tables into one without remove markers. False: there was nothing to do. As `compact`."""
        stable = horizon()
        if stable != self.collected:
            return self._compact(lambda tables: (0, len(tables)) if tables else None, lambda: stable)
        return self._compact(pick_all, lambda: stable)

    def _compact(self, choose, horizon):
        cdef Collector collector = None
        cdef Exchange change = Exchange(frozen=NULL, flushed=0, first=0, merged=0, table=NULL)
        cdef Version* version = NULL
        cdef Merge merge
        cdef Py_ssize_t i
        with self.compact_lock:
            self._check_open()
            with self.manifest_lock:
                tables = self.manifest.tables
                with nogil:
                    version = self.versions.hold()
            try:
                run = choose(tables)
                if run is None:
                    return False
                start, stop = run
                stable = horizon() if run == (0, len(tables)) else {}
                if stable:
                    # Only where nothing older may come to light.
                    collector = Collector(stable)
                    check(merge_init(&collector.elements, stop))
                    for i in range(stop):
                        merge_add_table(&collector.elements, version.tables[i])
                check(merge_init(&merge, stop - start))
                try:
                    for i in range(start, stop):
                        merge_add_table(&merge, version.tables[i])
                    flushes = (
                        min([version.tables[i].oldest_flush for i in range(start, stop)]),
                        max([version.tables[i].newest_flush for i in range(start, stop)]),
                    )
                    number = self._take_number()
                    info = merge_to_table(
                        # Not through the caller's cache: that isn't shared, nor pushed out.
                        self.files, BlockCache(self.files, 0, bypass=True), self._table_path(number), number, flushes,
                        &merge, stop == len(tables), collector,
                    )
                finally:
                    merge_free(&merge)
                    if collector is not None:
                        # Before the tables that its cursors stand in are let go of.
                        merge_free(&collector.elements)
            finally:
                with nogil:
                    self.versions.release(version)
            with self.manifest_lock:
                # Flushes may have put newer tables in front meanwhile.
                newer = len(self.manifest.tables) - len(tables)
                change.first = newer + start
                change.merged = stop - start
                new = (info,) if info is not None else ()
                current = self.manifest.tables
                self._install(
                    info, current[:newer + start] + new + current[newer + stop:], self.checkpoint, &change
                )
                if stable:
                    self.collected = stable
                self.compactions += 1
                self.bytes_compacted += info.size if info is not None else 0
            with nogil:
                self.versions.bury()
        return True

    def collect(self):
        """Close, and remove where they were merged, the table files that nobody reads any more.

        A flush or compaction does this itself; whoever lets a version go that it has held for long calls it.
        """
        with nogil:
            self.versions.bury()

    def close(self):
        """Close all files; wait for a flush or compaction that runs. What wasn't flushed is gone. Once more is fine."""
        cdef Memtable* empty
        with self.flush_lock, self.compact_lock:
            if self.closed:
                return
            empty = memtable_new(self.seed)
            if empty == NULL:
                raise MemoryError
            self.closed = True
            with nogil:
                # Replaced before it goes: statistics may look at it meanwhile.
                empty, self.active = self.active, empty
                counted_release(&empty.counted)
                self._drop_kept()
                self.versions.clear()
                self.versions.bury()

    def statistics(self):
        """Flat counters; sizes in bytes.

        Write amplification: bytes of table files written for 100 bytes of keys and values put since the map was
        opened (the log isn't counted). Space amplification: bytes of all table files for 100 bytes of the oldest,
        which after a full compaction is the only one.
        """
        cdef size_t frozen
        cdef size_t frozen_bytes = 0
        cdef size_t tables
        cdef uint64_t table_bytes = 0
        cdef uint64_t mapped_bytes = 0
        cdef uint64_t oldest_bytes = 0
        cdef uint64_t entries = 0
        cdef Version* version
        cdef size_t i
        with nogil:
            version = self.versions.hold()
            frozen = version.frozen_count
            tables = version.table_count
            for i in range(frozen):
                frozen_bytes += version.frozen[i].memory
            for i in range(tables):
                table_bytes += version.tables[i].size
                mapped_bytes += version.tables[i].size if version.tables[i].mapping != NULL else 0
                oldest_bytes = version.tables[i].size
                entries += version.tables[i].entries
            self.versions.release(version)
        return {
            "memtable_bytes": self.active.memory,
            "memtable_keys": self.active.count - self.active.removed,
            "frozen": frozen,
            "frozen_bytes": frozen_bytes,
            "tables": tables,
            "table_bytes": table_bytes,
            "mapped_bytes": mapped_bytes,
            "table_entries": entries,
            "cache_bytes": self.cache.bytes,
            "cache_reserved_bytes": self.cache.reserved,
            "cache_hits": self.cache.hits,
            "cache_misses": self.cache.misses,
            "flushes": self.flushes,
            "compactions": self.compactions,
            "bytes_put": self.bytes_put,
            "bytes_flushed": self.bytes_flushed,
            "bytes_compacted": self.bytes_compacted,
            "write_amplification_percent": (
                100 * (self.bytes_flushed + self.bytes_compacted) // self.bytes_put if self.bytes_put else 0
            ),
            "space_amplification_percent": 100 * table_bytes // oldest_bytes if oldest_bytes else 0,
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
