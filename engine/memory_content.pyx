"""The content of a file in memory, with the way back to what of it is durable."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from everwrite.status cimport Status

cdef enum:
    # With more unsynced operations than this on one file, adjoining appends are taken as one.
    UNDO_LIMIT = 4096
    # A disk stores a sector whole or not at all; what a crash tears is made of whole ones.
    SECTOR_BYTES = 512
    # Of a mapping, compared at a time.
    LOOK_BYTES = 1 << 14


cdef void _take_back(Content* content) noexcept nogil:
    """Undo the newest operation that isn't durable."""
    cdef Undo* undo = &content.undos[content.undo_count - 1]
    content.size = undo.size_before
    if undo.covered_size:
        memcpy(content.data + undo.offset, undo.covered, undo.covered_size)
    if content.seen != NULL:
        content.seen_size = content.size
        if undo.covered_size:
            memcpy(content.seen + undo.offset, undo.covered, undo.covered_size)
    free(undo.covered)
    content.undo_count -= 1


cdef void content_forget_undos(Content* content) noexcept nogil:
    cdef size_t i
    for i in range(content.undo_count):
        free(content.undos[i].covered)
    content.undo_count = 0
    content.dropped = 0


cdef int _resize(Content* content, uint64_t size) noexcept nogil:
    """Set the size; what is new reads as zeros."""
    cdef size_t capacity = content.capacity
    cdef uint8_t* grown
    if size > capacity:
        if content.seen != NULL:
            return Status.ERR_MEMORY
        capacity = capacity * 2 if capacity else 4096
        if capacity < size:
            capacity = size
        grown = <uint8_t*>realloc(content.data, capacity)
        if grown == NULL:
            return Status.ERR_MEMORY
        content.data = grown
        content.capacity = capacity
    if size > content.size:
        memset(content.data + content.size, 0, size - content.size)
    content.size = size
    return Status.OK


cdef int content_map(Content* content, size_t size) noexcept nogil:
    cdef uint8_t* data
    cdef uint8_t* seen
    if content.seen != NULL:
        return Status.ERR_MEMORY
    if size < content.size:
        size = content.size
    # Not realloc: large blocks of zeros cost nothing until they are touched.
    data = <uint8_t*>calloc(1, size)
    seen = <uint8_t*>calloc(1, size)
    if data == NULL or seen == NULL:
        free(data)
        free(seen)
        return Status.ERR_MEMORY
    if content.size:
        memcpy(data, content.data, content.size)
        memcpy(seen, content.data, content.size)
    free(content.data)
    content.data = data
    content.capacity = size
    content.seen = seen
    content.seen_size = content.size
    return Status.OK


cdef int content_look(Content* content) noexcept nogil:
    cdef size_t at = 0
    cdef size_t step
    cdef size_t i
    cdef uint8_t* stored
    if content.seen == NULL:
        return Status.OK
    # What the file has grown by is known: zeros.
    if content.size > content.seen_size:
        memset(content.seen + content.seen_size, 0, content.size - content.seen_size)
    content.seen_size = content.size
    while at < content.size:
        step = min(<size_t>LOOK_BYTES, content.size - at)
        if memcmp(content.data + at, content.seen + at, step) == 0:
            at += step
            continue
        step = min(<size_t>SECTOR_BYTES, content.size - at)
        stored = content.data + at
        if memcmp(stored, content.seen + at, step) != 0:
            # The undo takes what it covers from `data`.
            for i in range(step):
                stored[i] ^= content.seen[at + i]
                content.seen[at + i] ^= stored[i]
                stored[i] ^= content.seen[at + i]
            if _remember(content, False, at, step, step) < 0:
                return Status.ERR_MEMORY
            memcpy(stored, content.seen + at, step)
        at += step
    return Status.OK


cdef void content_unmap(Content* content) noexcept nogil:
    content_look(content)
    free(content.seen)
    content.seen = NULL


cdef int content_detach(Content* content) noexcept nogil:
    cdef uint8_t* data
    content_unmap(content)
    data = <uint8_t*>malloc(content.size + 1)
    if data == NULL:
        return Status.ERR_MEMORY
    memcpy(data, content.data, content.size)
    content.data = data
    content.capacity = content.size + 1
    return Status.OK


cdef int _remember(Content* content, bint truncated, uint64_t offset, size_t length, size_t covered) noexcept nogil:
    """Note how to take back an operation that is about to happen at `offset`."""
    cdef Undo* undo
    cdef Undo* grown
    cdef size_t capacity
    if content.undo_count >= UNDO_LIMIT + content.dropped and not truncated and not covered:
        undo = &content.undos[content.undo_count - 1]
        if not undo.truncated and not undo.covered_size and undo.offset + undo.length == offset:
            undo.length += length
            return Status.OK
    if content.undo_count == content.undo_capacity:
        capacity = content.undo_capacity * 2 if content.undo_capacity else 8
        grown = <Undo*>realloc(content.undos, capacity * sizeof(Undo))
        if grown == NULL:
            return Status.ERR_MEMORY
        content.undos = grown
        content.undo_capacity = capacity
    undo = &content.undos[content.undo_count]
    undo.truncated = truncated
    undo.offset = offset
    undo.length = length
    undo.size_before = content.size
    undo.covered = NULL
    undo.covered_size = covered
    if covered:
        undo.covered = <uint8_t*>malloc(covered)
        if undo.covered == NULL:
            return Status.ERR_MEMORY
        memcpy(undo.covered, content.data + offset, covered)
    content.undo_count += 1
    return Status.OK


