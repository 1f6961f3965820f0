"""The engine and the replication logic in a simulated cluster, seed by seed; and proof that the simulator notices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from everwrite.server.region import Completeness
from everwrite.server.replicated_store import ReplicatedStore
from everwrite.stability import Stability
from tests.reference.history import History, Pulled
from tests.reference.model import newer_register
from tests.reference.model_store import ModelStore
from tests.reference.replica import Replica
from tests.reference.vocabulary import Dot, Kind, Request, Vector, Verb, covers
from tests.simulation import direct
from tests.simulation.direct import DirectScenario
from tests.simulation.disks import EngineDisk
from tests.simulation.runner import SeedFailed, run_seed, run_seeds
from tests.simulation.world import START_MS
from tests.support import ROOT

SEEDS = 1000
DIRECT_SEEDS = 1000
QUORUM_SEEDS = 150
SEEDS_A_TEST = 50


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_regions_converge_to_what_the_history_says(first: int) -> None:
    run_seeds("sessions", "engine", range(first, first + SEEDS_A_TEST))


@pytest.mark.parametrize("first", range(0, DIRECT_SEEDS, SEEDS_A_TEST))
def test_batches_late_twice_and_out_of_order_are_harmless_or_refused(first: int) -> None:
    run_seeds("direct", "engine", range(first, first + SEEDS_A_TEST))


def test_a_region_keeps_what_a_quorum_has_acknowledged() -> None:
    counts = run_seeds("quorum", "engine", range(QUORUM_SEEDS))
    for what in ("acknowledged", "ambushes", "crashes", "loading", "replacements", "unavailable", "write timeouts"):
        assert counts[what], f"no run had any {what}"


def test_the_model_converges_too() -> None:
    run_seeds("sessions", "model", range(50))
    run_seeds("direct", "model", range(50))


def test_runs_meet_what_they_are_for() -> None:
    counts = run_seeds("sessions", "engine", range(60))
    for what in (
        "breaks",
        "crashes",
        "cuts",
        "horizons",
        "log clock_drift",
        "lost effects",
        "pulls",
        "resyncs",
        "stops",
    ):
        assert counts[what], f"no run had any {what}"
    counts = run_seeds("direct", "engine", range(60))
    for what in ("GapError", "crashes", "horizons", "log cuts", "reaped"):
        assert counts[what], f"no run had any {what}"


def test_a_seed_is_one_run_in_any_process() -> None:
    lines: list[str] = []
    counts = run_seed("sessions", "engine", 7, lines.append)
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    replay = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert replay.stdout.splitlines() == [*lines, str(dict(sorted(counts.items())))]


def keep_mine(one: Any, other: Any) -> Any:
    """A last-writer-wins tie that each side decides for itself."""
    return one if one[0].timestamp >= other[0].timestamp else newer_register(one, other)


def keep_all(one: Any, one_context: Any, other: Any, other_context: Any) -> Any:
    """A join that doesn't know which dots were removed."""
    return one.dots | other.dots


def go_on_as_before(store: ModelStore, *, keep: int | None = None) -> None:
    """A restart that doesn't begin a new incarnation after losing the end of the log."""
    incarnation = store.incarnation
    restart(store, keep=keep)
    store.incarnation = incarnation


restart = ModelStore.restart

# Rules of the design, each broken on purpose.
CANARIES: dict[str, tuple[str, Callable[..., Any]]] = {
    "changes are applied without their guard": ("tests.reference.model.guard_holds", lambda state, delta: True),
    "ties are decided by the receiver": ("tests.reference.model.newer_register", keep_mine),
    "removed elements come back": ("tests.reference.model.surviving", keep_all),
    "resets set no floor": ("tests.reference.model.Counter.floors", lambda counter: {}),
    "pulled states aren't joined": ("tests.reference.model_store.join", lambda mine, theirs: theirs),
    "a lost tail's timestamps are issued again": ("tests.reference.model_store.ModelStore.restart", go_on_as_before),
    "what was answered isn't synced": ("tests.reference.model_store.ModelStore.sync", lambda store: None),
}


@pytest.mark.parametrize("broken", CANARIES)
def test_canary(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*CANARIES[broken])
    with pytest.raises(SeedFailed, match=r"replay: python -m tests\.simulation --mode \w+ --store model --seed \d+"):
        run_seeds("sessions", "model", range(300))


def join_nothing(replica: Replica, states: object, conversation: object) -> int:
    """Whoever asks doesn't heed the answers."""
    return 0


