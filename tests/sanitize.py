"""Run tests on extensions built with address and undefined-behaviour sanitizers: `python -m tests.sanitize`.

Builds in a copy of the repository under `build/sanitized`, with bounds checks, and runs the tests given as arguments
of pytest (`python -m tests.sanitize tests/test_lsm.py -m ""`); by default all tests of the engine. The exit status is
pytest's, or 1 when there was undefined behaviour, each place of which is named at the end; what the address
sanitizer finds ends the run with its report.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

COPY = ROOT / "build" / "sanitized"
COPIED = ("engine", "server", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")
LIBRARIES = ("libasan.so", "libubsan.so")
# Tests of the engine; what measures, lints, starts processes of its own kind or is about the server is left out.
ENGINE_TESTS = (
    *("backup", "bounded_counters", "checksum", "clock", "compression", "crash", "damage", "database", "digest"),
    *("doctor", "faults", "files", "golden", "groups", "join_laws", "limits", "lsm", "manifest", "memtable"),
    *("parts", "positions", "power_loss", "quick", "reconcile", "registers", "resync", "sequences", "simulation"),
    *("snapshot", "sorted_sets", "state_machine", "store", "store_edges", "system_calls", "table", "type_laws"),
    *("verify", "wal", "wal_recovery", "watched_files", "write_batch"),
)
FLAGS = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined"


def copy_sources() -> None:
    """Bring the copy up to date; what hasn't changed keeps its time, so that it isn't compiled again."""
    COPY.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        for source in [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*")):
            target = COPY / source.relative_to(ROOT)
            if not source.is_file() or source.suffix in {".so", ".c", ".pyc"}:
                continue
            if target.exists() and target.read_bytes() == source.read_bytes():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for target in [*(COPY / "engine").iterdir(), *(COPY / "server").iterdir()]:
        if target.suffix not in {".so", ".c"} and target.is_file() and not (ROOT / target.relative_to(COPY)).exists():
            target.unlink()


def environment() -> dict[str, str]:
    """What the build and the tests need in their environment."""
    return {
        **os.environ,
        "EVERWRITE_CHECKED": "1",
        "EVERWRITE_CFLAGS": FLAGS,
        "EVERWRITE_LDFLAGS": "-fsanitize=address,undefined",
    }


def library(name: str) -> str:
    """Where the compiler keeps a library."""
    found = subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return str(Path(found.stdout.strip()).resolve())


def main() -> int:
    copy_sources()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=COPY, env=environment(), check=True
    )
    arguments = sys.argv[1:]
    if not any(argument.startswith("tests") for argument in arguments):
        names = [f"tests/test_{name}.py" for name in ENGINE_TESTS]
        arguments = [*(name for name in names if (COPY / name).exists()), *arguments]
    tested = {
        **environment(),
        "LD_PRELOAD": ":".join(library(name) for name in LIBRARIES),
        # The interpreter never frees all that it holds. A child that dies by a signal is what crash tests are about.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=0",
        # With an allocator of its own, the interpreter would hide what is out of bounds.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join([str(COPY / "build" / "links"), str(COPY)]),
    }
    # Without capture: pytest would hold back the report of a process that a sanitizer ends.
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *arguments]
    findings = set()
    with subprocess.Popen(command, cwd=COPY, env=tested, stderr=subprocess.PIPE, text=True, errors="replace") as run:
        assert run.stderr is not None
        for line in run.stderr:
            sys.stderr.write(line)
            if "runtime error:" in line:
                findings.add(line.strip())
    for finding in sorted(findings):
        print(f"undefined behaviour: {finding}")
    return run.returncode or int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
