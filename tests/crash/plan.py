"""What one writer is to do, and when it dies: drawn from a seed before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

# How a writer ends. The killer waits for so many acknowledgements, a moment, or the beginning of opening or
# closing; "call" and "finish" are the writer's own doing.
ENDS = ("acknowledged", "acknowledged", "moment", "opening", "closing", "call", "call", "finish")


@dataclass(frozen=True, slots=True)
class Plan:
    """One life of a store.

    `end`: one of `ENDS`. `count`: acknowledgements to wait for, or the storage call before which it ends itself.
    `spin_microseconds`: how long the killer waits besides. `limit`: operations per thread at most.
    `forgetful`: it acknowledges some operations without doing them, which the killer must notice.
    """

    seed: str
    end: str
    count: int
    spin_microseconds: int
    threads: int
    limit: int
    options: dict[str, Any]
    forgetful: bool = False

    def source(self, thread: int) -> Random:
        """Where the operations of a thread come from."""
        return Random(f"{self.seed}/{thread}")

    def __str__(self) -> str:
        return (
            f"{self.seed}: {self.threads} threads, ends by {self.end} after {self.count} and "
            f"{self.spin_microseconds} microseconds, {self.options}"
        )


def make_plan(seed: str, options: dict[str, Any], *, forgetful: bool = False) -> Plan:
    """The plan that belongs to a seed. `options` go with the store for all its lives."""
    random = Random(seed)
    end = random.choice(ENDS)
    if end in ("opening", "closing"):
        spin = int(random.expovariate(1 / 3000))
    elif end == "moment":
        spin = int(random.expovariate(1 / 15000))
    else:
        spin = random.choice((0, 0, int(random.expovariate(1 / 300))))
    return Plan(
        seed=seed,
        end=end,
        count=int(random.expovariate(1 / 40)) if end != "call" else int(random.expovariate(1 / 150)),
        spin_microseconds=min(spin, 100_000),
        threads=random.choice((1, 1, 1, 3)),
        limit=random.choice((5, 50)) if end in ("closing", "finish") else 500,
        options={
            **options,
            "durability": random.choice(("always", "interval", "os", "os")),
            "background": random.random() < 0.75,
        },
        forgetful=forgetful,
    )


def make_options(seed: str) -> dict[str, Any]:
    """Sizes so small that flushes, compactions and new segments happen all the time."""
    random = Random(seed)
    return {
        "memtable_bytes": random.choice((1 << 14, 1 << 15, 1 << 17)),
        "segment_bytes": random.choice((1 << 12, 1 << 14, 1 << 20)),
        "log_keep_bytes": random.choice((0, 1 << 15, 1 << 28)),
        "block_cache_bytes": random.choice((0, 1 << 16)),
    }
