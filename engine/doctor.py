"""What is wrong with a closed store, and what can be saved of it. The store itself is never changed.

The checks of single files say where damage is; a trial opening, on copies, says whether the engine
agrees. A salvage goes by tables, newest first, then by every whole frame of the log, and hands
the keys over as whole states, the way another store would get them in a resync. Of a table that
has lost what says where its blocks are, these are looked for one by one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack

from everwrite import access
from everwrite import manifest as manifests
from everwrite.batch import CLAIM, decode_batch
from everwrite.copying import copy_file
from everwrite.database import Database, open_database
from everwrite.errors import BackupError, ConfigError, CorruptionError, FormatError
from everwrite.files import PosixFiles
from everwrite.identity import Identity, decode_identity, encode_identity
from everwrite.inspection import Meter, check_file, check_log, check_table, fault_of, table_name
from everwrite.report import Damage, Report
from everwrite.salvage import SalvageStore, whole_frames, write_table
from everwrite.table_scan import TableScan
from everwrite.table_verify import readable_entries, table_flushes, verify_table
from everwrite.wal_reader import segment_starts
from everwrite.wal_recovery import open_log

__all__ = ["Salvaged", "diagnose", "salvage"]

_TABLE = re.compile(r"([0-9]{16})\.table", re.ASCII)
_KEYS_NAMED = 100_000
_PAGE = 1000
_HEADER_BYTES = 64
_FRAME_BYTES = 20
_SPACE_USER = 2
_SPACE_ELEMENT = 3


@dataclass
class Salvaged:
    """What a salvage brought together in the store at `path`.

    `keys`: how many live keys it has; `complete`: nothing that the old store held can be missing or old; `uncertain`:
    keys that may show an older value than they had, or lack a part (at most 100,000 are named, `uncertain_count` says
    how many there are); `lost`: what can't be read, in words.
    """

    path: str
    keys: int = 0
    uncertain: list[str] = field(default_factory=list)
    uncertain_count: int = 0
    lost: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing was lost."""
        return not self.lost and not self.uncertain_count

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "path": self.path,
            "keys": self.keys,
            "complete": self.complete,
            "uncertain": self.uncertain,
            "uncertain_count": self.uncertain_count,
            "lost": self.lost,
        }

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.keys} keys salvaged{', all there was' if self.complete else ''}"]
        lines += [f"  lost: {each}" for each in self.lost]
        if self.uncertain_count:
            lines.append(f"  {self.uncertain_count} keys may show an older value, or lack a part:")
            lines += [f"    {key}" for key in self.uncertain[:20]]
            if self.uncertain_count > 20:
                lines.append("    ... (the JSON report names more)")
        return "\n".join(lines)


def _locked(files: PosixFiles, path: Path) -> Any:
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder")
    if not any((path / name).exists() for name in ("IDENTITY", "wal", "tables")):
        raise ConfigError(f"{path}: not a store: it has neither IDENTITY nor wal nor tables")
    return files.lock(str(path / "LOCK"))


def diagnose(path: str | os.PathLike[str]) -> Report:
    """Inspect the closed store in the folder `path`: every file, and what they say together.

    Raises LockedError when it is open, ConfigError when it is no store, FormatError when a newer release wrote it.
    """
    files = PosixFiles()
    folder = Path(path)
    lock = _locked(files, folder)
    try:
        return _Patient(files, folder).report
    finally:
        lock.release()


