"""What the replication machine asks its shell to do.

The machine never performs I/O, reads a clock or draws from a global random source: each of its
methods takes `now` and returns a list of these. A shell (trio in transport.py, the simulator in
tests) performs them in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Close", "Dial", "Effect", "Fail", "Log", "Persist", "Resolve", "Resume", "SendFrame", "SetTimer"]


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a connection to `address` ("host:port"); then call `dialled` or `dial_failed` with `connection`."""

    connection: int
    address: str


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send these bytes on the connection, after what was sent before."""

    connection: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Send what is queued (for a bounded time), then close; `disconnected` need not be called for it."""

    connection: int
    reason: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Call `timer(now)` once `now` has reached `at` (seconds). Replaces the timer set before; None: no timer."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Persist:
    """Call `store.commit()`, then `persisted(now)`. At most one is under way."""


@dataclass(frozen=True, slots=True)
class Resume:
    """More received messages wait on this connection: let others run, then call `resume(now, connection)`."""

    connection: int


@dataclass(frozen=True, slots=True)
class Resolve:
    """The wait `token` is over: `regions` other regions hold what it waited for."""

    token: int
    regions: int


@dataclass(frozen=True, slots=True)
class Log:
    """Something an operator wants to know. `level` is a level of `logging`; `event` a short fixed name."""

    level: int
    event: str
    message: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fail:
    """The local store can't go on (a failed write or sync, damage): stop serving, exit code not 0."""

    error: Exception


Effect = Dial | SendFrame | Close | SetTimer | Persist | Resume | Resolve | Log | Fail
