"""Iteration over elements and keys, and the removal of expired keys; see scans.pxd."""

from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport calloc, free

from everwrite.coding cimport Buffer, Slice, buffer_free, buffer_init, buffer_slice, put_bytes, slice_of
from everwrite.datatypes cimport Kind, show_element
from everwrite.lsm cimport LsmIterator
from everwrite.sequences cimport SequencedKeyspace
from everwrite.state cimport (
    SPACE_EXPIRY,
    SPACE_USER,
    element_decode,
    element_free,
    element_init,
    element_key,
    element_live,
    entry_key,
    head_deadline,
    head_decode,
    head_expired,
    head_free,
    head_init,
    head_kind,
)
from everwrite.status cimport Status, fault_corrupt
from everwrite.walk cimport walk_free, walk_init, walk_next

# After a deadline the region that set it removes the key; the others step in when that hasn't happened for so long.
cdef enum Reaping:
    FOREIGN_GRACE_MS = 60000
    FOREIGN_LOOKS = 16           # keys passed over for each that may be removed


cdef Slice _empty() noexcept nogil:
    return slice_of(NULL, 0)


cdef class ScannedKeyspace(SequencedKeyspace):
    """Iteration and expiry on top of the typed operations."""

    # ---- iteration ----

    cdef int elements_open(self, Slice key, int kind, Elements** it) noexcept nogil:
        return self.elements_open_from(key, kind, _empty(), it)

    cdef int elements_open_from(self, Slice key, int kind, Slice start, Elements** it) noexcept nogil:
        cdef int failed
        cdef int status = self.begin_as(key, kind)
        it[0] = NULL
        if status <= 0:
            return status
        it[0] = <Elements*>calloc(1, sizeof(Elements))
        if it[0] == NULL:
            return Status.ERR_MEMORY
        element_init(&it[0].element)
        failed = walk_init(&it[0].walk, self.lsm)
        failed |= element_key(&it[0].walk.prefix, key, kind, _empty())
        failed |= element_key(&it[0].walk.edge, key, kind, start)
        if failed:
            self.elements_close(it[0])
            it[0] = NULL
            return Status.ERR_MEMORY
        return 1

    cdef int elements_next(self, Elements* it, Slice* name, Slice* value) noexcept nogil:
        cdef int status
        while True:
            status = walk_next(&it.walk, self.lsm, name)
            if status <= 0:
                return status
            if element_decode(&it.element, self.lsm.value(it.walk.it)) < 0:
                return fault_corrupt(b"key state", 0, b"an element can't be decoded")
            if element_live(&it.element):
                return show_element(&it.element, it.text, value)

    cdef void elements_close(self, Elements* it) noexcept nogil:
        if it != NULL:
            walk_free(&it.walk, self.lsm)
            element_free(&it.element)
            free(it)

    cdef Keys* keys_open(self, Slice start) noexcept nogil:
        cdef int failed
        cdef Keys* it = <Keys*>calloc(1, sizeof(Keys))
        if it == NULL:
            return NULL
        head_init(&it.head)
        it.now = self.clock.now_ms()
        failed = walk_init(&it.walk, self.lsm)
        failed |= entry_key(&it.walk.prefix, SPACE_USER, _empty())
        failed |= entry_key(&it.walk.edge, SPACE_USER, start)
        if failed:
            self.keys_close(it)
            return NULL
        return it

    cdef int keys_next(self, Keys* it, Slice* key, int* kind) noexcept nogil:
        cdef int status
        if self.failed:
            return Status.ERR_FAILED
        while True:
            status = walk_next(&it.walk, self.lsm, key)
            if status <= 0:
                return status
            if head_decode(&it.head, self.lsm.value(it.walk.it)) < 0:
                return fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
            kind[0] = head_kind(&it.head)
            if kind[0] and not head_expired(&it.head, it.now):
                return 1

    cdef void keys_close(self, Keys* it) noexcept nogil:
        if it != NULL:
            walk_free(&it.walk, self.lsm)
            head_free(&it.head)
            free(it)

    # ---- expiry ----

    cdef bint reap_due(self) noexcept nogil:
        return self.next_deadline <= self.clock.now_ms()

    cdef int _expire_now(self) noexcept nogil:
        """Remove the loaded, expired key: what was observed of it, and its deadline."""
        cdef int status = self.delta_begin()
        if status == Status.OK:
            status = self._put_removals(Kind.KIND_NONE)
        return status if status < 0 else self.delta_end()

    cdef int op_reap(self, int limit) noexcept nogil:
        cdef LsmIterator* it
        cdef Buffer due
        cdef Slice stored
        cdef int64_t deadline
        cdef int64_t now = self.clock.now_ms()
        cdef int64_t next_look = INT64_MAX
        cdef int looked = 0
        cdef int removed = 0
        cdef int status
        cdef size_t i
        if self.failed:
            return Status.ERR_FAILED
        it = self.lsm.iterator()
        if it == NULL:
            return Status.ERR_MEMORY
        buffer_init(&due)
        status = entry_key(&due, SPACE_EXPIRY, _empty())
        if status == 0:
            status = self.lsm.seek(it, buffer_slice(&due))
        while status > 0:
            stored = self.lsm.key(it)
            if stored.size < 9 or stored.data[0] != SPACE_EXPIRY:
                break
            deadline = 0
            for i in range(1, 9):
                deadline = (deadline << 8) | stored.data[i]
            if deadline > now or removed == limit:
                if deadline < next_look:
                    next_look = deadline
                break
            if looked == limit * FOREIGN_LOOKS:
                # Keys that other regions are about to remove fill the front of the index: look again in a second.
                next_look = now + 1000
                break
            looked += 1
            due.size = 0
            status = put_bytes(&due, stored.data, stored.size)
            if status == 0:
                status = self.begin(slice_of(due.data + 9, due.size - 9))
            if status >= 0 and (not self.expired or head_deadline(&self.head) != deadline):
                status = self.lsm.remove(buffer_slice(&due))
                removed += 1
            elif status >= 0:
                if (
                    self.head.expiry_dot.origin >> 16 == self.own_origin >> 16
                    or deadline + FOREIGN_GRACE_MS <= now
                ):
                    status = self._expire_now()
                    removed += 1
                elif deadline + FOREIGN_GRACE_MS < next_look:
                    next_look = deadline + FOREIGN_GRACE_MS
            if status >= 0:
                status = self.lsm.next(it)
        self.lsm.iterator_free(it)
        buffer_free(&due)
        if status < 0:
            return status
        self.next_deadline = next_look
        return looked
