"""What a database offers to whoever looks after it: snapshots, backups, inspection, compaction, figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from everwrite.mapping import StoreMapping

if TYPE_CHECKING:
    from everwrite.backup import BackupInfo
    from everwrite.database import Database
    from everwrite.report import Report
    from everwrite.snapshot import Snapshot

__all__ = ["Upkeep"]


# Not beside the native mapping, but on top of it: Python would take the object layout of whichever comes first.
class Upkeep(StoreMapping):
    """The part of `Database` that isn't about keys."""

    def snapshot(self) -> Snapshot:
        """A read-only mapping of what the store holds now; see `Snapshot`. Costs the same for any amount of data.

        >>> import everwrite
        >>> db = everwrite.open("example of a snapshot")
        >>> db[b"key"] = b"before"
        >>> with db.snapshot() as then:
        ...     db[b"key"] = b"after"
        ...     then[b"key"]
        b'before'
        >>> db.close()
        """
        from everwrite.snapshot import Snapshot

        return Snapshot(cast("Database", self))

    def backup(
        self, path: str | os.PathLike[str], *, progress: Callable[[int, int], object] | None = None
    ) -> BackupInfo:
        """Write a copy of what the store holds now to the folder `path`, which must not be there.

        Writing goes on meanwhile; what is written from now on isn't in it. The copy is read back and checked whole.
        `everwrite.restore` makes a store of it; opened as it stands it becomes one, too. Either way a new origin
        begins, since this store goes on with its own.

        `progress` is called with bytes done and bytes in all. Raises BackupError when `path` is there already,
        CorruptionError when a table of this store is damaged, StorageError; `path` is removed again then.

        >>> import everwrite
        >>> db = everwrite.open("example of a backup")
        >>> db[b"key"] = b"value"
        >>> info = db.backup("backup")
        >>> db.close()
        >>> info = everwrite.restore("backup", "restored")
        >>> with everwrite.open("restored") as restored:
        ...     dict(restored)
        {b'key': b'value'}
        """
        from everwrite.backup import back_up

        return back_up(self, path, progress)

    def verify(self, *, progress: Callable[[int], object] | None = None) -> Report:
        """Read every file whole and check every checksum and invariant. Writing goes on meanwhile.

        Damage is named in the report, not raised. `progress` is called with the bytes read so far.

        >>> import everwrite
        >>> db = everwrite.open("example of an inspection")
        >>> db[b"key"] = b"value"
        >>> db.verify().ok
        True
        >>> db.close()
        """
        from everwrite.verify import verify

        return verify(self, progress)

    def stats(self) -> dict[str, int]:
        """Counters and sizes by name: keys, tables, bytes of memory, log and files, conflicts, and more."""
        return self.statistics()

    def compact(self, *, keep_log: bool = False) -> None:
        """Merge all tables into one, without what is overwritten or removed, and cut the log to what recovery needs.

        With `keep_log` the log stays as long as `log_keep_bytes` says, for other stores to catch up from.
        Writing goes on meanwhile. Raises StorageError; the store is then as it was.
        """
        self.compact_all(keep_log)
