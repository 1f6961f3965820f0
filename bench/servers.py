"""Requests per second and CPU per request beside redis-server, by redis-benchmark.

Both servers run at the same durability, on this machine, each alone in its turn: the rounds are
interleaved (redis, everwrite, everwrite, redis, ...), so that a change in the machine's speed meets
both alike. Each measurement takes about `--seconds`; the tables show medians over the rounds, the
ratio of medians, and the range of the rounds' own ratios.

    python bench/servers.py
    python bench/servers.py --durability always --rounds 5 --output json
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from processes import HOST, Server, cpu_seconds, environment, everwrite, program, redis_server

CLIENTS = 50
VALUE_BYTES = 100
# Each group has servers of its own, so that none pays for what the others have left behind.
GROUPS = (("SET", "GET"), ("INCR",), ("SADD",))
PIPELINES = (1, 16)
# The options that give both servers the same promise: `os`, that a write survives the process at
# most; `always`, that it is on the device before it is answered.
DURABILITIES = {
    "os": (["--save", "", "--appendonly", "no"], ["--durability=os"]),
    "always": (["--save", "", "--appendonly", "yes", "--appendfsync", "always"], ["--durability=always"]),
}
CALIBRATION_REQUESTS = 5_000


@dataclass(frozen=True)
class Sample:
    """One run of redis-benchmark."""

    requests_per_second: float
    cpu_us_per_request: float
    latency_p50_ms: float
    latency_p99_ms: float


@dataclass(frozen=True)
class Cell:
    """What is compared: one command at one pipeline depth and durability."""

    durability: str
    command: str
    pipeline: int


def run_benchmark(server: Server, command: str, pipeline: int, requests: int, keys: int) -> Sample:
    """One run; raises RuntimeError when redis-benchmark fails or an answer is an error."""
    cpu_before = cpu_seconds(server.pid)
    outcome = subprocess.run(
        [
            program("redis-benchmark"),
            *("-h", HOST, "-p", str(server.port), "-c", str(CLIENTS), "-d", str(VALUE_BYTES), "-r", str(keys)),
            *("-P", str(pipeline), "-n", str(requests), "-t", command.lower(), "--csv"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    cpu = cpu_seconds(server.pid) - cpu_before
    rows = list(csv.DictReader(line for line in outcome.stdout.splitlines() if line.startswith('"')))
    if outcome.returncode or len(rows) != 1 or "rror" in outcome.stdout + outcome.stderr:
        raise RuntimeError(f"redis-benchmark -t {command} on {server.name}: {outcome.stdout}{outcome.stderr}")
    return Sample(
        requests_per_second=float(rows[0]["rps"]),
        cpu_us_per_request=cpu / requests * 1e6,
        latency_p50_ms=float(rows[0]["p50_latency_ms"]),
        latency_p99_ms=float(rows[0]["p99_latency_ms"]),
    )


def measure(
    servers: list[Server], durability: str, commands: Sequence[str], arguments: argparse.Namespace
) -> dict[Cell, dict[str, list[Sample]]]:
    """The cells of these commands at one durability, in interleaved rounds."""
    keys = arguments.keys
    cells = [Cell(durability, command, pipeline) for pipeline in arguments.pipelines for command in commands]
    samples: dict[Cell, dict[str, list[Sample]]] = {cell: {server.name: [] for server in servers} for cell in cells}
    if "GET" in commands:
        # With as many requests as keys GET finds about two thirds of its keys, in both servers alike.
        for server in servers:
            run_benchmark(server, "SET", 16, keys, keys)
    requests: dict[tuple[Cell, str], int] = {}
    for cell in cells:
        for server in servers:
            trial = run_benchmark(server, cell.command, cell.pipeline, CALIBRATION_REQUESTS, keys)
            wanted = int(trial.requests_per_second * arguments.seconds)
            requests[cell, server.name] = max(CALIBRATION_REQUESTS, wanted)
    for number in range(arguments.rounds):
        for cell in cells:
            for server in servers if number % 2 == 0 else reversed(servers):
                sample = run_benchmark(server, cell.command, cell.pipeline, requests[cell, server.name], keys)
                samples[cell][server.name].append(sample)
                progress = f"{durability} -P {cell.pipeline} {cell.command} round {number + 1}: {server.name}"
                print(f"{progress:<50} {sample.requests_per_second:>12,.0f}/s", file=sys.stderr)
    return samples


def measure_group(durability: str, commands: Sequence[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The table rows of these commands, on servers started for them."""
    redis_options, everwrite_options = DURABILITIES[durability]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.data)))
        servers = []
        for name, start, options in [
            ("redis", redis_server, redis_options),
            ("everwrite", everwrite, everwrite_options + arguments.everwrite_options),
        ]:
            if name in arguments.servers:
                (folder / name).mkdir()
                servers.append(stack.enter_context(start(folder / name, *options)))
        measured = measure(servers, durability, commands, arguments)
        return [summarise(cell, samples) for cell, samples in measured.items()]


