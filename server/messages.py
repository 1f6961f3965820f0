"""What two nodes say to each other on a replication connection.

The node that dials receives the log of the node that it dialled. Both say `Hello` first.
Each message is one msgpack array whose first item is the tag (see docs/protocols/replication.md);
items beyond those named here are ignored, so that a later release can add to a message.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

__all__ = [
    "PROTOCOL_VERSION",
    "Ack",
    "Answer",
    "Ask",
    "Batch",
    "Goodbye",
    "Heartbeat",
    "Hello",
    "KeyState",
    "Message",
    "Pull",
    "Resync",
    "ResyncEnd",
]

PROTOCOL_VERSION: Final = 1

Unsigned = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Vector = dict[Unsigned, Unsigned]


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Who speaks, and how far it has applied each origin's log.

    From the node that dials, `applied` is also where it wants the stream to start.
    `now_ms` is the speaker's wall clock, Unix milliseconds; `members` are the nodes of the speaker's region as it is
    configured, itself among them, sorted.
    """

    protocol: Unsigned
    cluster: Name
    region: Name
    node: Name
    store_id: Unsigned
    origin: Unsigned
    now_ms: Unsigned
    applied: Vector
    software: Annotated[str, msgspec.Meta(max_length=128)] = ""
    members: tuple[Name, ...] = ()


class Batch(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A stretch of the sender's log, or of a resync. `sequence` counts from 1 on each connection.

    `data` is what `Store.apply_batch` takes, compressed already.
    """

    sequence: Unsigned
    changes: Unsigned
    last_timestamp: Unsigned
    data: bytes


class Ack(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """All batches up to `sequence` are applied and committed; `applied` is the receiver's vector after them."""

    sequence: Unsigned
    applied: Vector


class Heartbeat(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Sent both ways. `newest` is the newest timestamp of the speaker's own origin, `pending` how many
    changes it has yet to send on this connection (0 from a receiver). `complete`: the speaker holds all that it
    has ever acknowledged, so that its answers count for a quorum."""

    now_ms: Unsigned
    newest: Unsigned
    pending: Unsigned
    complete: bool


class Pull(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The receiver needs the whole state of `key` to apply the change (`origin`, `timestamp`)."""

    key: bytes
    origin: Unsigned
    timestamp: Unsigned


class KeyState(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """The answer to a `Pull`: the state of `key` as the sender holds it."""

    key: bytes
    state: bytes


class Resync(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """The log no longer reaches back to the receiver: whole states follow, up to `ResyncEnd`."""

    reason: Annotated[str, msgspec.Meta(max_length=1024)]


class ResyncEnd(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """All whole states are sent; the log stream goes on after the receiver has acknowledged `sequence`."""

    sequence: Unsigned


class Goodbye(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """The speaker closes the connection: a short machine-readable cause, and a sentence for people."""

    cause: Annotated[str, msgspec.Meta(max_length=64)]
    message: Annotated[str, msgspec.Meta(max_length=1024)]


class Ask(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """The receiver wants to know what the sender knows more of some keys than it does; `question` is of
    `Database.question`. `number` is the receiver's name for it."""

    number: Unsigned
    question: bytes


class Answer(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """The answer to an `Ask`, or a piece of it: states, and parts of states, of the keys of which the sender
    knows more. `more`: another piece follows."""

    number: Unsigned
    states: list[bytes]
    more: bool


Message = Hello | Batch | Ack | Heartbeat | Pull | KeyState | Resync | ResyncEnd | Goodbye | Ask | Answer
