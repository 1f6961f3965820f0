"""The memory table: entries, their arena, and the hash index over them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from everwrite.coding cimport Slice, slice_of
from everwrite.memtable_order cimport order_free
from everwrite.pins cimport counted_init
from everwrite.prefetch cimport prefetch_line
from everwrite.status cimport Status
from everwrite.threads cimport pthread_mutex_destroy, pthread_mutex_init
from everwrite.undo cimport undo_missing, undo_present, undo_reserve

cdef extern from *:
    """
    #include <stdlib.h>
    #include <sys/mman.h>
    static void* ew_aligned(size_t alignment, size_t size) {
        void* at = NULL;
        return posix_memalign(&at, alignment, size) == 0 ? at : NULL;
    }
    /* Random access over hundreds of megabytes misses the TLB on every read unless pages are large. */
    static void ew_large_pages(void* at, size_t size) {
    #ifdef MADV_HUGEPAGE
        madvise(at, size, MADV_HUGEPAGE);
    #else
        (void)at; (void)size;
    #endif
    }
    """
    void* ew_aligned(size_t alignment, size_t size) noexcept nogil
    void ew_large_pages(void* at, size_t size) noexcept nogil


cdef enum:
    CHUNK_FIRST = 16 << 10
    CHUNK_LARGEST = 2 << 20
    INLINE_LIMIT = 4096               # larger values live outside of the arena from the start
    SEGMENT_HEADER = 64
    SEGMENT_FIRST_BITS = 4
    SEGMENT_BITS = 10
    DEPTH_LIMIT = 22                  # directory bits must not meet the bits that choose a slot
    EXTERNAL_ROOM = 64 << 10
    MALLOC_OVERHEAD = 16
    PREFETCH_DISTANCE = 12


cdef struct Segment:
    # Open addressing with linear probing. A slot is 16 tag bits of the hash over a 48-bit address; 0 is free.
    uint32_t count
    uint32_t depth                     # how many upper hash bits all its entries share
    uint32_t bits


cdef inline uint64_t* _slots(Segment* segment) noexcept nogil:
    return <uint64_t*>(<uint8_t*>segment + SEGMENT_HEADER)


cdef inline Segment* _segment(uint64_t word) noexcept nogil:
    return <Segment*>(word & ~<uint64_t>63)


cdef inline size_t _directory_index(Memtable* t, uint64_t key_hash) noexcept nogil:
    return (key_hash >> 1) >> (63 - t.depth)


cdef Segment* _segment_new(Memtable* t, uint32_t bits, uint32_t depth) noexcept nogil:
    """A segment without entries. Those of the usual size lie in the arena, for its large pages, and are reused."""
    cdef size_t size = SEGMENT_HEADER + (<size_t>8 << bits)
    cdef Segment* segment
    if bits != SEGMENT_BITS:
        segment = <Segment*>ew_aligned(64, size)
        if segment != NULL:
            t.memory += size
    elif t.free_segments != NULL:
        segment = <Segment*>t.free_segments
        t.free_segments = (<void**>segment)[0]
    else:
        segment = <Segment*>((<uint64_t>_allocate(t, size + 56) + 56) & ~<uint64_t>63)
    if segment == NULL:
        return NULL
    memset(segment, 0, size)
    segment.bits = bits
    segment.depth = depth
    return segment


cdef void _segment_free(Memtable* t, Segment* segment) noexcept nogil:
    if segment.bits == SEGMENT_BITS:
        (<void**>segment)[0] = t.free_segments
        t.free_segments = segment
    else:
        t.memory -= SEGMENT_HEADER + (<size_t>8 << segment.bits)
        free(segment)


cdef Memtable* memtable_new(uint64_t seed) noexcept nogil:
    cdef Memtable* t = <Memtable*>calloc(1, sizeof(Memtable))
    cdef Segment* segment
    if t == NULL:
        return NULL
    t.directory = <uint64_t*>malloc(sizeof(uint64_t))
    segment = _segment_new(t, SEGMENT_FIRST_BITS, 0)
    if t.directory == NULL or segment == NULL:
        free(t.directory)
        free(segment)
        free(t)
        return NULL
    t.directory[0] = <uint64_t>segment | segment.bits
    t.seed = seed
    t.chunk_size = CHUNK_FIRST
    pthread_mutex_init(&t.order_lock, NULL)
    counted_init(&t.counted, _memtable_drop)
    return t


cdef void _memtable_drop(void* table) noexcept nogil:
    cdef Memtable* t = <Memtable*>table
    cdef size_t size = <size_t>1 << t.depth
    cdef size_t i = 0
    cdef size_t j
    cdef Segment* segment
    cdef Entry* e
    cdef Chunk* chunk
    while i < size:
        segment = _segment(t.directory[i])
        for j in range(<size_t>1 << segment.bits):
            if _slots(segment)[j] != 0:
                e = slot_entry(_slots(segment)[j])
                if e.key_flags & ENTRY_EXTERNAL:
                    _external_free(t, e)
        i += size >> segment.depth
        _segment_free(t, segment)
    free(t.directory)
    while t.chunks != NULL:
        chunk = t.chunks
        t.chunks = chunk.next
        free(chunk)
    order_free(t)
    pthread_mutex_destroy(&t.order_lock)
    free(t)


cdef uint8_t* _allocate(Memtable* t, size_t size) noexcept nogil:
    """Bytes from the arena, at addresses of at most 48 bits; NULL when out of memory."""
    cdef Chunk* chunk
    cdef size_t chunk_size
    cdef uint8_t* at
    size = (size + 7) & ~<size_t>7
    if <size_t>(t.end - t.at) < size:
        chunk_size = t.chunk_size
        if chunk_size < CHUNK_LARGEST:
            t.chunk_size *= 2
        if chunk_size < size + sizeof(Chunk):
            chunk_size = size + sizeof(Chunk)
        chunk = <Chunk*>ew_aligned(CHUNK_LARGEST if chunk_size == CHUNK_LARGEST else 64, chunk_size)
        if chunk == NULL:
            return NULL
        if (<uint64_t>chunk + chunk_size) >> 48:
            free(chunk)
            return NULL
        if chunk_size == CHUNK_LARGEST:
            ew_large_pages(chunk, chunk_size)
        chunk.next = t.chunks
        t.chunks = chunk
        t.at = <uint8_t*>chunk + sizeof(Chunk)
        t.end = <uint8_t*>chunk + chunk_size
    at = t.at
    t.at += size
    t.memory += size
    return at


cdef inline uint8_t* _value_place(Entry* e) noexcept nogil:
    return <uint8_t*>e + sizeof(Entry) + (e.key_flags & KEY_SIZE_MASK)


cdef void _external_free(Memtable* t, Entry* e) noexcept nogil:
    cdef ExternalValue external
    memcpy(&external, _value_place(e), sizeof(ExternalValue))
    free(external.data)
    t.memory -= external.capacity + MALLOC_OVERHEAD
    e.key_flags &= ~<uint32_t>ENTRY_EXTERNAL


cdef int _external_make(Slice value, Slice tail, ExternalValue* external) noexcept nogil:
    """A copy of the value, and its tail, in memory of its own, with room to grow."""
    cdef size_t size = value.size + tail.size
    cdef size_t room = size // 8
    external.capacity = (size + (room if room < EXTERNAL_ROOM else EXTERNAL_ROOM) + 15) & ~<uint64_t>15
    external.data = <uint8_t*>malloc(external.capacity)
    if external.data == NULL:
        return Status.ERR_MEMORY
    memcpy(external.data, value.data, value.size)
    if tail.size:
        memcpy(external.data + value.size, tail.data, tail.size)
    return Status.OK


cdef void _external_attach(Memtable* t, Entry* e, const ExternalValue* external, size_t size) noexcept nogil:
    memcpy(_value_place(e), external, sizeof(ExternalValue))
    e.key_flags |= ENTRY_EXTERNAL
    e.value_size = <uint32_t>size
    t.memory += external.capacity + MALLOC_OVERHEAD


cdef int _store_external(Memtable* t, Entry* e, Slice value, Slice tail) noexcept nogil:
    """Copy the value before what it replaces is freed, for it may lie in that."""
    cdef ExternalValue external
    if _external_make(value, tail, &external) < 0:
        return Status.ERR_MEMORY
    if e.key_flags & ENTRY_EXTERNAL:
        _external_free(t, e)
    _external_attach(t, e, &external, value.size + tail.size)
    return Status.OK


cdef int _store_parts(Memtable* t, Entry* e, Slice head, Slice tail) noexcept nogil:
    """Give an entry a large value that comes in two parts, in place when it fits."""
    cdef ExternalValue external
    cdef size_t size = head.size + tail.size
    if e.key_flags & ENTRY_EXTERNAL:
        memcpy(&external, _value_place(e), sizeof(ExternalValue))
        if size <= external.capacity and size >= external.capacity // 4:
            # The tail may stand here already, a few bytes away.
            memmove(external.data + head.size, tail.data, tail.size)
            memcpy(external.data, head.data, head.size)
            e.value_size = <uint32_t>size
            return Status.OK
    return _store_external(t, e, head, tail)


cdef int _store_value(Memtable* t, Entry* e, Slice value) noexcept nogil:
    """Give an entry a new value, in place when it fits. `value` may lie in the old one."""
    cdef ExternalValue external
    cdef uint8_t* place = _value_place(e)
    if not e.key_flags & ENTRY_EXTERNAL:
        if value.size <= e.inline_capacity:
            if value.size:
                memmove(place, value.data, value.size)
        elif _store_external(t, e, value, slice_of(NULL, 0)) < 0:
            return Status.ERR_MEMORY
    else:
        memcpy(&external, place, sizeof(ExternalValue))
        if value.size <= e.inline_capacity:
            if value.size:
                memcpy(place, value.data, value.size)
            free(external.data)
            t.memory -= external.capacity + MALLOC_OVERHEAD
            e.key_flags &= ~<uint32_t>ENTRY_EXTERNAL
        elif value.size <= external.capacity and value.size >= external.capacity // 4:
            memmove(external.data, value.data, value.size)
        elif _store_external(t, e, value, slice_of(NULL, 0)) < 0:
            return Status.ERR_MEMORY
    e.value_size = <uint32_t>value.size
    return Status.OK


cdef Entry* memtable_find(Memtable* t, uint64_t key_hash, Slice key) noexcept nogil:
    cdef uint64_t word = t.directory[_directory_index(t, key_hash)]
    cdef uint64_t* slots = _slots(_segment(word))
    cdef uint64_t mask = (<uint64_t>1 << (word & 63)) - 1
    cdef uint64_t i = (key_hash >> 32) & mask
    cdef uint64_t tag = key_hash << 48
    cdef uint64_t slot
    cdef Entry* e
    while True:
        slot = slots[i]
        if slot == 0:
            return NULL
        if (slot ^ tag) >> 48 == 0:
            e = slot_entry(slot)
            prefetch_line(<uint8_t*>e + 64)
            prefetch_line(<uint8_t*>e + 128)
            if (
                e.hash == <uint32_t>(key_hash >> 32)
                and (e.key_flags & KEY_SIZE_MASK) == key.size
                and memcmp(<uint8_t*>e + sizeof(Entry), key.data, key.size) == 0
            ):
                return e
        i = (i + 1) & mask


cdef int memtable_walk(Memtable* t, uint64_t* place, const uint64_t** slots, size_t* count) noexcept nogil:
    cdef Segment* segment = _segment(t.directory[_directory_index(t, place[0])])
    slots[0] = _slots(segment)
    count[0] = <size_t>1 << segment.bits
    # The upper bits that all entries of a segment share say where the next one begins, however the table has grown.
    place[0] = 0 if segment.depth == 0 else ((place[0] >> (64 - segment.depth)) + 1) << (64 - segment.depth)
    return place[0] != 0


cdef void memtable_prefetch_slot(Memtable* t, uint64_t key_hash) noexcept nogil:
    cdef uint64_t word = t.directory[_directory_index(t, key_hash)]
    prefetch_line(&_slots(_segment(word))[(key_hash >> 32) & ((<uint64_t>1 << (word & 63)) - 1)])


cdef void memtable_prefetch_entry(Memtable* t, uint64_t key_hash) noexcept nogil:
    cdef uint64_t word = t.directory[_directory_index(t, key_hash)]
    cdef uint64_t* slots = _slots(_segment(word))
    cdef uint64_t mask = (<uint64_t>1 << (word & 63)) - 1
    cdef uint64_t i = (key_hash >> 32) & mask
    cdef const uint8_t* place
    while slots[i] != 0:
        if (slots[i] ^ (key_hash << 48)) >> 48 == 0:
            place = <const uint8_t*>slot_entry(slots[i])
            prefetch_line(place)
            prefetch_line(place + 64)
            prefetch_line(place + 128)
            return
        i = (i + 1) & mask


cdef inline void _place(Segment* segment, uint32_t entry_hash, uint64_t slot) noexcept nogil:
    cdef uint64_t mask = (<uint64_t>1 << segment.bits) - 1
    cdef uint64_t i = entry_hash & mask
    while _slots(segment)[i] != 0:
        i = (i + 1) & mask
    _slots(segment)[i] = slot
    segment.count += 1


cdef void _point_directory(Memtable* t, uint32_t entry_hash, Segment* segment) noexcept nogil:
    """Let the directory's entries for `segment`, which holds `entry_hash`, lead to it."""
    cdef size_t length = <size_t>1 << (t.depth - segment.depth)
    cdef size_t start = ((<uint64_t>entry_hash << 31) >> (63 - segment.depth)) * length
    cdef size_t i
    for i in range(start, start + length):
        t.directory[i] = <uint64_t>segment | segment.bits


