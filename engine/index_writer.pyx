"""Write side of a table's hash index.

Lines are filled in the order of the hashes; what doesn't fit its home line goes to the next one that has room, as
in a hash table with buckets and linear probing whose buckets are kept in order (Amble and Knuth, "Ordered hash
tables", 1974), so that a search knows when to stop.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from everwrite.coding cimport buffer_free, buffer_init, buffer_reserve, put_bytes, store_u64
from everwrite.files cimport Files, OpenMode
from everwrite.status cimport Status, fault_corrupt
from everwrite.table_format cimport (
    LINE_HEADER,
    LINE_SIZE,
    PAGE_LINES,
    SPILL_ALL,
    SPILL_FROM,
    SPILL_NONE,
    full_product,
    index_line_entries,
    index_lines,
    index_location_bits,
    load_word,
)

cdef enum:
    READ_ROOM = 8                      # packed entries are written as words, which may reach beyond their line
    RUN_BUFFER = 4096                  # entries that are read at once from a spilled run
    SORT_BITS = 16                     # of the hash, for the first step of sorting


cdef void _sort_few(IndexEntry* entries, uint64_t count) noexcept nogil:
    """Few entries, but for keys that somebody chose to share their hashes' upper bits: heapsort bounds those."""
    cdef uint64_t i
    cdef uint64_t j
    cdef IndexEntry e
    if count > 64:
        _heap_sort(entries, count)
        return
    for i in range(1, count):
        e = entries[i]
        j = i
        while j > 0 and entries[j - 1].hash > e.hash:
            entries[j] = entries[j - 1]
            j -= 1
        entries[j] = e


cdef void _sift(IndexEntry* entries, uint64_t root, uint64_t end) noexcept nogil:
    cdef IndexEntry e = entries[root]
    cdef uint64_t child = 2 * root + 1
    while child < end:
        if child + 1 < end and entries[child].hash < entries[child + 1].hash:
            child += 1
        if entries[child].hash <= e.hash:
            break
        entries[root] = entries[child]
        root = child
        child = 2 * root + 1
    entries[root] = e


cdef void _heap_sort(IndexEntry* entries, uint64_t count) noexcept nogil:
    cdef uint64_t i = count // 2
    cdef IndexEntry e
    while i > 0:
        i -= 1
        _sift(entries, i, count)
    i = count - 1
    while i > 0:
        e = entries[0]
        entries[0] = entries[i]
        entries[i] = e
        _sift(entries, 0, i)
        i -= 1


cdef inline bint _runs_before(const Run* a, const Run* b) noexcept nogil:
    return a.at.hash < b.at.hash


cdef void _sift_run(Run** heap, size_t root, size_t end) noexcept nogil:
    cdef Run* run = heap[root]
    cdef size_t child = 2 * root + 1
    while child < end:
        if child + 1 < end and _runs_before(heap[child + 1], heap[child]):
            child += 1
        if not _runs_before(heap[child], run):
            break
        heap[root] = heap[child]
        root = child
        child = 2 * root + 1
    heap[root] = run


cdef void _put_in_line(
    uint8_t* line, size_t line_entries, size_t location_bits, uint64_t fraction, uint64_t location
) noexcept nogil:
    cdef size_t at = line[0] * (location_bits + 4)
    cdef uint8_t* place = line + LINE_HEADER + line_entries + (at >> 3)
    cdef uint64_t packed = (location << 4) | ((fraction >> 52) & 15)
    line[LINE_HEADER + line[0]] = <uint8_t>(fraction >> 56)
    store_u64(place, load_word(place) | (packed << (at & 7)))
    line[0] += 1


