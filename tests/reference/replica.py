"""A replica beside the oracle: runs requests and deliveries, and checks every answer against the history."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tests.reference.history import History
from tests.reference.model_store import ModelStore, Need
from tests.reference.oracle import Effect, plan, plan_reap, view
from tests.reference.vocabulary import Dot, Reading, Reply, Request, Vector
from tests.reference.workload import make_request


@dataclass(slots=True)
class Replica:
    """A store, and what of the history it must have seen.

    `pulled` are the states that came whole: the dot under which each was joined, its key, and the
    effects it brought. They count as seen as long as the store holds that dot.
    """

    store: ModelStore
    history: History
    pulled: list[tuple[Dot, bytes, frozenset[Dot]]] = field(default_factory=list)

    def restarted(self) -> None:
        """Forget what the store has lost."""
        applied = self.store.applied
        self.pulled[:] = [pull for pull in self.pulled if applied.get(pull[0].origin, 0) >= pull[0].timestamp]

    def seen(self, key: bytes) -> list[Effect]:
        """The effects on the key that this replica holds."""
        extra: frozenset[Dot] = frozenset()
        for under, pulled_key, dots in self.pulled:
            if pulled_key == key and self.store.applied.get(under.origin, 0) >= under.timestamp:
                extra |= dots
        return self.history.covered(key, self.store.applied, extra)

    def context(self, key: bytes) -> Vector:
        """The newest timestamp of each origin among the effects seen."""
        context: Vector = {}
        for effect in self.seen(key):
            context[effect.dot.origin] = max(context.get(effect.dot.origin, 0), effect.dot.timestamp)
        return context

    def expected(self, key: bytes) -> Reading:
        """What a read must show here and now."""
        return view(self.seen(key), so_far=True).reading(self.store.now_ms())

    def make_request(self, random: Random, key: bytes) -> Request:
        """A random request that mostly fits what the key holds here."""
        kind = view(self.seen(key), so_far=True).visible(self.store.now_ms())
        return make_request(random, key, self.store.now_ms(), kind)

    def execute(self, request: Request) -> Reply:
        """Run a request; its answer must be what the history says."""
        seen = self.seen(request.key)
        expected, draft = plan(request, seen, self.store.now_ms(), self.store.origin)
        before = self.store.last_timestamp
        reply = self.store.execute(request)
        assert reply == expected, f"{request}: answered {reply!r}, but must answer {expected!r}"
        after = self.store.last_timestamp
        assert (after > before) is (draft is not None), f"{request}: issued an update, or none, against the rules"
        if draft is not None:
            self.history.record(draft, seen, Dot(after, self.store.origin))
        return reply

    def reap(self, key: bytes) -> bool:
        """Remove what is left of an expired key; whether the history has something to remove."""
        seen = self.seen(key)
        draft = plan_reap(key, seen, self.store.now_ms())
        reaped = self.store.reap(key)
        assert reaped is (draft is not None), f"{key!r} was reaped, or wasn't, against the rules"
        if draft is not None:
            self.history.record(draft, seen, Dot(self.store.last_timestamp, self.store.origin))
        return bool(reaped)

    def receive(self, batch: bytes, sender: Replica) -> None:
        """Apply a batch, pulling what it needs from whoever sent it."""
        while (need := self.store.apply_batch(batch)) is not None:
            self.pull(need, sender)

    def pull(self, need: Need, sender: Replica) -> None:
        """Fetch one key's whole state."""
        key = need.namespace_key[1:]
        brought = frozenset(effect.dot for effect in sender.seen(key))
        self.store.supply_state(need, sender.store.key_state(need.namespace_key))
        self.pulled.append((Dot(need.timestamp, need.origin), key, brought))

    def check(self, key: bytes) -> None:
        """The store shows what the history says, now."""
        shown, expected = self.store.reading(key), self.expected(key)
        assert shown == expected, f"{key!r} on {self.store.origin:#x} shows {shown!r}, but must show {expected!r}"
