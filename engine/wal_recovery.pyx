"""Opening the write-ahead log: what of it is whole, what a crash has torn, what is damaged.

A crash can leave the bytes after the last sync in any state: missing, or some sectors
written and others not. Such a tail is cut off. Damage to what was synced is an error, never
cut off: a frame says how far before it the log was durable when it was appended (`unsynced`),
so a whole frame behind the damage tells whether the damaged bytes had been synced.
docs/formats/wal.md has the rules in full.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

import os
from typing import NamedTuple

from everwrite.errors import CorruptionError
from everwrite.wal_reader import segment_starts

from everwrite.checksum cimport crc32c
from everwrite.coding cimport Slice, load_u32, load_u64
from everwrite.files cimport Files, OpenMode
from everwrite.status cimport Status, check, fault_corrupt, fault_format
from everwrite.wal_format cimport (
    WAL_FRAME_BYTES,
    WAL_HEADER_BYTES,
    WAL_PATH_BYTES,
    WAL_PAYLOAD_LIMIT,
    WAL_UNSYNCED_UNKNOWN,
    WAL_VERSION,
    FrameHeader,
    wal_header_damage,
    wal_load_frame,
    wal_path,
    wal_put_header,
)
from everwrite.wal_reader cimport WalReader
from everwrite.wal_writer cimport WalWriter, new_writer

SEGMENT_BYTES = 64 << 20
SEGMENT_BYTES_MIN = 512

cdef enum:
    SCAN_BYTES = 1 << 20
    SECTOR_BYTES = 512


class OpenedLog(NamedTuple):
    """What `open_log` returns."""

    writer: object
    # Stands at `replay_from`; replay with `reader.next(writer.end, &payload)` or `reader.read(writer.end)`.
    reader: object
    # How much of a torn tail was cut off, and at which position; 0 bytes: the log ended whole.
    dropped_bytes: int
    dropped_at: int


def open_log(
    Files files not None,
    folder,
    uint64_t store_id,
    *,
    uint64_t replay_from,
    uint64_t segment_bytes=SEGMENT_BYTES,
    bint fresh=False,
):
    """Open the log in `folder`, or make one, and return an `OpenedLog`.

    `replay_from`: the position from which on frames are still needed; the caller made the log durable
    up to there before it relied on that. `segment_bytes`: a segment is closed before it grows
    beyond this, unless a single frame does. `fresh`: with an empty folder, begin a log at
    `replay_from`; otherwise that is accepted only for position 0, where every log begins.

    Raises `CorruptionError` (path, offset) when anything but a torn tail is damaged or missing, and
    `FormatError` for a newer format; the files are then untouched.
    """
    cdef bytes name = os.fsencode(folder)
    cdef WalWriter writer = new_writer(files, name, store_id, segment_bytes)
    cdef uint64_t file_end, end, last
    cdef uint64_t proven = 0
    if segment_bytes < SEGMENT_BYTES_MIN:
        raise ValueError(f"segment_bytes is {segment_bytes}; it must be at least {SEGMENT_BYTES_MIN}")
    files.mkdir(name)
    starts = segment_starts(files, name)
    if starts:
        last = max(starts)
        file_end = _check_segments(files, name, starts, store_id, replay_from)
        end = _find_end(files, name, last, file_end, replay_from, &proven)
    elif replay_from == 0 or fresh:
        starts = [replay_from]
        file_end = end = last = replay_from
    else:
        raise CorruptionError(
            f"{os.fsdecode(name)}: the log is missing, but the tables rely on it from position {replay_from} on; "
            "restore it from a backup or a replica",
            path=os.fsdecode(name),
        )
    if end == last:
        writer._begin(starts, last + WAL_HEADER_BYTES, _make_segment(files, name, store_id, last))
    else:
        writer._begin(starts, end, _reopen_segment(files, name, last, end, file_end, proven))
    return OpenedLog(writer, WalReader(files, name, replay_from), file_end - end, end)


cdef int _damaged(bytes folder, uint64_t start, uint64_t offset, const char* reason) except -1:
    """Raise the CorruptionError for a place in a segment."""
    cdef char path[WAL_PATH_BYTES]
    wal_path(path, folder, start)
    return check(fault_corrupt(path, offset, reason))


cdef uint64_t _check_segments(
    Files files, bytes folder, list starts, uint64_t store_id, uint64_t replay_from
) except? 0:
    """Check that the segments adjoin, reach back to `replay_from` and are this store's. Returns where the last ends."""
    cdef uint64_t previous = 0
    cdef uint64_t end = min(starts)
    cdef uint64_t last = max(starts)
    cdef uint64_t start
    cdef dict headers = {}
    if end > replay_from:
        _damaged(folder, end, 0, "the tables rely on the log from before its first segment, which this is")
    for start in starts:
        if end < start:
            _damaged(folder, previous, end - previous, "the segment ends before the next one begins")
        if end > start:
            _damaged(folder, previous, start - previous, "the next segment begins before this one's end")
        with files.open_file(folder + f"/{start:016x}.log".encode(), "read") as file:
            end = start + <uint64_t>file.size()
            if end > replay_from or start == last:
                headers[start] = file.read(0, WAL_HEADER_BYTES)
        previous = start
    if end < replay_from:
        _damaged(folder, previous, end - previous, "the log ends here, but the tables rely on more of it")
    for start, header in headers.items():
        # A crash may have torn the last segment's header, but only while nothing behind it was durable.
        _check_header(folder, start, header, store_id, start == last and replay_from <= start)
    return end


