"""Backups: a whole copy of a store's moment in a directory of its own, and the way back.

docs/formats/backup.md has the layout. A backup is itself a store that was never opened: what is
begun from it, restored or opened as it stands, is a new origin, because the store that it is of
goes on with the old one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack

from everwrite import manifest as manifests
from everwrite.checksum import checksum
from everwrite.copying import checksum_file, copy_file
from everwrite.errors import BackupError, CorruptionError, FormatError, StorageError
from everwrite.files import Files, PosixFiles
from everwrite.frozen import FrozenStore
from everwrite.identity import decode_identity, encode_identity
from everwrite.inspection import check_table, place, table_name
from everwrite.options import path_of
from everwrite.report import Damage
from everwrite.store import Store
from everwrite.wal_recovery import open_log

__all__ = ["MARKER", "BackupInfo", "back_up", "decode_marker", "encode_marker", "restore"]

MARKER = "BACKUP"
_MAGIC = b"EWRTBKUP"
_VERSION = 1
_HEADER = struct.Struct("<8sII")
_PLACE = "backup"
_FOLDERS = ("tables", "wal")

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class BackupInfo:
    """What the file BACKUP says: `moment_ms` (Unix ms) and `origin` of the store that it is of, and its files.

    `files`: name (relative, with `/`) -> (size in bytes, CRC-32C).
    """

    moment_ms: int
    origin: int
    files: dict[str, tuple[int, int]]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(size for size, _ in self.files.values())


def encode_marker(info: BackupInfo) -> bytes:
    """Magic, version, checksum, then a msgpack array."""
    names = [[name, size, crc] for name, (size, crc) in sorted(info.files.items())]
    payload: bytes = msgpack.packb([info.moment_ms, info.origin, names])
    start = _MAGIC + struct.pack("<I", _VERSION)
    return start + struct.pack("<I", checksum(payload, checksum(start))) + payload


def decode_marker(data: bytes, path: str) -> BackupInfo:
    """Raises CorruptionError or FormatError, naming `path`."""
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise CorruptionError(f"{path}: not a backup's marker (damaged at byte offset 0)", path=path)
    _, version, expected = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if checksum(payload, checksum(data[:12])) != expected:
        raise CorruptionError(f"{path}: checksum mismatch at byte offset 12: use another backup", path=path, offset=12)
    if version != _VERSION:
        raise FormatError(
            f"{path}: a backup's marker of format version {version}, this release knows {_VERSION}; "
            "use the release that wrote it, or a newer one"
        )
    moment_ms, origin, names = msgpack.unpackb(payload)
    return BackupInfo(moment_ms, origin, {name: (size, crc) for name, size, crc in names})


class _Meter:
    """Adds up bytes and tells them to the caller's `progress`."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.total = 0
        self.done = 0

    def __call__(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _claim_target(files: Files, path: str) -> None:
    if isinstance(files, PosixFiles) and Path(path).exists() and not Path(path).is_dir():
        raise BackupError(f"{path}: is there already, and no folder; name a folder that isn't there")
    held = files.listdir(path) if files.exists(path) else []
    # Empty folders may be what an attempt that failed could not take back.
    if any(name not in _FOLDERS or files.listdir(place(path, name)) for name in held):
        raise BackupError(f"{path}: is there already, with something in it; name a folder that isn't there")
    for folder in _FOLDERS:
        files.mkdir(place(path, folder))


def _discard(files: Files, path: str) -> None:
    """Remove what an attempt left behind, as far as that works: the error that ended it is the one to report."""
    for folder in (*(place(path, name) for name in _FOLDERS), path):
        try:
            for name in files.listdir(folder):
                if place(folder, name) not in (place(path, each) for each in _FOLDERS):
                    files.remove(place(folder, name))
            if isinstance(files, PosixFiles):
                Path(folder).rmdir()
        except OSError:
            pass


def _sync(files: Files, path: str) -> None:
    for folder in (*(place(path, name) for name in _FOLDERS), path):
        files.sync_folder(folder)


def _check_copy(files: Files, source: str, target: str, expected: tuple[int, int], meter: _Meter) -> None:
    found = checksum_file(files, target, meter)
    if found != expected:
        raise StorageError(
            f"{target}: reads differently than what was written (size and CRC-32C {found}, not {expected}), "
            f"copied from {source}: the disk or the memory is failing"
        )


def back_up(store: Store, path: str | os.PathLike[str], progress: Progress | None = None) -> BackupInfo:
    """Write a backup of `store` to the folder `path`; see `Database.backup`."""
    files: Files = store.files
    target = path_of(path)
    frozen = FrozenStore.for_backup(store)
    try:
        _claim_target(files, target)
        try:
            return _write_backup(files, frozen, target, _Meter(progress))
        except BaseException:
            _discard(files, target)
            raise
    finally:
        frozen.let_go()


def _write_backup(files: Files, frozen: FrozenStore, target: str, meter: _Meter) -> BackupInfo:
    held: manifests.Manifest = frozen.manifest
    number = held.next_number
    fresh = frozen.write_memory(place(target, "tables", table_name(number)), number)
    names = [f"tables/{table_name(table.number)}" for table in held.tables]
    meter.total = 2 * sum(table.size for table in held.tables)
    written: dict[str, tuple[int, int]] = {}
    for name in names:
        source = place(frozen.path, name)
        written[name] = copy_file(files, source, place(target, name), meter)
    for name, expected in written.items():
        _check_copy(files, place(frozen.path, name), place(target, name), expected, meter)
    tables = ((fresh,) if fresh is not None else ()) + held.tables
    for table in tables:
        name = f"tables/{table_name(table.number)}"
        _refuse_damage(frozen.path, name, check_table(files, place(target, name), table))
        if name not in written:
            written[name] = checksum_file(files, place(target, name))
    checkpoint: dict[str, Any] = msgpack.unpackb(frozen.checkpoint, strict_map_key=False)
    position = checkpoint["position"]
    # A backup has no log: streams from it begin here.
    checkpoint["index"] = [[position, checkpoint["applied"]]]
    manifest = replace(held, tables=tables, next_number=number + 1, checkpoint=msgpack.packb(checkpoint))
    manifests.save(files, place(target, "tables", "manifest"), manifest)
    log_end = _begin_log(files, place(target, "wal"), frozen.identity.log_id, position)
    identity = replace(
        frozen.identity, clean=True, log_end=log_end, clock=checkpoint["clock"], clock_bound_ms=0, place=_PLACE
    )
    files.replace_file(place(target, "IDENTITY"), encode_identity(identity))
    for name in (
        "IDENTITY",
        "tables/manifest",
        *(f"wal/{each}" for each in files.listdir(place(target, "wal"))),
    ):
        written[name] = checksum_file(files, place(target, name))
    info = BackupInfo(frozen.wall_ms(), frozen.origin, written)
    _sync(files, target)
    files.replace_file(place(target, MARKER), encode_marker(info))
    return info


def _begin_log(files: Files, folder: str, log_id: int, position: int) -> int:
    """A log without frames that goes on from `position`. Returns where it ends."""
    opened = open_log(files, folder, log_id, replay_from=position, fresh=True)
    opened.reader.close()
    opened.writer.close()
    return opened.writer.end


def _refuse_damage(source: str, name: str, damages: list[Damage]) -> None:
    for damage in damages:
        path = place(source, name)
        if damage.offset is None:
            raise StorageError(f"{path}, or its copy, can't be read: {damage.fault}; nothing was backed up")
        raise CorruptionError(
            f"{path}: damaged at byte offset {damage.offset}: {damage.fault}; nothing was backed up: "
            "`everwrite doctor` says what is lost, and can salvage the rest",
            path=path,
            offset=damage.offset or 0,
        )


def restore(
    backup: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    files: Files | None = None,
) -> BackupInfo:
    """Make a store in the folder `path`, which must not be there, from the backup in the folder `backup`.

    The backup stays as it is. When the restored store is opened, it begins as a new origin: it can be synced with
    the one that the backup is of, which may have gone on. `progress` is called with bytes done and bytes in all.

    Raises BackupError when `path` is there already or `backup` isn't a backup, CorruptionError naming file and offset
    when it is damaged, FormatError when a newer release wrote it, StorageError.
    """
    files = PosixFiles() if files is None else files
    source, target = path_of(backup), path_of(path)
    info = read_marker(files, source)
    decode_identity(bytes(files.read_file(place(source, "IDENTITY"))), place(source, "IDENTITY"))
    manifests.load(files, place(source, "tables", "manifest"))
    _claim_target(files, target)
    meter = _Meter(progress)
    meter.total = 2 * info.bytes
    try:
        # IDENTITY last: before it is there, nothing takes the folder for a store.
        for name in sorted(info.files, key=lambda name: (name == "IDENTITY", name)):
            found = copy_file(files, place(source, name), place(target, name), meter)
            if found != info.files[name]:
                raise CorruptionError(
                    f"{place(source, name)}: isn't what was backed up (size and CRC-32C {found}, not "
                    f"{info.files[name]}); nothing was restored: use another backup, or `everwrite doctor --salvage`",
                    path=place(source, name),
                )
        for name, expected in info.files.items():
            _check_copy(files, place(source, name), place(target, name), expected, meter)
        _sync(files, target)
    except BaseException:
        _discard(files, target)
        raise
    return info


def read_marker(files: Files, path: str) -> BackupInfo:
    """What the backup in the folder `path` says of itself. Raises BackupError when it isn't one."""
    name = place(path, MARKER)
    if not files.exists(name):
        what = "no such folder" if not files.exists(path) else f"not a backup: it has no file {MARKER}"
        hint = "; a backup that was opened as a store is one from then on" if files.exists(path) else ""
        raise BackupError(f"{path}: {what}{hint}")
    return decode_marker(bytes(files.read_file(name)), name)
