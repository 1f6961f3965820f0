"""A node that has no engine below it: a dictionary with the store's interface, and fixed figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everwrite.errors import StorageError, WrongTypeError
from everwrite.server.consistency import Level
from everwrite.server.http_adapter import HttpStatistics


class FakeStore:
    """Registers in a dictionary; keys that start with `set:` hold a set."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.ttls: dict[bytes, float | None] = {}
        self.failure: Exception | None = None
        self.last_timestamp = 0

    def __getitem__(self, key: bytes) -> bytes:
        self._check(key)
        return self.values[key]

    def delete(self, key: bytes) -> bool:
        self._check(b"")
        self.last_timestamp += key in self.values
        return self.values.pop(key, None) is not None

    def kind(self, key: bytes) -> str:
        return "set" if key.startswith(b"set:") else "string" if key in self.values else "none"

    def _check(self, key: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        if key.startswith(b"set:"):
            raise WrongTypeError(f"the key {key!r} holds a set")

    def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> None:
        self._check(b"")
        self.values[key] = value
        self.ttls[key] = ttl
        self.last_timestamp += 1

    def why(self, key: bytes) -> dict[str, Any]:
        origin, timestamp = 0xABCDEF0123450001, (1_700_000_000_000 << 16) | 5
        dot = {"origin": origin, "timestamp": timestamp, "physical_ms": 1_700_000_000_000, "logical": 5}
        return {
            "key": key,
            "type": self.kind(key),
            "value": b"\xff" * (5000 if key == b"long" else 1),
            "visible": dot,
            "context": {origin: timestamp, 2: 3},
            "rule": "the only write",
            "lost": [dict(dot, origin=2)],
            "expires_at_ms": None,
            "substates": {},
        }

    def statistics(self) -> Mapping[str, int]:
        return {
            "keys": 7,
            "log_bytes": 4096,
            "log_end": 5000,
            "syncs": 11,
            "sync_nanoseconds": 1_500_000_000,
            "memtable_bytes": 300,
            "tables": 2,
            "table_bytes": 900,
            "local_changes": 20,
            "applied_changes": 30,
            "pulls": 1,
            "conflicts_lww": 3,
            "conflicts_type": 0,
            "conflicts_add_remove": 4,
            "something_new": 1,
        }


class FakeCoordination:
    """Notes what replicas are waited for, with what the store holds then; raises what it is told to."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.events: list[tuple[object, ...]] = []
        self.recovering = False
        self.refusals = {"read_timeout": 2}
        self.before_raises: Exception | None = None
        self.after_raises: Exception | None = None

    async def before(self, keys: Sequence[bytes], level: Level | None = None) -> None:
        self.events.append(("before", list(keys), level, dict(self.store.values)))
        if self.before_raises is not None:
            raise self.before_raises

    async def after(self, timestamp: int, level: Level | None = None) -> None:
        self.events.append(("after", timestamp, level, dict(self.store.values)))
        if self.after_raises is not None:
            raise self.after_raises


class FakeFrontend:
    """Figures of a frontend that has served a few commands."""

    def statistics(self) -> Mapping[str, Any]:
        return {
            "connected_clients": 3,
            "blocked_clients": 1,
            "connections_received": 5,
            "bytes_received": 100,
            "bytes_sent": 200,
            "keyspace_hits": 6,
            "commands": {"get": 8, "set": 2},
            "commands_asked": 9,
            "clients_held": 2,
            "write_timeouts": 1,
        }

    def latency(self) -> tuple[Sequence[float], Mapping[str, Sequence[int]]]:
        return [0.001, 0.01], {"read": [5, 2, 1], "write": [0, 2, 0]}

    def latency_sums(self) -> Mapping[str, float]:
        return {"read": 0.5, "write": 0.25}


def fake_peer(**changes: Any) -> dict[str, Any]:
    """A connected peer, as `Node.status()` shows it."""
    return {
        "region": "eu-west",
        "node": "eu-west-0",
        "sending": True,
        "receiving": True,
        "resyncing": False,
        "lag_seconds": 0.25,
        "lag_changes": 12,
        "acked": (1_700_000_000_500 << 16) | 3,
        "receive_lag_seconds": 0.1,
        "receive_lag_changes": 0,
        "alive": True,
        "phi": 0.5,
        "unacked_bytes": 100,
        "connections": 2,
        "errors": {"clock_drift": 1},
        "sent_bytes": 1000,
        "sent_batches": 10,
        "received_bytes": 2000,
        "received_pulls": 1,
    } | changes


class FakeHttp:
    """Figures of an HTTP server."""

    def statistics(self) -> HttpStatistics:
        return HttpStatistics(connections=2, connections_refused=1, responses={200: 5, 404: 1})


class FakeNode:
    """A node around the two; `written` counts what replication was told."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.coordination = FakeCoordination(self.store)
        self.frontend = FakeFrontend()
        self.http = FakeHttp()
        self.reasons: list[str] = []
        self.peers = [fake_peer()]
        self.written = 0

    def ready_reasons(self) -> list[str]:
        return self.reasons

    def notify_write(self) -> None:
        self.written += 1

    def origin_names(self) -> Mapping[int, tuple[str, str]]:
        return {0xABCDEF0123450001: ("us-east", "us-east-0")}

    def status(self) -> dict[str, Any]:
        return {
            "region": "us-east",
            "node": "us-east-0",
            "state": "ready",
            "uptime_seconds": 1.5,
            "peers": self.peers,
            "replication": {
                "tls_failures": 6,
                "handshakes_refused": 0,
                "outbox_bytes": 10,
                "waits": 0,
                "region_replicas": 5,
                "region_alive": 4,
                "recovering": 0,
                "asks": 12,
                "repairs": 3,
            },
        }


DISK_ERROR = StorageError("the disk said no")
