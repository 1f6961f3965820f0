"""A region of several nodes whose clients read and write at LOCAL_QUORUM, while nodes crash and links fail.

What must hold: no acknowledged write is lost, and an operation sees every write that was acknowledged before it was
invoked, whichever node it runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from everwrite.errors import StorageError
from everwrite.server.effects import RegionChanged
from everwrite.server.region import quorum_of
from everwrite.server.settings import ReplicationSettings
from tests.reference.vocabulary import Dot, Request, Verb
from tests.simulation.node import SETTINGS, Node
from tests.simulation.scenario import FAULTS, HEAVY_BYTES, HEAVY_KEY, KEYS, Plan, Scenario

if TYPE_CHECKING:
    from tests.simulation.disks import Disk

REGION = "region"
# As between the nodes of a real one, but slower.
REGION_SETTINGS = replace(SETTINGS, region_heartbeat_interval=0.5)


@dataclass(slots=True)
class Operation:
    """A request that asks a quorum first. `owed`: what was acknowledged of its key before it was invoked."""

    request: Request
    owed: frozenset[Dot]
    timeout: float


class RegionNode(Node):
    """A node that does for its clients what a server's tick does."""

    settings: ReplicationSettings = REGION_SETTINGS

    def __init__(self, scenario: QuorumScenario, disk: Disk) -> None:
        super().__init__(scenario.world, scenario.network, scenario.history, disk, REGION)
        self.scenario = scenario
        self.view: RegionChanged
        self.asking: dict[int, Operation] = {}
        # Writes that wait for acknowledgements: timestamp and key of each.
        self.held: dict[int, bytes] = {}
        # Whether it has lost, or may have lost, something that it hasn't got back yet.
        self.lossy = True

    @property
    def others_needed(self) -> int:
        """How many other replicas make a quorum with this one."""
        return quorum_of(len(self.peers) + 1) - 1

    def start(self) -> None:
        """A new process knows nothing of what an earlier one was asked."""
        self.asking, self.held = {}, {}
        self.view = RegionChanged(len(self.peers) + 1, 1, 0, 0, recovering=True)
        super().start()

    def crash(self) -> None:
        """Without `always`, the end of the log may go."""
        self.lossy = self.lossy or self.store.durability != "always"
        super().crash()

    def replace_disk(self, disk: Disk) -> None:
        """Begin as a new store, with nothing."""
        self._end()
        self.store = None
        self.disk = disk
        self.durable = {}
        self.lossy = True

    def invoke(self, request: Request, timeout: float) -> None:
        """A client's request at LOCAL_QUORUM."""
        if self.view.recovering:
            self.world.count("loading")
            return
        if self.view.alive <= self.others_needed:
            self.world.count("unavailable")
            return
        owed = frozenset(self.scenario.acknowledged.get(request.key, ()))
        now = self.enter()
        question = self.store.question([request.key])
        token, effects = self.replicator.ask(now, question, self.others_needed, now + timeout)
        self.asking[token] = Operation(request, owed, timeout)
        self.perform(effects)

    def answered(self, token: int, received: int) -> None:
        operation = self.asking.pop(token)
        if received < self.others_needed:
            self.world.count("read timeouts")
            return
        request = operation.request
        seen = self.replica.seen_dots(request.key)
        missed = operation.owed - seen
        assert not missed, f"{self.name} {request}: doesn't see {missed}, acknowledged before it was invoked"
        self.world.count("reads that owed something", bool(operation.owed))
        issued = self.store.last_timestamp
        try:
            self.execute(request)
        except StorageError:
            return  # the outcome is unknown, and the node is down
        timestamp = self.store.last_timestamp
        if timestamp == issued:
            return
        self.held[timestamp] = request.key
        self.acknowledge()
        self.world.after(operation.timeout, self.give_up, self.life, timestamp)

    def acknowledge(self) -> None:
        """Tell clients of writes that a quorum holds by now."""
        for timestamp in [timestamp for timestamp in self.held if timestamp <= self.view.quorum_held]:
            key = self.held.pop(timestamp)
            self.scenario.acknowledged.setdefault(key, set()).add(Dot(timestamp, self.store.origin))
            self.world.count("acknowledged")
            self.world.tell(f"{self.name} acknowledges {timestamp} of {key!r}")
            # Now is the time to look for it elsewhere; and to take away who has it.
            if self.world.random.random() < 0.5:
                self.world.after(0.0, self.scenario.look, self.world.random.choice(self.peers), key)
            holders = self.scenario.ambushes.pop(self, None)
            if holders is not None:
                self.world.after(0.0, self.scenario.spring, self, holders, key)

    def give_up(self, life: int, timestamp: int) -> None:
        """Its outcome is unknown."""
        if self.life == life and self.held.pop(timestamp, None) is not None:
            self.world.count("write timeouts")

    def region_changed(self, changed: RegionChanged) -> None:
        self.view = changed
        self.world.tell(f"{self.name}: {changed}")
        if not changed.recovering:
            self.lossy = False
        self.acknowledge()


