"""A node's figures in the Prometheus text format, computed when they are scraped.

Nothing is counted here: the tables name figures that the parts of a node count for their own
use. A figure that a part doesn't give (as a store that measures no syncs) is left out of the
answer, never shown as 0. `docs/metrics.md` lists the same names; a test holds the two together.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from everwrite.server.consistency import Level
from everwrite.server.http_adapter import HttpStatistics
from everwrite.server.version import software_version

__all__ = ["CONTENT_TYPE", "FAMILIES", "Family", "MeasuredNode", "render"]

CONTENT_TYPE = CONTENT_TYPE_LATEST


class MeasuredStore(Protocol):
    """The part of `everwrite.Store` that is measured."""

    def statistics(self) -> Mapping[str, int]: ...


class MeasuredFrontend(Protocol):
    """The part of the Redis frontend that is measured."""

    def statistics(self) -> Mapping[str, Any]: ...
    def latency(self) -> tuple[Sequence[float], Mapping[str, Sequence[int]]]: ...
    def latency_sums(self) -> Mapping[str, float]: ...


class MeasuredHttp(Protocol):
    """The part of the HTTP server that is measured."""

    def statistics(self) -> HttpStatistics: ...


class MeasuredCoordination(Protocol):
    """The part of the coordination of levels that is measured."""

    @property
    def refusals(self) -> Mapping[str, int]: ...


class MeasuredNode(Protocol):
    """The part of a node that is measured."""

    @property
    def store(self) -> MeasuredStore: ...
    @property
    def frontend(self) -> MeasuredFrontend: ...
    @property
    def http(self) -> MeasuredHttp: ...
    @property
    def coordination(self) -> MeasuredCoordination: ...
    def status(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without `_total`, its type, what it says, and its labels."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()

    def metric(self) -> Metric:
        """An empty metric to add samples to."""
        return Metric(self.name, self.help, self.kind)

    @property
    def sample(self) -> str:
        """The name that the samples have."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"everwrite_{name}", "gauge", text, labels)


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"everwrite_{name}", "counter", text, labels)


_PEER = ("region", "node")

BUILD = _gauge("build_info", "Always 1; the labels say what runs.", "version", "python", "region", "node")
UPTIME = _gauge("uptime_seconds", "Seconds since the node started.")
COMMANDS = _counter("commands", "Redis commands executed, by command.", "command")
LATENCY = Family(
    "everwrite_command_duration_seconds",
    "histogram",
    "Time from a command's readiness on the socket to its answer's sending, by family of commands.",
    ("family",),
)
CONFLICTS = _counter(
    "conflicts_resolved",
    "Concurrent updates that were merged, by kind: lww (a register's older write lost), type (written as two types), "
    "add_remove (an element was added and removed).",
    "kind",
)
PEER_ERRORS = _counter(
    "replication_errors",
    "Connections refused or broken off, by peer and cause (clock_drift, wrong_cluster, illegal_message and others).",
    *_PEER,
    "cause",
)

# What `Store.statistics()` calls a figure.
STORE: Final[Mapping[str, Family]] = {
    "keys": _gauge("keys", "Live keys."),
    "log_bytes": _gauge("wal_bytes", "Size of the write-ahead log's files."),
    "log_end": _counter("wal_written_bytes", "Bytes written to the write-ahead log since the store was made."),
    "read_only": _gauge("read_only", "1 while writes are refused because the disk is full, else 0."),
    "syncs": _counter("wal_fsyncs", "Times that the write-ahead log was synced to the device."),
    "sync_nanoseconds": _counter("wal_fsync_seconds", "Time spent syncing the write-ahead log to the device."),
    "memtable_bytes": _gauge("memtable_bytes", "Memory that the tables in memory hold."),
    "frozen_bytes": _gauge("memtable_frozen_bytes", "Memory of full tables that are being written to files."),
    "flushes": _counter("memtable_flushes", "Tables in memory that were written to files."),
    "compactions": _counter("compactions", "Merges of table files."),
    "cache_bytes": _gauge("block_cache_bytes", "Memory that cached blocks of table files hold."),
    "cache_hits": _counter("block_cache_hits", "Reads of blocks that were in the cache."),
    "cache_misses": _counter("block_cache_misses", "Reads of blocks that had to be fetched from a table file."),
    "tables": _gauge("tables", "Sorted table files."),
    "table_bytes": _gauge("table_bytes", "Size of the sorted table files."),
    "mapped_bytes": _gauge("table_mapped_bytes", "Size of those that are read through a mapping."),
    "local_changes": _counter("local_changes", "Changes that this node's clients made."),
    "applied_changes": _counter("applied_changes", "Changes of other nodes that were applied."),
    "duplicate_changes": _counter("duplicate_changes", "Changes of other nodes that were here already."),
    "pulls": _counter("state_pulls", "Whole keys fetched because a change built on what was not here."),
}
_CONFLICT_PREFIX = "conflicts_"
# Figures kept in another unit than the metric's, and what they are multiplied by.
_SCALE: Final[Mapping[str, float]] = {"sync_nanoseconds": 1e-9}

