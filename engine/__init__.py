"""Everwrite: an embedded, mergeable key-value store.

`open` gives a `Database`: a mapping of bytes that many stores can write at once and merge by
exchanging bytes (`Database.changes`, `Database.apply`).
"""

from everwrite.database import Counter, Database, MapView, SetView, VersionVector
from everwrite.database import open_database as open
from everwrite.errors import (
    ClockDriftError,
    ClosedError,
    ConfigError,
    CorruptionError,
    EverwriteError,
    FormatError,
    GapError,
    LockedError,
    LogCutError,
    NotAnIntegerError,
    OverflowError,
    PeerError,
    ProtocolError,
    ReadOnlyError,
    StorageError,
    TooLargeError,
    WrongTypeError,
)
from everwrite.register_views import Flag, HyperLogLog, MaxRegister, MinRegister, MultiRegister
from everwrite.snapshot import Snapshot

__all__ = [
    "ClockDriftError",
    "ClosedError",
    "ConfigError",
    "CorruptionError",
    "Counter",
    "Database",
    "EverwriteError",
    "Flag",
    "FormatError",
    "GapError",
    "HyperLogLog",
    "LockedError",
    "LogCutError",
    "MapView",
    "MaxRegister",
    "MinRegister",
    "MultiRegister",
    "NotAnIntegerError",
    "OverflowError",
    "PeerError",
    "ProtocolError",
    "ReadOnlyError",
    "SetView",
    "Snapshot",
    "StorageError",
    "TooLargeError",
    "VersionVector",
    "WrongTypeError",
    "open",
]
