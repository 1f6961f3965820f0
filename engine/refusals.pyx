"""When writes are refused; see refusals.pxd."""

import errno
import time

from everwrite.scans cimport ScannedKeyspace
from everwrite.status cimport Status, check

from everwrite.errors import ClosedError, ReadOnlyError, StorageError

# Before what failed for want of space is tried again.
RETRY_SECONDS = 1.0


cdef class RefusingKeyspace(ScannedKeyspace):
    """Keys whose writes are refused after a failure for good, and for want of space until there is some."""

    def stop_writing(self, error):
        """Refuse all writes from now on, because of this exception, unless there was one before."""
        # Never retried: after a failed sync nobody knows what the device holds.
        if self.failure is None:
            self.failure = error
        self.refused = Status.ERR_FAILED

    def _attempt(self, int work, job):
        """Do what writes depend on sooner or later. Without space they are refused until it succeeds."""
        try:
            job()
        except StorageError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.lacking |= work
            self.shortage = error
            self.retry_at = time.monotonic() + RETRY_SECONDS
            if not self.refused:
                self.refused = Status.ERR_READ_ONLY
        else:
            self.lacking &= ~work
            if not self.lacking and self.refused == Status.ERR_READ_ONLY:
                self.refused = Status.OK

    cdef int _check(self, int status) except? -1:
        if status >= 0:
            return status
        if self.closed and self.failure is None:
            raise ClosedError(f"{self.path}: the store is closed")
        if status == Status.ERR_READ_ONLY:
            raise ReadOnlyError(
                errno.ENOSPC,
                f"the disk is full ({self._why_read_only(status)}): nothing was changed, and reads go on; "
                "writes work again by themselves once there is space",
                self.path,
            )
        if self.failed or status == Status.ERR_FAILED:
            if self.failure is None:
                try:
                    check(status)
                except Exception as error:
                    self.stop_writing(error)
            raise StorageError(
                f"{self.path}: the store stopped after a failure ({self.failure}): no write is accepted any more; "
                "close it, mend the cause and open it again"
            ) from self.failure
        return check(status)

    def _why_read_only(self, int status):
        if self.lacking:
            return self.shortage
        try:
            check(status)
        except ReadOnlyError as error:
            return error.filename

    @property
    def failed_with(self):
        """The exception after which this store stopped accepting writes for good, or None."""
        return self.failure

    @property
    def read_only_because(self):
        """The exception for want of space after which writes are refused at the moment, or None."""
        return self.shortage if self.lacking else None
