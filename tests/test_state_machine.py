"""A store against a dictionary, and two stores that sync against the history of what was done to them.

Hypothesis draws the operations and shortens a run that fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

import everwrite
from everwrite.memory_files import MemoryFiles
from tests.reference.dictionary import FAR_SECONDS, Operation, Source, State, apply, apply_to, keys_of, read
from tests.reference.history import History
from tests.reference.replica import Replica
from tests.simulation.engine_store import EngineStore

START_MS = 1_700_000_000_000
KEYS = keys_of(0)
STRINGS = [key for key in KEYS if key.startswith(b"0/s")]
SEEDS = st.integers(0, 2**32 - 1)
SIZES = {"memtable_bytes": 1 << 12, "segment_bytes": 1 << 12, "log_keep_bytes": 1 << 12, "block_cache_bytes": 1 << 12}


def open_on(
    disk: MemoryFiles, now_ms: int, *, durability: str = "always", folder: str = "/data", **options: Any
) -> Any:
    return everwrite.open(
        folder,
        durability,
        files=disk,
        background=False,
        now_ms=now_ms,
        **SIZES,
        **options,  # type: ignore[arg-type]
    )


class DictionaryMachine(RuleBasedStateMachine):
    """One store. `state`: what it must show; `deadlines`: when which of it expires, in Unix ms."""

    snapshots = Bundle("snapshots")

    @initialize(durability=st.sampled_from(["always", "interval", "os"]))
    def begin(self, durability: str) -> None:
        self.durability = durability
        self.disk = MemoryFiles()
        self.now_ms = START_MS
        self.state: State = {}
        self.deadlines: dict[bytes, int] = {}
        self.backups = self.others = 0
        self.open()

    def open(self) -> None:
        self.db = open_on(self.disk, self.now_ms, durability=self.durability, store_id=1)

    def expire(self) -> None:
        for key in [key for key, deadline in self.deadlines.items() if deadline <= self.now_ms]:
            del self.deadlines[key]
            self.state.pop(key, None)

    def note(self, operation: Operation) -> None:
        apply_to(self.state, operation)
        for each in operation.inner or (operation,):
            # A write of the value ends a deadline; an element or an increment doesn't.
            for key in each.parts[::2] if each.verb == "put_many" else (each.key,):
                if each.verb in ("put", "put_many", "put_ttl", "delete"):
                    self.deadlines.pop(key, None)
            if each.verb == "put_ttl":
                self.deadlines[each.key] = self.now_ms + round(FAR_SECONDS * 1000)
        self.deadlines = {key: at for key, at in self.deadlines.items() if key in self.state}

    @rule(seed=SEEDS, count=st.sampled_from([1, 8, 40]))
    def write(self, seed: int, count: int) -> None:
        source = Source(Random(seed), large_bytes=9000)
        for _ in range(count):
            operation = source.draw()
            apply(self.db, operation)
            self.note(operation)

    @rule(key=st.sampled_from(STRINGS), value=st.binary(max_size=40), ttl_ms=st.integers(1, 2000))
    def put_for_a_while(self, key: bytes, value: bytes, ttl_ms: int) -> None:
        self.db.put(key, value, ttl=ttl_ms / 1000)
        self.state[key] = value
        self.deadlines[key] = self.now_ms + ttl_ms

    @rule(milliseconds=st.sampled_from([1, 30, 700, 30_000]))
    def wait(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        self.db.set_time(self.now_ms)
        self.expire()
        self.db.maintain()

    @rule()
    def reap(self) -> None:
        self.db.reap_expired()

    @rule()
    def compact(self) -> None:
        self.db.compact()

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.open()

    @rule(seed=SEEDS)
    def crash(self, seed: int) -> None:
        # What wasn't durable may be gone: only a killed process keeps all, whatever the durability.
        self.disk.crash(Random(seed) if self.durability == "always" else "all")
        self.open()

    @rule(prefix=st.sampled_from([b"", b"0/", b"0/s1", b"0/s", b"1"]))
    def scan(self, prefix: bytes) -> None:
        expected = [
            (key, value)
            for key, value in sorted(self.state.items())
            if isinstance(value, bytes) and key.startswith(prefix)
        ]
        assert list(self.db.scan(prefix)) == expected

    @rule(
        start=st.sampled_from(STRINGS),
        stop=st.sampled_from(STRINGS),
        limit=st.none() | st.integers(0, 5),
        reverse=st.booleans(),
    )
    def scan_range(self, start: bytes, stop: bytes, limit: int | None, reverse: bool) -> None:
        within = sorted(key for key, value in self.state.items() if isinstance(value, bytes) and start <= key < stop)
        expected = (within[::-1] if reverse else within)[:limit]
        found = list(self.db.scan(start=start, stop=stop, reverse=reverse, limit=limit))
        assert found == [(key, self.state[key]) for key in expected]

    @rule(seed=SEEDS, count=st.integers(1, 10))
    def batch_that_fails(self, seed: int, count: int) -> None:
        """An exception discards what was batched."""
        source = Source(Random(seed))
        batch = self.db.batch()
        batch.__enter__()
        for _ in range(count):
            operation = source.draw()
            for inner in operation.inner or (operation,):
                apply(batch, inner)
        error = ValueError("no")
        batch.__exit__(type(error), error, None)

    @rule(key=st.sampled_from(KEYS), ttl_ms=st.integers(1, 2000))
    def expire_later(self, key: bytes, ttl_ms: int) -> None:
        assert self.db.expire(key, ttl_ms / 1000) == (key in self.state)
        if key in self.state:
            self.deadlines[key] = self.now_ms + ttl_ms

    @rule(key=st.sampled_from(KEYS))
    def persist(self, key: bytes) -> None:
        assert self.db.persist(key) == (self.deadlines.pop(key, None) is not None)

    @rule(key=st.sampled_from(KEYS))
    def time_to_live(self, key: bytes) -> None:
        if key not in self.state:
            with pytest.raises(KeyError):
                self.db.ttl(key)
        elif key in self.deadlines:
            assert round(self.db.ttl(key) * 1000) == self.deadlines[key] - self.now_ms
        else:
            assert self.db.ttl(key) is None

    @rule()
    def verify(self) -> None:
        report = self.db.verify()
        assert report.ok, str(report)

    @rule()
    def back_up_and_restore(self) -> None:
        self.backups += 1
        path = f"/backup-{self.backups}"
        self.db.backup(path)
        everwrite.restore(path, path + "-restored", files=self.disk)
        with open_on(self.disk, self.now_ms, folder=path + "-restored") as restored:
            assert restored.origin != self.db.origin
            assert read(restored, KEYS) == self.state

    @rule()
    def sync_with_another(self) -> None:
        """What two stores hold that were never written together is the union."""
        self.others += 1
        with open_on(MemoryFiles(), self.now_ms, store_id=2 + self.others) as other:
            key = b"other %d" % self.others
            other[key] = b"only there"
            everwrite.sync(self.db, other)
            assert read(other, KEYS) == self.state
            assert self.db.delete(key)
            everwrite.sync(other, self.db)
            assert key not in other

    @rule(target=snapshots)
    def take_snapshot(self) -> Any:
        return self.db, self.db.snapshot(), dict(self.state)

    @rule(taken=snapshots)
    def read_snapshot(self, taken: Any) -> None:
        db, snapshot, state = taken
        if db is self.db:
            assert read(snapshot, KEYS) == state
            assert dict(snapshot.scan()) == {key: value for key, value in state.items() if isinstance(value, bytes)}

    @rule(taken=consumes(snapshots))
    def close_snapshot(self, taken: Any) -> None:
        taken[1].close()

    @rule()
    def replicate_into_an_empty_store(self) -> None:
        with open_on(MemoryFiles(), self.now_ms, store_id=2) as other:
            for batch in self.db.changes({}):
                other.apply(batch)
            assert read(other, KEYS) == self.state

    @invariant()
    def shows_what_the_dictionary_holds(self) -> None:
        if hasattr(self, "db"):
            assert read(self.db, KEYS) == self.state

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()


class PairMachine(RuleBasedStateMachine):
    """Two stores, each with every type, exchanging batches; what each must show follows from who has seen what."""

    keys = (b"k", b"l", b"m")

    @initialize(durability=st.sampled_from(["always", "interval", "os"]))
    def begin(self, durability: str) -> None:
        self.durability = durability
        self.now_ms = START_MS
        history = History()
        self.disks = [MemoryFiles(), MemoryFiles()]
        self.disks[1].maps_for_reading = True
        self.replicas = [Replica(EngineStore(self.open(number)), history) for number in range(2)]

    def open(self, number: int) -> Any:
        return open_on(self.disks[number], self.now_ms, durability=self.durability, store_id=number + 1)

    @rule(number=st.integers(0, 1), seed=SEEDS, count=st.sampled_from([1, 5, 20]))
    def write(self, number: int, seed: int, count: int) -> None:
        random = Random(seed)
        replica = self.replicas[number]
        for _ in range(count):
            replica.execute(replica.make_request(random, random.choice(self.keys)))

    @rule(milliseconds=st.sampled_from([0, 1, 30, 1000]))
    def wait(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        for replica in self.replicas:
            replica.store.set_time(self.now_ms)
            replica.store.maintain()

    @rule(number=st.integers(0, 1))
    def reap(self, number: int) -> None:
        self.replicas[number].reap(self.keys)

    @rule(number=st.integers(0, 1), limit=st.integers(1, 4))
    def send_some(self, number: int, limit: int) -> None:
        """A few batches one way: what is seen there must follow."""
        sender, receiver = self.replicas[number], self.replicas[1 - number]
        for batch, _ in zip(self.batches(sender, receiver), range(limit), strict=False):
            receiver.apply(batch)

    def batches(self, sender: Replica, receiver: Replica) -> Iterator[bytes]:
        try:
            stream = sender.open_stream(receiver.store.applied)
            while (batch := stream.next_batch(3)) is not None:
                yield batch
            stream.close()
        except everwrite.LogCutError:
            yield from sender.resync_batches(receiver.store.applied)

    @rule()
    def sync(self) -> None:
        """Both ways: then both show the same, which is what all that was ever seen comes to."""
        first, second = self.replicas
        for sender, receiver in ((first, second), (second, first)):
            for batch in self.batches(sender, receiver):
                receiver.apply(batch)
        assert first.store.applied == second.store.applied
        for key in self.keys:
            assert first.store.reading(key) == second.store.reading(key)
            assert first.store.context(key) == second.store.context(key)

    @rule(number=st.integers(0, 1))
    def compact(self, number: int) -> None:
        self.replicas[number].store.compact()

    @rule(number=st.integers(0, 1), how=st.sampled_from(["close", "kill", "power"]), seed=SEEDS)
    def restart(self, number: int, how: str, seed: int) -> None:
        replica = self.replicas[number]
        if how == "close":
            replica.store.close()
        else:
            self.disks[number].crash("all" if how == "kill" or self.durability != "always" else Random(seed))
        replica.store = EngineStore(self.open(number))
        replica.restarted()

    @invariant()
    def each_shows_what_it_has_seen(self) -> None:
        for replica in getattr(self, "replicas", ()):
            for key in self.keys:
                replica.check(key)

    def teardown(self) -> None:
        for replica in getattr(self, "replicas", ()):
            replica.store.close()


MACHINES = {"dictionary": DictionaryMachine, "pair": PairMachine}


def run(machine: str, examples: int, steps: int) -> None:
    case = MACHINES[machine].TestCase
    case.settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    case().runTest()


@pytest.mark.parametrize("machine", MACHINES)
def test_short_runs(machine: str) -> None:
    run(machine, examples=40, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_many_runs(machine: str) -> None:
    run(machine, examples=200, steps=50)
