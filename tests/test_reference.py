"""The model holds what the oracle says, and its join obeys the laws: the semantics themselves under test."""

from __future__ import annotations

import contextlib
import copy
from itertools import permutations
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from everwrite.errors import ClockDriftError, GapError, ProtocolError
from tests.reference.history import History
from tests.reference.model import KeyState, join, normal
from tests.reference.model_store import USER, ModelStore
from tests.reference.oracle import view
from tests.reference.replica import Replica
from tests.reference.vocabulary import LOGICAL_BITS

START_MS = 1_700_000_000_000
KEYS = (b"k", b"q")
REPLICAS = 3


def make_replicas() -> list[Replica]:
    history = History()
    return [
        Replica(ModelStore(store_id, wall_ms=START_MS, durability="os"), history) for store_id in range(1, REPLICAS + 1)
    ]


# Who acts, what it does, and a seed for the details.
STEPS = st.lists(
    st.tuples(
        st.integers(0, REPLICAS - 1),
        st.sampled_from(["write", "write", "write", "write", "send", "send", "send again", "wait", "reap", "restart"]),
        st.integers(0, 2**16),
    ),
    max_size=40,
)


def sync(sender: Replica, receiver: Replica, limit: int = 10**6) -> list[bytes]:
    """Stream what the receiver lacks of the sender's own updates and its own lost ones, `limit` changes at most."""
    own = {replica.store.origin >> LOGICAL_BITS for replica in (sender, receiver)}
    stream = sender.open_stream(receiver.store.applied, own)
    batches = []
    while limit > 0 and (batch := stream.next_batch(min(limit, 3))) is not None:
        limit -= 3
        batches.append(batch)
        try:
            receiver.receive(batch, sender)
        except ClockDriftError:
            break
    return batches


def take_step(replicas: list[Replica], step: tuple[int, str, int], old: list[tuple[bytes, int]]) -> None:
    """One step of a run; `old` are the batches sent so far with their sender."""
    index, what, detail = step
    random = Random(detail)
    replica = replicas[index]
    match what:
        case "write":
            replica.execute(replica.make_request(random, random.choice(KEYS)))
        case "send":
            receiver = random.choice([other for other in replicas if other is not replica])
            old += [(batch, index) for batch in sync(replica, receiver, random.choice((1, 4, 100)))]
        case "send again" if old:
            batch, sender = random.choice(old)
            receiver = random.choice(replicas)
            with contextlib.suppress(GapError, ClockDriftError, ProtocolError):
                receiver.receive(batch, replicas[sender])
        case "wait":
            for other in replicas:
                other.store.set_time(other.store.now_ms() + random.choice((0, 1, 30, 300)))
        case "reap":
            replica.reap(KEYS)
        case "restart":
            store = replica.store
            lost = random.choice((None, 0, 1, 3))
            store.restart(keep=None if lost is None else max(store.synced, len(store.log) - lost))
            replica.restarted()


def settle(replicas: list[Replica]) -> None:
    """Set the clocks alike and exchange until nobody lacks anything."""
    for replica in replicas:
        replica.store.set_time(max(other.store.now_ms() for other in replicas))
    for _ in range(3):
        for sender, receiver in permutations(replicas, 2):
            sync(sender, receiver)


@given(STEPS)
@settings(max_examples=300)
def test_every_delivery_order_ends_in_what_the_history_says(steps: list[tuple[int, str, int]]) -> None:
    replicas = make_replicas()
    old: list[tuple[bytes, int]] = []
    for step in steps:
        take_step(replicas, step, old)
        for replica in replicas:
            for key in KEYS:
                replica.check(key)
    settle(replicas)
    first = replicas[0].store
    for key in KEYS:
        wanted = replicas[0].history.final(key, first.applied).reading(first.now_ms())
        for replica in replicas:
            assert replica.store.applied == first.applied
            assert replica.store.reading(key) == wanted
            assert normal(replica.store.state(USER + key)) == normal(first.state(USER + key))


@given(STEPS)
@settings(max_examples=200)
def test_joining_states_equals_the_union_of_what_was_seen(steps: list[tuple[int, str, int]]) -> None:
    replicas = make_replicas()
    old: list[tuple[bytes, int]] = []
    for step in steps:
        take_step(replicas, step, old)
    for key in KEYS:
        states = [replica.store.state(USER + key) for replica in replicas]
        seen = [{effect.dot for effect in replica.seen(key)} for replica in replicas]
        known = replicas[0].history.of_key(key)
        for one, other in permutations(range(REPLICAS), 2):
            joined = ModelStore(9, wall_ms=replicas[0].store.now_ms())
            joined.keys[USER + key] = join(states[one], states[other])
            union = [known[dot] for dot in seen[one] | seen[other]]
            assert joined.reading(key) == view(union, so_far=True).reading(joined.now_ms())


@given(STEPS)
@settings(max_examples=200)
def test_join_is_associative_commutative_and_idempotent(steps: list[tuple[int, str, int]]) -> None:
    replicas = make_replicas()
    old: list[tuple[bytes, int]] = []
    for step in steps:
        take_step(replicas, step, old)
    for key in KEYS:
        one, two, three = (replica.store.state(USER + key) for replica in replicas)
        before = [normal(copy.deepcopy(state)) for state in (one, two, three)]
        assert normal(join(one, two)) == normal(join(two, one))
        assert normal(join(join(one, two), three)) == normal(join(one, join(two, three)))
        assert normal(join(one, one)) == normal(one)
        assert normal(join(join(one, two), two)) == normal(join(one, two))
        assert normal(join(one, KeyState())) == normal(one)
        assert [normal(state) for state in (one, two, three)] == before