class _Patient:
    """The closed store: what its files say, and what of them can be relied on."""

    def __init__(self, files: PosixFiles, path: Path) -> None:
        self.files = files
        self.path = path
        self.report = Report(str(path))
        self.meter = Meter(files, self.report)
        self.identity = self._small("IDENTITY", decode_identity)
        self.manifest = self._small("tables/manifest", manifests.decode)
        self.tables = self._tables()
        # Whether the engine opens it, torn tail or not.
        self.opens = False
        for table in self.tables:
            place = self.table_path(table.number)
            self.report.damages += check_table(files, place, table)
            self.meter.count(table.size)
        self._log()
        self._try_to_open()

    def table_path(self, number: int) -> str:
        """The path of a table file."""
        return str(self.path / "tables" / table_name(number))

    def _small(self, name: str, decode: Any) -> Any:
        path = self.path / name
        if path.exists():
            return check_file(str(path), self.meter, decode)
        if name != "tables/manifest" or self._numbers():
            self.report.damages.append(Damage(str(path), None, "there is no such file"))
        return None

    def _numbers(self) -> list[int]:
        folder = self.path / "tables"
        names = [_TABLE.fullmatch(each.name) for each in folder.iterdir()] if folder.is_dir() else []
        return [int(name[1]) for name in names if name]

    def _tables(self) -> tuple[manifests.TableInfo, ...]:
        if self.manifest is not None:
            named = {table.number for table in self.manifest.tables}
            spare = sorted(set(self._numbers()) - named)
            if spare:
                self.report.notes.append(f"tables that the manifest doesn't name, left by a crash: {spare}")
            return self.manifest.tables  # type: ignore[no-any-return]
        found = []
        for number in self._numbers():
            path = Path(self.table_path(number))
            found.append(manifests.TableInfo(number, path.stat().st_size, 0, 0, b"", b""))
        return tuple(self._newest_first(found))

    def _newest_first(self, tables: list[manifests.TableInfo]) -> list[manifests.TableInfo]:
        """Without a manifest: by the newest flush that each holds; what another one holds as a whole is left out."""
        flushes: dict[int, tuple[int, int]] = {}
        for table in tables:
            try:
                flushes[table.number] = table_flushes(
                    self.files, self.table_path(table.number), table.number, table.size
                )
            except CorruptionError:
                said = TableScan(self.files, self.table_path(table.number)).properties(table.number)
                # Its number is at least that of its newest flush.
                flushes[table.number] = said[1:] if said is not None else (table.number, table.number)
        whole = [
            flushes[table.number] + (table.number,)
            for table in tables
            if not check_table(self.files, self.table_path(table.number), table)
        ]
        kept = [
            table
            for table in tables
            if not any(
                oldest <= flushes[table.number][0] and flushes[table.number][1] <= newest and number > table.number
                for oldest, newest, number in whole
            )
        ]
        return sorted(kept, key=lambda table: (-flushes[table.number][1], flushes[table.number][0], -table.number))

    def segments(self) -> list[int]:
        """Where the segments of the log start, ascending."""
        folder = self.path / "wal"
        return sorted(segment_starts(self.files, str(folder))) if folder.is_dir() else []

    def _log(self) -> None:
        folder = self.path / "wal"
        starts = self.segments()
        if not starts:
            self.report.damages.append(Damage(str(folder), None, "there is no log", "what no table holds yet"))
            return
        # The last segment's end is for the trial to judge: a crash may have torn it.
        check_log(str(folder), max(starts), self.meter)
        needed = self.position()
        if self.manifest is not None and min(starts) > needed:
            fault = f"the log begins at position {min(starts)}, but the tables rely on it from {needed} on"
            self.report.damages.append(Damage(str(folder), None, fault, f"log positions {needed} to {min(starts)}"))

    def position(self) -> int:
        """Where in the log the tables end; 0 when that isn't known."""
        if self.manifest is None or not self.manifest.checkpoint:
            return 0
        return int(msgpack.unpackb(self.manifest.checkpoint, strict_map_key=False)["position"])

    def _try_to_open(self) -> None:
        """Open it as the engine would, on copies, and check what the entries say together."""
        self.report.keys = None
        if any(damage.path.endswith((".table", "manifest")) for damage in self.report.damages):
            self.report.notes.append("what the entries say together wasn't checked, because of damage")
            return
        with tempfile.TemporaryDirectory(prefix="everwrite-doctor-") as scratch:
            copy = Path(scratch, "store")
            (copy / "tables").mkdir(parents=True)
            (copy / "wal").mkdir()
            for table in self.tables:
                (copy / "tables" / table_name(table.number)).symlink_to(Path(self.table_path(table.number)).resolve())
            for name in ("IDENTITY", "tables/manifest"):
                if (self.path / name).exists():
                    copy_file(self.files, str(self.path / name), str(copy / name))
            for start in self.segments():
                segment = f"wal/{start:016x}.log"
                copy_file(self.files, str(self.path / segment), str(copy / segment))
            try:
                with open_database(copy, "os", background=False, mapped_reads=False) as db:
                    self.opens = True
                    torn = db.stats()["log_torn_bytes"]
                    if torn:
                        self.report.notes.append(
                            f"the log ends with {torn} bytes that a crash has torn: the next opening cuts them off"
                        )
                    found = db.verify()
                    self.report.frames, self.report.entries, self.report.keys = found.frames, found.entries, found.keys
                    self.report.damages += [damage for damage in found.damages if not damage.path]
            except CorruptionError as error:
                place = str(error.path).replace(str(copy), str(self.path))
                if not any(damage.path == place for damage in self.report.damages):
                    self.report.damages.append(Damage(place, error.offset, fault_of(error)))
            except FormatError as error:
                raise FormatError(str(error).replace(str(copy), str(self.path))) from error