cdef void _spread(Segment* source, Segment* zeros, Segment* ones) noexcept nogil:
    """Move all slots of `source`; those whose next hash bit is set go to `ones`, when there is such a segment."""
    cdef size_t size = <size_t>1 << source.bits
    cdef uint64_t* slots = _slots(source)
    cdef size_t i
    cdef uint32_t entry_hash
    for i in range(size):
        if i + PREFETCH_DISTANCE < size and slots[i + PREFETCH_DISTANCE] != 0:
            prefetch_line(slot_entry(slots[i + PREFETCH_DISTANCE]))
        if slots[i] == 0:
            continue
        entry_hash = slot_entry(slots[i]).hash
        if ones != NULL and (entry_hash >> (31 - source.depth)) & 1:
            _place(ones, entry_hash, slots[i])
        else:
            _place(zeros, entry_hash, slots[i])


cdef int _double_directory(Memtable* t) noexcept nogil:
    cdef size_t size = <size_t>1 << t.depth
    cdef uint64_t* grown = <uint64_t*>malloc(2 * size * sizeof(uint64_t))
    cdef size_t i
    if grown == NULL:
        return Status.ERR_MEMORY
    for i in range(2 * size):
        grown[i] = t.directory[i >> 1]
    free(t.directory)
    t.directory = grown
    t.depth += 1
    t.memory += size * sizeof(uint64_t)
    return Status.OK


