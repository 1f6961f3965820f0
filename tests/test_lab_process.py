"""Processes of a lab: they end with the lab, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
import trio

from everwrite.server.lab_process import get_json
from tests.support import free_port

PARENT = """
import os, subprocess, sys
child = "import os, sys; from everwrite.server.lab_process import end_with_parent\\n"
child += "end_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); input()"
pid = os.getpid() if sys.argv[1] == "right" else 1
subprocess.Popen([sys.executable, "-c", child, str(pid)], start_new_session=True).wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_node_ends_with_the_lab(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, "right"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert os.getsid(child.pid) == child.pid
        parent.send_signal(number)
        parent.wait()
        child.wait(60)  # this process inherits the orphan, and reaps it


def test_a_node_whose_lab_ended_before_it_began_ends_by_itself() -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", PARENT, "wrong"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True
    )
    assert outcome.stdout == b""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, {})),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n", (503, [1, 2])),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", None),
        (b"+PONG\r\n", None),
        (b"", None),
    ],
)
def test_only_a_whole_json_answer_counts(answer: bytes, expected: object) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async def main() -> object:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            found = await get_json(listeners[0].socket.getsockname()[1], "/", timeout_seconds=60)
            nursery.cancel_scope.cancel()
        return found

    assert trio.run(main) == expected


def test_nothing_listens() -> None:
    assert trio.run(get_json, free_port(), "/") is None