# What `Frontend.statistics()` calls a figure.
FRONTEND: Final[Mapping[str, Family]] = {
    "connected_clients": _gauge("redis_clients", "Redis clients connected."),
    "blocked_clients": _gauge("redis_clients_waiting", "Redis clients that wait for an answer, as in WAIT."),
    "clients_max": _gauge("redis_clients_max", "Redis clients that may be connected."),
    "connections_received": _counter("redis_connections", "Redis connections accepted."),
    "connections_rejected": _counter("redis_connections_rejected", "Redis connections over the limit."),
    "commands_failed": _counter("commands_failed", "Redis commands that were answered with an error."),
    "protocol_errors": _counter("redis_protocol_errors", "Redis connections closed for what they sent."),
    "bytes_received": _counter("redis_received_bytes", "Bytes received from Redis clients."),
    "bytes_sent": _counter("redis_sent_bytes", "Bytes sent to Redis clients."),
    "buffer_bytes": _gauge("redis_buffer_bytes", "Memory that the buffers of Redis clients hold."),
    "keyspace_hits": _counter("keyspace_hits", "Reads by Redis clients that found their key."),
    "keyspace_misses": _counter("keyspace_misses", "Reads by Redis clients that found no key."),
    "commits": _counter("redis_commits", "Groups of writes of Redis clients that were committed together."),
    "clients_asking": _gauge("redis_clients_asking", "Redis clients whose commands wait for answers of replicas."),
    "clients_held": _gauge("redis_clients_held", "Redis clients whose writes wait for replicas to acknowledge them."),
    "commands_asked": _counter("redis_commands_asked", "Redis commands whose keys replicas were asked for first."),
    "replies_held": _counter("redis_replies_held", "Times that replies waited for replicas to acknowledge writes."),
    "unavailable": _counter("redis_unavailable", "Redis commands refused because too few replicas were alive."),
    "read_timeouts": _counter("redis_read_timeouts", "Redis commands refused because too few replicas answered."),
    "write_timeouts": _counter(
        "redis_write_timeouts", "Writes of Redis clients that too few replicas acknowledged in time."
    ),
}

# What the HTTP server's statistics call a figure.
HTTP: Final[Mapping[str, Family]] = {
    "connections": _gauge("http_connections", "HTTP connections open."),
    "connections_refused": _counter("http_connections_refused", "HTTP connections over the limit."),
    "application_errors": _counter("http_failures", "HTTP requests that failed by a defect."),
}
REFUSALS = _counter("http_refusals", "HTTP requests that replicas kept from succeeding, by error code.", "code")
RESPONSES = _counter("http_responses", "HTTP responses sent, by status code.", "code")

