"""Starts writers, kills them, and checks what their stores hold."""

from __future__ import annotations

import os
import select
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import everwrite
from tests.crash.plan import Plan, make_options, make_plan
from tests.crash.writer import ACKNOWLEDGED, BACKED_UP, BACKUP, BEGINS, CLOSED, CLOSES, MESSAGE, OPENED, write
from tests.reference.dictionary import Operation, Source, State, apply_to, keys_of, kind_of, outcomes, read

OWNERS = 3
# Lives of one store before the next one begins empty.
LIVES = 12
# Of unchecked lives in a row, each may leave the operation that was under way done or not done.
UNCHECKED_MAX = 2
# Bounds a hang; no statement about speed.
HANG_SECONDS = 120.0


class Lost(AssertionError):
    """A store holds something else than what was acknowledged."""


@dataclass
class Outcome:
    """What the killer heard from a writer."""

    acknowledged: Counter[int] = field(default_factory=Counter)
    origins: list[int] = field(default_factory=list)
    backups: set[int] = field(default_factory=set)
    last: bytes = b""
    killed: bool = False


def kill_time(plan: Plan, outcome: Outcome) -> bool:
    """Whether what was heard by now is what the killer waits for."""
    match plan.end:
        case "acknowledged":
            return outcome.acknowledged.total() >= plan.count
        case "moment":
            return outcome.last != b""
        case "opening":
            return outcome.last == BEGINS
        case "closing":
            return outcome.last == CLOSES
    return False


def _spin(microseconds: int) -> None:
    # Busy, because a sleep is rounded up to what the kernel's timers like.
    until = time.perf_counter_ns() + microseconds * 1000
    while time.perf_counter_ns() < until:
        pass


def live_and_die(path: Path, plan: Plan, complaint: Path) -> Outcome:
    """Run one writer to its end, and return what it told."""
    reader, pipe = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        write(path, plan, pipe, complaint)
    os.close(pipe)
    outcome = Outcome()
    buffered = b""
    reaped = False
    try:
        while True:
            readable, _, _ = select.select([reader], [], [], HANG_SECONDS)
            if not readable:
                raise Lost(f"a writer hangs; it told last: {outcome.last!r}")
            data = os.read(reader, 1 << 16)
            if not data:
                break
            buffered += data
            while len(buffered) >= MESSAGE.size:
                outcome.last, number = MESSAGE.unpack_from(buffered)
                buffered = buffered[MESSAGE.size :]
                if outcome.last == ACKNOWLEDGED:
                    outcome.acknowledged[number] += 1
                elif outcome.last == BACKED_UP:
                    outcome.backups.add(number)
                elif outcome.last == OPENED:
                    outcome.origins.append(number)
            if not outcome.killed and kill_time(plan, outcome):
                outcome.killed = True
                _spin(plan.spin_microseconds)
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        reaped = True
    finally:
        if not reaped:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(reader)
    status = os.waitstatus_to_exitcode(status)
    if status not in (0, -signal.SIGKILL):
        told = complaint.read_text() if complaint.exists() else "nothing"
        raise Lost(f"a writer ended with status {status}, saying:\n{told}")
    outcome.killed = status != 0
    if not outcome.killed and outcome.last != CLOSED:
        raise Lost("a writer ended without closing")
    return outcome