cdef int _check_header(bytes folder, uint64_t start, bytes header, uint64_t store_id, bint may_be_torn) except -1:
    cdef const uint8_t* at = <const uint8_t*><const char*>header
    cdef const char* damage = "the segment ends within its header"
    cdef char path[WAL_PATH_BYTES]
    if len(header) == WAL_HEADER_BYTES:
        damage = wal_header_damage(at, start)
    if damage != NULL:
        return 0 if may_be_torn else _damaged(folder, start, 0, damage)
    if load_u32(at + 8) != WAL_VERSION:
        wal_path(path, folder, start)
        check(fault_format(path, load_u32(at + 8)))
    if load_u64(at + 16) != store_id:
        _damaged(folder, start, 16, "the segment belongs to another store")
    return 0


cdef uint64_t _find_end(
    Files files, bytes folder, uint64_t last, uint64_t file_end, uint64_t replay_from, uint64_t* proven
) except? 0:
    """Read all frames from `replay_from` on. Returns where the whole ones end, when a torn tail at most follows.

    *proven: up to where they show that the log was durable.
    """
    cdef WalReader reader = WalReader(files, folder, replay_from)
    cdef FrameHeader frame
    cdef Slice payload
    cdef int status = 0
    proven[0] = replay_from
    try:
        with nogil:
            while True:
                status = reader.next(file_end, &payload)
                if status != 1:
                    break
                frame = wal_load_frame(payload.data - WAL_FRAME_BYTES)
                if frame.unsynced != WAL_UNSYNCED_UNKNOWN and frame.position - frame.unsynced > proven[0]:
                    proven[0] = frame.position - frame.unsynced
        check(status)
        return file_end
    except CorruptionError:
        if reader.position < last or not _is_torn(files, folder, last, file_end, reader.position):
            raise
        return reader.position
    finally:
        reader.close()


cdef bint _is_torn(Files files, bytes folder, uint64_t start, uint64_t file_end, uint64_t bad) except -1:
    """Whether a crash can have left the bytes from `bad` on, in the last segment, as they are."""
    cdef char path[WAL_PATH_BYTES]
    cdef FrameHeader frame
    cdef uint64_t at = bad - start
    cdef uint64_t next_whole = 0
    cdef int handle
    cdef int found
    memset(&frame, 0, sizeof(frame))
    wal_path(path, folder, start)
    handle = check(files.open(path, OpenMode.OPEN_READ))
    try:
        while True:
            with nogil:
                found = _find_frame(files, handle, start, at, file_end - start, &frame)
            if check(found) == 0:
                break
            if frame.unsynced != WAL_UNSYNCED_UNKNOWN and frame.position - frame.unsynced > bad:
                return False
            if next_whole == 0:
                next_whole = frame.position - start
            at = frame.position - start + WAL_FRAME_BYTES + frame.length
        return next_whole == 0 or _has_lost_sector(files, handle, bad - start, next_whole)
    finally:
        files.close(handle)


