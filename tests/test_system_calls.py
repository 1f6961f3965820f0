"""One system call of a run on real files fails or is cut short, whichever it is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from everwrite.errors import StorageError
from everwrite.faulty_files import FaultyFiles
from tests.faults.matrix import Broken, make_fault_steps
from tests.faults.script import Run, Step, make_options
from tests.faults.system_calls import FAULTS, SHORT, Decision, SystemCallRun, count_calls, fail_every_call

STEPS = 14


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "written"])
def test_any_system_call_may_fail_or_be_cut_short(mapped: bool, tmp_path: Path) -> None:
    calls = count_calls(1, "always", STEPS, tmp_path, mapped=mapped)
    # A log that is mapped is what most stores have; without, it is its writes that differ.
    only = FAULTS.keys() if mapped else {"pwrite", "fdatasync"}
    counts = fail_every_call(1, "always", STEPS, tmp_path, mapped=mapped, only=only)
    for call in calls.keys() & only:
        # Every call was struck, in every way that it can be.
        assert counts[f"{call} struck"] == calls[call] * len(FAULTS[call])
    assert calls.keys() >= FAULTS.keys() - {"preadv2"}
    assert counts["hidden"] > counts["runs"] / 4
    assert counts["runs with errors"] > counts["runs"] / 4


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["always", "interval", "os"])
@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "written"])
def test_any_system_call_in_many_runs(durability: str, mapped: bool, tmp_path: Path) -> None:
    counts = fail_every_call(1, durability, 40, tmp_path, mapped=mapped, stride=3)
    assert counts["preadv2 struck"] > 0
    for seed in range(400, 403):
        fail_every_call(seed, durability, 40, tmp_path, mapped=mapped, stride=11)


@pytest.mark.parametrize(
    ("call", "error"), [("pwrite", SHORT), ("pwrite", errno.EINTR), ("pread", SHORT), ("fdatasync", errno.EINTR)]
)
def test_a_loop_that_is_missing_would_be_noticed(
    call: str, error: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The check itself: were an interrupted or short call taken for one that failed, it would show."""
    steps = make_fault_steps(1, STEPS)
    decide = Decision.__call__

    def unlooped(self: Decision, called: str, size: int) -> int | tuple[int, int] | None:
        answer = decide(self, called, size)
        return errno.EIO if answer in (errno.EINTR, (0, max(1, size // 2))) else answer

    monkeypatch.setattr(Decision, "__call__", unlooped)
    noticed = 0
    for at in range(1, 6):
        try:
            SystemCallRun(
                steps, make_options(1, "always"), Decision(call, error, at, mapped=False), "close", tmp_path
            ).go()
        except Broken:
            noticed += 1
    assert noticed >= 4


def test_a_store_that_hides_a_failure_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    do = Run.do

    def lie(self: Run, step: Step) -> None:
        try:
            do(self, step)
        except StorageError:
            return

    monkeypatch.setattr(Run, "do", lie)
    steps = make_fault_steps(1, STEPS)
    noticed = 0
    for at in range(3, 11):
        decision = Decision("pwrite", errno.EIO, at, mapped=False)
        try:
            SystemCallRun(steps, make_options(1, "always"), decision, "close", tmp_path).go()
        except Broken:
            noticed += 1
    assert noticed >= 4


def test_what_a_decision_raises_is_kept_and_fails_the_call(tmp_path: Path) -> None:
    problem = ValueError("no decision")

    def decide(call: str, size: int) -> None:
        raise problem

    files = FaultyFiles(decide)
    with pytest.raises(StorageError) as caught:
        files.open_file(tmp_path / "a", "fresh")
    assert caught.value.errno == errno.EIO
    assert files.error is problem


def test_a_close_that_fails_has_closed_and_names_the_file(tmp_path: Path) -> None:
    files = FaultyFiles(Decision("close", errno.EIO, 1))
    file = files.open_file(tmp_path / "a", "fresh")
    with pytest.raises(StorageError) as caught:
        file.close()
    assert caught.value.filename == str(tmp_path / "a")
    descriptors = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert tmp_path / "a" not in descriptors


def test_syncs_are_made_unless_told_otherwise(tmp_path: Path) -> None:
    for durable in (True, False):
        calls = Decision("fdatasync", errno.EIO, 2)
        with FaultyFiles(calls, durable=durable).open_file(tmp_path / "a", "fresh") as file:
            file.sync()
            with pytest.raises(StorageError):
                file.sync()
        assert calls.calls["fdatasync"] == 2
