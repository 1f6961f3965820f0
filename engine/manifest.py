"""The manifest: which table files make up the map, and the checkpoint that they hold the state of.

One small file, replaced as a whole whenever the set of tables changes; the bytes are described
in docs/formats/manifest.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from everwrite.checksum import checksum
from everwrite.errors import CorruptionError, FormatError
from everwrite.files import Files

__all__ = ["Manifest", "TableDamage", "TableInfo", "decode", "encode", "load", "save"]

MAGIC = b"EWMANIF\n"
VERSION = 1
_HEADER = struct.Struct("<8sIIQ")  # magic, version, checksum, size of the body
_CHECKED_FROM = 16  # the checksum covers the magic and the version, then all that follows it
_FIXED = struct.Struct("<QI")  # next file number, size of the checkpoint
_COUNT = struct.Struct("<I")
_TABLE = struct.Struct("<QQQQII")  # number, size, entries, removed, sizes of the two keys


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One table file: its number (which names it), size in bytes, entries (remove markers among them), key range."""

    number: int
    size: int
    entries: int
    removed: int
    smallest: bytes
    largest: bytes


@dataclass(frozen=True, slots=True)
class TableDamage:
    """What is wrong at a place of a table file, and which keys it concerns: from `first_key`, before `next_key`.

    Both are None for damage of what isn't entries, `next_key` alone for the last block.
    """

    path: str
    offset: int
    reason: str
    first_key: bytes | None
    next_key: bytes | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The tables, newest first, the next unused file number, and the caller's checkpoint."""

    tables: tuple[TableInfo, ...] = ()
    next_number: int = 1
    checkpoint: bytes = b""


def encode(manifest: Manifest) -> bytes:
    """The file's content."""
    parts = [_FIXED.pack(manifest.next_number, len(manifest.checkpoint)), manifest.checkpoint]
    parts.append(_COUNT.pack(len(manifest.tables)))
    for table in manifest.tables:
        parts.append(
            _TABLE.pack(table.number, table.size, table.entries, table.removed, len(table.smallest), len(table.largest))
        )
        parts += [table.smallest, table.largest]
    body = b"".join(parts)
    start = struct.pack("<8sI", MAGIC, VERSION)
    rest = struct.pack("<Q", len(body)) + body
    return start + struct.pack("<I", checksum(rest, checksum(start))) + rest


class _Body:
    """Takes fields off the body, and says where it ended too early."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data = data
        self.path = path
        self.at = _HEADER.size

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _damaged(self.path, self.at, f"a field of {size} bytes doesn't fit")
        self.at += size
        return self.data[self.at - size : self.at]

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))


def _damaged(path: str, offset: int, reason: str) -> CorruptionError:
    return CorruptionError(
        f"{path}: damaged at byte offset {offset}: {reason}; restore the folder from a backup or a replica",
        path=path,
        offset=offset,
    )


def decode(data: bytes, path: str) -> Manifest:
    """The manifest in a file's content; `path` is for messages.

    Raises `CorruptionError`, or `FormatError` when a newer release wrote it.
    """
    if len(data) < _HEADER.size:
        raise _damaged(path, len(data), "the file ends within its header")
    magic, version, stored, size = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise _damaged(path, 0, "the file doesn't begin as a manifest does")
    if stored != checksum(data[_CHECKED_FROM:], checksum(data[: _CHECKED_FROM - 4])):
        raise _damaged(path, 12, "the checksum doesn't match")
    if version != VERSION:
        raise FormatError(
            f"{path}: a manifest of format version {version}, this release knows {VERSION}; "
            "open it with the release that wrote it, or a newer one"
        )
    if size != len(data) - _HEADER.size:
        raise _damaged(path, 16, f"the body should have {size} bytes")
    body = _Body(data, path)
    next_number, checkpoint_size = body.unpack(_FIXED)
    checkpoint = body.take(checkpoint_size)
    tables = []
    for _ in range(body.unpack(_COUNT)[0]):
        number, table_size, entries, removed, smallest_size, largest_size = body.unpack(_TABLE)
        smallest = body.take(smallest_size)
        tables.append(TableInfo(number, table_size, entries, removed, smallest, body.take(largest_size)))
    if body.at != len(data):
        raise _damaged(path, body.at, "bytes follow the last table")
    return Manifest(tuple(tables), next_number, checkpoint)


def load(files: Files, path: str) -> Manifest | None:
    """Read the manifest `path`; None when there is no such file."""
    if not files.exists(path):
        return None
    return decode(files.read_file(path), path)


def save(files: Files, path: str, manifest: Manifest) -> None:
    """Replace the manifest `path`, atomically and durably."""
    files.replace_file(path, encode(manifest))
