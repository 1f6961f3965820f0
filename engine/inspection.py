"""What is wrong with the files of a store, one by one. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from everwrite.errors import CorruptionError, FormatError, LogCutError, StorageError
from everwrite.files import Files
from everwrite.invariants import check_frames
from everwrite.manifest import TableInfo
from everwrite.report import Damage, Report
from everwrite.table_verify import verify_table
from everwrite.wal_reader import WalReader, segment_starts

__all__ = ["Meter", "check_file", "check_log", "check_table", "fault_of", "place", "table_name"]

Progress = Callable[[int], object]
T = TypeVar("T")

WITHOUT_DIRECTORY = "all of the table, but what a salvage finds of its blocks"


class Meter:
    """What was read of a store's files, for its report and for whoever wants to see progress."""

    def __init__(self, files: Files, report: Report, progress: Progress | None = None) -> None:
        self.files = files
        self.report = report
        self.progress = progress

    def count(self, size: int) -> None:
        """One more file was read."""
        self.report.files += 1
        self.report.bytes += size
        if self.progress is not None:
            self.progress(self.report.bytes)


def place(*parts: str) -> str:
    """The path of a file, as `Files` and messages have it."""
    return str(Path(*parts))


def table_name(number: int) -> str:
    """The name of a table's file."""
    return f"{number:016d}.table"


def fault_of(error: CorruptionError) -> str:
    """What a CorruptionError says, without its place and advice."""
    text = str(error)
    for mark in ("damaged at byte offset ", f"{error.path}: "):
        _, found, rest = text.partition(mark)
        if found:
            text = rest.partition(": ")[2] if mark.endswith("offset ") else rest
            break
    return text.partition("; ")[0]


def _range(first: bytes | None, following: bytes | None) -> str:
    if first is None and following is None:
        return ""
    start = "the first key" if not first else f"entry {first[:100]!r}"
    end = "the end" if following is None else f"before {following[:100]!r}"
    return f"the entries from {start} to {end} of this table"


def check_table(files: Files, path: str, info: TableInfo) -> list[Damage]:
    """Read the table file `path` whole; `info` is what its manifest says of it. Raises FormatError."""
    try:
        with files.open_file(path, "read") as file:
            size = file.size()
        if size != info.size:
            return [Damage(path, min(size, info.size), f"has {size} bytes, not {info.size}", WITHOUT_DIRECTORY)]
        found = verify_table(files, path, info.number, size)
    except CorruptionError as error:
        return [Damage(path, error.offset, fault_of(error), WITHOUT_DIRECTORY)]
    except FormatError:
        raise
    except StorageError as error:
        return [Damage(path, None, str(error), "all of the table")]
    return [Damage(path, each.offset, each.reason, _range(each.first_key, each.next_key)) for each in found]


def check_file(path: str, meter: Meter, decode: Callable[[bytes, str], T]) -> T | None:
    """Read a small file and decode it; None when it is damaged. Raises FormatError."""
    try:
        data = bytes(meter.files.read_file(path))
        meter.count(len(data))
        return decode(data, path)
    except CorruptionError as error:
        meter.report.damages.append(Damage(path, error.offset, fault_of(error)))
    except FormatError:
        raise
    except StorageError as error:
        meter.report.damages.append(Damage(path, None, str(error)))
    return None


def check_log(folder: str, end: int, meter: Meter) -> None:
    """Read all frames below the position `end`; behind damage it goes on with the next segment."""
    report = meter.report
    starts = segment_starts(meter.files, folder)
    for index, start in enumerate(starts):
        limit = min(starts[index + 1] if index + 1 < len(starts) else end, end)
        if start >= limit:
            continue
        path = place(folder, f"{start:016x}.log")
        try:
            reader = WalReader(meter.files, folder, start)
            try:
                frames, malformed = check_frames(reader, limit)
                report.frames += frames
                report.damages += [
                    Damage(path, at - start, "a frame that is whole, but can't be decoded") for at in malformed
                ]
            except CorruptionError as error:
                lost = f"log positions {reader.position} to {limit}, or a part of them"
                report.damages.append(Damage(path, error.offset, fault_of(error), lost))
            finally:
                reader.close()
            meter.count(limit - start)
        except LogCutError:
            continue  # it was cut since the segments were listed
        except FormatError:
            raise
        except StorageError as error:
            report.damages.append(Damage(path, None, str(error), f"log positions {start} to {limit}"))
