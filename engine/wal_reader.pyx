"""Read side of the write-ahead log: replay at start, and the streams to other stores."""

from libc.errno cimport ENOENT
from libc.stdint cimport int64_t, uint8_t, uint64_t

cimport cython

import os
import re

from everwrite.errors import LogCutError

from everwrite.checksum cimport crc32c
from everwrite.coding cimport Slice, buffer_free, buffer_init, buffer_reserve, load_u32, load_u64, slice_of
from everwrite.files cimport Files, OpenMode
from everwrite.status cimport Status, check, fault_corrupt, fault_format, last_fault
from everwrite.wal_format cimport (
    WAL_FRAME_BYTES,
    WAL_HEADER_BYTES,
    WAL_PATH_BYTES,
    WAL_PAYLOAD_LIMIT,
    WAL_VERSION,
    FrameHeader,
    wal_header_damage,
    wal_load_frame,
    wal_path,
)

cdef enum:
    READ_AHEAD_BYTES = 1 << 16

_SEGMENT_NAME = re.compile(r"([0-9a-f]{16})\.log")


def segment_starts(files, folder):
    """The start positions of the segments in `folder`, in order; other files are not the log's."""
    names = map(_SEGMENT_NAME.fullmatch, files.listdir(folder))
    return [int(name[1], 16) for name in names if name]


