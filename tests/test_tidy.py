"""The rules of the repository that no linter knows."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import pytest

import everwrite
from tests.support import ROOT, lines_of

LINES_MAX = 600
# Longer files, each with the reason why it is one idea all the same.
LONG_FILES: dict[str, str] = {}

TEXT_SUFFIXES = {"", ".cfg", ".in", ".md", ".pxd", ".py", ".pyi", ".pyx", ".toml", ".txt", ".typed", ".yaml", ".yml"}
CODE_SUFFIXES = {".pxd", ".py", ".pyi", ".pyx"}
# Spelled in two parts, so that this file passes its own rules.
MACHINE_PATHS = re.compile(
    "|".join(["/wo" + "rk/", "/ro" + "ot/", "/ho" + r"me/\w", "/Use" + r"rs/\w", r"\.pye" + "nv"])
)
REGISTRY_HOSTS = re.compile(
    "|".join([r"pypi\.o" + "rg", r"pythonho" + r"sted\.org", r"deb\.deb" + r"ian\.org", r"registry\.np" + "mjs"])
)
SOURCE_FOLDER_IMPORT = re.compile(r"^\s*(?:from|import|cimport)\s+(?:engine|server)\b", re.MULTILINE)
MARKDOWN_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)


def repository_files() -> list[Path]:
    """Every file that is, or is about to be, in version control; without git, every file outside of build products."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        paths = [ROOT / line for line in listing.stdout.splitlines()]
    else:
        built = {"build", "dist", ".venv"}
        paths = [path for path in ROOT.rglob("*") if not built & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


FILES = repository_files()
TEXTS = [path for path in FILES if path.suffix in TEXT_SUFFIXES]
CODE = [path for path in FILES if path.suffix in CODE_SUFFIXES]
PAGES = [path for path in FILES if path.suffix == ".md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def matches(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """`file:line: text` for every line on which the pattern is found."""
    return [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(lines_of(path), 1)
        if pattern.search(line)
    ]


def test_finds_the_repository() -> None:
    names = {name_of(path) for path in FILES}
    assert {"engine/__init__.py", "server/__init__.py", "tests/test_tidy.py", "README.md"} <= names


def test_no_paths_of_a_machine() -> None:
    assert not matches(MACHINE_PATHS, TEXTS)


def test_no_registry_hosts() -> None:
    assert not matches(REGISTRY_HOSTS, TEXTS)


def test_packages_are_imported_by_their_import_names() -> None:
    # From the root, `import engine` works by accident and loads a second copy of every module.
    assert not matches(SOURCE_FOLDER_IMPORT, CODE)


def test_files_hold_one_idea() -> None:
    long = {name_of(path) for path in CODE if len(lines_of(path)) > LINES_MAX}
    assert long <= LONG_FILES.keys(), "split it, or name the reason in LONG_FILES"
    assert LONG_FILES.keys() <= long, "no longer that long: take it out of LONG_FILES"


def swallowed(path: Path) -> Iterator[str]:
    """The places that catch everything, neither raise it again nor say in a comment why not."""
    lines = lines_of(path)
    for number, line in enumerate(lines):
        if re.match(r"\s*except( BaseException.*)?:", line):
            deeper = line[: len(line) - len(line.lstrip())] + " "
            block = takewhile(re.compile(rf"{deeper}|\s*$").match, lines[number + 1 :])
            if not any(re.match(r"\s*(raise$|#)", each) for each in block):
                yield f"{name_of(path)}:{number + 1}: {line.strip()}"


def test_what_catches_everything_raises_it_again_or_says_why_not() -> None:
    sources = [path for path in CODE if name_of(path).startswith(("engine/", "server/"))]
    assert not [place for path in sources for place in swallowed(path)]


def test_text_is_plain() -> None:
    faults = []
    for path in TEXTS:
        text = path.read_bytes()
        if b"\r" in text or b"\t" in text:
            faults.append(f"{name_of(path)}: has tabs or carriage returns")
        if text and not text.endswith(b"\n"):
            faults.append(f"{name_of(path)}: doesn't end with a line end")
        faults += [
            f"{name_of(path)}:{number}: not ASCII"
            for number, line in enumerate(text.split(b"\n"), 1)
            if not line.isascii()
        ]
    assert not faults


def test_licence_is_there() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence


def anchors_of(page: Path) -> set[str]:
    """The fragments that headings of a page answer to, as GitHub makes them."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_the_pages_resolve() -> None:
    broken = []
    for page in PAGES:
        for link in MARKDOWN_LINK.findall(page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, fragment = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            if not path.exists() or (fragment and path.suffix == ".md" and fragment not in anchors_of(path)):
                broken.append(f"{name_of(page)}: {link}")
    assert not broken


def modules() -> Iterator[ModuleType]:
    yield everwrite
    for info in pkgutil.walk_packages(everwrite.__path__, "everwrite."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def undocumented(module: ModuleType) -> Iterator[str]:
    """Public names that are defined in the module and have no docstring."""
    if not inspect.getdoc(module):
        yield module.__name__
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if (inspect.isclass(value) or callable(value)) and not getattr(value, "__doc__", None):
            yield f"{module.__name__}.{name}"


def test_public_names_have_docstrings() -> None:
    assert not [name for module in modules() for name in undocumented(module)]


def test_methods_of_the_embedded_interface_have_docstrings() -> None:
    missing = [
        f"{exported}.{name}"
        for exported in everwrite.__all__
        if inspect.isclass(getattr(everwrite, exported))
        for name, value in vars(getattr(everwrite, exported)).items()
        if not name.startswith("_") and (callable(value) or inspect.isdatadescriptor(value)) and not value.__doc__
    ]
    assert not missing


@pytest.mark.parametrize("name", ["installs", "tests"])
def test_readme_opens_with_its_two_commands(name: str) -> None:
    """The continuous integration script runs the same lines: it takes them from the README by their markers."""
    blocks = re.findall(
        r"<!-- (\w+) -->\n```sh\n(.*?)\n```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    commands = dict(blocks)
    assert list(commands)[:2] == ["installs", "tests"]
    assert "\n" not in commands[name]
