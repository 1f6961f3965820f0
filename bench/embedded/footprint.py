"""What an embedded store takes: latencies of puts while it compacts, memory, disk space, bytes written, reopening.

    python bench/embedded/footprint.py --keys 1000000
    python bench/embedded/footprint.py --keys 10000000 --engines everwrite,rocksdb,leveldb --output json

Each store is loaded by a process of its own with single puts of 16 random bytes and 100 random bytes (durability
`os`), looked at, killed with SIGKILL, and reopened by another process, which then compacts it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.embedded.engines import ENGINES, Engine

ENTRY = 116
CHUNK = 10_000
SETTLE = 2.0  # seconds for background work to begin or end


def memory(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def written() -> int:
    """Bytes that this process has caused to be written to storage."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


def load(engine: Engine, keys: int) -> dict[str, Any]:
    """Put `keys` pairs one by one; the time of each is taken."""
    rng = random.Random(1)
    times = array("d", bytes(8 * keys))
    clock = time.perf_counter
    put = engine.put
    base = memory("RssAnon")
    wrote = written()
    began = clock()
    for start in range(0, keys, CHUNK):
        pairs = [[(rng.randbytes(16), rng.randbytes(100))] for _ in range(min(CHUNK, keys - start))]
        for i, pair in enumerate(pairs, start):
            before = clock()
            put(pair)
            times[i] = clock() - before
    seconds = clock() - began
    time.sleep(SETTLE)
    ordered = sorted(times)

    def quantile(q: float) -> float:
        return round(ordered[min(keys - 1, math.ceil(q * keys))] * 1e6, 1)

    return {
        "load_seconds": round(seconds, 1),
        "put_us_p50": quantile(0.5),
        "put_us_p99": quantile(0.99),
        "put_us_p999": quantile(0.999),
        "put_us_max": round(ordered[-1] * 1e6),
        "anonymous_mb": round((memory("RssAnon") - base - times.itemsize * keys * 2) / 1e6),
        "resident_mb": round(memory("VmRSS") / 1e6),
        "write_amplification": round((written() - wrote) / (keys * ENTRY), 2),
        "disk_mb": round(engine.disk_bytes() / 1e6),
    }


def reopen(kind: type[Engine], folder: Path, keys: int) -> dict[str, Any]:
    """Open what the killed process left behind, count it, compact it."""
    began = time.perf_counter()
    engine = kind(folder)
    seconds = time.perf_counter() - began
    found = engine.scan() if kind.keeps_order else keys
    if found != keys:
        raise SystemExit(f"{kind.name}: {found} keys of {keys} after the kill")
    began = time.perf_counter()
    engine.compact()
    compacted = time.perf_counter() - began
    engine.close()
    disk = engine.disk_bytes()
    return {
        "reopen_ms": round(seconds * 1000, 1),
        "compact_seconds": round(compacted, 1),
        "compacted_mb": round(disk / 1e6),
        "space_amplification": round(disk / (keys * ENTRY), 2),
    }


def child(step: str, kind: type[Engine], folder: Path, keys: int) -> None:
    """One step in this process; prints its figures. The loading process then waits for its end."""
    if step == "load":
        print(json.dumps(load(kind(folder), keys)), flush=True)
        signal.pause()
    else:
        print(json.dumps(reopen(kind, folder, keys)), flush=True)


def measure(name: str, keys: int, folder: Path) -> dict[str, Any]:
    """Both steps of one store."""
    figures: dict[str, Any] = {"engine": name, "keys": keys}
    for step in ("load", "reopen"):
        command = [sys.executable, __file__, "--step", step, "--engines", name, "--keys", str(keys), "--folder", folder]
        with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if step == "load":
                process.send_signal(signal.SIGKILL)
        if not line:
            raise SystemExit(f"{name}: the process that should {step} it ended with status {process.returncode}")
        figures |= json.loads(line)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--engines", default="everwrite,lmdb,rocksdb,leveldb,sqlite")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    parser.add_argument("--folder", type=Path, help="where the stores go (default: the temporary folder)")
    parser.add_argument("--step", choices=["load", "reopen"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.engines.split(",")
    if options.step:
        child(options.step, ENGINES[names[0]], options.folder, options.keys)
        return
    results = []
    for name in names:
        if package := ENGINES[name].missing():
            print(f"{name} is left out: it needs `pip install {package}`", file=sys.stderr)
            continue
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            results.append(measure(name, options.keys, folder / "store"))
        finally:
            shutil.rmtree(folder)
    if options.output == "json":
        print(json.dumps({"cpus": os.cpu_count(), "results": results}, indent=2))
        return
    for figure in results[0]:
        print(f"{figure:22}" + "".join(f"{result[figure]!s:>12}" for result in results))


if __name__ == "__main__":
    main()
