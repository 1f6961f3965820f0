"""Connections between nodes: streams of bytes with latency, cuts and breaks.

What TCP promises holds: bytes of a connection arrive in order and once, in any division, or the
connection ends. A cut link delivers nothing; what was sent waits, and arrives when it heals, unless
an end has given up.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.node import Node


class End:
    """One node's end of a connection. `life` is that of the node's process: a crash ends the connection."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.life = node.life
        self.number = -1
        self.arrives_at = 0.0
        # What is on the way to here, in order; `held` deliveries of it wait for the link to heal.
        self.coming: deque[bytes] = deque()
        self.held = 0

    @property
    def alive(self) -> bool:
        return self.node.up and self.node.life == self.life


class Connection:
    """A stream each way between the node that dialled and the one that accepted."""

    def __init__(self, network: Network, dialler: Node, acceptor: Node, latency: float) -> None:
        self.network = network
        self.world = network.world
        self.ends = {dialler: End(dialler), acceptor: End(acceptor)}
        self.latency = latency
        self.open = True

    def other(self, node: Node) -> End:
        return next(end for owner, end in self.ends.items() if owner is not node)

    @property
    def cut(self) -> bool:
        return self.network.is_cut(*self.ends)

    def send(self, sender: Node, data: bytes) -> None:
        """Put bytes on the way."""
        end = self.other(sender)
        if not self.open:
            return
        # Never before what was sent earlier.
        jitter = self.world.random.random() * self.latency * 0.3
        end.arrives_at = max(end.arrives_at, self.world.now + self.latency + jitter)
        end.coming.append(data)
        self.world.after(end.arrives_at - self.world.now, self._deliver, end)

    def _deliver(self, end: End) -> None:
        if not self.open or not end.alive:
            return
        if self.cut:
            end.held += 1
            return
        data = end.coming.popleft()
        at = self.world.random.randrange(len(data) + 1) if self.world.random.random() < 0.3 else 0
        for piece in (data[:at], data[at:]):
            if piece and self.open and end.alive:
                end.node.receive(end.number, piece)

    def healed(self) -> None:
        """Let go of what a cut held back."""
        for end in self.ends.values():
            for _ in range(end.held):
                self.world.after(self.latency, self._deliver, end)
            end.held = 0

    def close(self, closer: Node, reason: str) -> None:
        """One end closes; the other learns of it after what was sent before, unless the link is cut."""
        end = self.other(closer)
        if not self.open:
            return
        end.arrives_at = max(end.arrives_at, self.world.now + self.latency)
        self.world.after(end.arrives_at - self.world.now, self._ended, end, reason)
        self.ends[closer].life = -1

    def _ended(self, end: End, reason: str) -> None:
        if not self.open:
            return
        self.open = False
        self.network.connections.pop(self, None)
        # A peer behind a cut that has stopped talking is for its time-out to find.
        if end.alive and not self.cut:
            end.node.lost(end.number, reason)

    def break_off(self) -> None:
        """Both ends lose the connection and what was under way."""
        if not self.open:
            return
        self.open = False
        self.network.connections.pop(self, None)
        for end in self.ends.values():
            if end.alive and end.number >= 0:
                end.node.lost(end.number, "connection reset")


class Network:
    """Which nodes reach each other, and how fast."""

    def __init__(self, world: World, latencies: tuple[float, ...]) -> None:
        self.world = world
        self.latencies = latencies
        self.cuts: set[frozenset[Node]] = set()
        self.connections: dict[Connection, None] = {}  # a dictionary keeps the order
        self._latencies: dict[frozenset[Node], float] = {}
        self._slow: dict[frozenset[Node], float] = {}

    def is_cut(self, *pair: Node) -> bool:
        return frozenset(pair) in self.cuts

    def latency(self, *pair: Node) -> float:
        """One way, in seconds; the same for a pair throughout a run, but for the times when it is slow."""
        slow = self._slow.get(frozenset(pair))
        return (
            slow
            if slow is not None
            else self._latencies.setdefault(frozenset(pair), self.world.random.choice(self.latencies))
        )

    def slow_down(self, pair: list[Node], seconds: float | None) -> None:
        """Let a pair's connections take so long one way; None: as before."""
        self._slow.pop(frozenset(pair), None)
        if seconds is not None:
            self._slow[frozenset(pair)] = seconds
        for connection in self.between(*pair):
            connection.latency = self.latency(*pair)

    def cut(self, *pair: Node) -> None:
        self.cuts.add(frozenset(pair))

    def heal(self, *pair: Node) -> None:
        self.cuts.discard(frozenset(pair))
        for connection in self.between(*pair):
            connection.healed()

    def between(self, *pair: Node) -> list[Connection]:
        """Open connections of the pair."""
        return [connection for connection in self.connections if connection.ends.keys() == set(pair)]

    def dial(self, dialler: Node, number: int, target: Node) -> None:
        """Connect; the dialler hears `dialled` or `dial_failed` after a round trip."""
        round_trip = 2 * self.latency(dialler, target)
        life = dialler.life
        if self.is_cut(dialler, target):
            return  # no answer: the dial's own time-out ends it
        if not target.up:
            self.world.after(round_trip, self._refused, dialler, life, number)
            return
        connection = Connection(self, dialler, target, self.latency(dialler, target))
        connection.ends[dialler].number = number
        self.world.after(round_trip / 2, self._accepted, connection, dialler, target)

    def _refused(self, dialler: Node, life: int, number: int) -> None:
        if dialler.up and dialler.life == life:
            dialler.dial_failed(number, "connection refused")

    def _accepted(self, connection: Connection, dialler: Node, target: Node) -> None:
        end = connection.ends[target]
        if not end.alive or self.is_cut(dialler, target):
            self._refused(dialler, connection.ends[dialler].life, connection.ends[dialler].number)
            return
        self.connections[connection] = None
        target.accept(connection, end, dialler)
        self.world.after(connection.latency, self._dialled, connection, dialler, target)

    def _dialled(self, connection: Connection, dialler: Node, target: Node) -> None:
        end = connection.ends[dialler]
        if connection.open and end.alive:
            dialler.dialled(connection, end.number, target)

    def ended(self, node: Node) -> None:
        """The node's process is gone: its peers see their connections end, unless they are cut off."""
        for connection in list(self.connections):
            if node in connection.ends:
                connection.close(node, "connection reset")
