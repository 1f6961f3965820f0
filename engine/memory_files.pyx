"""Files in memory, which crash and fail on demand. For tests and the simulator.

What isn't durable yet is remembered as an undo list: an operation costs no second copy of
the data, a sync only empties the list, and a crash takes operations back from the newest on.
The model is the strict one of POSIX: content is durable after a sync of the file, a name
(created, renamed, removed) after a sync of its folder.
"""

from libc.errno cimport EBADF, EIO, ENOENT
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

cimport cython

import errno as error_numbers
import os

from everwrite.errors import LockedError, StorageError

from everwrite.file_mapping cimport FileMapping
from everwrite.files cimport Files, OpenMode, set_errno
from everwrite.memory_content cimport (
    Content,
    MemoryFile,
    content_detach,
    content_forget_undos,
    content_look,
    content_map,
    content_put,
    content_truncate,
    content_unmap,
)
from everwrite.pins cimport counted_init
from everwrite.status cimport Status, fault_io
from everwrite.threads cimport (
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)

cdef enum Operation:
    ON_OPEN
    ON_READ
    ON_WRITE
    ON_SYNC
    ON_TRUNCATE
    ON_ALLOCATE
    ON_MAP
    ON_RENAME
    ON_UNLINK
    ON_SYNC_DIR

_OPERATIONS = {
    "open": Operation.ON_OPEN,
    "read": Operation.ON_READ,
    "write": Operation.ON_WRITE,
    "sync": Operation.ON_SYNC,
    "truncate": Operation.ON_TRUNCATE,
    "allocate": Operation.ON_ALLOCATE,
    "map": Operation.ON_MAP,
    "rename": Operation.ON_RENAME,
    "unlink": Operation.ON_UNLINK,
    "sync_dir": Operation.ON_SYNC_DIR,
}

cdef enum:
    SLOT_BITS = 20
    GENERATION_COUNT = 1 << 11


class _MemoryLock:
    def __init__(self, locks, path):
        self._locks = locks
        self._path = path

    def release(self):
        """Give the lock back; once more is fine."""
        if self._locks.get(self._path) is self:
            del self._locks[self._path]


class _Injection:
    def __init__(self, operation, error, path, skip, times, partial):
        self.operation = operation
        self.error = error
        self.path = path
        self.skip = skip
        self.times = times
        self.partial = partial


cdef bytes _path(path):
    return os.path.normpath(os.fsencode(path))


cdef bytes _folder(bytes path):
    return os.path.dirname(path) or b"."


cdef void _copy_drop(void* memory) noexcept nogil:
    free(<void*>(<FileMapping*>memory).data)
    free(memory)


cdef FileMapping* _copied(const uint8_t* data, size_t size) noexcept nogil:
    """A copy does for a mapping, as the file won't change; of its own size, so that a sanitizer sees its end."""
    cdef FileMapping* mapping = <FileMapping*>malloc(sizeof(FileMapping))
    cdef uint8_t* copy = <uint8_t*>malloc(size)
    if mapping == NULL or copy == NULL:
        free(mapping)
        free(copy)
        return NULL
    memcpy(copy, data, size)
    counted_init(&mapping.counted, _copy_drop)
    mapping.data = copy
    mapping.size = size
    return mapping


