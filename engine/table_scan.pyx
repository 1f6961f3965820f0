"""Finding the blocks of a table file without the directory that says where they are.

A block ends with its kind, the size of its content and a checksum that covers where it begins, so that an end tells
its beginning: an uncompressed block's from the size, a compressed one's because a zstd frame begins there that names
the same size. One walk over the file tries every byte as an end; what looks like one is held against the checksum.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memmove

import os

from everwrite.block_cache cimport entries_check
from everwrite.coding cimport (
    Buffer,
    Reader,
    Slice,
    buffer_free,
    buffer_init,
    buffer_reserve,
    get_slice,
    get_varint,
    load_u32,
    load_u64,
    put_bytes,
    reader_of,
    slice_of,
)
from everwrite.compression cimport Zstd
from everwrite.files cimport Files, OpenMode, check_size
from everwrite.status cimport Status, check, fault_corrupt
from everwrite.table_format cimport (
    BLOCK_STORED,
    BLOCK_TARGET,
    BLOCK_TRAILER,
    BLOCK_ZSTD,
    DATA_BLOCK_LIMIT,
    ENTRY_HEADER_MAX,
    FOOTER_SIZE,
    TableEntry,
    block_checksum,
    decode_entry,
    entry_offset,
)

from everwrite.manifest import TableInfo


cdef enum:
    ZSTD_MAGIC = 0xFD2FB528
    FRAME_HEADER_MAX = 18
    CONTENT_MIN = 6                    # an entry, where it begins, and how many there are
    WINDOW_BYTES = 1 << 20             # read at a time
    BACK_BYTES = 1 << 13               # of what was walked over and stays in sight: any block but those of one entry
    FRAMES_MAX = 64                    # kept of what looks like the beginning of one
    VAIN_SHARE = 16                    # so many times the file's size is read in vain before large frames are let be


cdef struct Frame:
    uint64_t offset                    # in the file
    uint64_t content_size              # as its header says


cdef inline bytes _bytes(Slice s):
    return (<const char*>s.data)[:s.size] if s.size else b""


cdef uint64_t _frame_content(const uint8_t* frame) noexcept nogil:
    """The content's size in the header of a zstd frame (RFC 8878, 3.1.1.1); 0 when it isn't there."""
    cdef unsigned about = frame[4]
    cdef bint single = about >> 5 & 1
    cdef unsigned at = 5 + (not single) + (1 << (about & 3) >> 1)
    cdef unsigned flag = about >> 6
    if flag == 0:
        return frame[at] if single else 0
    if flag == 1:
        return 256 + (frame[at] | <uint64_t>frame[at + 1] << 8)
    return load_u32(frame + at) if flag == 2 else load_u64(frame + at)


cdef class TableScan:
    """The data blocks of the table file `path` that are whole. Iterating yields (offset, end, entries) for each.

    `entries` are (key, value), None for a remove marker's value; keys ascend from block to block. Takes time in
    proportion to the file's size, and memory to its largest block; only content made up to mislead it makes it slower,
    by a bounded factor. Raises `StorageError` when reading fails.
    """

    cdef Files files
    cdef Zstd zstd
    cdef int file
    cdef uint64_t size
    cdef uint64_t lower                # where the last whole block ends
    cdef uint64_t at                   # the next byte to be tried as an end
    cdef Buffer window                 # bytes of the file from `window_at` on
    cdef uint64_t window_at
    cdef Buffer apart                  # what lies outside of it
    cdef Buffer content                # a decompressed block
    cdef Buffer frames                 # Frame each: what looks like one behind `lower`, the newest last
    cdef uint64_t vain_bytes           # read for what turned out to be no block
    cdef uint64_t offset               # of the block that was found,
    cdef const uint8_t* data           # and what it holds
    cdef size_t data_size
    cdef bytes last                    # the last key so far

    def __cinit__(self, *args):
        self.file = -1
        buffer_init(&self.window)
        buffer_init(&self.apart)
        buffer_init(&self.content)
        buffer_init(&self.frames)

    def __init__(self, Files files not None, path):
        cdef bytes raw = os.fsencode(path)
        self.files = files
        self.zstd = Zstd()
        self.file = check(files.open(raw, OpenMode.OPEN_READ))
        self.size = check_size(files.size(self.file))
        self.at = 4

    def __dealloc__(self):
        if self.file >= 0:
            self.files.close(self.file)
        buffer_free(&self.window)
        buffer_free(&self.apart)
        buffer_free(&self.content)
        buffer_free(&self.frames)

    # ---- reading ----

    cdef int _read(self, Buffer* into, uint64_t first, size_t size) noexcept nogil:
        cdef int64_t got
        into.size = 0
        if buffer_reserve(into, size) < 0:
            return Status.ERR_MEMORY
        got = self.files.read(self.file, first, into.data, size)
        if got < 0:
            return <int>got
        into.size = <size_t>got
        return Status.OK if <size_t>got == size else fault_corrupt(b"a table", first, "the file became shorter")

    cdef int _see(self, uint64_t first, size_t size, const uint8_t** out) noexcept nogil:
        """Bytes of the file, valid until the next call."""
        cdef int status = Status.OK
        if first >= self.window_at and first + size <= self.window_at + self.window.size:
            out[0] = self.window.data + (first - self.window_at)
        else:
            status = self._read(&self.apart, first, size)
            out[0] = self.apart.data
        return status

    cdef int _move(self) noexcept nogil:
        """Have what lies before `at` in the window."""
        if self.at <= self.window_at + self.window.size:
            return Status.OK
        self.window_at = self.at - BACK_BYTES if self.at > BACK_BYTES else 0
        return self._read(&self.window, self.window_at, min(<uint64_t>WINDOW_BYTES, self.size - self.window_at))

    # ---- one end ----

    cdef int _take(self, uint64_t offset, int kind, size_t content_size) noexcept nogil:
        """1: from `offset` to `at` there is a whole block; what may be its entries is in `data`. Or 0, or an error."""
        cdef size_t size = self.at - offset
        cdef const uint8_t* stored = NULL
        cdef int status = self._see(offset, size, &stored)
        if status < 0:
            return status
        if block_checksum(stored, size - 4, offset) != load_u32(stored + size - 4):
            self.vain_bytes += size
            return 0
        self.offset = offset
        self.lower = self.at
        self.frames.size = 0
        self.data = stored
        self.data_size = content_size
        if kind == BLOCK_ZSTD:
            self.content.size = 0
            if buffer_reserve(&self.content, content_size) < 0:
                return Status.ERR_MEMORY
            status = self.zstd.decompress(
                slice_of(stored, size - BLOCK_TRAILER), self.content.data, content_size
            )
            if status < 0:
                return status if status != Status.ERR_DECODE else 0
            self.data = self.content.data
        return 1

    cdef int _try_stored(self, size_t content_size) noexcept nogil:
        """Whether an uncompressed block with so much content ends at `at`. What can't be one is told without reading
        it all: else a large value that is full of such numbers would take for ever."""
        cdef uint64_t end = self.at - BLOCK_TRAILER
        cdef const uint8_t* tail = NULL
        cdef const uint8_t* head = NULL
        cdef size_t count
        cdef uint64_t key_size
        cdef uint64_t value_size
        cdef Reader r
        cdef int status
        if content_size < CONTENT_MIN or content_size > DATA_BLOCK_LIMIT or content_size > end - self.lower:
            return 0
        status = self._see(end - 4, 4, &tail)
        if status < 0:
            return status
        count = entry_offset(tail + 2, 0)
        if count == 0 or 2 * count + 2 > content_size or (count > 1 and content_size > BLOCK_TARGET):
            return 0
        if count == 1:
            if entry_offset(tail, 0) != 0:
                return 0
            status = self._see(end - content_size, min(content_size, <size_t>ENTRY_HEADER_MAX), &head)
            if status < 0:
                return status
            r = reader_of(slice_of(head, min(content_size, <size_t>ENTRY_HEADER_MAX)))
            key_size = get_varint(&r)
            value_size = get_varint(&r) >> 1
            if r.failed or <size_t>(r.at - head) + key_size + value_size != content_size - 4:
                return 0
        return self._take(end - content_size, BLOCK_STORED, content_size)

    cdef int _try_frame(self, size_t content_size) noexcept nogil:
        """The same of a compressed one."""
        cdef Frame* frames = <Frame*>self.frames.data
        cdef size_t i = self.frames.size // sizeof(Frame)
        cdef uint64_t end = self.at - BLOCK_TRAILER
        cdef int status = 0
        if content_size < CONTENT_MIN or content_size > DATA_BLOCK_LIMIT:
            return 0
        if content_size > BLOCK_TARGET and self.vain_bytes // VAIN_SHARE > self.size:
            return 0
        # A block is compressed only if that makes it smaller.
        while i > 0 and status == 0 and self.frames.size and end - frames[i - 1].offset < content_size:
            i -= 1
            if frames[i].content_size == content_size and frames[i].offset + FRAME_HEADER_MAX <= self.at:
                status = self._take(frames[i].offset, BLOCK_ZSTD, content_size)
        return status

    cdef int _note_frame(self) noexcept nogil:
        cdef const uint8_t* header = NULL
        cdef Frame frame
        cdef int status
        frame.offset = self.at - 4
        if frame.offset + FRAME_HEADER_MAX > self.size:
            return Status.OK
        status = self._see(frame.offset, FRAME_HEADER_MAX, &header)
        if status < 0:
            return status
        frame.content_size = _frame_content(header)
        if self.frames.size == FRAMES_MAX * sizeof(Frame):
            self.frames.size -= sizeof(Frame)
            memmove(self.frames.data, self.frames.data + sizeof(Frame), self.frames.size)
        return Status.OK if put_bytes(&self.frames, &frame, sizeof(Frame)) == 0 else Status.ERR_MEMORY

    cdef int _next(self) noexcept nogil:
        """1: there is another whole block. 0: there is none. Else an error."""
        cdef const uint8_t* end
        cdef int status
        while self.at <= self.size:
            status = self._move()
            if status < 0:
                return status
            end = self.window.data + (self.at - self.window_at)
            if load_u32(end - 4) == ZSTD_MAGIC:
                status = self._note_frame()
                if status < 0:
                    return status
            if self.at < self.lower + CONTENT_MIN + BLOCK_TRAILER:
                status = 0
            elif end[-BLOCK_TRAILER] == BLOCK_STORED:
                status = self._try_stored(load_u32(end - 8))
            elif end[-BLOCK_TRAILER] == BLOCK_ZSTD and self.frames.size:
                status = self._try_frame(load_u32(end - 8))
            self.at += 1
            if status != 0:
                return status
        return 0

    # ---- what was found ----

    cdef list _entries(self):
        """The entries of the block that was found; None when it holds something else."""
        cdef size_t entries_size = 0
        cdef size_t count = 0
        cdef size_t i
        cdef size_t begin
        cdef size_t end
        cdef TableEntry e
        cdef bytes last = self.last
        if entries_check(b"", self.offset, self.data, self.data_size, &entries_size, &count) < 0:
            return None
        found = []
        for i in range(count):
            begin = entry_offset(self.data + entries_size, i)
            end = entry_offset(self.data + entries_size, i + 1) if i + 1 < count else entries_size
            if (
                (i == 0 and begin != 0)
                or end <= begin
                or end > entries_size
                or not decode_entry(self.data + begin, self.data + end, &e)
                or e.value.data + e.value.size != self.data + end
            ):
                return None
            key = _bytes(e.key)
            if last is not None and key <= last:
                return None
            last = key
            found.append((key, None if e.removed else _bytes(e.value)))
        self.last = last
        return found

    def __iter__(self):
        return self

    def __next__(self):
        cdef int status
        while True:
            with nogil:
                status = self._next()
            if check(status) == 0:
                raise StopIteration
            entries = self._entries()
            if entries is not None:
                return self.offset, self.lower, entries

    def properties(self, uint64_t number):
        """What the properties say, where they are whole: (`TableInfo` with this number, oldest flush, newest flush).

        None when they aren't where they belong, before a footer of whatever content.
        """
        cdef const uint8_t* end = NULL
        cdef const uint8_t* stored = NULL
        cdef uint64_t place = self.size - FOOTER_SIZE
        cdef uint32_t size
        cdef Reader r
        if self.size < FOOTER_SIZE + BLOCK_TRAILER:
            return None
        check(self._see(place - BLOCK_TRAILER, BLOCK_TRAILER, &end))
        size = load_u32(end + 1)
        if end[0] != BLOCK_STORED or size > place - BLOCK_TRAILER:
            return None
        check(self._see(place - BLOCK_TRAILER - size, size + BLOCK_TRAILER, &stored))
        if block_checksum(stored, size + BLOCK_TRAILER - 4, place - BLOCK_TRAILER - size) != load_u32(
            stored + size + BLOCK_TRAILER - 4
        ):
            return None
        r = reader_of(slice_of(stored, size))
        entries, removed = get_varint(&r), get_varint(&r)
        get_varint(&r)
        oldest, newest = get_varint(&r), get_varint(&r)
        smallest, largest = _bytes(get_slice(&r)), _bytes(get_slice(&r))
        if r.failed or r.at != r.end:
            return None
        return TableInfo(number, self.size, entries, removed, smallest, largest), oldest, newest