class QuorumScenario(Scenario):
    """One run, made from a seed."""

    nodes: list[RegionNode]  # type: ignore[assignment]

    def make_plan(self) -> Plan:
        nodes = self.random.choice((2, 3, 3, 3, 3, 5))
        # One for all: with less than `always`, no two nodes may lose something at the same time.
        self.durability = self.random.choice(("always", "always", "interval", "os"))
        self.store_ids = list(range(1, nodes + 1))
        # Who is waited for, and who is going to have what it writes.
        self.ambushes: dict[RegionNode, list[RegionNode]] = {}
        skewed = self.random.random() < 0.5
        self.acknowledged: dict[bytes, set[Dot]] = {}
        return Plan(
            nodes,
            (self.durability,) * nodes,
            seconds=self.random.choice((2.0, 5.0, 10.0)),
            operations=self.random.randrange(30, 120),
            faults=self.random.choice((0, 3, 8, 15)),
            skew_ms=tuple(self.random.randrange(-200, 200) if skewed else 0 for _ in range(nodes)),
            heavy=self.random.choice((0.0, 0.0, 0.5)),
            collections=self.random.choice((0, 0, 10)),
            latencies=self.random.choice(((0.001,), (0.001, 0.02), (0.001, 0.005, 0.09))),
        )

    def make_node(self, disk: Disk) -> Node:
        return RegionNode(self, disk)

    def faults(self) -> tuple[Callable[[Any], None], ...]:
        # By name, since what a crash may do here is different.
        return (
            *(getattr(QuorumScenario, fault.__name__) for fault in FAULTS),
            *OWN_FAULTS,
        )

    def operate(self) -> None:
        """Some requests of one client, one after the other or at once."""
        node = self.random.choice(self.nodes)
        for _ in range(self.random.choice((1, 1, 1, 4))):
            if not node.up:
                return
            key = self.random.choice(KEYS)
            request = node.replica.make_request(self.random, key)
            if self.random.random() < 0.2:
                request = Request(Verb.GET, key)
            elif self.random.random() < self.plan.heavy:
                request = Request(Verb.SET, HEAVY_KEY, values=(self.random.randbytes(HEAVY_BYTES),))
            if self.random.random() < 0.1:
                self.write_at_one(node, request)
            else:
                node.invoke(request, self.random.choice((0.05, 1.0, 1.0)))

    def write_at_one(self, node: Node, request: Request) -> None:
        """Without asking, and without a promise."""
        try:
            node.execute(request)
        except StorageError:
            return

    # Faults.

    def slow_down(self) -> None:
        """A link gets slow for a while."""
        pair = self.pair()
        seconds = self.random.choice((0.05, 0.3, 0.9))
        self.world.tell(f"the link of {pair} takes {seconds} s")
        self.world.count("slow links")
        self.network.slow_down(pair, seconds)
        self.world.after(self.random.choice((0.5, 3.0)), self.network.slow_down, pair, None)

    def ambush(self) -> None:
        """Keep all but a quorum from what a node writes next, and lie in wait for the acknowledgement."""
        writer = self.random.choice(self.nodes)
        peers = self.random.sample(writer.peers, len(writer.peers))
        holders, bystanders = peers[: writer.others_needed], peers[writer.others_needed :]
        for peer in bystanders:
            self.network.slow_down([writer, peer], 0.9)
            self.world.after(2.0, self.network.slow_down, [writer, peer], None)
        self.ambushes[writer] = holders
        self.world.after(0.2, self.write, writer)

    def write(self, node: RegionNode) -> None:
        """A client writes something."""
        if node.up:
            node.invoke(Request(Verb.SET, self.random.choice(KEYS), values=(self.random.randbytes(4),)), 1.0)

    def spring(self, writer: RegionNode, holders: list[RegionNode], key: bytes) -> None:
        """A write was acknowledged this moment: cut its writer off, crash another that has it, and look for it."""
        self.world.tell(f"an ambush for {writer}")
        self.world.count("ambushes")
        seconds = self.random.choice((1.0, 3.0))
        for peer in writer.peers:
            self.network.cut(writer, peer)
            self.world.after(seconds, self.network.heal, writer, peer)
        if self.random.random() < 0.7:
            self.crash_one(self.random.choice(holders), self.random.choice((0.0, 0.1)))
        for _ in range(12):
            self.world.after(self.random.random() * 2.0, self.look, self.random.choice(writer.peers), key)

    def look(self, node: RegionNode, key: bytes) -> None:
        """A client reads the key."""
        if node.up:
            node.invoke(Request(Verb.GET, key), 1.0)

    def may_lose(self, node: RegionNode) -> bool:
        """Whether what this node loses is still where it has to be."""
        return not any(other.lossy for other in self.nodes if other is not node)

    def replace(self) -> None:
        """A machine is gone for good; another one takes its place, name and address."""
        node = self.random.choice(self.nodes)
        # Whoever collects has to be told that a member is gone.
        if node.up and self.may_lose(node) and not self.plan.collections:
            self.world.count("replacements")
            self.world.tell(f"{node} is replaced")
            number = len(self.store_ids) + 1
            self.store_ids.append(number)
            node.replace_disk(self.make_disk(number, self.random, self.durability))
            self.world.after(self.random.choice((0.1, 1.0)), self.start, node)

    def crash(self) -> None:
        self.crash_one(self.random.choice(self.nodes), self.random.choice((0.0, 0.1, 1.0, 3.0)))

    def crash_one(self, node: RegionNode, seconds: float) -> None:
        """Crash a node for some time, unless that could lose what has to stay."""
        if node.up and (self.durability == "always" or self.may_lose(node)):
            self.world.count("crashes")
            node.crash()
            self.world.after(seconds, self.start, node)

    def fail_disk(self) -> None:
        """Not where the crash that follows could lose what another has lost already."""
        if self.durability == "always":
            super().fail_disk()

    # The end.

    def agree(self) -> bool:
        """All hold the same, and can work together again."""
        together = all(node.view.alive == len(self.nodes) and not node.view.recovering for node in self.nodes)
        return together and super().agree()

    def check(self) -> None:
        super().check()
        applied = dict(self.nodes[0].store.applied)
        for key, dots in self.acknowledged.items():
            lost = [dot for dot in dots if applied.get(dot.origin, 0) < dot.timestamp]
            assert not lost, f"{key!r}: acknowledged by a quorum, and lost: {lost}"


OWN_FAULTS: tuple[Callable[[QuorumScenario], None], ...] = (
    *(QuorumScenario.slow_down,) * 3,
    *(QuorumScenario.ambush,) * 4,
    QuorumScenario.replace,
)
