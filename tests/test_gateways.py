"""Regions of several nodes with each other, in virtual time: gateways, relays, and what happens when some are gone."""

from __future__ import annotations

import logging
import random

import msgspec
import pytest

from everwrite.server import codec
from everwrite.server.messages import Batch
from everwrite.server.topology import Place, gateway_of
from tests.fake_store import Envelope
from tests.replication_support import Network, Node, converged, errors, regions_of

REGIONS = ("us", "eu", "ap")
LETTERS = "abc"


def members(network: Network, region: str) -> list[Node]:
    return [node for node in network.nodes.values() if node.identity.region == region]


def followers(network: Network, followed: Node, region: str) -> list[Node]:
    """The nodes of a region that receive a node's log from itself."""
    return [
        node
        for node in members(network, region)
        if node.up
        and any(
            peer.receiver is not None and peer.receiver.session.hello is not None
            for peer in node.replicator.peers
            if peer.node == followed.identity.node
        )
    ]


def gateway(network: Network, followed: Node, region: str) -> Node:
    """Who should follow the node in a region of which all nodes that are up are seen by each other."""
    names = frozenset(node.identity.node for node in members(network, region) if node.up)
    chosen = gateway_of(Place(followed.identity.region, followed.identity.node), names)
    return next(node for node in network.nodes.values() if node.identity.node == chosen)


def passages(network: Network, origin: Node, source: str, target: str) -> int:
    """How often the user's changes of a node went from nodes of one region to nodes of another, or the same, one."""
    count = 0
    for node in members(network, source):
        for _, connection, data in node.sent:
            if node.reached[connection].identity.region != target:
                continue
            message = codec.decode(data[4:])
            if isinstance(message, Batch):
                changes = msgspec.msgpack.decode(message.data, type=Envelope).changes
                count += sum(
                    change.origin >> 16 == origin.store.store_id and not change.key.startswith(b"\0")
                    for change in changes
                )
    return count


def cut_regions(network: Network, one: str, other: str, *, heal: bool = False) -> None:
    for a in members(network, one):
        for b in members(network, other):
            network.heal(a.name, b.name) if heal else network.cut(a.name, b.name)


def complaints(network: Network) -> list[str]:
    return [log.message for node in network.nodes.values() for log in node.logs if log.level > logging.INFO]


def settled(network: Network) -> bool:
    """Whether every node that is up holds the same of every origin."""
    vectors = [node.store.applied for node in network.nodes.values() if node.up]
    return all(vector == vectors[0] for vector in vectors) and converged(network)


def test_each_node_is_followed_by_one_node_of_each_other_region_and_by_all_of_its_own() -> None:
    network = regions_of(3)
    for node in network.nodes.values():
        for region in set(REGIONS) - {node.identity.region}:
            assert followers(network, node, region) == [gateway(network, node, region)]
        assert len(followers(network, node, node.identity.region)) == 2
    assert complaints(network) == []


@pytest.mark.parametrize("count", [2, 3])
def test_a_change_crosses_to_each_region_once_and_reaches_each_neighbour_once(count: int) -> None:
    network = regions_of(count)
    for number in range(20):
        for node in network.nodes.values():
            node.set(b"%s-%d" % (node.name.encode(), number), b"x")
        network.run(0.05)
    network.run_until(lambda: settled(network))
    for node in network.nodes.values():
        own = node.identity.region
        for region in REGIONS:
            others = set(REGIONS) - {region}
            assert passages(network, node, region, region) == 20 * (count - 1)
            assert sum(passages(network, node, other, region) for other in others) == (20 if region != own else 0)
    assert complaints(network) == []


def test_a_position_at_one_node_of_a_region_is_that_of_the_region() -> None:
    network = regions_of(3)
    node = network.nodes["us-a"]
    token = node.wait(node.set(b"k", b"v"), 2, 5.0)
    network.run_until(lambda: token in node.resolved)
    assert node.resolved[token] == 2
    network.nodes["eu-a"].halt()
    network.nodes["ap-b"].halt()
    network.run(10.0)
    token = node.wait(node.set(b"k", b"w"), 2, 5.0)
    network.run_until(lambda: token in node.resolved)
    assert node.resolved[token] == 2