# Those who hold handles close them in their __dealloc__, perhaps after a collector has visited this object.
@cython.no_gc_clear
cdef class MemoryFiles(Files):
    """Files in memory: the same interface, fast, with crashes and failures on demand.

    One object is one disk: it outlives the stores that are opened on it. `maps_for_reading`: whether files can be
    mapped for reading, False at first. Thread safety: that of files, but whoever stores into a mapping, and whoever
    calls one of the methods that only these files have, must be the only one at work.
    """

    def __cinit__(self):
        pthread_mutex_init(&self._mutex, NULL)
        self._names = {}
        self._unsynced_names = []
        self._folders = {b"/", b"."}
        self._locks = {}
        self._opened = []
        self._free_slots = []
        self._injections = []
        self._mappings = {}

    def __dealloc__(self):
        free(self._contents)
        pthread_mutex_destroy(&self._mutex)

    cdef Content* _content(self, int handle) noexcept nogil:
        cdef Py_ssize_t slot = handle & ((1 << SLOT_BITS) - 1)
        if handle < 0 or handle >> SLOT_BITS != self._generation or slot >= self._content_capacity:
            return NULL
        return self._contents[slot]

    cdef Content* _enter(self, int handle) noexcept nogil:
        """The content, for the caller alone until `_leave`; between the two nobody may ask for the GIL."""
        pthread_mutex_lock(&self._mutex)
        return self._content(handle)

    cdef void _leave(self) noexcept nogil:
        pthread_mutex_unlock(&self._mutex)

    cdef int _fault(self, int handle, const char* path, int number, const char* what) noexcept nogil:
        if path == NULL:
            return self._fault_at(handle, number, what)
        set_errno(number)
        return fault_io(path, what)

    cdef int _fault_at(self, int handle, int number, const char* what) noexcept with gil:
        cdef bytes name = b"a file that was open before a crash, or is closed"
        if self._content(handle) != NULL:
            name = self._opened[<Py_ssize_t>(handle & ((1 << SLOT_BITS) - 1))][1]
        set_errno(number)
        return fault_io(name, what)

    cdef int _fails(self, int operation, int handle, const char* path, size_t* partial) noexcept nogil:
        """The errno with which this call is to fail, or 0."""
        if not self._armed:
            return 0
        return self._inject(operation, handle, path, partial)

    cdef int _inject(self, int operation, int handle, const char* path, size_t* partial) noexcept with gil:
        cdef bytes name
        if path != NULL:
            name = path
        elif self._content(handle) == NULL:
            return 0
        else:
            name = self._opened[<Py_ssize_t>(handle & ((1 << SLOT_BITS) - 1))][1]
        for injection in self._injections:
            if injection.operation != operation or injection.path not in name:
                continue
            if injection.skip:
                injection.skip -= 1
                continue
            injection.times -= 1
            if injection.times == 0:
                self._injections.remove(injection)
                self._armed = bool(self._injections)
            partial[0] = injection.partial
            return injection.error
        return 0

    cdef int open(self, const char* path, int mode) noexcept nogil:
        cdef size_t partial
        cdef int number = self._fails(Operation.ON_OPEN, 0, path, &partial)
        cdef int handle = -ENOENT
        if number == 0:
            with gil:
                try:
                    handle = self._open(path, mode)
                except MemoryError:
                    return Status.ERR_MEMORY
            if handle >= 0:
                return handle
            number = -handle
        return self._fault(0, path, number, "opening a file")

    cdef int _open(self, bytes path, int mode) except? -1:
        """A handle, or a negative errno."""
        cdef MemoryFile file
        cdef Content** grown
        cdef Py_ssize_t slot
        name = _path(path)
        file = self._names.get(name)
        if file is None:
            if mode == OpenMode.OPEN_READ or _folder(name) not in self._folders:
                return -ENOENT
            file = MemoryFile()
            self._set_names(_folder(name), {name: file})
        elif mode == OpenMode.OPEN_FRESH and content_truncate(&file.content, 0) < 0:
            raise MemoryError
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot = len(self._opened)
            if slot == self._content_capacity:
                if slot >> SLOT_BITS:
                    return -error_numbers.EMFILE
                pthread_mutex_lock(&self._mutex)
                grown = <Content**>realloc(self._contents, (slot * 2 + 8) * sizeof(Content*))
                if grown != NULL:
                    memset(grown + slot, 0, (slot + 8) * sizeof(Content*))
                    self._contents = grown
                    self._content_capacity = slot * 2 + 8
                pthread_mutex_unlock(&self._mutex)
                if grown == NULL:
                    raise MemoryError
            self._opened.append(None)
        self._opened[slot] = (file, name)
        self._contents[slot] = &file.content
        return (self._generation << SLOT_BITS) | <int>slot

    cdef _set_names(self, bytes folder, changes):
        """Change names (path -> file, or None to remove) in one step that a crash can take back."""
        self._unsynced_names.append((folder, {name: self._names.get(name) for name in changes}))
        self._restore_names(changes)

    cdef _restore_names(self, names):
        for name, file in names.items():
            if file is None:
                self._names.pop(name, None)
            else:
                self._names[name] = file

    cdef int close(self, int handle) noexcept nogil:
        cdef Py_ssize_t slot = handle & ((1 << SLOT_BITS) - 1)
        cdef Content* content = self._enter(handle)
        if content != NULL:
            self._contents[slot] = NULL
        self._leave()
        if content == NULL:
            return self._fault(handle, NULL, EBADF, "closing a file")
        with gil:
            # The collector empties the list, if it is garbage together with those who hold handles.
            if slot < len(self._opened):
                self._opened[slot] = None
                self._free_slots.append(slot)
        return Status.OK

    cdef int64_t read(self, int handle, uint64_t offset, void* data, size_t size) noexcept nogil:
        cdef size_t partial
        cdef int number = self._fails(Operation.ON_READ, handle, NULL, &partial)
        cdef Content* content = self._enter(handle)
        if content == NULL:
            number = EBADF
        elif number == 0:
            size = min(size, content.size - offset) if offset < content.size else 0
            # An empty file may have no memory to copy from.
            if size:
                memcpy(data, content.data + offset, size)
        self._leave()
        if number:
            return self._fault(handle, NULL, number, "reading a file")
        return <int64_t>size

    cdef int write(self, int handle, uint64_t offset, const void* data, size_t size) noexcept nogil:
        cdef size_t partial = 0
        cdef int number = self._fails(Operation.ON_WRITE, handle, NULL, &partial)
        cdef Content* content = self._enter(handle)
        cdef int status = Status.OK
        if content == NULL:
            number = EBADF
        else:
            status = content_put(content, offset, data, min(partial, size) if number else size)
        self._leave()
        if number and status == <int>Status.OK:
            return self._fault(handle, NULL, number, "writing a file")
        return status

    cdef int sync(self, int handle) noexcept nogil:
        cdef size_t partial
        cdef int number = self._fails(Operation.ON_SYNC, handle, NULL, &partial)
        cdef Content* content = self._enter(handle)
        cdef int status = Status.OK
        cdef bint dropped = False
        if content == NULL:
            number = EBADF
        else:
            status = content_look(content)
            if status == <int>Status.OK and number:
                content.dropped = content.undo_count
            elif status == <int>Status.OK and content.dropped:
                dropped = True
            elif status == <int>Status.OK:
                content_forget_undos(content)
        self._leave()
        if status < 0:
            return status
        if number:
            return self._fault(handle, NULL, number, "syncing a file")
        if dropped:
            with gil:
                try:
                    self._sync_after_failure(handle)
                except MemoryError:
                    return Status.ERR_MEMORY
        return Status.OK

    cdef MemoryFile _file(self, int handle):
        return self._opened[<Py_ssize_t>(handle & ((1 << SLOT_BITS) - 1))][0]

    cdef _sync_after_failure(self, int handle):
        self._file(handle).sync_after_failure()

    cdef int truncate(self, int handle, uint64_t size) noexcept nogil:
        cdef size_t partial
        cdef int number = self._fails(Operation.ON_TRUNCATE, handle, NULL, &partial)
        return self._set_size(handle, size, True, number, "truncating a file")

    cdef int allocate(self, int handle, uint64_t size) noexcept nogil:
        cdef size_t partial
        cdef int number = self._fails(Operation.ON_ALLOCATE, handle, NULL, &partial)
        return self._set_size(handle, size, False, number, "reserving space for a file")

    cdef int _set_size(self, int handle, uint64_t size, bint shrinks, int number, const char* what) noexcept nogil:
        cdef Content* content = self._enter(handle)
        cdef int status = Status.OK
        if content == NULL:
            number = EBADF
        elif number == 0 and (shrinks or size > content.size):
            status = content_truncate(content, size)
        self._leave()
        return self._fault(handle, NULL, number, what) if number else status

    cdef uint8_t* map(self, int handle, size_t size) noexcept nogil:
        cdef Content* content = self._content(handle)
        cdef size_t partial
        if content == NULL or self._fails(Operation.ON_MAP, handle, NULL, &partial):
            return NULL
        if content_map(content, size) < 0:
            return NULL
        with gil:
            self._mappings[<size_t>content.data] = self._file(handle)
        return content.data

    cdef void unmap(self, uint8_t* data, size_t size) noexcept nogil:
        with gil:
            self._forget_mapping(<size_t>data)

    cdef FileMapping* map_read(self, int handle, size_t size) noexcept nogil:
        cdef Content* content = self._enter(handle)
        cdef FileMapping* mapping = NULL
        if self.maps_for_reading and content != NULL and content.size >= size:
            mapping = _copied(content.data, size)
        self._leave()
        return mapping

    cdef bint is_resident(self, const FileMapping* mapping, uint64_t offset, size_t size) noexcept nogil:
        # Some is and some isn't, so that callers do both.
        return offset & 1

    cdef _forget_mapping(self, size_t address):
        file = self._mappings.pop(address, None)
        if file is None:
            free(<void*>address)
        else:
            content_unmap(&(<MemoryFile>file).content)

    cdef int64_t size(self, int handle) noexcept nogil:
        cdef Content* content = self._enter(handle)
        cdef int64_t size = -1 if content == NULL else <int64_t>content.size
        self._leave()
        return self._fault(handle, NULL, EBADF, "asking for a file's size") if size < 0 else size

    cdef int rename(self, const char* source, const char* target) noexcept nogil:
        cdef size_t partial
        cdef int number = self._fails(Operation.ON_RENAME, 0, source, &partial)
        if number == 0:
            with gil:
                number = self._rename(source, target)
        if number:
            return self._fault(0, source, number, "renaming a file")
        return Status.OK

    cdef int unlink(self, const char* path) noexcept nogil:
        cdef size_t partial
        cdef int number = self._fails(Operation.ON_UNLINK, 0, path, &partial)
        if number == 0:
            with gil:
                number = self._unlink(path)
        if number:
            return self._fault(0, path, number, "removing a file")
        return Status.OK

    cdef int sync_dir(self, const char* path) noexcept nogil:
        cdef size_t partial
        cdef int number = self._fails(Operation.ON_SYNC_DIR, 0, path, &partial)
        if number == 0:
            with gil:
                number = self._sync_dir(path)
        if number:
            return self._fault(0, path, number, "syncing a folder")
        return Status.OK

    cdef int _rename(self, bytes source, bytes target) noexcept:
        old = _path(source)
        new = _path(target)
        file = self._names.get(old)
        if file is None or _folder(new) not in self._folders:
            return ENOENT
        if old != new:
            self._set_names(_folder(new), {old: None, new: file})
        return 0

    cdef int _unlink(self, bytes path) noexcept:
        name = _path(path)
        if name not in self._names:
            return ENOENT
        self._set_names(_folder(name), {name: None})
        return 0

    cdef int _sync_dir(self, bytes path) noexcept:
        folder = _path(path)
        if folder not in self._folders:
            return ENOENT
        self._unsynced_names = [change for change in self._unsynced_names if change[0] != folder]
        return 0

    def listdir(self, path):
        """The names in the folder `path`, sorted."""
        folder = _path(path)
        if folder not in self._folders:
            raise StorageError(ENOENT, f"listing a folder: {os.strerror(ENOENT)}", os.fsdecode(folder))
        inside = {name for name in [*self._names, *self._folders] if _folder(name) == folder and name != folder}
        return sorted(os.fsdecode(os.path.basename(name)) for name in inside)

    def mkdir(self, path):
        """Make the folder `path` and those above it, durably. One that exists is fine."""
        folder = _path(path)
        while folder not in self._folders:
            if folder in self._names:
                raise StorageError(
                    error_numbers.EEXIST, "making a folder: a file of this name exists", os.fsdecode(folder)
                )
            self._folders.add(folder)
            folder = _folder(folder)

    def exists(self, path):
        """Whether a file or folder `path` exists."""
        name = _path(path)
        return name in self._names or name in self._folders

    def lock(self, path):
        """Take the lock file `path` and return an object whose `release()` gives it back.

        Raises `LockedError`, naming the holder's process id, when it is taken.
        """
        name = _path(path)
        if name in self._locks:
            raise LockedError(
                f"{os.fsdecode(name)}: in use by process {os.getpid()}; close the store there first, "
                "or open a different folder"
            )
        self._locks[name] = _MemoryLock(self._locks, name)
        return self._locks[name]

    def fail(self, operation, error=EIO, *, path=b"", skip=0, times=1, partial=0):
        """Make calls fail.

        `operation`: "open", "read", "write", "sync", "truncate", "allocate", "map", "rename", "unlink" or
        "sync_dir". Where a file can't be mapped, `write` is used, whatever the error.
        `error`: the errno. `path`: only where this is part of the path. `skip`: so many matching
        calls still work; then `times` fail (negative: all). `partial`: a failing write first
        stores so many bytes of its data. As on Linux, what was written before a sync that failed
        is still read, but no later sync makes it durable, though that succeeds; writing it again helps.
        """
        self._injections.append(_Injection(_OPERATIONS[operation], error, os.fsencode(path), skip, times, partial))
        self._armed = True

    def heal(self):
        """Call off all failures that `fail` has armed."""
        self._injections.clear()
        self._armed = False

    def crash(self, keep=None):
        """End all that uses these files: open handles are refused from now on, locks are free.

        `keep` says what stays of what wasn't durable. None: nothing (power loss at its worst).
        "all": everything, and it still isn't durable (the process was killed, the machine
        lives on). A `random.Random`: it decides, per file: the unsynced operations up to a
        moment, the next one torn; or each sector of 512 bytes as it was at a moment of its own;
        and, per folder, which of the names changed since its last sync did: the first ones, or any.
        """
        self._generation = (self._generation + 1) % GENERATION_COUNT
        self._locks.clear()
        self._free_slots = list(range(len(self._opened)))
        for slot in range(len(self._opened)):
            self._opened[slot] = None
            self._contents[<Py_ssize_t>slot] = NULL
        for address, file in self._mappings.items():
            # Whoever used the mapping may go on to store in it: not into the file.
            if file is not None and content_detach(&(<MemoryFile>file).content) < 0:
                raise MemoryError
            self._mappings[address] = None
        if keep == "all":
            return
        self._lose_names(keep)
        for name in sorted(self._names):
            (<MemoryFile>self._names[name]).crash(keep)

    def _lose_names(self, keep):
        folders = sorted({folder for folder, _ in self._unsynced_names})
        changes = []
        for folder, before in reversed(self._unsynced_names):
            changes.append((folder, {name: self._names.get(name) for name in before}))
            self._restore_names(before)
        changes.reverse()
        self._unsynced_names.clear()
        if keep is None:
            return
        for folder in folders:
            own = [after for other, after in changes if other == folder]
            if keep.random() < 0.5:
                own = own[:keep.randrange(len(own) + 1)]
            else:
                own = [after for after in own if keep.random() < 0.5]
            for after in own:
                self._restore_names(after)

    def copy(self):
        """A second disk with the same content and names, durable and not; nothing is open or locked there.

        What was armed by `fail` isn't armed there.
        """
        cdef MemoryFiles twin = MemoryFiles()
        twins = {}
        befores = [before for _, before in self._unsynced_names]
        for names in [self._names, *befores]:
            for file in names.values():
                if file is not None and file not in twins:
                    twins[file] = (<MemoryFile>file).copy()
        twin._names = {name: twins[file] for name, file in self._names.items()}
        for folder, before in self._unsynced_names:
            twin._unsynced_names.append((folder, {name: twins.get(file) for name, file in before.items()}))
        twin._folders = set(self._folders)
        twin.maps_for_reading = self.maps_for_reading
        return twin
