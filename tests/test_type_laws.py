"""The laws of every type, example by example: a kind is in as soon as the workload has it.

One example is a few operations of three stores on a key of its own, with some of the updates delivered
in between. It holds the engine to

- the oracle: each answer and reading is what the history says, at every step and in the end;
- the slow twin: the same answers, the same pulls, and the same state in the end;
- the laws of join, on the states as they are before the rest is delivered: associative, commutative,
  idempotent; encoding and decoding a state keeps it;
- delivery: the updates, in any order between stores, some twice, lead to the state that joining whole
  states leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import everwrite
from everwrite.batch import STATES, encode_batch
from everwrite.memory_files import MemoryFiles
from tests.reference.model import KeyState, join, normal
from tests.reference.model_store import TICK, USER, ModelStore
from tests.reference.oracle import Effect, plan, stamp, view
from tests.reference.state_format import read_full_state
from tests.reference.vocabulary import Dot, Kind
from tests.reference.workload import OF_KIND, make_request
from tests.simulation.engine_store import EngineStore

START_MS = 1_700_000_000_000
WRITERS = 3
EXAMPLES = 10_000
EXAMPLES_QUICK = 100
# Stores are opened anew now and then, so that they stay small.
EXAMPLES_A_BENCH = 1000
KEY_AT = 1 + 16 + 8 + 2  # where the key begins in a whole state: see docs/formats/change.md
NAME_BYTES = 8

CASES: dict[str, tuple[Kind, ...]] = {kind.name.lower(): (kind,) for kind in OF_KIND} | {"every kind": tuple(OF_KIND)}


def open_store(number: int, now_ms: int) -> EngineStore:
    return EngineStore(
        everwrite.open("/data", "os", files=MemoryFiles(), background=False, store_id=number, now_ms=now_ms)
    )


@dataclass
class Bench:
    """Stores that serve many examples; `reader` gets all updates, `joiner` joins states under names of its own."""

    now_ms: int = START_MS
    examples: int = 0
    names: int = 0
    stores: list[EngineStore] = field(init=False)
    streams: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.stores = [open_store(number, self.now_ms) for number in range(1, WRITERS + 3)]
        self.streams = [store.open_stream({}, {store.origin >> 16}) for store in self.writers]

    @property
    def writers(self) -> list[EngineStore]:
        return self.stores[:WRITERS]

    @property
    def reader(self) -> EngineStore:
        return self.stores[WRITERS]

    @property
    def joiner(self) -> EngineStore:
        return self.stores[WRITERS + 1]

    def wait(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        for store in self.stores:
            store.set_time(self.now_ms)

    def name(self) -> bytes:
        self.names += 1
        return b"%0*d" % (NAME_BYTES, self.names)

    def join(self, *orders: Sequence[bytes]) -> list[bytes]:
        """For each sequence of whole states what joining them in this order into nothing gives."""
        body = bytearray()
        names = [self.name() for _ in orders]
        for name, states in zip(names, orders, strict=True):
            for state in states:
                body += varint(len(state)) + rename(state, name)
        count = sum(map(len, orders))
        self.joiner.apply(encode_batch(STATES, [], count, bytes(body), resync=self.names, index=0))
        return [rename(self.joiner.key_state(USER + name), b"0" * NAME_BYTES) for name in names]

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        for store in self.stores:
            store.close()


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def rename(state: bytes, name: bytes) -> bytes:
    return state[:KEY_AT] + name + state[KEY_AT + NAME_BYTES :]


def same(one: bytes, other: bytes) -> bool:
    """Whether two whole states are: which write lost to a concurrent one is local."""
    return one == other or normal(read_full_state(one)[1]) == normal(read_full_state(other)[1])


@dataclass
class Example:
    """What one example has done so far."""

    bench: Bench
    kinds: tuple[Kind, ...]
    key: bytes
    models: list[ModelStore] = field(init=False)
    seen: list[dict[Dot, Effect]] = field(init=False)  # by writer, then the reader
    batches: list[list[tuple[bytes, Effect]]] = field(init=False)  # the updates of each writer
    taken: dict[tuple[int, int], int] = field(default_factory=dict)  # how many of them a store has, by both numbers

    def __post_init__(self) -> None:
        now_ms = self.bench.now_ms
        self.models = [ModelStore(number, wall_ms=now_ms, durability="os") for number in range(1, WRITERS + 2)]
        self.seen = [{} for _ in range(WRITERS + 1)]
        self.batches = [[] for _ in range(WRITERS)]

    def write(self, index: int, random: Random) -> None:
        engine, model, seen = self.bench.stores[index], self.models[index], list(self.seen[index].values())
        visible = view(seen, so_far=True).visible(self.bench.now_ms)
        request = make_request(random, self.key, self.bench.now_ms, visible, self.kinds)
        wanted, draft = plan(request, seen, self.bench.now_ms, engine.origin)
        before = engine.last_timestamp
        shown = engine.execute(request)
        assert shown == wanted, f"{request}: answered {shown!r}, the history says {wanted!r}"
        dot = Dot(engine.last_timestamp, engine.origin)
        assert (dot.timestamp > before) is (draft is not None), f"{request}: an update, or none, against the rules"
        if draft is not None:
            model.clock = dot.timestamp - TICK
        assert model.execute(request) == wanted
        if draft is not None:
            effect = stamp(draft, dot, seen)
            self.seen[index][dot] = effect
            batch = self.bench.streams[index].next_batch(100)
            assert batch is not None
            self.batches[index].append((batch, effect))
        self.check(index)

    def deliver(self, receiver: int, sender: int, count: int) -> None:
        """Up to `count` of the sender's own updates that the receiver lacks."""
        start = self.taken.get((receiver, sender), 0)
        end = min(start + count, len(self.batches[sender]))
        for number in range(start, end):
            self.receive(receiver, sender, number)
        self.taken[receiver, sender] = end
        self.check(receiver)

    def receive(self, receiver: int, sender: int, number: int) -> None:
        batch, effect = self.batches[sender][number]
        engine, source = self.bench.stores[receiver], self.bench.stores[sender]
        pulled = False
        while (need := engine.apply_batch(batch)) is not None:
            assert not pulled, "the state that was pulled doesn't help"
            pulled = True
            engine.supply_state(need, source.key_state(need.namespace_key))
        mirror, original = self.models[receiver], self.models[sender]
        need = mirror.receive(original_record := record_of(original, effect.dot))
        assert (need is not None) is pulled, "the engine and the model pull at different times"
        if need is not None:
            mirror.supply_state(need, original.key_state(need.namespace_key))
            assert mirror.receive(original_record) is None
        self.seen[receiver][effect.dot] = effect
        if pulled:
            self.seen[receiver] |= self.seen[sender]

    def check(self, index: int) -> None:
        """What the store shows is what the history says, and what the twin shows."""
        shown = self.bench.stores[index].reading(self.key)
        wanted = view(list(self.seen[index].values()), so_far=True).reading(self.bench.now_ms)
        assert shown == wanted, f"store {index} shows {shown!r}, the history says {wanted!r}"
        assert self.models[index].reading(self.key) == wanted

    def wait(self, milliseconds: int) -> None:
        self.bench.wait(milliseconds)
        for model in self.models:
            model.set_time(self.bench.now_ms)

    def states(self) -> list[bytes]:
        states = [store.key_state(USER + self.key) for store in self.bench.writers]
        return [rename(state, b"0" * NAME_BYTES) for state in states]

    # The laws.

    def check_join(self) -> bytes:
        """Returns what all states join to."""
        a, b, c = self.states()
        alone, repeated, ab, ba, bc, *orders = self.bench.join(
            [a], [a, a], [a, b], [b, a], [b, c], *permutations((a, b, c)), [a, b, a, c, b, c]
        )
        assert same(alone, a), "encoding and decoding changes a state"
        assert same(repeated, a), "join isn't idempotent"
        assert same(ab, ba), "join isn't commutative"
        assert all(same(order, orders[0]) for order in orders), "join depends on the order"
        left, right, again = self.bench.join([ab, c], [a, bc], [ab, b])
        assert same(left, right), "join isn't associative"
        assert same(left, orders[0])
        assert same(again, ab), "join isn't idempotent"
        one, two, three = (model.key_model(self.key) for model in self.models[:WRITERS])
        wanted = normal(join(join(KeyState(), one), join(two, three)))
        assert normal(read_full_state(orders[0])[1]) == wanted, "the slow twin's join is another"
        return orders[0]

    def check_delivery(self, random: Random, joined: bytes) -> None:
        """Deliver what is left, to each in an order of its own and to the reader some of it twice."""
        for receiver in range(WRITERS + 1):
            senders = [
                sender for sender in range(WRITERS) if sender != receiver for _ in self.batches[sender]
            ]  # one entry an update: those of one store keep their order
            random.shuffle(senders)
            for sender in senders:
                self.deliver(receiver, sender, 1)
                if receiver == WRITERS and random.random() < 0.3:
                    number = random.randrange(self.taken[receiver, sender])
                    self.receive(receiver, sender, number)
        history = {dot: effect for seen in self.seen for dot, effect in seen.items()}
        wanted = view(list(history.values())).reading(self.bench.now_ms)
        for index, store in enumerate(self.bench.stores[: WRITERS + 1]):
            assert store.reading(self.key) == wanted
            assert self.models[index].reading(self.key) == wanted
            state = rename(store.key_state(USER + self.key), b"0" * NAME_BYTES)
            assert same(state, joined), "updates lead to another state than joining whole states"


