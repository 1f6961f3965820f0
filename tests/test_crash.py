"""Killed writers: what was acknowledged is there, what was under way is there or not, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from everwrite.kinds import KIND_NAMES
from tests.support import ROOT


def killed_writers(folder: Path, *arguments: str) -> tuple[int, dict[str, int], str]:
    """Exit status, counts and output of the command, in a process of its own: it forks, and has no threads."""
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--folder", str(folder), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.stderr == ""
    counts = {name: int(count) for name, count in re.findall(r"([a-z ]+): (\d+)", outcome.stdout.splitlines()[-1])}
    return outcome.returncode, {name.strip(): count for name, count in counts.items()}, outcome.stdout


@pytest.mark.parametrize("writers", [120, pytest.param(2000, marks=pytest.mark.slow)])
def test_killed_writers_lose_nothing(writers: int, tmp_path: Path) -> None:
    status, counts, output = killed_writers(tmp_path, "--rounds", str(writers), "--seed", str(writers))
    assert status == 0, output
    assert "lost" not in counts
    assert counts["writers"] == writers
    # What this is for took place: kills of every sort, and enough writing for tables.
    assert counts["killed"] > writers / 2
    ends = {f"ended by {end}" for end in ("acknowledged", "moment", "opening", "closing", "call")}
    assert ends <= counts.keys()
    assert counts["tables"] > writers / 2
    assert all(counts[f"checks of a {kind}"] > writers / 5 for kind in KIND_NAMES[1:])
    assert counts["acknowledged"] > 10 * writers
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_lies_is_noticed(tmp_path: Path) -> None:
    status, counts, output = killed_writers(tmp_path, "--rounds", "48", "--seed", "3", "--canary")
    assert status == 1
    assert counts["lost"] > 0
    assert "repeat: python -m tests.crash --seed 3 --store" in output
