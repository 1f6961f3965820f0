"""Inspection of an open store, whole."""

from __future__ import annotations

from collections.abc import Callable

from everwrite import manifest as manifests
from everwrite.digest import rebuild
from everwrite.errors import CorruptionError
from everwrite.files import Files
from everwrite.frozen import FrozenStore
from everwrite.identity import decode_identity
from everwrite.inspection import Meter, check_file, check_log, check_table, fault_of, place, table_name
from everwrite.invariants import check_entries
from everwrite.report import Damage, Report
from everwrite.store import Store

__all__ = ["check_content", "verify"]


def verify(store: Store, progress: Callable[[int], object] | None = None) -> Report:
    """See `Database.verify`."""
    files: Files = store.files
    report = Report(store.path)
    frozen = FrozenStore.for_inspection(store)
    try:
        meter = Meter(files, report, progress)
        folder = place(store.path, "tables")
        check_file(place(store.path, "IDENTITY"), meter, decode_identity)
        check_file(place(folder, "manifest"), meter, manifests.decode)
        for table in frozen.manifest.tables:
            report.damages += check_table(files, place(folder, table_name(table.number)), table)
            meter.count(table.size)
        check_log(place(store.path, "wal"), frozen.log_end, meter)
        if any(damage.path.startswith(folder) for damage in report.damages):
            # A table that was cut, or that the device refuses, would end the process where it is read by a mapping.
            report.notes.append("what the entries say together wasn't checked, because of damage")
        else:
            check_content(frozen, report)
    finally:
        frozen.let_go()
    return report


def check_content(frozen: FrozenStore, report: Report) -> None:
    """Check what the entries say together; goes on until damage keeps an entry from being read."""
    try:
        faults, report.entries, report.keys = check_entries(frozen)
        report.damages += [Damage("", None, fault) for fault in faults]
        if not faults and rebuild(frozen) != frozen.digest_at_start:
            report.damages.append(Damage("", None, "the digest isn't the one of what the store holds"))
    except CorruptionError as error:
        if not any(damage.path == error.path for damage in report.damages):
            report.damages.append(Damage(error.path, error.offset, fault_of(error)))
        report.notes.append("what the entries say together wasn't checked to the end, because of damage")
