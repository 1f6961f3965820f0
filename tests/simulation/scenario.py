"""One run: a cluster made from a seed, its workload and faults, and what must hold in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from everwrite.errors import StorageError
from tests.reference.history import History
from tests.reference.model import normal
from tests.reference.vocabulary import Dot, Request, Vector, Verb, covers
from tests.simulation.digests import check_digests
from tests.simulation.disks import Disk
from tests.simulation.engine_store import EngineStore
from tests.simulation.network import Network
from tests.simulation.node import Node
from tests.simulation.world import World

KEYS = (b"k", b"q", b"z")
# Long values, so that logs are cut behind the back of a region that is away.
HEAVY_KEY = b"heavy"
HEAVY_BYTES = 1500
SETTLE_SECONDS = 120
SLICE_SECONDS = 0.25

MakeDisk = Callable[[int, Random, str], Disk]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides before a run starts."""

    regions: int
    durability: tuple[str, ...]
    seconds: float
    operations: int
    faults: int
    skew_ms: tuple[int, ...]
    heavy: float  # probability of a long write
    collections: int
    latencies: tuple[float, ...] = (0.001, 0.04, 0.075, 0.09)


def make_plan(random: Random) -> Plan:
    regions = random.choice((2, 3, 3, 3, 4))
    everywhere = random.choice(("always", "always", "interval", "os", "mixed"))
    durability = tuple(
        random.choice(("always", "interval", "os")) if everywhere == "mixed" else everywhere for _ in range(regions)
    )
    skewed = random.random() < 0.5
    return Plan(
        regions,
        durability,
        seconds=random.choice((0.5, 2.0, 5.0)),
        operations=random.randrange(10, 60),
        faults=random.choice((0, 2, 5, 10)),
        # Within the bound of 500 ms between any two.
        skew_ms=tuple(random.randrange(-200, 200) if skewed else 0 for _ in range(regions)),
        heavy=random.choice((0.0, 0.0, 0.7)),
        collections=random.choice((0, 5, 20)),
    )


