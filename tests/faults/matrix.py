"""The k-th storage call fails, for every k of a run: `python -m tests.faults.matrix --seed 1` runs one seed in full."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import everwrite
from everwrite.memory_files import MemoryFiles
from everwrite.watched_files import WatchedFiles
from tests.faults.script import FOLDER, Run, Step, fault_arguments, make_options, make_steps, shown_by
from tests.reference.dictionary import Operation, State, apply_to, outcomes

# Which errors each call can meet. "short": some of it is written, then the disk is full.
SHORT = -1
FAULTS: dict[str, tuple[int, ...]] = {
    "create": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "open": (errno.EIO, errno.EINTR),
    "write": (errno.EIO, errno.ENOSPC, errno.EINTR, SHORT),
    "allocate": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "map": (errno.EIO, errno.ENOMEM),
    "sync": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "sync_map": (errno.EIO,),
    "truncate": (errno.EIO, errno.EINTR),
    "rename": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "unlink": (errno.EIO, errno.EINTR),
    "sync_dir": (errno.EIO, errno.EINTR),
    "read": (errno.EIO, errno.EINTR),
    "size": (errno.EIO,),
    "close": (errno.EIO, errno.EINTR),
    "list": (errno.EIO,),
    "mkdir": (errno.EIO, errno.ENOSPC),
    "lock": (errno.EIO, errno.ENOSPC),
}
# How a store that met a fault ends its life: closed, killed, or by power loss at its worst or at random.
ENDS = ("close", "kill", "power", "torn")
# What is still asked of a store after the fault.
STEPS_AFTER_FAULT = 4


@dataclass
class Saboteur:
    """Counts the calls of one kind; call number `at` (from 1) fails with `error`."""

    operation: str
    error: int = 0
    at: int = 0
    calls: int = 0
    struck: str = ""

    def __call__(self, operation: str, path: bytes, size: int) -> int | tuple[int, int] | None:
        if operation != self.operation:
            return None
        self.calls += 1
        if self.calls != self.at:
            return None
        self.struck = path.decode()
        if self.error == SHORT:
            return errno.ENOSPC, size // 2
        return self.error


PLACES = (FOLDER, "/backup")


class Broken(AssertionError):
    """A fault led to something else than success or a clear error."""


def clear(error: everwrite.StorageError, root: str = "") -> None:
    """A clear error names the place, below the folder `root`, and doesn't take a failing call for damage."""
    if isinstance(error, everwrite.CorruptionError | everwrite.FormatError | everwrite.LockedError):
        raise Broken(f"a failing call was taken for {type(error).__name__}: {error}") from error
    if not any(place in f"{error} {error.filename}" for place in ([root] if root else PLACES)):
        raise Broken(f"the message names no file: {error!r}") from error


def unique(states: Iterable[State]) -> list[State]:
    kept: list[State] = []
    for state in states:
        if state not in kept:
            kept.append(state)
    return kept


