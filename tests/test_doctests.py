"""The examples in docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ROOT

FOLDERS = {"engine": "everwrite", "server": "everwrite.server", "server/pyclient": "everwrite.client"}
# Their examples talk to a server, which tests/test_client.py gives them.
ELSEWHERE = {"everwrite.client.asynchronous", "everwrite.client.blocking"}
MODULES = [
    name
    for folder, package in FOLDERS.items()
    for path in sorted((ROOT / folder).iterdir())
    if path.suffix in (".py", ".pyx") and not path.stem.startswith("__") and ">>>" in path.read_text(encoding="utf-8")
    if (name := f"{package}.{path.stem}") not in ELSEWHERE
]


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    """Of Cython modules, too: what is built in has no source, but docstrings."""
    finder = doctest.DocTestFinder(recurse=False, exclude_empty=True)
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    functions = [
        each for _, each in inspect.getmembers(module, inspect.isroutine) if each.__module__ == module.__name__
    ]
    members = [member for each in classes for member in vars(each).values() if inspect.isroutine(member)]
    found = []
    for each in [module, *classes, *functions, *members]:
        if inspect.getdoc(each):
            found += finder.find(each, getattr(each, "__qualname__", module.__name__), module=False)
    return [each for each in found if each.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = examples_of(importlib.import_module(name))
    assert examples, f"{name} has examples that nobody would run"
    runner = doctest.DocTestRunner()
    for each in examples:
        runner.run(each)
    assert runner.failures == 0
    assert runner.tries > 0
