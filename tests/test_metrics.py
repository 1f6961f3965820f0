"""The scrape's answer, read by Prometheus's own parser, against the node's figures and the page."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import everwrite
from everwrite.server import metrics
from everwrite.server.frontend import Frontend
from everwrite.server.metrics import FAMILIES, render
from everwrite.server.peer import Peer
from tests.fake_node import FakeNode, fake_peer
from tests.support import ROOT

PEER = {"region": "eu-west", "node": "eu-west-0"}


def scrape(node: FakeNode) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels; a sample that appears twice is an error."""
    samples = {}
    for family in text_string_to_metric_families(render(node).decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("everwrite_uptime_seconds", {}, 1.5),
        ("everwrite_keys", {}, 7),
        ("everwrite_wal_bytes", {}, 4096),
        ("everwrite_wal_fsyncs_total", {}, 11),
        ("everwrite_wal_fsync_seconds_total", {}, 1.5),
        ("everwrite_tables", {}, 2),
        ("everwrite_commands_total", {"command": "get"}, 8),
        ("everwrite_redis_clients", {}, 3),
        ("everwrite_conflicts_resolved_total", {"kind": "lww"}, 3),
        ("everwrite_conflicts_resolved_total", {"kind": "add_remove"}, 4),
        ("everwrite_command_duration_seconds_bucket", {"family": "read", "le": "0.001"}, 5),
        ("everwrite_command_duration_seconds_bucket", {"family": "read", "le": "0.01"}, 7),
        ("everwrite_command_duration_seconds_bucket", {"family": "read", "le": "+Inf"}, 8),
        ("everwrite_command_duration_seconds_bucket", {"family": "write", "le": "0.001"}, 0),
        ("everwrite_command_duration_seconds_sum", {"family": "write"}, 0.25),
        ("everwrite_command_duration_seconds_count", {"family": "read"}, 8),
        ("everwrite_http_connections", {}, 2),
        ("everwrite_http_responses_total", {"code": "404"}, 1),
        ("everwrite_http_refusals_total", {"code": "read_timeout"}, 2),
        ("everwrite_replication_tls_failures_total", {}, 6),
        ("everwrite_redis_commands_asked_total", {}, 9),
        ("everwrite_redis_clients_held", {}, 2),
        ("everwrite_redis_write_timeouts_total", {}, 1),
        ("everwrite_region_replicas", {}, 5),
        ("everwrite_region_replicas_alive", {}, 4),
        ("everwrite_region_replicas_required", {"level": "ONE"}, 1),
        ("everwrite_region_replicas_required", {"level": "LOCAL_QUORUM"}, 3),
        ("everwrite_region_replicas_required", {"level": "ALL"}, 5),
        ("everwrite_region_asks_total", {}, 12),
        ("everwrite_region_repairs_total", {}, 3),
        ("everwrite_region_peer_phi", PEER, 0.5),
        ("everwrite_region_peer_alive", PEER, 1),
        ("everwrite_replication_lag_seconds", PEER, 0.25),
        ("everwrite_replication_lag_changes", PEER, 12),
        ("everwrite_replication_sending", PEER, 1),
        ("everwrite_replication_acked_timestamp_seconds", PEER, 1_700_000_000.5),
        ("everwrite_replication_received_bytes_total", PEER, 2000),
        ("everwrite_replication_pulls_total", PEER, 1),
        ("everwrite_replication_errors_total", PEER | {"cause": "clock_drift"}, 1),
    ],
)
def test_figures_appear_under_their_names(name: str, labels: dict[str, str], value: float) -> None:
    assert scrape(FakeNode())[(name, frozenset(labels.items()))] == value


def test_build_info_names_the_node() -> None:
    [labels] = [dict(labels) for name, labels in scrape(FakeNode()) if name == "everwrite_build_info"]
    assert (labels["region"], labels["node"]) == ("us-east", "us-east-0")


def test_unknown_figures_are_left_out() -> None:
    node = FakeNode()
    node.peers = [fake_peer(receive_lag_seconds=None, lag_changes=None, phi=None)]
    names = {name for name, _ in scrape(node)}
    assert "everwrite_replication_receive_lag_seconds" not in names
    assert "everwrite_replication_lag_changes" not in names
    assert "everwrite_region_peer_phi" not in names
    assert "everwrite_replication_lag_seconds" in names


def test_each_peer_has_its_samples() -> None:
    node = FakeNode()
    node.peers = [fake_peer(), fake_peer(region="apac", node=None, lag_seconds=9.0)]
    lags = {labels: value for (name, labels), value in scrape(node).items() if name.endswith("replication_lag_seconds")}
    assert lags == {
        frozenset(PEER.items()): 0.25,
        frozenset({("region", "apac"), ("node", "")}): 9.0,
    }


def test_the_processes_own_figures_are_there() -> None:
    samples = scrape(FakeNode())
    assert samples[("process_resident_memory_bytes", frozenset())] > 0


def test_every_sample_is_a_number_and_of_a_listed_family() -> None:
    known = {family.sample for family in FAMILIES}
    for (name, _), value in scrape(FakeNode()).items():
        assert not math.isnan(value)
        assert name.startswith("process_") or re.sub("_(bucket|count|sum)$", "", name) in known


def test_names_follow_the_conventions() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert re.fullmatch(r"everwrite_[a-z_]+", family.name)
        assert not re.search("_(ms|micros|milliseconds|microseconds|kb|total)$", family.name)
        assert family.help.endswith(".")


def test_the_page_lists_exactly_the_metrics() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(everwrite_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", page, re.MULTILINE)
    shown = {name: (kind, labels.strip(), text) for name, kind, labels, text in rows}
    expected = {
        family.sample: (family.kind, ", ".join(f"`{label}`" for label in family.labels), family.help)
        for family in FAMILIES
    }
    assert shown == expected


def test_the_parts_of_a_node_give_every_figure_that_is_asked_of_them(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "store", durability="os") as store:
        assert metrics.STORE.keys() <= store.statistics().keys()
        assert {f"conflicts_{kind}" for kind in ("lww", "type", "add_remove")} <= store.statistics().keys()
        frontend = Frontend(store, lambda _client, _command: None)
        assert metrics.FRONTEND.keys() | {"commands"} <= frontend.statistics().keys()
        _, counts = frontend.latency()
        assert counts.keys() == frontend.latency_sums().keys()
        frontend.close_all()
    peer = Peer("eu-west", "eu-west-0", None)
    certain = {name for name, family in metrics.PEER.items() if family.kind == "gauge"}
    assert certain | {"errors", "region", "node"} <= peer.status(0.0, 1, 0, None).keys()
