"""A store seen through the oracle's eyes: every request and delivery goes through here and is checked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from everwrite.batch import CLAIM, decode_batch
from everwrite.clock import merge
from tests.reference.history import History, Pulled
from tests.reference.oracle import Effect, plan, plan_reap, view
from tests.reference.state_format import read_full_state
from tests.reference.vocabulary import Dot, Reply, Request, Vector, covers
from tests.reference.workload import make_request


@dataclass(slots=True)
class Replica:
    """A store, and what of the history it must have seen.

    For replication this is the store: whatever isn't defined here is the store's own.
    """

    store: Any
    history: History
    pulled: list[Pulled] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    # What it must hold.

    def restarted(self) -> None:
        """Forget what the store has lost: whether a state that was joined is among that, its context tells."""
        self.pulled[:] = [pull for pull in self.pulled if self._includes(pull)]

    def _includes(self, pull: Pulled) -> bool:
        context = self.store.context(pull.key)
        return all(covers(context, dot) for dot in pull.brought)

    def seen(self, key: bytes) -> list[Effect]:
        """The effects on the key that this replica holds."""
        applied = self.store.applied
        extra: frozenset[Dot] = frozenset()
        for pull in self.pulled:
            # A state that was supplied is joined with the first group that needs it, which may be another one than
            # it was asked for: of another link, after the first was lost. If none does any more, it never is.
            if pull.key == key and (pull.under is None or self._includes(pull)):
                extra |= pull.brought
        return self.history.covered(key, applied, extra)

    def seen_dots(self, key: bytes) -> frozenset[Dot]:
        return frozenset(effect.dot for effect in self.seen(key))

    def context(self, key: bytes) -> Vector:
        """The newest timestamp of each origin among the effects seen."""
        context: Vector = {}
        for effect in self.seen(key):
            context[effect.dot.origin] = max(context.get(effect.dot.origin, 0), effect.dot.timestamp)
        return context

    def check(self, key: bytes) -> None:
        """The store shows what the history says, now, and knows what it knows."""
        shown, expected = self.store.reading(key), view(self.seen(key), so_far=True).reading(self.store.now_ms())
        assert shown == expected, f"{key!r} on {self.store.origin:#x} shows {shown!r}, but must show {expected!r}"
        # What any store has collected counts as seen, whoever knows of it.
        held, context = (merge(each, self.history.collected) for each in (self.store.context(key), self.context(key)))
        assert held == context, f"{key!r} on {self.store.origin:#x} has the context {held}, but must have {context}"

    # What clients do.

    def make_request(self, random: Random, key: bytes) -> Request:
        """A random request that mostly fits what the key holds here."""
        kind = view(self.seen(key), so_far=True).visible(self.store.now_ms())
        return make_request(random, key, self.store.now_ms(), kind)

    def execute(self, request: Request) -> Reply:
        """Run a request; its answer must be what the history says."""
        seen = self.seen(request.key)
        expected, draft = plan(request, seen, self.store.now_ms(), self.store.origin)
        before = self.store.last_timestamp
        try:
            reply = self.store.execute(request)
            assert reply == expected, f"{request}: answered {reply!r}, but must answer {expected!r}"
        finally:
            # Also of an operation that failed the update may have been issued: its outcome is unknown.
            after = self.store.last_timestamp
            assert after == before or draft is not None, f"{request}: issued an update, against the rules"
            if draft is not None and after > before:
                self.history.record(draft, seen, Dot(after, self.store.origin))
        assert after > before or draft is None, f"{request}: issued no update, against the rules"
        return reply

    def reap(self, keys: tuple[bytes, ...]) -> int:
        """Let the store remove keys that are past their deadline, each an update; how many it removed."""
        reaped = self.store.reap(keys)
        for key, timestamp in reaped:
            seen = self.seen(key)
            draft = plan_reap(key, seen, self.store.now_ms())
            assert draft is not None, f"{key!r} was removed, but there was nothing to remove"
            self.history.record(draft, seen, Dot(timestamp, self.store.origin))
        return len(reaped)

    def collect(self, members: Collection[int], *, merge_tables: bool) -> bool:
        """Let the store drop what all members are known to hold; nothing that it shows may change."""
        raised: bool = self.store.collect(members, merge_tables=merge_tables)
        self.history.collected = merge(self.history.collected, self.store.horizon)
        for key in self.history.effects:
            self.check(key)
        return raised

    # What replication does.

    def open_stream(self, since: Mapping[int, int], store_ids: Collection[int] | None = None) -> WatchedStream:
        return WatchedStream(self, self.store.open_stream(since, store_ids))

    def key_state(self, namespace_key: bytes) -> bytes:
        state: bytes = self.store.key_state(namespace_key)
        key = namespace_key[1:]
        self.history.shipments[state] = [Pulled(None, key, self.seen_dots(key))]
        return state

    def answer_piece(self, question: bytes, limit: int) -> tuple[list[bytes], bytes]:
        states, rest = self.store.answer_piece(question, limit)
        for state in states:
            key = read_full_state(state)[0][1:]
            self.history.shipments[state] = [Pulled(None, key, self.seen_dots(key))]
        return states, rest

    def join_piece(self, states: list[bytes], conversation: Any) -> int:
        joined: int = self.store.join_piece(states, conversation)
        for state in states:
            self.pulled += self.history.shipments[state]
        return joined

    def supply_state(self, need: Any, state: bytes) -> bool:
        """Hand over a state: it is joined with a group that needs it, which a later `apply_batch` shows."""
        key = need.namespace_key[1:]
        before = self.store.context(key)
        self.store.supply_state(need, state)
        assert self.store.context(key) == before, f"the state of {key!r} was joined ahead of the group that needs it"
        under = Dot(need.timestamp, need.origin)
        self.pulled += [pull._replace(under=under) for pull in self.history.shipments[state]]
        return True

    def reconcile(self, other: Replica) -> None:
        """Join the states of keys that differ, both ways, outside of the logs."""
        seen = [(key, self.seen_dots(key), other.seen_dots(key)) for key in self.history.effects]
        before = [(self.store.context(key), other.store.context(key)) for key, _, _ in seen]
        self.store.reconcile(other.store)
        for (key, mine, theirs), (held, others_held) in zip(seen, before, strict=True):
            if self.store.context(key) != held:
                self.pulled.append(Pulled(None, key, theirs))
            if other.store.context(key) != others_held:
                other.pulled.append(Pulled(None, key, mine))

    def resync_batches(self, since: Mapping[int, int], store_ids: Collection[int] | None = None) -> Iterator[bytes]:
        # To whoever lacks what lies behind the horizon all keys are sent, those that it has, too.
        settled = all(since.get(origin, 0) >= stamp for origin, stamp in getattr(self.store, "horizon", {}).items())
        covered = dict(since) if settled else {}
        for batch in self.store.resync_batches(since, store_ids):
            # Of keys that were collected nothing is sent: what has become of them, the claim says.
            claims = decode_batch(batch).kind == CLAIM
            keys = [key for key in self.history.effects if claims is not bool(self.store.kept_context(key))]
            seen = {key: self.seen_dots(key) for key in keys}
            lacking = [
                Pulled(None, key, dots) for key, dots in seen.items() if not all(covers(covered, dot) for dot in dots)
            ]
            if lacking:
                self.history.shipments[batch] = lacking
            yield batch

    def apply_batch(self, batch: bytes) -> Any:
        before = dict(self.store.applied)
        need = self.store.apply_batch(batch)
        self._unpack(batch, before, whole=need is None)
        return need

    def apply(self, batch: bytes) -> None:
        """Apply a batch that is complete in itself."""
        before = dict(self.store.applied)
        self.store.apply(batch)
        self._unpack(batch, before, whole=True)

    def _unpack(self, batch: bytes, before: Vector, *, whole: bool) -> None:
        """Note the states that came with a batch; those under a dot that was applied before were skipped."""
        applied = self.store.applied
        for pull in self.history.shipments.get(batch, ()):
            if whole if pull.under is None else covers(applied, pull.under) and not covers(before, pull.under):
                self.pulled.append(pull)

    def receive(self, batch: bytes, sender: Replica) -> None:
        """Apply a batch, pulling what it needs from whoever sent it."""
        while (need := self.apply_batch(batch)) is not None:
            self.supply_state(need, sender.key_state(need.namespace_key))


class WatchedStream:
    """A replica's stream: notes the states that go ahead of changes whose receiver may lack what they build on."""

    def __init__(self, replica: Replica, stream: Any) -> None:
        self.replica = replica
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def next_batch(self, *limits: int) -> bytes | None:
        batch: bytes | None = self.stream.next_batch(*limits)
        if batch is not None:
            self.replica.history.shipments[batch] = [
                Pulled(under, key, self.replica.seen_dots(key))
                for key, under in self.replica.store.pushed_states(batch)
            ]
        return batch