cdef int _find_frame(
    Files files, int handle, uint64_t start, uint64_t at, uint64_t size, FrameHeader* frame
) noexcept nogil:
    """The first whole frame at or after offset `at` of the segment: 1, 0 when there is none, or an error."""
    cdef uint8_t* window = <uint8_t*>malloc(SCAN_BYTES)
    cdef int64_t got
    cdef int64_t i
    cdef int status = 0
    if window == NULL:
        return Status.ERR_MEMORY
    while status == 0 and at + WAL_FRAME_BYTES <= size:
        got = files.read(handle, at, window, min(<uint64_t>SCAN_BYTES, size - at))
        if got < WAL_FRAME_BYTES:
            status = <int>got if got < 0 else 0
            break
        for i in range(got - WAL_FRAME_BYTES + 1):
            if load_u64(window + i + 8) != start + at + <uint64_t>i:
                continue
            frame[0] = wal_load_frame(window + i)
            status = _is_whole(files, handle, at + <uint64_t>i, size, frame)
            if status != 0:
                break
        at += <uint64_t>(got - WAL_FRAME_BYTES + 1)
    free(window)
    return status


cdef int _is_whole(Files files, int handle, uint64_t at, uint64_t size, const FrameHeader* frame) noexcept nogil:
    """Whether the frame with this header, at offset `at`, matches its checksum: 1, 0, or an error."""
    cdef uint8_t part[4096]
    cdef uint64_t left = WAL_FRAME_BYTES - 4 + <uint64_t>frame.length
    cdef int64_t got
    cdef uint32_t crc = 0
    at += 4
    if frame.length > WAL_PAYLOAD_LIMIT or left > size - at:
        return 0
    while left:
        got = files.read(handle, at, part, min(left, <uint64_t>sizeof(part)))
        if got <= 0:
            return <int>got
        crc = crc32c(crc, part, got)
        at += <uint64_t>got
        left -= <uint64_t>got
    return crc == frame.crc


cdef bint _has_lost_sector(Files files, int handle, uint64_t at, uint64_t end) except -1:
    """Whether a sector between two offsets was never written: it reads as zeros, from `at` or its begin to its end."""
    cdef uint8_t sector[SECTOR_BYTES]
    cdef uint8_t ones
    cdef int64_t got
    cdef int64_t i
    while True:
        got = SECTOR_BYTES - <int64_t>(at % SECTOR_BYTES)
        if at + <uint64_t>got > end:
            return False
        got = files.read(handle, at, sector, got)
        if got < 0:
            check(<int>got)
        ones = 0
        for i in range(got):
            ones |= sector[i]
        if ones == 0:
            return True
        at += <uint64_t>got


cdef int _make_segment(Files files, bytes folder, uint64_t store_id, uint64_t start) except -1:
    """Create, or create anew, a segment without frames, durably. Returns its handle."""
    cdef char path[WAL_PATH_BYTES]
    cdef uint8_t header[WAL_HEADER_BYTES]
    cdef int handle
    wal_path(path, folder, start)
    wal_put_header(header, store_id, start)
    handle = check(files.open(path, OpenMode.OPEN_FRESH))
    try:
        check(files.write(handle, 0, header, WAL_HEADER_BYTES))
        check(files.sync(handle))
        check(files.sync_dir(folder))
    except BaseException:
        files.close(handle)
        raise
    return handle


cdef int _reopen_segment(
    Files files, bytes folder, uint64_t start, uint64_t end, uint64_t file_end, uint64_t proven
) except -1:
    """Open the last segment for more, cut off at `end` and durable. Returns its handle."""
    cdef char path[WAL_PATH_BYTES]
    cdef uint64_t at = proven - start if proven > start + WAL_HEADER_BYTES else 0
    cdef int handle
    wal_path(path, folder, start)
    handle = check(files.open(path, OpenMode.OPEN_WRITE))
    try:
        if end < file_end:
            check(files.truncate(handle, end - start))
        # After a sync that failed, the system may show these bytes and yet never write them out,
        # and report success for it: only writing them again makes sure.
        check(_write_again(files, handle, at, end - start))
        check(files.sync(handle))
        # The process that made the file may have been killed before it could sync the folder.
        check(files.sync_dir(folder))
    except BaseException:
        files.close(handle)
        raise
    return handle


cdef int _write_again(Files files, int handle, uint64_t at, uint64_t end) noexcept nogil:
    cdef uint8_t* data = <uint8_t*>malloc(SCAN_BYTES)
    cdef int64_t got
    cdef int status = Status.OK if data != NULL else Status.ERR_MEMORY
    while status == Status.OK and at < end:
        got = files.read(handle, at, data, min(<uint64_t>SCAN_BYTES, end - at))
        if got <= 0:
            status = <int>got
            break
        status = files.write(handle, at, data, got)
        at += <uint64_t>got
    free(data)
    return status
