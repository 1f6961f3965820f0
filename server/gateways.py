"""The topology at work: what a node follows and sends, given its peers and how they are.

Sans-I/O; the replication machine drives it. A node that is alone in its region follows every peer and sends its own
updates, and to each peer what that one has lost (a mesh).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from everwrite.server.peer import Peer, PeerTable
from everwrite.server.region import Region
from everwrite.server.replicated_store import ReplicatedStore
from everwrite.server.reports import Reporter, origin_names
from everwrite.server.sender import Sender
from everwrite.server.session import Identity
from everwrite.server.topology import Place, View

__all__ = ["STANDBY", "Gateways"]

# The cause with which a node leaves a peer that another node of its region follows.
STANDBY: Final = "standby"


class Gateways:
    """See the module. What is alive is told by `region`."""

    def __init__(
        self,
        store: ReplicatedStore,
        identity: Identity,
        peers: PeerTable,
        reporter: Reporter,
        region: Region,
    ) -> None:
        self.several = any(peer.region == identity.region for peer in peers)
        # Some region has several nodes: then positions that only change by way of others are told, too.
        self.anywhere = len({identity.region, *(peer.region for peer in peers)}) < len(peers) + 1
        self._store = store
        self._own = Place(identity.region, identity.node)
        self._peers = peers
        self._reporter = reporter
        self._region = region
        self._named: frozenset[int] = frozenset()
        self._names: dict[int, Place] = {}
        self._view = View(self._own, store.store_id, frozenset({self._own.node}), {})

    def look(self) -> bool:
        """Look who is there; True when it isn't as it was the last time."""
        if not self.several:
            return False
        # Suspected ones included: to take over from a node that is slow for a second costs more than to wait.
        alive = self._region.others_connected()
        # One that has yet to catch up would relay late; but while nobody else is there, late is better than never.
        if self._region.completeness.complete or not alive:
            alive |= {self._own.node}
        places = {**self._names, **self._told(), self._store.store_id: self._own}
        if alive == self._view.alive and places == self._view.places:
            return False
        self._view = View(self._own, self._store.store_id, alive, places)
        return True

    def read_names(self) -> None:
        """Take in what stores have told of themselves in their logs."""
        origins = frozenset(self._store.applied)
        if self.several and origins != self._named:
            names = origin_names(self._store)
            self._names = {origin >> 16: Place(*name) for origin, name in names.items()}
            # An origin's name is the first of its updates; one that still lacks it is looked for again.
            self._named = origins & frozenset(names)

    def follows(self, peer: Peer) -> bool:
        """Whether this node should dial the peer and receive its log."""
        if not self.several or peer.node is None or self._owes(peer):
            return True
        return self._view.follows(Place(peer.region, peer.node))

    def carried(self, now: float, peer: Peer, link: Sender) -> Collection[int]:
        """The ids of the stores whose updates the link to the peer carries."""
        hello = link.session.hello
        assert hello is not None, "before its hello nothing is known of a peer"
        if not self.several:
            return {self._store.store_id, hello.store_id}
        # Not what is durable: without durability `always` streams carry more than that, and it may never become so.
        place, here = Place(hello.region, hello.node), self._store.applied
        stalled = {origin >> 16 for origin in link.stalls.look(now, link.acked, here)}
        share = self._view.carried(place, hello.store_id, {origin >> 16 for origin in here})
        return share | {store for store in stalled if self._view.may_help(place, store)}

    def reached_otherwise(self, peer: Peer) -> bool:
        """Whether this node's updates get to the peer through another node of its region."""
        if peer.sender is not None or peer.region == self._own.region:
            return False
        return any(other.sender is not None for other in self._peers if other.region == peer.region)

    def _owes(self, peer: Peer) -> bool:
        """Whether the peer may hold updates of earlier incarnations of this node's store that are lost here."""
        if self._reporter.recovered:
            return False
        held = peer.held_of_ours
        return held is None or any(self._store.durable_applied.get(o, 0) < ts for o, ts in held.items())

    def _told(self) -> Mapping[int, Place]:
        return {
            peer.origin >> 16: Place(peer.region, peer.node)
            for peer in self._peers
            if peer.origin is not None and peer.node is not None
        }
