"""The loaded key's elements: each an entry of its own, loaded, joined and stored one by one.

Thread safety: everything needs the keyspace's lock.
Invariants: an element without dots and rows has no entry; a kind that has an entry has a collection in the
head; the collection's count is the number of the kind's live elements.
"""

from libc.stdint cimport uint64_t

from everwrite.change cimport Part
from everwrite.clock cimport Dot, Vector
from everwrite.coding cimport Buffer, Reader, Slice
from everwrite.join cimport Seen
from everwrite.lsm cimport Lsm, Pin
from everwrite.state cimport Element, Head
from everwrite.walk cimport Walk


cdef class ElementStore:
    cdef Lsm lsm
    cdef Head head                      # of the key that `load` or `begin` named
    cdef Vector horizon                 # what every member is known to hold: part of every key's context
    cdef Buffer key                     # its entry key: space byte + key
    cdef Head theirs
    cdef Element element
    cdef Element their_element
    cdef Pin element_pin
    cdef Buffer element_key
    cdef Buffer encoded
    cdef uint64_t conflicts_add_remove

    cdef Slice loaded_key(self) noexcept nogil
    cdef int load_element(self, int kind, Slice name) noexcept nogil      # into `element`; of the loaded key
    cdef Slice element_name(self) noexcept nogil                          # of `element_key`, borrowed
    # A walk along the loaded key's elements of a kind. OK, or an error; walk_free is due in either case.
    cdef int walk_elements(self, int kind, Walk* walk) noexcept nogil
    # The loaded key's context is that of its rows and the horizon: what collection dropped counts as seen.
    cdef uint64_t key_context(self, uint64_t origin) noexcept nogil
    cdef int spell_out_context(self) noexcept nogil                       # raises the loaded head's rows to it
    cdef int encode_state(self, Buffer* into, Dot dot) noexcept nogil     # the loaded key, whole

    # What is derived from elements (counts aside) and kept locally: overridden by the layers that have some.
    # `element` holds the element before, and again after a join that changed it (but no values any more: storing it may
    # have overwritten them; `encoded` has them while the element is alive); `element_key` is its entry's key.
    cdef int element_before(self, int kind, bint live) noexcept nogil
    cdef int element_after(self, int kind, bint live) noexcept nogil
    cdef int merge_element(self, int kind, bint present, const Seen* seen) noexcept nogil
    cdef int sweep_kinds(self, int mask, const Seen* seen, const Slice* parts) noexcept nogil
    cdef int _sweep(self, int kind, const Seen* seen, const Slice* parts) noexcept nogil
    cdef int _encode_shared_head(self) noexcept nogil
    cdef int _next_of_kind(self, Reader* r, int kind, Part* part) noexcept nogil
