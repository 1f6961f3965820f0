"""Commands on sets and hashes."""

from everwrite.server.commands cimport Call
from everwrite.store cimport Store


cdef void run_sadd(Store store, Call* call) noexcept nogil
cdef void run_srem(Store store, Call* call) noexcept nogil
cdef void run_smembers(Store store, Call* call) noexcept nogil
cdef void run_sismember(Store store, Call* call) noexcept nogil
cdef void run_scard(Store store, Call* call) noexcept nogil
cdef void run_hset(Store store, Call* call) noexcept nogil
cdef void run_hmset(Store store, Call* call) noexcept nogil
cdef void run_hget(Store store, Call* call) noexcept nogil
cdef void run_hmget(Store store, Call* call) noexcept nogil
cdef void run_hgetall(Store store, Call* call) noexcept nogil
cdef void run_hdel(Store store, Call* call) noexcept nogil
cdef void run_hexists(Store store, Call* call) noexcept nogil
cdef void run_hlen(Store store, Call* call) noexcept nogil
cdef void run_hincrby(Store store, Call* call) noexcept nogil