cdef int _grow(Memtable* t, uint32_t entry_hash, Segment* segment) noexcept nogil:
    """Make room in the full segment that `entry_hash` belongs to: double it while it is small, else split it."""
    cdef Segment* zeros
    cdef Segment* ones = NULL
    if segment.bits < SEGMENT_BITS or segment.depth == DEPTH_LIMIT:
        zeros = _segment_new(t, segment.bits + 1, segment.depth)
        if zeros == NULL:
            return Status.ERR_MEMORY
    else:
        if segment.depth == t.depth and _double_directory(t) < 0:
            return Status.ERR_MEMORY
        zeros = _segment_new(t, SEGMENT_BITS, segment.depth + 1)
        if zeros == NULL:
            return Status.ERR_MEMORY
        ones = _segment_new(t, SEGMENT_BITS, segment.depth + 1)
        if ones == NULL:
            _segment_free(t, zeros)
            return Status.ERR_MEMORY
    _spread(segment, zeros, ones)
    if ones == NULL:
        _point_directory(t, entry_hash, zeros)
    else:
        _point_directory(t, entry_hash & ~(<uint32_t>1 << (31 - segment.depth)), zeros)
        _point_directory(t, entry_hash | (<uint32_t>1 << (31 - segment.depth)), ones)
    _segment_free(t, segment)
    return Status.OK