class Scenario:
    """Builds the cluster, runs it, checks it."""

    def __init__(self, seed: int, make_disk: MakeDisk, tell: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, tell=tell)
        self.make_disk = make_disk
        self.random = self.world.random
        self.plan = self.make_plan()
        self.world.tell(str(self.plan))
        self.network = Network(self.world, self.plan.latencies)
        self.history = History()
        # Answered requests whose updates must survive: their node's durability is `always`.
        self.promised: list[Dot] = []
        self.collects = False
        self.nodes = [
            self.make_node(make_disk(number, self.random, durability))
            for number, durability in enumerate(self.plan.durability, 1)
        ]
        for node, skew_ms in zip(self.nodes, self.plan.skew_ms, strict=True):
            node.peers = [peer for peer in self.nodes if peer is not node]
            node.skew_ms = skew_ms

    def make_plan(self) -> Plan:
        """What this run is going to be."""
        return make_plan(self.random)

    def make_node(self, disk: Disk) -> Node:
        """A node, not started yet."""
        return Node(self.world, self.network, self.history, disk)

    def run(self) -> dict[str, int]:
        """Run to the end. Returns counts of what happened; raises AssertionError when something is wrong."""
        for node in self.nodes:
            node.start()
        for _ in range(self.plan.operations):
            self.world.after(self.random.random() * self.plan.seconds, self.operate)
        for _ in range(self.plan.faults):
            self.world.after(self.random.random() * self.plan.seconds, self.random.choice(self.faults()), self)
        for _ in range(self.plan.collections):
            self.world.after(self.random.random() * self.plan.seconds, self.collect)
        self.world.run_until(self.plan.seconds)
        self.settle()
        self.check()
        return self.world.counts

    def faults(self) -> tuple[Callable[[Any], None], ...]:
        """What may go wrong, each as often as it is named."""
        return FAULTS

    # Events.

    def operate(self) -> None:
        """A burst of requests of one client."""
        node = self.random.choice(self.nodes)
        if not node.up:
            return
        for _ in range(self.random.choice((1, 1, 1, 3))):
            issued = node.store.last_timestamp
            request = node.replica.make_request(self.random, self.random.choice(KEYS))
            if self.random.random() < self.plan.heavy:
                request = Request(Verb.SET, HEAVY_KEY, values=(self.random.randbytes(HEAVY_BYTES),))
            try:
                node.execute(request)
            except StorageError:
                return  # the outcome is unknown, and the node is down
            dot = Dot(node.store.last_timestamp, node.store.origin)
            if node.store.durability == "always" and dot.timestamp > issued:
                self.promised.append(dot)
        if self.random.random() < 0.1:
            node.wait(self.random.randint(1, self.plan.regions - 1))

    def pair(self) -> list[Node]:
        return self.random.sample(self.nodes, 2)

    def cut(self) -> None:
        one, other = self.pair()
        self.world.tell(f"cut {one} {other}")
        self.world.count("cuts")
        self.network.cut(one, other)
        self.world.after(self.random.choice((0.2, 1.0, 8.0)), self.network.heal, one, other)

    def isolate(self) -> None:
        node = self.random.choice(self.nodes)
        self.world.tell(f"cut off {node}")
        self.world.count("cuts", len(node.peers))
        delay = self.random.choice((0.2, 1.0, 8.0))
        for peer in node.peers:
            self.network.cut(node, peer)
            self.world.after(delay, self.network.heal, node, peer)

    def break_connection(self) -> None:
        for connection in self.network.between(*self.pair()):
            self.world.tell("a connection breaks")
            self.world.count("breaks")
            connection.break_off()

    def crash(self) -> None:
        node = self.random.choice(self.nodes)
        if node.up:
            self.world.count("crashes")
            node.crash()
            self.world.after(self.random.choice((0.0, 0.1, 1.0)), self.start, node)

    def stop(self) -> None:
        node = self.random.choice(self.nodes)
        if node.up:
            self.world.count("stops")
            node.stop()
            self.world.after(self.random.choice((0.0, 0.1, 1.0)), self.start, node)

    def start(self, node: Node) -> None:
        if not node.up:
            node.start()

    def sync(self) -> None:
        """What `interval` does now and then."""
        node = self.random.choice(self.nodes)
        if node.up:
            try:
                node.disk.sync(node.store)
            except StorageError as error:
                node.fail(error)

    def fail_disk(self) -> None:
        """One of the next writes or syncs of a log fails."""
        self.random.choice(self.nodes).disk.fail()

    def jump_clock(self) -> None:
        """A clock goes wrong, maybe far beyond the bound, until somebody sets it right."""
        node = self.random.choice(self.nodes)
        usual_ms = self.plan.skew_ms[self.nodes.index(node)]
        node.skew_ms = usual_ms + self.random.choice((-3000, -100, 100, 900, 3000))
        self.world.tell(f"the clock of {node} jumps to {node.skew_ms} ms")
        self.world.count("clock jumps")
        self.world.after(self.random.choice((0.5, 2.0)), setattr, node, "skew_ms", usual_ms)

    def reap(self) -> None:
        node = self.random.choice(self.nodes)
        if node.up:
            node.reap()

    def collect(self) -> None:
        """What a server's upkeep may do: reports are the replication machine's own."""
        node = self.random.choice(self.nodes)
        if node.up and isinstance(node.store, EngineStore):
            self.collects = True
            members = [each.disk.number for each in self.nodes]
            node.enter()
            node.disk.heal()
            raised = node.replica.collect(members, merge_tables=self.random.random() < 0.7)
            self.world.count("horizons", raised)
            self.world.tell(f"{node} collects: {node.store.horizon}")

    # The end.

    def settle(self) -> None:
        """Heal everything and wait until nobody lacks anything."""
        for one, skew_ms in zip(self.nodes, self.plan.skew_ms, strict=True):
            one.skew_ms = skew_ms
            one.disk.heal()
            for other in one.peers:
                self.network.heal(one, other)
            self.start(one)
        end = self.world.now + SETTLE_SECONDS
        while self.world.now < end:
            self.world.run_until(self.world.now + SLICE_SECONDS)
            self.network.cuts.clear()
            if all(node.up for node in self.nodes) and self.agree():
                return
        applied = "; ".join(f"{node}: {dict(node.store.applied)}" for node in self.nodes if node.up)
        raise AssertionError(f"{SETTLE_SECONDS} s after the last fault the regions still differ: {applied}")

    def agree(self) -> bool:
        first = dict(self.nodes[0].store.applied)
        return all(dict(node.store.applied) == first for node in self.nodes)

    def check(self) -> None:
        """Every region shows what the history says, and nothing that was promised is missing."""
        for node in self.nodes:
            for what in ("pulls", "resyncs", "tables"):
                self.world.count(what, node.store.statistics().get(what, 0))
        registers = [list(node.store.system_items(b"")) for node in self.nodes]
        assert all(each == registers[0] for each in registers), f"the system registers differ: {registers}"
        applied: Vector = dict(self.nodes[0].store.applied)
        lost = [dot for dot in self.promised if not covers(applied, dot)]
        assert not lost, f"answered with durability always, and lost: {lost}"
        now_ms = max(node.wall_ms for node in self.nodes)
        for node in self.nodes:
            node.store.set_time(now_ms)
        check_digests([node.store for node in self.nodes])
        for key in (*KEYS, HEAVY_KEY):
            effects = self.history.covered(key, applied)
            self.world.count("effects", len(effects))
            self.world.count("lost effects", len(self.history.of_key(key)) - len(effects))
            wanted = self.history.final(key, applied).reading(now_ms)
            for node in self.nodes:
                node.replica.check(key)
                shown = node.store.reading(key)
                assert shown == wanted, f"{node} shows {shown!r} for {key!r}, but must show {wanted!r}"
            if self.collects:
                continue
            # Also what doesn't show: hidden kinds, floors, tombstones.
            states = [normal(node.store.key_model(key)) for node in self.nodes]
            assert all(state == states[0] for state in states), f"the states of {key!r} differ: {states}"


FAULTS: tuple[Callable[[Scenario], None], ...] = (
    Scenario.cut,
    Scenario.cut,
    Scenario.isolate,
    Scenario.break_connection,
    Scenario.break_connection,
    Scenario.crash,
    Scenario.crash,
    Scenario.stop,
    Scenario.sync,
    Scenario.fail_disk,
    Scenario.jump_clock,
    Scenario.reap,
)