class FaultyRun:
    """One run of a script in which one call fails. `possible`: the states that the store may show."""

    def __init__(self, steps: list[Step], options: dict[str, Any], saboteur: Saboteur, end: str) -> None:
        self.disk = MemoryFiles()
        self.steps = steps
        self.saboteur = saboteur
        self.end = end
        self.run = Run(WatchedFiles(self.disk, saboteur), self.disk, options)
        self.possible: list[State] = [{}]
        self.errors = 0

    def go(self) -> None:
        """Run all of it; the fault's consequences are checked once it has struck and a few steps have passed."""
        left = list(self.steps)
        while left and not self.saboteur.struck:
            self.step(left.pop(0))
        if self.saboteur.struck:
            self.look()
            for _ in range(min(STEPS_AFTER_FAULT, len(left))):
                self.step(left.pop(0))
            self.look()
            self.end_life()
            for step in left:
                self.step(step, may_fail=False)
        self.end_life("close")
        if self.run.db is not None:
            self.run.close()

    def step(self, step: Step, *, may_fail: bool = True) -> None:
        if step.chore == "backup" and len(self.possible) > 1:
            return
        self.run.held.states = self.possible[:1]
        failed_before = self.run.db is not None and self.run.db.failed_with is not None
        after = [self.after(state, step.operation) for state in self.possible]
        try:
            self.run.do(step)
        except everwrite.StorageError as error:
            self.errors += 1
            clear(error, self.run.root)
            if not may_fail or not self.saboteur.struck:
                raise Broken(f"{step} failed without a fault: {error}") from error
            # What a failed store refuses, or one without space, it hasn't done; else nobody knows. Of writes that
            # are no batch, those before the one that was refused are done.
            refused = failed_before or isinstance(error, everwrite.ReadOnlyError)
            if step.operation is not None and (not refused or step.operation.verb == "put_many"):
                cut_short = outcomes(step.operation)
                self.possible += [self.after(state, outcome) for state in self.possible for outcome in cut_short]
                self.possible = unique(self.possible)
        else:
            # It reads on, so that what would change nothing succeeds.
            if failed_before and unique(after) != self.possible:
                raise Broken(f"{step} was acknowledged by a store that had failed")
            self.possible = unique(after)

    def after(self, state: State, operation: Operation | None) -> State:
        state = dict(state)
        if operation is not None:
            apply_to(state, operation)
        return state

    def look(self) -> None:
        """Reads on the same handle are right, or clear errors."""
        if self.run.db is None:
            return
        try:
            shown = shown_by(self.run.db)
        except everwrite.StorageError as error:
            clear(error, self.run.root)
        else:
            if shown not in self.possible:
                raise Broken("the same handle shows what was never acknowledged, or lacks what was")

    def end_life(self, end: str = "") -> None:
        match end or self.end:
            case "close":
                try:
                    self.run.close()
                except everwrite.StorageError as error:
                    clear(error)
            case "kill":
                self.run.db = None
                self.disk.crash("all")
            case "power":
                self.run.db = None
                self.disk.crash()
            case "torn":
                self.run.db = None
                self.disk.crash(Random(self.saboteur.at))
        shown = shown_by(self.run.open())
        if shown not in self.possible:
            raise Broken("opened again, it shows what was never acknowledged, or lacks what was")
        self.possible = [shown]
        for backup in self.run.backups[-1:]:
            backup.check(self.disk.copy(), self.run.options)


def make_fault_steps(seed: int, count: int) -> list[Step]:
    return [step for step in make_steps(seed, count) if step.chore not in ("kill", "power loss")]


def count_calls(seed: int, durability: str, count: int) -> dict[str, int]:
    """How many calls of each kind the run makes when none fails."""
    calls: Counter[str] = Counter()

    def watch(operation: str, path: bytes, size: int) -> None:
        calls[operation] += 1

    disk = MemoryFiles()
    run = Run(WatchedFiles(disk, watch), disk, make_options(seed, durability))
    for step in make_fault_steps(seed, count):
        run.do(step)
    run.close()
    return calls


def fail_every_call(
    seed: int, durability: str, count: int, *, stride: int = 1, only: Iterable[str] = FAULTS
) -> Counter[str]:
    """Run the script once for each call, error and end: each `stride`-th of these. Returns counts."""
    options = make_options(seed, durability)
    steps = make_fault_steps(seed, count)
    counts: Counter[str] = Counter()
    # Without durability `always` a power loss may take more than a fault: that is the power-loss run's matter.
    ends = ENDS if durability == "always" else ("close", "kill")
    cases = 0
    for operation, calls in count_calls(seed, durability, count).items():
        if operation not in only:
            continue
        for at in range(1, calls + 1):
            for error in FAULTS[operation]:
                cases += 1
                if cases % stride:
                    continue
                end = ends[(at + cases) % len(ends)]
                saboteur = Saboteur(operation, error, at)
                run = FaultyRun(steps, options, saboteur, end)
                try:
                    run.go()
                except (AssertionError, everwrite.EverwriteError) as broken:
                    name = "a short write" if error == SHORT else errno.errorcode[error]
                    raise Broken(
                        f"{operation} number {at} ({saboteur.struck}) failed with {name}, then {end}: {broken}\n"
                        f"repeat: python -m tests.faults.matrix --seed {seed} --durability {durability} "
                        f"--steps {count} --only {operation}"
                    ) from broken
                counts["runs"] += 1
                counts[f"{operation} failed"] += bool(saboteur.struck)
                counts["runs with errors"] += bool(run.errors)
    return counts


def main() -> int:
    parser = fault_arguments("matrix", __doc__, only=FAULTS)
    arguments = parser.parse_args()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        counts = fail_every_call(
            *(seed, arguments.durability, arguments.steps), stride=arguments.stride, only=arguments.only or FAULTS
        )
        print(seed, dict(counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
