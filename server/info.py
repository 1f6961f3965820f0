"""The text of INFO: sections of `name:value` lines, with the names that Redis clients and tools look for."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from everwrite.server.version import software_version

__all__ = ["REDIS_VERSION", "SECTIONS", "InfoHost", "info_text"]

# The protocol level that clients may count on; they compare it with the versions that features came in.
REDIS_VERSION = "7.4.0"

Lines = dict[str, object]


class _Settings(Protocol):
    @property
    def region(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def durability(self) -> str: ...
    @property
    def consistency(self) -> str: ...
    @property
    def redis_port(self) -> int: ...


class _Statistics(Protocol):
    def statistics(self) -> Mapping[str, Any]: ...


class _Store(Protocol):
    def statistics(self) -> Mapping[str, int]: ...
    def key_count(self) -> int: ...
    @property
    def user_changes(self) -> int: ...


class InfoHost(Protocol):
    """What of a node INFO tells."""

    @property
    def config(self) -> _Settings: ...
    @property
    def frontend(self) -> _Statistics: ...
    @property
    def store(self) -> _Store: ...
    def status(self) -> Mapping[str, Any]: ...


def _resident_bytes() -> int:
    """Resident memory of this process; its peak where the system doesn't tell the current value."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return _peak_bytes()
    return pages * resource.getpagesize()


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _human(count: int) -> str:
    size = float(count)
    for unit in "BKMG":
        if size < 1024 or unit == "G":
            return f"{size:.2f}{unit}" if unit != "B" else f"{count}B"
        size /= 1024
    return ""


def _server(host: InfoHost) -> Lines:
    uptime = int(host.status()["uptime_seconds"])
    return {
        "redis_version": REDIS_VERSION,
        "everwrite_version": software_version(),
        "redis_mode": "standalone",
        "os": " ".join(os.uname()[:3:2]),
        "arch_bits": 64,
        "process_id": os.getpid(),
        "tcp_port": host.config.redis_port,
        "uptime_in_seconds": uptime,
        "uptime_in_days": uptime // 86400,
    }


def _clients(host: InfoHost) -> Lines:
    figures = host.frontend.statistics()
    return {
        "connected_clients": figures["connected_clients"],
        "maxclients": figures["clients_max"],
        "blocked_clients": figures["blocked_clients"],
        "client_buffer_bytes": figures["buffer_bytes"],
    }


def _memory(host: InfoHost) -> Lines:
    resident, peak = _resident_bytes(), _peak_bytes()
    return {
        "used_memory": resident,
        "used_memory_human": _human(resident),
        "used_memory_rss": resident,
        "used_memory_peak": peak,
        "used_memory_peak_human": _human(peak),
        "maxmemory": 0,
        "maxmemory_policy": "noeviction",
    }


def _persistence(host: InfoHost) -> Lines:
    failed = host.frontend.statistics()["failed"]
    return {
        "loading": 0,
        "async_loading": 0,
        "aof_enabled": 1,
        "aof_last_write_status": "err" if failed or host.store.statistics()["read_only"] else "ok",
        "durability": host.config.durability,
    }


def _stats(host: InfoHost) -> Lines:
    figures = host.frontend.statistics()
    return {
        "total_connections_received": figures["connections_received"],
        "total_commands_processed": figures["commands_processed"],
        "total_net_input_bytes": figures["bytes_received"],
        "total_net_output_bytes": figures["bytes_sent"],
        "rejected_connections": figures["connections_rejected"],
        "keyspace_hits": figures["keyspace_hits"],
        "keyspace_misses": figures["keyspace_misses"],
        "total_protocol_errors": figures["protocol_errors"],
        "total_ticks": figures["ticks"],
        "total_rounds": figures["rounds"],
        "total_commits": figures["commits"],
    }


def _replication(host: InfoHost) -> Lines:
    lines: Lines = {"role": "master", "connected_slaves": 0, "region": host.config.region, "node": host.config.node}
    for number, peer in enumerate(host.status()["peers"]):
        lines[f"peer{number}"] = ",".join(
            f"{name}={peer[name]}"
            for name in ("region", "node", "connected", "lag_seconds", "lag_changes")
            if peer.get(name) is not None
        )
    return lines


def _cpu(host: InfoHost) -> Lines:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"used_cpu_sys": f"{usage.ru_stime:.6f}", "used_cpu_user": f"{usage.ru_utime:.6f}"}


def _commandstats(host: InfoHost) -> Lines:
    calls: Mapping[str, int] = host.frontend.statistics()["commands"]
    return {f"cmdstat_{name}": f"calls={count}" for name, count in calls.items()}


def _cluster(host: InfoHost) -> Lines:
    return {"cluster_enabled": 0}


def _keyspace(host: InfoHost) -> Lines:
    count = host.store.key_count()
    return {"db0": f"keys={count},changes={host.store.user_changes}"} if count else {}


def _everwrite(host: InfoHost) -> Lines:
    return {f"store_{name}": value for name, value in host.store.statistics().items()}


SECTIONS: dict[str, Callable[[InfoHost], Lines]] = {
    "server": _server,
    "clients": _clients,
    "memory": _memory,
    "persistence": _persistence,
    "stats": _stats,
    "replication": _replication,
    "cpu": _cpu,
    "commandstats": _commandstats,
    "cluster": _cluster,
    "keyspace": _keyspace,
    "everwrite": _everwrite,
}
_NOT_BY_DEFAULT = {"commandstats", "everwrite"}


def info_text(host: InfoHost, wanted: list[str]) -> str:
    """The sections named in `wanted` (any case; none: the usual ones; "all" and "everything": all), in INFO's form.

    Unknown sections are left out, as in Redis.
    """
    names = {name.lower() for name in wanted} or {"default"}
    if names & {"all", "everything"}:
        names |= SECTIONS.keys()
    if "default" in names:
        names |= SECTIONS.keys() - _NOT_BY_DEFAULT
    parts = []
    for name, section in SECTIONS.items():
        if name in names:
            title = "CPU" if name == "cpu" else name.capitalize()
            lines = "".join(f"{key}:{value}\r\n" for key, value in section(host).items())
            parts.append(f"# {title}\r\n{lines}")
    return "\r\n".join(parts)
