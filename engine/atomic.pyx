"""All or nothing: see atomic.pxd."""

from everwrite.clock cimport vector_lower
from everwrite.coding cimport Slice
from everwrite.digest cimport DigestKey, digest_key, head_item, leaf_replace, no_sum
from everwrite.keyspace cimport Keyspace
from everwrite.lsm cimport Pin, pin_init, pin_release
from everwrite.memtable cimport Entry, entry_key, entry_removed, entry_value, memtable_restore
from everwrite.state cimport SPACE_USER, Sum, head_decode
from everwrite.status cimport Status, fault_corrupt
from everwrite.undo cimport (
    WAS_MISSING,
    WAS_VALUE,
    Note,
    undo_clear,
    undo_free,
    undo_init,
    undo_value,
)


cdef class AtomicKeyspace(Keyspace):
    """A keyspace whose updates can be grouped."""

    def __cinit__(self):
        undo_init(&self.undo)

    def __dealloc__(self):
        undo_free(&self.undo)

    cdef int atomic_begin(self) noexcept nogil:
        if self.failed:
            return Status.ERR_FAILED
        if self.refused:
            return self.refused
        self.counts.live_keys = self.live_keys
        self.counts.local_changes = self.local_changes
        self.counts.applied_changes = self.applied_changes
        self.counts.user_change_count = self.user_change_count
        self.counts.conflicts_lww = self.conflicts_lww
        self.counts.conflicts_type = self.conflicts_type
        self.counts.conflicts_add_remove = self.conflicts_add_remove
        self.counts.timestamp = self.last_timestamp()
        self.lsm.active.undo = &self.undo
        self.atomic = True
        self.batch_begin()
        return Status.OK

    cdef int atomic_end(self) noexcept nogil:
        cdef int status = self.batch_end()
        if status < 0:
            self.atomic_rollback()
            return status
        self.atomic = False
        self.lsm.active.undo = NULL
        undo_clear(&self.undo)
        return Status.OK

    cdef int atomic_rollback(self) noexcept nogil:
        cdef int status
        self.grouping = False
        self.drop_group()
        self.lsm.active.undo = NULL
        status = self._restore()
        undo_clear(&self.undo)
        self.atomic = False
        self.live_keys = self.counts.live_keys
        self.local_changes = self.counts.local_changes
        self.applied_changes = self.counts.applied_changes
        self.user_change_count = self.counts.user_change_count
        self.conflicts_lww = self.counts.conflicts_lww
        self.conflicts_type = self.counts.conflicts_type
        self.conflicts_add_remove = self.counts.conflicts_add_remove
        vector_lower(&self.applied, self.own_origin, self.counts.timestamp)
        return self._fail(status) if status < 0 else Status.OK

    cdef int _restore(self) noexcept nogil:
        cdef Note* note
        cdef Slice old
        cdef Slice key
        cdef Pin pin
        cdef size_t i = self.undo.count
        cdef int present
        cdef int status = Status.OK
        pin_init(&pin)
        while i and status >= 0:
            i -= 1
            note = &self.undo.notes[i]
            present = note.before == WAS_VALUE
            if present:
                old = undo_value(&self.undo, note)
            elif note.before == WAS_MISSING:
                # An entry can't leave its table again: what older tables hold is copied to it.
                key = entry_key(<Entry*>note.entry)
                present = self.lsm.get_below(key, &pin, &old)
            status = present if present < 0 else self._restore_entry(<Entry*>note.entry, present == 0, old)
        pin_release(&pin)
        return status

    cdef int _restore_entry(self, Entry* e, bint removed, Slice old) noexcept nogil:
        cdef Slice key = entry_key(e)
        cdef DigestKey place
        cdef Sum now
        cdef Sum then
        if key.data[0] == SPACE_USER:
            place = digest_key(key)
            if (
                self._item(entry_removed(e), entry_value(e), place, &now) < 0
                or self._item(removed, old, place, &then) < 0
            ):
                return fault_corrupt(b"key state", 0, b"the head of a key can't be decoded")
            leaf_replace(self.leaves, place, now, then)
        return memtable_restore(self.lsm.active, e, removed, old)

    cdef int _item(self, bint removed, Slice stored, DigestKey place, Sum* item) noexcept nogil:
        cdef int status
        item[0] = no_sum()
        if removed:
            return Status.OK
        status = head_decode(&self.theirs, stored)
        if status >= 0:
            item[0] = head_item(&self.theirs, place)
        return status
