"""How a command in another terminal talks to the lab that runs on a folder.

The lab writes `lab.json` into its folder (mode 0600): its process id, a port on loopback, and a random token
without which the port does nothing. A connection carries one request and one answer, each a line of JSON.
While a lab runs it holds a lock on `lab.lock`; the lock, not the presence of a file, says whether one runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import os
import secrets
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Set
from pathlib import Path
from typing import Protocol

import msgspec

from everwrite.errors import ConfigError, EverwriteError, LabError, LockedError, NotRunningError

__all__ = [
    "Address",
    "Answer",
    "LabStatus",
    "LinkStatus",
    "NodeStatus",
    "Request",
    "answer_one",
    "call",
    "hold",
    "holder",
    "publish",
    "refuse_second",
    "ways",
]

LINE_BYTES_MAX = 1 << 20
LOCK_FILE = "lab.lock"
ADDRESS_FILE = "lab.json"


class Address(msgspec.Struct, frozen=True):
    """The content of `lab.json`."""

    pid: int
    port: int
    token: str


class Request(msgspec.Struct, frozen=True):
    """One command: its name and its arguments as typed."""

    token: str
    command: str
    arguments: list[str] = []


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the lab sees it. `state`: starting, ready, not ready, killed, down, stopping or stopped."""

    region: str
    node: str
    state: str
    reasons: list[str]
    pid: int | None
    exit_status: int | None
    redis_port: int
    http_port: int
    peer_port: int
    log: str


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """The way of changes from one node to another.

    `lag_seconds` is the age of the oldest change that `target` hasn't acknowledged, `lag_changes` how many of them
    there are; None when `source` doesn't answer or doesn't know. `standby`: changes get to `target` through another
    node of its region.
    """

    source: str
    target: str
    round_trip_ms: int
    cut: bool
    connected: bool
    standby: bool = False
    lag_seconds: float | None
    lag_changes: int | None


class LabStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `everwrite lab status --output json` prints."""

    pid: int
    data: str
    wan: bool
    nodes: list[NodeStatus]
    links: list[LinkStatus]


def ways(status: LabStatus) -> list[LinkStatus]:
    """The ways of changes between nodes; in a lab with several nodes a region, between regions and within each.

    Changes of a node reach another region when they reach any node there, and its own region when they reach all
    others; the lag of a region is that of its node that is furthest behind. Nodes that don't run don't count.
    """
    regions = {node.node: node.region for node in status.nodes}
    if len(regions) == len(set(regions.values())):
        return status.links
    running = {node.node for node in status.nodes if node.pid is not None}
    grouped: dict[tuple[str, str], list[LinkStatus]] = {}
    for link in status.links:
        grouped.setdefault((regions[link.source], regions[link.target]), []).append(link)
    return [_way(*ends, links, running) for ends, links in grouped.items()]


def _way(source: str, target: str, links: list[LinkStatus], running: Set[str]) -> LinkStatus:
    """What the links of the nodes of a region to those of another one, or to each other, come to."""
    within = source == target
    used: dict[str, list[LinkStatus]] = {}
    for link in links:
        if {link.source, link.target} <= running:
            used.setdefault(link.source, []).append(link)
    reach, furthest = (all, max) if within else (any, min)
    worst = max(
        (
            furthest(connected, key=_lag)
            for of_node in used.values()
            if (connected := [link for link in of_node if link.connected])
        ),
        key=_lag,
        default=None,
    )
    return LinkStatus(
        source=source,
        target=target,
        round_trip_ms=links[0].round_trip_ms,
        cut=all(link.cut for link in links),
        connected=bool(used) and all(reach(link.connected for link in of_node) for of_node in used.values()),
        lag_seconds=worst.lag_seconds if worst else None,
        lag_changes=worst.lag_changes if worst else None,
    )


def _lag(link: LinkStatus) -> float:
    return link.lag_seconds or 0.0


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a request: `error` is empty when it was done; `changed` is False when it was so already."""

    message: str = ""
    error: str = ""
    changed: bool = True
    status: LabStatus | None = None


