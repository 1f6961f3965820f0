"""One replication connection as a state machine: bytes in, checked messages out, no I/O.

The node that dials is the receiver of the other's log, the node that accepts is its sender; a pair
of nodes has one connection each way. What may happen in which state is the table `TRANSITIONS`,
after h11: an event that the table doesn't list is an error, and its type says whose: `PeerError`
for a message that the peer should not have sent, `LocalProtocolError` for a step that this node
should not have taken.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

from everwrite.errors import LocalProtocolError, PeerError, ProtocolError
from everwrite.server import codec
from everwrite.server.messages import (
    PROTOCOL_VERSION,
    Ack,
    Answer,
    Ask,
    Batch,
    Goodbye,
    Heartbeat,
    Hello,
    KeyState,
    Message,
    Pull,
    Resync,
    ResyncEnd,
)
from everwrite.server.replicated_store import ReplicatedStore
from everwrite.server.settings import ReplicationSettings

__all__ = [
    "TRANSITIONS",
    "Identity",
    "Local",
    "Role",
    "Session",
    "State",
    "check_clock",
    "check_hello",
    "check_history",
    "check_members",
]


class Role(enum.Enum):
    """This node's part on the connection."""

    RECEIVER = "receiver"
    SENDER = "sender"


class State(enum.Enum):
    """Where the connection stands."""

    AWAIT_HELLO = "await hello"
    STREAMING = "streaming"
    PULLING = "pulling"
    RESYNCING = "resyncing"
    POSITIONING = "positioning"
    CLOSED = "closed"


class Local(enum.Enum):
    """Events that this node causes."""

    PULL_SENT = "pull sent"
    LOG_CUT = "log cut"
    RESYNC_SENT = "resync sent"
    POSITION_KNOWN = "position known"
    CLOSE = "close"


Event = type[Message] | Local

# A receiver in PULLING holds back what belongs to the stream and takes it through the table again,
# from STREAMING, once it has the state that it asked for.
TRANSITIONS: Final[dict[Role, dict[State, dict[Event, State]]]] = {
    Role.RECEIVER: {
        State.AWAIT_HELLO: {
            Hello: State.STREAMING,
            Goodbye: State.CLOSED,
            Local.CLOSE: State.CLOSED,
        },
        State.STREAMING: {
            Batch: State.STREAMING,
            Heartbeat: State.STREAMING,
            Resync: State.RESYNCING,
            Answer: State.STREAMING,
            Local.PULL_SENT: State.PULLING,
            Goodbye: State.CLOSED,
            Local.CLOSE: State.CLOSED,
        },
        State.PULLING: {
            KeyState: State.STREAMING,
            Batch: State.PULLING,
            Resync: State.PULLING,
            ResyncEnd: State.PULLING,
            Heartbeat: State.PULLING,
            Answer: State.PULLING,
            Goodbye: State.CLOSED,
            Local.CLOSE: State.CLOSED,
        },
        State.RESYNCING: {
            Batch: State.RESYNCING,
            Heartbeat: State.RESYNCING,
            Answer: State.RESYNCING,
            ResyncEnd: State.STREAMING,
            Goodbye: State.CLOSED,
            Local.CLOSE: State.CLOSED,
        },
        State.CLOSED: {Local.CLOSE: State.CLOSED},
    },
    Role.SENDER: {
        State.AWAIT_HELLO: {
            Hello: State.STREAMING,
            Goodbye: State.CLOSED,
            Local.CLOSE: State.CLOSED,
        },
        State.STREAMING: {
            Ack: State.STREAMING,
            Heartbeat: State.STREAMING,
            Pull: State.STREAMING,
            Ask: State.STREAMING,
            Local.LOG_CUT: State.RESYNCING,
            Goodbye: State.CLOSED,
            Local.CLOSE: State.CLOSED,
        },
        State.RESYNCING: {
            Ack: State.RESYNCING,
            Heartbeat: State.RESYNCING,
            Pull: State.RESYNCING,
            Ask: State.RESYNCING,
            Local.RESYNC_SENT: State.POSITIONING,
            Goodbye: State.CLOSED,
            Local.CLOSE: State.CLOSED,
        },
        State.POSITIONING: {
            Ack: State.POSITIONING,
            Heartbeat: State.POSITIONING,
            Pull: State.POSITIONING,
            Ask: State.POSITIONING,
            Local.POSITION_KNOWN: State.STREAMING,
            Goodbye: State.CLOSED,
            Local.CLOSE: State.CLOSED,
        },
        State.CLOSED: {Local.CLOSE: State.CLOSED},
    },
}


