"""Native status codes become exceptions here, and nowhere else."""

from libc.errno cimport errno
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strncpy

import errno as errno_numbers
import os

from everwrite import errors

cdef extern from *:
    """
    #if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L && !defined(__STDC_NO_THREADS__)
      #define EW_THREAD_LOCAL _Thread_local
    #else
      #define EW_THREAD_LOCAL __thread
    #endif
    """

cdef extern from *:
    """
    static EW_THREAD_LOCAL struct {
        int error_number;
        unsigned long long offset;
        char path[512];
        char reason[200];
        int refused;
        size_t key_size;
        char key[64];
    } ew_fault;
    static void* ew_fault_address(void) { return &ew_fault; }
    """
    void* ew_fault_address() noexcept nogil


cdef Fault* last_fault() noexcept nogil:
    return <Fault*>ew_fault_address()


cdef void _fill(const char* path, const char* reason) noexcept nogil:
    cdef Fault* fault = last_fault()
    strncpy(fault.path, path, sizeof(fault.path) - 1)
    fault.path[sizeof(fault.path) - 1] = 0
    strncpy(fault.reason, reason, sizeof(fault.reason) - 1)
    fault.reason[sizeof(fault.reason) - 1] = 0


cdef int fault_io(const char* path, const char* what) noexcept nogil:
    """Remember `errno` with what was being done to which file. Returns ERR_IO."""
    last_fault().error_number = errno
    last_fault().offset = 0
    _fill(path, what)
    return Status.ERR_IO


cdef int fault_corrupt(const char* path, unsigned long long offset, const char* reason) noexcept nogil:
    """Remember where stored bytes are damaged. Returns ERR_CORRUPT."""
    last_fault().error_number = 0
    last_fault().offset = offset
    _fill(path, reason)
    return Status.ERR_CORRUPT


cdef int fault_format(const char* path, unsigned long long version) noexcept nogil:
    """Remember which file has a format version that this release doesn't know. Returns ERR_FORMAT."""
    cdef char reason[64]
    snprintf(reason, sizeof(reason), "format version %llu is unknown to this release", version)
    last_fault().error_number = 0
    last_fault().offset = 0
    _fill(path, reason)
    return Status.ERR_FORMAT


cdef int fault_key(int status, Slice key) noexcept nogil:
    cdef Fault* fault = last_fault()
    fault.refused = status
    fault.key_size = key.size
    memcpy(fault.key, key.data, min(key.size, <size_t>KEY_SHOWN))
    return status


cdef object _exception(int status):
    cdef Fault* fault = last_fault()
    path = (<bytes>fault.path).decode("utf-8", "replace")
    reason = (<bytes>fault.reason).decode("utf-8", "replace")
    if status == Status.ERR_MEMORY:
        return MemoryError("out of memory")
    if status == Status.ERR_IO:
        number = fault.error_number
        return errors.StorageError(number, f"{reason}: {os.strerror(number)}", path)
    if status == Status.ERR_CORRUPT:
        return errors.CorruptionError(
            f"{path}: damaged at byte offset {fault.offset}: {reason}; "
            "restore the file from a backup or a replica",
            path=path,
            offset=fault.offset,
        )
    if status == Status.ERR_FORMAT:
        return errors.FormatError(f"{path}: {reason}; open it with the release that wrote it, or a newer one")
    if status == Status.ERR_FAILED:
        return errors.StorageError(
            f"the store stopped after an earlier failure ({path}: {reason}); close it, mend the disk and open it again"
        )
    if status == Status.ERR_READ_ONLY:
        return errors.ReadOnlyError(
            fault.error_number or errno_numbers.EROFS,
            f"{reason}: nothing was changed, and reads go on; writes work again once there is space",
            path,
        )
    kinds = {
        Status.ERR_CLOSED: (errors.ClosedError, "the store is closed"),
        Status.ERR_WRONG_TYPE: (errors.WrongTypeError, "it holds a value of another type; `Database.kind` names it"),
        Status.ERR_NOT_INTEGER: (errors.NotAnIntegerError, "the value is not a 64-bit integer; nothing was changed"),
        Status.ERR_OVERFLOW: (
            errors.OverflowError, "the result would leave the 64-bit integer range; nothing was changed"
        ),
        Status.ERR_TOO_LARGE: (
            errors.TooLargeError,
            "a key or an element's name over 65,536 bytes, a value over 64 MiB, or an update over 144 MiB in all; "
            "nothing was changed",
        ),
        Status.ERR_STATE_TOO_LARGE: (
            errors.TooLargeError, "its state is over 1 GiB and can't be sent to other stores: split the key"
        ),
        Status.ERR_DECODE: (errors.ProtocolError, "malformed bytes: nothing was applied"),
        Status.ERR_GUARD: (errors.ProtocolError, "the change builds on updates that this store lacks"),
        Status.ERR_CUT: (errors.LogCutError, "the log was cut past this reader's position; a full resync is needed"),
        Status.ERR_NOT_A_NUMBER: (ValueError, "a score is not a number, or an amount to add to one is not finite"),
        Status.ERR_NO_RIGHTS: (
            errors.InsufficientRightsError, "this store holds too few rights of the bounded counter"
        ),
        Status.ERR_NOT_A_POSITION: (ValueError, "the bytes are no position of a sequence"),
        Status.ERR_DRIFT: (errors.ClockDriftError, "a timestamp is too far ahead of this node's clock"),
    }
    kind, message = kinds.get(status, (errors.EverwriteError, f"unknown status {status}"))
    if fault.refused == status:
        # Only of this refusal: the next may not tell of its key.
        fault.refused = 0
        key = errors.shown_key(fault.key[: min(fault.key_size, <size_t>KEY_SHOWN)], fault.key_size)
        return kind(f"key {key}: {message}")
    return kind(message)


cdef int check(int status) except? -1:
    if status < 0:
        raise _exception(status)
    return status
