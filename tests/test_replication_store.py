"""The replication machine over the engine's own store, in virtual time: what the small twin can't show."""

from __future__ import annotations

import random
from typing import Any

import pytest

import everwrite
from everwrite.memory_files import MemoryFiles
from tests.replication_support import Network, Node, errors

SMALL = {"memtable_bytes": 200_000, "log_keep_bytes": 100_000, "segment_bytes": 100_000}


class RealNode(Node):
    """A node with the engine's store on files in memory."""

    def __init__(self, network: Network, region: str, store_id: int, peers: list[str], **options: Any) -> None:
        self.files = MemoryFiles()
        self.options = options
        super().__init__(network, region, store_id, peers, "test")

    def make_store(self, store_id: int) -> Any:
        return self.open_store(store_id)

    def open_store(self, store_id: int) -> everwrite.Database:
        self.db = everwrite.open(
            "/data", files=self.files, background=False, store_id=store_id, now_ms=self.clock_ms(), **self.options
        )
        return self.db

    def call(self, name: str, *arguments: object) -> None:
        self.db.set_time(self.clock_ms())
        super().call(name, *arguments)

    def writes(self) -> everwrite.Database:
        """The store, with its clock set: for one write."""
        self.db.set_time(self.clock_ms())
        return self.db

    def wrote(self) -> None:
        self.call("local_write")

    def crash(self, keep: random.Random | None = None) -> None:
        """Lose what wasn't synced, and start again."""
        self.halt()
        self.files.crash(keep)
        self.store = self.open_store(self.store.store_id)
        self.boot()


def regions(*names: str, **options: Any) -> tuple[Network, list[RealNode]]:
    network = Network()
    nodes = []
    for number, name in enumerate(names, 1):
        node = RealNode(network, name, number, [other for other in names if other != name], **options)
        network.nodes[name] = node
        nodes.append(node)
    network.run(2.0)
    return network, nodes


def contents(node: RealNode) -> dict[bytes, Any]:
    db = node.db
    found: dict[bytes, Any] = dict(db.items())
    for key in (b"s%d" % number for number in range(300)):
        if db.kind(key) == "set":
            found[key] = set(db.set(key))
    return found


def test_removals_behind_a_cut_link_are_pulled_many_at_once() -> None:
    network, [us, eu, ap] = regions("us", "eu", "ap")
    network.cut("us", "ap")
    for number in range(300):
        us.writes().set(b"s%d" % number).add(b"a", b"b")
    us.wrote()
    network.run(0.5)
    for number in range(300):
        eu.writes().set(b"s%d" % number).discard(b"a")
        eu.writes().counter(b"n").increment()
    eu.wrote()
    network.delays[frozenset(("eu", "ap"))] = 0.1
    assert network.run_until(lambda: contents(ap) == contents(eu), seconds=5.0) < 2.0
    assert contents(ap)[b"s299"] == {b"b"}
    assert contents(ap)[b"n"] == b"300"
    assert ap.db.statistics()["pulls"] >= 300
    assert set(errors(ap)) <= {"timeout", "unreachable"}
    network.heal("us", "ap")
    network.run_until(lambda: contents(us) == contents(ap) and us.replicator.drained())
    for node in (us, eu, ap):
        assert not set(errors(node)) - {"timeout", "unreachable", "peer_timeout", "disconnected"}


def test_needs_are_what_applying_asks_for() -> None:
    stores = [
        everwrite.open("/data", files=MemoryFiles(), background=False, store_id=number, now_ms=10**12)
        for number in (1, 2, 3)
    ]
    us, eu, ap = stores
    for number in range(10):
        us.set(b"%d" % number).add(b"a", b"b")
    for batch in us.changes({}):
        eu.apply(batch)
    for number in range(10):
        eu.set(b"%d" % number).discard(b"a")
        eu.set(b"%d" % number).discard(b"b")
    stream = eu.open_stream({}, {eu.store_id})
    batch = stream.next_batch(1000)
    assert batch is not None
    expected = eu.needs(batch, 100)
    assert expected == []  # eu has it all
    expected = ap.needs(batch, 100)
    assert [need.namespace_key for need in expected] == [b"\x02%d" % number for number in range(10)]
    assert ap.needs(batch, 3) == expected[:3]
    for need in expected:
        assert ap.apply_batch(batch) == need
        ap.supply_state(need, eu.key_state(need.namespace_key))
    assert ap.apply_batch(batch) is None
    assert ap.needs(batch, 100) == []
    assert ap.kind(b"5") == "none"
    with pytest.raises(everwrite.ProtocolError):
        ap.needs(batch[:-3], 100)
    for store in stores:
        store.close()


def test_a_cut_log_is_made_up_for_by_whole_states() -> None:
    network, [us, eu] = regions("us", "eu", **SMALL)
    network.cut("us", "eu")
    network.run(7.0)
    for number in range(6000):
        us.writes()[b"k%d" % (number % 2000)] = b"x" * 100
    us.writes().set(b"s1").add(b"a", b"b")
    us.writes().set(b"s1").discard(b"a")
    us.writes().counter(b"n").increment(5)
    us.wrote()
    us.db.maintain()
    assert us.db.statistics()["log_start"] > 0
    assert us.status("eu")["lag_changes"] == pytest.approx(6003, abs=5)
    network.heal("us", "eu")
    network.run_until(lambda: contents(us) == contents(eu) and us.status("eu")["resyncing"] is False)
    assert us.status("eu")["sent_resyncs"] == 1
    us.writes()[b"then"] = b"the stream goes on"
    us.wrote()
    network.run(0.1)
    assert eu.db[b"then"] == b"the stream goes on"
    network.run(5.0)
    assert us.db.applied == eu.db.applied


def test_resyncs_from_two_stores_at_once_are_both_taken() -> None:
    stores = [
        everwrite.open("/data", files=MemoryFiles(), background=False, store_id=number, now_ms=10**12)
        for number in (1, 2, 3)
    ]
    us, eu, ap = stores
    us[b"us"] = b"value"
    for batch in us.changes({}):
        eu.apply(batch)
    eu[b"eu"] = b"value"
    for batch in eu.changes(us.applied):
        us.apply(batch)
    # Both have seen the same updates, so that their clocks agree.
    batches = [list(store.resync_batches({})) for store in (us, eu)]
    assert len(batches[0]) == len(batches[1]) == 2
    # A claim counts for the states of its own resync alone.
    assert ap.apply_batch(batches[0][0]) is None
    with pytest.raises(everwrite.GapError):
        ap.apply_batch(batches[1][1])
    assert ap.apply_batch(batches[1][0]) is None
    assert ap.apply_batch(batches[0][1]) is None
    assert ap.apply_batch(batches[1][1]) is None
    assert ap.applied == eu.applied == us.applied
    assert ap.statistics()["resyncs"] == 2
    for store in stores:
        store.close()


def test_a_lost_tail_comes_back_from_its_peer() -> None:
    network, [us, eu] = regions("us", "eu", durability="os")
    eu.writes()[b"kept"] = b"value"
    eu.wrote()
    network.run(1.0)
    old = eu.db.origin
    for number in range(20):
        eu.writes()[b"k%d" % number] = b"value"
    eu.wrote()
    network.run(0.1)
    assert us.db[b"k19"] == b"value"
    eu.crash()
    assert eu.db.origin != old
    assert b"k19" not in eu.db
    network.run_until(lambda: contents(us) == contents(eu))
    assert eu.db[b"k19"] == b"value"
    eu.writes()[b"new"] = b"incarnation"
    eu.wrote()
    network.run(1.0)
    assert us.db[b"new"] == b"incarnation"