def event_name(event: Event) -> str:
    """The name of an event in messages and diagrams."""
    return event.value if isinstance(event, Local) else event.__name__


class Identity(NamedTuple):
    """Who a certificate says a node is: URI `everwrite://<cluster>/<region>/<node>`."""

    cluster: str
    region: str
    node: str

    def __str__(self) -> str:
        return f"{self.region}/{self.node}"


def check_hello(
    hello: Hello, identity: Identity, own: Identity, own_store_id: int, now_ms: int, max_clock_drift_ms: int
) -> None:
    """Refuse a peer that may not connect, by raising `PeerError` with the cause.

    `identity` is what the peer's certificate says, `now_ms` this node's wall clock. The peer's
    clock was read before its hello travelled, so that delay can't make a right clock look ahead.
    """
    who = f"peer {hello.region}/{hello.node}"
    if hello.protocol != PROTOCOL_VERSION:
        raise PeerError(
            f"{who} speaks replication protocol {hello.protocol} and this node {PROTOCOL_VERSION}: "
            "run releases that share a protocol",
            cause="protocol_version",
        )
    if hello.cluster != own.cluster:
        raise PeerError(
            f"{who} is of the cluster {hello.cluster!r} and this node of {own.cluster!r}: check the peer's address",
            cause="wrong_cluster",
        )
    claimed = Identity(hello.cluster, hello.region, hello.node)
    if claimed != identity:
        raise PeerError(
            f"{who} shows the certificate of {identity} in the cluster {identity.cluster!r}: "
            "each node needs the certificate of its own region and name",
            cause="identity",
        )
    if claimed == own:
        raise PeerError(
            f"{who} is this node itself: remove its own address from its peers, or rename one of the two",
            cause="self",
        )
    if hello.store_id == own_store_id or hello.origin >> 16 == own_store_id:
        raise PeerError(
            f"{who} has the same store id as this node ({own_store_id:#014x}): one data directory is a copy "
            "of the other; let the copy start with an empty directory",
            cause="same_store",
        )
    if hello.origin >> 16 != hello.store_id:
        raise PeerError(
            f"{who} names the origin {hello.origin:#018x}, which isn't of its store id {hello.store_id:#014x}",
            cause="protocol",
        )
    check_clock(who, hello.now_ms, now_ms, max_clock_drift_ms)


def check_members(hello: Hello, own: Identity, own_members: tuple[str, ...]) -> None:
    """Raise `PeerError` when a peer of the own region counts other nodes as the region's than this node does.

    Their majorities could have no node in common, and what one acknowledges the other would miss.
    """
    if hello.region == own.region and hello.members and own_members and hello.members != own_members:
        raise PeerError(
            f"peer {hello.region}/{hello.node} holds that its region is {', '.join(hello.members)}, and this node that "
            f"it is {', '.join(own_members)}: configure each node of a region with all the others as peers",
            cause="region_mismatch",
        )


def check_history(hello: Hello, who: str, own_origin: int, issued: int) -> None:
    """Raise `PeerError` when the peer holds updates of this node beyond `issued`, the newest that it has made."""
    held = hello.applied.get(own_origin, 0)
    if held > issued:
        raise PeerError(
            f"{who} holds updates of this node up to {held}, but this node has made them only up to {issued}: the "
            "data directory is an older copy of itself; start with an empty one",
            cause="stale_store",
        )


