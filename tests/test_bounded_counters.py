"""Bounded counters: never below the minimum, whatever happens to the stores and the links between them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite import ordered_access
from everwrite.database import Database
from everwrite.errors import GapError, InsufficientRightsError, OverflowError, WrongTypeError
from everwrite.memory_files import MemoryFiles
from tests.reference.model_store import USER
from tests.reference.state_format import read_full_state

START_MS = 1_700_000_000_000


def open_store(number: int, files: MemoryFiles | None = None) -> Database:
    files = files or MemoryFiles()
    return everwrite.open("/data", "os", files=files, background=False, store_id=number, now_ms=START_MS)


@pytest.fixture
def trio_of_stores() -> Iterator[tuple[Database, Database, Database]]:
    with open_store(1) as one, open_store(2) as two, open_store(3) as three:
        yield one, two, three


def send(sender: Database, receiver: Database) -> None:
    for batch in sender.changes(receiver.applied):
        receiver.apply(batch)


def exchange(*stores: Database) -> None:
    for _ in range(2):
        for sender, receiver in permutations(stores, 2):
            send(sender, receiver)


def test_rights_are_made_by_increments_and_used_up_by_decrements(
    trio_of_stores: tuple[Database, Database, Database],
) -> None:
    one, two, three = trio_of_stores
    counter = one.bounded_counter(b"k", minimum=-5)
    assert counter.value == counter.minimum == -5
    assert one.kind(b"k") == "none"
    assert counter.increment(10) == 5
    assert counter.decrement(4) == 1
    exchange(one, two, three)
    there = two.bounded_counter(b"k")
    assert (there.value, there.minimum, there.rights) == (1, -5, 0)
    with pytest.raises(InsufficientRightsError) as caught:
        there.decrement(2)
    assert (caught.value.requested, caught.value.held, caught.value.elsewhere) == (2, 0, {one.origin: 6})
    assert f"{one.origin:#018x}" in str(caught.value)
    counter.transfer(two.origin, 4)
    assert counter.value == 1
    exchange(one, two, three)
    assert there.rights_by_origin == {one.origin: 2, two.origin: 4}
    assert there.decrement(3) == -2
    there.transfer(three.origin, 1)
    exchange(one, two, three)
    assert three.bounded_counter(b"k").decrement() == -3
    exchange(one, two, three)
    for db in trio_of_stores:
        assert db.bounded_counter(b"k").value == -3
        assert db.bounded_counter(b"k").rights_by_origin == {one.origin: 2}
        assert db.why(b"k")["value"] == -3


def test_a_refusal_changes_nothing(trio_of_stores: tuple[Database, Database, Database]) -> None:
    one, *_ = trio_of_stores
    counter = one.bounded_counter(b"k")
    counter.increment(3)
    before = one.statistics()["log_end"], one.statistics()["local_changes"]
    for wrong, error in (
        (lambda: counter.decrement(4), InsufficientRightsError),
        (lambda: counter.transfer(7 << 16, 4), InsufficientRightsError),
        (lambda: counter.decrement(0), ValueError),
        (lambda: counter.increment(-1), ValueError),
        (lambda: counter.increment((1 << 63) - 3), OverflowError),
        (lambda: counter.increment(1 << 63), OverflowError),
        (lambda: counter.transfer(one.origin, 1), ValueError),
        (lambda: counter.transfer(0, 1), ValueError),
        (lambda: one.bounded_counter(b"k", 1 << 63), OverflowError),
        (lambda: one.sorted_set(b"k").add(b"a", 1), WrongTypeError),
        (lambda: one.bounded_counter(b"none").decrement(), InsufficientRightsError),
    ):
        with pytest.raises(error):
            wrong()
    assert (one.statistics()["log_end"], one.statistics()["local_changes"]) == before
    one[b"s"] = b"5"
    with pytest.raises(WrongTypeError):
        one.bounded_counter(b"s").increment()


def test_counters_created_at_once_add_up(trio_of_stores: tuple[Database, Database, Database]) -> None:
    one, two, three = trio_of_stores
    one.bounded_counter(b"k", minimum=0).increment(10)
    two.bounded_counter(b"k", minimum=3).increment(5)
    exchange(one, two, three)
    assert three.bounded_counter(b"k").value == 3 + 10 + 5
    assert three.bounded_counter(b"k").minimum == 3
    # Rights of both: what one generation lacks the other gives, in one update.
    two.bounded_counter(b"k").transfer(three.origin, 5)
    one.bounded_counter(b"k").transfer(three.origin, 10)
    exchange(one, two, three)
    before = three.statistics()["local_changes"]
    assert three.bounded_counter(b"k").decrement(12) == 6
    assert three.statistics()["local_changes"] == before + 1
    exchange(one, two, three)
    assert one.bounded_counter(b"k").rights_by_origin == {three.origin: 3}


def test_what_is_written_to_an_ended_counter_counts_no_more(
    trio_of_stores: tuple[Database, Database, Database],
) -> None:
    one, two, three = trio_of_stores
    one.bounded_counter(b"k").increment(10)
    one.bounded_counter(b"k").transfer(two.origin, 5)
    exchange(one, two, three)
    three.delete(b"k")
    two.bounded_counter(b"k").increment(7)
    two.bounded_counter(b"k").decrement(2)
    exchange(one, two, three)
    for db in trio_of_stores:
        assert db.kind(b"k") == "none"
    assert one.bounded_counter(b"k").increment(3) == 3
    exchange(one, two, three)
    for db in trio_of_stores:
        assert db.bounded_counter(b"k").rights_by_origin == {one.origin: 3}
    # What was left of the first counter goes with the next delete.
    assert len(elements_of(one, b"k")) == 4
    two.delete(b"k")
    exchange(one, two, three)
    for db in trio_of_stores:
        assert db.kind(b"k") == "none"
        assert elements_of(db, b"k") == []


def elements_of(db: Database, key: bytes) -> list[bytes]:
    _, state = read_full_state(db.key_state(USER + key))
    return [name for (_, name), element in state.entries.items() if element.alive]


def test_a_store_that_has_not_seen_the_delete_gets_no_rights_back(
    trio_of_stores: tuple[Database, Database, Database],
) -> None:
    """Another counter is created where one was deleted; that reaches a store before the delete does."""
    one, two, three = trio_of_stores
    one.bounded_counter(b"k").increment(10)
    one.bounded_counter(b"k").transfer(three.origin, 5)
    exchange(one, two, three)
    two.delete(b"k")
    three.bounded_counter(b"k").decrement(5)
    send(three, one)
    send(two, one)
    one.bounded_counter(b"k").increment(1)
    own = one.open_stream(three.applied, [one.store_id])
    batch = own.next_batch()
    assert batch is not None
    assert three.apply_batch(batch) is None
    assert three.bounded_counter(b"k").rights == 0
    with pytest.raises(InsufficientRightsError):
        three.bounded_counter(b"k").decrement()
    exchange(one, two, three)
    assert three.bounded_counter(b"k").value == 1


def test_a_spent_transfer_comes_before_what_it_was_spent_on(
    trio_of_stores: tuple[Database, Database, Database],
) -> None:
    """A store that gets only the spender's own updates is told that it lacks the transfer, and pulls the key."""
    one, two, three = trio_of_stores
    one.bounded_counter(b"k").increment(10)
    one.bounded_counter(b"k").transfer(two.origin, 10)
    send(one, two)
    two.bounded_counter(b"k").decrement(9)
    stream = two.open_stream(three.applied, [two.store_id])
    batch = stream.next_batch()
    assert batch is not None
    need = three.apply_batch(batch)
    assert need is not None
    three.supply_state(need, two.key_state(need.namespace_key))
    assert three.apply_batch(batch) is None
    three.commit()
    assert three.bounded_counter(b"k").value == 1
    assert three.bounded_counter(b"k").rights_by_origin == {two.origin: 1}