# ---- the lab's side ----


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of the lab's folder, which must exist. Raises `LockedError` when a lab runs there."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(_runs_already(folder, _pid_in(descriptor))) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> int | None:
    """The process id of the lab that runs on the folder; None when none does."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid_in(descriptor)
    finally:
        os.close(descriptor)
    return None


def _pid_in(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.strip().isdigit() else 0


def refuse_second(folder: Path) -> None:
    """Raises `LockedError` when a lab runs on the folder."""
    pid = holder(folder)
    if pid is not None:
        raise LockedError(_runs_already(folder, pid))


def _runs_already(folder: Path, pid: int) -> str:
    return f"{folder}: a lab runs here already, process {pid}: stop it with Ctrl-C, or name another folder with --data"


@contextlib.contextmanager
def publish(folder: Path, port: int) -> Iterator[str]:
    """Write `lab.json`, and remove it in the end. Yields the token."""
    token = secrets.token_urlsafe(32)
    path = folder / ADDRESS_FILE
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{ADDRESS_FILE}.")  # mode 0600
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(msgspec.json.encode(Address(os.getpid(), port, token)) + b"\n")
    Path(temporary).replace(path)
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


class Stream(Protocol):
    """What `answer_one` needs of a connection; `trio.SocketStream` has it."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive at least one byte, or none at the end."""

    async def send_all(self, data: bytes) -> None:
        """Send all of it."""


async def answer_one(stream: Stream, token: str, handle: Callable[[Request], Awaitable[Answer]]) -> None:
    """Read one request, have it handled, and answer. What is no request, or has a wrong token, is refused."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = await stream.receive_some(1 << 16)
        line += data
        if not data or len(line) > LINE_BYTES_MAX:
            return
    try:
        request = msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        answer = Answer(error=f"not a request: {error}")
    else:
        if not hmac.compare_digest(request.token.encode(), token.encode()):
            answer = Answer(error="the token is not that of this lab")
        else:
            try:
                answer = await handle(request)
            except EverwriteError as error:
                answer = Answer(error=str(error))
    await stream.send_all(msgspec.json.encode(answer) + b"\n")


# ---- the other terminal's side ----


def call(folder: Path, command: str, arguments: list[str], *, timeout_seconds: float) -> Answer:
    """Have the lab of the folder do something; returns when it is done.

    Raises `NotRunningError` when no lab runs there, `LabError` with what the lab refused, and `LabError` when the
    outcome is unknown: it didn't answer in time or ended meanwhile.
    """
    address = _find(folder)
    request = msgspec.json.encode(Request(address.token, command, arguments)) + b"\n"
    line = bytearray()
    try:
        with socket.create_connection(("127.0.0.1", address.port), timeout=timeout_seconds) as connection:
            connection.sendall(request)
            while data := connection.recv(1 << 16):
                line += data
    except TimeoutError as error:
        raise LabError(
            f"{folder}: the lab, process {address.pid}, didn't answer within {timeout_seconds:g} s: it may still do it"
        ) from error
    except OSError as error:
        raise LabError(f"{folder}: the connection to the lab, process {address.pid}, broke: {error}") from error
    if not line.endswith(b"\n"):
        raise LabError(f"{folder}: the lab, process {address.pid}, ended before it answered")
    answer = msgspec.json.decode(line, type=Answer)
    if answer.error:
        raise LabError(answer.error)
    return answer


def _find(folder: Path) -> Address:
    pid = holder(folder)
    if pid is None:
        raise NotRunningError(
            f"{folder}: no lab runs here: start one with `everwrite lab`, or name its folder with --data"
        )
    path = folder / ADDRESS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Address)
    except FileNotFoundError as error:
        raise LabError(f"{folder}: the lab, process {pid}, is just starting or stopping: try again") from error
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
