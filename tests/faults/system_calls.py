"""The k-th system call of a run on real files fails, is interrupted or does half of its work, for every k.

`python -m tests.faults.system_calls --seed 1` runs one seed in full. Below `Files`, where `matrix` puts its faults, lie
the loops around the system's own calls: an interrupted or short one must not show at all.
"""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import everwrite
from everwrite.faulty_files import FaultyFiles
from tests.faults.matrix import Broken, FaultyRun, clear, make_fault_steps
from tests.faults.script import FOLDER, Run, Step, fault_arguments, make_options, shown_by
from tests.reference.dictionary import State

# Half of what was asked is done, but at least a byte: nothing means the end of a file.
SHORT = -1
FAULTS: dict[str, tuple[int, ...]] = {
    "open": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "close": (errno.EIO, errno.EINTR),
    "pread": (errno.EIO, errno.EINTR, SHORT),
    "preadv2": (errno.EIO, errno.EINTR, errno.EAGAIN, SHORT),
    "pwrite": (errno.EIO, errno.ENOSPC, errno.EINTR, SHORT),
    "fdatasync": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "fsync": (errno.EIO, errno.EINTR),
    "ftruncate": (errno.EIO, errno.EINTR),
    "fallocate": (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EOPNOTSUPP),
    "mmap": (errno.ENOMEM,),
    "fstat": (errno.EIO,),
    "rename": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "unlink": (errno.EIO, errno.EINTR),
}
# Nobody but the loops may notice these: all goes on as if nothing had been.
HIDDEN = {errno.EINTR, errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOMEM, SHORT}
# A read of what is in memory that fails is made again as one that may ask the device.
HIDDEN_CALLS = {"preadv2"}
ENDS = ("close", "kill")
# No power is lost here, so that nothing needs to wait for a device.
SOUND = FaultyFiles(lambda call, size: None, durable=False)


@dataclass
class Decision:
    """Counts the calls of each kind; number `at` (from 1) of the calls `call` meets `error`.

    `mapped`: whether files may be mapped; else the log is written by calls, too.
    """

    call: str = ""
    error: int = 0
    at: int = 0
    mapped: bool = True
    calls: Counter[str] = field(default_factory=Counter)
    struck: str = ""

    def __call__(self, call: str, size: int) -> int | tuple[int, int] | None:
        self.calls[call] += 1
        if call == self.call and self.calls[call] == self.at:
            self.struck = f"{call} of {size} bytes"
            return (0, max(1, size // 2)) if self.error == SHORT else self.error
        return errno.ENODEV if call == "mmap" and not self.mapped else None

    @property
    def hidden(self) -> bool:
        """Whether the fault must not show."""
        return self.error in HIDDEN or self.call in HIDDEN_CALLS

    def __str__(self) -> str:
        return f"{self.call} number {self.at} {'is short' if self.error == SHORT else errno.errorcode[self.error]}"


class SystemCallRun(FaultyRun):
    """One run on real files below `root`, which is empty before and after."""

    saboteur: Decision

    def __init__(self, steps: list[Step], options: dict[str, Any], decision: Decision, end: str, root: Path) -> None:
        self.steps = steps
        self.saboteur = decision
        self.end = end
        self.root = root
        self.run = Run(FaultyFiles(decision, durable=False), None, options, str(root))
        self.possible = [{}]
        self.errors = 0

    def go(self) -> None:
        try:
            super().go()
            if self.saboteur.hidden and self.errors:
                raise Broken("it showed")
        finally:
            self.run.db = None
            for path in self.root.iterdir():
                shutil.rmtree(path)

    def end_life(self, end: str = "") -> None:
        folder = self.root / FOLDER[1:]
        if (end or self.end) == "kill":
            # What a kill at this moment would leave: what the files hold, mapped or written, synced or not.
            copy = self.root / "copy"
            shutil.copytree(folder, copy)
            self.check(copy)
            shutil.rmtree(copy)
        try:
            self.run.close()
        except everwrite.StorageError as error:
            clear(error, self.run.root)
            self.errors += 1
        self.possible = [self.check(folder)]
        for backup in self.run.backups[-1:]:
            backup.check(SOUND, self.run.options)
            shutil.rmtree(f"{backup.path}-restored", ignore_errors=True)
        self.run.open()

    def check(self, folder: Path) -> State:
        """What the store in `folder` shows when it is opened with files that don't fail."""
        with everwrite.open(folder, files=SOUND, now_ms=self.run.now_ms, store_id=1, **self.run.options) as db:
            shown = shown_by(db)
            if shown not in self.possible:
                raise Broken("opened again, it shows what was never acknowledged, or lacks what was")
            report = db.verify()
            if not report.ok:
                raise Broken(str(report))
        return shown


def count_calls(seed: int, durability: str, count: int, root: Path, *, mapped: bool) -> Counter[str]:
    """How many calls of each kind the run makes when none fails."""
    decision = Decision(mapped=mapped)
    run = Run(FaultyFiles(decision, durable=False), None, make_options(seed, durability), str(root))
    for step in make_fault_steps(seed, count):
        run.do(step)
    run.close()
    for path in root.iterdir():
        shutil.rmtree(path)
    return decision.calls


def fail_every_call(
    seed: int, durability: str, count: int, root: Path, *, mapped: bool, stride: int = 1, only: Iterable[str] = FAULTS
) -> Counter[str]:
    """Run the script below the empty folder `root` once for each call and fault: each `stride`-th of these.

    Returns counts.
    """
    options = make_options(seed, durability)
    steps = make_fault_steps(seed, count)
    counts: Counter[str] = Counter()
    cases = 0
    for call, calls in count_calls(seed, durability, count, root, mapped=mapped).items():
        for at in range(1, calls + 1) if call in only else ():
            for error in FAULTS[call]:
                cases += 1
                if cases % stride or (call == "mmap" and not mapped):
                    continue
                end = ENDS[(at + cases) % len(ENDS)]
                decision = Decision(call, error, at, mapped)
                run = SystemCallRun(steps, options, decision, end, root)
                try:
                    run.go()
                except (AssertionError, everwrite.EverwriteError) as broken:
                    raise Broken(
                        f"{decision} ({decision.struck}), then {end}: {broken}\n"
                        f"repeat: python -m tests.faults.system_calls --seed {seed} --durability {durability} "
                        f"--steps {count} --only {call}{'' if mapped else ' --unmapped'}"
                    ) from broken
                counts["runs"] += 1
                counts[f"{call} struck"] += bool(decision.struck)
                counts["hidden"] += decision.hidden
                counts["runs with errors"] += bool(run.errors)
    return counts


def main() -> int:
    parser = fault_arguments("system_calls", __doc__, only=FAULTS)
    parser.add_argument("--unmapped", action="store_true", help="on a file system whose files can't be mapped")
    arguments = parser.parse_args()
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        with tempfile.TemporaryDirectory(prefix="everwrite-faults-") as root:
            counts = fail_every_call(
                *(seed, arguments.durability, arguments.steps, Path(root)),
                mapped=not arguments.unmapped,
                stride=arguments.stride,
                only=arguments.only or FAULTS,
            )
        print(seed, dict(counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
