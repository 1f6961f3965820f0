"""Copies of files, and checksums of whole files, without the GIL."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

import os

from everwrite.checksum cimport crc32c
from everwrite.files cimport Files, OpenMode
from everwrite.status cimport Status, check

cdef enum:
    CHUNK_BYTES = 1 << 20


cdef int64_t _pass_on(
    Files files, int source, int target, uint64_t at, uint8_t* chunk, uint32_t* crc
) noexcept nogil:
    """Read a chunk at offset `at` and write it to `target` (negative: nowhere). Returns its size, 0 at the end."""
    cdef int64_t got = files.read(source, at, chunk, CHUNK_BYTES)
    cdef int status
    if got <= 0:
        return got
    crc[0] = crc32c(crc[0], chunk, got)
    if target >= 0:
        status = files.write(target, at, chunk, got)
        if status < 0:
            return status
    return got


cdef tuple _walk(Files files, source, target, progress):
    cdef bytes source_name = os.fsencode(source)
    cdef bytes target_name = b"" if target is None else os.fsencode(target)
    cdef const char* raw
    cdef uint8_t* chunk = <uint8_t*>malloc(CHUNK_BYTES)
    cdef uint64_t at = 0
    cdef uint32_t crc = 0
    cdef int64_t got = 1
    cdef int reader = -1
    cdef int writer = -1
    cdef int status = Status.OK
    if chunk == NULL:
        raise MemoryError("out of memory for copying a file")
    try:
        raw = source_name
        reader = check(files.open(raw, OpenMode.OPEN_READ))
        if target is not None:
            raw = target_name
            writer = check(files.open(raw, OpenMode.OPEN_FRESH))
        while got:
            with nogil:
                got = _pass_on(files, reader, writer, at, chunk, &crc)
            if got < 0:
                check(<int>got)
            at += <uint64_t>got
            if progress is not None and got:
                progress(got)
        if writer >= 0:
            with nogil:
                status = files.sync(writer)
            check(status)
    finally:
        free(chunk)
        if reader >= 0:
            files.close(reader)
        if writer >= 0:
            files.close(writer)
    return at, crc


def copy_file(Files files not None, source, target, progress=None):
    """Copy the file `source` to `target` (replaced when it exists), durable but for its name.

    Returns (size in bytes, CRC-32C of what was read). `progress` is called with the bytes of each
    chunk. Raises StorageError.
    """
    return _walk(files, source, target, progress)


def checksum_file(Files files not None, path, progress=None):
    """(size in bytes, CRC-32C) of the file `path`. `progress` is called with the bytes of each chunk."""
    return _walk(files, path, None, progress)
