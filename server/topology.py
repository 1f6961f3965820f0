"""Who follows whom across regions of several nodes, and which origins a link carries. Pure: no I/O, no clock.

Every node holds everything, so an origin has to cross to another region once: there one node, the gateway, follows
it and relays it to its neighbours. Which one is settled without a word between nodes, by rendezvous hashing
(Thaler and Ravishankar, *Using name-based mappings to increase hit rates*, IEEE/ACM Trans. Netw. 6(1), 1998) over
the nodes of the region that are alive: when one goes, only what it followed moves.

Nodes may see different neighbours alive for a while. Two gateways of one origin are then one too many, which costs
traffic: what arrives twice is ignored. None at all, or a relay that has nothing to relay, is what `Stalls` finds:
a peer that lacks something and doesn't get it gets it from whoever sees that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Place", "Stalls", "View", "gateway_of"]


class Place(NamedTuple):
    """Where a node is in the cluster."""

    region: str
    node: str


def gateway_of(followed: Place, alive: Iterable[str]) -> str:
    """The one of the nodes `alive` of a region that follows a node of another region, or speaks for one of its own."""

    def weight(node: str) -> bytes:
        return hashlib.blake2b(f"{node}\0{followed.region}\0{followed.node}".encode(), digest_size=8).digest()

    return max(alive, key=lambda node: (weight(node), node))


@dataclass(frozen=True, slots=True)
class View:
    """What a node knows when it decides: itself, which nodes of its region are alive (itself among them), and which
    node each store, by its id, belongs or belonged to."""

    own: Place
    own_store: int
    alive: frozenset[str]
    places: Mapping[int, Place]

    def follows(self, peer: Place) -> bool:
        """Whether this node receives the peer's log from the peer itself."""
        return peer.region == self.own.region or gateway_of(peer, self.alive) == self.own.node

    def carried(self, peer: Place, peer_store: int, stores: Iterable[int]) -> frozenset[int]:
        """Those of `stores`, the ids of all stores that this one knows, whose updates the link to the peer carries.

        Always this node's own, and the peer's own, which gives it back what it has lost. Across regions besides
        those of neighbours that are down, from the one node that speaks for them; within the region besides what
        this node follows for its neighbours, what is left of neighbours that are down, which each may hold more of
        than the others, and stores of which nobody has told whose they are.
        """
        own, near = self.own, peer.region == self.own.region
        carried = {self.own_store, peer_store}
        for store in stores:
            place = self.places.get(store)
            if place is None:
                wanted = near
            elif place.region != own.region:
                wanted = near and gateway_of(place, self.alive) == own.node
            elif place.node in self.alive:
                wanted = place == own  # an earlier store of this very node
            else:
                wanted = near or gateway_of(place, self.alive) == own.node
            if wanted:
                carried.add(store)
        return frozenset(carried)

    def may_help(self, peer: Place, store: int) -> bool:
        """Whether the link to the peer may carry a store beyond its share because the peer gets it from nobody.

        Between regions only what is of one of the two: a cut between two others is for their links to get over.
        """
        place = self.places.get(store)
        return peer.region == self.own.region or (place is not None and place.region in (self.own.region, peer.region))


class Stalls:
    """Of which origins one peer lacks something, and since when it has got nothing more of it.

    An origin is stalled from the time that the peer's position has stood still for `after` seconds while this node
    held more, until the peer has what this node held at that time: the usual way then has to fail anew.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        # The position that stands still and since when; of what is stalled, the position to get to.
        self._still: dict[int, tuple[int, float]] = {}
        self._stalled: dict[int, int] = {}

    def look(self, now: float, peer: Mapping[int, int], here: Mapping[int, int]) -> Set[int]:
        """The origins that are stalled now, given the peer's applied vector and this node's."""
        for origin, target in list(self._stalled.items()):
            if peer.get(origin, 0) >= target:
                del self._stalled[origin]
        for origin, held in here.items():
            position = peer.get(origin, 0)
            if position >= held:
                self._still.pop(origin, None)
                continue
            still = self._still.get(origin)
            if still is None or still[0] != position:
                self._still[origin] = position, now
            elif now - still[1] >= self._after:
                self._stalled.setdefault(origin, held)
        return self._stalled.keys()
