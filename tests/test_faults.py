"""One storage call of a run fails, whichever it is: success or a clear error, and nothing acknowledged is lost."""

from __future__ import annotations

import pytest

import everwrite
from everwrite.kinds import KIND_NAMES
from tests.faults.full_disk import fill_disk
from tests.faults.matrix import FAULTS, Broken, FaultyRun, Saboteur, count_calls, fail_every_call, make_fault_steps
from tests.faults.script import Run, Step, make_options
from tests.reference.dictionary import State, apply_to, kind_of

STEPS = 40


@pytest.mark.parametrize("durability", ["always", "os"])
def test_any_call_may_fail(durability: str) -> None:
    counts = fail_every_call(1, durability, STEPS)
    calls = count_calls(1, durability, STEPS)
    for operation, number in calls.items():
        # Every call was made to fail, in every way that it can.
        assert counts[f"{operation} failed"] == number * len(FAULTS[operation])
    assert {"create", "open", "write", "sync", "rename", "unlink", "sync_dir", "read"} <= calls.keys()
    assert counts["runs with errors"] > counts["runs"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["always", "interval", "os"])
def test_any_call_may_fail_in_many_runs(durability: str) -> None:
    for seed in range(200, 203):
        fail_every_call(seed, durability, 80, stride=2)


@pytest.mark.parametrize("durability", ["always", "os"])
def test_a_full_disk_refuses_writes_and_nothing_else(durability: str) -> None:
    counts = fill_disk(1, durability, 60)
    assert counts["runs"] > 20
    assert counts["runs with refusals"] > counts["runs"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["always", "interval", "os"])
def test_a_full_disk_in_many_runs(durability: str) -> None:
    for seed in range(300, 306):
        fill_disk(seed, durability, 80)


def test_the_run_that_faults_are_put_into_has_every_kind() -> None:
    state: State = {}
    for step in make_fault_steps(1, STEPS):
        if step.operation is not None:
            apply_to(state, step.operation)
    assert set(map(kind_of, state.values())) == set(KIND_NAMES[1:])


def test_a_store_that_hides_a_failure_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: were a failed write or sync answered as done, a power loss would show it."""
    do = Run.do

    def lie(self: Run, step: Step) -> None:
        try:
            do(self, step)
        except everwrite.StorageError:
            return

    monkeypatch.setattr(Run, "do", lie)
    steps = make_fault_steps(1, STEPS)
    noticed = 0
    for at in range(1, count_calls(1, "always", STEPS)["sync"]):
        try:
            FaultyRun(steps, make_options(1, "always"), Saboteur("sync", 5, at), "power").go()
        except Broken:
            noticed += 1
    assert noticed > STEPS / 4
