"""The disk is full from the k-th call that needs space on, and has space again later.

`python -m tests.faults.full_disk --seed 1` runs one seed for every k.
"""

from __future__ import annotations

import errno
import sys
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Any

import everwrite
from everwrite.memory_files import MemoryFiles
from everwrite.watched_files import WatchedFiles
from tests.faults.matrix import Broken, make_fault_steps
from tests.faults.script import Run, Step, fault_arguments, make_options, shown_by
from tests.reference.dictionary import Operation, State, apply_to

NEEDS_SPACE = {"create", "write", "allocate"}
STEPS_WHILE_FULL = 12
# How often a store may look before it finds that there is space again.
LOOKS_MAX = 3
WHEN_SPACE_RETURNS = Operation("put", b"0/s0", (b"there is space again",))


@dataclass
class Space:
    """Answers calls that need space: from call number `at` (from 1) on with ENOSPC, until `returned`."""

    at: int
    calls: int = 0
    returned: bool = False

    @property
    def full(self) -> bool:
        return self.calls >= self.at and not self.returned

    def __call__(self, operation: str, path: bytes, size: int) -> int | tuple[int, int] | None:
        if operation not in NEEDS_SPACE:
            return None
        self.calls += 1
        if not self.full:
            return None
        # The file system takes what still fits.
        return (errno.ENOSPC, size // 2) if operation == "write" and self.calls == self.at else errno.ENOSPC


class FullDiskRun:
    """One run on such a disk. `state`: what the store must show, always: what it refuses, it hasn't done."""

    def __init__(self, steps: list[Step], options: dict[str, Any], at: int, end: str) -> None:
        self.disk = MemoryFiles()
        self.space = Space(at)
        self.steps = list(steps)
        self.end = end
        self.run = Run(WatchedFiles(self.disk, self.space), self.disk, options)
        self.state: State = {}
        self.refused = 0

    def go(self) -> None:
        """Raises `Broken` when the store does something else than a full disk allows."""
        while self.steps and not self.space.full:
            self.step(self.steps.pop(0))
        for _ in range(STEPS_WHILE_FULL):
            if self.steps:
                self.step(self.steps.pop(0))
            self.look()
        if self.end == "power":
            self.run.db = None
            self.disk.crash()
        self.space.returned = True
        self.recover()
        for step in self.steps:
            self.step(step)
        self.look()
        self.run.close()
        self.run.open()
        self.look()
        self.run.close()

    def step(self, step: Step) -> None:
        # A store that can't be opened on a full disk is no surprise; here the one that is open is looked at.
        if self.space.full and step.chore == "reopen":
            return
        if step.operation is not None and step.operation.verb == "put_many":
            # It isn't atomic: a part of it may be written.
            return
        try:
            self.run.do(step)
        except everwrite.StorageError as error:
            self.refused += 1
            if not self.space.full:
                raise Broken(f"{step} failed with space left: {error}") from error
            if (
                self.run.db is not None
                and step.operation is not None
                and not isinstance(error, everwrite.ReadOnlyError)
            ):
                raise Broken(
                    f"{step} failed with {type(error).__name__}, not as a store without space: {error}"
                ) from error
        else:
            if step.operation is not None:
                self.state = dict(self.state)
                apply_to(self.state, step.operation)

    def look(self) -> None:
        """Whatever the disk, the store is read as before."""
        if self.run.db is None:
            # The first open found no space.
            return
        if shown_by(self.run.db) != self.state:
            raise Broken("it shows what was refused, or lacks what was acknowledged")

    def recover(self) -> None:
        """Writes work again by themselves once there is space."""
        step = Step(operation=WHEN_SPACE_RETURNS)
        for look in range(LOOKS_MAX):
            try:
                self.run.do(step)
                break
            except everwrite.StorageError as error:
                if look == LOOKS_MAX - 1:
                    raise Broken(f"with space again, it still refuses writes: {error}") from error
                if self.run.db is not None:
                    self.run.now_ms += 1000
                    self.run.db.set_time(self.run.now_ms)
                    self.run.db.maintain()
        self.state = dict(self.state)
        apply_to(self.state, WHEN_SPACE_RETURNS)


def count_space_calls(seed: int, durability: str, count: int) -> int:
    """How many calls of the run need space."""
    space = Space(sys.maxsize)
    disk = MemoryFiles()
    run = Run(WatchedFiles(disk, space), disk, make_options(seed, durability))
    for step in make_fault_steps(seed, count):
        run.do(step)
    run.close()
    return space.calls


def fill_disk(seed: int, durability: str, count: int, *, stride: int = 1) -> Counter[str]:
    """Run the script once for each call that needs space: each `stride`-th of these. Returns counts."""
    counts: Counter[str] = Counter()
    random = Random(f"full {seed}")
    for at in range(1, count_space_calls(seed, durability, count) + 1, stride):
        end = random.choice(("go on", "power")) if durability == "always" else "go on"
        run = FullDiskRun(make_fault_steps(seed, count), make_options(seed, durability), at, end)
        try:
            run.go()
        except (AssertionError, everwrite.EverwriteError) as broken:
            raise Broken(
                f"no space from call {at} on, then {end}: {broken}\n"
                f"repeat: python -m tests.faults.full_disk --seed {seed} --durability {durability} --steps {count}"
            ) from broken
        counts["runs"] += 1
        counts["runs with refusals"] += bool(run.refused)
    return counts


def main() -> int:
    parser = fault_arguments("full_disk", __doc__)
    arguments = parser.parse_args()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        print(seed, dict(fill_disk(seed, arguments.durability, arguments.steps)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
