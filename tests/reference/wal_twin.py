"""A slow reader of the write-ahead log, written from docs/formats/wal.md; the oracle for recovery."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

HEADER_SIZE = 64
FRAME_SIZE = 20
PAYLOAD_MAX = 268_435_456
UNKNOWN = 0xFFFFFFFF
SECTOR = 512


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


def is_torn(segment: bytes, start: int, bad: int) -> bool:
    """Whether a crash can have torn the last segment at offset `bad`."""
    first = None
    offset = bad
    while offset < len(segment):
        frame = frame_at(segment, start, offset)
        if frame is None:
            offset += 1
            continue
        unsynced, payload = frame
        if unsynced != UNKNOWN and offset - unsynced > bad:
            return False
        if first is None:
            first = offset
        offset += FRAME_SIZE + len(payload)
    if first is None:
        return True
    for begin in range(bad, first):
        if begin == bad or begin % SECTOR == 0:
            end = (begin // SECTOR + 1) * SECTOR
            if end <= first and not any(segment[begin:end]):
                return True
    return False


def read_log(folder: Mapping[str, bytes], store_id: int, replay_from: int) -> Log:
    """Read the segments in `folder` (file name to content) as a store that opens them has to."""
    starts = sorted(int(name[:16], 16) for name in folder)
    segments = {start: folder[segment_name(start)] for start in starts}
    if not starts:
        if replay_from:
            raise Missing
        return Log(end=0, file_end=0)
    last = starts[-1]
    if replay_from < starts[0]:
        raise Damaged(segment_name(starts[0]), 0)
    for start, following in itertools.pairwise(starts):
        if start + len(segments[start]) != following:
            raise Damaged(segment_name(start), min(len(segments[start]), following - start))
    log = Log(file_end=last + len(segments[last]))
    if log.file_end < replay_from:
        raise Damaged(segment_name(last), len(segments[last]))
    for start in starts:
        segment = segments[start]
        if start + len(segment) <= replay_from and start != last:
            continue
        if header_is_whole(segment, start):
            if number(segment[8:12]) != 1:
                raise FromTheFuture
            if number(segment[16:24]) != store_id:
                raise Damaged(segment_name(start), 16)
        elif start != last or replay_from > start:
            raise Damaged(segment_name(start), 0)
    read_frames(log, segments, replay_from)
    return log


def read_frames(log: Log, segments: Mapping[int, bytes], replay_from: int) -> None:
    last = max(segments)
    for start, segment in sorted(segments.items()):
        offset = max(replay_from - start, 0)
        while offset < len(segment):
            if offset == 0:
                good, size = header_is_whole(segment, start), HEADER_SIZE
            else:
                frame = frame_at(segment, start, offset)
                good, size = frame is not None, 0
                if frame is not None:
                    log.frames.append((start + offset, frame[1]))
                    size = FRAME_SIZE + len(frame[1])
            if not good:
                if start != last or not is_torn(segment, start, offset):
                    raise Damaged(segment_name(start), offset)
                log.end = start + offset
                return
            offset += size
    log.end = log.file_end
