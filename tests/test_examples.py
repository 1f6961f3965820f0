"""The Python examples of the pages run as they stand."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.serving import served
from tests.support import ROOT

EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}:{number}")
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    for number, code in enumerate(EXAMPLE.findall(page.read_text(encoding="utf-8")), 1)
]


# Where the pages say that a node is: the port of a node that was started by hand, and one of the lab's.
SERVER = re.compile(r"127\.0\.0\.1:(?:7379|7401)")


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        if SERVER.search(code):
            host = stack.enter_context(served(tmp_path / "server"))
            code = SERVER.sub(f"127.0.0.1:{host.port}", code)
        exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_the_readme_has_an_example() -> None:
    assert any(str(example.id).startswith("README.md") for example in EXAMPLES)
