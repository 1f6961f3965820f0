"""A slow reader of the write-ahead log, written from docs/formats/wal.md; the oracle for recovery."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

HEADER_SIZE = 64
FRAME_SIZE = 20
PAYLOAD_MAX = 268_435_456
UNKNOWN = 0xFFFFFFFF
SECTOR = 512
SEGMENT_NAME = re.compile(r"[0-9a-f]{16}\.log")


class Damaged(Exception):
    """The log can't have been left like this by a crash."""

    def __init__(self, name: str, offset: int) -> None:
        super().__init__(f"{name} at {offset}")
        self.name = name
        self.offset = offset


class FromTheFuture(Exception):
    """A segment of another format version."""


class Missing(Exception):
    """There is no log."""


@dataclass
class Log:
    """What a log folder holds: (position, payload) of each frame, and where the whole ones end."""

    frames: list[tuple[int, bytes]] = field(default_factory=list)
    end: int = 0
    file_end: int = 0


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def segment_name(start: int) -> str:
    return f"{start:016x}.log"


def header_is_whole(segment: bytes, start: int) -> bool:
    header = segment[:HEADER_SIZE]
    return (
        len(header) == HEADER_SIZE
        and header[:8] == b"EWRTWAL\n"
        and number(header[60:]) == crc32c(header[:60])
        and number(header[24:32]) == start
    )


def frame_at(segment: bytes, start: int, offset: int) -> tuple[int, bytes] | None:
    """(unsynced, payload) of the whole frame at `offset`, or None."""
    if offset + FRAME_SIZE > len(segment) or number(segment[offset + 8 : offset + 16]) != start + offset:
        return None
    length = number(segment[offset + 4 : offset + 8])
    end = offset + FRAME_SIZE + length
    if length > PAYLOAD_MAX or end > len(segment):
        return None
    if crc32c(segment[offset + 4 : end]) != number(segment[offset : offset + 4]):
        return None
    return number(segment[offset + 16 : offset + 20]), segment[offset + FRAME_SIZE : end]


@dataclass
class Row:
    """The segments as one row of bytes: (start, where it ends, content) of each, in order."""

    segments: list[tuple[int, int, bytes]]

    def behind(self, position: int) -> list[tuple[int, int, bytes]]:
        return [segment for segment in self.segments if segment[1] > position]


def whole_things(row: Row, bad: int) -> list[tuple[int, int]]:
    """(position, up to where it proves the log durable) of all whole headers and frames from `bad` on."""
    found = []
    for start, limit, content in row.behind(bad):
        inside = content[: limit - start]
        offset = max(bad - start, 0)
        if offset == 0 and header_is_whole(inside, start):
            found.append((start, number(inside[32:40])))
            offset = HEADER_SIZE
        while offset < len(inside):
            frame = frame_at(inside, start, offset)
            if frame is None:
                offset += 1
                continue
            unsynced, payload = frame
            found.append((start + offset, 0 if unsynced == UNKNOWN else start + offset - unsynced))
            offset += FRAME_SIZE + len(payload)
    return found


def lost_something(row: Row, bad: int, first: int) -> bool:
    """Whether between `bad` and `first` bytes are missing, a sector was never written, or a frame isn't finished."""
    for start, limit, content in row.behind(bad):
        if start >= first:
            break
        begin, end = max(bad - start, 0), min(limit, first) - start
        if end > len(content):
            return True
        head = content[begin : min(begin + 8, limit - start)]
        if begin and len(head) == 8 and not (any(head[:4]) and any(head[4:])):
            return True
        for at in range(begin, end):
            if at == begin or at % SECTOR == 0:
                sector_end = min((at // SECTOR + 1) * SECTOR, limit - start)
                if sector_end <= end and not any(content[at:sector_end]):
                    return True
    return False


def is_torn(row: Row, bad: int) -> bool:
    """Whether a crash can have torn the log at `bad`."""
    whole = whole_things(row, bad)
    if any(proves > bad for _, proves in whole):
        return False
    return not whole or lost_something(row, bad, whole[0][0])


def read_log(folder: Mapping[str, bytes], store_id: int, replay_from: int, durable_to: int = 0) -> Log:
    """Read the segments in `folder` (file name to content) as a store that opens them has to."""
    starts = sorted(int(name[:16], 16) for name in folder if SEGMENT_NAME.fullmatch(name))
    if not starts:
        if replay_from:
            raise Missing
        return Log(end=0, file_end=0)
    known = max(replay_from, durable_to)
    contents = [folder[segment_name(start)] for start in starts]
    file_end = starts[-1] + len(contents[-1])
    row = Row(list(zip(starts, [*starts[1:], file_end], contents, strict=True)))
    if replay_from < starts[0]:
        raise Damaged(segment_name(starts[0]), 0)
    if file_end < known:
        raise Damaged(segment_name(starts[-1]), len(contents[-1]))
    for start, limit, content in row.segments:
        if start + len(content) < min(limit, known):
            raise Damaged(segment_name(start), len(content))
        if any(content[limit - start :]):
            raise Damaged(segment_name(start), limit - start)
        if limit > replay_from or start == starts[-1]:
            check_header(start, content, store_id, known)
    log = Log(file_end=file_end)
    read_frames(log, row, replay_from, known)
    return log


def check_header(start: int, content: bytes, store_id: int, known: int) -> None:
    if not header_is_whole(content, start):
        if known > start:
            raise Damaged(segment_name(start), 0)
    elif number(content[8:12]) != 1:
        raise FromTheFuture
    elif number(content[16:24]) != store_id:
        raise Damaged(segment_name(start), 16)


def read_frames(log: Log, row: Row, replay_from: int, known: int) -> None:
    proven = known
    for start, limit, content in row.behind(replay_from):
        inside = content[: limit - start]
        offset = max(replay_from - start, 0)
        while start + offset < limit:
            if offset == 0:
                good, size = header_is_whole(inside, start), HEADER_SIZE
                proven = max(proven, number(inside[32:40])) if good else proven
            else:
                frame = frame_at(inside, start, offset)
                good, size = frame is not None, 0
                if frame is not None:
                    unsynced, payload = frame
                    log.frames.append((start + offset, payload))
                    size = FRAME_SIZE + len(payload)
                    proven = max(proven, 0 if unsynced == UNKNOWN else start + offset - unsynced)
            if not good:
                log.end = end_at(row, start, offset, proven)
                return
            offset += size
    log.end = log.file_end


def end_at(row: Row, start: int, offset: int, proven: int) -> int:
    """The log's end, if it can end where the first bytes are that aren't whole."""
    bad = start + offset
    last, _, content = row.segments[-1]
    only_zeros = start == last and not any(content[offset:])
    # Damage is named by the segment that holds the place, which isn't the one that ends there.
    if bad < proven or not (only_zeros or is_torn(row, bad)):
        raise Damaged(segment_name(start), offset)
    return bad
