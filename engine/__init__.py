"""Everwrite: an embedded, mergeable key-value store.

`open` gives a `Database`: a mapping of bytes that many stores can write at once and merge by
exchanging bytes (`Database.changes`, `Database.apply`).
"""

from typing import TYPE_CHECKING, Any

from everwrite.backup import BackupInfo, restore
from everwrite.database import Counter, Database, MapView, SetView, VersionVector
from everwrite.database import open_database as open
from everwrite.errors import (
    BackupError,
    ClockDriftError,
    ClosedError,
    ConfigError,
    CorruptionError,
    EverwriteError,
    FormatError,
    GapError,
    InsufficientRightsError,
    LockedError,
    LogCutError,
    NotAnIntegerError,
    OverflowError,
    PeerError,
    ProtocolError,
    ReadOnlyError,
    ReadTimeout,
    StorageError,
    TooLargeError,
    Unavailable,
    WriteTimeout,
    WrongTypeError,
)
from everwrite.ordered_views import BoundedCounter, SequenceView, SortedSet
from everwrite.register_views import Flag, HyperLogLog, MaxRegister, MinRegister, MultiRegister
from everwrite.report import Damage, Report
from everwrite.snapshot import Snapshot
from everwrite.stability import Stability

if TYPE_CHECKING:
    from everwrite.reconcile import Reconciled, sync

__all__ = [
    "BackupError",
    "BackupInfo",
    "BoundedCounter",
    "ClockDriftError",
    "ClosedError",
    "ConfigError",
    "CorruptionError",
    "Counter",
    "Damage",
    "Database",
    "EverwriteError",
    "Flag",
    "FormatError",
    "GapError",
    "HyperLogLog",
    "InsufficientRightsError",
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
    "ReadTimeout",
    "Reconciled",
    "Report",
    "SequenceView",
    "SetView",
    "Snapshot",
    "SortedSet",
    "Stability",
    "StorageError",
    "TooLargeError",
    "Unavailable",
    "VersionVector",
    "WriteTimeout",
    "WrongTypeError",
    "open",
    "restore",
    "sync",
]


def __getattr__(name: str) -> Any:
    # Reconciliation needs numpy, which takes longer to import than everything else here.
    if name in ("Reconciled", "sync"):
        from everwrite import reconcile

        return getattr(reconcile, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
