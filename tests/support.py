"""Helpers that more than one test module uses."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.02

T = TypeVar("T")


def eventually(condition: Callable[[], T], *, seconds: float = 30.0, what: str = "") -> T:
    """Call `condition` until it returns something true, and return that.

    `seconds` is how long to go on before failing: it bounds a hang and is no statement about speed.
    """
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"still not true after {seconds:g} s: {what or condition.__name__}; last: {result!r}")
        time.sleep(POLL_SECONDS)


async def eventually_async(condition: Callable[[], T], *, seconds: float = 30.0, what: str = "") -> T:
    """`eventually` for tests that run inside trio: other tasks run between the calls."""
    deadline = trio.current_time() + seconds
    while True:
        result = condition()
        if result:
            return result
        if trio.current_time() > deadline:
            raise AssertionError(f"still not true after {seconds:g} s: {what or condition.__name__}; last: {result!r}")
        await trio.sleep(POLL_SECONDS)


def free_port(*, host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def lines_of(path: Path) -> list[str]:
    """The text file's lines, without their ends."""
    return path.read_text(encoding="utf-8").splitlines()
