"""Opening the write-ahead log: what of it is whole, what a crash has torn, what is damaged.

A crash can leave the bytes after the last sync in any state: missing, or some sectors
written and others not, and whole segments without their name. Such a tail is cut off. Damage to what was
synced is an error, never cut off: a frame, and a segment's header, say up to where the log was durable when they
were written, so a whole one behind the damage tells whether the damaged bytes had been synced.
docs/formats/wal.md has the rules in full.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memset

import os
import re
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

_SPARE_NAME = re.compile(r"[0-9]+\.spare")

cdef enum:
    SCAN_BYTES = 1 << 20
    SECTOR_BYTES = 512
    BLANK_BYTES = 4096


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
    uint64_t durable_to=0,
    uint64_t segment_bytes=SEGMENT_BYTES,
    bint fresh=False,
):
    """Open the log in `folder`, or make one, and return an `OpenedLog`.

    `replay_from`: the position from which on frames are still needed; the caller made the log durable
    up to there before it relied on that. `durable_to`: it was durable up to there, too, as the caller remembers from
    a clean stop. `segment_bytes`: a segment is closed before it grows beyond this, unless a single frame does.
    `fresh`: with an empty folder, begin a log at `replay_from`; otherwise that is accepted only for position 0,
    where every log begins.

    Raises `CorruptionError` (path, offset) when anything but a torn tail is damaged or missing, and
    `FormatError` for a newer format; the files are then untouched.
    """
    cdef bytes name = os.fsencode(folder)
    cdef WalWriter writer = new_writer(files, name, store_id, segment_bytes)
    cdef _Found found
    if segment_bytes < SEGMENT_BYTES_MIN:
        raise ValueError(f"segment_bytes is {segment_bytes}; it must be at least {SEGMENT_BYTES_MIN}")
    files.mkdir(name)
    starts = segment_starts(files, name)
    if not starts:
        if replay_from and not fresh:
            raise CorruptionError(
                f"{os.fsdecode(name)}: the log is missing, but the tables rely on it from position {replay_from} on; "
                "restore it from a backup or a replica",
                path=os.fsdecode(name),
            )
        _remove_spares(files, name)
        writer._begin([replay_from], replay_from + WAL_HEADER_BYTES, _make_segment(files, name, store_id, replay_from))
        return OpenedLog(writer, WalReader(files, name, replay_from), 0, replay_from)
    found = _Found(files, name, sorted(starts))
    found.check_segments(store_id, replay_from, max(replay_from, durable_to))
    found.find_end(replay_from, max(replay_from, durable_to))
    _remove_spares(files, name)
    starts, end, handle = found.settle(store_id)
    writer._begin(starts, end, handle)
    return OpenedLog(writer, WalReader(files, name, replay_from), found.dropped, found.end)


cdef _remove_spares(files, bytes folder):
    """Remove what was made ahead to become segments, and did not."""
    for name in files.listdir(folder):
        if _SPARE_NAME.fullmatch(name):
            files.remove(folder + b"/" + os.fsencode(name))


cdef int _damaged(bytes folder, uint64_t start, uint64_t offset, const char* reason) except -1:
    """Raise the CorruptionError for a place in a segment."""
    cdef char path[WAL_PATH_BYTES]
    wal_path(path, folder, start)
    return check(fault_corrupt(path, offset, reason))


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


cdef class _Found:
    """The segments that were found. Their bytes are taken for one row, in which what is missing reads as zeros."""

    cdef Files files
    cdef bytes folder
    cdef list starts         # ascending
    cdef uint64_t last
    cdef dict sizes          # start -> size of the file
    cdef uint64_t file_end   # where the last file ends
    cdef uint64_t end        # where the log ends
    cdef uint64_t proven     # it was durable at least up to here
    cdef readonly uint64_t dropped   # bytes that are cut off, and aren't zeros to the end

    def __init__(self, Files files, bytes folder, list starts):
        self.files = files
        self.folder = folder
        self.starts = starts
        self.sizes = {}
        for start in starts:
            with self.open(start) as file:
                self.sizes[start] = file.size()
        self.last = max(starts)
        self.file_end = self.last + <uint64_t>self.sizes[self.last]

    def open(self, uint64_t start):
        """The segment's file, for reading."""
        return self.files.open_file(self.folder + f"/{start:016x}.log".encode(), "read")

    def limit_of(self, index):
        """Where the segment ends: at the next one's start, or with its file."""
        return self.starts[index + 1] if index + 1 < len(self.starts) else self.file_end

    def check_segments(self, uint64_t store_id, uint64_t replay_from, uint64_t known):
        """Check that the segments reach from `replay_from` to `known`, and are this store's."""
        cdef uint64_t tail
        if self.starts[0] > replay_from:
            reason = b"the tables rely on the log from before its first segment, which this is"
            _damaged(self.folder, self.starts[0], 0, reason)
        if self.file_end < known:
            reason = b"the log ends here, but the tables rely on more of it"
            _damaged(self.folder, self.last, self.file_end - self.last, reason)
        for index, start in enumerate(self.starts):
            limit = self.limit_of(index)
            end = start + self.sizes[start]
            if end < min(limit, known):
                _damaged(self.folder, start, end - start, "the segment ends before the next one begins")
            if end > limit:
                with self.open(start) as file:
                    tail = _used_bytes(self.files, file, limit - start)
                if tail:
                    _damaged(self.folder, start, limit - start, "the next segment begins before this one's end")
            if limit > replay_from or start == self.last:
                with self.open(start) as file:
                    # A crash may have torn the header of a segment of which nothing was durable.
                    _check_header(self.folder, start, file.read(0, WAL_HEADER_BYTES), store_id, known <= start)

    def find_end(self, uint64_t replay_from, uint64_t known):
        """Read all frames from `replay_from` on, and find out where the whole ones end."""
        cdef WalReader reader = WalReader(self.files, self.folder, replay_from)
        cdef FrameHeader frame
        cdef Slice payload
        cdef uint64_t limit
        cdef int status = 0
        self.proven = known
        memset(&frame, 0, sizeof(frame))
        try:
            for index, start in enumerate(self.starts):
                limit = self.limit_of(index)
                if limit <= replay_from:
                    continue
                if start >= replay_from:
                    self.proven = max(self.proven, self.durable_at_start(start))
                with nogil:
                    while True:
                        status = reader.next(limit, &payload)
                        if status != 1:
                            break
                        frame = wal_load_frame(payload.data - WAL_FRAME_BYTES)
                        self.prove(&frame)
                check(status)
            self.end = self.file_end
            return
        except CorruptionError:
            self.end = reader.position
            if self.end < self.proven or self.end < known:
                raise
            if self.end >= self.last:
                with self.open(self.last) as file:
                    self.dropped = _used_bytes(self.files, file, self.end - self.last)
                if self.dropped == 0:
                    # Space that was reserved, or nothing.
                    return
            if not self.is_torn(self.end):
                raise
            if self.end < self.last:
                with self.open(self.last) as file:
                    self.dropped = self.last - self.end + _used_bytes(self.files, file, 0)
        finally:
            reader.close()

    cdef void prove(self, const FrameHeader* frame) noexcept nogil:
        if frame.unsynced != WAL_UNSYNCED_UNKNOWN and frame.position - frame.unsynced > self.proven:
            self.proven = frame.position - frame.unsynced

    def durable_at_start(self, uint64_t start):
        """Up to where the log was durable when this segment was begun, if its header is whole; else 0."""
        with self.open(start) as file:
            header = file.read(0, WAL_HEADER_BYTES)
        if len(header) < WAL_HEADER_BYTES or wal_header_damage(<const uint8_t*><const char*>header, start) != NULL:
            return 0
        return load_u64(<const uint8_t*><const char*>header + 32)

    def is_torn(self, uint64_t bad):
        """Whether a crash can have left the bytes from `bad` on as they are."""
        lost = False
        found = False
        for index, start in enumerate(self.starts):
            limit = self.limit_of(index)
            if limit <= bad:
                continue
            offset = max(bad, start) - start
            if start > bad and self.durable_at_start(start) > bad:
                return False
            if offset == 0 and self.header_is_whole(start):
                found = True
                offset = WAL_HEADER_BYTES
            with self.open(start) as file:
                end = min(self.sizes[start], limit - start)
                whole = self.first_whole(start, offset, end, bad)
                if whole < 0:
                    return False
                if not found:
                    # Was something lost before the first bytes that are whole?
                    lost = lost or _was_unfinished(file, bad - start, end) if start < bad else lost
                    lost = lost or _has_lost_sector(file, offset, whole or end, limit - start)
                    lost = lost or (not whole and end < limit - start)
                    found = bool(whole)
        return lost or not found

    def header_is_whole(self, uint64_t start):
        """Whether the segment's header is."""
        with self.open(start) as file:
            header = file.read(0, WAL_HEADER_BYTES)
        return (
            len(header) == WAL_HEADER_BYTES
            and wal_header_damage(<const uint8_t*><const char*>header, start) == NULL
        )

    def first_whole(self, uint64_t start, uint64_t at, uint64_t end, uint64_t bad):
        """The offset of the first whole frame between two offsets, 0 when there is none.

        -1: some frame there shows that the log was durable beyond `bad`.
        """
        cdef char path[WAL_PATH_BYTES]
        cdef FrameHeader frame
        cdef uint64_t first = 0
        cdef int handle
        cdef int found
        memset(&frame, 0, sizeof(frame))
        wal_path(path, self.folder, start)
        handle = check(self.files.open(path, OpenMode.OPEN_READ))
        try:
            while True:
                with nogil:
                    found = _find_frame(self.files, handle, start, at, end, &frame)
                if check(found) == 0:
                    return first
                if frame.unsynced != WAL_UNSYNCED_UNKNOWN and frame.position - frame.unsynced > bad:
                    return -1
                if first == 0:
                    first = frame.position - start
                at = frame.position - start + WAL_FRAME_BYTES + frame.length
        finally:
            self.files.close(handle)

    def settle(self, uint64_t store_id):
        """Cut the log off at its end, and make what is left durable. Returns (starts, end, handle)."""
        kept = [start for start in self.starts if start < self.end] or self.starts[:1]
        for start in reversed(self.starts):
            if start not in kept:
                # The newest first: a crash meanwhile must not leave a gap.
                self.files.remove(self.folder + f"/{start:016x}.log".encode())
                self.files.sync_folder(self.folder)
        anew = self.end in self.starts
        if anew and self.end not in kept:
            kept.append(self.end)
        for index, start in enumerate(kept[: len(kept) - 1]):
            self.make_durable(start, kept[index + 1])
        if anew:
            handle = _make_segment(self.files, self.folder, store_id, self.end)
            return kept, self.end + WAL_HEADER_BYTES, handle
        self.files.sync_folder(self.folder)
        return kept, self.end, self.reopen(max(kept), self.end)

    def make_durable(self, uint64_t start, uint64_t limit):
        """The same for a segment before the last one, if it may not be durable yet."""
        if limit > self.proven or start + <uint64_t>self.sizes[start] > limit:
            self.files.close(self.reopen(start, limit))

    def reopen(self, uint64_t start, uint64_t end):
        """Open a segment for more, cut off at `end` and durable. Returns its handle."""
        cdef char path[WAL_PATH_BYTES]
        cdef uint64_t at = self.proven - start if self.proven > start + WAL_HEADER_BYTES else 0
        cdef int handle
        wal_path(path, self.folder, start)
        handle = check(self.files.open(path, OpenMode.OPEN_WRITE))
        try:
            if end - start < <uint64_t>self.sizes[start]:
                check(self.files.truncate(handle, end - start))
            # After a sync that failed, the system may show these bytes and yet never write them out,
            # and report success for it: only writing them again makes sure.
            check(_write_again(self.files, handle, at, end - start))
            check(self.files.sync(handle))
        except BaseException:
            self.files.close(handle)
            raise
        return handle