def complete_once_for_all(self: Completeness, store: ReplicatedStore, region: str, others: int) -> None:
    """A store that was once complete counts as that, whatever it has lost since."""
    begin_complete(self, store, region, others)
    self.complete = self.complete or next(iter(store.system_items(b"replica/%012x" % store.store_id)), None) is not None


def complete_after_one(self: Completeness, store: ReplicatedStore, region: str, others: int) -> None:
    """Whichever of the others is reached first says what a node has to get back."""
    begin_complete(self, store, region, others)
    self._needed = min(1, others)


begin_complete = Completeness.__init__

QUORUM_CANARIES: dict[str, tuple[str, Callable[..., Any]]] = {
    "answers are not joined": ("tests.reference.replica.Replica.join_piece", join_nothing),
    "a node that lost its end counts": ("everwrite.server.region.Completeness.__init__", complete_once_for_all),
    "one other is enough to be complete": ("everwrite.server.region.Completeness.__init__", complete_after_one),
}


SLOW_CANARY = "one other is enough to be complete"  # it takes a hundred seeds


@pytest.mark.parametrize(
    "broken",
    [pytest.param(name, marks=pytest.mark.slow if name == SLOW_CANARY else ()) for name in QUORUM_CANARIES],
)
def test_quorum_canary(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*QUORUM_CANARIES[broken])
    with pytest.raises(SeedFailed, match=r"acknowledged (before it was invoked|by a quorum, and lost)"):
        run_seeds("quorum", "engine", range(600))


def what_one_holds(own: int, applied: Vector, members: object, reports: object) -> Stability:
    """A horizon that waits for nobody."""
    return Stability(dict(applied))


def collect_by_watermarks(scenario: DirectScenario) -> None:
    """A horizon from vectors that are taken outside of the streams: the least of what all hold now."""
    region = scenario.random.choice(scenario.regions)
    if scenario.collects:
        vectors = [each.replica.store.durable_vector_now() for each in scenario.regions]
        horizon = {origin: min(vector.get(origin, 0) for vector in vectors) for origin in vectors[0]}
        region.replica.store.raise_horizon(horizon)
        region.replica.collect([each.disk.number for each in scenario.regions], merge_tables=True)


def test_the_simulator_finds_a_horizon_without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everwrite.upkeep.stable_horizon", what_one_holds)
    with pytest.raises(SeedFailed, match=r"must (show|have)"):
        run_seeds("direct", "engine", range(1000))


def test_the_simulator_finds_reports_taken_out_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [collect_by_watermarks if step is DirectScenario.collect else step for step in direct.STEPS]
    monkeypatch.setattr(direct, "STEPS", tuple(steps))
    with pytest.raises(SeedFailed, match=r"must (show|have)"):
        run_seeds("direct", "engine", range(1000))


def open_replica(disk: EngineDisk, history: History, pulled: list[Pulled]) -> Replica:
    replica = Replica(disk.open(START_MS), history, pulled)
    replica.restarted()
    return replica


def test_the_oracle_follows_a_state_to_the_group_that_it_is_joined_with() -> None:
    """A state stays with the store when the link that asked for it is lost; another link's group may need it next."""
    history = History()
    disks = [EngineDisk(number, Random(number), "always") for number in (1, 2, 3)]
    pulled: list[Pulled] = []
    one, two = (open_replica(disk, history, []) for disk in disks[:2])
    three = open_replica(disks[2], history, pulled)
    by_one, by_two = one.open_stream({}, {1}), two.open_stream({}, {2})
    one.execute(Request(Verb.ADD, b"k", (b"a",)))
    first = by_one.next_batch()
    two.receive(first, one)
    two.execute(Request(Verb.REMOVE, b"k", (b"a",)))
    two.execute(Request(Verb.ADD, b"k", (b"b", b"c")))
    removed = by_two.next_batch()
    need = three.apply_batch(removed)
    assert need is not None
    three.supply_state(need, two.key_state(need.namespace_key))
    three.check(b"k")
    # Now the second store is out of reach, and what the first has made of its update comes.
    one.receive(removed, two)
    one.execute(Request(Verb.REMOVE, b"k", (b"b",)))
    for batch in (first, by_one.next_batch()):
        assert three.apply_batch(batch) is None
        three.check(b"k")
    assert three.reading(b"k") == (Kind.SET, frozenset({b"c"}))
    assert not covers(three.applied, Dot(need.timestamp, need.origin))
    three.commit()
    disks[2].crash(three.store)
    three = open_replica(disks[2], history, pulled)
    three.check(b"k")
    assert three.apply_batch(removed) is None
    three.check(b"k")
