"""A network in virtual time, for tests of the replication machine."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

from everwrite.server import codec
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
from everwrite.server.messages import Message
from everwrite.server.peer import PeerAddress
from everwrite.server.replication import Replicator
from everwrite.server.session import Identity
from everwrite.server.settings import ReplicationSettings
from tests.fake_store import EPOCH_MS, FakeStore


class Node:
    """One replicator with its store on a network. `name` is its address and that of its region, where not given."""

    def __init__(
        self, network: Network, name: str, store_id: int, peers: list[str], cluster: str, region: str | None = None
    ) -> None:
        self.network = network
        self.name = name
        self.identity = Identity(cluster, region or name, f"{name}-0")
        self.clock_offset_ms = 0
        self.store = self.make_store(store_id)
        self.peers = peers
        self.resolved: dict[int, int] = {}
        self.answered: dict[int, int] = {}
        self.region: list[RegionChanged] = []
        self.logs: list[Log] = []
        self.failure: Exception | None = None
        self.up = False
        self.ends: dict[int, End] = {}
        self.dials: set[int] = set()
        self.generation = 0
        self.sent: list[tuple[float, int, bytes]] = []
        self.reached: dict[int, Node] = {}  # whom each connection was with
        self.boot()

    def make_store(self, store_id: int) -> FakeStore:
        return FakeStore(store_id, self.clock_ms)

    def clock_ms(self) -> int:
        """The node's wall clock."""
        return EPOCH_MS + round(self.network.now * 1000) + self.clock_offset_ms

    def boot(self) -> None:
        """Start, or start again after `halt`."""
        self.up = True
        self.generation += 1
        self.replicator = Replicator(
            self.store,
            self.identity,
            [
                PeerAddress(region, f"{peer}-0", peer)
                if (region := self.network.region_of.get(peer))
                else PeerAddress(peer, None, peer)
                for peer in self.peers
            ],
            rng=random.Random(self.store.store_id),
            settings=self.network.settings,
        )
        self.perform(self.replicator.start(self.network.now))

    def halt(self) -> None:
        """Die at once: the other ends notice after the delay."""
        self.up = False
        self.generation += 1
        for end in list(self.ends.values()):
            end.close()
        self.dials.clear()

    def set(self, key: bytes, value: bytes, builds_on: tuple[int, int] | None = None) -> int:
        timestamp = self.store.set(key, value, builds_on)
        self.perform(self.replicator.local_write(self.network.now))
        return timestamp

    def wait(self, timestamp: int, count: int, seconds: float | None) -> int:
        now = self.network.now
        token, effects = self.replicator.wait(now, timestamp, count, None if seconds is None else now + seconds)
        self.perform(effects)
        return token

    def ask(self, keys: list[bytes], answers: int, seconds: float) -> int:
        now = self.network.now
        token, effects = self.replicator.ask(now, self.store.question(keys), answers, now + seconds)
        self.perform(effects)
        return token

    def perform(self, effects: list[Effect]) -> None:
        network = self.network
        for effect in effects:
            match effect:
                case Dial(connection, address):
                    self.dials.add(connection)
                    network.dial(self, connection, address)
                case SendFrame(connection, data):
                    end = self.ends.get(connection)
                    self.sent.append((network.now, connection, data))
                    if end is not None:
                        end.send(data)
                case Close(connection, _):
                    self.dials.discard(connection)
                    if connection in self.ends:
                        self.ends[connection].close()
                case SetTimer(at):
                    self._timer(at)
                case Persist():
                    network.after(network.commit_seconds, partial(self._persist, self.generation))
                case Resume(connection):
                    network.after(0.0, partial(self.call, "resume", connection))
                case Resolve(token, regions):
                    assert token not in self.resolved
                    self.resolved[token] = regions
                case Answered(token, received):
                    assert token not in self.answered
                    self.answered[token] = received
                case RegionChanged():
                    self.region.append(effect)
                case Log():
                    self.logs.append(effect)
                case Fail(error):
                    self.failure = error

    def call(self, name: str, *arguments: object) -> None:
        """Tell the replicator of an event, unless the node is down."""
        if self.up:
            self.perform(getattr(self.replicator, name)(self.network.now, *arguments))

    def _persist(self, generation: int) -> None:
        if generation == self.generation and self.up:
            self.store.commit()
            self.call("persisted")

    def _timer(self, at: float | None) -> None:
        self.timer_number = number = getattr(self, "timer_number", 0) + 1
        if at is not None:
            generation = self.generation

            def fire() -> None:
                if number == self.timer_number and generation == self.generation:
                    self.call("timer")

            self.network.at(at, fire)

    def status(self, region: str) -> dict[str, object]:
        return next(s for s in self.replicator.statuses(self.network.now) if s["region"] == region)