cdef int _reserve_pending(Memtable* t) noexcept nogil:
    cdef size_t capacity
    cdef Entry** grown
    if t.pending_count < t.pending_capacity:
        return Status.OK
    capacity = t.pending_capacity * 2 if t.pending_capacity else 16
    grown = <Entry**>realloc(t.pending, capacity * sizeof(void*))
    if grown == NULL:
        return Status.ERR_MEMORY
    t.memory += (capacity - t.pending_capacity) * sizeof(void*)
    t.pending = grown
    t.pending_capacity = capacity
    return Status.OK


cdef Entry* _insert(Memtable* t, uint64_t key_hash, Slice key, size_t inline_capacity) noexcept nogil:
    """A new entry with an empty value. NULL when out of memory, and then nothing has changed."""
    cdef Segment* segment = _segment(t.directory[_directory_index(t, key_hash)])
    cdef Entry* e
    while (segment.count + 1) * 4 > <uint64_t>3 << segment.bits:
        if _grow(t, <uint32_t>(key_hash >> 32), segment) < 0:
            return NULL
        segment = _segment(t.directory[_directory_index(t, key_hash)])
    if _reserve_pending(t) < 0:
        return NULL
    inline_capacity = (inline_capacity + 7) & ~<size_t>7
    e = <Entry*>_allocate(t, sizeof(Entry) + key.size + inline_capacity)
    if e == NULL:
        return NULL
    e.hash = <uint32_t>(key_hash >> 32)
    e.key_flags = <uint32_t>key.size
    e.value_size = 0
    e.inline_capacity = <uint32_t>inline_capacity
    memcpy(<uint8_t*>e + sizeof(Entry), key.data, key.size)
    _place(segment, e.hash, (key_hash << 48) | <uint64_t>e)
    t.pending[t.pending_count] = e
    t.pending_count += 1
    t.count += 1
    return e