def record_of(model: ModelStore, dot: Dot) -> Any:
    return next(record for record in model.log if record.delta.dot == dot)


BENCHES: list[Bench] = []


def check_laws(kinds: tuple[Kind, ...], steps: list[int]) -> None:
    """Run an example whose steps are made from these numbers, and check it."""
    if BENCHES and BENCHES[0].examples == EXAMPLES_A_BENCH:
        BENCHES.pop().close()
    bench = BENCHES.pop() if BENCHES else Bench()
    bench.examples += 1
    try:
        run_example(Example(bench, kinds, bench.name()), steps)
    except BaseException:
        # It is in no state for another example.
        bench.close()
        raise
    BENCHES.append(bench)


def run_example(run: Example, steps: list[int]) -> None:
    for step in steps:
        random = Random(step)
        writer = random.randrange(WRITERS)
        chance = random.random()
        if chance < 0.6:
            run.write(writer, random)
        elif chance < 0.92:
            sender = random.choice([index for index in range(WRITERS) if index != writer])
            run.deliver(writer, sender, random.choice((1, 100)))
        else:
            run.wait(random.choice((1, 30, 300)))
    joined = run.check_join()
    run.check_delivery(Random(len(steps)), joined)


# Two bytes a step: one draw of bytes takes half the time of a list of integers.
STEPS = st.binary(min_size=8, max_size=32).map(
    lambda data: [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
)


@pytest.fixture(autouse=True)
def _no_bench_left() -> Any:
    yield
    while BENCHES:
        BENCHES.pop().close()


@pytest.mark.parametrize("case", CASES)
@given(steps=STEPS)
@example(steps=[])
@settings(max_examples=EXAMPLES_QUICK)
def test_laws(case: str, steps: list[int]) -> None:
    check_laws(CASES[case], steps)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@given(steps=STEPS)
@settings(max_examples=EXAMPLES)
def test_laws_at_length(case: str, steps: list[int]) -> None:
    check_laws(CASES[case], steps)


def keep_all(one: Any, one_context: Any, other: Any, other_context: Any) -> Any:
    """A join that doesn't know which dots were removed."""
    return one.dots | other.dots


def keep_common(one: Any, one_context: Any, other: Any, other_context: Any) -> Any:
    """A join that takes what the other side lacks for removed."""
    return {dot: value for dot, value in one.dots.items() if dot in other.dots}


CANARIES = {
    "changes are applied without their guard": ("tests.reference.model_store.guard_holds", lambda state, delta: True),
    "removed elements come back": ("tests.reference.model.surviving", keep_all),
    "what only one side has is dropped": ("tests.reference.model.surviving", keep_common),
    "what a write observed stays": ("tests.reference.oracle.taken", lambda draft, seen, effects: frozenset()),
}


def check_many(kinds: tuple[Kind, ...]) -> None:
    random = Random(1)
    for _ in range(1000):
        check_laws(kinds, [random.randrange(2**16) for _ in range(14)])


@pytest.mark.parametrize("broken", CANARIES)
@pytest.mark.parametrize("case", [case for case in CASES if case != "string"])
def test_canary(case: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each law, broken on purpose in the twin or the oracle, is noticed."""
    target, replacement = CANARIES[broken]
    if "guard" in broken:
        monkeypatch.setattr("tests.reference.model.guard_holds", replacement)
    monkeypatch.setattr(target, replacement)
    with pytest.raises(AssertionError):
        check_many(CASES[case])
