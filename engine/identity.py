"""Who a store is: its id, its incarnation, and whether it stopped cleanly.

The file IDENTITY (docs/formats/identity.md) decides whether a start may go on as the same
origin. A start that can't prove that it kept every timestamp it ever exposed begins a new
incarnation; a directory that is a copy begins as a new store.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import msgpack

from everwrite.checksum import checksum
from everwrite.errors import CorruptionError, FormatError

__all__ = ["Identity", "decode_identity", "encode_identity", "next_identity", "place_of"]

_MAGIC = b"EWRTIDNT"
_VERSION = 1
_HEADER = struct.Struct("<8sII")
_FIELDS = ("store_id", "incarnation", "clean", "log_end", "clock", "clock_bound_ms", "place", "log_id")


@dataclass(frozen=True)
class Identity:
    """What the IDENTITY file says.

    `store_id`: 48 bits; `incarnation`: 16 bits, from 1; `clean`: the store was closed, with its
    log ending at `log_end` and its clock at `clock`; `clock_bound_ms`: no timestamp was issued
    at or beyond this wall-clock time (Unix ms); `place`: which directory it was written in;
    `log_id`: the store id that the log's segments carry (the first one, also after a copy).
    """

    store_id: int
    incarnation: int
    clean: bool
    log_end: int
    clock: int
    clock_bound_ms: int
    place: str
    log_id: int

    @property
    def origin(self) -> int:
        """The 64-bit origin: store id and incarnation."""
        return self.store_id << 16 | self.incarnation


def encode_identity(identity: Identity) -> bytes:
    """Magic, version, checksum, then a msgpack array of the fields."""
    payload: bytes = msgpack.packb([getattr(identity, name) for name in _FIELDS])
    start = _MAGIC + struct.pack("<I", _VERSION)
    return start + struct.pack("<I", checksum(payload, checksum(start))) + payload


def decode_identity(data: bytes, path: str) -> Identity:
    """Raises CorruptionError or FormatError, naming `path`."""
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise CorruptionError(f"{path}: not an identity file (damaged at byte offset 0)", path=path)
    _, version, expected = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if checksum(payload, checksum(data[:12])) != expected:
        raise CorruptionError(
            f"{path}: checksum mismatch at byte offset 12: restore the file from a backup", path=path, offset=12
        )
    if version != _VERSION:
        raise FormatError(
            f"{path}: an identity of format version {version}, this release knows {_VERSION}; "
            "open it with the release that wrote it, or a newer one"
        )
    return Identity(*msgpack.unpackb(payload))


def next_identity(old: Identity, *, place: str, log_end: int, fresh_store_id: int) -> Identity:
    """Who the store is from this start on.

    The same origin only after a clean stop, in the same place, with the whole log; the next
    incarnation after an unclean stop; a new store (`fresh_store_id`) in a copied directory,
    because the copy and the original must not both become incarnation n + 1.
    """
    if old.place != place or old.incarnation == 0xFFFF:
        return Identity(fresh_store_id, 1, False, 0, 0, 0, place, old.log_id)
    if old.clean and old.log_end == log_end:
        return replace(old, clean=False)
    return replace(old, clean=False, incarnation=old.incarnation + 1)


def place_of(folder: str) -> str:
    """What tells a directory from its copies, in which timestamps may have been exposed that this one lacks."""
    here = Path(folder).stat()
    lock = Path(folder, "LOCK").stat()
    return f"{here.st_dev}:{here.st_ino}:{lock.st_ino}"
