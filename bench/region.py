"""What a region of three nodes costs beside one node: requests per second, latency, CPU; a failed node; catching up.

One node answers alone (level ONE); the three answer at LOCAL_QUORUM, all requests to one of them. Everything runs
on this machine, which the three nodes share: what the third of a machine each would do isn't shown. The rounds are
interleaved; the tables show medians over the rounds and the ratio to the one node of the same rounds.

    python bench/region.py
    python bench/region.py --durability always --rounds 5 --catch-up 1000000 --output json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from processes import Server, cpu_seconds, environment, running_node, running_region
from servers import CALIBRATION_REQUESTS, run_benchmark

from tests.cluster.processes import Node
from tests.support import eventually

COMMANDS = ("SET", "GET", "INCR")
CATCH_UP_SECONDS_MAX = 3600.0


@dataclass(frozen=True)
class Sample:
    """One run; CPU in microseconds a request, of the node asked and of the others together."""

    requests_per_second: float
    latency_p50_ms: float
    latency_p99_ms: float
    cpu_us_asked: float
    cpu_us_others: float


def sample(asked: Node, others: list[Node], command: str, pipeline: int, requests: int, keys: int) -> Sample:
    """Run redis-benchmark against `asked`."""
    before = [cpu_seconds(node.process.pid) for node in others]
    server = Server("everwrite", asked.redis_port, asked.process.pid)
    run = run_benchmark(server, command, pipeline, requests, keys)
    spent = sum(cpu_seconds(node.process.pid) - was for node, was in zip(others, before, strict=True))
    return Sample(
        run.requests_per_second, run.latency_p50_ms, run.latency_p99_ms, run.cpu_us_per_request, spent / requests * 1e6
    )


def measure(setups: dict[str, list[Node]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each command and pipeline depth: the first node of each setup is asked, in interleaved rounds."""
    rows = []
    for pipeline in arguments.pipelines:
        for command in COMMANDS:
            samples: dict[str, list[Sample]] = {name: [] for name in setups}
            requests = {}
            for name, (asked, *others) in setups.items():
                trial = sample(asked, others, command, pipeline, CALIBRATION_REQUESTS, arguments.keys)
                requests[name] = max(CALIBRATION_REQUESTS, int(trial.requests_per_second * arguments.seconds))
            for number in range(arguments.rounds):
                for name in setups if number % 2 == 0 else reversed(setups):
                    asked, *others = setups[name]
                    run = sample(asked, others, command, pipeline, requests[name], arguments.keys)
                    samples[name].append(run)
                    print(f"-P {pipeline} {command} {name}: {run.requests_per_second:,.0f}/s", file=sys.stderr)
            medians = {
                name: {field: statistics.median(getattr(run, field) for run in runs) for field in asdict(runs[0])}
                for name, runs in samples.items()
            }
            one = medians["one"]["requests_per_second"]
            ratios = {name: figures["requests_per_second"] / one for name, figures in medians.items()}
            rows.append({"pipeline": pipeline, "command": command, "median": medians, "ratio": ratios})
    return rows


def catch_up(nodes: list[Node], changes: int) -> float:
    """Seconds from the start of a node that missed so many changes until it holds them all."""
    asked, _, away = nodes
    away.end()
    with asked.client() as client:
        for start in range(0, changes, 1000):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, min(start + 1000, changes)):
                pipeline.set(b"missed %d" % number, b"%0100d" % number)
            pipeline.execute()
        expected = client.dbsize()
    began = time.monotonic()
    away.start()
    with away.client() as client:
        eventually(lambda: client.dbsize() >= expected, seconds=CATCH_UP_SECONDS_MAX, what="the node has caught up")
    return time.monotonic() - began


def run(durability: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures at one durability."""
    options = [f"--durability={durability}"]
    with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
        (Path(folder) / "one").mkdir()
        (Path(folder) / "region").mkdir()
        with (
            running_node(Path(folder) / "one", *options) as one,
            running_region(Path(folder) / "region", 3, *options) as region,
        ):
            rows = measure({"one": [one], "three": region.nodes}, arguments)
            region.nodes[2].end()
            failed = measure({"one": [one], "two of three": region.nodes[:2]}, arguments)
            region.nodes[2].start()
            seconds = catch_up(region.nodes, arguments.catch_up)
    return {
        "durability": durability, "rows": rows, "one node failed": failed,
        "catch_up": {"changes": arguments.catch_up, "seconds": seconds},
    }  # fmt: skip


def print_table(rows: list[dict[str, Any]], name: str) -> None:
    """A table in Markdown."""
    print(f"| -P | command | one/s | {name}/s | ratio | p50 ms | p99 ms | p99 ms, one | CPU us asked | CPU us others |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        one, other = row["median"]["one"], row["median"][name]
        cells = [
            str(row["pipeline"]), row["command"], f"{one['requests_per_second']:,.0f}",
            f"{other['requests_per_second']:,.0f}", f"{row['ratio'][name]:.2f}", f"{other['latency_p50_ms']:.2f}",
            f"{other['latency_p99_ms']:.2f}", f"{one['latency_p99_ms']:.2f}", f"{other['cpu_us_asked']:.1f}",
            f"{other['cpu_us_others']:.1f}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--durability", choices=["os", "always", "both"], default="both")
    parser.add_argument("--pipelines", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement, about")
    parser.add_argument("--keys", type=int, default=100_000, help="how many different keys are used")
    parser.add_argument("--catch-up", type=int, default=100_000, help="changes that a node misses")
    parser.add_argument("--data", type=Path, default=None, help="folder for the data (default: temporary)")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    about = environment(arguments.data or Path(tempfile.gettempdir()))
    results = [
        run(each, arguments)
        for each in (["os", "always"] if arguments.durability == "both" else [arguments.durability])
    ]
    if arguments.output == "json":
        json.dump({"environment": about, "results": results}, sys.stdout, indent=2)
        print()
        return
    print("; ".join(f"{name}: {value}" for name, value in about.items()))
    for result in results:
        print(f"\ndurability {result['durability']}\n")
        print_table(result["rows"], "three")
        print("\none of the three ended\n")
        print_table(result["one node failed"], "two of three")
        caught = result["catch_up"]
        rate = caught["changes"] / caught["seconds"]
        print(f"\n{caught['changes']:,} missed changes were caught up in {caught['seconds']:.1f} s ({rate:,.0f}/s)")


if __name__ == "__main__":
    main()