def test_another_node_takes_over_from_a_gateway_that_dies_and_gives_back_what_it_took() -> None:
    network = regions_of(3)
    author = network.nodes["us-a"]
    first = gateway(network, author, "eu")
    for number in range(10):
        author.set(b"before-%d" % number, b"x")
        network.run(0.01)
    first.halt()
    for number in range(100):
        author.set(b"during-%d" % number, b"x")
        network.run(0.01)
    second = gateway(network, author, "eu")
    assert second is not first
    assert followers(network, author, "eu") == [second]
    network.run_until(lambda: settled_but(network, first))
    first.boot()
    network.run(5.0)
    assert followers(network, author, "eu") == [first]
    author.set(b"after", b"x")
    network.run_until(lambda: settled(network))
    # Twice at most what was on its way when the gateway changed.
    assert 111 <= passages(network, author, "us", "eu") <= 2 * 111 - 80
    assert passages(network, author, "us", "ap") == 111
    assert all(errors(node).get("gap", 0) == 0 for node in network.nodes.values())


def settled_but(network: Network, away: Node) -> bool:
    states = [node.store.visible() for node in network.nodes.values() if node is not away]
    return all(state == states[0] for state in states)


def test_what_a_node_told_only_its_neighbours_before_it_died_crosses_once() -> None:
    network = regions_of(3)
    author = network.nodes["us-a"]
    for region in ("eu", "ap"):
        for node in members(network, region):
            network.cut(author.name, node.name)
    for number in range(30):
        author.set(b"tail-%d" % number, b"x")
    network.run(0.1)
    assert network.nodes["us-b"].store.get(b"tail-29") == b"x"
    author.halt()
    network.run_until(lambda: settled_but(network, author), seconds=20.0)
    assert passages(network, author, "us", "eu") == 30 + passages_lost(network, author, "eu")
    assert passages(network, author, "us", "ap") == 30 + passages_lost(network, author, "ap")
    assert followers(network, author, "eu") == []


def passages_lost(network: Network, author: Node, target: str) -> int:
    """Of the passages of a node's changes to a region those that it sent itself, into a cut link."""
    sent, author.sent = author.sent, []
    without = passages(network, author, author.identity.region, target)
    author.sent = sent
    return passages(network, author, author.identity.region, target) - without


def test_a_gateway_that_cannot_reach_whom_it_follows_gets_the_changes_from_a_neighbour_of_theirs() -> None:
    network = regions_of(3)
    author = network.nodes["us-a"]
    network.cut(author.name, gateway(network, author, "eu").name)
    author.set(b"k", b"v")
    network.run_until(lambda: settled(network), seconds=30.0)
    for number in range(100):
        author.set(b"k-%d" % number, b"v")
        network.run(0.2)
    network.run_until(lambda: settled(network), seconds=30.0)


def test_a_cut_between_two_regions_holds_although_a_third_is_connected_to_both() -> None:
    network = regions_of(3)
    cut_regions(network, "us", "eu")
    network.nodes["us-b"].set(b"k", b"v")
    network.run(60.0)
    assert all(node.store.get(b"k") is None for node in members(network, "eu"))
    assert all(node.store.get(b"k") == b"v" for node in members(network, "ap"))
    cut_regions(network, "us", "eu", heal=True)
    network.run_until(lambda: settled(network), seconds=30.0)


def test_the_lag_of_a_region_is_told_by_the_link_that_serves_it() -> None:
    network = regions_of(3)
    node = network.nodes["us-a"]
    statuses = {str(status["node"]): status for status in node.replicator.statuses(network.now)}
    for region in ("eu", "ap"):
        serving = gateway(network, node, region).identity.node
        for member in members(network, region):
            status = statuses[member.identity.node]
            assert status["standby"] == (member.identity.node != serving)
            assert (status["lag_seconds"] is None) == status["standby"]
            assert status["sending"] != status["standby"]
    cut_regions(network, "us", "eu")
    node.set(b"k", b"v")
    network.run(30.0)
    lags = [s["lag_seconds"] for s in node.replicator.statuses(network.now) if s["region"] == "eu"]
    assert all(lag is not None and lag > 20.0 for lag in lags)