# What `Node.status()["replication"]` calls a figure.
REPLICATION: Final[Mapping[str, Family]] = {
    "tls_failures": _counter("replication_tls_failures", "Connections on the peer port without valid mutual TLS."),
    "handshakes_refused": _counter("replication_handshakes_refused", "Connections on the peer port over its limit."),
    "outbox_bytes": _gauge("replication_outbox_bytes", "Bytes that wait to be written to peers."),
    "waits": _gauge("replication_waits", "Clients that wait for regions to acknowledge."),
    "region_replicas": _gauge("region_replicas", "Nodes of this region, this one among them."),
    "region_alive": _gauge("region_replicas_alive", "Those that can take part in a quorum now."),
    "recovering": _gauge("region_recovering", "1 while this node may lack what it has once acknowledged, else 0."),
    "asks": _counter("region_asks", "Questions to replicas, each for the keys of many requests."),
    "asks_failed": _counter("region_asks_failed", "Questions that too few replicas answered in time."),
    "asks_under_way": _gauge("region_asks_under_way", "Questions that wait for answers."),
    "asks_speculative": _counter("region_asks_speculative", "Questions sent to one more replica, as one was slow."),
    "answers": _counter("region_answers", "Answers to this node's questions."),
    "answers_given": _counter("region_answers_given", "Questions of other nodes that this one answered."),
    "repairs": _counter("region_repairs", "Keys of which an answer brought what this node lacked."),
}
REQUIRED = _gauge("region_replicas_required", "How many of the region's nodes a level needs.", "level")

# What a peer in `Node.status()` calls a figure.
PEER: Final[Mapping[str, Family]] = {
    "sending": _gauge("replication_sending", "1 while the peer receives this node's log, else 0.", *_PEER),
    "receiving": _gauge("replication_receiving", "1 while this node receives the peer's log, else 0.", *_PEER),
    "resyncing": _gauge("replication_resyncing", "1 while whole states are sent because the log was cut.", *_PEER),
    "lag_seconds": _gauge(
        "replication_lag_seconds", "Age of the oldest change that the peer hasn't acknowledged; 0 if none.", *_PEER
    ),
    "lag_changes": _gauge("replication_lag_changes", "Changes that the peer hasn't acknowledged.", *_PEER),
    "acked": _gauge(
        "replication_acked_timestamp_seconds",
        "The high watermark: time of this node's newest change that the peer holds, in Unix time.",
        *_PEER,
    ),
    "receive_lag_seconds": _gauge(
        "replication_receive_lag_seconds", "How far this node's copy of the peer's log is behind.", *_PEER
    ),
    "receive_lag_changes": _gauge(
        "replication_receive_lag_changes", "Changes that the peer has yet to send to this node.", *_PEER
    ),
    "alive": _gauge("region_peer_alive", "1 while this node of the region can take part in a quorum, else 0.", *_PEER),
    "phi": _gauge(
        "region_peer_phi",
        "How surely this node of the region is down, by its heartbeats; above 8 it is suspected.",
        *_PEER,
    ),
    "unacked_bytes": _gauge("replication_unacked_bytes", "Bytes sent to the peer and not acknowledged.", *_PEER),
    "connections": _counter("replication_connections", "Connections made with the peer.", *_PEER),
    "sent_bytes": _counter("replication_sent_bytes", "Bytes sent to the peer.", *_PEER),
    "sent_batches": _counter("replication_sent_batches", "Batches sent to the peer.", *_PEER),
    "sent_changes": _counter("replication_sent_changes", "Changes sent to the peer.", *_PEER),
    "sent_resyncs": _counter("replication_sent_resyncs", "Resyncs that the peer needed.", *_PEER),
    "sent_pulls_served": _counter("replication_pulls_served", "Whole keys that the peer fetched.", *_PEER),
    "received_bytes": _counter("replication_received_bytes", "Bytes received from the peer.", *_PEER),
    "received_batches": _counter("replication_received_batches", "Batches received from the peer.", *_PEER),
    "received_changes": _counter("replication_received_changes", "Changes received from the peer.", *_PEER),
    "received_resyncs": _counter("replication_received_resyncs", "Resyncs that this node needed.", *_PEER),
    "received_pulls": _counter("replication_pulls", "Whole keys fetched from the peer.", *_PEER),
}

FAMILIES: Final[tuple[Family, ...]] = (
    BUILD,
    UPTIME,
    COMMANDS,
    LATENCY,
    *FRONTEND.values(),
    *HTTP.values(),
    RESPONSES,
    REFUSALS,
    *STORE.values(),
    CONFLICTS,
    *REPLICATION.values(),
    REQUIRED,
    *PEER.values(),
    PEER_ERRORS,
)


