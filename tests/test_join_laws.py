"""The engine's join and deltas against the model's: same requests, same states, whichever way they travel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite.memory_files import MemoryFiles
from tests.reference.model import KeyState, join, normal
from tests.reference.model_store import TICK, ModelStore
from tests.reference.vocabulary import Request, Verb
from tests.reference.workload import make_request
from tests.simulation.engine_store import EngineStore

START_MS = 1_700_000_000_000
KEYS = (b"k", b"q")
STORES = 3


def open_engine(store_id: int, now_ms: int = START_MS) -> EngineStore:
    return EngineStore(
        everwrite.open("/data", "os", files=MemoryFiles(), background=False, store_id=store_id, now_ms=now_ms)
    )


@dataclass
class Twins:
    """A store of the engine and one of the model that do the same; every difference is a failure."""

    number: int
    engine: EngineStore = field(init=False)
    model: ModelStore = field(init=False)

    def __post_init__(self) -> None:
        self.engine = open_engine(self.number)
        self.model = ModelStore(self.number, wall_ms=START_MS, durability="os")

    def execute(self, request: Request) -> None:
        issued = self.engine.last_timestamp
        shown = self.engine.execute(request)
        if self.engine.last_timestamp > issued:
            # The engine's clock may tick for other reasons than an update.
            assert self.engine.last_timestamp > self.model.clock
            self.model.clock = self.engine.last_timestamp - TICK
        wanted = self.model.execute(request)
        assert shown == wanted, f"{request}: the engine answers {shown!r}, the model {wanted!r}"
        self.compare()

    def wait(self, milliseconds: int) -> None:
        self.model.set_time(self.model.now_ms() + milliseconds)
        self.engine.set_time(self.model.now_ms())
        self.compare()

    def compare(self) -> None:
        assert dict(self.engine.applied) == self.model.applied
        for key in KEYS:
            assert self.engine.reading(key) == self.model.reading(key)
            assert normal(self.engine.key_model(key)) == normal(self.model.key_model(key))

    def take_changes(self, other: Twins) -> None:
        """What the other has, change by change."""
        for batch in other.engine.changes(self.engine.applied):
            self.engine.apply(batch)
        self.model.join_all(other.model)
        self.compare()

    def take_states(self, other: Twins) -> None:
        """What the other has, as whole states."""
        take_states(self.engine, other.engine)
        self.model.join_all(other.model)
        self.compare()


def take_states(receiver: EngineStore, sender: EngineStore) -> None:
    for batch in sender.resync_batches({}):
        receiver.apply(batch)


STEPS = st.lists(
    st.tuples(
        st.integers(0, STORES - 1),
        st.sampled_from(["write"] * 6 + ["changes", "states", "wait"]),
        st.integers(0, 2**16),
    ),
    max_size=60,
)


def run(steps: Iterable[tuple[int, str, int]]) -> list[Twins]:
    """Three pairs of twins after these steps: who acts, what it does, and a seed for the details."""
    twins = [Twins(number) for number in range(1, STORES + 1)]
    for index, what, detail in steps:
        one, random = twins[index], Random(detail)
        other = random.choice([twin for twin in twins if twin is not one])
        match what:
            case "write":
                key = random.choice(KEYS)
                reading = one.model.reading(key)
                one.execute(make_request(random, key, one.model.now_ms(), reading[0] if reading else None))
            case "changes":
                one.take_changes(other)
            case "states":
                one.take_states(other)
            case "wait":
                milliseconds = random.choice((1, 30, 300))
                for twin in twins:
                    twin.wait(milliseconds)
    return twins


@given(STEPS)
@settings(max_examples=150)
def test_changes_and_states_lead_to_what_the_model_holds(steps: list[tuple[int, str, int]]) -> None:
    twins = run(steps)
    for receiver, sender in permutations(twins, 2):
        receiver.take_changes(sender)
    for receiver, sender in permutations(twins, 2):
        receiver.take_states(sender)
    for key in KEYS:
        assert len({repr(normal(twin.engine.key_model(key))) for twin in twins}) == 1


def joined(*stores: EngineStore) -> EngineStore:
    """A fresh store that has joined the states of these, in this order."""
    result = open_engine(9, stores[0].now_ms())
    for store in stores:
        take_states(result, store)
    return result


def states_of(store: EngineStore) -> list[tuple[object, ...]]:
    return [normal(store.key_model(key)) for key in KEYS]


@given(STEPS)
@settings(max_examples=60)
def test_join_is_associative_commutative_and_idempotent(steps: list[tuple[int, str, int]]) -> None:
    one, two, three = (twin.engine for twin in run(steps))
    wanted = states_of(joined(one, two, three))
    for order in permutations((one, two, three)):
        assert states_of(joined(*order)) == wanted
    assert states_of(joined(joined(one, two), three)) == wanted
    assert states_of(joined(one, joined(two, three))) == wanted
    assert states_of(joined(one, two, one, three, two, three)) == wanted
    assert states_of(joined(one)) == states_of(one)
    models = [[store.key_model(key) for store in (one, two, three)] for key in KEYS]
    assert [normal(join(join(KeyState(), a), join(b, c))) for a, b, c in models] == wanted


@given(STEPS)
@settings(max_examples=60)
def test_changes_in_any_order_of_stores_equal_states(steps: list[tuple[int, str, int]]) -> None:
    stores = [twin.engine for twin in run(steps)]
    wanted = states_of(joined(*stores))
    for order in permutations(stores):
        receiver = open_engine(9, stores[0].now_ms())
        for sender in order:
            for batch in sender.changes(receiver.applied):
                receiver.apply(batch)
                receiver.apply(batch)
        assert states_of(receiver) == wanted


@pytest.mark.parametrize(
    "after",
    [
        Request(Verb.ADD, b"k", names=(b"b",)),
        Request(Verb.FIELD_INCREMENT, b"k", names=(b"b",), amount=1),
        Request(Verb.INCREMENT, b"k", amount=1),
        Request(Verb.SET, b"k", values=(b"x",), keep_deadline=True),
    ],
)
def test_an_emptied_set_does_not_leave_its_deadline_to_what_comes_after(after: Request) -> None:
    twins = Twins(1)
    twins.execute(Request(Verb.ADD, b"k", names=(b"a",)))
    twins.execute(Request(Verb.EXPIRE, b"k", deadline_ms=START_MS + 1000))
    twins.execute(Request(Verb.REMOVE, b"k", names=(b"a",)))
    twins.execute(after)
    twins.wait(2000)
    assert twins.engine.reading(b"k") is not None


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_long_runs_stay_equal(first: int) -> None:
    for seed in range(first, first + 10):
        random = Random(seed)
        kinds = ["write"] * 8 + ["changes", "states", "wait"]
        steps = [(random.randrange(STORES), random.choice(kinds), random.randrange(2**30)) for _ in range(300)]
        stores = [twin.engine for twin in run(steps)]
        states = [states_of(joined(*order)) for order in permutations(stores)]
        assert all(state == states[0] for state in states), f"seed {seed}"
