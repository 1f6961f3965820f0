"""What brings the readable parts of a damaged store together again; `doctor` has the order of events."""

from libc.stdint cimport uint8_t, uint64_t

import os

from everwrite.change cimport Change, change_check, change_parse
from everwrite.checksum cimport crc32c
from everwrite.clock cimport Dot, dot_compare
from everwrite.coding cimport (
    Reader,
    Slice,
    buffer_slice,
    get_slice,
    get_u8,
    load_u64,
    reader_left,
    reader_of,
    slice_of,
)
from everwrite.files cimport Files
from everwrite.frames cimport pieces_add, pieces_free, pieces_joined
from everwrite.keyspace cimport FRAME_CHANGES, FRAME_JOIN, FRAME_PIECE, FRAME_STATE
from everwrite.lsm cimport LsmIterator
from everwrite.mapping cimport StoreMapping
from everwrite.state cimport (
    SPACE_ELEMENT,
    SPACE_USER,
    Collection,
    Element,
    Row,
    element_decode,
    element_free,
    element_init,
    head_collection,
    head_encode,
    head_row,
)
from everwrite.status cimport Status, check
from everwrite.table_writer cimport TableWriter
from everwrite.wal_format cimport WAL_FRAME_BYTES, WAL_HEADER_BYTES, WAL_PAYLOAD_LIMIT, FrameHeader, wal_load_frame

from everwrite.inbound import FRAME_STATES_BYTES
from everwrite.manifest import TableInfo


cdef inline Slice _slice(bytes data):
    return slice_of(<const uint8_t*>data, len(data))


cdef bint _is_whole(const uint8_t* data, size_t size, size_t at, uint64_t start, FrameHeader* frame) noexcept nogil:
    if at + WAL_FRAME_BYTES > size or load_u64(data + at + 8) != start + at:
        return False
    frame[0] = wal_load_frame(data + at)
    if frame.length > WAL_PAYLOAD_LIMIT or WAL_FRAME_BYTES + <uint64_t>frame.length > size - at:
        return False
    return crc32c(0, data + at + 4, WAL_FRAME_BYTES - 4 + <size_t>frame.length) == frame.crc


def whole_frames(bytes data not None, uint64_t start):
    """Yield (offset, payload) of all whole frames in `data`, the bytes of the log segment that begins at `start`.

    What lies between them is passed over: who compares the offsets sees where something is missing.
    """
    cdef const uint8_t* at = <const uint8_t*>data
    cdef size_t size = len(data)
    cdef size_t i = WAL_HEADER_BYTES
    cdef FrameHeader frame
    cdef bint found
    while True:
        with nogil:
            found = False
            while i + WAL_FRAME_BYTES <= size:
                found = _is_whole(at, size, i, start, &frame)
                if found:
                    break
                i += 1
        if not found:
            return
        yield i, data[i + WAL_FRAME_BYTES : i + WAL_FRAME_BYTES + frame.length]
        i += WAL_FRAME_BYTES + frame.length


def write_table(Files files not None, str path, uint64_t number, tuple flushes, entries):
    """Write `entries`, (key, value or None for a remove marker) in key order, to a table file.

    `flushes`: numbers of the oldest and the newest flush whose entries these are. Returns its
    `manifest.TableInfo`, or None, and no file, when there are no entries.
    """
    cdef TableWriter writer = TableWriter(files, os.fsencode(path), *flushes)
    cdef bytes name
    cdef bytes text
    for key, value in entries:
        name = key
        text = b"" if value is None else value
        check(writer.add(_slice(name), _slice(text), value is None))
    if writer.entries == 0:
        files.remove(path)
        return None
    check(writer.finish())
    return TableInfo(number, writer.size, writer.entries, writer.removed, writer.smallest_key(), writer.largest_key())


