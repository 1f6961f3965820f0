"""When writes are refused: for good after a failure, and for want of space until there is some.

Reads go on in both cases: what memory and tables hold is whole, as nothing is merged before the log has room
for it, though with durability `always` some of it may have been acknowledged to nobody.
"""

from everwrite.scans cimport ScannedKeyspace

cdef enum Shortage:
    NO_SPACE_TO_FLUSH = 1
    NO_SPACE_TO_COMPACT = 2
    NO_SPACE_FOR_IDENTITY = 4


cdef class RefusingKeyspace(ScannedKeyspace):
    cdef readonly object path
    cdef bint closed
    cdef object failure                 # the exception after which no write is accepted any more
    cdef int lacking                    # Shortage bits: which work waits for space on the disk
    cdef object shortage                # the newest exception behind those
    cdef double retry_at                # when to try that work again; time.monotonic
    cdef bint log_full                  # the log had no room for the newest write

    cdef int _check(self, int status) except? -1
