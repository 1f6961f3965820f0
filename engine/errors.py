"""Every exception that Everwrite raises, in one tree.

Each message names what was wrong, where, and what to do about it.
"""

from __future__ import annotations

import enum

__all__ = [
    "AuthenticationError",
    "BackupError",
    "ClockDriftError",
    "ClosedError",
    "ConfigError",
    "ConnectionLostError",
    "CorruptionError",
    "DeadlineError",
    "EverwriteError",
    "FormatError",
    "GapError",
    "InsufficientRightsError",
    "LabError",
    "LocalProtocolError",
    "LockedError",
    "LogCutError",
    "NotAnIntegerError",
    "NotRunningError",
    "Outcome",
    "OverflowError",
    "PeerError",
    "PortInUseError",
    "ProtocolError",
    "ReadOnlyError",
    "ReadTimeout",
    "Recovering",
    "ServerError",
    "StorageError",
    "TooLargeError",
    "Unavailable",
    "UnreachableError",
    "WriteTimeout",
    "WrongTypeError",
    "first_of",
    "shown_key",
]


class Outcome(enum.Enum):
    """What is known of a write that a server was asked for and that ended in an error."""

    NOT_APPLIED = "not applied"
    UNKNOWN = "unknown"


class EverwriteError(Exception):
    """The root of the tree.

    Attributes, set where a client of a server raises: `outcome` (whether the request may have been applied
    all the same; a read is never applied) and `address` ("host:port" of the node that was asked last).
    """

    outcome: Outcome | None = None
    address: str | None = None


class ConfigError(EverwriteError, ValueError):
    """A setting, flag or configuration file is wrong; the message names file, key, value and what is allowed."""


class StorageError(EverwriteError, OSError):
    """The file system refused an operation. After a failed sync the handle stays failed for good."""


class ReadOnlyError(StorageError):
    """Writes are refused, nothing of this one was applied, and reads go on: the disk is full, or this is a snapshot.

    With a full disk, writes work again by themselves once there is space.
    """


class CorruptionError(StorageError):
    """Stored bytes don't match their checksum or contradict each other.

    Attributes: `path` (the file) and `offset` (in bytes, of the damage).
    """

    def __init__(self, message: str, *, path: str = "", offset: int = 0) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class FormatError(StorageError):
    """A file is of a format version that this release doesn't know; it was left untouched."""


class LockedError(StorageError):
    """Another process (or another handle of this one) has the store open; the message says which."""


class BackupError(StorageError):
    """A backup or restore can't be done here: the target is there already, or the source isn't a backup."""


class ClosedError(EverwriteError, ValueError):
    """The handle was closed."""


class WrongTypeError(EverwriteError, TypeError):
    """The key holds another type than the operation needs."""


class NotAnIntegerError(EverwriteError, ValueError):
    """The value isn't a 64-bit integer, so that it can't be incremented."""


class OverflowError(EverwriteError, ArithmeticError):
    """The result would leave the range of a signed 64-bit integer."""


class InsufficientRightsError(EverwriteError, ArithmeticError):
    """A bounded counter can't give away what this store holds no rights to; nothing has changed.

    Attributes: `requested` and `held` (amounts: what was asked for, and what this store could give),
    `elsewhere` (origin -> amount: where the rest lies, as far as this store knows).
    """

    def __init__(
        self, message: str, *, requested: int = 0, held: int = 0, elsewhere: dict[int, int] | None = None
    ) -> None:
        super().__init__(message)
        self.requested = requested
        self.held = held
        self.elsewhere = elsewhere or {}


class TooLargeError(EverwriteError, ValueError):
    """A key, value or batch is over its size limit."""


class ProtocolError(EverwriteError, ValueError):
    """A batch, frame or message can't be decoded; nothing of it was applied."""


