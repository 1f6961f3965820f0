"""What this node knows of one peer, over all connections with it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from everwrite.errors import PeerError
from everwrite.server.coordinator import region_positions
from everwrite.server.receiver import Receiver
from everwrite.server.sender import Sender
from everwrite.server.session import Identity
from everwrite.server.settings import ReplicationSettings

__all__ = ["Peer", "PeerAddress", "PeerTable"]

PEERS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A peer to dial. `node` None: whichever node answers, if it is of `region`. `address`: "host:port"."""

    region: str
    node: str | None
    address: str


class Peer:
    """One peer: the two connections, back-off, positions and figures.

    Invariant: at most one of `dialling` (a dial under way) and `receiver` (the dialled connection) is set.
    """

    def __init__(self, region: str, node: str | None, address: str | None) -> None:
        self.region = region
        self.node = node
        self.address = address
        self.any_node = node is None
        self.dialling: int | None = None
        self.dial_deadline: float | None = None
        self.redial_at: float | None = None
        self.attempts = 0
        self.retry_soon = True
        self.receiver: Receiver | None = None
        self.sender: Sender | None = None
        # The high watermark is the entry of this node's origin.
        self.acked: dict[int, int] = {}
        self.origin: int | None = None
        # How far the peer held the earlier incarnations of this node's store; None until it has said so.
        self.held_of_ours: dict[int, int] | None = None
        # While no connection sends: since when, and by how many changes, the peer is behind this node's log.
        self.behind_since: float | None = None
        self.behind_base: int | None = None
        self.last_heard: float | None = None
        self.connections = 0
        self.errors: Counter[str] = Counter()
        self.last_error: tuple[str, str] | None = None
        self._logged: dict[str, float] = {}
        self._past: Counter[str] = Counter()

    def __str__(self) -> str:
        return f"{self.region}/{self.node}" if self.node is not None else self.region

    def matches(self, identity: Identity) -> bool:
        """Whether a node of this identity may be this peer."""
        return identity.region == self.region and (self.any_node or identity.node == self.node)

    def check_certificate(self, identity: Identity, cluster: str) -> None:
        """Raise `PeerError` when what was dialled shows a certificate that isn't this peer's."""
        if identity.cluster != cluster:
            raise PeerError(
                f"{self.address} shows a certificate of the cluster {identity.cluster!r} and this node is of "
                f"{cluster!r}: check the peer's address",
                cause="wrong_cluster",
            )
        if not self.matches(identity):
            raise PeerError(
                f"{self.address} should be peer {self} but shows the certificate of {identity}: "
                "check the peer's address",
                cause="identity",
            )

    def backoff(self, settings: ReplicationSettings, rng: random.Random) -> float:
        """Seconds until the next dial: exponential with full jitter, above a floor that prevents busy loops."""
        ceiling = min(settings.backoff_max, settings.backoff_min * 2.0 ** min(self.attempts, 32))
        self.attempts += 1
        return settings.backoff_min + rng.uniform(0.0, max(0.0, ceiling - settings.backoff_min))

    def note_error(self, cause: str, message: str, now: float, repeat_interval: float) -> bool:
        """Count an error; True when it should be logged: the first of its cause, then now and then."""
        self.errors[cause] += 1
        self.last_error = (cause, message)
        logged_at = self._logged.get(cause)
        if logged_at is not None and now - logged_at < repeat_interval:
            return False
        self._logged[cause] = now
        return True

    def retire_receiver(self) -> None:
        """The dialled connection is over: keep its figures."""
        if self.receiver is not None:
            for name in ("batches", "changes", "pulls", "resyncs"):
                self._past[f"received_{name}"] += getattr(self.receiver, name)
            self._past["received_bytes"] += self.receiver.session.bytes_received
            self.receiver = None

    def retire_sender(self, local_changes: int) -> None:
        """The accepted connection is over: keep its figures and positions. `local_changes`: made so far here."""
        if self.sender is not None:
            self.behind_since = self.sender.behind_since()
            self.behind_base = self.sender.pending() + self.sender.unacked_changes - local_changes
            for name in ("batches", "changes", "resyncs", "pulls_served", "asks_served"):
                self._past[f"sent_{name}"] += getattr(self.sender, name)
            self._past["sent_bytes"] += self.sender.session.bytes_sent
            self.sender.close()
            self.sender = None

    def totals(self) -> Counter[str]:
        """Figures over all connections since the node started."""
        totals = Counter(self._past)
        if self.receiver is not None:
            for name in ("batches", "changes", "pulls", "resyncs"):
                totals[f"received_{name}"] += getattr(self.receiver, name)
            totals["received_bytes"] += self.receiver.session.bytes_received
        if self.sender is not None:
            for name in ("batches", "changes", "resyncs", "pulls_served", "asks_served"):
                totals[f"sent_{name}"] += getattr(self.sender, name)
            totals["sent_bytes"] += self.sender.session.bytes_sent
        return totals

    def send_lag_seconds(self, now: float) -> float:
        """Age of the oldest change of this node's log that the peer hasn't acknowledged; 0 when there is none."""
        since = self.sender.behind_since() if self.sender is not None else self.behind_since
        return 0.0 if since is None else max(0.0, now - since)

    def receive_lag_seconds(self, now: float) -> float | None:
        """How old this node's copy of the peer's log is; None when the peer was never heard."""
        if self.receiver is not None and self.receiver.session.hello is not None:
            return self.receiver.lag_seconds()
        return None if self.last_heard is None else max(0.0, now - self.last_heard)

    def send_lag_changes(self, local_changes: int) -> int | None:
        """How many changes the peer hasn't acknowledged; None when it hasn't connected since the start."""
        if self.sender is not None:
            return self.sender.pending() + self.sender.unacked_changes
        return None if self.behind_base is None else max(0, self.behind_base + local_changes)

    def told(self, origin: int, applied: Mapping[int, int]) -> None:
        """A hello has told the peer's origin and vector."""
        if origin == self.origin:
            # Another connection's acknowledgements may be newer than this hello.
            for known, timestamp in self.acked.items():
                if timestamp > applied.get(known, 0):
                    applied = {**applied, known: timestamp}
        self.origin = origin
        self.acked = dict(applied)

    def status(
        self, now: float, own_origin: int, local_changes: int, alive: bool | None, *, standby: bool = False
    ) -> dict[str, Any]:
        """The peer as /v1/status and the metrics show it. `local_changes`: made here since the start; `alive`:
        whether it counts for a quorum, None when it is of another region; `standby`: it gets this node's changes
        from another node of its region, so that no lag is known."""
        receiving = self.receiver is not None and self.receiver.session.hello is not None
        sender = self.sender
        last_error = self.last_error
        return {
            "region": self.region,
            "node": self.node,
            "address": self.address,
            "connected": receiving and sender is not None,
            "sending": sender is not None,
            "receiving": receiving,
            "resyncing": sender is not None and sender.resyncing,
            "standby": standby,
            "lag_seconds": None if standby else self.send_lag_seconds(now),
            "lag_changes": None if standby else self.send_lag_changes(local_changes),
            "acked": self.acked.get(own_origin, 0),
            "receive_lag_seconds": self.receive_lag_seconds(now),
            "receive_lag_changes": self.receiver.pending if self.receiver is not None else None,
            "receive_delay_ms": self.receiver.delay_ms if self.receiver is not None else None,
            "alive": alive,
            "phi": self.receiver.failure.phi(now) if receiving and self.receiver is not None else None,
            "unacked_bytes": sender.unacked_bytes if sender is not None else 0,
            "connections": self.connections,
            "errors": dict(self.errors),
            "last_error": None if last_error is None else {"cause": last_error[0], "message": last_error[1]},
            **self.totals(),
        }


