"""Error replies: which exception each is, whether the command was applied, and whether another node could do better."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Final

from everwrite.errors import (
    AuthenticationError,
    EverwriteError,
    NotAnIntegerError,
    Outcome,
    OverflowError,
    ReadOnlyError,
    ReadTimeout,
    ServerError,
    StorageError,
    TooLargeError,
    Unavailable,
    WriteTimeout,
    WrongTypeError,
)

__all__ = ["ErrorReply", "Remedy", "error_of"]


class ErrorReply(Exception):
    """An error reply as the parser found it; `str` is its text."""


class Remedy(enum.Enum):
    """What can be done about an error reply."""

    NONE = "none"
    OTHER_NODE = "other node"  # this one can't serve at the moment


_NUMBERS: Final = re.compile(r"\((?:required (\d+), alive (\d+)|received (\d+), required (\d+))\)")


def _unavailable(text: str) -> EverwriteError:
    required, alive, _, _ = _numbers(text)
    return Unavailable(text, required=required, alive=alive)


def _write_timeout(text: str) -> EverwriteError:
    _, _, received, required = _numbers(text)
    return WriteTimeout(text, received=received, required=required)


def _read_timeout(text: str) -> EverwriteError:
    _, _, received, required = _numbers(text)
    return ReadTimeout(text, received=received, required=required)


def _numbers(text: str) -> tuple[int, int, int, int]:
    found = _NUMBERS.search(text)
    required, alive, received, required_again = (int(each or 0) for each in found.groups()) if found else (0, 0, 0, 0)
    return required, alive, received, required_again


def _server_error(text: str) -> EverwriteError:
    return ServerError(text, code=text.partition(" ")[0])


_NO: Final = Outcome.NOT_APPLIED
_MAYBE: Final = Outcome.UNKNOWN

# The first pattern that the text begins with decides. The texts are those of docs/protocols/redis.md.
_KNOWN: Final[tuple[tuple[str, Callable[[str], EverwriteError], Outcome, Remedy], ...]] = (
    ("UNAVAILABLE ", _unavailable, _NO, Remedy.OTHER_NODE),
    ("WRITETIMEOUT ", _write_timeout, _MAYBE, Remedy.NONE),
    ("READTIMEOUT ", _read_timeout, _NO, Remedy.OTHER_NODE),
    ("MISCONF Errors writing to the log: the disk is full", ReadOnlyError, _NO, Remedy.OTHER_NODE),
    # The command ran, but its log couldn't be written: a restart may or may not find it.
    ("MISCONF ", StorageError, _MAYBE, Remedy.OTHER_NODE),
    ("LOADING ", _server_error, _NO, Remedy.OTHER_NODE),
    ("ERR max number of clients reached", _server_error, _NO, Remedy.OTHER_NODE),
    ("ERR the node's memory for requests is used up", _server_error, _NO, Remedy.OTHER_NODE),
    ("WRONGTYPE ", WrongTypeError, _NO, Remedy.NONE),
    ("NOAUTH ", AuthenticationError, _NO, Remedy.NONE),
    ("WRONGPASS ", AuthenticationError, _NO, Remedy.NONE),
    ("NOPERM ", AuthenticationError, _NO, Remedy.NONE),
    ("ERR AUTH ", AuthenticationError, _NO, Remedy.NONE),
    ("ERR value is not an integer", NotAnIntegerError, _NO, Remedy.NONE),
    ("ERR hash value is not an integer", NotAnIntegerError, _NO, Remedy.NONE),
    ("ERR increment or decrement would overflow", OverflowError, _NO, Remedy.NONE),
    ("ERR decrement would overflow", OverflowError, _NO, Remedy.NONE),
    ("ERR key is too long", TooLargeError, _NO, Remedy.NONE),
    ("ERR too long", TooLargeError, _NO, Remedy.NONE),
    ("ERR EW.ONCE: a later id", _server_error, _MAYBE, Remedy.NONE),
    ("OOM ", _server_error, _MAYBE, Remedy.NONE),
    ("ERR internal error", _server_error, _MAYBE, Remedy.NONE),
)


def error_of(text: str) -> tuple[EverwriteError, Remedy]:
    """The exception for an error reply, with its `outcome` as if the command were a write.

    >>> from everwrite.client.replies import error_of
    >>> error, remedy = error_of("UNAVAILABLE no quorum (required 2, alive 1)")
    >>> error.required, error.alive, error.outcome.value, remedy.value
    (2, 1, 'not applied', 'other node')
    """
    found = next((known for known in _KNOWN if text.startswith(known[0])), None)
    make, outcome, remedy = found[1:] if found else (_server_error, _NO, Remedy.NONE)
    error = make(text)
    error.outcome = outcome
    return error, remedy
