"""What the replication machine asks its shell to do.

The machine never performs I/O, reads a clock or draws from a global random source: each of its
methods takes `now` and returns a list of these. A shell (trio in transport.py, the simulator in
tests) performs them in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Answered",
    "Close",
    "Dial",
    "Effect",
    "Fail",
    "Log",
    "Persist",
    "RegionChanged",
    "Resolve",
    "Resume",
    "SendFrame",
    "SetTimer",
]


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a connection to `address` ("host:port"); then call `dialled` or `dial_failed` with `connection`."""

    connection: int
    address: str


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send these bytes on the connection, after what was sent before.

    `urgent`: ahead of whole frames that wait, but never of the connection's first one, the hello.
    """

    connection: int
    data: bytes
    urgent: bool = False


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
class Answered:
    """The question `token` is over: `received` replicas have answered, and what they knew more is in the store."""

    token: int
    received: int


@dataclass(frozen=True, slots=True)
class RegionChanged:
    """What this node knows of its region's replicas, itself among them; sent when one of these changes.

    `replicas` belong to the region, `alive` of them can take part in a quorum now. A quorum of them, and all,
    durably hold this node's own updates up to the timestamps `quorum_held` and `all_held` (2**64 - 1 when
    there are no others). While `recovering` this node may lack what it has once acknowledged, and can't
    take part in a quorum itself.
    """

    replicas: int
    alive: int
    quorum_held: int
    all_held: int
    recovering: bool = False


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


Effect = Dial | SendFrame | Close | SetTimer | Persist | Resume | Resolve | Answered | RegionChanged | Log | Fail
