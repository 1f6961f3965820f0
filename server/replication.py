"""The replication machine of one node: every connection with every peer, no I/O.

Thread safety: none; one thread drives it. Each method that takes `now` (seconds of any steady
clock) returns the effects to perform, in order. The wall clock is the store's.

Invariants:
- A batch is acknowledged only after a `store.commit()` that began when it was applied as a whole.
- At most one dialled and one accepted connection a peer; a newer one replaces the older.
- What is queued for a peer is bounded by its window: the log is the queue.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from everwrite.errors import EverwriteError, PeerError, StorageError
from everwrite.server.causes import cause_of
from everwrite.server.coordinator import AckWaits, Verdict, verdict
from everwrite.server.dialler import Dialler
from everwrite.server.effects import Close, Effect, Fail, Log, Persist, Resolve, Resume, SendFrame, SetTimer
from everwrite.server.gateways import STANDBY, Gateways
from everwrite.server.messages import (
    Answer,
    Ask,
    Batch,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Pull,
    Resync,
)
from everwrite.server.peer import Peer, PeerAddress, PeerTable
from everwrite.server.receiver import Receiver
from everwrite.server.region import Region
from everwrite.server.replicated_store import ReplicatedStore
from everwrite.server.reports import Reporter, announce_origin
from everwrite.server.sender import Sender
from everwrite.server.session import Identity, Role, Session, check_clock, check_hello, check_history, check_members
from everwrite.server.settings import ReplicationSettings

__all__ = ["Replicator"]


class Replicator:
    """See the module. `identity` is this node; `peers` are dialled, others may connect with a certificate."""

    def __init__(
        self,
        store: ReplicatedStore,
        identity: Identity,
        peers: Sequence[PeerAddress],
        *,
        rng: random.Random,
        settings: ReplicationSettings | None = None,
        software: str = "",
    ) -> None:
        self.identity = identity
        self.settings = settings if settings is not None else ReplicationSettings()
        self.peers = PeerTable(identity.region, peers)
        self.waits = AckWaits()
        self._store = store
        self._software = software
        self._reporter = Reporter(store, self.settings.report_interval)
        self._links: dict[int, Receiver | Sender] = {}
        self._peer_of: dict[int, Peer] = {}
        self._effects: list[Effect] = []
        members = [peer for peer in self.peers if peer.region == identity.region]
        self.region = Region(
            store, identity.region, members, self.settings, lambda effect: self._effects.append(effect)
        )
        self._gateways = Gateways(store, identity, self.peers, self._reporter, self.region)
        self._dialler = Dialler(self.peers, self.settings, rng, self._gateways.follows)
        self._timer_at: float | None = None
        # The applied vector as of the last commit that has ended, and of the one under way.
        self._committed: dict[int, int] = {}
        self._committing: tuple[dict[int, int], dict[int, int]] | None = None
        self._stopping = False
        self._failed = False

    # -- the shell's events -----------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Begin: announce this node's origin, dial every peer."""
        self._committed = dict(self._store.applied)
        self._guard(now, None, lambda: announce_origin(self._store, self.identity))
        for peer in self.peers:
            peer.behind_since = now
        self._dialler.arrange(now)
        return self._finish(now)

    def accepted(self, now: float, identity: Identity) -> tuple[int, list[Effect]]:
        """A peer has connected and its certificate says `identity`. Returns the connection's number."""
        connection = self._dialler.take_number()
        session = Session(connection, Role.SENDER, identity, now)
        for old in list(self._links.values()):
            if old.session.hello is None and old.session.role is Role.SENDER and old.session.identity == identity:
                self._refuse(now, old, "replaced", f"peer {identity} has connected anew", quiet=True)
        self._links[connection] = Sender(session, self._store, self._settings_for(identity))
        return connection, self._finish(now)

    def dialled(self, now: float, connection: int, identity: Identity) -> list[Effect]:
        """A dial has succeeded and the peer's certificate says `identity`."""
        peer = self._dialler.ended(connection)
        if peer is None:
            return [Close(connection, "no longer wanted")]
        self._peer_of[connection] = peer
        session = Session(connection, Role.RECEIVER, identity, now)
        receiver = Receiver(session, self._store, self._settings_for(identity))
        self._links[connection] = peer.receiver = receiver
        try:
            peer.check_certificate(identity, self.identity.cluster)
            peer.node = identity.node
        except PeerError as error:
            self._refuse(now, receiver, error.cause, str(error))
            return self._finish(now)
        receiver.begin(self._send_hello(session))
        return self._finish(now)

    def dial_failed(self, now: float, connection: int, reason: str) -> list[Effect]:
        """A dial has failed."""
        peer = self._dialler.ended(connection)
        if peer is not None:
            self._unreachable(now, peer, reason)
        return self._finish(now)

    def received(self, now: float, connection: int, data: bytes | bytearray | None) -> list[Effect]:
        """Bytes have arrived, in any division; None: go on with those that have arrived before."""
        link = self._links.get(connection)
        if link is None or self._failed:
            return []
        if data is not None:
            link.session.feed(now, data)
        self._drain(now, link)
        return self._finish(now)

    def resume(self, now: float, connection: int) -> list[Effect]:
        """Go on with what has arrived before; the answer to a `Resume`."""
        return self.received(now, connection, None)

    def disconnected(self, now: float, connection: int, reason: str) -> list[Effect]:
        """A connection is gone. Unknown and closed ones are ignored."""
        link = self._links.get(connection)
        if link is not None:
            peer = self._peer_of.get(connection)
            if peer is not None and not self._stopping:
                self._note(now, peer, "disconnected", f"the connection with peer {peer} has ended: {reason}")
            self._drop(now, link)
        return self._finish(now)

    def local_write(self, now: float) -> list[Effect]:
        """The local log has grown. Cheap when nothing is to be sent at once."""
        scheduled = False
        for peer in self.peers:
            if peer.sender is None and peer.behind_since is None:
                peer.behind_since = now
        for link in self._links.values():
            if isinstance(link, Sender):
                before = link.flush_at
                if link.write_noticed(now):
                    self._flush(now, link)
                    scheduled = True
                elif link.flush_at != before:
                    scheduled = True
        if not scheduled and (self._timer_at is not None or self._reporter.due_at() is None):
            return []
        return self._finish(now)

    def persisted(self, now: float) -> list[Effect]:
        """The commit that a `Persist` asked for has succeeded."""
        if self._committing is not None:
            self._committed, marks = self._committing
            self._committing = None
            for connection, sequence in marks.items():
                link = self._links.get(connection)
                if isinstance(link, Receiver):
                    frame = link.acknowledge(sequence, self._committed)
                    if frame is not None:
                        self._effects.append(SendFrame(connection, frame))
            self._check_recovered(now)
            self._wake_senders(now)
        return self._finish(now)

    def timer(self, now: float) -> list[Effect]:
        """The time that `SetTimer` named has come."""
        self._timer_at = None
        if self._failed:
            return []
        self._check_dials(now)
        for link in list(self._links.values()):
            self._check_link(now, link)
        self._expire_waits(now)
        self.region.tick(now)
        if self._guard(now, None, lambda: self._reporter.tick(now)):
            self._wake_senders(now)
        return self._finish(now)

    def stop(self, now: float) -> list[Effect]:
        """Say goodbye to every peer; no effects but those follow."""
        self._stopping = True
        self._effects += self._dialler.stop()
        for link in list(self._links.values()):
            self._part(now, link, "stopping", "this node is stopping")
        self._expire_waits(math.inf)
        self.region.tick(math.inf)
        return self._finish(now)

    # -- waiting for acknowledgement --------------------------------------------------------------

    def wait(self, now: float, timestamp: int, count: int, deadline: float | None) -> tuple[int, list[Effect]]:
        """Wait until `count` regions other than this one hold this node's updates up to `timestamp`.

        Returns a token, and effects; a later `Resolve` (perhaps among them) has the token and the number of
        regions that do, which is below `count` when the deadline (seconds, None for none) came first. Without
        a deadline, a count that can't be reached is answered at once.
        """
        positions = self.peers.region_positions(self._store.origin)
        state = verdict(positions, timestamp, count)
        over = state is Verdict.WON or (state is Verdict.LOST and deadline is None)
        token = self.waits.add(timestamp, count, now if over else deadline)
        self._expire_waits(now)
        return token, self._finish(now)

    def cancel(self, token: int) -> None:
        """Forget a wait: its client has gone."""
        self.waits.cancel(token)

    # -- asking the region ------------------------------------------------------------------------

    def ask(self, now: float, question: bytes, answers: int, deadline: float) -> tuple[int, list[Effect]]:
        """Ask `answers` other replicas of the region what they know more of some keys than this node's store.

        `question` is of `Store.question`, `deadline` in seconds. Returns a token, and effects; an `Answered`,
        perhaps among them, has the token and how many answers were joined into the store: fewer than `answers`
        when the deadline came first, or so many replicas aren't alive.
        """
        return self.region.ask(now, question, answers, deadline), self._finish(now)

    def cancel_ask(self, token: int) -> None:
        """Forget a question: nobody waits for it any more."""
        self.region.cancel(token)

    # -- figures ----------------------------------------------------------------------------------

    def drained(self) -> bool:
        """Whether every connected peer has acknowledged the whole log."""
        return all(peer.sender.behind_since() is None for peer in self.peers if peer.sender is not None)

    def statuses(self, now: float) -> list[dict[str, Any]]:
        """The status of each peer."""
        changes, standby = self._local_changes(), self._gateways.reached_otherwise
        return [
            peer.status(now, self._store.origin, changes, self.region.is_alive(now, peer), standby=standby(peer))
            for peer in self.peers
        ]

    def statistics(self) -> dict[str, int]:
        """Flat counters over all peers."""
        totals = self.peers.totals()
        return {
            **totals,
            "answers_given": totals["sent_asks_served"],
            **self.region.statistics(),
            "peers": len(self.peers),
            "connections": len(self._links),
            "waits": len(self.waits),
            "reporting": int(self._reporter.recovered),
        }

    # -- receiving --------------------------------------------------------------------------------

    def _drain(self, now: float, link: Receiver | Sender) -> None:
        """Handle what has arrived, up to and including one batch or pull: these take time, and pulls memory."""
        session = link.session
        connection = session.connection
        while connection in self._links:
            if link.has_held:
                ok = self._guard(now, link, partial(self._take_held, link))
                heavy = True
            else:
                message = self._guard(now, link, session.next_message)
                if message is None:
                    return
                ok = self._guard(now, link, partial(self._handle, now, link, message))
                heavy = isinstance(message, Batch | Pull | Ask | Answer)
            if not ok:
                return
            if heavy:
                if session.buffered or link.has_held:
                    self._effects.append(Resume(connection))
                return

    def _take_held(self, link: Receiver | Sender) -> bool:
        return self._send(link, link.next_held(), urgent=isinstance(link, Sender))

    def _handle(self, now: float, link: Receiver | Sender, message: Message) -> bool:
        if isinstance(message, Hello):
            self._greet(now, link, message)
        elif isinstance(message, Goodbye):
            peer = self._peer_of.get(link.session.connection)
            text = f"{link.session.who} has closed the connection: {message.message}"
            if peer is not None and message.cause != STANDBY:
                self._note(now, peer, f"peer_{message.cause}", text)
                peer.retry_soon = message.cause == "stopping"
            self._effects.append(Close(link.session.connection, text))
            self._drop(now, link)
        elif isinstance(link, Receiver) and isinstance(message, Answer):
            self.region.receive(now, link, message)
        elif isinstance(link, Receiver):
            if isinstance(message, Resync):
                self._log(
                    logging.WARNING, "resync",
                    f"{link.session.who} sends the whole states: {message.reason}", peer=str(link.session.identity),
                )  # fmt: skip
            self._send(link, link.handle(message))
        else:
            if isinstance(message, Heartbeat):
                check_clock(link.session.who, message.now_ms, self._store.now_ms(), self.settings.max_clock_drift_ms)
            acked_before = link.acked.get(self._store.origin, 0)
            self._send(link, link.handle(now, message), urgent=isinstance(message, Ask))
            if link.acked.get(self._store.origin, 0) != acked_before:
                self._note_acked(link)
            if link.flush_at is not None and link.flush_at <= now:
                self._flush(now, link)
        return True

    def _greet(self, now: float, link: Receiver | Sender, hello: Hello) -> None:
        session = link.session
        assert session.identity is not None
        check_hello(
            hello,
            session.identity,
            self.identity,
            self._store.store_id,
            self._store.now_ms(),
            self.settings.max_clock_drift_ms,
        )
        check_members(hello, self.identity, self.peers.members(self.identity))
        issued = max(self._store.last_timestamp, self._store.applied.get(self._store.origin, 0))
        check_history(hello, session.who, self._store.origin, issued)
        session.accept_hello(hello)
        if isinstance(link, Sender):
            peer = self.peers.settle(session.identity)
            if peer.sender is not None:
                self._refuse(now, peer.sender, "replaced", f"{session.who} has connected anew", quiet=True)
            peer.sender = link
            self._peer_of[session.connection] = peer
            self._send_hello(session)
            self._told(now, peer, hello)
            store_ids = self._gateways.carried(now, peer, link)
            self._send(link, link.begin(now, hello.applied, store_ids, peer.behind_since))
            self._note_resync(link, 0)
            if peer.region == self.identity.region:
                self._send(link, [link.heartbeat(self.region.completeness.complete)])
            self._dialler.hurry(now, peer)
        else:
            peer = self._peer_of[session.connection]
            peer.connections += 1
            self._told(now, peer, hello)
            self._log(
                logging.INFO, "peer_connected", f"receiving the log of {session.who}", peer=str(peer),
                protocol=hello.protocol, software=hello.software,
            )  # fmt: skip

    def _told(self, now: float, peer: Peer, hello: Hello) -> None:
        """Take in what a checked hello says of the peer's positions."""
        peer.told(hello.origin, hello.applied)
        peer.held_of_ours = self._reporter.held_of_ours(hello.applied)
        self.region.told(peer, hello.applied)
        self._check_recovered(now)
        self._resolve_waits()

    def _check_recovered(self, now: float) -> None:
        self._reporter.check_recovered([peer.held_of_ours for peer in self.peers])
        if self._guard(now, None, lambda: self.region.completeness.check(self._committed)):
            # Its region is to know at once.
            self._wake_senders(now)
            for link in self._links.values():
                if isinstance(link, Sender) and link.session.hello is not None:
                    self._heartbeat(now, link)

    def _note_acked(self, link: Sender) -> None:
        peer = self._peer_of[link.session.connection]
        peer.acked = link.acked
        self._resolve_waits()

    def _expire_waits(self, now: float) -> None:
        positions = self.peers.region_positions(self._store.origin)
        self._effects += [Resolve(*item) for item in self.waits.expire(now, positions)]

    def _resolve_waits(self) -> None:
        if len(self.waits):
            self._effects += [
                Resolve(*item) for item in self.waits.advance(self.peers.region_positions(self._store.origin))
            ]

    # -- sending ----------------------------------------------------------------------------------

    def _settings_for(self, identity: Identity) -> ReplicationSettings:
        return self.settings.within_region() if identity.region == self.identity.region else self.settings

    def _send(self, link: Receiver | Sender, frames: list[bytes], *, urgent: bool = False) -> bool:
        connection = link.session.connection
        self._effects += [SendFrame(connection, frame, urgent) for frame in frames]
        return True

    def _heartbeat(self, now: float, link: Receiver | Sender) -> None:
        link.session.heartbeat_at = now
        self._send(link, [link.heartbeat(self.region.completeness.complete)], urgent=True)

    def _send_hello(self, session: Session) -> Mapping[int, int]:
        store = self._store
        applied = dict(self._committed)
        # Own updates beyond the last commit aren't to be sent back to their author.
        applied[store.origin] = max(applied.get(store.origin, 0), store.applied.get(store.origin, 0))
        if not applied[store.origin]:
            del applied[store.origin]
        members = self.peers.members(self.identity)
        frame = session.greeting(self.identity, store, applied, self._software, members)
        self._effects.append(SendFrame(session.connection, frame))
        return applied

    def _wake_senders(self, now: float) -> None:
        # Also when nothing of it is for the peer: the cursor has to pass it, or the log is cut behind its back.
        for link in list(self._links.values()):
            if isinstance(link, Sender) and link.write_noticed(now):
                self._flush(now, link)

    def _flush(self, now: float, link: Sender) -> None:
        resyncs = link.resyncs
        self._guard(now, link, lambda: self._send(link, link.flush(now)))
        self._note_resync(link, resyncs)

    def _note_resync(self, link: Sender, before: int) -> None:
        if link.resyncs > before:
            self._log(
                logging.WARNING, "resync",
                f"{link.session.who} is behind the oldest change that the log keeps: it gets the whole states instead",
                peer=str(link.session.identity),
            )  # fmt: skip

    def _local_changes(self) -> int:
        return self._store.statistics().get("local_changes", 0)

    # -- which links there are, and what they carry ----------------------------------------------

    def _arrange_link(self, now: float, link: Receiver | Sender) -> bool:
        """Let a link carry what it should, or end it when this node doesn't follow the peer; False when it is over."""
        session = link.session
        peer = self._peer_of[session.connection]
        if isinstance(link, Sender):
            resyncs = link.resyncs
            self._guard(now, link, lambda: self._send(link, link.carry(now, self._gateways.carried(now, peer, link))))
            self._note_resync(link, resyncs)
        elif self._gateways.follows(peer):
            frame = link.remind(self._committed) if self._gateways.anywhere else None
            self._send(link, [frame] if frame is not None else [])
        else:
            self._part(now, link, STANDBY, "another node of its region follows this node")
        return session.connection in self._links

    # -- dialling, time, ends ---------------------------------------------------------------------

    def _check_dials(self, now: float) -> None:
        for peer, close in self._dialler.expire(now):
            self._effects.append(close)
            self._unreachable(now, peer, f"no answer within {self.settings.dial_timeout:g} s")
        self._effects += self._dialler.due(now)

    def _unreachable(self, now: float, peer: Peer, reason: str) -> None:
        self._note(now, peer, "unreachable", f"can't connect to peer {peer} at {peer.address}: {reason}")
        self._dialler.schedule(now, peer)

    def _check_link(self, now: float, link: Receiver | Sender) -> None:
        session = link.session
        if session.connection not in self._links:
            return
        # The sums are those of due_times, to the last bit: else a timer could come and find nothing due.
        if session.received_at + self.settings.dead_after <= now:
            silent = now - session.received_at
            self._refuse(now, link, "timeout", f"{session.who} was silent for {silent:.1f} s")
            return
        if session.hello is None:
            return
        if session.heartbeat_at + link.settings.heartbeat_interval <= now:
            self._heartbeat(now, link)
            self._gateways.read_names()
            if not self._arrange_link(now, link):
                return
        if isinstance(link, Sender):
            if link.flush_at is not None and link.flush_at <= now:
                self._flush(now, link)
        elif (peer := self._peer_of.get(session.connection)) is not None:
            peer.last_heard = session.received_at
            if now - session.opened_at >= self.settings.backoff_max:
                peer.attempts = 0

    def _guard(self, now: float, link: Receiver | Sender | None, action: Callable[[], Any]) -> Any:
        """Run a step; an error ends the connection that it concerns, or the node when the store has failed."""
        try:
            return action()
        except EverwriteError as error:
            cause, message = cause_of(error), str(error)
            if cause is None:
                if not isinstance(error, StorageError):
                    raise
                self._failed = True
                self._effects.append(Fail(error))
                return None
        if link is None:
            self._log(logging.ERROR, cause, message)
        else:
            self._refuse(now, link, cause, message)
        return None

    def _refuse(self, now: float, link: Receiver | Sender, cause: str, message: str, *, quiet: bool = False) -> None:
        """End a connection, tell the peer why, count it, log it once a peer and cause."""
        session = link.session
        peer = self._peer_of.get(session.connection)
        if peer is None:
            peer = self.peers.of_stranger(session.identity)
        if quiet:
            peer.errors[cause] += 1
        else:
            self._note(now, peer, cause, message)
        if isinstance(link, Receiver) and cause != "timeout":
            peer.retry_soon = False
        self._part(now, link, cause, message)

    def _part(self, now: float, link: Receiver | Sender, cause: str, message: str) -> None:
        self._send(link, [link.session.encode(Goodbye(cause, message[:1000]))])
        self._effects.append(Close(link.session.connection, message))
        self._drop(now, link)

    def _drop(self, now: float, link: Receiver | Sender) -> None:
        """Forget a connection and, if this node dialled it, plan the next dial."""
        connection = link.session.connection
        del self._links[connection]
        peer = self._peer_of.pop(connection, None)
        if isinstance(link, Sender):
            if peer is not None and peer.sender is link:
                peer.retire_sender(self._local_changes())
            else:
                link.close()
        elif peer is not None and peer.receiver is link:
            self.region.link_lost(now, link)
            peer.last_heard = link.session.received_at
            peer.retire_receiver()
            self._dialler.schedule(now, peer)

    def _note(self, now: float, peer: Peer, cause: str, message: str) -> None:
        if peer.note_error(cause, message, now, self.settings.log_repeat_interval):
            self._log(logging.WARNING, cause, message, peer=str(peer), count=peer.errors[cause])

    def _log(self, level: int, event: str, message: str, **fields: Any) -> None:
        self._effects.append(Log(level, event, message, fields))

    # -- the end of every event -------------------------------------------------------------------

    def _finish(self, now: float) -> list[Effect]:
        if self._committing is None and not self._failed:
            marks = {
                connection: link.applied_sequence
                for connection, link in self._links.items()
                if isinstance(link, Receiver) and link.uncommitted
            }
            if marks or self.region.uncommitted:
                self.region.uncommitted = False
                self._committing = (dict(self._store.applied), marks)
                self._effects.append(Persist())
        self.region.note_changes(now)
        if self._gateways.look():
            self._dialler.arrange(now)
            for link in list(self._links.values()):
                if link.session.hello is not None:
                    self._arrange_link(now, link)
        at = self._next_time(now)
        if at != self._timer_at:
            self._timer_at = at
            self._effects.append(SetTimer(at))
        effects, self._effects = self._effects, []
        return effects

    def _next_time(self, now: float) -> float | None:
        if self._stopping or self._failed:
            return None
        times = [
            self._reporter.due_at(), self.waits.next_deadline(), self.region.next_time(now), self._dialler.next_time(),
        ]  # fmt: skip
        for link in self._links.values():
            times += (*link.session.due_times(link.settings), link.flush_at if isinstance(link, Sender) else None)
        return min((at for at in times if at is not None), default=None)
