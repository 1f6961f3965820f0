"""This node's side of a connection on which it receives a peer's log.

Sans-I/O. Memory is bounded: while a pull is under way, at most the sender's window is held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from everwrite.errors import PeerError
from everwrite.need import Need
from everwrite.server.codec import FRAME_BYTES_MAX
from everwrite.server.failure import FailureDetector
from everwrite.server.messages import Ack, Batch, Heartbeat, KeyState, Message, Pull, Resync, ResyncEnd
from everwrite.server.replicated_store import ReplicatedStore
from everwrite.server.session import Local, Session, State, check_clock
from everwrite.server.settings import ReplicationSettings

__all__ = ["Receiver"]

PULLS_MAX: Final = 64


class Receiver:
    """Applies one peer's stream.

    Invariants: `acked_sequence <= applied_sequence`; a batch counts as applied only as a whole. While
    `_asked` holds something the session is PULLING; answers come in the order of the questions, and
    each is used or dropped at once, so that no more than one state is held.
    """

    def __init__(self, session: Session, store: ReplicatedStore, settings: ReplicationSettings) -> None:
        self.session = session
        self.applied_sequence = 0
        self.acked_sequence = 0
        self.batches = 0
        self.changes = 0
        self.pulls = 0
        self.resyncs = 0
        self.failure = FailureDetector(
            session.opened_at,
            settings.heartbeat_interval,
            threshold=settings.suspicion_phi,
            deviation_min=settings.heartbeat_deviation_min,
        )
        self.complete = False  # whether the sender holds all that it has ever acknowledged, by its heartbeats
        self.delay_ms: int | None = None  # age of the newest change of the last batch when it was applied
        self._store = store
        self.settings = settings
        self._told: dict[int, int] = {}
        self._held: deque[Message] = deque()
        self._held_bytes = 0
        # The batch that is partly applied, the change in it that lacks its key's state, and what was asked for.
        self._paused: Batch | None = None
        self._need: Need | None = None
        self._asked: deque[Need] = deque()
        # What the sender has, from its heartbeats: its newest timestamp, changes it hasn't sent,
        # and the oldest timestamp known to exist there that isn't applied here.
        self._newest = 0
        self._pending = 0
        self._behind: int | None = None

    # -- what the replicator drives ---------------------------------------------------------------

    def begin(self, told: Mapping[int, int]) -> None:
        """Remember the vector that this node's hello has told."""
        self._told = dict(told)

    def handle(self, message: Message) -> list[bytes]:
        """Take a message that the session let through; the frames to answer with.

        Raises what `apply_batch` raises.
        """
        if isinstance(message, Heartbeat):
            check_clock(self.session.who, message.now_ms, self._store.now_ms(), self.settings.max_clock_drift_ms)
            self.failure.heard(self.session.received_at)
            self._newest = max(self._newest, message.newest)
            self._pending = message.pending
            self.complete = message.complete
            self._note_position()
            return []
        if isinstance(message, KeyState):
            return self._supply(message)
        if self.session.state is State.PULLING:
            self._hold(message)
            return []
        return self._take(message)

    def next_held(self) -> list[bytes]:
        """Take one message that a pull held back; the frames to answer with."""
        message = self._held.popleft()
        if isinstance(message, Batch):
            self._held_bytes -= len(message.data)
        self.session.step(type(message))
        return self._take(message)

    @property
    def has_held(self) -> bool:
        """Whether `next_held` has something to take."""
        return bool(self._held) and self.session.state is not State.PULLING

    def acknowledge(self, sequence: int, committed: Mapping[int, int]) -> bytes | None:
        """The frame that acknowledges what is committed; None when there is nothing new.

        `sequence` was `applied_sequence`, and `committed` the applied vector, when the commit began.
        """
        if sequence <= self.acked_sequence:
            return None
        self.acked_sequence = sequence
        return self.session.encode(Ack(sequence, self._news(committed)))

    def remind(self, committed: Mapping[int, int]) -> bytes | None:
        """The frame that tells how far this node has come over other links; None when there is nothing new."""
        news = self._news(committed)
        return self.session.encode(Ack(self.acked_sequence, news)) if news else None

    def heartbeat(self, complete: bool) -> bytes:
        """The frame of a heartbeat."""
        return self.session.encode(Heartbeat(self._store.now_ms(), self._store.last_timestamp, 0, complete))

    # -- figures ----------------------------------------------------------------------------------

    @property
    def uncommitted(self) -> bool:
        """Whether batches are applied that no acknowledgement covers yet."""
        return self.applied_sequence > self.acked_sequence

    @property
    def pending(self) -> int:
        """Changes that the sender has and this node lacks, as far as it can tell."""
        held = sum(message.changes for message in self._held if isinstance(message, Batch))
        return self._pending + held + (self._paused.changes if self._paused is not None else 0)

    def lag_seconds(self) -> float:
        """Age of the oldest change that the sender is known to have and this node lacks; 0 when it lacks none."""
        if self._behind is None:
            return 0.0
        return max(0.0, (self._store.now_ms() - (self._behind >> 16)) / 1000)

    # -- within -----------------------------------------------------------------------------------

    def _news(self, committed: Mapping[int, int]) -> dict[int, int]:
        news = {origin: ts for origin, ts in committed.items() if ts > self._told.get(origin, 0)}
        self._told.update(news)
        return news

    def _take(self, message: Message) -> list[bytes]:
        if isinstance(message, Batch):
            if message.sequence != self.applied_sequence + 1:
                raise PeerError(
                    f"{self.session.who} sent batch {message.sequence}, but {self.applied_sequence + 1} is next",
                    cause="illegal_message",
                )
            self._paused = message
            return self._apply(message)
        if isinstance(message, Resync):
            self.resyncs += 1
        elif isinstance(message, ResyncEnd) and message.sequence != self.applied_sequence:
            raise PeerError(
                f"{self.session.who} ended a resync at batch {message.sequence}, but {self.applied_sequence} "
                "was the last that it sent",
                cause="illegal_message",
            )
        return []

    def _apply(self, batch: Batch) -> list[bytes]:
        """Apply the batch as far as it goes; when states of keys are missing, ask for these."""
        self._need = self._store.apply_batch(batch.data)
        if self._need is None:
            self._count(batch)
            return self._wait([])
        if self._need in self._asked:
            return self._wait([])
        # Each answer takes a round trip: ask at once for what the rest of the batch is going to need, too.
        wanted = [need for need in self._store.needs(batch.data, PULLS_MAX) if need not in self._asked]
        if self._need not in wanted:
            wanted.insert(0, self._need)
        self.pulls += len(wanted)
        return self._wait(wanted)

    def _wait(self, wanted: list[Need]) -> list[bytes]:
        self._asked += wanted
        if self._asked:
            self.session.step(Local.PULL_SENT)
        return [self.session.encode(Pull(need.namespace_key, need.origin, need.timestamp)) for need in wanted]

    def _supply(self, message: KeyState) -> list[bytes]:
        asked = self._asked[0]
        if message.key != asked.namespace_key:
            raise PeerError(
                f"{self.session.who} sent the state of the key {message.key[:64]!r}, but "
                f"{asked.namespace_key[:64]!r} was asked for",
                cause="illegal_message",
            )
        if not self._store.supply_state(asked, message.state):
            return self._wait([])  # a part of a large state: the others follow
        self._asked.popleft()
        if asked != self._need:
            return self._wait([])  # not needed any more, or not yet: another link or an earlier state has brought it
        batch = self._paused
        assert batch is not None, "a need without its batch"
        return self._apply(batch)

    def _count(self, batch: Batch) -> None:
        self._paused = None
        self.applied_sequence = batch.sequence
        self.batches += 1
        self.changes += batch.changes
        self._pending = max(0, self._pending - batch.changes)
        self._newest = max(self._newest, batch.last_timestamp)
        if batch.last_timestamp:
            self.delay_ms = self._store.now_ms() - (batch.last_timestamp >> 16)
        self._note_position()

    def _hold(self, message: Message) -> None:
        if isinstance(message, Batch):
            self._held_bytes += len(message.data)
        self._held.append(message)
        # The sender's window is its own setting, hence the generous margin: what matters is a bound.
        if self._held_bytes > FRAME_BYTES_MAX + 2 * self.settings.window_bytes or len(self._held) > 100_000:
            raise PeerError(
                f"{self.session.who} goes on sending without acknowledgements: {len(self._held)} messages and "
                f"{self._held_bytes} bytes wait for the key that was asked for",
                cause="flow_control",
            )

    def _note_position(self) -> None:
        hello = self.session.hello
        if hello is None:
            return
        applied = self._store.applied.get(hello.origin, 0)
        if applied >= self._newest:
            self._behind = None
        elif self._behind is None or self._behind <= applied:
            self._behind = self._newest
