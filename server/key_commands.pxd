"""Commands on keys of any type, and the few on the connection that need no Python."""

from everwrite.server.commands cimport Call
from everwrite.store cimport Store


cdef void run_del(Store store, Call* call) noexcept nogil
cdef void run_exists(Store store, Call* call) noexcept nogil
cdef void run_type(Store store, Call* call) noexcept nogil
cdef void run_ttl(Store store, Call* call) noexcept nogil
cdef void run_pttl(Store store, Call* call) noexcept nogil
cdef void run_expiretime(Store store, Call* call) noexcept nogil
cdef void run_pexpiretime(Store store, Call* call) noexcept nogil
cdef void run_expire(Store store, Call* call) noexcept nogil
cdef void run_pexpire(Store store, Call* call) noexcept nogil
cdef void run_expireat(Store store, Call* call) noexcept nogil
cdef void run_pexpireat(Store store, Call* call) noexcept nogil
cdef void run_persist(Store store, Call* call) noexcept nogil
cdef void run_dbsize(Store store, Call* call) noexcept nogil
cdef void run_scan(Store store, Call* call) noexcept nogil
cdef void run_memory(Store store, Call* call) noexcept nogil
cdef void run_ping(Store store, Call* call) noexcept nogil
cdef void run_deadline(Store store, Call* call) noexcept nogil
cdef void run_echo(Store store, Call* call) noexcept nogil
