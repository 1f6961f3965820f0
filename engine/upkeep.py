"""What a database offers to whoever looks after it: snapshots, backups, inspection, compaction, figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, cast

from everwrite import access
from everwrite.mapping import StoreMapping
from everwrite.stability import (
    InStreamReport,
    Stability,
    decode_report,
    encode_report,
    report_name,
    stable_horizon,
)

if TYPE_CHECKING:
    from everwrite.backup import BackupInfo
    from everwrite.database import Database
    from everwrite.report import Report
    from everwrite.snapshot import Snapshot

__all__ = ["Upkeep"]


# Not beside the native mapping, but on top of it: Python would take the object layout of whichever comes first.
class Upkeep(StoreMapping):
    """The part of `Database` that isn't about keys."""

    _reported_changes = -1

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

    def report(self) -> bool:
        """Write into this store's own log how far it holds what others wrote: what `collect` goes by, here and there.

        Durable on return. False: nothing has changed since the last report. `sync` does this for both stores.
        """
        changes = self.user_changes
        held = self.durable_vector_now()
        written = self.system_write(report_name(self.store_id))
        before = None if written is None else decode_report(written[2])
        # Not for reports alone: two idle stores would answer each other for ever.
        if before is not None and changes == self._reported_changes and held.keys() <= before.keys():
            return False
        access.system_set(self, report_name(self.store_id), encode_report(held))
        self._reported_changes = changes
        return True

    def collect(self, members: Collection[int] = ()) -> Stability:
        """Raise the horizon to what all of `members` are known to hold: what is deleted before it may be dropped.

        `members`: the store ids (`store_id`) of all stores that share this one's keys; this one counts as one of them.
        Each of the others must have reported (`report`), and its report must have come here in its changes. From then
        on, merging all tables (`compact`, or in the background) leaves out keys that were deleted, expired or emptied
        behind the horizon; counters keep a few bytes.

        A store that isn't named, or was restored from an old backup, may come back later: its changes are taken in, it
        gets a resync instead of the log, and what it still has of what was collected is dropped there. An older write
        of its own may show then where a newer delete, which it hadn't seen, would have won.

        Returns what is stable, and what keeps it from being more. The horizon never goes back.

        >>> import everwrite
        >>> db = everwrite.open("example of a collection")
        >>> db[b"key"] = b"value"
        >>> del db[b"key"]
        >>> db.collect().silent
        ()
        >>> db.compact()
        >>> db.close()
        """
        reports = {}
        for member in set(members):
            written = self.system_write(report_name(member))
            vector = None if written is None else decode_report(written[2])
            if written is not None and vector is not None:
                reports[member] = InStreamReport(written[0], written[1], vector)
        stability = stable_horizon(self.origin, self.durable_vector_now(), members, reports)
        self.raise_horizon(stability.horizon)
        return stability

    @property
    def horizon(self) -> dict[int, int]:
        """The version vector of what may have been collected here: an update behind it that isn't there is over."""
        return self.horizon_dict()

    def stats(self) -> dict[str, int]:
        """Counters and sizes by name: keys, tables, bytes of memory, log and files, conflicts, and more."""
        return self.statistics()

    def compact(self, *, keep_log: bool = False) -> None:
        """Merge all tables into one, without what is overwritten or removed, and cut the log to what recovery needs.

        With `keep_log` the log stays as long as `log_keep_bytes` says, for other stores to catch up from.
        Writing goes on meanwhile. Raises StorageError; the store is then as it was.
        """
        self.compact_all(keep_log)
