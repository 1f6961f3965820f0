"""This node's side of a connection on which a peer receives this node's log.

Sans-I/O: methods take the time and return frames. Memory is bounded: at most `window_bytes` of
batches are unacknowledged, and the log itself is the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from everwrite.errors import LogCutError, PeerError
from everwrite.parts import split_state
from everwrite.server.messages import Ack, Answer, Ask, Batch, Heartbeat, KeyState, Message, Pull, Resync, ResyncEnd
from everwrite.server.replicated_store import ReplicatedStore, Stream
from everwrite.server.session import Local, Session, State
from everwrite.server.settings import ReplicationSettings
from everwrite.server.topology import Stalls

__all__ = ["Sender"]

TIMESTAMP_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class _Sent:
    sequence: int
    size: int
    changes: int
    since: float  # when the oldest change in it waited already


class Sender:
    """Streams the log to one peer.

    Invariants: `unacked_bytes` is at most `window_bytes`, or one batch. `flush_at` is None exactly
    when nothing waits to be sent, or when the window is shut and an acknowledgement reopens it.
    """

    def __init__(self, session: Session, store: ReplicatedStore, settings: ReplicationSettings) -> None:
        self.session = session
        self.unacked_bytes = 0
        self.unacked_changes = 0
        self.flush_at: float | None = None
        self.resyncs = 0
        self.pulls_served = 0
        self.asks_served = 0
        self.batches = 0
        self.changes = 0
        # What the peer has acknowledged (with its hello, then with each Ack): its vector.
        self.acked: dict[int, int] = {}
        self._store = store
        self._store_ids: Collection[int] | None = ()
        self.settings = settings
        self._stream: Stream | None = None
        self._resync: Iterator[bytes] | None = None
        # Which origins reach the peer neither here nor over another link.
        self.stalls = Stalls(settings.stalled_after)
        self._unacked: deque[_Sent] = deque()
        self._sequence = 0
        self._acked_sequence = 0
        self._counted = 0
        self._flushed_at = float("-inf")
        self._waiting_since: float | None = None
        # What is left to answer of questions whose answers are large.
        self._half_answered: deque[Ask] = deque()

    # -- what the replicator drives ---------------------------------------------------------------

    def begin(
        self, now: float, applied: Mapping[int, int], store_ids: Collection[int] | None, behind_since: float | None
    ) -> list[bytes]:
        """Start the stream where the peer stands, of origins with these store ids; the frames to send first.

        `behind_since`: since when the peer lacks something, as far as it is known.
        """
        self.acked = dict(applied)
        self._store_ids = store_ids
        self._waiting_since = now if behind_since is None else behind_since
        return self._open(now)

    def carry(self, now: float, store_ids: Collection[int] | None) -> list[bytes]:
        """From now on send what is of these stores; the frames to send first.

        The stream begins again at what the peer has acknowledged: what is on its way may go twice.
        """
        if store_ids == self._store_ids:
            return []
        self._store_ids = store_ids
        if self.session.state is not State.STREAMING:
            return []  # a resync is under way: the stream that follows it is of these stores
        self.close()
        return self._open(now)

    def handle(self, now: float, message: Message) -> list[bytes]:
        """Take a message that the session let through; the frames to answer with."""
        if isinstance(message, Ack):
            return self._acknowledge(now, message)
        if isinstance(message, Pull):
            self.pulls_served += 1
            parts = split_state(self._store.key_state(message.key))
            return [self.session.encode(KeyState(message.key, part)) for part in parts]
        if isinstance(message, Ask):
            self.asks_served += 1
            return self._answer(message)
        return []

    @property
    def has_held(self) -> bool:
        """Whether `next_held` has something to answer."""
        return bool(self._half_answered)

    def next_held(self) -> list[bytes]:
        """Answer another piece of a question; the frames to send."""
        return self._answer(self._half_answered.popleft())

    def write_noticed(self, now: float) -> bool:
        """The log has grown. Returns True when there is something to send right now."""
        if self.session.state is not State.STREAMING or self._stream is None:
            return False
        if self._waiting_since is None:
            self._waiting_since = now
        due = self._flushed_at + self.settings.flush_interval
        if due <= now or self._stream.pending() >= self.settings.flush_changes:
            due = now
        if self.flush_at is None or due < self.flush_at:
            # Shut window: the acknowledgement that reopens it sends what waits.
            if self.unacked_bytes >= self.settings.window_bytes:
                return False
            self.flush_at = due
        return self.flush_at <= now

    def flush(self, now: float) -> list[bytes]:
        """Send one batch if there is one and the window allows it.

        One at a time, so that the caller can let others run: when more is ready `flush_at` is `now`.
        """
        self.flush_at = None
        if self.unacked_bytes >= self.settings.window_bytes:
            return []
        if self._resync is not None:
            return self._flush_resync(now)
        if self._stream is None:
            return []
        settings = self.settings
        behind = self._stream.pending() > settings.flush_changes
        try:
            data = self._stream.next_batch(
                settings.batch_changes_max if behind else settings.flush_changes, settings.batch_bytes_max
            )
        except LogCutError as error:
            return self._begin_resync(now, str(error))
        if data is None:
            self._waiting_since = None
            return []
        changes, self._counted = self._stream.changes - self._counted, self._stream.changes
        frame = self._batch(now, data, changes, self._stream.last_timestamp)
        if self._stream.caught_up():
            self._waiting_since = None
        else:
            # What is left is younger than what was sent, and the log is in order.
            age_ms = self._store.now_ms() - (self._stream.last_timestamp >> 16)
            self._waiting_since = now - max(0, age_ms) / 1000
            if self.unacked_bytes < settings.window_bytes:
                self.flush_at = now
        return [frame]

    def heartbeat(self, complete: bool) -> bytes:
        """The frame of a heartbeat."""
        store = self._store
        return self.session.encode(Heartbeat(store.now_ms(), store.last_timestamp, self.pending(), complete))

    def close(self) -> None:
        """Let go of the log."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._resync = None

    # -- figures ----------------------------------------------------------------------------------

    def pending(self) -> int:
        """Changes not sent yet, as far as it can tell."""
        return self._stream.pending() if self._stream is not None else 0

    @property
    def resyncing(self) -> bool:
        """Whether whole states go to the peer because its log position was cut."""
        return self.session.state in (State.RESYNCING, State.POSITIONING)

    def behind_since(self) -> float | None:
        """Since when the oldest change that the peer hasn't acknowledged waits; None when there is none."""
        return self._unacked[0].since if self._unacked else self._waiting_since

    # -- within -----------------------------------------------------------------------------------

    def _answer(self, ask: Ask) -> list[bytes]:
        limit = self.settings.batch_bytes_max
        states, rest = self._store.answer_piece(ask.question, limit)
        if rest:
            self._half_answered.append(Ask(ask.number, rest))
        pieces: list[list[bytes]] = [[]]
        size = 0
        for state in states:
            if pieces[-1] and size + len(state) > limit:
                pieces.append([])
                size = 0
            pieces[-1].append(state)
            size += len(state)
        last = len(pieces) - 1
        return [
            self.session.encode(Answer(ask.number, piece, bool(rest) or index < last))
            for index, piece in enumerate(pieces)
        ]

    def _open(self, now: float) -> list[bytes]:
        try:
            self._stream = self._store.open_stream(self._since(), self._store_ids)
            self._counted = self._stream.changes
        except LogCutError as error:
            return self._begin_resync(now, str(error))
        return self.flush(now)

    def _since(self) -> dict[int, int]:
        # What the peer writes now it has; without this, all of it would come back to it as an echo.
        hello = self.session.hello
        assert hello is not None
        return {**self.acked, hello.origin: TIMESTAMP_MAX}

    def _begin_resync(self, now: float, reason: str) -> list[bytes]:
        self.session.step(Local.LOG_CUT)
        self.close()
        self.resyncs += 1
        self._resync = self._store.resync_batches(self._since(), self._store_ids)
        self.flush_at = now
        return [self.session.encode(Resync(reason[:1000]))]

    def _flush_resync(self, now: float) -> list[bytes]:
        assert self._resync is not None
        data = next(self._resync, None)
        if data is None:
            self._resync = None
            self.session.step(Local.RESYNC_SENT)
            frames = [self.session.encode(ResyncEnd(self._sequence))]
            return frames + self._continue_after_resync(now)
        frame = self._batch(now, data, 0, 0)
        if self.unacked_bytes < self.settings.window_bytes:
            self.flush_at = now
        return [frame]

    def _batch(self, now: float, data: bytes, changes: int, last_timestamp: int) -> bytes:
        self._sequence += 1
        frame = self.session.encode(Batch(self._sequence, changes, last_timestamp, data))
        since = self._waiting_since if self._waiting_since is not None else now
        self._unacked.append(_Sent(self._sequence, len(frame), changes, since))
        self.unacked_bytes += len(frame)
        self.unacked_changes += changes
        self.batches += 1
        self.changes += changes
        self._flushed_at = now
        return frame

    def _acknowledge(self, now: float, ack: Ack) -> list[bytes]:
        if not self._acked_sequence <= ack.sequence <= self._sequence:
            raise PeerError(
                f"{self.session.who} acknowledged batch {ack.sequence}, but batches {self._acked_sequence} to "
                f"{self._sequence} are what it can acknowledge",
                cause="illegal_message",
            )
        self._acked_sequence = ack.sequence
        while self._unacked and self._unacked[0].sequence <= ack.sequence:
            sent = self._unacked.popleft()
            self.unacked_bytes -= sent.size
            self.unacked_changes -= sent.changes
        for origin, timestamp in ack.applied.items():
            if timestamp > self.acked.get(origin, 0):
                self.acked[origin] = timestamp
        if self.session.state is State.POSITIONING:
            return self._continue_after_resync(now)
        self._schedule(now)
        return []

    def _schedule(self, now: float) -> None:
        """After an acknowledgement: go on with what the shut window or the flush interval held back."""
        if self.flush_at is not None or self.unacked_bytes >= self.settings.window_bytes:
            return
        if self._resync is not None:
            self.flush_at = now
        elif self._stream is not None and not self._stream.caught_up():
            self.write_noticed(now)

    def _continue_after_resync(self, now: float) -> list[bytes]:
        # Only the peer knows what the states that it was sent have brought it to.
        if self._acked_sequence < self._sequence:
            return []
        self.session.step(Local.POSITION_KNOWN)
        return self._open(now)
