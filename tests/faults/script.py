"""A scripted run of a store, and what it may hold when the run is cut short anywhere."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import everwrite
from everwrite.files import Files
from everwrite.memory_files import MemoryFiles
from tests.reference.dictionary import Operation, Source, State, apply, apply_to, keys_of, outcomes, read

FOLDER = "/data"
KEYS = keys_of(0)
START_MS = 1_700_000_000_000
# Besides operations, as often as they stand here: what moves files about, and changes no key.
CHORES = (
    "compact",
    "maintain",
    "wait",
    "reopen",
    "reopen",
    "scan",
    "snapshot",
    "kill",
    "power loss",
    "verify",
    "backup",
)
CHORE_SHARE = 0.12


@dataclass(frozen=True, slots=True)
class Step:
    """An operation, or a chore."""

    chore: str = ""
    operation: Operation | None = None

    def __str__(self) -> str:
        return self.chore or str(self.operation)


def make_steps(seed: int, count: int) -> list[Step]:
    """The run that belongs to a seed."""
    random = Random(f"steps {seed}")
    source = Source(random, large_bytes=9000)
    return [
        Step(chore=random.choice(CHORES)) if random.random() < CHORE_SHARE else Step(operation=source.draw())
        for _ in range(count)
    ]


def make_options(seed: int, durability: str) -> dict[str, Any]:
    """Sizes so small that a short run fills tables, merges them, begins segments and cuts the log."""
    random = Random(f"options {seed}")
    return {
        "durability": durability,
        "background": False,
        "memtable_bytes": random.choice((1 << 12, 1 << 13)),
        "segment_bytes": random.choice((1 << 12, 1 << 13)),
        "log_keep_bytes": random.choice((0, 1 << 13)),
        "block_cache_bytes": 0,
    }


@dataclass
class Held:
    """What a store may hold: one of `states[durable:]`. Grows by one state with each operation.

    `done`: how many operations were acknowledged. `durable`: how many of these no power loss takes back.
    """

    always: bool
    states: list[State] = field(default_factory=lambda: [{}])
    durable: int = 0

    @property
    def done(self) -> int:
        return len(self.states) - 1

    def after(self, operation: Operation) -> State:
        state = dict(self.states[-1])
        apply_to(state, operation)
        return state

    def acknowledge(self, operation: Operation) -> None:
        self.states.append(self.after(operation))
        if self.always:
            self.durable = self.done


@dataclass
class Backup:
    """A backup, of what was held then. `complete`: it was acknowledged."""

    path: str
    state: State
    complete: bool = False

    def check(self, disk: Files, options: dict[str, Any]) -> None:
        """One that was acknowledged can be restored, any that can be restored is right. Leaves a restored store."""
        path = f"{self.path}-restored"
        try:
            everwrite.restore(self.path, path, files=disk)
        except everwrite.EverwriteError as error:
            assert not self.complete, f"a backup was acknowledged, but it isn't there: {error}"
            return
        with everwrite.open(path, files=disk, now_ms=START_MS, **options) as db:
            assert shown_by(db) == self.state, "a backup holds something else than what it is of"


@dataclass
class Run:
    """A store on some files going through a script. They end up on `disk`, or below the real folder `root`."""

    files: Files
    disk: MemoryFiles | None
    options: dict[str, Any]
    root: str = ""
    held: Held = field(init=False)
    now_ms: int = START_MS
    db: everwrite.Database | None = None
    under_way: Step | None = None
    backups: list[Backup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held = Held(self.options["durability"] == "always")

    def open(self) -> everwrite.Database:
        self.db = everwrite.open(self.root + FOLDER, files=self.files, now_ms=self.now_ms, store_id=1, **self.options)
        return self.db

    def do(self, step: Step) -> None:
        """One step. What it raises is the store's."""
        self.under_way = step
        db = self.db if self.db is not None else self.open()
        self.now_ms += 7
        db.set_time(self.now_ms)
        if step.operation is not None:
            apply(db, step.operation)
            self.held.acknowledge(step.operation)
        else:
            self.chore(db, step.chore)
        self.under_way = None

    def chore(self, db: everwrite.Database, chore: str) -> None:
        match chore:
            case "compact":
                db.compact()
            case "maintain":
                db.maintain()
            case "wait":
                # Long enough for the clock's bound, and for durability `interval`.
                self.now_ms += 15_000
                db.set_time(self.now_ms)
                db.maintain()
                if self.options["durability"] == "interval":
                    self.held.durable = self.held.done
            case "reopen":
                self.close()
                self.open()
            case "scan":
                list(db.scan())
            case "snapshot":
                with db.snapshot() as snapshot:
                    db.compact()
                    list(snapshot.scan())
            case "verify":
                report = db.verify()
                # A call that fails while it reads is damage to it.
                assert all("[Errno " in damage.fault for damage in report.damages), str(report)
            case "backup":
                self.backups.append(Backup(f"{self.root}/backup-{len(self.backups)}", self.held.states[-1]))
                db.backup(self.backups[-1].path)
                self.backups[-1].complete = True

            case "kill":
                self.crash("all")
            case "power loss":
                self.crash(Random(self.now_ms))

    def crash(self, keep: Random | Literal["all"] | None) -> None:
        """Die, as `MemoryFiles.crash` does it; come back, and go on from what is there then."""
        assert self.disk is not None, "real files can't crash in this process"
        self.db = None
        self.disk.crash(keep)
        allowed = self.held.states[-1:] if keep == "all" else self.allowed()
        shown = shown_by(self.open())
        # Whatever is shown is durable from here on: recovery has seen to that.
        assert shown in allowed, "it shows what was never acknowledged, or lacks what was"
        self.held.states = [shown]
        self.held.durable = 0

    def close(self) -> None:
        db, self.db = self.db, None
        if db is not None:
            db.close()
            self.held.durable = self.held.done

    def allowed(self) -> list[State]:
        """What a store may show that is opened after power was lost now."""
        states = self.held.states[self.held.durable :]
        if self.under_way is not None and self.under_way.operation is not None:
            states += [self.held.after(outcome) for outcome in outcomes(self.under_way.operation)]
        return states


def shown_by(db: everwrite.Database) -> State:
    """All that the script can have written, read in every way that there is."""
    shown = read(db, KEYS)
    strings = {key: value for key, value in shown.items() if isinstance(value, bytes)}
    assert dict(db.scan()) == strings, "a scan shows other keys than reading each"
    return shown


def fault_arguments(
    runner: str, description: str | None, *, steps: int = 60, only: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """What the command of each fault run takes; with `only`, which kinds of calls, too."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.faults.{runner}", description=description)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1, help="number of seeds")
    parser.add_argument("--durability", choices=("always", "interval", "os"), default="always")
    parser.add_argument("--steps", type=int, default=steps)
    if only:
        parser.add_argument("--stride", type=int, default=1)
        parser.add_argument("--only", choices=sorted(only), action="append", help="only calls of this kind")
    return parser
