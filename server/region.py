"""This node's region: who its replicas are, which of them take part in quorums, and the questions to them.

Sans-I/O; the replication machine drives it. All nodes of a region are full replicas: this node and the peers that
are configured with its region.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from everwrite.errors import PeerError, ReadOnlyError
from everwrite.freshness import Conversation
from everwrite.server.effects import Answered, Effect, Log, RegionChanged, SendFrame
from everwrite.server.messages import Answer, Ask
from everwrite.server.peer import Peer
from everwrite.server.receiver import Receiver
from everwrite.server.region_asks import RegionAsks, Step
from everwrite.server.replicated_store import ReplicatedStore
from everwrite.server.reports import origin_names
from everwrite.server.session import State
from everwrite.server.settings import ReplicationSettings

__all__ = ["Completeness", "Region", "quorum_of"]

EVERYTHING: Final = (1 << 64) - 1


def quorum_of(replicas: int) -> int:
    """How many of the replicas are a majority."""
    return replicas // 2 + 1


class Completeness:
    """Whether this node holds all that it has ever acknowledged to its region, so that its answers count.

    A new store, and one that may have lost the end of its log, doesn't. A write that a quorum has acknowledged
    is still with quorum - 1 of the others, so replicas - quorum + 1 others include one that has it: when so many
    have said in a hello how far they are, and this node has come as far, nothing is missing. That it was so is
    written down, as a system entry of the store: a restart that loses nothing doesn't have to begin again.
    """

    def __init__(self, store: ReplicatedStore, region: str, others: int) -> None:
        self._store = store
        self._region = region
        self._needed = others + 1 - quorum_of(others + 1) + 1
        self._told: dict[int, Mapping[int, int]] = {}
        self._name = b"replica/%012x" % store.store_id
        noted = store.system_get(self._name)
        kept = noted is not None and (
            store.durability == "always" or msgspec.msgpack.decode(noted, type=int) == store.origin
        )
        self.complete = others == 0 or kept

    def told(self, replica: int, applied: Mapping[int, int]) -> None:
        """A replica says how far it is: with each hello anew, since it, too, may have lost the end of a log."""
        self._told[replica] = dict(applied)

    def check(self, committed: Mapping[int, int]) -> bool:
        """Look whether this node has caught up, given what is committed here; True when something was written."""
        if self.complete or len(self._told) < self._needed:
            return False
        # What other regions write isn't acknowledged here, and they may be out of reach. What this very process has
        # written it has, though it isn't in `committed` before something else is.
        names = origin_names(self._store)
        for applied in self._told.values():
            for origin, timestamp in applied.items():
                region = names[origin][0] if origin in names else self._region
                if region == self._region and origin != self._store.origin and committed.get(origin, 0) < timestamp:
                    return False
        self._store.system_set(self._name, msgspec.msgpack.encode(self._store.origin))
        self.complete = True
        return True


class Region:
    """The replicas of this node's region. `members` are the other ones; `emit` takes effects.

    Invariant: a question goes only to a replica that is alive, and counts only when it has answered as a whole.
    """

    def __init__(
        self,
        store: ReplicatedStore,
        region: str,
        members: list[Peer],
        settings: ReplicationSettings,
        emit: Callable[[Effect], None],
    ) -> None:
        self.completeness = Completeness(store, region, len(members))
        self._store = store
        self._members = members
        self._emit = emit
        self._asks = RegionAsks(settings)
        # Answers of which a piece has come and more are to come, by connection and token.
        self._conversations: dict[tuple[int, int], Conversation] = {}
        self._repairs = 0
        self.uncommitted = False  # something was joined that no commit covers yet
        self._shown: RegionChanged | None = None
        self._settings = settings
        self._event_at = math.inf

    # -- what the replicator drives ---------------------------------------------------------------

    def ask(self, now: float, question: bytes, answers: int, deadline: float) -> int:
        """Begin to ask; see `Replicator.ask`."""
        token, step = self._asks.begin(now, question, answers, deadline, self._available(now))
        self._take(step)
        return token

    def cancel(self, token: int) -> None:
        """Forget a question."""
        self._asks.cancel(token)

    def told(self, peer: Peer, applied: Mapping[int, int]) -> None:
        """A hello says how far a peer is."""
        if peer in self._members:
            self.completeness.told(self._members.index(peer), applied)

    def receive(self, now: float, link: Receiver, answer: Answer) -> None:
        """Take a piece of an answer: join what it brings. Raises what `join_piece` raises."""
        replica = self._replica_of(link)
        at = link.session.connection, answer.number
        if replica is None or not self._asks.waits_for(answer.number, replica):
            self._forget(at)
            return
        # Noted while it is joined: should that raise, the connection ends, and what it brought is forgotten with it.
        conversation = self._conversations.setdefault(at, Conversation())
        try:
            if answer.states:
                self._repairs += self._store.join_piece(answer.states, conversation)
                self.uncommitted = True
        except ReadOnlyError as error:
            self._emit(Log(logging.WARNING, "disk_full", f"an answer to a question can't be joined: {error}"))
            self._forget(at)
            self._take(self._asks.refused(now, answer.number, replica, self._available(now)))
            return
        if answer.more:
            return
        del self._conversations[at]
        if not conversation.whole:
            self._store.forget_parts(conversation)
            raise PeerError(f"{link.session.who} ended an answer in the middle of a state", cause="illegal_message")
        self._take(self._asks.answered(now, answer.number, replica))

    def link_lost(self, now: float, link: Receiver) -> None:
        """A connection on which questions were asked is gone; call it before its peer forgets it."""
        replica = self._replica_of(link)
        for at in [at for at in self._conversations if at[0] == link.session.connection]:
            self._forget(at)
        if replica is not None:
            others = [other for other in self._available(now) if other != replica]
            self._take(self._asks.lost(now, replica, others))

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._notice_pause(now)
        self._take(self._asks.tick(now, self._available(now)))

    def next_time(self, now: float) -> float | None:
        """When `tick` is due; None: not before something happens."""
        # Suspicion is a change that nothing but time brings.
        times = [at for peer in self._members if (at := self._suspected_at(peer)) is not None and at > now]
        return min((at for at in (self._asks.next_time(), *times) if at is not None), default=None)

    def is_alive(self, now: float, peer: Peer) -> bool | None:
        """Whether the peer can take part in a quorum; None when it is of another region."""
        return self._is_alive(now, peer) if peer in self._members else None

    def note_changes(self, now: float) -> None:
        """At the end of an event: say what has changed."""
        self._notice_pause(now)
        if not self._members and self._shown is not None:
            return
        held = sorted((peer.acked.get(self._store.origin, 0) for peer in self._members), reverse=True)
        replicas = len(held) + 1
        shown = RegionChanged(
            replicas,
            1 + len(self._available(now)),
            held[quorum_of(replicas) - 2] if held else EVERYTHING,
            held[-1] if held else EVERYTHING,
            not self.completeness.complete,
        )
        if shown != self._shown:
            self._shown = shown
            self._emit(shown)

    def others_connected(self) -> frozenset[str]:
        """The names of the other nodes that could answer for a quorum, those that are only suspected included."""
        able = (peer for peer in self._members if self._suspected_at(peer) is not None)
        return frozenset(peer.node for peer in able if peer.node is not None)

    def statistics(self) -> dict[str, int]:
        """Flat counters."""
        return {
            "region_replicas": len(self._members) + 1,
            "region_alive": self._shown.alive if self._shown is not None else 1,
            "recovering": int(not self.completeness.complete),
            "asks": self._asks.asked,
            "asks_failed": self._asks.failed,
            "asks_under_way": len(self._asks),
            "asks_speculative": self._asks.speculative,
            "answers": self._asks.answers,
            "repairs": self._repairs,
        }

    # -- within -----------------------------------------------------------------------------------

    def _notice_pause(self, now: float) -> None:
        """This node's own heartbeats are events, too: where these are missing it was this node that stood still.

        Then what came meanwhile isn't read yet, and says nothing against who sent it.
        """
        pause, self._event_at = now - self._event_at, now
        if pause > 2 * self._settings.region_heartbeat_interval:
            for peer in self._members:
                if peer.receiver is not None:
                    peer.receiver.failure.excuse(now, pause)

    def _forget(self, at: tuple[int, int]) -> None:
        conversation = self._conversations.pop(at, None)
        if conversation is not None:
            self._store.forget_parts(conversation)

    def _replica_of(self, link: Receiver) -> int | None:
        return next((number for number, peer in enumerate(self._members) if peer.receiver is link), None)

    def _available(self, now: float) -> list[int]:
        return [number for number, peer in enumerate(self._members) if self._is_alive(now, peer)]

    def _is_alive(self, now: float, peer: Peer) -> bool:
        at = self._suspected_at(peer)
        return at is not None and now < at

    def _suspected_at(self, peer: Peer) -> float | None:
        """Until when a peer that is connected both ways, and able to answer for a quorum, may stay silent."""
        receiver = peer.receiver
        if receiver is None or peer.sender is None or not receiver.complete:
            return None
        return None if receiver.session.state is State.CLOSED else receiver.failure.suspected_at()

    def _take(self, step: Step) -> None:
        for token, replica in step.sends:
            receiver = self._members[replica].receiver
            assert receiver is not None, "a replica that isn't connected was asked"
            session = receiver.session
            frame = session.encode(Ask(token, self._asks.question(token)))
            self._emit(SendFrame(session.connection, frame, urgent=True))
        for token, received in step.over:
            self._emit(Answered(token, received))
