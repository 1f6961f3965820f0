"""The figures that govern replication, apart from who the peers are."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["ReplicationSettings"]


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """Times are seconds, sizes bytes."""

    flush_interval: float = 0.010
    flush_changes: int = 100
    batch_changes_max: int = 5000
    batch_bytes_max: int = 1 << 20
    window_bytes: int = 4 << 20
    heartbeat_interval: float = 1.0
    dead_after: float = 5.0
    dial_timeout: float = 5.0
    backoff_min: float = 0.1
    backoff_max: float = 5.0
    report_interval: float = 1.0
    log_repeat_interval: float = 600.0
    max_clock_drift_ms: int = 500
    # Between nodes of one region.
    region_heartbeat_interval: float = 0.2
    stalled_after: float = 5.0  # then a peer that gets no more of an origin gets it from whoever has it
    asks_max: int = 256  # questions under way at once
    speculation_min: float = 0.002  # before one more replica is asked
    # See failure.py.
    suspicion_phi: float = 8.0
    heartbeat_deviation_min: float = 0.1

    def within_region(self) -> ReplicationSettings:
        """What holds for a connection with a node of the own region: changes go at once."""
        return replace(self, flush_interval=0.0, heartbeat_interval=self.region_heartbeat_interval)
