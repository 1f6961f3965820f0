"""Questions for what other replicas have of keys and this store hasn't; see freshness.pyx.

docs/protocols/replication.md shows the bytes of a question.
"""

from everwrite.coding cimport Buffer, Slice
from everwrite.store cimport Store


# Append the item of a user's key to a question. Needs the store's lock. 0, or a negative Status: `out` is as before.
cdef int put_question(Store store, Slice key, Buffer* out) noexcept nogil
