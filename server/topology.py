"""Which links exist between nodes, and which origins each relays; the protocol is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Collection

__all__ = ["Topology", "mesh"]

# Which origins a link relays: the store ids whose records go to the peer, None for all.
Topology = Callable[[int, int], Collection[int] | None]


def mesh(own_store_id: int, peer_store_id: int) -> Collection[int] | None:
    """Every node has a link to every other: send what is one's own, and give back what the peer has lost."""
    return {own_store_id, peer_store_id}
