"""Power loss before every system call of a run: `python -m tests.faults.power --seed 1` runs one seed in full."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import everwrite
from everwrite.memory_files import MemoryFiles
from everwrite.watched_files import WatchedFiles
from tests.faults.script import FOLDER, Backup, Run, fault_arguments, make_options, make_steps, shown_by
from tests.reference.dictionary import Operation, State, apply, apply_to, kind_of

# These change nothing on a disk: power lost before one is power lost before the next that does.
READING = {"open", "close", "read", "size", "list"}
TORN_OUTCOMES = 3
# A store that came back from a loss writes this, and must not lose it at the next.
LATER = Operation("put", b"0/s0", (b"written after the loss",))


@dataclass(frozen=True, slots=True)
class Image:
    """The disk as it was before a call, and what a store on it may show."""

    number: int
    call: str
    disk: MemoryFiles
    allowed: list[State]
    backups: list[Backup]


class Camera:
    """Takes an image of the disk before each call that changes it."""

    run: Run  # which it watches

    def __init__(self, disk: MemoryFiles) -> None:
        self.disk = disk
        self.calls = 0
        self.images: list[Image] = []

    def __call__(self, operation: str, path: bytes, size: int) -> None:
        if operation in READING:
            return
        self.calls += 1
        self.take(f"{operation} {path.decode()} {size}")

    def take(self, call: str) -> None:
        self.images.append(
            Image(
                self.calls,
                call,
                self.disk.copy(),
                self.run.allowed(),
                [replace(backup) for backup in self.run.backups[-1:]],
            )
        )


def reopened(disk: MemoryFiles, options: dict[str, Any], now_ms: int) -> everwrite.Database:
    return everwrite.open(FOLDER, files=disk, now_ms=now_ms, store_id=1, **options)


def check_image(image: Image, options: dict[str, Any], now_ms: int, outcome: int) -> set[str]:
    """Lose power with one outcome; open; lose power again. Outcome 0: all that wasn't synced is gone; 1: none of it.

    Returns the kinds of keys that were there.
    """
    disk = image.disk.copy()
    keep: Any = (None, "all")[outcome] if outcome < 2 else Random(f"{image.number} {outcome}")
    disk.crash(keep)
    # Dear, and the same for most outcomes: a backup that was acknowledged is durable.
    for backup in image.backups if outcome in (0, 2) and image.number % 4 == 0 else ():
        backup.check(disk.copy(), options)
    db = reopened(disk, options, now_ms)
    shown = shown_by(db)
    assert shown in image.allowed, "it shows what was never acknowledged, or lacks what was"
    apply(db, LATER)
    after = dict(shown)
    apply_to(after, LATER)
    disk.crash()
    db = reopened(disk, options, now_ms)
    allowed = [after] if options["durability"] == "always" else [shown, after]
    assert shown_by(db) in allowed, "what was recovered, or written after the recovery, was lost by the next power loss"
    db.close()
    return set(map(kind_of, shown.values()))


def lose_power(seed: int, durability: str, steps: int) -> Counter[str]:
    """Run a script once, and check the outcomes of a power loss before each changing call and after each step."""
    options = make_options(seed, durability)
    disk = MemoryFiles()
    camera = Camera(disk)
    counts: Counter[str] = Counter()
    going = Run(WatchedFiles(disk, camera), disk, options)
    camera.run = going
    script = make_steps(seed, steps)
    for step in [*script, None]:
        if step is not None:
            going.do(step)
        else:
            going.close()
        files = going.files
        assert isinstance(files, WatchedFiles)
        assert files.error is None, files.error
        camera.take("none")
        for image in camera.images:
            for outcome in range(2 + TORN_OUTCOMES):
                try:
                    counts.update(f"with a {kind}" for kind in check_image(image, options, going.now_ms, outcome))
                except (AssertionError, everwrite.EverwriteError) as error:
                    raise AssertionError(
                        f"power lost before call {image.number} ({image.call}) of step {step or 'close'}, "
                        f"outcome {outcome}: {error}\nrepeat: python -m tests.faults.power --seed {seed} "
                        f"--durability {durability} --steps {steps}"
                    ) from error
                counts["losses"] += 1
        camera.images.clear()
    counts["calls"] += camera.calls
    statistics = reopened(disk, options, going.now_ms).statistics()
    counts["tables"] += statistics["tables"]
    return counts


def main() -> int:
    parser = fault_arguments("power", __doc__, steps=150)
    arguments = parser.parse_args()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        print(seed, dict(lose_power(seed, arguments.durability, arguments.steps)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
