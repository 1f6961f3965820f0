"""The files of a log-structured merge tree: its manifest, and what turns memory tables into table files.

See lsm_files.pxd for who may call what from where.
"""

from libc.stdint cimport uint64_t

import os
import re
import secrets
import threading
from collections import deque

from everwrite.block_cache cimport BlockCache
from everwrite.compaction cimport Collector, merge_to_table
from everwrite.files cimport Files
from everwrite.memtable cimport Memtable, memtable_new
from everwrite.merge_iterator cimport Merge, merge_add_memtable, merge_add_table, merge_free, merge_init
from everwrite.pins cimport counted_release, ew_exchange
from everwrite.status cimport check
from everwrite.table_format cimport Table
from everwrite.table_reader cimport table_close, table_open
from everwrite.versions cimport Exchange, Version, Versions

from everwrite import manifest as manifests
from everwrite.compaction import pick_all, pick_run
from everwrite.errors import ClosedError, CorruptionError

_TABLE_NAME = re.compile(r"\d{16}\.table", re.ASCII)
_SCRATCH_NAME = re.compile(r"(\d{16}\.table|manifest)\.tmp", re.ASCII)
_MANIFEST_NAME = "manifest"


cdef class LsmFiles:
    """The files of a map in a folder; `Lsm` reads and writes it."""

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

    # ---- freezing, flushing, compacting ----

    cdef void _drop_kept(self) noexcept nogil:
        """Keep no version: its tables may have been merged."""
        cdef Version* version = <Version*>ew_exchange(&self.kept, NULL)
        if version != NULL:
            self.versions.release(version)

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