def test_a_node_that_lost_the_end_of_its_log_gets_it_back_from_the_gateway_of_another_region() -> None:
    network = regions_of(3)
    author = network.nodes["us-a"]
    for neighbour in ("us-b", "us-c"):
        network.cut(author.name, neighbour)
    network.run(10.0)
    kept = len(author.store.log)
    author.set(b"lost", b"x")
    network.run(1.0)
    author.halt()
    author.store.lose(len(author.store.log) - kept)
    author.store.crash()
    assert author.store.get(b"lost") is None
    for neighbour in ("us-b", "us-c"):
        network.heal(author.name, neighbour, 0.001)
    author.boot()
    network.run_until(lambda: settled(network), seconds=30.0)
    assert author.store.get(b"lost") == b"x"
    network.run(5.0)
    for region in ("eu", "ap"):
        assert followers(network, author, region) == [gateway(network, author, region)]


def test_what_never_becomes_durable_by_itself_is_relayed_all_the_same() -> None:
    network = regions_of(3)
    gone = network.nodes["us-c"]
    for node in network.nodes.values():
        node.store.durable_applied = {}
        node.store.commit = lambda node=node: setattr(  # type: ignore[method-assign, misc]
            node.store, "durable", node.store.log_start + len(node.store.log)
        )
    network.cut("us-b", "us-c")
    network.run(10.0)
    gone.set(b"k", b"v")
    network.run(1.0)
    assert network.nodes["us-b"].store.get(b"k") is None
    gone.halt()
    network.run_until(lambda: network.nodes["us-b"].store.get(b"k") == b"v", seconds=20.0)


def test_regions_of_one_and_of_several_nodes_live_together() -> None:
    network = Network()
    names = ["us-a", "us-b", "us-c", "eu-a", "ap-a", "ap-b"]
    network.region_of = {name: name[:2] for name in names}
    for name in names:
        network.add(name, [other for other in names if other != name])
    network.run(5.0)
    for number in range(20):
        for node in network.nodes.values():
            node.set(b"%s-%d" % (node.name.encode(), number), b"x")
        network.run(0.5)
    network.run_until(lambda: settled(network))
    network.run(20.0)
    for node in network.nodes.values():
        for region in set(REGIONS) - {node.identity.region}:
            assert len(followers(network, node, region)) == 1
            assert passages(network, node, node.identity.region, region) == 20


@pytest.mark.parametrize("seed", range(12))
def test_after_any_storm_all_nodes_hold_the_same(seed: int) -> None:
    network = regions_of(3, seed=seed, fragment=True)
    rng = random.Random(seed)
    names = list(network.nodes)
    cut: set[tuple[str, str]] = set()
    for number in range(60):
        match rng.randrange(6):
            case 0:
                victim = network.nodes[rng.choice(names)]
                victim.halt() if victim.up else victim.boot()
            case 1:
                pair = tuple(rng.sample(names, 2))
                network.cut(*pair)
                cut.add(pair)
            case 2 if cut:
                pair = cut.pop()
                network.heal(*pair)
            case 3:
                network.break_connections(*rng.sample(names, 2))
        for node in rng.sample(list(network.nodes.values()), 3):
            if node.up:
                node.set(b"k%d" % rng.randrange(50), b"%d" % number)
        network.run(rng.choice((0.01, 0.3, 3.0)))
    for pair in cut:
        network.heal(*pair)
    for node in network.nodes.values():
        if not node.up:
            node.boot()
    network.run_until(lambda: settled(network), seconds=60.0)
    network.run(15.0)
    for node in network.nodes.values():
        assert node.failure is None
        assert {"gap", "illegal_message", "bad_batch"}.isdisjoint(errors(node))
        for region in set(REGIONS) - {node.identity.region}:
            assert followers(network, node, region) == [gateway(network, node, region)]
