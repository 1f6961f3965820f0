"""What holds for every test: settings of Hypothesis, and a guard against what a test leaves behind."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import hypothesis
import psutil
import pytest

from everwrite.database import Database
from tests.stores import open_store

PR_SET_CHILD_SUBREAPER = 36

# No deadline: how fast an example runs is nothing that a test asserts.
hypothesis.settings.register_profile("everwrite", deadline=None, print_blob=True)
hypothesis.settings.load_profile("everwrite")


def leftovers() -> list[psutil.Process]:
    """Descendants of this process that still run."""
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Inherit orphans, so that the guard sees processes whose parent died."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run when a test left a process or a thread behind; the processes are ended."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    complaints = []
    for child in leftovers():
        try:
            complaints.append(f"process {child.pid}: {' '.join(child.cmdline())}")
            child.kill()
        except psutil.NoSuchProcess:
            continue
    complaints += [
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.daemon
    ]
    if complaints:
        if reporter is not None:
            reporter.write_line("")
            for complaint in complaints:
                reporter.write_line(f"left behind by a test: {complaint}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def no_new_processes() -> Iterator[None]:
    """Check that the test ends every process that it starts."""
    before = {child.pid for child in leftovers()}
    yield
    assert {child.pid for child in leftovers()} <= before


@pytest.fixture
def db() -> Iterator[Database]:
    with open_store(1) as opened:
        yield opened


@pytest.fixture
def pair() -> Iterator[tuple[Database, Database]]:
    with open_store(1) as one, open_store(2) as other:
        yield one, other