cdef int content_put(Content* content, uint64_t offset, const void* data, size_t size) noexcept nogil:
    cdef size_t covered = 0
    if size == 0:
        return Status.OK
    if content_look(content) < 0:
        return Status.ERR_MEMORY
    if offset < content.size:
        covered = min(size, content.size - offset)
    if _remember(content, False, offset, size, covered) < 0:
        return Status.ERR_MEMORY
    if offset + size > content.size and _resize(content, offset + size) < 0:
        _take_back(content)
        return Status.ERR_MEMORY
    memcpy(content.data + offset, data, size)
    if content.seen != NULL:
        if content.size > content.seen_size:
            memset(content.seen + content.seen_size, 0, content.size - content.seen_size)
            content.seen_size = content.size
        memcpy(content.seen + offset, data, size)
    return Status.OK


cdef int content_truncate(Content* content, uint64_t size) noexcept nogil:
    cdef size_t covered = content.size - size if size < content.size else 0
    if content_look(content) < 0:
        return Status.ERR_MEMORY
    if _remember(content, True, size, 0, covered) < 0:
        return Status.ERR_MEMORY
    if _resize(content, size) < 0:
        _take_back(content)
        return Status.ERR_MEMORY
    if content.seen != NULL and content.seen_size > size:
        content.seen_size = size
    return Status.OK


cdef class MemoryFile:
    """A file's content. Thread safety: none."""

    def __dealloc__(self):
        content_forget_undos(&self.content)
        free(self.content.seen)
        free(self.content.undos)
        free(self.content.data)

    cdef MemoryFile copy(self):
        """The same content, durable and not, of its own."""
        cdef MemoryFile twin = MemoryFile()
        cdef size_t dropped
        content_look(&self.content)
        dropped = self.content.dropped
        operations = self._take_all_back()
        twin._redo(0, <bytes>self.content.data[:self.content.size])
        content_forget_undos(&twin.content)
        for offset, data in operations:
            self._redo(offset, data)
            twin._redo(offset, data)
        self.content.dropped = twin.content.dropped = dropped
        return twin

    cdef list _take_all_back(self):
        """Back to what is durable. Returns the operations taken back: (offset, data; None for a truncation)."""
        cdef Content* content = &self.content
        cdef Undo* undo
        content_look(content)
        operations = []
        while content.undo_count:
            undo = &content.undos[content.undo_count - 1]
            data = None if undo.truncated else <bytes>content.data[undo.offset:undo.offset + undo.length]
            operations.append((undo.offset, data))
            _take_back(content)
        content.dropped = 0
        operations.reverse()
        return operations

    cdef sync_after_failure(self):
        """Make durable what came after the sync that failed; what that one dropped stays to be lost."""
        cdef Content* content = &self.content
        cdef size_t dropped = content.dropped
        cdef bytes held = <bytes>content.data[:content.size]
        for offset, data in self._take_all_back()[dropped:]:
            self._redo(offset, data)
        content_forget_undos(content)
        if <bytes>content.data[:content.size] != held:
            self._redo(0, held)
            self._redo(len(held), None)
            content.dropped = content.undo_count

    cdef crash(self, keep):
        """Take back what isn't durable, but for what `keep` (a random.Random) decides to have reached the disk."""
        cdef Content* content = &self.content
        operations = self._take_all_back()
        if keep is not None and operations:
            reached = keep.randrange(len(operations) + 1)
            if keep.random() < 0.5 or any(data is None for _, data in operations):
                self._keep_prefix(operations, reached, keep)
            else:
                self._keep_sectors(operations[:reached], keep)
            content_forget_undos(content)

    cdef _keep_prefix(self, operations, reached, keep):
        """The first operations are on the disk, and a part of the one after them."""
        for offset, data in operations[:reached]:
            self._redo(offset, data)
        if reached < len(operations) and operations[reached][1] is not None:
            offset, data = operations[reached]
            size = keep.randrange(len(data) + 1)
            self._redo(offset, data[:max(size - (offset + size) % SECTOR_BYTES, 0)])

    cdef _keep_sectors(self, operations, keep):
        """Each sector is as it was at some moment between the last sync and the crash, on its own."""
        versions = {}
        end = self.content.size
        for number, (offset, data) in enumerate(operations):
            end = max(end, offset + len(data))
            for sector in range(offset // SECTOR_BYTES, (offset + len(data) - 1) // SECTOR_BYTES + 1):
                if sector not in versions:
                    versions[sector] = keep.randrange(len(operations) + 1)
                if number < versions[sector]:
                    first = max(offset, sector * SECTOR_BYTES)
                    last = min(offset + len(data), (sector + 1) * SECTOR_BYTES)
                    self._redo(first, data[first - offset:last - offset])
        if end > self.content.size:
            self._redo_size(end)

    cdef _redo(self, uint64_t offset, bytes data):
        cdef int status
        if data is None:
            status = content_truncate(&self.content, offset)
        else:
            status = content_put(&self.content, offset, <const char*>data, len(data))
        if status < 0:
            raise MemoryError

    cdef _redo_size(self, uint64_t size):
        if _resize(&self.content, size) < 0:
            raise MemoryError