# A collector that cleared the reference to the files first would leave __dealloc__ unable to close.
@cython.no_gc_clear
cdef class WalReader:
    """Reads the frames of the log in `folder` from `position` on, also while a writer appends to it.

    Raises `LogCutError` when the log no longer reaches back to `position`.
    """

    def __cinit__(self):
        self._handle = -1
        buffer_init(&self._buffer)

    def __init__(self, Files files not None, folder, uint64_t position):
        starts = [start for start in segment_starts(files, folder) if start <= position]
        if not starts:
            raise LogCutError(
                f"{os.fsdecode(folder)}: the log no longer reaches back to position {position}; a full resync is needed"
            )
        self._files = files
        self._folder = os.fsencode(folder)
        self._folder_path = self._folder
        self._start = max(starts)
        self.position = position

    def __dealloc__(self):
        if self._handle >= 0 and self._files is not None:
            self._files.close(self._handle)
        buffer_free(&self._buffer)

    cdef int _corrupt(self, const char* reason) noexcept nogil:
        cdef char path[WAL_PATH_BYTES]
        wal_path(path, self._folder_path, self._start)
        return fault_corrupt(path, self.position - self._start, reason)

    cdef int _open(self) noexcept nogil:
        """Open the segment at _start and check its header."""
        cdef char path[WAL_PATH_BYTES]
        cdef uint8_t header[WAL_HEADER_BYTES]
        cdef const char* damage
        cdef int64_t got
        cdef int handle
        wal_path(path, self._folder_path, self._start)
        handle = self._files.open(path, OpenMode.OPEN_READ)
        if handle < 0:
            if handle == Status.ERR_IO and last_fault().error_number == ENOENT:
                return Status.ERR_CUT
            return handle
        got = self._files.read(handle, 0, header, WAL_HEADER_BYTES)
        if got == WAL_HEADER_BYTES:
            damage = wal_header_damage(header, self._start)
            if damage == NULL and load_u32(header + 8) == WAL_VERSION:
                self._handle = handle
                self._buffer.size = 0
                return Status.OK
            got = fault_corrupt(path, 0, damage) if damage != NULL else fault_format(path, load_u32(header + 8))
        elif got >= 0:
            got = fault_corrupt(path, 0, "the segment ends within its header")
        self._files.close(handle)
        return <int>got

    cdef int _go_on(self) noexcept nogil:
        """Go over to the segment that begins at `position`. ERR_CUT: this one was removed, and so may that one be."""
        cdef char path[WAL_PATH_BYTES]
        cdef uint64_t before = self._start
        cdef int handle = self._handle
        cdef int status
        cdef int there
        self._handle = -1
        self._start = self.position
        status = self._open()
        if status == Status.ERR_CUT:
            wal_path(path, self._folder_path, before)
            there = self._files.open(path, OpenMode.OPEN_READ)
            if there >= 0:
                self._files.close(there)
                self._handle = handle
                self._start = before
                return self._corrupt("no frame begins here")
        if status < 0:
            self._handle = handle
            self._start = before
            return status
        self._files.close(handle)
        self._buffer.size = 0
        return status

    cdef int _fill(self, size_t need, uint64_t limit) noexcept nogil:
        """Have `need` bytes at `position` in the buffer. 1, or 0 when the file has fewer of them, or an error."""
        cdef uint64_t end = self._buffered_from + self._buffer.size
        cdef size_t want = need
        cdef int64_t got
        if self._buffer.size and self.position >= self._buffered_from and self.position + need <= end:
            return 1
        if need > READ_AHEAD_BYTES:
            # The length comes from a header that isn't proven yet: allocate no more than there is.
            got = self._files.size(self._handle)
            if got < 0:
                return <int>got
            if <uint64_t>got < self.position - self._start + need:
                return 0
        elif limit - self.position >= READ_AHEAD_BYTES:
            want = READ_AHEAD_BYTES
        elif limit - self.position > need:
            want = limit - self.position
        if self._buffer.capacity > 4 * READ_AHEAD_BYTES and want <= READ_AHEAD_BYTES:
            buffer_free(&self._buffer)
        self._buffer.size = 0
        if buffer_reserve(&self._buffer, want) < 0:
            return Status.ERR_MEMORY
        got = self._files.read(self._handle, self.position - self._start, self._buffer.data, want)
        if got < 0:
            return <int>got
        if <size_t>got < need:
            return 0
        self._buffered_from = self.position
        self._buffer.size = <size_t>got
        return 1

    cdef int next(self, uint64_t limit, Slice* payload) noexcept nogil:
        cdef FrameHeader header
        cdef const uint8_t* at
        cdef int status
        if self._closed:
            return Status.ERR_CLOSED
        while True:
            if self.position >= limit:
                return 0
            if self._handle < 0:
                status = self._open()
                if status < 0:
                    return status
            if self.position - self._start < WAL_HEADER_BYTES:
                self.position = self._start + WAL_HEADER_BYTES
                continue
            status = self._fill(WAL_FRAME_BYTES, limit)
            if status < 0:
                return status
            if status == 1 and load_u64(self._buffer.data + (self.position - self._buffered_from)):
                break
            # Nothing here, below the limit: the next segment begins here.
            status = self._go_on()
            if status < 0:
                return status
        header = wal_load_frame(self._buffer.data + (self.position - self._buffered_from))
        if header.position != self.position:
            return self._corrupt("no frame begins here")
        if header.length > WAL_PAYLOAD_LIMIT or WAL_FRAME_BYTES + header.length > limit - self.position:
            return self._corrupt("the frame reaches beyond the end of the log")
        status = self._fill(WAL_FRAME_BYTES + <size_t>header.length, limit)
        if status < 0:
            return status
        if status == 0:
            return self._corrupt("the segment ends within this frame")
        at = self._buffer.data + (self.position - self._buffered_from)
        if crc32c(0, at + 4, WAL_FRAME_BYTES - 4 + <size_t>header.length) != header.crc:
            return self._corrupt("the frame doesn't match its checksum")
        payload[0] = slice_of(at + WAL_FRAME_BYTES, header.length)
        self.position += WAL_FRAME_BYTES + header.length
        return 1

    def read(self, uint64_t limit):
        """The payload of the next frame that ends at or below `limit`, or None.

        `limit` is a position between frames, such as a writer's `written` or `durable`. Raises
        `LogCutError` when the log was cut past `position`, `CorruptionError` (path, offset) when
        stored bytes are damaged; `position` then stays.
        """
        cdef Slice payload
        cdef int status
        with nogil:
            status = self.next(limit, &payload)
        if check(status) == 0:
            return None
        return <bytes>(<const char*>payload.data)[:payload.size]

    def close(self):
        """Close it; once more is fine."""
        self._closed = True
        if self._handle >= 0:
            self._files.close(self._handle)
            self._handle = -1
