"""How commands find a lab and what they tell each other, without a lab."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from everwrite.errors import LabError, LockedError, NotRunningError
from everwrite.server.lab_control import (
    LINE_BYTES_MAX,
    Answer,
    Request,
    answer_one,
    call,
    hold,
    holder,
    publish,
    refuse_second,
)

TOKEN = "right"


def exchange(sent: bytes, *, handled: list[Request] | None = None, error: Exception | None = None) -> bytes:
    """What `answer_one` answers to some bytes."""

    async def handle(request: Request) -> Answer:
        if handled is not None:
            handled.append(request)
        if error is not None:
            raise error
        return Answer("done")

    async def main() -> bytes:
        client, server = trio.testing.memory_stream_pair()
        received = bytearray()

        async def serve() -> None:
            await answer_one(server, TOKEN, handle)
            await server.aclose()

        async def send() -> None:
            await client.send_all(sent)
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            nursery.start_soon(send)
            async for data in client:
                received.extend(data)
        return bytes(received)

    return trio.run(main)


def test_a_request_is_handled_and_answered() -> None:
    handled: list[Request] = []
    answer = exchange(b'{"token":"right","command":"cut","arguments":["a","b"]}\n', handled=handled)
    assert json.loads(answer) == {"message": "done"}
    assert handled == [Request(TOKEN, "cut", ["a", "b"])]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b'{"token":"wrong","command":"kill","arguments":["apac"]}\n', "the token is not that of this lab"),
        (b'{"token":"right\\u00e9","command":"kill"}\n', "the token is not that of this lab"),
        (b'{"command":"kill"}\n', "not a request"),
        (b'{"token":"right","command":7}\n', "not a request"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a request"),
        (b"\xff\xfe\n", "not a request"),
    ],
)
def test_what_is_no_request_of_ours_is_refused_and_does_nothing(sent: bytes, error: str) -> None:
    handled: list[Request] = []
    assert error in json.loads(exchange(sent, handled=handled))["error"]
    assert handled == []


@pytest.mark.parametrize("sent", [b"", b'{"token":"right"', b"x" * (LINE_BYTES_MAX + 1)])
def test_an_unfinished_or_endless_request_gets_no_answer(sent: bytes) -> None:
    handled: list[Request] = []
    assert exchange(sent, handled=handled) == b""
    assert handled == []


def test_a_refusal_of_the_lab_is_its_answer() -> None:
    answer = exchange(b'{"token":"right","command":"kill"}\n', error=LabError("there is no node apac/9"))
    assert json.loads(answer) == {"error": "there is no node apac/9"}


def test_the_lock_says_whether_a_lab_runs_and_who(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    program = (
        "import sys, pathlib\nfrom everwrite.server.lab_control import hold\n"
        "with hold(pathlib.Path(sys.argv[1])):\n print(flush=True)\n input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert holder(tmp_path) == other.pid
        for refuses in (lambda: refuse_second(tmp_path), lambda: hold(tmp_path).__enter__()):
            with pytest.raises(LockedError, match=rf"a lab runs here already, process {other.pid}"):
                refuses()
        other.kill()
    assert holder(tmp_path) is None, "the lock ends with its holder, however that ends"
    refuse_second(tmp_path)


def test_the_address_is_for_its_owner_alone_and_goes_with_the_lab(tmp_path: Path) -> None:
    with publish(tmp_path, 1234) as token:
        path = tmp_path / "lab.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert json.loads(path.read_text())["port"] == 1234
        assert json.loads(path.read_text())["token"] == token
        assert len(token) >= 32
    assert list(tmp_path.iterdir()) == []


@contextmanager
def lab_that_answers(folder: Path, answer: bytes | None) -> Iterator[list[bytes]]:
    """Holds the folder's lock and answers one request with these bytes; with None it never answers."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, hold(folder):

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(4096))
                if answer is None:
                    connection.recv(1)  # until the caller gives up
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with publish(folder, listener.getsockname()[1]):
            yield received
        thread.join()


def test_a_call_sends_the_token_and_returns_the_answer(tmp_path: Path) -> None:
    with lab_that_answers(tmp_path, b'{"message":"apac-0 killed"}\n') as received:
        token = json.loads((tmp_path / "lab.json").read_text())["token"]
        assert call(tmp_path, "kill", ["apac"], timeout_seconds=60).message == "apac-0 killed"
        assert json.loads(received[0]) == {"token": token, "command": "kill", "arguments": ["apac"]}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b'{"error":"there is no region atlantis"}\n', "there is no region atlantis"),
        (b"", "ended before it answered"),
        (b'{"message":"cut', "ended before it answered"),
    ],
)
def test_a_call_that_fails_says_why(tmp_path: Path, answer: bytes, text: str) -> None:
    with lab_that_answers(tmp_path, answer), pytest.raises(LabError, match=text):
        call(tmp_path, "cut", ["us-east", "atlantis"], timeout_seconds=60)


def test_a_call_does_not_wait_for_ever(tmp_path: Path) -> None:
    with lab_that_answers(tmp_path, None), pytest.raises(LabError, match=r"didn't answer within .* may still do it"):
        call(tmp_path, "start", ["apac"], timeout_seconds=0.05)


def test_without_a_lab_a_call_names_the_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotRunningError, match=str(folder)):
            call(folder, "status", [], timeout_seconds=60)


def test_what_a_killed_lab_left_behind_is_no_lab(tmp_path: Path) -> None:
    with hold(tmp_path):
        pass
    (tmp_path / "lab.json").write_text('{"pid": 1, "port": 1, "token": "t"}')
    with pytest.raises(NotRunningError):
        call(tmp_path, "status", [], timeout_seconds=60)


def test_a_lab_that_has_no_address_yet_is_just_starting(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(LabError, match="just starting or stopping"):
        call(tmp_path, "status", [], timeout_seconds=60)