def salvage(path: str | os.PathLike[str], to: str | os.PathLike[str]) -> tuple[Report, Salvaged]:
    """Copy all that can be read of the closed store in `path` to a new store in the folder `to`.

    Returns what is wrong with the old one, and what was saved. Raises as `diagnose`, and BackupError when `to` is there
    already.
    """
    files = PosixFiles()
    folder, target = Path(path), Path(to)
    if target.exists():
        raise BackupError(f"{target}: is there already; name a folder that isn't there")
    lock = _locked(files, folder)
    try:
        patient = _Patient(files, folder)
        target.mkdir(parents=True)
        scratch = target / "salvage.tmp"
        try:
            return patient.report, _Rescue(patient, scratch, target).result
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        lock.release()


def _all_keys(db: Database) -> Iterator[bytes]:
    start = b""
    while page := access.keys(db, start, _PAGE):
        for key, _ in page:
            yield key
        start = page[-1][0] + b"\0"


class _Rescue:
    """Brings tables and log together in a scratch store, and hands its keys to a new one."""

    def __init__(self, patient: _Patient, scratch: Path, target: Path) -> None:
        self.patient = patient
        self.files = patient.files
        self.scratch = scratch
        self.result = Salvaged(str(target))
        # Ranges of entry keys of which something newer than what is found may be missing: from, before (None: no end).
        self.ranges: list[tuple[bytes, bytes | None]] = []
        self.uncertain: set[bytes] = set()
        self._lay_out()
        with SalvageStore(self.scratch, "os", background=False) as store:
            if self.ranges:
                store.distrust(self._may_lack)
            self._feed_log(store)
            self._hand_over(store, target)

    def _lay_out(self) -> None:
        """A store with the readable tables and an empty log."""
        (self.scratch / "tables").mkdir(parents=True)
        tables = []
        for table in self.patient.tables:
            info = self._table(table)
            if info is not None:
                tables.append(info)
        held = self.patient.manifest or manifests.Manifest()
        numbers = [table.number for table in self.patient.tables]
        position = self.patient.position()
        checkpoint = b""
        if held.checkpoint:
            # The log begins anew, with all frames that are left of the old one.
            values: dict[str, Any] = msgpack.unpackb(held.checkpoint, strict_map_key=False)
            # What is absent may be lost: no horizon, which would say of it that it was deleted.
            checkpoint = msgpack.packb(values | {"index": [[position, {}]], "horizon": {}})
        manifest = replace(
            held,
            tables=tuple(tables),
            next_number=max([held.next_number, *(number + 1 for number in numbers)]),
            checkpoint=checkpoint,
        )
        manifests.save(self.files, str(self.scratch / "tables" / "manifest"), manifest)
        opened = open_log(self.files, str(self.scratch / "wal"), 1, replay_from=position, fresh=True)
        opened.reader.close()
        opened.writer.close()
        identity = Identity(1, 1, False, 0, 0, 0, "salvage", 1)
        self.files.replace_file(str(self.scratch / "IDENTITY"), encode_identity(identity))

    def _table(self, table: manifests.TableInfo) -> manifests.TableInfo | None:
        path = self.patient.table_path(table.number)
        target = self.scratch / "tables" / table_name(table.number)
        try:
            size = Path(path).stat().st_size
            damages = verify_table(self.files, path, table.number, size)
            flushes = table_flushes(self.files, path, table.number, size)
            if not damages and table.entries:
                target.symlink_to(Path(path).resolve())
                return table
            for damage in damages:
                if damage.first_key is not None:
                    self._lose(f"{path}, block at byte offset {damage.offset}", damage.first_key, damage.next_key)
            entries = readable_entries(self.files, path, table.number, size)
            return write_table(self.files, str(target), table.number, flushes, entries)
        except CorruptionError:
            return self._table_without_directory(table, path, target)
        except FileNotFoundError:
            self._lose(f"{path}, the whole table", table.smallest, None)
            return None

    def _table_without_directory(
        self, table: manifests.TableInfo, path: str, target: Path
    ) -> manifests.TableInfo | None:
        """Of a table without a footer or directory: the blocks that are found one by one."""
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        scan = TableScan(self.files, path)
        said = scan.properties(table.number)
        if said is None:
            # As far as it matters, the manifest says which table is the newer one.
            said = table, table.number, table.number
            if not table.entries:
                self._lose(f"{path}, how old the table is", b"", None)
        entries = self._scanned_entries(scan, path, said[0])
        return write_table(self.files, str(target), table.number, said[1:], entries)

    def _scanned_entries(
        self, scan: TableScan, path: str, known: manifests.TableInfo
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """What a scan finds. What lies between the blocks, and behind the last one, is lost if it held entries.

        `known`: what is known of the whole table; without `entries`, nothing.
        """
        end = count = 0
        following = known.smallest
        for offset, block_end, entries in scan:
            if offset > end:
                self._lose(f"{path}, bytes {end} to {offset}", following, entries[0][0])
            yield from entries
            end = block_end
            count += len(entries)
            following = entries[-1][0] + b"\0"
        beyond = known.largest + b"\0"
        if not known.entries:
            self._lose(f"{path}, from byte {end} on, if blocks lay there", following, None)
        elif count == 0:
            self._lose(f"{path}, the whole table", following, beyond)
        elif following != beyond:
            self._lose(f"{path}, from byte {end} on", following, beyond)

    def _lose(self, what: str, first: bytes, following: bytes | None) -> None:
        end = "the end" if following is None else f"before {following[:60]!r}"
        self.result.lost.append(f"{what}: entries from {first[:60]!r} to {end}")
        self.ranges.append((first, following))

    def _lose_log(self, what: str, end: int | None) -> None:
        """A part of the log, up to the position `end`, is lost."""
        if end is not None and end <= self.patient.position() and not self.ranges:
            return  # whole tables hold it
        self.result.lost.append(what)
        # It may have been about any key.
        self.ranges.append((b"", None))

    def _feed_log(self, store: SalvageStore) -> None:
        folder = self.patient.path / "wal"
        starts = self.patient.segments()
        if not starts:
            self._lose_log(f"{folder}: the log, and with it what no table holds", None)
        end = self.patient.position() if self.patient.manifest is not None else min(starts, default=0)
        for start, following in zip(starts, [*starts[1:], None], strict=False):
            if start > end:
                self._lose_log(f"{folder}: the log from position {end} to {start}", start)
            end = self._feed_segment(store, folder / f"{start:016x}.log", start, following)

    def _feed_segment(self, store: SalvageStore, path: Path, start: int, following: int | None) -> int:
        """Feed all whole frames of a segment. Returns up to where in the log the file has bytes."""
        data = bytes(self.files.read_file(str(path)))
        if following is not None:
            data = data[: following - start]
        at = _HEADER_BYTES
        for offset, payload in whole_frames(data, start):
            if offset > at:
                self._lose_log(f"{path}: the frames in bytes {at} to {offset}", start + offset)
            at = offset + _FRAME_BYTES + len(payload)
            incomplete = store.feed(payload)
            if incomplete is None:
                self._lose_log(f"{path}: what the frame at byte offset {offset} holds", start + at)
            self.uncertain.update(incomplete or ())
        # Zeros are room that was never used. A frame that a crash has torn was never acknowledged.
        if any(data[at:]) and not (following is None and self.patient.opens):
            self._lose_log(f"{path}: the frames behind byte offset {at}, if there were any", start + len(data))
        return start + len(data)

    def _hand_over(self, store: SalvageStore, target: Path) -> None:
        self.uncertain.update(store.adopt_elements())
        with open_database(target, "os") as db:
            for batch in store.resync_batches({}):
                # Only a store that lost nothing may say that it has all of an origin's updates.
                if decode_batch(batch).kind != CLAIM or not self.result.lost:
                    db.apply(batch)
            for key in self._uncertain_keys(db):
                self.result.uncertain_count += 1
                if len(self.result.uncertain) < _KEYS_NAMED:
                    self.result.uncertain.append(key.decode("utf-8", "backslashreplace"))
            db.compact()
            self.result.keys = db.key_count()

    def _uncertain_keys(self, db: Database) -> Iterator[bytes]:
        """Keys of the new store of which a lost range may have held something."""
        if not self.ranges and not self.uncertain:
            return
        for key in _all_keys(db):
            head = bytes([_SPACE_USER]) + key
            if (
                key in self.uncertain
                or self._may_lack(key)
                or any(first <= head and (following is None or head < following) for first, following in self.ranges)
            ):
                yield key

    def _may_lack(self, key: bytes) -> bool:
        """Whether elements of the key may have stood in a range that is lost."""
        element = bytes([_SPACE_ELEMENT]) + len(key).to_bytes(4, "big") + key
        return any(
            first < element + b"\xff" and (following is None or element < following) for first, following in self.ranges
        )
