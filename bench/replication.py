"""Replication lag between the regions of a lab, beyond the one-way delay of the link itself.

A client writes a key in one region and a client of another region reads it until it is there; both
are this process, so that one clock times them. The lag starts before the write is sent: it contains
the write itself with its fsync, the flush interval, both nodes' work, the delay proxy's own cost and
up to `POLL_SECONDS` of the reader's. It is measured on idle links and while every region writes.

Last, one region is cut off, another writes, and the time from healing the links until the first has
caught up gives the speed of replication.

    python bench/replication.py
    python bench/replication.py --load 5000 --output json
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from processes import HOST, environment, program, running_lab

from everwrite.server.lab_plan import ROUND_TRIP_MS
from tests.cluster.processes import REGIONS, Lab
from tests.support import eventually

POLL_SECONDS = 0.0002
# The reader begins to poll this long before the link's delay is over.
POLL_EARLY_SECONDS = 0.003
# A pause between two writes on idle links, well above the 10 ms in which changes are gathered.
PAUSE_SECONDS = (0.05, 0.15)
LOAD_INTERVAL_SECONDS = 0.01
LOAD_KEYS = 100_000
VALUE = b"x" * 100


class Client:
    """A Redis connection with as little between the clock and the socket as possible."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.socket.makefile("rb")

    def call(self, *arguments: bytes) -> bytes | None:
        """Send a command; its answer, None for a null. Raises RuntimeError for an error reply."""
        self.socket.sendall(encode(*arguments))
        line = self.replies.readline()
        if line[:1] == b"-" or not line:
            raise RuntimeError(f"{arguments[0].decode()}: {line.decode() or 'the connection was closed'}")
        if line[:1] != b"$":
            return line[1:-2]
        size = int(line[1:])
        return None if size < 0 else self.replies.read(size + 2)[:-2]

    def close(self) -> None:
        """Close the connection."""
        self.replies.close()
        self.socket.close()


def encode(*arguments: bytes) -> bytes:
    """A command as a RESP array."""
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%s\r\n" % (len(each), each) for each in arguments)


def write_steadily(port: int, changes_per_second: int) -> None:
    """Write random keys at a steady rate until the process is ended."""
    client = Client(port)
    burst = max(1, round(changes_per_second * LOAD_INTERVAL_SECONDS))
    due = time.monotonic()
    while True:
        commands = [encode(b"SET", b"load:%d" % random.randrange(LOAD_KEYS), VALUE) for _ in range(burst)]
        client.socket.sendall(b"".join(commands))
        for _ in commands:
            if client.replies.readline() != b"+OK\r\n":
                raise RuntimeError("a write under load failed")
        due += LOAD_INTERVAL_SECONDS
        time.sleep(max(0.0, due - time.monotonic()))


@contextmanager
def load(lab: Lab, changes_per_second: int) -> Iterator[None]:
    """Every region's clients write `changes_per_second`, each region from a process of its own."""
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=write_steadily, args=(lab.port(region), changes_per_second), daemon=True)
        for region in REGIONS
    ]
    try:
        for writer in writers:
            writer.start()
        # The first second has the writers' own start in it.
        time.sleep(2.0)
        yield
        if not all(writer.is_alive() for writer in writers):
            raise RuntimeError("a writer ended before the measurement did")
    finally:
        for writer in writers:
            writer.terminate()
            writer.join()


def one_way_seconds(source: str, target: str) -> float:
    """The delay that the lab's proxy adds in one direction."""
    return ROUND_TRIP_MS[frozenset((source, target))] / 2000


def arrival(writer: Client, reader: Client, key: bytes, delay: float) -> tuple[float, float]:
    """Seconds from before the write of a fresh key until the reader has seen it, and until it was answered."""
    began = time.perf_counter()
    writer.call(b"SET", key, VALUE)
    answered = time.perf_counter() - began
    time.sleep(max(0.0, delay - POLL_EARLY_SECONDS - answered))
    deadline = began + 30
    while reader.call(b"GET", key) is None:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{key.decode()} didn't arrive in 30 s")
        time.sleep(POLL_SECONDS)
    return time.perf_counter() - began, answered


