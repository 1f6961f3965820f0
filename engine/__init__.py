"""Everwrite: an embedded, mergeable key-value store.

`open` gives a `Database`: a mapping of bytes that many stores can write at once and merge by
exchanging bytes (`Database.changes`, `Database.apply`). `Client` and `AsyncClient` talk to servers.
"""

from typing import TYPE_CHECKING, Any

from everwrite.backup import BackupInfo, restore
from everwrite.database import Counter, Database, MapView, SetView, VersionVector
from everwrite.database import open_database as open
from everwrite.errors import (
    AuthenticationError,
    BackupError,
    ClockDriftError,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    CorruptionError,
    DeadlineError,
    EverwriteError,
    FormatError,
    GapError,
    InsufficientRightsError,
    LockedError,
    LogCutError,
    NotAnIntegerError,
    Outcome,
    OverflowError,
    PeerError,
    ProtocolError,
    ReadOnlyError,
    ReadTimeout,
    ServerError,
    StorageError,
    TooLargeError,
    Unavailable,
    UnreachableError,
    WriteTimeout,
    WrongTypeError,
)
from everwrite.ordered_views import BoundedCounter, SequenceView, SortedSet
from everwrite.register_views import Flag, HyperLogLog, MaxRegister, MinRegister, MultiRegister
from everwrite.report import Damage, Report
from everwrite.snapshot import Snapshot
from everwrite.stability import Stability

if TYPE_CHECKING:
    from everwrite.client import AsyncClient, Client
    from everwrite.reconcile import Reconciled, sync

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BackupError",
    "BackupInfo",
    "BoundedCounter",
    "Client",
    "ClockDriftError",
    "ClosedError",
    "ConfigError",
    "ConnectionLostError",
    "CorruptionError",
    "Counter",
    "Damage",
    "Database",
    "DeadlineError",
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
    "Outcome",
    "OverflowError",
    "PeerError",
    "ProtocolError",
    "ReadOnlyError",
    "ReadTimeout",
    "Reconciled",
    "Report",
    "SequenceView",
    "ServerError",
    "SetView",
    "Snapshot",
    "SortedSet",
    "Stability",
    "StorageError",
    "TooLargeError",
    "Unavailable",
    "UnreachableError",
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
    # Whoever embeds a store needs neither sockets nor the Redis protocol.
    if name in ("AsyncClient", "Client"):
        from everwrite import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