class KilledStore:
    """A store on disk through many lives, and what it may hold."""

    def __init__(self, folder: Path, seed: str, *, forgetful: bool) -> None:
        self.path = folder / "db"
        self.complaint = folder / "complaint"
        self.seed = seed
        self.forgetful = forgetful
        self.options = make_options(seed)
        self.lives = 0
        self.unchecked = 0
        # Of each owner of keys, the states that its keys may be in: one, but for operations under way at a kill.
        self.possible: list[list[State]] = [[{}] for _ in range(OWNERS)]
        self.burnt: set[int] = set()  # origins that a kill has ended

    def live(self) -> Counter[str]:
        """One more life, and most times a check. Raises `Lost` with all that helps to see why."""
        plan = make_plan(f"{self.seed}/{self.lives}", self.options, forgetful=self.forgetful)
        self.lives += 1
        counts: Counter[str] = Counter(writers=1)
        try:
            outcome = live_and_die(self.path, plan, self.complaint)
            self.follow(plan, outcome)
            self.check_backups(outcome, counts)
            counts["killed"] += outcome.killed
            counts[f"ended by {plan.end}" if outcome.killed else "closed"] += 1
            counts["acknowledged"] += outcome.acknowledged.total()
            self.unchecked += 1
            if self.unchecked > UNCHECKED_MAX or Random(plan.seed + "/check").random() < 0.7:
                self.check(counts)
                self.unchecked = 0
        except (Lost, AssertionError, everwrite.EverwriteError) as error:
            raise Lost(f"{error}\nwriter {plan}\nstore {self.path}") from error
        return counts

    def follow(self, plan: Plan, outcome: Outcome) -> None:
        """Work out what the store may hold now."""
        again = self.burnt & set(outcome.origins)
        if again:
            raise Lost(f"origin {again} was ended by a kill, and went on")
        if outcome.killed and outcome.last in (OPENED, ACKNOWLEDGED, BACKED_UP):
            # Not one whose close had begun: that may have been complete.
            self.burnt.add(outcome.origins[-1])
        for owner in range(plan.threads):
            source = Source(plan.source(owner), owner)
            done = [source.draw() for _ in range(outcome.acknowledged[owner])]
            under_way = source.draw() if outcome.killed and len(done) < plan.limit else None
            self.possible[owner] = _after(self.possible[owner], done, under_way)

    def check_backups(self, outcome: Outcome, counts: Counter[str]) -> None:
        """A backup that was acknowledged can be restored, and what can be restored is whole. Removes them."""
        for backup in sorted(self.path.parent.glob(BACKUP + "*")):
            restored = self.path.with_name("restored")
            try:
                everwrite.restore(backup, restored)
            except everwrite.EverwriteError as error:
                if int(backup.name.removeprefix(BACKUP)) in outcome.backups:
                    raise Lost(f"a backup was acknowledged, but it isn't there: {error}") from error
            else:
                with everwrite.open(restored, **self.options) as db:
                    report = db.verify()
                    if not report.ok or db.origin in self.burnt:
                        raise Lost(f"the restored backup, of origin {db.origin:#x}: {report}")
                shutil.rmtree(restored)
                counts["backups"] += 1
            shutil.rmtree(backup)

    def check(self, counts: Counter[str]) -> None:
        """Open it here: it must show one of the possible states, be whole, and close."""
        with everwrite.open(self.path, **self.options) as db:
            if db.origin in self.burnt:
                raise Lost(f"origin {db.origin:#x} was ended by a kill, and goes on")
            strings = {}
            kinds = set()
            for owner, states in enumerate(self.possible):
                shown = read(db, keys_of(owner))
                if shown not in states:
                    raise Lost(f"owner {owner}: {difference(states, shown)}")
                self.possible[owner] = [shown]
                kinds |= set(map(kind_of, shown.values()))
                strings.update({key: value for key, value in shown.items() if isinstance(value, bytes)})
            if dict(db.scan()) != strings:
                raise Lost("a scan shows other keys than reading each")
            report = db.verify()
            if not report.ok:
                raise Lost(str(report))
            statistics = db.statistics()
        counts["checks"] += 1
        counts.update(f"checks of a {kind}" for kind in kinds)
        counts["tables"] += statistics["tables"]


def _after(states: list[State], done: list[Operation], under_way: Operation | None) -> list[State]:
    after: list[State] = []
    for state in states:
        state = dict(state)
        for operation in done:
            apply_to(state, operation)
        reached = [state]
        for outcome in outcomes(under_way) if under_way is not None else []:
            reached.append(dict(state))
            apply_to(reached[-1], outcome)
        after += [each for each in reached if each not in after]
    return after


def difference(states: list[State], shown: State) -> str:
    """Which keys differ from the possible states, for a message."""
    lines = []
    for number, state in enumerate(states):
        keys = sorted(key for key in state.keys() | shown.keys() if state.get(key) != shown.get(key))
        lines.append(f"possible state {number} differs in {len(keys)} keys")
        lines += [f"  {key!r}: {state.get(key)!r:.300} but shows {shown.get(key)!r:.300}" for key in keys[:5]]
    return "\n".join(lines)


def run_share(folder: str, seed: int, first: int, rounds: int, forgetful: bool) -> Counter[str]:
    """Run `rounds` writers, on a new store every `LIVES`, from store number `first` on.

    Returns counts of what happened. Losses are printed; the folder of a store that lost something stays.
    """
    counts: Counter[str] = Counter()
    for number in range(first, first + (rounds + LIVES - 1) // LIVES):
        place = Path(folder) / f"store-{number}"
        place.mkdir(parents=True)
        store = KilledStore(place, f"{seed}/{number}", forgetful=forgetful)
        try:
            for _ in range(min(LIVES, rounds - (number - first) * LIVES)):
                counts.update(store.live())
            store.check(counts)
            shutil.rmtree(place)
        except Lost as loss:
            counts["lost"] += 1
            print(f"{loss}\nrepeat: python -m tests.crash --seed {seed} --store {number}", flush=True)
    return counts