def render(node: MeasuredNode) -> bytes:
    """The answer to a scrape, of the type `CONTENT_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(node))
    # The process's own figures have names that every dashboard knows: process_cpu_seconds_total and so on.
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _NodeCollector(Collector):
    def __init__(self, node: MeasuredNode) -> None:
        self.node = node

    def collect(self) -> Iterator[Metric]:
        status = self.node.status()
        yield from _node(status)
        yield from _frontend(self.node.frontend)
        yield from _http(self.node.http.statistics())
        refusals = self.node.coordination.refusals
        yield from _labelled(REFUSALS, (((code,), count) for code, count in refusals.items()))
        yield from _store(self.node.store.statistics())
        yield from _plain(REPLICATION, status["replication"])
        yield from _region(status["replication"])
        yield from _peers(status["peers"])


def _node(status: Mapping[str, Any]) -> Iterator[Metric]:
    build = BUILD.metric()
    labels = {
        "version": software_version(),
        "python": platform.python_version(),
        "region": status["region"],
        "node": status["node"],
    }
    build.add_sample(BUILD.sample, labels, 1)
    yield build
    yield from _plain({"uptime_seconds": UPTIME}, status)


def _frontend(frontend: MeasuredFrontend) -> Iterator[Metric]:
    figures = frontend.statistics()
    yield from _plain(FRONTEND, figures)
    yield from _labelled(COMMANDS, (((command,), count) for command, count in figures.get("commands", {}).items()))
    bounds, families = frontend.latency()
    sums = frontend.latency_sums()
    histogram = HistogramMetricFamily(LATENCY.name, LATENCY.help, labels=LATENCY.labels)
    for family, counts in families.items():
        buckets = []
        total = 0
        for bound, count in zip([*bounds, float("inf")], counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), total))
        histogram.add_metric([family], buckets, sums[family])
    yield histogram


def _http(statistics: HttpStatistics) -> Iterator[Metric]:
    yield from _plain(HTTP, {name: getattr(statistics, name) for name in HTTP})
    yield from _labelled(RESPONSES, (((str(code),), count) for code, count in statistics.responses.items()))


def _store(figures: Mapping[str, int]) -> Iterator[Metric]:
    yield from _plain(STORE, figures)
    conflicts = [(name, count) for name, count in figures.items() if name.startswith(_CONFLICT_PREFIX)]
    yield from _labelled(CONFLICTS, (((name.removeprefix(_CONFLICT_PREFIX),), count) for name, count in conflicts))


def _region(figures: Mapping[str, int]) -> Iterator[Metric]:
    if "region_replicas" in figures:
        replicas = figures["region_replicas"]
        yield from _labelled(REQUIRED, (((level.name,), level.required(replicas)) for level in Level))


def _peers(peers: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    named = [((peer["region"], peer["node"] or ""), peer) for peer in peers]
    for name, family in PEER.items():
        # What a peer has counted nothing of yet is 0; what can't be known is left out.
        absent = 0 if family.kind == "counter" else None
        figures = ((labels, peer.get(name, absent)) for labels, peer in named)
        samples = ((labels, figure) for labels, figure in figures if figure is not None)
        if name == "acked":
            # A hybrid timestamp has its wall-clock milliseconds above 16 bits of counter.
            samples = ((labels, (timestamp >> 16) / 1000) for labels, timestamp in samples)
        yield from _labelled(family, samples)
    errors = (((*labels, cause), count) for labels, peer in named for cause, count in peer["errors"].items())
    yield from _labelled(PEER_ERRORS, errors)


def _plain(families: Mapping[str, Family], figures: Mapping[str, Any]) -> Iterator[Metric]:
    for name, family in families.items():
        if figures.get(name) is not None:
            yield from _labelled(family, [((), figures[name] * _SCALE.get(name, 1))])


def _labelled(family: Family, samples: Iterable[tuple[tuple[str, ...], float]]) -> Iterator[Metric]:
    metric = family.metric()
    for labels, value in samples:
        metric.add_sample(family.sample, dict(zip(family.labels, labels, strict=True)), float(value))
    yield metric
