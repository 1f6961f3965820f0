"""Build the Cython modules.

The folders `engine/`, `server/` and `server/pyclient/` are the import packages `everwrite`,
`everwrite.server` and `everwrite.client`. Cython resolves `cimport` by import name, so a tree of
symbolic links under `build/links` shows the sources under those names. mypy
reads the same tree, and after `build_ext --inplace` it can be imported from:
`PYTHONPATH=build/links`.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LINKS = Path("build") / "links"
SOURCES = {"engine": "everwrite", "server": "everwrite/server", "server/pyclient": "everwrite/client"}
CHECKED = bool(os.environ.get("EVERWRITE_CHECKED"))
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,
    "wraparound": False,
    "boundscheck": CHECKED,
    "initializedcheck": CHECKED,
    "autotestdict": False,
    "binding": True,
}


def link_tree() -> None:
    """Show every file of the packages under its import name, and no file that is gone."""
    for folder, package in SOURCES.items():
        target = ROOT / LINKS / package
        target.mkdir(parents=True, exist_ok=True)
        for link in target.iterdir():
            if link.is_symlink() and not link.exists():
                link.unlink()
        for source in (ROOT / folder).iterdir():
            link = target / source.name
            # Generated C files are left out: Cython writes its own beside the links.
            if source.is_file() and source.suffix != ".c" and not link.is_symlink():
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


class BuildAndLink(build_ext):
    """Builds the extensions on all cores, then links what an in-place build wrote beside the sources."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def run(self) -> None:
        super().run()
        link_tree()


os.chdir(ROOT)
link_tree()
setup(
    cmdclass={"build_ext": BuildAndLink},
    ext_modules=cythonize(
        extensions(),
        include_path=[str(LINKS)],
        compiler_directives=DIRECTIVES,
        nthreads=int(os.environ.get("EVERWRITE_BUILD_JOBS", "0")),
    ),
)
