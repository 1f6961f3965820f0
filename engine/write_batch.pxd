"""Batches: operations that are recorded, and then run together or not at all."""

from everwrite.mapping cimport StoreMapping


cdef class WriteBatch:
    cdef StoreMapping store
    # What to run, in order: a key and its new value; a key and None, to delete it; or a function and its arguments.
    cdef list keys
    cdef list values
    cdef bint over

    cdef int record(self, object what, object value) except -1


cdef class Recorder:
    cdef WriteBatch batch
    cdef object view
