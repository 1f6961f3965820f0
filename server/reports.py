"""What a node writes about itself into its own log stream: its name, and how far it has applied others.

Both are entries of the store's system namespace, so that they travel in log order with the data:
`origin/<16 hex digits>` names the region and node of an origin, `report/<12 hex digits of the store
id>` holds the durable applied vector. Stability is computed from these reports alone, because one
taken outside of the stream could overtake the changes that it covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from everwrite.server.replicated_store import ReplicatedStore
from everwrite.server.session import Identity

__all__ = ["Reporter", "announce_origin", "origin_names"]


class _OriginEntry(msgspec.Struct):
    region: str
    node: str


class _ReportEntry(msgspec.Struct):
    applied: dict[int, int]


def announce_origin(store: ReplicatedStore, identity: Identity) -> None:
    """Write the name of this node's origin, once an origin and name."""
    name = b"origin/%016x" % store.origin
    value = msgspec.msgpack.encode(_OriginEntry(identity.region, identity.node))
    if store.system_get(name) != value:
        store.system_set(name, value)


def origin_names(store: ReplicatedStore) -> dict[int, tuple[str, str]]:
    """(region, node) of every origin that has announced itself."""
    names: dict[int, tuple[str, str]] = {}
    for name, value in store.system_items(b"origin/"):
        try:
            entry = msgspec.msgpack.decode(value, type=_OriginEntry)
            names[int(name.removeprefix(b"origin/"), 16)] = (entry.region, entry.node)
        except ValueError:
            continue  # of a later release: the origin stays unnamed
    return names


class Reporter:
    """Decides when to write the report.

    A report follows changes to user keys only: one that followed reports would make two idle nodes
    answer each other for ever. A node whose earlier incarnations may have lost a tail stays silent
    until every configured peer has said how far it holds them and that much is back and durable;
    before that, its vector would let others collect what it has yet to relearn.
    """

    def __init__(self, store: ReplicatedStore, interval: float) -> None:
        self.recovered = False
        self._store = store
        self._interval = interval
        self._next_at = float("-inf")
        self._seen_changes = -1
        self._owed: dict[int, int] | None = None

    def held_of_ours(self, applied: Mapping[int, int]) -> dict[int, int]:
        """The part of a peer's vector that concerns earlier incarnations of this store."""
        store = self._store
        return {
            origin: timestamp
            for origin, timestamp in applied.items()
            if origin >> 16 == store.store_id and origin != store.origin
        }

    def due_at(self) -> float | None:
        """When `tick` has something to do; None: not before something changes."""
        if not self.recovered:
            return None
        if self._owed is None and self._store.user_changes == self._seen_changes:
            return None
        return self._next_at

    def check_recovered(self, told: Iterable[Mapping[int, int] | None]) -> None:
        """Look whether reports may begin. `told`: `held_of_ours` of every configured peer, None from one not heard."""
        if self.recovered:
            return
        durable = self._store.durable_applied
        for held in told:
            if held is None or any(durable.get(origin, 0) < timestamp for origin, timestamp in held.items()):
                return
        self.recovered = True

    def tick(self, now: float) -> bool:
        """Write the report if it is due; True when something was written."""
        due = self.due_at()
        if due is None or due > now:
            return False
        self._next_at = now + self._interval
        store = self._store
        if store.user_changes != self._seen_changes:
            self._seen_changes = store.user_changes
            self._owed = dict(store.applied)
        durable = dict(store.durable_applied)
        name = b"report/%012x" % store.store_id
        old = store.system_get(name)
        written = old is None or msgspec.msgpack.decode(old, type=_ReportEntry).applied != durable
        if written:
            store.system_set(name, msgspec.msgpack.encode(_ReportEntry(durable)))
        # Only now: on a full disk the report is still owed.
        if self._owed is not None and all(durable.get(origin, 0) >= ts for origin, ts in self._owed.items()):
            self._owed = None
        return written
