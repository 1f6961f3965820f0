"""What a lock file says about the process that holds it: for the message to whoever comes second.

Three lines: process id, when it took the lock (Unix seconds), its command line. Nothing is decided by them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

__all__ = ["describe_holder", "holder_record"]

_COMMAND_MAX = 300


def holder_record() -> bytes:
    """The content of a lock file that this process takes now."""
    try:
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        words = [os.fsencode(word) for word in sys.orig_argv]
    command = b" ".join(words).decode("utf-8", "backslashreplace").encode("ascii", "backslashreplace")
    return b"%d\n%d\n%s\n" % (os.getpid(), time.time(), command.replace(b"\n", b" ")[:_COMMAND_MAX])


def describe_holder(content: bytes) -> str:
    """Who holds the lock, in words, from the content of the lock file; whatever that is."""
    pid, since, command = [*content.decode("ascii", "replace").split("\n"), "", ""][:3]
    if not pid.isdecimal() or len(pid) > 10:
        return "an unknown process"
    words = f"process {int(pid)}"
    if command:
        words += f" ({command})"
    if since.isdecimal() and len(since) <= 11:
        words += time.strftime(", since %Y-%m-%d %H:%M:%S UTC", time.gmtime(int(since)))
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        words += "; it has ended, but a process that it forked lives"
    except (OSError, OverflowError):
        pass  # it is another user's, or the number is none
    return words
