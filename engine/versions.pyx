"""Which tables are in use, by whom, and when they can go."""

cimport cython
from libc.stdlib cimport calloc, free

from everwrite.files cimport Files
from everwrite.memtable cimport Memtable
from everwrite.pins cimport counted_hold, counted_release, ew_store
from everwrite.status cimport Status
from everwrite.table_format cimport Table
from everwrite.table_reader cimport table_close
from everwrite.threads cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)


cdef Version* _version_new(size_t frozen_count, size_t table_count) noexcept nogil:
    cdef Version* version = <Version*>calloc(1, sizeof(Version))
    if version == NULL:
        return NULL
    version.frozen = <Memtable**>calloc(frozen_count + 1, sizeof(void*))
    version.tables = <Table**>calloc(table_count + 1, sizeof(void*))
    if version.frozen == NULL or version.tables == NULL:
        _version_free(version)
        return NULL
    version.refs = 1
    version.frozen_count = frozen_count
    version.table_count = table_count
    return version


cdef void _version_free(Version* version) noexcept nogil:
    free(version.frozen)
    free(version.tables)
    free(version)


cdef void _fill(Version* version, const Version* old, const Exchange* change) noexcept nogil:
    """List what `old` lists, but for the change, with a reference to each."""
    cdef size_t fresh = change.frozen != NULL
    cdef size_t added = change.table != NULL
    cdef size_t i
    for i in range(fresh, version.frozen_count):
        version.frozen[i] = old.frozen[i - fresh]
        counted_hold(&version.frozen[i].counted)
    if fresh:
        version.frozen[0] = change.frozen
    for i in range(version.table_count):
        if i == change.first and added:
            version.tables[i] = change.table
            continue
        version.tables[i] = old.tables[i if i < change.first else i - added + change.merged]
        version.tables[i].refs += 1


cdef class Versions:
    """Starts with a version that lists nothing."""

    def __cinit__(self, *args):
        pthread_mutex_init(&self.mutex, NULL)
        self.current = _version_new(0, 0)
        if self.current == NULL:
            raise MemoryError

    def __init__(self, Files files not None):
        self.files = files

    def __dealloc__(self):
        if self.current != NULL:
            self.release(self.current)
        if self.files is not None:
            self.bury()
        pthread_mutex_destroy(&self.mutex)

    cdef Version* hold(self) noexcept nogil:
        cdef Version* version
        pthread_mutex_lock(&self.mutex)
        version = self.current
        version.refs += 1
        pthread_mutex_unlock(&self.mutex)
        return version

    cdef void release(self, Version* version) noexcept nogil:
        cdef Table* table
        cdef bint last
        cdef size_t i
        pthread_mutex_lock(&self.mutex)
        version.refs -= 1
        last = version.refs == 0
        if last:
            for i in range(version.table_count):
                table = version.tables[i]
                table.refs -= 1
                if table.refs == 0:
                    table.next = self.graveyard
                    self.graveyard = table
        pthread_mutex_unlock(&self.mutex)
        if last:
            for i in range(version.frozen_count):
                counted_release(&version.frozen[i].counted)
            _version_free(version)

    cdef int _replace(self, Version* version) noexcept nogil:
        """Make `version` the current one; the mutex is held, and let go."""
        cdef Version* old = self.current
        self.current = version
        ew_store(&self.epoch, self.epoch + 1)
        pthread_mutex_unlock(&self.mutex)
        self.release(old)
        return Status.OK

    cdef int exchange(self, const Exchange* change) noexcept nogil:
        cdef Version* version
        cdef Version* old
        cdef size_t i
        pthread_mutex_lock(&self.mutex)
        old = self.current
        version = _version_new(
            old.frozen_count + (change.frozen != NULL) - change.flushed,
            old.table_count + (change.table != NULL) - change.merged,
        )
        if version == NULL:
            pthread_mutex_unlock(&self.mutex)
            return Status.ERR_MEMORY
        _fill(version, old, change)
        for i in range(change.first, change.first + change.merged):
            old.tables[i].obsolete = True
        return self._replace(version)

    cdef int clear(self) noexcept nogil:
        cdef Version* version = _version_new(0, 0)
        if version == NULL:
            return Status.ERR_MEMORY
        pthread_mutex_lock(&self.mutex)
        return self._replace(version)

    cdef void bury(self) noexcept nogil:
        cdef Table* table
        cdef Table* following
        pthread_mutex_lock(&self.mutex)
        table = self.graveyard
        self.graveyard = NULL
        pthread_mutex_unlock(&self.mutex)
        while table != NULL:
            following = table.next
            table_close(self.files, table)
            table = following


# A collector that cleared the reference to `parent` first would leave the version held for good.
@cython.no_gc
cdef class PinnedVersions(Versions):
    """One version of `parent`, as if it were the only one there ever was. Made by `pin_current`."""

    def __cinit__(self, *args):
        self.nothing = self.current

    def __dealloc__(self):
        if self.parent is not None:
            self.unpin()
        _version_free(self.nothing)
        self.current = NULL

    cdef Version* hold(self) noexcept nogil:
        cdef Version* version
        pthread_mutex_lock(&self.parent.mutex)
        version = self.current
        version.refs += 1
        pthread_mutex_unlock(&self.parent.mutex)
        return version

    cdef void release(self, Version* version) noexcept nogil:
        if version != self.nothing:
            self.parent.release(version)
            return
        pthread_mutex_lock(&self.parent.mutex)
        version.refs -= 1
        pthread_mutex_unlock(&self.parent.mutex)

    cdef int exchange(self, const Exchange* change) noexcept nogil:
        return Status.ERR_READ_ONLY

    cdef int clear(self) noexcept nogil:
        self.unpin()
        return Status.OK

    cdef void bury(self) noexcept nogil:
        self.parent.bury()

    cdef void unpin(self) noexcept nogil:
        cdef Version* version
        pthread_mutex_lock(&self.parent.mutex)
        version = self.current
        self.current = self.nothing
        pthread_mutex_unlock(&self.parent.mutex)
        if version != self.nothing:
            self.parent.release(version)


cdef PinnedVersions pin_current(Versions parent):
    """The version that `parent` shows now, for good."""
    cdef PinnedVersions pinned = PinnedVersions.__new__(PinnedVersions)
    pinned.parent = parent
    with nogil:
        pinned.current = parent.hold()
    return pinned
