"""Build the Cython modules.

The folders `engine/` and `server/` are the import packages `everwrite` and
`everwrite.server`. Cython resolves `cimport` by import name, so a tree of
symbolic links under `build/links` shows the sources under those names; mypy
reads the same tree.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
LINKS = Path("build") / "links"
SOURCES = {"engine": "everwrite", "server": "everwrite/server"}
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,
    "wraparound": False,
    "boundscheck": bool(os.environ.get("EVERWRITE_CHECKED")),
    "initializedcheck": bool(os.environ.get("EVERWRITE_CHECKED")),
    "autotestdict": False,
    "binding": True,
}


def link_tree() -> None:
    """Show every source file under its import name, below `build/links`."""
    for folder, package in SOURCES.items():
        target = ROOT / LINKS / package
        target.mkdir(parents=True, exist_ok=True)
        for old in target.iterdir():
            if old.is_symlink() and not old.exists():
                old.unlink()
        for source in (ROOT / folder).iterdir():
            link = target / source.name
            if source.is_file() and not link.is_symlink():
                link.symlink_to(os.path.relpath(source, target))


def extensions() -> list[Extension]:
    """One extension a `.pyx`, named as it is imported."""
    compile_args = os.environ.get("EVERWRITE_CFLAGS", "-O2 -g0 -Wno-unreachable-code").split()
    link_args = os.environ.get("EVERWRITE_LDFLAGS", "").split()
    return [
        Extension(
            f"{package.replace('/', '.')}.{source.stem}",
            [str(LINKS / package / source.name)],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
        for folder, package in SOURCES.items()
        for source in sorted((ROOT / folder).glob("*.pyx"))
    ]


os.chdir(ROOT)
link_tree()
setup(
    ext_modules=cythonize(
        extensions(),
        include_path=[str(LINKS)],
        compiler_directives=DIRECTIVES,
        nthreads=int(os.environ.get("EVERWRITE_BUILD_JOBS", "0")),
    )
)
