"""Read side of the write-ahead log."""

from libc.stdint cimport uint64_t

from everwrite.coding cimport Buffer, Slice
from everwrite.files cimport Files


cdef class WalReader:
    # Reads frames in order from `position`, never beyond the limit that each call names.
    # Thread safety: one thread at a time; the writer may go on beside it.
    cdef readonly uint64_t position   # of the next frame, or of the header of the segment that it begins

    cdef Files _files
    cdef bytes _folder
    cdef const char* _folder_path     # the bytes of _folder, for use without the GIL
    cdef uint64_t _start              # of the segment that `position` lies in, or at whose end it is
    cdef int _handle                  # of that segment; negative: not open yet
    cdef bint _closed
    cdef Buffer _buffer               # what was read ahead of that segment
    cdef uint64_t _buffered_from      # position of its first byte

    # `limit` is a position between frames, such as a writer's `written` or `durable`.
    # 1: *payload is the next frame (borrowed until the next call), `position` moved behind it.
    # 0: nothing more below `limit`. ERR_CUT: the log was cut past `position`. ERR_CORRUPT with
    # segment and offset, or ERR_IO. After an error `position` stays at the frame that failed.
    cdef int next(self, uint64_t limit, Slice* payload) noexcept nogil
    # def read(self, uint64_t limit) -> bytes | None
    # def close(self)

    cdef int _open(self) noexcept nogil
    cdef int _go_on(self) noexcept nogil
    cdef int _fill(self, size_t need, uint64_t limit) noexcept nogil
    cdef int _corrupt(self, const char* reason) noexcept nogil