def summarise(cell: Cell, samples: dict[str, list[Sample]]) -> dict[str, Any]:
    """The figures of a table row."""
    medians = {
        name: {field: statistics.median(getattr(run, field) for run in runs) for field in Sample.__annotations__}
        for name, runs in samples.items()
    }
    row: dict[str, Any] = {**asdict(cell), "median": medians}
    if {"redis", "everwrite"} <= samples.keys():
        ratios = [
            ours.requests_per_second / theirs.requests_per_second
            for ours, theirs in zip(samples["everwrite"], samples["redis"], strict=True)
        ]
        row["ratio"] = medians["everwrite"]["requests_per_second"] / medians["redis"]["requests_per_second"]
        row["ratio_range"] = [min(ratios), max(ratios)]
    row["samples"] = {name: [asdict(run) for run in runs] for name, runs in samples.items()}
    return row


def print_table(rows: list[dict[str, Any]], about: dict[str, str]) -> None:
    """A table in Markdown, so that it can be pasted into a page as it is."""
    print("; ".join(f"{name}: {value}" for name, value in about.items()))
    print(f"redis-benchmark -c {CLIENTS} -d {VALUE_BYTES}; medians\n")
    print("| durability | -P | command | redis/s | everwrite/s | ratio (range) | CPU us redis | CPU us everwrite |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        figures = [row["median"].get(name) for name in ("redis", "everwrite")]
        speeds = ["" if each is None else f"{each['requests_per_second']:,.0f}" for each in figures]
        cpus = ["" if each is None else f"{each['cpu_us_per_request']:.2f}" for each in figures]
        ratio = ""
        if "ratio" in row:
            ratio = f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})"
        cells = [row["durability"], str(row["pipeline"]), row["command"], *speeds, ratio, *cpus]
        print(f"| {' | '.join(cells)} |")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--durability", choices=[*DURABILITIES, "both"], default="both")
    parser.add_argument("--commands", type=lambda text: text.upper().split(","), default=[*itertools.chain(*GROUPS)])
    parser.add_argument("--pipelines", type=lambda text: [int(part) for part in text.split(",")], default=PIPELINES)
    parser.add_argument("--servers", type=lambda text: text.split(","), default=["redis", "everwrite"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement, about")
    parser.add_argument("--keys", type=int, default=1_000_000, help="how many different keys are used")
    parser.add_argument("--data", type=Path, default=None, help="folder for the servers' data (default: temporary)")
    parser.add_argument("--everwrite-options", type=str.split, default=[], help="more options for everwrite serve")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    rows: list[dict[str, Any]] = []
    about = environment(arguments.data or Path(tempfile.gettempdir())) | {"keys": f"{arguments.keys:,}"}
    durabilities = list(DURABILITIES) if arguments.durability == "both" else [arguments.durability]
    for durability in durabilities:
        for group in GROUPS:
            if commands := [command for command in group if command in arguments.commands]:
                rows += measure_group(durability, commands, arguments)
    rows.sort(key=lambda row: (durabilities.index(row["durability"]), row["pipeline"]))
    if arguments.output == "json":
        json.dump({"environment": about, "rows": rows}, sys.stdout, indent=2)
        print()
    else:
        print_table(rows, about)


if __name__ == "__main__":
    main()
