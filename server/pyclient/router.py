"""Which node is asked next: the home region first, others after it, and back home when it answers again.

Sans-I/O: time and randomness are passed in. A client keeps to one node while that answers, so that it
reads there what it wrote there; different clients start at different nodes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from everwrite.client.addresses import Address

__all__ = ["Router"]

BACKOFF_MIN_SECONDS = 0.05
BACKOFF_MAX_SECONDS = 5.0


@dataclass(slots=True)
class _Node:
    address: Address
    region: str
    failures: int = 0
    retry_at: float = -math.inf  # not before this, unless `failures` is 0


class Router:
    """The nodes in order of preference, and which of them have failed lately.

    Invariant: a node with failures is offered to one request at a time: `choose` moves its `retry_at` on, and
    only `succeeded` makes it an ordinary choice again. Seconds are of the caller's clock.
    """

    def __init__(self, regions: Mapping[str, Sequence[Address]], home: str, rng: random.Random) -> None:
        self.home = home
        self._rng = rng
        self._nodes: dict[Address, _Node] = {}
        for region in sorted(regions, key=lambda name: name != home):  # stable: the others as they were given
            addresses = list(regions[region])
            rng.shuffle(addresses)
            for address in addresses:
                self._nodes[address] = _Node(address, region)

    def choose(self, now: float, *, tried: Collection[Address] = ()) -> Address | None:
        """The node to ask now; None when all have failed and none may be tried again yet.

        What a request has `tried` comes after everything else, however long ago that was.
        """
        usable = [node for node in self._nodes.values() if not node.failures or node.retry_at <= now]
        if not usable:
            return None
        node = next((node for node in usable if node.address not in tried), usable[0])
        if node.failures:
            node.retry_at = now + self._pause(node)
        return node.address

    def wait(self, now: float) -> float:
        """Seconds until `choose` has an answer."""
        return min(max(0.0, node.retry_at - now) if node.failures else 0.0 for node in self._nodes.values())

    def retry_in(self, address: Address, now: float) -> float:
        """Seconds until a request that can go nowhere else may try this node again."""
        node = self._nodes[address]
        return max(0.0, node.retry_at - now) if node.failures else 0.0

    def failed(self, address: Address, now: float) -> None:
        """The node didn't answer, or said that it can't serve."""
        node = self._nodes[address]
        node.failures += 1
        node.retry_at = now + self._pause(node)

    def succeeded(self, address: Address) -> None:
        """The node has answered."""
        self._nodes[address].failures = 0

    def alone(self, address: Address) -> bool:
        """Whether no other node could be asked at once."""
        return all(node.address == address or node.failures for node in self._nodes.values())

    def suspects(self) -> list[Address]:
        """The nodes that have failed and haven't answered since."""
        return [node.address for node in self._nodes.values() if node.failures]

    def _pause(self, node: _Node) -> float:
        # Jitter keeps the clients of a node that comes back from all returning at once.
        ceiling = min(BACKOFF_MAX_SECONDS, BACKOFF_MIN_SECONDS * 2.0 ** min(node.failures - 1, 16))
        return ceiling * self._rng.uniform(0.5, 1.0)