def test_a_new_incarnation_reclaims_what_the_old_one_left() -> None:
    files = MemoryFiles()
    with open_store(2) as other:
        db = open_store(1, files)
        old = db.origin
        db.bounded_counter(b"k").increment(10)
        db.commit()
        send(db, other)
        files.crash()
        db = open_store(1, files)
        assert db.origin != old
        exchange(db, other)
        counter = db.bounded_counter(b"k")
        assert counter.value == 10
        assert counter.rights == 0
        with pytest.raises(InsufficientRightsError) as caught:
            counter.decrement()
        assert caught.value.elsewhere == {old: 10}
        assert counter.reclaim() == 10
        assert counter.reclaim() == 0
        assert counter.decrement(4) == 6
        exchange(db, other)
        assert other.bounded_counter(b"k").rights_by_origin == {db.origin: 6}
        db.close()


class Cluster:
    """Stores that crash and lose the tails of their logs; links that come and go; and who was promised what."""

    def __init__(self, count: int, random: Random) -> None:
        self.random = random
        self.disks = [MemoryFiles() for _ in range(count)]
        self.stores = [open_store(number + 1, disk) for number, disk in enumerate(self.disks)]
        self.now_ms = START_MS

    def crash(self, index: int) -> None:
        """What wasn't synced is lost, or a part of it."""
        self.disks[index].crash(self.random)
        self.stores[index] = open_store(index + 1, self.disks[index])
        self.stores[index].set_time(self.now_ms)

    def sync(self, index: int) -> None:
        """As a clean stop: everything is on the disk, and the incarnation goes on."""
        self.stores[index].close()
        self.stores[index] = open_store(index + 1, self.disks[index])
        self.stores[index].set_time(self.now_ms)

    def close(self) -> None:
        for store in self.stores:
            store.close()


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(
            ["decrement"] * 6
            + ["transfer"] * 3
            + ["increment"] * 2
            + ["send"] * 6
            + ["crash", "stop", "delete", "pull"]
        ),
        st.integers(0, 2**16),
    ),
    min_size=10,
    max_size=80,
)