class End:
    """One end of a connection; bytes arrive in order after the delay, cut anywhere."""

    def __init__(self, network: Network, node: Node, connection: int) -> None:
        self.network = network
        self.node = node
        self.connection = connection
        self.other: End | None = None
        self.open = True
        self.swallowing = False
        self.arrival = 0.0
        node.ends[connection] = self

    def send(self, data: bytes) -> None:
        network, other = self.network, self.other
        if not self.open or other is None or self.swallowing:
            return
        delay = network.delay(self.node, other.node)
        if delay is None:
            # From the first byte that is lost, TCP delivers nothing more: heartbeats have to find out.
            self.swallowing = True
            return
        other.arrival = max(other.arrival, network.now + delay)
        at = other.arrival - network.now
        cut = network.rng.randrange(len(data) + 1) if network.fragment else len(data)
        for part in (data[:cut], data[cut:]):
            if part:
                network.after(at, partial(other.deliver, part))

    def deliver(self, data: bytes) -> None:
        if self.open:
            self.node.call("received", self.connection, data)

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self.node.ends.pop(self.connection, None)
        other = self.other
        if other is not None and other.open:
            delay = self.network.delay(self.node, other.node)
            if delay is not None:
                at = max(delay, other.arrival - self.network.now)
                self.network.after(at, other.lost)

    def lost(self) -> None:
        if self.open:
            self.open = False
            self.node.ends.pop(self.connection, None)
            self.node.call("disconnected", self.connection, "closed by the peer")


class Network:
    """Virtual time and links with a delay each; None for a delay is a cut link."""

    def __init__(self, *, seed: int = 0, settings: ReplicationSettings | None = None, fragment: bool = False) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.settings = settings or ReplicationSettings()
        self.fragment = fragment
        self.commit_seconds = 0.0005
        self.nodes: dict[str, Node] = {}
        self.region_of: dict[str, str] = {}  # of nodes that aren't called as their region
        self.delays: dict[frozenset[str], float | None] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def add(self, name: str, peers: list[str], *, store_id: int | None = None, cluster: str = "test") -> Node:
        node = Node(self, name, store_id or len(self.nodes) + 1, peers, cluster, self.region_of.get(name))
        self.nodes[name] = node
        return node

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(self.now, time), next(self._numbers), action))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], *, seconds: float = 60.0) -> float:
        """Let virtual time pass until `condition` holds; how long that took."""
        start, end = self.now, self.now + seconds
        while not condition():
            assert self._events, "nothing is going to happen any more"
            assert self._events[0][0] <= end, f"still not true after {seconds} s of virtual time"
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.now - start

    def delay(self, a: Node, b: Node) -> float | None:
        return self.delays.get(frozenset((a.name, b.name)), 0.02)

    def cut(self, a: str, b: str) -> None:
        self.delays[frozenset((a, b))] = None

    def heal(self, a: str, b: str, delay: float = 0.02) -> None:
        self.delays[frozenset((a, b))] = delay

    def break_connections(self, a: str, b: str) -> None:
        """Reset every connection between two nodes; what is under way is lost."""
        for end in list(self.nodes[a].ends.values()):
            other = end.other
            if other is not None and other.node is self.nodes[b]:
                end.lost()
                other.lost()

    def dial(self, node: Node, connection: int, address: str) -> None:
        target = self.nodes.get(address)
        generation = node.generation
        delay = None if target is None else self.delay(node, target)
        if target is not None and delay is None:
            return  # no answer: the replicator's own timeout ends the dial

        def arrive() -> None:
            if generation != node.generation or connection not in node.dials:
                return
            node.dials.discard(connection)
            if target is None or not target.up:
                node.call("dial_failed", connection, "connection refused")
                return
            ours = End(self, node, connection)
            number, effects = target.replicator.accepted(self.now, node.identity)
            theirs = End(self, target, number)
            ours.other, theirs.other = theirs, ours
            node.reached[connection], target.reached[number] = target, node
            target.perform(effects)
            node.call("dialled", connection, target.identity)

        self.after(2 * (delay or 0.0), arrive)