cdef class SalvageStore(StoreMapping):
    """A store that takes changes from a log with holes, and elements without heads."""

    cdef dict contexts               # key -> origin -> timestamp: what `distrust` took away

    cdef bint _feed_one(self, Slice body, list incomplete) except -1

    def __cinit__(self, *args, **kwargs):
        self.contexts = {}
        # A part of an index may be lost, and whoever takes the states over makes his own.
        self.ranks_off = True

    cdef bint includes(self, uint64_t origin, uint64_t timestamp) noexcept nogil:
        # What was applied may be lost.
        return self.key_context(origin) >= timestamp

    def feed(self, bytes payload not None):
        """Apply the frame of a log whose payload this is, as far as it can be.

        What the store has already changes nothing. A change that builds on one that is missing is merged all
        the same: its own part is right, but the key may lack others. Returns the keys of such changes, and
        None when the frame can't be decoded.
        """
        cdef Reader r = reader_of(_slice(payload))
        cdef Reader states
        cdef int kind = get_u8(&r)
        cdef Slice body
        incomplete = []
        whole = True
        if kind == FRAME_PIECE:
            # One that doesn't follow the one before it lies behind a hole, which the offsets of the frames show.
            if pieces_add(&self.pieces, &r) == Status.ERR_MEMORY:
                raise MemoryError("out of memory for states in the log")
            return incomplete
        with nogil:
            self.lock()
        try:
            if kind == FRAME_JOIN:
                whole = pieces_joined(&self.pieces, &r, &states) == Status.OK
                while whole and reader_left(&states):
                    whole = self._feed_one(get_slice(&states), incomplete)
            elif kind == FRAME_STATE:
                whole = self._feed_one(slice_of(r.at, reader_left(&r)), incomplete)
            if kind == FRAME_CHANGES or kind == FRAME_JOIN:
                while not r.failed and reader_left(&r):
                    body = get_slice(&r)
                    whole = not r.failed and self._feed_one(body, incomplete) and whole
            # Else a claim: what it says of completeness doesn't hold here.
        finally:
            self.unlock()
            pieces_free(&self.pieces)
        self._checked_commit(0)
        return incomplete if whole else None

    cdef bint _feed_one(self, Slice body, list incomplete) except -1:
        """Merge a change or state; whether it can be decoded. Needs the lock."""
        cdef Change change
        cdef uint64_t pieces = 0
        cdef int status
        if change_parse(body, &change) < 0 or change_check(&change) < 0:
            return False
        if body.size > FRAME_STATES_BYTES:
            pieces = self.log_pieces([body.data[: body.size]])
        with nogil:
            status = self.load(change.key.data[0], slice_of(change.key.data + 1, change.key.size - 1))
            if status >= 0:
                status = self.guard(&change)
        if status == Status.ERR_GUARD:
            incomplete.append(change.key.data[1 : change.key.size])
        if status == Status.OK or status == Status.ERR_GUARD:
            with nogil:
                status = self.merge(&change)
                if status >= 0 and pieces:
                    status = self.join_begin(pieces)
                    status = self.log_group() if status >= 0 else status
                elif status >= 0:
                    status = self.log_change(change.body)
        if change.dot.timestamp > self.clock.last:
            self.clock.last = change.dot.timestamp
        self._check(status)
        return True

    def distrust(self, may_lack):
        """Forget the contexts of keys some of whose elements may be lost, so that the log's changes count again.

        A context says of a lost element that it was removed. `may_lack` is asked for each key with elements.
        `adopt_elements` brings the contexts back.
        """
        cdef LsmIterator* it
        cdef Slice stored
        cdef size_t i
        cdef int status
        cdef bytes start = bytes([SPACE_USER])
        cdef Slice first = _slice(start)
        self.contexts = {}
        with nogil:
            self.lock()
        it = self.lsm.iterator()
        try:
            if it == NULL:
                raise MemoryError("out of memory for a scan")
            status = self.lsm.seek(it, first)
            while check(status) == 1:
                stored = self.lsm.key(it)
                if stored.data[0] != SPACE_USER:
                    break
                if check(self.load(SPACE_USER, slice_of(stored.data + 1, stored.size - 1))) and (
                    self.head.collection_count
                ):
                    key = stored.data[1 : stored.size]
                    if may_lack(key):
                        self.contexts[key] = {
                            self.head.rows[i].origin: self.head.rows[i].context for i in range(self.head.size)
                        }
                        for i in range(self.head.size):
                            self.head.rows[i].context = 0
                        self._put_head()
                status = self.lsm.next(it)
        finally:
            if it != NULL:
                self.lsm.iterator_free(it)
            self.unlock()

    cdef int _put_head(self) except -1:
        self.encoded.size = 0
        check(head_encode(&self.head, &self.encoded))
        return check(self.lsm.put(buffer_slice(&self.key), buffer_slice(&self.encoded)))

    def adopt_elements(self):
        """Give a head to the elements whose key's head is lost, and contexts to those that were distrusted.

        Such a head knows of no more than the elements that are left. Returns the keys that got one.
        """
        cdef LsmIterator* it
        cdef Element element
        cdef Slice stored
        cdef Dot dot
        cdef size_t size
        cdef size_t i
        cdef Row* row
        cdef int kind
        cdef int status
        cdef bytes start = bytes([SPACE_ELEMENT])
        cdef Slice first = _slice(start)
        orphans = {}
        present = {}
        element_init(&element)
        with nogil:
            self.lock()
        it = self.lsm.iterator()
        try:
            if it == NULL:
                raise MemoryError("out of memory for a scan")
            status = self.lsm.seek(it, first)
            while check(status) == 1:
                stored = self.lsm.key(it)
                if stored.data[0] != SPACE_ELEMENT:
                    break
                size = int.from_bytes(stored.data[1:5], "big") if stored.size > 5 else stored.size
                if size + 6 <= stored.size and element_decode(&element, self.lsm.value(it)) == Status.OK:
                    key = stored.data[5 : 5 + size]
                    kind = stored.data[5 + size]
                    if key not in present:
                        present = {key: check(self.load(SPACE_USER, slice_of(stored.data + 5, size)))}
                    if not present[key] or key in self.contexts:
                        dots = orphans.setdefault(key, {}).setdefault(kind, [])
                        for i in range(element.size):
                            dots.append((element.dots[i].dot.timestamp, element.dots[i].dot.origin))
                        for i in range(element.row_count):
                            dots.append((max(element.rows[i].counter, element.rows[i].floor), element.rows[i].origin))
                status = self.lsm.next(it)
            for key, kinds in orphans.items():
                name = key
                check(self.load(SPACE_USER, _slice(name)))
                for each, dots in kinds.items():
                    for timestamp, origin in dots:
                        dot.origin = origin
                        dot.timestamp = timestamp
                        if self._adopt(each, dot) < 0:
                            raise MemoryError("out of memory for a head")
                self._put_head()
            for key, held in self.contexts.items():
                name = key
                check(self.load(SPACE_USER, _slice(name)))
                for origin, timestamp in held.items():
                    row = head_row(&self.head, origin)
                    if row == NULL:
                        raise MemoryError("out of memory for a head")
                    if row.context < <uint64_t>timestamp:
                        row.context = timestamp
                self._put_head()
        finally:
            if it != NULL:
                self.lsm.iterator_free(it)
            self.unlock()
            element_free(&element)
        return [key for key in orphans if key not in self.contexts]

    cdef int _adopt(self, int kind, Dot dot) noexcept nogil:
        cdef Collection* held = head_collection(&self.head, kind)
        cdef Row* row = head_row(&self.head, dot.origin)
        if held == NULL or row == NULL:
            return Status.ERR_MEMORY
        if dot_compare(dot, held.newest) > 0:
            held.newest = dot
        if row.context < dot.timestamp:
            row.context = dot.timestamp
        # What it is doesn't matter: whoever takes the state over counts for itself. But there are some.
        held.count = 1
        return Status.OK