def check_clock(who: str, peer_ms: int, now_ms: int, max_clock_drift_ms: int) -> None:
    """Raise `PeerError` when the peer's clock is further ahead than `max_clock_drift_ms`."""
    ahead = peer_ms - now_ms
    if ahead > max_clock_drift_ms:
        raise PeerError(
            f"the clock of {who} is {ahead} ms ahead of this node's and at most {max_clock_drift_ms} ms are "
            "accepted: set the clocks right (NTP), then it connects by itself",
            cause="clock_drift",
        )


class Session:
    """The state of one connection, its framing and the times that heartbeats need.

    Times are seconds of the caller's clock. `peer` is who the other end is, by its certificate
    (accepted) or by configuration and then certificate (dialled).
    """

    def __init__(self, connection: int, role: Role, identity: Identity | None, now: float) -> None:
        self.connection = connection
        self.role = role
        self.identity = identity
        self.state = State.AWAIT_HELLO
        self.hello: Hello | None = None
        self.opened_at = now
        self.received_at = now
        self.heartbeat_at = now
        self.bytes_received = 0
        self.bytes_sent = 0
        self._decoder = codec.FrameDecoder()

    @property
    def who(self) -> str:
        """The peer in messages for people."""
        return f"peer {self.identity}" if self.identity is not None else "peer"

    @property
    def buffered(self) -> int:
        """Bytes received and not yet taken as messages."""
        return self._decoder.buffered

    def feed(self, now: float, data: bytes | bytearray) -> None:
        """Take received bytes."""
        self.received_at = now
        self.bytes_received += len(data)
        self._decoder.feed(data)

    def next_message(self) -> Message | None:
        """The next whole message, legal in the present state; None when there is none yet.

        Raises `PeerError` for bytes that aren't a message and for a message out of place.
        """
        try:
            message = self._decoder.next_message()
        except codec.OversizedError as error:
            raise PeerError(f"{self.who} sent an oversized frame: {error}", cause="oversized") from None
        except ProtocolError as error:
            raise PeerError(f"{self.who} sent garbage: {error}", cause="garbage") from None
        if message is not None:
            self.step(type(message))
        return message

    def accept_hello(self, hello: Hello) -> None:
        """The hello was checked: full-sized frames are welcome from here on."""
        self.hello = hello
        self._decoder.limit = codec.FRAME_BYTES_MAX

    def step(self, event: Event) -> None:
        """Move along the table."""
        target = TRANSITIONS[self.role][self.state].get(event)
        if target is None:
            what = f"{event_name(event)!r} while the session ({self.role.value}) is {self.state.value!r}"
            if isinstance(event, Local):
                raise LocalProtocolError(f"this node tried {what}")
            raise PeerError(f"{self.who} sent {what}", cause="illegal_message")
        self.state = target

    def due_times(self, settings: ReplicationSettings) -> tuple[float, ...]:
        """When its silence ends it, and when it has to say something again."""
        dead_at = self.received_at + settings.dead_after
        return (dead_at,) if self.hello is None else (dead_at, self.heartbeat_at + settings.heartbeat_interval)

    def greeting(
        self,
        own: Identity,
        store: ReplicatedStore,
        applied: Mapping[int, int],
        software: str,
        members: tuple[str, ...],
    ) -> bytes:
        """The frame of this node's hello, which tells the vector `applied` and the nodes of its region."""
        hello = Hello(
            PROTOCOL_VERSION, own.cluster, own.region, own.node, store.store_id, store.origin, store.now_ms(),
            dict(applied), software, members,
        )  # fmt: skip
        return self.encode(hello)

    def encode(self, message: Message) -> bytes:
        """The frame of a message, counted as sent."""
        frame = codec.encode(message)
        self.bytes_sent += len(frame)
        return frame
