"""Whom a node dials, and when: one dial at a time a peer, again after a back-off. Sans-I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from everwrite.server.effects import Close, Dial
from everwrite.server.peer import Peer
from everwrite.server.settings import ReplicationSettings

__all__ = ["Dialler"]


class Dialler:
    """The dials under way and those to come; `follows` says which peers this node should receive from.

    Invariant: a peer that is dialled has `dialling` and `dial_deadline`, one that waits for its dial `redial_at`.
    """

    def __init__(
        self,
        peers: Iterable[Peer],
        settings: ReplicationSettings,
        rng: random.Random,
        follows: Callable[[Peer], bool],
    ) -> None:
        self._peers = peers
        self._settings = settings
        self._rng = rng
        self._follows = follows
        self._under_way: dict[int, Peer] = {}
        self._next_connection = 1
        self._stopped = False

    def take_number(self) -> int:
        """A number for a connection, dialled or accepted."""
        number = self._next_connection
        self._next_connection += 1
        return number

    def arrange(self, now: float) -> None:
        """Dial whom this node follows and has no connection with, and no others."""
        for peer in self._peers:
            if not self._follows(peer):
                peer.redial_at = None
            elif peer.address is not None and not self._stopped:
                idle = peer.receiver is None and peer.dialling is None and peer.redial_at is None
                peer.redial_at = now if idle else peer.redial_at

    def schedule(self, now: float, peer: Peer) -> None:
        """The connection, or the attempt to make one, has ended: plan the next."""
        if peer.address is not None and not self._stopped and self._follows(peer):
            peer.redial_at = now + peer.backoff(self._settings, self._rng)

    def hurry(self, now: float, peer: Peer) -> None:
        """The peer is there: don't sit out the back-off."""
        if peer.redial_at is not None and peer.retry_soon:
            peer.redial_at = now

    def ended(self, connection: int) -> Peer | None:
        """A dial has succeeded or failed: whom it was for, None when it isn't wanted any more."""
        peer = self._under_way.pop(connection, None)
        if peer is not None:
            peer.dialling = peer.dial_deadline = None
            peer.retry_soon = True
        return peer

    def expire(self, now: float) -> list[tuple[Peer, Close]]:
        """Give up the dials that take too long."""
        late = [(n, p) for n, p in self._under_way.items() if p.dial_deadline is not None and p.dial_deadline <= now]
        for connection, peer in late:
            del self._under_way[connection]
            peer.dialling = peer.dial_deadline = None
        return [(peer, Close(connection, "the dial has timed out")) for connection, peer in late]

    def due(self, now: float) -> list[Dial]:
        """Begin the dials whose time has come."""
        dials = []
        for peer in self._peers:
            if peer.redial_at is not None and peer.redial_at <= now and peer.address is not None:
                peer.redial_at = None
                peer.dialling = self.take_number()
                peer.dial_deadline = now + self._settings.dial_timeout
                self._under_way[peer.dialling] = peer
                dials.append(Dial(peer.dialling, peer.address))
        return dials

    def stop(self) -> list[Close]:
        """Dial nobody any more."""
        self._stopped = True
        closes = [Close(connection, "stopping") for connection in self._under_way]
        for connection in list(self._under_way):
            self.ended(connection)
        for peer in self._peers:
            peer.redial_at = None
        return closes

    def next_time(self) -> float | None:
        """When `expire` or `due` has something to do."""
        times = (at for peer in self._peers for at in (peer.redial_at, peer.dial_deadline))
        return min((at for at in times if at is not None), default=None)
