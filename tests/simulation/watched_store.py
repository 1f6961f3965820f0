"""A store seen through the oracle's eyes: notes what whole states carry from one node to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.reference.vocabulary import Dot

# What the effects are that a key's whole state carries, by the state's bytes: these travel through code under test.
Shipments = dict[bytes, frozenset[Dot]]


class WatchedStore:
    """Everything is the store's own, except that handing over and taking in a key's whole state is noted.

    `seen` tells the dots on a key that this store holds; `took` is told what a state brought, and
    under which dot it was joined.
    """

    def __init__(
        self,
        store: Any,
        shipments: Shipments,
        seen: Callable[[bytes], frozenset[Dot]],
        took: Callable[[Dot, bytes, frozenset[Dot]], None],
    ) -> None:
        self._store = store
        self._shipments = shipments
        self._seen = seen
        self._took = took

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def key_state(self, key: bytes) -> bytes:
        state: bytes = self._store.key_state(key)
        self._shipments[state] = self._seen(key)
        return state

    def supply_state(self, need: Any, state: bytes) -> None:
        self._store.supply_state(need, state)
        self._took(Dot(need.timestamp, need.origin), need.namespace_key, self._shipments[state])
