"""A connected client as Python sees it."""

cimport cython
from libc.stdint cimport uint64_t

from everwrite.server.connection cimport Connection


@cython.final
cdef class Client:
    cdef Connection* connection         # NULL once it is closed and reaped
    cdef readonly uint64_t id
    cdef readonly str address
    cdef readonly str local_address
    cdef readonly double created
    cdef public str name
    cdef public str lib_name
    cdef public str lib_version
