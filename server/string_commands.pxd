"""Commands on strings and counters."""

from everwrite.server.commands cimport Call
from everwrite.store cimport Store


cdef void run_get(Store store, Call* call) noexcept nogil
cdef void run_set(Store store, Call* call) noexcept nogil
cdef void run_mget(Store store, Call* call) noexcept nogil
cdef void run_mset(Store store, Call* call) noexcept nogil
cdef void run_getdel(Store store, Call* call) noexcept nogil
cdef void run_strlen(Store store, Call* call) noexcept nogil
cdef void run_incr(Store store, Call* call) noexcept nogil
cdef void run_decr(Store store, Call* call) noexcept nogil
cdef void run_incrby(Store store, Call* call) noexcept nogil
cdef void run_decrby(Store store, Call* call) noexcept nogil
