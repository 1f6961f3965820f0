"""Looking ahead in a pipeline: the keys of the next commands come into the cache while one runs.

A store of a million keys misses the cache twice a command, longer than all else that the
command does. Only hints are derived here: what can't be read plainly is skipped.
"""

from libc.stdint cimport uint8_t, uint64_t

from everwrite.coding cimport Slice
from everwrite.store cimport Store

cdef enum:
    DISTANCE = 4           # commands between the one that runs and the farthest that is looked at
    PLAIN_ARGUMENTS_MAX = 8


cdef struct Lookahead:
    # hashes[i % DISTANCE] is that of the i-th command of the turn, from `executed` to `seen`.
    uint64_t hashes[DISTANCE]
    size_t executed
    size_t seen
    size_t at              # where the first command that wasn't looked at begins


cdef inline size_t _number(const uint8_t* data, size_t size, uint8_t mark, size_t* value) noexcept nogil:
    """Length of a header line such as `$16` CRLF at the start of `data`; 0 when it isn't one."""
    cdef size_t i = 1
    value[0] = 0
    if size < 4 or data[0] != mark:
        return 0
    while i < size and i < 9 and 48 <= data[i] <= 57:
        value[0] = value[0] * 10 + data[i] - 48
        i += 1
    return i + 2 if i + 1 < size and i > 1 and data[i] == 13 else 0


cdef inline size_t plain_command(const uint8_t* data, size_t size, Slice* key) noexcept nogil:
    """Length of the whole command at the start of `data`, and its first argument; 0 when it isn't plain."""
    cdef size_t count, length, header, i
    cdef size_t at = _number(data, size, 42, &count)
    if at == 0 or count < 2 or count > PLAIN_ARGUMENTS_MAX:
        return 0
    for i in range(count):
        header = _number(data + at, size - at, 36, &length)
        if header == 0 or size - at - header < length + 2:
            return 0
        at += header
        if i == 1:
            key.data = data + at
            key.size = length
        at += length + 2
    return at


cdef inline void look_ahead(
    Lookahead* ahead, Store store, const uint8_t* data, size_t size, size_t at
) noexcept nogil:
    """Call before the command that ends at `at` runs; the store is locked."""
    cdef size_t length
    cdef Slice key
    ahead.executed += 1
    if ahead.seen < ahead.executed or ahead.at < at:
        ahead.seen = ahead.executed
        ahead.at = at
    while ahead.seen < ahead.executed + DISTANCE - 1 and ahead.at < size:
        length = plain_command(data + ahead.at, size - ahead.at, &key)
        if length == 0:
            ahead.at = size
            break
        ahead.hashes[ahead.seen % DISTANCE] = store.prefetch(key)
        ahead.seen += 1
        ahead.at += length
    if ahead.seen > ahead.executed + 1:
        store.prefetch_entry(ahead.hashes[(ahead.executed + 1) % DISTANCE])