class GapError(EverwriteError):
    """A batch starts beyond what this store holds; nothing of it was applied.

    Attributes: `origin` (int), `held` and `required` (timestamps): the updates of `origin`
    in the range (`held`, `required`] are missing.
    """

    def __init__(self, origin: int, held: int, required: int) -> None:
        super().__init__(
            f"the batch builds on updates of origin {origin:#018x} up to {required}, but this store "
            f"holds them only up to {held}: apply the batches of the range ({held}, {required}] first"
        )
        self.origin = origin
        self.held = held
        self.required = required


class ClockDriftError(EverwriteError):
    """A timestamp is further ahead of this node's clock than `max_clock_drift` allows; it was not merged."""


class LogCutError(EverwriteError):
    """The log no longer reaches back to where the reader stands; a full resync is needed."""


class PeerError(EverwriteError):
    """A peer broke the protocol, is of another cluster, or may not connect; the message says who and why.

    Attribute: `cause`, a short fixed name that statistics count by.
    """

    def __init__(self, message: str, *, cause: str = "protocol") -> None:
        super().__init__(message)
        self.cause = cause


class LocalProtocolError(EverwriteError, RuntimeError):
    """This node tried what the state of its session doesn't allow: a defect here, not the peer's."""


class PortInUseError(EverwriteError):
    """Another process listens on a port that is needed; the message names the port and the setting."""


class UnreachableError(EverwriteError, ConnectionError):
    """None of a client's addresses could be connected to; nothing was applied."""


class ConnectionLostError(EverwriteError, ConnectionError):
    """The connection ended before the reply, and the request may not be sent again; `outcome` says what is known."""


class DeadlineError(EverwriteError, TimeoutError):
    """A client's `timeout` was over before the reply; `outcome` says what is known."""


class AuthenticationError(EverwriteError, PermissionError):
    """The server wants a user name and password, or refused those that the client has."""


class ServerError(EverwriteError):
    """A server refused a command for a reason that has no class of its own.

    Attribute: `code`, the first word of the error reply ("ERR", "LOADING", "NOPROTO", ...).
    """

    def __init__(self, message: str, *, code: str = "ERR") -> None:
        super().__init__(message)
        self.code = code


class Unavailable(EverwriteError):
    """Too few replicas are alive for the consistency level; nothing was applied.

    Attributes: `required` and `alive` (numbers of replicas). Try again later, or at a lower level.
    """

    def __init__(self, message: str, *, required: int = 0, alive: int = 0) -> None:
        super().__init__(message)
        self.required = required
        self.alive = alive


class Recovering(Unavailable):
    """This node may lack what it once acknowledged, and takes no part until it has caught up; nothing was applied.

    Attributes as those of `Unavailable`. Ask another node of the region.
    """


class WriteTimeout(EverwriteError, TimeoutError):
    """Too few replicas acknowledged a write in time: it is applied on some, and may reach the others later.

    Attributes: `received` and `required` (numbers of replicas).
    """

    def __init__(self, message: str, *, received: int = 0, required: int = 0) -> None:
        super().__init__(message)
        self.received = received
        self.required = required


class ReadTimeout(EverwriteError, TimeoutError):
    """Too few replicas told in time what they hold of the keys; nothing was applied.

    Attributes: `received` and `required` (numbers of replicas).
    """

    def __init__(self, message: str, *, received: int = 0, required: int = 0) -> None:
        super().__init__(message)
        self.received = received
        self.required = required


class LabError(EverwriteError):
    """The lab can't do what was asked; nothing was changed."""


class NotRunningError(LabError):
    """No lab runs on the folder."""


KEY_SHOWN = 64


def shown_key(key: bytes, size: int | None = None) -> str:
    """A key as text for a message, shortened when it is long. `size`: how many bytes it has, if `key` is its start."""
    size = len(key) if size is None else size
    return repr(key) if size <= KEY_SHOWN else f"{key[:KEY_SHOWN]!r}... ({size:,} bytes)"


def first_of(group: BaseExceptionGroup[EverwriteError]) -> EverwriteError:
    """The first error in a group, as nurseries raise them: for those who can tell only one."""
    inner = group.exceptions[0]
    return first_of(inner) if isinstance(inner, BaseExceptionGroup) else inner
