"""Files in memory, which crash and fail on demand. For tests and the simulator.

Calls on handles may come from several threads, with or without the GIL, as with any files.
"""

from libc.stdint cimport uint64_t

from everwrite.files cimport Files
from everwrite.memory_content cimport Content, MemoryFile
from everwrite.threads cimport pthread_mutex_t


cdef class MemoryFiles(Files):
    cdef dict _names          # path -> MemoryFile
    cdef list _unsynced_names  # (folder, {path: MemoryFile or None before}) in order of time
    cdef set _folders
    cdef dict _locks          # path -> _MemoryLock
    cdef list _opened         # by slot: (MemoryFile, path), or None when closed
    cdef list _free_slots
    cdef Content** _contents  # by slot: the same, for use without the GIL; NULL when closed
    cdef Py_ssize_t _content_capacity
    cdef dict _mappings       # address -> MemoryFile that is mapped there; None: a crash has taken it away
    cdef int _generation      # part of a handle: a crash raises it, so that handles of before are refused
    cdef list _injections     # armed failures
    cdef bint _armed          # whether there are any
    cdef public bint maps_for_reading
    cdef pthread_mutex_t _mutex  # over the contents and their table; whoever holds it doesn't ask for the GIL

    cdef int _open(self, bytes path, int mode) except? -1
    cdef _set_names(self, bytes folder, changes)
    cdef _restore_names(self, names)
    cdef Content* _content(self, int handle) noexcept nogil
    cdef Content* _enter(self, int handle) noexcept nogil
    cdef void _leave(self) noexcept nogil
    cdef int _set_size(self, int handle, uint64_t size, bint shrinks, int number, const char* what) noexcept nogil
    cdef int _fails(self, int operation, int handle, const char* path, size_t* partial) noexcept nogil
    cdef int _fault(self, int handle, const char* path, int number, const char* what) noexcept nogil
    cdef int _fault_at(self, int handle, int number, const char* what) noexcept with gil
    cdef int _inject(self, int operation, int handle, const char* path, size_t* partial) noexcept with gil
    cdef MemoryFile _file(self, int handle)
    cdef _forget_mapping(self, size_t address)
    cdef _sync_after_failure(self, int handle)
    cdef int _rename(self, bytes source, bytes target) noexcept
    cdef int _unlink(self, bytes path) noexcept
    cdef int _sync_dir(self, bytes path) noexcept