class PeerTable:
    """All peers of a node: those configured, those that have connected, and who was turned away.

    Invariant: no more than PEERS_MAX of each, whoever connects.
    """

    def __init__(self, own_region: str, configured: Sequence[PeerAddress]) -> None:
        self._own_region = own_region
        self._peers = [Peer(peer.region, peer.node, peer.address) for peer in configured]
        self._strangers: dict[Identity | None, Peer] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers)

    def __len__(self) -> int:
        return len(self._peers)

    def settle(self, identity: Identity) -> Peer:
        """The peer that a node of this identity is, a new one if need be."""
        candidates = [peer for peer in self._peers if peer.matches(identity)]
        for peer in candidates:
            if peer.node == identity.node:
                return peer
        for peer in candidates:
            if peer.node is None or (peer.receiver is None and peer.sender is None):
                peer.node = identity.node
                return peer
        if len(self._peers) >= PEERS_MAX:
            raise PeerError(
                f"peer {identity} isn't configured, and {PEERS_MAX} peers are known already: restart this node if "
                "most of them are gone",
                cause="too_many",
            )
        peer = Peer(identity.region, identity.node, None)
        self._peers.append(peer)
        return peer

    def of_stranger(self, identity: Identity | None) -> Peer:
        """Where to count the errors of a connection that ended before its peer was settled."""
        if identity is not None:
            for known in self._peers:
                if known.matches(identity):
                    return known
            if identity in self._strangers or len(self._strangers) < PEERS_MAX:
                return self._strangers.setdefault(identity, Peer(identity.region, identity.node, None))
        return self._strangers.setdefault(None, Peer("unknown", None, None))

    def members(self, own: Identity) -> tuple[str, ...]:
        """The nodes of the own region by configuration, sorted; empty when one has no name there."""
        near = [peer for peer in self._peers if peer.region == own.region and peer.address is not None]
        if any(peer.any_node for peer in near):
            return ()
        return tuple(sorted([own.node, *(peer.node for peer in near if peer.node is not None)]))

    def region_positions(self, origin: int) -> dict[str, int]:
        """How far each other region has acknowledged the updates of `origin`."""
        return region_positions(
            (peer.region, peer.acked.get(origin, 0)) for peer in self._peers if peer.region != self._own_region
        )

    def totals(self) -> Counter[str]:
        """Figures over all peers since the start; errors as `errors_<cause>`."""
        totals: Counter[str] = Counter()
        for peer in (*self._peers, *self._strangers.values()):
            totals.update(peer.totals())
            totals.update({f"errors_{cause}": number for cause, number in peer.errors.items()})
        return totals
