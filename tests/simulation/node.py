"""One node: a disk, a store on it while the process runs, the replication machine, and the oracle beside them."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any

from everwrite.errors import StorageError
from everwrite.server.effects import (
    Answered,
    Close,
    Dial,
    Effect,
    Fail,
    Log,
    Persist,
    RegionChanged,
    Resolve,
    Resume,
    SendFrame,
    SetTimer,
)
from everwrite.server.peer import PeerAddress
from everwrite.server.replication import Replicator
from everwrite.server.session import Identity
from everwrite.server.settings import ReplicationSettings
from tests.reference.history import History, Pulled
from tests.reference.replica import Replica
from tests.reference.vocabulary import Dot, Reply, Request, covers
from tests.simulation.world import START_MS, World

if TYPE_CHECKING:
    from tests.simulation.disks import Disk
    from tests.simulation.network import Connection, End, Network

CLUSTER = "simulation"
# Slower than a server's, so that a run of some virtual seconds isn't mostly heartbeats.
SETTINGS = ReplicationSettings(heartbeat_interval=2.0, dead_after=6.0, dial_timeout=2.0, backoff_max=1.0)


class Node:
    """`up` while a process runs; `life` counts the processes, so that what an earlier one planned is dropped.

    Without `region` it is the only node of a region of its name.
    """

    settings = SETTINGS

    def __init__(self, world: World, network: Network, history: History, disk: Disk, region: str | None = None) -> None:
        self.world = world
        self.network = network
        self.history = history
        self.disk = disk
        self.name = f"region-{disk.number}" if region is None else f"{region}-{disk.number}"
        self.identity = Identity(CLUSTER, region or self.name, str(disk.number))
        self.peers: list[Any] = []
        self.skew_ms = 0
        self.up = False
        self.life = 0
        self.failed = False
        self.errors: set[str] = set()
        self.store: Any = None
        self.replica: Replica
        self.replicator: Replicator
        self.connections: dict[int, Connection] = {}
        # What waits to be sent on a connection, of which urgent frames get ahead.
        self.outboxes: dict[int, deque[bytes]] = {}
        self.pulled: list[Pulled] = []
        # What the store, and this node's acknowledgements, have said is durable.
        self.durable: dict[int, int] = {}
        self.timer_at: float | None = None
        self.waits: list[int] = []  # the timestamp of each, by token from 1

    def __repr__(self) -> str:
        return self.name

    # Life and death.

    def start(self) -> None:
        """Open the store on the disk and begin to replicate."""
        assert not self.up
        self.life += 1
        try:
            self.store = self.disk.open(self.wall_ms)
        except StorageError as error:
            self.world.tell(f"{self.name} doesn't start: {error}")
            self.world.after(0.1, self.start_again, self.life)
            return
        self.up = True
        self.replica = Replica(self.store, self.history, self.pulled)
        self.replica.restarted()
        self.connections = {}
        self.outboxes = {}
        self.waits = []
        self.timer_at = None
        for origin, timestamp in self.durable.items():
            held = self.store.applied.get(origin, 0)
            assert held >= timestamp, f"{self.name} had {origin:#x} durable up to {timestamp}, and now up to {held}"
        self.world.tell(f"{self.name} starts as {self.store.origin:#x}, has applied {vector_text(self.store.applied)}")
        self.replicator = Replicator(
            self.replica,
            self.identity,
            [PeerAddress(peer.identity.region, peer.identity.node, peer.name) for peer in self.peers],
            rng=Random(self.world.random.randrange(2**32)),
            settings=self.settings,
        )
        try:
            effects = self.replicator.start(self.world.now)
        except StorageError as error:
            self.fail(error)
        else:
            self.perform(effects)

    def crash(self) -> None:
        """The process and the machine's memory are gone; what wasn't synced may be lost."""
        self.world.tell(f"{self.name} crashes")
        if not self.failed:
            self.note_durable()
        self._end()
        self.disk.crash(self.store)
        self.store = None

    def stop(self) -> None:
        """A clean stop."""
        self.world.tell(f"{self.name} stops")
        self.enter()
        self.perform(self.replicator.stop(self.world.now))
        self.note_durable()
        self._end()
        try:
            self.disk.close(self.store)
        except StorageError as error:
            self.world.tell(f"{self.name} can't close its store: {error}")
            self.disk.crash(self.store)
        self.store = None

    def note_durable(self) -> None:
        """Remember what mustn't be lost: what the store says is durable, and, with `always`, what was acknowledged."""
        self.durable = dict(self.store.durable_applied)
        for peer in self.peers:
            if self.store.durability != "always" or not peer.up:
                continue
            known = next(other for other in peer.replicator.peers if other.matches(self.identity))
            # The peer may not have heard yet that this is another store than before.
            acked = dict(known.acked) if known.origin is not None and known.origin >> 16 == self.disk.number else {}
            for origin, timestamp in acked.items():
                self.durable[origin] = max(self.durable.get(origin, 0), timestamp)

    def fail(self, error: Exception) -> None:
        """The store can't go on: as after a crash, the process ends and is started again."""
        self.world.tell(f"{self.name} fails: {error}")
        self.world.count("failures")
        self.failed = True
        self.crash()
        self.failed = False
        self.world.after(0.1, self.start_again, self.life)

    def start_again(self, life: int) -> None:
        if not self.up and self.life == life:
            self.start()

    def _end(self) -> None:
        self.up = False
        self.network.ended(self)

    # Time.

    @property
    def wall_ms(self) -> int:
        return START_MS + int(self.world.now * 1000) + self.skew_ms

    def enter(self) -> float:
        """Set the store's clock before anything runs on this node; returns the steady time."""
        self.store.set_time(self.wall_ms)
        return self.world.now

    # What clients do.

    def execute(self, request: Request) -> Reply:
        """Run one operation and check the answer."""
        now = self.enter()
        try:
            reply = self.replica.execute(request)
        except StorageError as error:
            self.fail(error)
            raise
        self.world.tell(f"{self.name} {request} -> {reply!r} at {self.store.last_timestamp}")
        self.world.count("operations")
        self.perform(self.replicator.local_write(now))
        return reply

    def wait(self, count: int) -> None:
        """Ask how many regions hold what was written here."""
        now = self.enter()
        timestamp = self.store.last_timestamp
        # Known before the answer, which may be among the effects.
        self.waits.append(timestamp)
        _, effects = self.replicator.wait(now, timestamp, count, now + self.world.random.choice((0.05, 1.0)))
        self.perform(effects)

    def _check_wait(self, token: int, regions: int) -> None:
        """Those that are said to hold it do; one that is down, or may lose what it had acknowledged, counts as if."""
        dot = Dot(self.waits[token - 1], self.store.origin)
        holders = [
            peer
            for peer in self.peers
            if not peer.up or peer.store.durability != "always" or covers(peer.store.applied, dot)
        ]
        assert regions <= len(holders), f"{self.name}: {regions} regions are said to hold {dot}, but {holders} do"
        self.world.count("waits")

    def reap(self) -> None:
        """Remove keys that are past their deadline; each is an update like any other."""
        now = self.enter()
        # Which updates a failing reap has issued can't be told from outside: let the disk fail at another time.
        self.disk.heal()
        try:
            self.world.count("reaped", self.replica.reap(tuple(self.history.effects)))
        except StorageError as error:
            self.fail(error)
            return
        self.perform(self.replicator.local_write(now))

    # The shell of the replication machine.

    def perform(self, effects: list[Effect]) -> None:
        life = self.life
        for effect in effects:
            if self._lives(life):
                self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendFrame(number, data, urgent):
                if number in self.connections:
                    self._send(number, data, urgent)
            case SetTimer(at):
                self.timer_at = at
                if at is not None:
                    self.world.after(max(0.0, at - self.world.now), self._timer, self.life, at)
            case Dial(number, address):
                target = next(peer for peer in self.peers if peer.name == address)
                self.network.dial(self, number, target)
            case Close(number, reason):
                self._send_waiting(self.life, number)
                connection = self.connections.pop(number, None)
                if connection is not None:
                    connection.close(self, reason)
            case Persist():
                # A sync takes its time, and a crash may come before its end.
                self.world.after(self.world.random.choice((0.0, 0.002, 0.03)), self._persist, self.life)
            case Resolve(token, regions):
                self._check_wait(token, regions)
            case Resume(number):
                self.world.after(0.0, self._resume, self.life, number)
            case Answered(token, received):
                # What it leads to has frames of its own, which come after these.
                self.world.after(0.0, self._answered, self.life, token, received)
            case RegionChanged():
                self.region_changed(effect)
            case Log(level, event, message):
                self.world.count(f"log {event}")
                self.errors.add(event)
                self.world.tell(f"{self.name} logs [{level}] {event}: {message}")
            case Fail(error):
                if not isinstance(error, StorageError):
                    raise error
                self.fail(error)

    def answered(self, token: int, received: int) -> None:
        """A question is over."""

    def region_changed(self, changed: RegionChanged) -> None:
        """What this node knows of its region has changed."""

    def _answered(self, life: int, token: int, received: int) -> None:
        if self._lives(life):
            self.answered(token, received)

    def _send(self, number: int, data: bytes, urgent: bool) -> None:
        """Send at once, or leave it waiting for a moment, as when a peer reads slowly."""
        waiting = self.outboxes.get(number)
        if waiting is None:
            # The first frame, which nothing gets ahead of.
            self.outboxes[number] = deque()
            self.connections[number].send(self, data)
        elif not urgent and (waiting or self.world.random.random() < 0.1):
            if not waiting:
                self.world.after(self.world.random.choice((0.0, 0.002, 0.02)), self._send_waiting, self.life, number)
            waiting.append(data)
        else:
            self.connections[number].send(self, data)

    def _send_waiting(self, life: int, number: int) -> None:
        if self._lives(life) and number in self.connections:
            waiting = self.outboxes.get(number, deque())
            while waiting:
                self.connections[number].send(self, waiting.popleft())

    def _lives(self, life: int) -> bool:
        return self.up and self.life == life

    def _timer(self, life: int, at: float) -> None:
        if self._lives(life) and self.timer_at == at:
            self.timer_at = None
            self.perform(self.replicator.timer(self.enter()))

    def _persist(self, life: int) -> None:
        if self._lives(life):
            now = self.enter()
            try:
                self.store.commit()
            except StorageError as error:
                self.fail(error)
                return
            self.perform(self.replicator.persisted(now))

    def _resume(self, life: int, number: int) -> None:
        if self._lives(life) and number in self.connections:
            self.perform(self.replicator.resume(self.enter(), number))

    # What the network calls.

    def accept(self, connection: Connection, end: End, dialler: Node) -> None:
        now = self.enter()
        end.number, effects = self.replicator.accepted(now, dialler.identity)
        self.connections[end.number] = connection
        self.perform(effects)

    def dialled(self, connection: Connection, number: int, target: Node) -> None:
        self.connections[number] = connection
        self.perform(self.replicator.dialled(self.enter(), number, target.identity))

    def dial_failed(self, number: int, reason: str) -> None:
        self.perform(self.replicator.dial_failed(self.enter(), number, reason))

    def receive(self, number: int, data: bytes) -> None:
        if number in self.connections:
            self.perform(self.replicator.received(self.enter(), number, data))

    def lost(self, number: int, reason: str) -> None:
        if self.connections.pop(number, None) is not None:
            self.perform(self.replicator.disconnected(self.enter(), number, reason))


def vector_text(vector: Any) -> str:
    return "{" + ", ".join(f"{origin:#x}: {timestamp}" for origin, timestamp in sorted(vector.items())) + "}"
