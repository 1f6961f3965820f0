"""The servers that are measured: started for one measurement on free ports, and ended by their pids."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The runners are scripts in this folder; what starts everwrite's processes is shared with the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cluster.processes import HOST, running_lab, running_node, running_region
from tests.support import eventually, free_port

__all__ = [
    "HOST",
    "Server",
    "cpu_seconds",
    "environment",
    "everwrite",
    "program",
    "redis_server",
    "running_lab",
    "running_node",
    "running_region",
]


@dataclass(frozen=True)
class Server:
    """A running server that speaks the Redis protocol."""

    name: str
    port: int
    pid: int


def program(name: str) -> str:
    """The path of a program that a runner needs; ends the runner when it is missing."""
    path = shutil.which(name)
    if path is None:
        sys.exit(f"{name} is not installed (Debian: redis-server, redis-tools)")
    return path


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[Server]:
    """redis-server with its data in `folder`."""
    port = free_port()
    command = [program("redis-server"), "--bind", HOST, "--port", str(port), "--dir", str(folder), *options]
    with (folder / "redis.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            eventually(lambda: _answers(port), what="redis-server answers")
            yield Server("redis", port, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def everwrite(folder: Path, *options: str) -> Iterator[Server]:
    """`everwrite serve` with its data in `folder`."""
    with running_node(folder, *options) as node:
        yield Server("everwrite", node.redis_port, node.process.pid)


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, that the process has used; the kernel counts it in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(folder: Path) -> dict[str, str]:
    """What a reader needs to judge the figures."""
    processors = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    mount = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(folder)], capture_output=True, text=True, check=False
    )
    redis_version = subprocess.run([program("redis-server"), "--version"], capture_output=True, text=True, check=True)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": f"{len(processors)} x {processors[0] if processors else platform.processor()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "redis": redis_version.stdout.split()[2].removeprefix("v="),
        "file system": mount.stdout.strip(),
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }
