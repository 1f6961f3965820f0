"""What an installed Everwrite must do: embed, serve, lab. Needs nothing but the installed package.

    python wheels/smoke.py

Run it with the interpreter that the wheel is installed for. It exits with status 0 when
every part works, and with a traceback and status 1 otherwise. Everything stays in a
temporary folder and on the loopback interface.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import everwrite

COMMAND = str(Path(sysconfig.get_path("scripts")) / "everwrite")
HOST = "127.0.0.1"
DEADLINE_SECONDS = 60.0
# Below the ports that Linux hands out by itself.
BASE_PORTS = range(20_000, 32_000, 10)
LAB_PORTS = [100 * region + port for region in range(3) for port in (1, 2, 3)]


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds; fail after a minute."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {DEADLINE_SECONDS:g} s: {what}")
        time.sleep(0.05)


def free(port: int) -> bool:
    """Whether nothing listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_base(offsets: list[int]) -> int:
    """A base port of which all offsets are free."""
    return next(
        base for base in random.sample(BASE_PORTS, len(BASE_PORTS)) if all(free(base + offset) for offset in offsets)
    )


def ready(port: int) -> bool:
    """Whether the node's HTTP side says that it is ready."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Redis:
    """Just enough of the Redis protocol: commands out, one-line and bulk replies in."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=30)
        self.replies = self.socket.makefile("rb")

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, *_: object) -> None:
        self.replies.close()
        self.socket.close()

    def command(self, *words: str) -> bytes | None:
        """Send one command; return its simple, integer or bulk reply."""
        parts = [f"*{len(words)}\r\n"] + [f"${len(word)}\r\n{word}\r\n" for word in words]
        self.socket.sendall("".join(parts).encode())
        line = self.replies.readline().rstrip(b"\r\n")
        if line[:1] == b"$":
            size = int(line[1:])
            return None if size < 0 else self.replies.read(size + 2)[:-2]
        assert line[:1] in b"+:_", line
        return None if line[:1] == b"_" else line[1:]


@contextlib.contextmanager
def running(*arguments: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in the background; its output is shown when something fails."""
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    except BaseException:
        print(log.read_text(encoding="utf-8", errors="replace"))
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def embed(folder: Path) -> None:
    """A store keeps what it is given, and two stores merge."""
    with everwrite.open(folder / "one") as one:
        one[b"key"] = b"value"
        one.counter(b"visits").increment(3)
    with everwrite.open(folder / "one") as one, everwrite.open(folder / "two") as two:
        assert one[b"key"] == b"value"
        two.counter(b"visits").increment(4)
        for source, target in ((one, two), (two, one)):
            for batch in source.changes(target.applied):
                target.apply(batch)
        assert two[b"key"] == b"value"
        assert one.counter(b"visits").value == two.counter(b"visits").value == 7


def serve(folder: Path) -> None:
    """A node answers Redis clients, drains when told to stop, and has everything when started again."""
    base = free_base([1, 2, 3])
    ports = [f"--{kind}-port={base + offset}" for kind, offset in (("redis", 1), ("http", 2), ("peer", 3))]
    with running("serve", "--data=data", *ports, folder=folder) as node:
        eventually(lambda: node.poll() is not None or ready(base + 2), "the node is ready")
        with Redis(base + 1) as client:
            assert client.command("PING") == b"PONG"
            assert client.command("SET", "key", "value") == b"OK"
            assert client.command("GET", "key") == b"value"
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=DEADLINE_SECONDS) == 0
    with running("serve", "--data=data", *ports, folder=folder) as node:
        eventually(lambda: node.poll() is not None or ready(base + 2), "the node is ready again")
        with Redis(base + 1) as client:
            assert client.command("GET", "key") == b"value"


def lab(folder: Path) -> None:
    """What one region writes, another reads."""
    base = free_base(LAB_PORTS)
    with running("lab", "--data=lab", f"--base-port={base}", "--no-wan", folder=folder) as process:
        eventually(
            lambda: process.poll() is not None or all(ready(base + 100 * region + 2) for region in range(3)),
            "all three regions are ready",
        )
        with Redis(base + 1) as here, Redis(base + 201) as there:
            assert here.command("SET", "key", "value") == b"OK"
            eventually(lambda: there.command("GET", "key") == b"value", "the write reaches the third region")
        status = subprocess.run(
            [COMMAND, "lab", "status", "--data=lab", "--output=json"], cwd=folder, capture_output=True, check=True
        )
        assert json.loads(status.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=DEADLINE_SECONDS) == 0


def main() -> None:
    """Run the three parts, each in a folder of its own."""
    os.environ["NO_COLOR"] = "1"
    for part in (embed, serve, lab):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))
        print(f"{part.__name__}: ok", flush=True)


if __name__ == "__main__":
    main()
