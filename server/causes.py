"""Which error ends a connection, and the short cause by which both sides count it."""

from __future__ import annotations

from typing import Final

from everwrite.errors import (
    ClockDriftError,
    CorruptionError,
    EverwriteError,
    GapError,
    LogCutError,
    PeerError,
    ProtocolError,
    ReadOnlyError,
    TooLargeError,
)

__all__ = ["cause_of"]

_CAUSES: Final[tuple[tuple[type[EverwriteError], str], ...]] = (
    (ClockDriftError, "clock_drift"),
    (GapError, "gap"),
    (ProtocolError, "bad_batch"),
    (TooLargeError, "bad_batch"),
    (LogCutError, "log_cut"),
    (CorruptionError, "corruption"),
    # The peer sends it again; until there is space, dialling again is put off more and more.
    (ReadOnlyError, "disk_full"),
)


def cause_of(error: EverwriteError) -> str | None:
    """The cause of a `Goodbye`; None when the error isn't one of a connection alone: the store has failed."""
    if isinstance(error, PeerError):
        return error.cause
    return next((cause for kind, cause in _CAUSES if isinstance(error, kind)), None)