cdef inline size_t _slack(size_t value_size) noexcept nogil:
    """Bytes to set aside for a value: counters and contexts grow by a few bytes at each update."""
    if value_size > INLINE_LIMIT:
        return sizeof(ExternalValue)
    return value_size + value_size // 16 + sizeof(ExternalValue)


cdef int _put_new(Memtable* t, uint64_t key_hash, Slice key, Slice value, Slice tail) noexcept nogil:
    cdef size_t size = value.size + tail.size
    cdef ExternalValue external
    cdef Entry* e
    external.data = NULL
    # An entry in the index is there for good, so whatever can fail comes first.
    if t.undo != NULL and undo_reserve(t.undo) < 0:
        return Status.ERR_MEMORY
    if size > INLINE_LIMIT and _external_make(value, tail, &external) < 0:
        return Status.ERR_MEMORY
    e = _insert(t, key_hash, key, _slack(size))
    if e == NULL:
        free(external.data)
        return Status.ERR_MEMORY
    if t.undo != NULL:
        undo_missing(t.undo, e)
    if external.data != NULL:
        _external_attach(t, e, &external, size)
        return Status.OK
    return _store_value(t, e, value)


cdef inline int _note(Memtable* t, Entry* e) noexcept nogil:
    return Status.OK if t.undo == NULL else undo_present(t.undo, e, entry_removed(e), entry_value(e))


cdef inline void _set_present(Memtable* t, Entry* e) noexcept nogil:
    if e.key_flags & ENTRY_REMOVED:
        e.key_flags &= ~<uint32_t>ENTRY_REMOVED
        t.removed -= 1


cdef int _set_value(Memtable* t, Entry* e, Slice value) noexcept nogil:
    if _store_value(t, e, value) < 0:
        return Status.ERR_MEMORY
    _set_present(t, e)
    return Status.OK


cdef void _set_removed(Memtable* t, Entry* e) noexcept nogil:
    if e.key_flags & ENTRY_EXTERNAL:
        _external_free(t, e)
    e.value_size = 0
    if not e.key_flags & ENTRY_REMOVED:
        e.key_flags |= ENTRY_REMOVED
        t.removed += 1


cdef int memtable_put(Memtable* t, uint64_t key_hash, Slice key, Slice value) noexcept nogil:
    """Set a value. ERR_TOO_LARGE or ERR_MEMORY: nothing has changed."""
    if key.size > KEY_SIZE_LIMIT or value.size > VALUE_SIZE_LIMIT:
        return Status.ERR_TOO_LARGE
    return memtable_put_at(t, memtable_find(t, key_hash, key), key_hash, key, value)


cdef int memtable_put_at(Memtable* t, Entry* e, uint64_t key_hash, Slice key, Slice value) noexcept nogil:
    if e == NULL:
        return _put_new(t, key_hash, key, value, slice_of(NULL, 0))
    if _note(t, e) < 0:
        return Status.ERR_MEMORY
    return _set_value(t, e, value)


cdef int memtable_put_parts(Memtable* t, uint64_t key_hash, Slice key, Slice head, Slice tail) noexcept nogil:
    cdef Entry* e
    if key.size > KEY_SIZE_LIMIT or head.size + tail.size > VALUE_SIZE_LIMIT:
        return Status.ERR_TOO_LARGE
    e = memtable_find(t, key_hash, key)
    if e == NULL:
        return _put_new(t, key_hash, key, head, tail)
    if _note(t, e) < 0 or _store_parts(t, e, head, tail) < 0:
        return Status.ERR_MEMORY
    _set_present(t, e)
    return Status.OK


cdef int memtable_remove(Memtable* t, uint64_t key_hash, Slice key) noexcept nogil:
    """Leave a marker that hides the key's older values, here and in the tables below."""
    cdef Entry* e
    if key.size > KEY_SIZE_LIMIT:
        return Status.ERR_TOO_LARGE
    e = memtable_find(t, key_hash, key)
    if e != NULL:
        if _note(t, e) < 0:
            return Status.ERR_MEMORY
    else:
        if t.undo != NULL and undo_reserve(t.undo) < 0:
            return Status.ERR_MEMORY
        e = _insert(t, key_hash, key, sizeof(ExternalValue))
        if e == NULL:
            return Status.ERR_MEMORY
        if t.undo != NULL:
            undo_missing(t.undo, e)
    _set_removed(t, e)
    return Status.OK


cdef int memtable_restore(Memtable* t, Entry* e, bint removed, Slice value) noexcept nogil:
    if not removed:
        return _set_value(t, e, value)
    _set_removed(t, e)
    return Status.OK
