"""What a lab that has replicated says of itself over HTTP."""

from __future__ import annotations

import http.client
import json
import random

from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.processes import HOST, REGIONS, Lab, http_get
from tests.support import eventually


def scrape(lab: Lab, region: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a region's node by name and sorted labels."""
    status, text = http_get(lab.port(region, "http"), "/metrics")
    assert status == 200
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def put(port: int, path: str, value: bytes) -> int:
    """The status of a PUT."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("PUT", path, body=value)
        return connection.getresponse().status
    finally:
        connection.close()


def test_replication_shows_in_the_metrics_of_both_ends(lab: Lab) -> None:
    source, target, _ = REGIONS
    writer, reader = lab.client(source), lab.client(target)
    writer.set("observed", "1")
    writer.execute_command("WAIT", 2, 30_000)
    assert reader.get("observed") == b"1"
    to_target = (("node", f"{target}-0"), ("region", target))
    from_source = (("node", f"{source}-0"), ("region", source))
    sent = scrape(lab, source)
    received = scrape(lab, target)
    for name in ("sent_batches_total", "sent_changes_total", "sent_bytes_total", "acked_timestamp_seconds"):
        assert sent[f"everwrite_replication_{name}", to_target] > 0
    for name in ("received_batches_total", "received_changes_total", "received_bytes_total"):
        assert received[f"everwrite_replication_{name}", from_source] > 0
    assert sent["everwrite_commands_total", (("command", "set"),)] >= 1
    assert sent["everwrite_wal_fsyncs_total", ()] > 0
    assert sent["everwrite_wal_fsync_seconds_total", ()] > 0
    assert received["everwrite_applied_changes_total", ()] > 0
    eventually(lambda: scrape(lab, source)["everwrite_replication_lag_seconds", to_target] == 0)


def test_why_names_the_region_that_wrote_over_http(lab: Lab) -> None:
    source, target, _ = REGIONS
    lab.client(source).set("asked", "1")
    assert lab.client(source).execute_command("WAIT", 2, 30_000) == 2
    status, answer = http_get(lab.port(target, "http"), "/v1/keys/asked/why")
    why = json.loads(answer)
    assert status == 200
    assert (why["visible"]["region"], why["visible"]["node"]) == (source, f"{source}-0")
    assert why["value"] == {"text": "1"}


def test_a_value_put_over_http_replicates(lab: Lab) -> None:
    source, target, _ = REGIONS
    client = lab.client(source)
    client.set("over-http", "old")
    assert put(lab.port(source, "http"), "/v1/keys/over-http", b"new") == 204
    eventually(lambda: http_get(lab.port(target, "http"), "/v1/keys/over-http") == (200, b"new"))


def test_a_value_of_the_greatest_size_replicates(lab: Lab) -> None:
    source, target, _ = REGIONS
    value = random.Random(1).randbytes(64 << 20)
    assert put(lab.port(source, "http"), "/v1/keys/largest", value) == 204
    eventually(lambda: http_get(lab.port(target, "http"), "/v1/keys/largest") == (200, value))
    lab.client(source).delete("largest")