cdef class IndexWriter:
    """The index of one table. `scratch` is a file for what exceeds `capacity` entries; it is removed in the end."""

    def __cinit__(self, *args):
        self.file = -1
        buffer_init(&self.entries)
        buffer_init(&self.page)

    def __init__(self, Files files not None, bytes scratch not None, size_t capacity):
        self.files = files
        self.scratch = scratch
        self.scratch_path = scratch
        self.capacity = capacity

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.run_count):
            free(self.runs[i].memory)
        free(self.runs)
        free(self.heap)
        buffer_free(&self.entries)
        buffer_free(&self.page)
        if self.file >= 0:
            self.files.close(self.file)
            # What stays behind is removed when the map is opened.
            self.files.unlink(self.scratch_path)

    cdef int add(self, uint64_t hash, uint64_t location) noexcept nogil:
        cdef IndexEntry e
        cdef int status
        if self.entries.size >= self.capacity * sizeof(IndexEntry):
            status = self._spill()
            if status < 0:
                return status
        e.hash = hash
        e.location = location
        self.count += 1
        return Status.ERR_MEMORY if put_bytes(&self.entries, &e, sizeof(IndexEntry)) < 0 else Status.OK

    cdef int _sort(self) noexcept nogil:
        """Sort what is in memory: a counting sort by upper bits, then the few that share those."""
        cdef IndexEntry* entries = <IndexEntry*>self.entries.data
        cdef uint64_t count = self.entries.size // sizeof(IndexEntry)
        cdef uint32_t bits = 1
        cdef uint64_t i
        cdef uint64_t bucket
        cdef IndexEntry* sorted
        cdef uint64_t* starts
        while bits < SORT_BITS and count >> (bits + 3):
            bits += 1
        sorted = <IndexEntry*>malloc(count * sizeof(IndexEntry))
        starts = <uint64_t*>calloc((<size_t>1 << bits) + 2, sizeof(uint64_t))
        if sorted == NULL or starts == NULL:
            free(sorted)
            free(starts)
            return Status.ERR_MEMORY
        # starts[b + 2] counts, then starts[b + 1] tells where to put the bucket's next entry.
        for i in range(count):
            starts[(entries[i].hash >> (64 - bits)) + 2] += 1
        for i in range(2, (<size_t>1 << bits) + 2):
            starts[i] += starts[i - 1]
        for i in range(count):
            bucket = entries[i].hash >> (64 - bits)
            sorted[starts[bucket + 1]] = entries[i]
            starts[bucket + 1] += 1
        for i in range(<size_t>1 << bits):
            _sort_few(sorted + starts[i], starts[i + 1] - starts[i])
        free(starts)
        free(self.entries.data)
        self.entries.data = <uint8_t*>sorted
        self.entries.capacity = count * sizeof(IndexEntry)
        return Status.OK

    cdef int _new_run(self) noexcept nogil:
        cdef Run* runs = <Run*>realloc(self.runs, (self.run_count + 1) * sizeof(Run))
        if runs == NULL:
            return Status.ERR_MEMORY
        self.runs = runs
        memset(&runs[self.run_count], 0, sizeof(Run))
        self.run_count += 1
        return Status.OK

    cdef int _spill(self) noexcept nogil:
        cdef Run* run
        cdef int status = self._sort()
        if status == Status.OK and self.file < 0:
            status = self.files.open(self.scratch_path, OpenMode.OPEN_FRESH)
            if status >= 0:
                self.file = status
                status = Status.OK
        if status == Status.OK:
            status = self._new_run()
        if status == Status.OK:
            status = self.files.write(self.file, self.file_size, self.entries.data, self.entries.size)
        if status < 0:
            return status
        run = &self.runs[self.run_count - 1]
        run.offset = self.file_size
        run.left = self.entries.size // sizeof(IndexEntry)
        self.file_size += self.entries.size
        self.entries.size = 0
        return Status.OK

    cdef int _refill(self, Run* run) noexcept nogil:
        """Read on in a spilled run. Its bytes came from this process: what is missing is a failure of the device."""
        cdef size_t count = RUN_BUFFER if run.left > RUN_BUFFER else run.left
        cdef int64_t got
        if run.memory == NULL:
            run.memory = <IndexEntry*>malloc(RUN_BUFFER * sizeof(IndexEntry))
            if run.memory == NULL:
                return Status.ERR_MEMORY
        got = self.files.read(self.file, run.offset, run.memory, count * sizeof(IndexEntry))
        if got < 0:
            return <int>got
        if <uint64_t>got < count * sizeof(IndexEntry):
            return fault_corrupt(self.scratch_path, run.offset, "the file ends within a run")
        run.at = run.memory
        run.end = run.memory + count
        run.offset += got
        run.left -= count
        return Status.OK

    cdef int arrange(self, uint64_t block_count) noexcept nogil:
        cdef Run* run
        cdef size_t i
        cdef int status = self._sort()
        if status == Status.OK:
            status = self._new_run()
        if status < 0:
            return status
        run = &self.runs[self.run_count - 1]
        run.at = <IndexEntry*>self.entries.data
        run.end = run.at + self.entries.size // sizeof(IndexEntry)
        self.heap = <Run**>malloc(self.run_count * sizeof(void*))
        if self.heap == NULL:
            return Status.ERR_MEMORY
        for i in range(self.run_count):
            run = &self.runs[i]
            if run.left > 0:
                status = self._refill(run)
                if status < 0:
                    return status
            if run.at < run.end:
                self.heap[self.heap_size] = run
                self.heap_size += 1
        i = self.heap_size
        while i > 0:
            i -= 1
            _sift_run(self.heap, i, self.heap_size)
        self.location_bits = index_location_bits(block_count)
        self.line_entries = index_line_entries(<uint32_t>self.location_bits)
        self.lines = index_lines(self.count, <uint32_t>self.line_entries)
        self.page_count = (self.lines - 1) // PAGE_LINES + 1
        return Status.OK

    cdef int _advance(self) noexcept nogil:
        """Leave the entry with the smallest hash behind."""
        cdef Run* run = self.heap[0]
        cdef int status
        run.at += 1
        if run.at == run.end:
            if run.left > 0:
                status = self._refill(run)
                if status < 0:
                    return status
            else:
                self.heap_size -= 1
                self.heap[0] = self.heap[self.heap_size]
        if self.heap_size > 1:
            _sift_run(self.heap, 0, self.heap_size)
        return Status.OK

    cdef int _reserve_lines(self, size_t lines) noexcept nogil:
        """Let the page have at least so many lines; new ones are empty."""
        cdef size_t size = lines * LINE_SIZE
        if size <= self.page.size:
            return Status.OK
        if buffer_reserve(&self.page, size - self.page.size + READ_ROOM) < 0:
            return Status.ERR_MEMORY
        memset(self.page.data + self.page.size, 0, size - self.page.size + READ_ROOM)
        self.page.size = size
        return Status.OK

    cdef void _mark_spill(self, uint64_t home, uint64_t place, unsigned upper) noexcept nogil:
        """An entry lies in a later line than its home: tell the lines that it passed."""
        cdef uint8_t* line = self.page.data + home * LINE_SIZE
        cdef uint64_t i
        if line[1] == SPILL_NONE:
            line[1] = <uint8_t>(SPILL_FROM + (upper if upper < 255 - SPILL_FROM else 255 - SPILL_FROM))
        for i in range(home + 1, place):
            self.page.data[i * LINE_SIZE + 1] = SPILL_ALL

    cdef int make_page(self) noexcept nogil:
        cdef uint64_t first = self.next_page * PAGE_LINES
        cdef uint64_t homes = PAGE_LINES if self.lines - first > PAGE_LINES else self.lines - first
        cdef uint64_t place = 0
        cdef uint64_t home
        cdef uint64_t fraction = 0
        cdef int status
        self.next_page += 1
        self.page.size = 0
        if self._reserve_lines(homes) < 0:
            return Status.ERR_MEMORY
        while self.heap_size > 0:
            home = full_product(self.heap[0].at.hash, self.lines, &fraction) - first
            if home >= homes:
                break
            if place < home:
                place = home
            if self.page.data[place * LINE_SIZE] == self.line_entries:
                place += 1
                if self._reserve_lines(place + 1) < 0:
                    return Status.ERR_MEMORY
            if place > home:
                self._mark_spill(home, place, <unsigned>(fraction >> 56))
            _put_in_line(
                self.page.data + place * LINE_SIZE, self.line_entries, self.location_bits, fraction,
                self.heap[0].at.location,
            )
            status = self._advance()
            if status < 0:
                return status
        return Status.OK