def three_regions(**options: object) -> Network:
    """us, eu and ap, each with a link to the other two."""
    network = Network(**options)  # type: ignore[arg-type]
    regions = ["us", "eu", "ap"]
    for region in regions:
        network.add(region, [other for other in regions if other != region])
    return network


def one_region(count: int, **options: object) -> tuple[Network, list[Node]]:
    """`count` nodes of the region us, 1 ms apart, connected, and each with all that the others hold."""
    network = Network(**options)  # type: ignore[arg-type]
    names = [f"us-{letter}" for letter in "abcde"[:count]]
    network.region_of = dict.fromkeys(names, "us")
    nodes = [network.add(name, [other for other in names if other != name]) for name in names]
    for one, other in itertools.combinations(names, 2):
        network.heal(one, other, 0.001)
    network.run_until(lambda: all(node.region and node.region[-1].alive == count for node in nodes))
    assert not any(node.region[-1].recovering for node in nodes)
    network.run(1.5)  # past the first reports
    return network, nodes


def regions_of(count: int, **options: object) -> Network:
    """us, eu and ap with `count` nodes each, called us-a and so on, 1 ms apart in a region and 20 ms across."""
    network = Network(**options)  # type: ignore[arg-type]
    names = [f"{region}-{letter}" for region in ("us", "eu", "ap") for letter in "abcde"[:count]]
    network.region_of = {name: name[:2] for name in names}
    for one, other in itertools.combinations(names, 2):
        if one[:2] == other[:2]:
            network.heal(one, other, 0.001)
    for name in names:
        network.add(name, [other for other in names if other != name])
    network.run_until(lambda: all(n.region and n.region[-1].alive == count for n in network.nodes.values()))
    network.run(3.0)  # past the first reports, and links that are only there to begin with are gone
    return network


def two_regions(**options: object) -> tuple[Network, Node, Node]:
    """us and eu, 20 ms apart, connected both ways."""
    network = Network(**options)  # type: ignore[arg-type]
    us, eu = network.add("us", ["eu"]), network.add("eu", ["us"])
    network.run_until(lambda: all(connected(node) for node in (us, eu)))
    network.run(1.5)  # past the first reports
    return network, us, eu


def connected(node: Node) -> bool:
    return all(status["connected"] for status in node.replicator.statuses(node.network.now))


def converged(network: Network) -> bool:
    states = [node.store.visible() for node in network.nodes.values()]
    return all(state == states[0] for state in states)


def errors(node: Node) -> dict[str, int]:
    return {
        name.removeprefix("errors_"): value
        for name, value in node.replicator.statistics().items()
        if name.startswith("errors_")
    }


def messages(node: Node, kind: type[Message]) -> list[tuple[float, Message]]:
    """What the node has sent of one kind: (when, message)."""
    sent = [(at, codec.decode(data[4:])) for at, _, data in node.sent]
    return [(at, message) for at, message in sent if isinstance(message, kind)]
