"""The linters and type checkers, as tests. Their settings are in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support import ROOT

SOURCES = ["engine", "server"]
# What stubs cannot describe: the table of C functions that a Cython module exports, what Cython adds to a class,
# and constants that a module imports for itself, which at run time look like its own.
STUBTEST_ALLOW = r"""
.*\.__pyx_capi__
.*\.__test__
.*\.__reduce_cython__
.*\.__setstate_cython__
.*\.__pyx_vtable__
everwrite(\.\w+)*\.[A-Z][A-Z0-9_]*
"""


def run(*command: str) -> None:
    """Run a tool over the repository; its output is the failure's message."""
    # cython-lint calls pycodestyle by its name: it lies beside this interpreter, which need not be on PATH.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "160"}
    outcome = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, f"{' '.join(command)}\n{outcome.stdout}{outcome.stderr}"


def test_ruff_check() -> None:
    run("ruff", "check", ".")


def test_ruff_format() -> None:
    run("ruff", "format", "--check", "--diff", ".")


def test_cython_lint() -> None:
    run("cython_lint.cython_lint", *SOURCES)


def test_mypy_strict() -> None:
    run("mypy")


def test_stubs_match_the_modules(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(STUBTEST_ALLOW.strip() + "\n", encoding="utf-8")
    # Only what has a stub: a module in Python is its own, and classes made by msgspec differ from what mypy infers.
    packages = {"engine": "everwrite", "server": "everwrite.server"}
    stubs = [
        f"{packages[stub.parent.name]}.{stub.stem}" for stub in ROOT.glob("*/*.pyi") if stub.parent.name in packages
    ]
    run(
        "mypy.stubtest",
        *(name.removesuffix(".__init__") for name in sorted(stubs)),
        "--allowlist",
        str(allowed),
        "--ignore-unused-allowlist",
        "--mypy-config-file",
        "pyproject.toml",
    )