cdef bint _is_blank(const uint8_t* at) noexcept nogil:
    """Whether BLANK_BYTES bytes are zeros."""
    return at[0] == 0 and memcmp(at, at + 1, BLANK_BYTES - 1) == 0


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
        i = 0
        while i <= got - WAL_FRAME_BYTES:
            if i % BLANK_BYTES == 0 and i + BLANK_BYTES + WAL_FRAME_BYTES <= got and _is_blank(window + i):
                # Reserved space. Its last bytes may begin a frame, whose position isn't 0.
                i += BLANK_BYTES - 15
                continue
            if load_u64(window + i + 8) != start + at + <uint64_t>i:
                i += 1
                continue
            frame[0] = wal_load_frame(window + i)
            status = _is_whole(files, handle, at + <uint64_t>i, size, frame)
            if status != 0:
                break
            i += 1
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


cdef bint _was_unfinished(file, uint64_t at, uint64_t end) except -1:
    """Whether the frame at an offset lacks its checksum or length: they are stored last, when all else is there."""
    cdef bytes head = file.read(at, min(<uint64_t>8, end - at)) if at < end else b""
    return len(head) == 8 and not (any(head[:4]) and any(head[4:]))


cdef bint _has_lost_sector(file, uint64_t at, uint64_t end, uint64_t limit) except -1:
    """Whether a sector between two offsets was never written: it reads as zeros, from `at` or its begin to its end.

    The last sector ends with the segment, at `limit`.
    """
    while True:
        size = min(SECTOR_BYTES - at % SECTOR_BYTES, limit - at)
        if at + size > end or at >= end:
            return False
        if not any(file.read(at, size)):
            return True
        at += size


cdef uint64_t _used_bytes(Files files, file, uint64_t at) except? 0:
    """How many bytes there are from an offset to the file's last byte that isn't zero."""
    cdef uint64_t used = 0
    cdef uint64_t offset = at
    while True:
        data = file.read(offset, SCAN_BYTES)
        if not data:
            return used
        if len(data.rstrip(b"\0")):
            used = offset - at + len(data.rstrip(b"\0"))
        offset += len(data)


cdef int _make_segment(Files files, bytes folder, uint64_t store_id, uint64_t start) except -1:
    """Create, or create anew, a segment without frames, durably. Returns its handle."""
    cdef char path[WAL_PATH_BYTES]
    cdef uint8_t header[WAL_HEADER_BYTES]
    cdef int handle
    wal_path(path, folder, start)
    wal_put_header(header, store_id, start, start)
    handle = check(files.open(path, OpenMode.OPEN_FRESH))
    try:
        check(files.write(handle, 0, header, WAL_HEADER_BYTES))
        check(files.sync(handle))
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
