"""Everwrite's processes, for tests: started on free ports in a temporary folder, and always ended by their pids."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from everwrite.server import certs
from tests.support import eventually

HOST = "127.0.0.1"
REGIONS = ("us-east", "eu-west", "apac")
PAIRS = (("us-east", "eu-west"), ("eu-west", "apac"), ("us-east", "apac"))
# The command `everwrite`, wherever its script lies.
EVERWRITE = [sys.executable, "-P", "-m", "everwrite"]
# Below the ports that Linux hands out by itself.
BASE_PORTS = range(20_000, 32_000, 10)
LAB_OFFSETS = [100 * region + 10 * node + port for region in range(3) for node in range(3) for port in (1, 2, 3)]
NODE_OFFSETS = [1, 2, 3]
# Bounds of a hang, far above what anything takes.
READY_SECONDS = 60.0
DRAIN_SECONDS = 30.0


def environment() -> dict[str, str]:
    """This process's environment, for one that runs in another folder and prints to a file."""
    changed = {"NO_COLOR": "1", "COLUMNS": "120"}
    if paths := os.environ.get("PYTHONPATH"):
        changed["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths.split(os.pathsep))
    return os.environ | changed


def is_free(port: int) -> bool:
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
    candidates = random.sample(BASE_PORTS, len(BASE_PORTS))
    return next(base for base in candidates if all(is_free(base + offset) for offset in offsets))


def program(name: str) -> str:
    """The path of a program that the test needs from the system.

    A test on a machine without it is skipped; the continuous integration, which installs it, fails instead.
    """
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed (Debian: redis-tools, redis-server)"
        if os.environ.get("EVERWRITE_TEST_REQUIRE_PROGRAMS"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def everwrite(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    outcome = subprocess.run(
        [*EVERWRITE, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
    )
    if check:
        assert outcome.returncode == 0, f"everwrite {' '.join(arguments)}\n{outcome.stdout}{outcome.stderr}"
    return outcome


def http_get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 when nothing answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def client(port: int, **options: Any) -> redis.Redis:
    """A redis-py client that never sends anything twice."""
    return redis.Redis(HOST, port, retry=Retry(NoBackoff(), 0), socket_timeout=READY_SECONDS, **options)


class Background:
    """One command running in the background, with its output in a file."""

    def __init__(self, arguments: list[str], folder: Path, name: str) -> None:
        self.log = folder / f"{name}.log"
        self._output = self.log.open("ab")
        self.process = subprocess.Popen(
            [*EVERWRITE, *arguments],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def output(self) -> str:
        """All that it and its children printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def descendants(self) -> list[psutil.Process]:
        """The processes that it started and that run."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def wait_ready(self, ports: list[int]) -> None:
        """Wait until /readyz answers 200 on all the HTTP ports."""

        def all_ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with status {self.process.returncode}\n{self.output()}")
            return all(http_get(port, "/readyz")[0] == 200 for port in ports)

        try:
            eventually(all_ready, seconds=READY_SECONDS, what="all nodes are ready")
        except AssertionError as error:
            answers = [http_get(port, "/readyz") for port in ports]
            raise AssertionError(f"{error}\n{answers}\n{self.output()}") from None

    def stop(self, number: int) -> int:
        """Signal it, wait for its end, and return its exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs {DRAIN_SECONDS:g} s after signal {number}\n{self.output()}") from None

    def end(self) -> None:
        """End it and what it started, whatever state they are in."""
        processes = self.descendants()
        self.process.kill()
        self.process.wait()
        for process in processes:
            try:
                process.kill()
                process.wait(DRAIN_SECONDS)
            except psutil.NoSuchProcess:
                continue
        self._output.close()


class Node:
    """`everwrite serve` on free ports, other than those of `avoid`; without peers unless `options` name some."""

    def __init__(self, folder: Path, *options: str, avoid: Iterable[Node] = ()) -> None:
        taken = {node.redis_port for node in avoid}
        base = next(base for base in iter(lambda: free_base(NODE_OFFSETS), None) if base + 1 not in taken)
        self.folder = folder
        self.redis_port, self.http_port, self.peer_port = (base + offset for offset in NODE_OFFSETS)
        self.options = [*options]
        self._background: Background | None = None

    @property
    def background(self) -> Background:
        assert self._background is not None, "the node was not started"
        return self._background

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.background.process.pid)

    def start(self) -> Self:
        self.end()
        ports = [
            f"--redis-port={self.redis_port}",
            f"--http-port={self.http_port}",
            f"--peer-port={self.peer_port}",
        ]
        self._background = Background(["serve", "--data=data", *ports, *self.options], self.folder, "node")
        self._background.wait_ready([self.http_port])
        return self

    def client(self, **options: Any) -> redis.Redis:
        return client(self.redis_port, **options)

    def end(self) -> None:
        if self._background is not None:
            self._background.end()
            self._background = None


class Region:
    """Several `everwrite serve` that are the nodes of one region, each a peer of all others, on free ports.

    Each has a folder of its own below `folder`; what it prints is in `<folder>/local-<n>/node.log`.
    """

    def __init__(self, folder: Path, nodes: int = 3, *options: str) -> None:
        self.nodes: list[Node] = []
        authority = folder / "certs"
        certs.init_authority(authority)
        names = [f"local-{number}" for number in range(nodes)]
        for name in names:
            (folder / name).mkdir()
            files = certs.make_node(authority, region="local", node=name)
            keys = [f"--certs-ca={files.ca}", f"--certs-cert={files.cert}", f"--certs-key={files.key}"]
            self.nodes.append(Node(folder / name, f"--node={name}", *keys, *options, avoid=self.nodes))
        for node in self.nodes:
            node.options += [
                f"--peer=local/{name}={HOST}:{peer.peer_port}"
                for name, peer in zip(names, self.nodes, strict=True)
                if peer is not node
            ]

    def start(self) -> Self:
        """Start all nodes and wait until each counts on all of them for a quorum."""
        for node in self.nodes:
            node.start()
        self.wait_whole()
        return self

    def statuses(self) -> list[dict[str, Any]]:
        """What each node says of itself."""
        return [json.loads(http_get(node.http_port, "/v1/status")[1]) for node in self.nodes]

    def wait_connected(self) -> None:
        """Wait until each node has both connections with every other."""

        def connected() -> bool:
            return all(peer["connected"] for status in self.statuses() for peer in status["peers"])

        eventually(connected, seconds=READY_SECONDS, what="all nodes are connected")

    def wait_whole(self) -> None:
        """Wait until each node counts on all of them for a quorum."""

        def whole() -> bool:
            figures = [status["replication"] for status in self.statuses()]
            return all(each["region_alive"] == len(self.nodes) and not each["recovering"] for each in figures)

        eventually(whole, seconds=READY_SECONDS, what="all nodes take part")

    def end(self) -> None:
        """End all its processes."""
        for node in self.nodes:
            node.end()


class Lab:
    """`everwrite lab` on free ports: three regions, with one node each unless told otherwise."""

    def __init__(self, folder: Path, *, wan: bool = False, nodes: int = 1, base_port: int | None = None) -> None:
        self.folder = folder
        self.data = folder / "lab"
        self.wan = wan
        self.nodes = nodes
        self.base_port = free_base(LAB_OFFSETS) if base_port is None else base_port
        self._background: Background | None = None
        self._clients: list[redis.Redis] = []

    @property
    def background(self) -> Background:
        assert self._background is not None, "the lab was not started"
        return self._background

    def port(self, region: str, kind: str = "redis", node: int = 0) -> int:
        """A port of a node of the region."""
        offset = {"redis": 1, "http": 2, "peer": 3}[kind]
        return self.base_port + 100 * REGIONS.index(region) + 10 * node + offset

    def start(self) -> Self:
        """Start it and wait until all nodes are ready."""
        self.end()
        arguments = ["lab", f"--data={self.data}", f"--base-port={self.base_port}", f"--nodes={self.nodes}"]
        self._background = Background(arguments + ([] if self.wan else ["--no-wan"]), self.folder, "lab")
        self._background.wait_ready(
            [self.port(region, "http", node) for region in REGIONS for node in range(self.nodes)]
        )
        return self

    def stop(self) -> None:
        """Ctrl-C; it must drain and end with status 0."""
        self._close_clients()
        nodes = self.background.descendants()
        status = self.background.stop(signal.SIGINT)
        assert status == 0, self.background.output()
        assert [process for process in nodes if process.is_running()] == [], "nodes outlive the lab"

    def end(self) -> None:
        """End all its processes."""
        self._close_clients()
        if self._background is not None:
            self._background.end()
            self._background = None

    def _close_clients(self) -> None:
        for each in self._clients:
            each.close()
        self._clients.clear()

    def client(self, region: str, node: int = 0) -> redis.Redis:
        """A client of one node, closed with the lab."""
        self._clients.append(client(self.port(region, node=node)))
        return self._clients[-1]

    def clients(self) -> list[redis.Redis]:
        """One client a region, in the order of REGIONS."""
        return [self.client(region) for region in REGIONS]

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`everwrite lab ...` from another terminal."""
        return everwrite("lab", *arguments, f"--data={self.data}", cwd=self.folder, check=check)

    def status(self) -> Any:
        """What `everwrite lab status` says, decoded."""
        return json.loads(self.command("status", "--output=json").stdout)

    def cut_all(self) -> None:
        """Cut every link: each region is alone."""
        for one, other in PAIRS:
            self.command("cut", one, other)

    def heal(self) -> None:
        """Restore every link."""
        self.command("heal")


@contextmanager
def running_node(folder: Path, *options: str) -> Iterator[Node]:
    """A ready node that is ended with the block."""
    node = Node(folder, *options)
    try:
        yield node.start()
    finally:
        node.end()


@contextmanager
def running_region(folder: Path, nodes: int = 3, *options: str) -> Iterator[Region]:
    """The connected nodes of one region, ended with the block."""
    region = Region(folder, nodes, *options)
    try:
        yield region.start()
    finally:
        region.end()


@contextmanager
def running_lab(folder: Path, *, wan: bool = False, nodes: int = 1) -> Iterator[Lab]:
    """A ready lab that is ended with the block."""
    lab = Lab(folder, wan=wan, nodes=nodes)
    try:
        yield lab.start()
    finally:
        lab.end()