def check(store: Database, minimum: int) -> None:
    state = ordered_access.bounded_state(store, b"k")
    if state is not None:
        value, bound, rights = state
        assert value >= bound == minimum
        assert all(amount > 0 for amount in rights.values())


@given(STEPS)
@settings(max_examples=400)
def test_no_interleaving_takes_it_below_the_minimum(steps: list[tuple[int, str, int]]) -> None:
    """Partitions, transfers, deletes, crashes that lose tails: at every step, in every store, and at the end."""
    minimum = -3
    cluster = Cluster(3, Random(1))
    for index, what, detail in steps:
        random = cluster.random = Random(detail)
        store = cluster.stores[index]
        other = random.choice([each for each in range(3) if each != index])
        amount = random.choice((1, 1, 2, 5))
        counter = store.bounded_counter(b"k", minimum)
        before = counter.value
        try:
            match what:
                case "decrement":
                    assert counter.decrement(amount) == before - amount
                case "increment":
                    assert counter.increment(amount) == before + amount
                case "transfer":
                    counter.transfer(cluster.stores[other].origin, amount)
                    assert counter.value == before
                case "send":
                    send(store, cluster.stores[other])
                case "pull":
                    # Only the store's own updates, as between nodes of a mesh.
                    receive_own(cluster.stores[other], store)
                case "crash":
                    cluster.crash(index)
                case "stop":
                    cluster.sync(index)
                case _ if random.random() < 0.5:
                    store.delete(b"k")
        except InsufficientRightsError as error:
            assert error.held < error.requested == amount
            assert counter.value == before
        except GapError:
            pass
        for each in cluster.stores:
            check(each, minimum)
    exchange(*cluster.stores)
    shown = [ordered_access.bounded_state(store, b"k") for store in cluster.stores]
    assert all(state == shown[0] for state in shown)
    if shown[0] is not None:
        # Once everybody knows everything: what the stores hold is exactly what the value has above the minimum.
        value, _, rights = shown[0]
        assert value - minimum == sum(rights.values())
        for store in cluster.stores:
            held = store.bounded_counter(b"k").reclaim()
            assert held == sum(
                n for origin, n in rights.items() if origin >> 16 == store.store_id and origin != store.origin
            )
        exchange(*cluster.stores)
        for store in cluster.stores:
            check(store, minimum)
            assert store.bounded_counter(b"k").value == value
            own = store.bounded_counter(b"k").rights
            assert own == 0 or store.bounded_counter(b"k").decrement(own) >= minimum
        exchange(*cluster.stores)
        for store in cluster.stores:
            assert store.bounded_counter(b"k").value == minimum
            assert store.bounded_counter(b"k").rights_by_origin == {}
    cluster.close()


def receive_own(receiver: Database, sender: Database) -> None:
    """The sender's own updates, pulling keys that they build on."""
    stream = sender.open_stream(receiver.applied, [sender.store_id, receiver.store_id])
    while (batch := stream.next_batch()) is not None:
        while (need := receiver.apply_batch(batch)) is not None:
            receiver.supply_state(need, sender.key_state(need.namespace_key))
        receiver.commit()
    stream.close()