def measure_lag(lab: Lab, condition: str, samples: int) -> list[dict[str, Any]]:
    """A row for each direction of each link; the directions take turns."""
    clients = {region: Client(lab.port(region)) for region in REGIONS}
    directions = list(itertools.permutations(REGIONS, 2))
    lags: dict[tuple[str, str], list[float]] = {direction: [] for direction in directions}
    writes: dict[tuple[str, str], list[float]] = {direction: [] for direction in directions}
    for number in range(samples):
        for source, target in directions:
            time.sleep(random.uniform(*PAUSE_SECONDS))
            delay = one_way_seconds(source, target)
            key = f"lag:{condition}:{source}:{target}:{number}".encode()
            seen, answered = arrival(clients[source], clients[target], key, delay)
            lags[source, target].append((seen - delay) * 1000)
            writes[source, target].append(answered * 1000)
    for client in clients.values():
        client.close()
    return [
        {
            "condition": condition,
            "from": source,
            "to": target,
            "one_way_ms": one_way_seconds(source, target) * 1000,
            "lag_ms": quantiles(lags[source, target]),
            "write_ms": quantiles(writes[source, target]),
            "lags_ms": lags[source, target],
        }
        for source, target in directions
    ]


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and greatest."""
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "greatest": ordered[-1],
    }


def measure_catch_up(lab: Lab, changes: int) -> dict[str, float]:
    """How fast a region that was cut off gets what it missed."""
    source, target, other = REGIONS
    reader = Client(lab.port(target))
    before = int(reader.call(b"DBSIZE") or 0)
    lab.command("cut", source, target)
    lab.command("cut", other, target)
    command = [program("redis-benchmark"), "-h", HOST, "-p", str(lab.port(source)), "-P", "16", "-q"]
    command += ["-n", str(changes), "-r", str(2**31 - 1), "SET", "catch-up:__rand_int__", VALUE.decode()]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    written = time.perf_counter() - began
    writer = Client(lab.port(source))
    wanted = int(writer.call(b"DBSIZE") or 0)
    keys = wanted - before
    began = time.perf_counter()
    lab.heal()
    healed = time.perf_counter()
    eventually(lambda: int(reader.call(b"DBSIZE") or 0) >= wanted, seconds=600, what="the region has caught up")
    ended = time.perf_counter()
    return {
        "changes": changes,
        "keys": keys,
        "write_changes_per_second": changes / written,
        "heal_seconds": healed - began,
        "catch_up_seconds": ended - began,
        "catch_up_changes_per_second": changes / (ended - began),
    }


def print_table(result: dict[str, Any]) -> None:
    """Tables in Markdown, so that they can be pasted into a page as they are."""
    print("; ".join(f"{name}: {value}" for name, value in result["environment"].items()))
    print("\nMilliseconds from before a write until it is seen, beyond the one-way delay\n")
    print("| link | one way | links | median | p99 | greatest | of it the write itself |")
    print("|---|---|---|---|---|---|---|")
    for row in result["lag"]:
        lag = row["lag_ms"]
        print(
            f"| {row['from']} to {row['to']} | {row['one_way_ms']:.0f} | {row['condition']} | {lag['median']:.1f} "
            f"| {lag['p99']:.1f} | {lag['greatest']:.1f} | {row['write_ms']['median']:.1f} |"
        )
    if result["catch_up"]:
        print("\nA region that was cut off catches up: " + json.dumps(result["catch_up"]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100, help="writes for each direction and condition")
    parser.add_argument("--load", type=int, default=2000, help="changes per second in each region, under load")
    parser.add_argument("--catch-up", type=int, default=200_000, help="changes that a region misses; 0: don't measure")
    parser.add_argument("--data", type=Path, default=None, help="folder for the lab's data (default: temporary)")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.data)))
        about = environment(folder)
        lab = stack.enter_context(running_lab(folder, wan=True))
        rows = measure_lag(lab, "idle", arguments.samples)
        with load(lab, arguments.load):
            rows += measure_lag(lab, f"{arguments.load} changes/s a region", arguments.samples)
        catch_up = measure_catch_up(lab, arguments.catch_up) if arguments.catch_up else None
    about["load average after"] = f"{os.getloadavg()[0]:.2f}"
    result = {"environment": about, "lag": rows, "catch_up": catch_up}
    if arguments.output == "json":
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print_table(result)


if __name__ == "__main__":
    main()
