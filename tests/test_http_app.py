"""The HTTP interface, through the adapter: what each route answers, and that its page tells no other story."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

import everwrite
from everwrite import ReadTimeout, Unavailable, WriteTimeout
from everwrite.errors import Recovering
from everwrite.memory_files import MemoryFiles
from everwrite.server.consistency import Level
from everwrite.server.http_app import BODIES_BYTES_MAX, KEY_BYTES_MAX, TTL_SECONDS_MAX, VALUE_BYTES_MAX, make_app
from everwrite.watched_files import WatchedFiles
from tests.fake_node import DISK_ERROR, FakeNode
from tests.faults.full_disk import Space
from tests.http_support import headers_of, parse, serve_bytes
from tests.support import ROOT, eventually


def raw(node: FakeNode, method: str, target: str, body: bytes | None = None) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of one request."""
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\n".encode()
    if body is not None:
        head += b"Content-Length: %d\r\n" % len(body)
    output = serve_bytes(make_app(node), [head + b"\r\n" + (body or b"")])
    [(response, content)] = parse(output, [method.encode()])
    return response.status_code, headers_of(response), content


def call(node: FakeNode, method: str, target: str, body: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of one request; None for an empty answer."""
    status, headers, content = raw(node, method, target, body)
    if not content:
        return status, None
    assert headers[b"content-type"] == b"application/json"
    return status, json.loads(content)


def error(node: FakeNode, method: str, target: str, body: bytes | None = None) -> tuple[int, str, str]:
    """Status, code and message of a request that fails."""
    status, answer = call(node, method, target, body)
    assert set(answer) == {"error"}
    return status, answer["error"]["code"], answer["error"]["message"]


def test_a_value_comes_back_as_it_was_put() -> None:
    node = FakeNode()
    value = bytes(range(256))
    assert call(node, "PUT", "/v1/keys/a", value) == (204, None)
    status, headers, content = raw(node, "GET", "/v1/keys/a")
    assert (status, content) == (200, value)
    assert headers[b"content-type"] == b"application/octet-stream"
    assert node.written == 1


def test_head_has_the_length_and_no_value() -> None:
    node = FakeNode()
    node.store.values[b"a"] = b"12345"
    status, headers, content = raw(node, "HEAD", "/v1/keys/a")
    assert (status, headers[b"content-length"], content) == (200, b"5", b"")
    assert raw(node, "HEAD", "/v1/keys/b")[0] == 404


@given(key=st.binary(max_size=40), lower=st.booleans())
def test_any_key_has_an_encoded_name(key: bytes, lower: bool) -> None:
    node = FakeNode()
    name = quote_from_bytes(key, safe="")
    if lower:
        name = re.sub("%..", lambda match: match.group().lower(), name)
    assert call(node, "PUT", f"/v1/keys/{name}", b"v") == (204, None)
    assert node.store.values == {key: b"v"}


def test_a_key_may_look_like_a_route() -> None:
    node = FakeNode()
    for name, key in [("a%2Fwhy", b"a/why"), ("", b""), ("why", b"why"), ("%2e%2e", b".."), ("a+b", b"a+b")]:
        assert call(node, "PUT", f"/v1/keys/{name}", key) == (204, None)
        assert raw(node, "GET", f"/v1/keys/{name}")[2] == key
        assert node.store.values[key] == key


def test_missing_keys_are_not_found() -> None:
    assert error(FakeNode(), "GET", "/v1/keys/a") == (404, "not_found", "there is no such key")


def test_collections_are_refused_by_name() -> None:
    status, answer = call(FakeNode(), "GET", "/v1/keys/set:a")
    assert status == 409
    assert answer["error"]["code"] == "wrong_type"
    assert answer["error"]["type"] == "set"
    assert "set" in answer["error"]["message"]


def test_delete_answers_the_same_whether_or_not_the_key_was_here() -> None:
    node = FakeNode()
    node.store.values[b"a"] = b"1"
    assert call(node, "DELETE", "/v1/keys/a") == (204, None)
    assert call(node, "DELETE", "/v1/keys/a") == (204, None)
    assert node.store.values == {}


@pytest.mark.parametrize("ttl", ["1", "60", "0060", str(TTL_SECONDS_MAX)])
def test_ttl_is_in_seconds(ttl: str) -> None:
    node = FakeNode()
    assert call(node, "PUT", f"/v1/keys/a?ttl={ttl}", b"v") == (204, None)
    assert node.store.ttls == {b"a": int(ttl)}


@pytest.mark.parametrize(
    "query",
    ["ttl=", "ttl=0", "ttl=-1", "ttl=1.5", "ttl=x", f"ttl={TTL_SECONDS_MAX + 1}", "ttl=1&ttl=2", "tll=1", "ttl=9" * 50],
)
def test_a_wrong_ttl_writes_nothing(query: str) -> None:
    node = FakeNode()
    status, code, message = error(node, "PUT", f"/v1/keys/a?{query}", b"v")
    assert (status, code) == (400, "bad_request")
    assert "ttl" in message
    assert node.store.values == {}
    assert node.written == 0


@pytest.mark.parametrize(("query", "level"), [("", None), *((f"?consistency={level.name}", level) for level in Level)])
def test_replicas_are_asked_before_and_waited_for_after(query: str, level: Level | None) -> None:
    node = FakeNode()
    target = f"/v1/keys/a{query}"
    assert call(node, "PUT", target, b"v") == (204, None)
    assert raw(node, "GET", target)[2] == b"v"
    assert call(node, "DELETE", target) == (204, None)
    assert call(node, "DELETE", target) == (204, None)
    held = {b"a": b"v"}
    assert node.coordination.events == [
        ("before", [b"a"], level, {}),
        ("after", 1, level, held),
        ("before", [b"a"], level, held),
        ("before", [b"a"], level, held),
        ("after", 2, level, {}),
        ("before", [b"a"], level, {}),
        ("after", 2, level, {}),
    ]
    assert node.written == 2


def test_a_level_is_named_in_any_case_and_combines_with_a_ttl() -> None:
    node = FakeNode()
    assert call(node, "PUT", "/v1/keys/a?ttl=5&consistency=local_quorum", b"v") == (204, None)
    assert node.store.ttls == {b"a": 5}
    assert node.coordination.events[0][2] is Level.LOCAL_QUORUM


@pytest.mark.parametrize("query", ["consistency=TWO", "consistency=", "consistency=ONE&consistency=ONE", "level=ONE"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_wrong_level_does_nothing(method: str, query: str) -> None:
    node = FakeNode()
    node.store.values[b"a"] = b"old"
    assert error(node, method, f"/v1/keys/a?{query}", b"v" if method == "PUT" else None)[:2] == (400, "bad_request")
    assert node.store.values == {b"a": b"old"}
    assert node.coordination.events == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (Unavailable("too few", required=2, alive=1), (503, "too_few_replicas", {"required": 2, "alive": 1})),
        (Recovering("catching up", required=2, alive=3), (503, "recovering", {"required": 2, "alive": 3})),
        (ReadTimeout("no answer", received=1, required=2), (504, "read_timeout", {"received": 1, "required": 2})),
    ],
)
def test_what_the_replicas_refuse_is_not_applied(
    method: str, raised: Exception, wanted: tuple[int, str, dict[str, int]]
) -> None:
    node = FakeNode()
    node.store.values[b"a"] = b"old"
    node.coordination.before_raises = raised
    status, answer = call(node, method, "/v1/keys/a", b"v" if method == "PUT" else None)
    code = answer["error"].pop("code")
    assert answer["error"].pop("message") == str(raised)
    assert (status, code, answer["error"]) == (wanted[0], wanted[1], {"outcome": "not applied", **wanted[2]})
    assert node.store.values == {b"a": b"old"}
    assert node.written == 0


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_write_that_is_not_acknowledged_in_time_has_an_unknown_outcome(method: str) -> None:
    node = FakeNode()
    node.store.values[b"a"] = b"old"
    node.coordination.after_raises = WriteTimeout("not acknowledged", received=1, required=2)
    status, answer = call(node, method, "/v1/keys/a", b"v" if method == "PUT" else None)
    details = {"outcome": "unknown", "received": 1, "required": 2}
    assert (status, answer["error"]) == (504, {"code": "write_timeout", "message": "not acknowledged", **details})
    # It is written here, and leaves.
    assert node.written == 1
    assert raw(node, "GET", "/v1/keys/a")[0] == (200 if method == "PUT" else 404)


@pytest.mark.parametrize("name", ["%", "%1", "a%zz", "%2"])
def test_broken_encodings_are_refused(name: str) -> None:
    assert error(FakeNode(), "GET", f"/v1/keys/{name}")[:2] == (400, "bad_request")


def test_limits_of_keys_and_values() -> None:
    node = FakeNode()
    assert call(node, "PUT", "/v1/keys/" + "%00" * KEY_BYTES_MAX, b"v") == (204, None)
    assert error(node, "PUT", "/v1/keys/" + "k" * (KEY_BYTES_MAX + 1), b"v")[:2] == (414, "key_too_long")
    head = b"PUT /v1/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (VALUE_BYTES_MAX + 1)
    [(response, _)] = parse(serve_bytes(make_app(node), [head]), [b"PUT"])
    assert response.status_code == 413


def test_the_bodies_under_way_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode()
    monkeypatch.setattr("everwrite.server.http_app.BODIES_BYTES_MAX", 1000)
    assert error(node, "PUT", "/v1/keys/a", b"x" * 1001)[:2] == (503, "overloaded")
    assert call(node, "PUT", "/v1/keys/a", b"x" * 1000) == (204, None)
    app = make_app(node)
    request = b"PUT /v1/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"
    # The budget is given back: by a finished body, a refused one and a broken one alike.
    for pieces in ([request + b"x" * 900], [request + b"x" * 800], [request + b"x" * 900]):
        output = serve_bytes(app, pieces)
    assert output.startswith(b"HTTP/1.1 204")
    assert BODIES_BYTES_MAX >= VALUE_BYTES_MAX


def test_unknown_routes_and_methods_are_json_errors() -> None:
    node = FakeNode()
    for target in ("/", "/v1", "/v1/keys", "/v1/status/", "/v2/keys/a", "/livez/x"):
        assert error(node, "GET", target)[:2] == (404, "not_found")
    assert "%2F" in error(node, "GET", "/v1/keys/a/b")[2]
    assert error(node, "POST", "/v1/keys/a", b"v")[:2] == (405, "method_not_allowed")
    assert error(node, "POST", "/metrics")[:2] == (405, "method_not_allowed")
    allowed = raw(node, "POST", "/v1/keys/a", b"v")[1][b"allow"].split(b", ")
    assert sorted(allowed) == [b"DELETE", b"GET", b"HEAD", b"PUT"]


def test_a_failed_store_is_unavailable() -> None:
    node = FakeNode()
    node.store.failure = DISK_ERROR
    for method, body in (("GET", None), ("PUT", b"v"), ("DELETE", None)):
        assert error(node, method, "/v1/keys/a", body) == (503, "unavailable", "the disk said no")
    assert node.written == 0


def test_an_unexpected_failure_is_a_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    node = FakeNode()
    node.store.failure = ZeroDivisionError("on purpose")
    status, code, message = error(node, "GET", "/v1/keys/a")
    assert (status, code) == (500, "internal_error")
    assert "purpose" not in message
    assert "on purpose" in caplog.text


def test_health() -> None:
    node = FakeNode()
    assert call(node, "GET", "/livez") == (200, {"live": True})
    assert call(node, "GET", "/readyz") == (200, {"ready": True, "reasons": [], "recovering": False})
    node.coordination.recovering = True
    assert call(node, "GET", "/readyz") == (200, {"ready": True, "reasons": [], "recovering": True})
    node.reasons = ["the log can't be written"]
    shown = {"ready": False, "reasons": ["the log can't be written"], "recovering": True}
    assert call(node, "GET", "/readyz") == (503, shown)
    assert call(node, "GET", "/livez") == (200, {"live": True})


def test_status_and_metrics() -> None:
    node = FakeNode()
    assert call(node, "GET", "/v1/status") == (200, node.status())
    status, headers, content = raw(node, "GET", "/metrics")
    assert status == 200
    assert headers[b"content-type"].startswith(b"text/plain")
    assert b"\neverwrite_keys 7.0\n" in content


def test_why_names_regions_and_keeps_all_64_bits() -> None:
    status, why = call(FakeNode(), "GET", "/v1/keys/a%2F%FF/why")
    assert status == 200
    assert why["key"] == {"base64": "YS//"}
    assert why["value"] == {"base64": "/w=="}
    named = {"origin": "abcdef0123450001", "region": "us-east", "node": "us-east-0"}
    timestamp = str((1_700_000_000_000 << 16) | 5)
    assert why["visible"] == named | {"timestamp": timestamp, "physical_ms": 1_700_000_000_000, "logical": 5}
    assert why["context"] == [named | {"timestamp": timestamp}, {"origin": "0000000000000002", "timestamp": "3"}]
    assert why["lost"][0]["origin"] == "0000000000000002"
    assert call(FakeNode(), "GET", "/v1/keys/text/why")[1]["key"] == {"text": "text"}
    assert call(FakeNode(), "GET", "/v1/keys/long/why")[1]["value"] == {"bytes": 5000}


def test_the_page_lists_every_route_and_error_code() -> None:
    page = (ROOT / "docs" / "protocols" / "http.md").read_text(encoding="utf-8")
    sources = [(ROOT / "server" / name).read_text(encoding="utf-8") for name in ("http_app.py", "http_adapter.py")]
    routes = set(re.findall(r'Route\("([^"]+)"', sources[0]))
    assert {route.replace(":segment", "") for route in routes} == set(
        re.findall(r"^## `(?:[A-Z, ]+) (/\S+)`", page, re.MULTILINE)
    )
    codes = set(re.findall(r'(?:_Refused\(\d+|_error\(\d+|^    \d+:),? "(\w+)"', "\n".join(sources), re.MULTILINE))
    assert codes == set(re.findall(r"^\| \d+ \| `(\w+)` \|", page, re.MULTILINE))
    for limit in (str(TTL_SECONDS_MAX), "64 KiB", "64 MiB"):
        assert limit in page


class StoreNode(FakeNode):
    """A node with a real store below it."""

    def __init__(self, store: everwrite.Database) -> None:
        super().__init__()
        self.store = store  # type: ignore[assignment]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[StoreNode]:
    """A node on an empty store."""
    with everwrite.open(tmp_path / "store", durability="os") as store:
        yield StoreNode(store)


@pytest.mark.parametrize("key", [b"", b"a/why", bytes(range(256)), b"k" * KEY_BYTES_MAX])
def test_the_store_takes_every_key_that_is_let_through(real: StoreNode, key: bytes) -> None:
    target = f"/v1/keys/{quote_from_bytes(key, safe='')}"
    assert call(real, "PUT", target, b"value") == (204, None)
    assert real.store[key] == b"value"
    assert raw(real, "GET", target)[2] == b"value"
    assert call(real, "DELETE", target) == (204, None)
    assert error(real, "GET", target)[:2] == (404, "not_found")


def test_the_store_takes_a_value_of_the_greatest_size(real: StoreNode) -> None:
    value = b"v" * VALUE_BYTES_MAX
    assert call(real, "PUT", "/v1/keys/a", value) == (204, None)
    assert real.store[b"a"] == value


def test_counters_read_as_decimal_text_and_collections_not_at_all(real: StoreNode) -> None:
    store: Any = real.store
    store.counter(b"counter").increment(-42)
    store.set(b"set").add(b"member")
    store.map(b"map")[b"field"] = b"value"
    assert raw(real, "GET", "/v1/keys/counter")[2] == b"-42"
    for kind in ("set", "map"):
        status, answer = call(real, "GET", f"/v1/keys/{kind}")
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (409, "wrong_type", kind)
        assert call(real, "GET", f"/v1/keys/{kind}/why")[1]["type"] == kind
        assert call(real, "PUT", f"/v1/keys/{kind}", b"text") == (204, None)
        assert raw(real, "GET", f"/v1/keys/{kind}")[2] == b"text"


def test_a_ttl_shows_as_a_deadline_and_a_put_without_one_removes_it(real: StoreNode) -> None:
    before = real.store.wall_ms()  # type: ignore[attr-defined]
    call(real, "PUT", "/v1/keys/a?ttl=1000", b"v")
    deadline = call(real, "GET", "/v1/keys/a/why")[1]["expires_at_ms"]
    assert deadline - before >= 1_000_000
    call(real, "PUT", "/v1/keys/a", b"v")
    assert call(real, "GET", "/v1/keys/a/why")[1]["expires_at_ms"] is None


def test_a_full_disk_refuses_writes_alone_and_is_measured() -> None:
    space = Space(at=1 << 30)
    with everwrite.open("/db", "os", files=WatchedFiles(MemoryFiles(), space), background=False) as store:
        node = StoreNode(store)
        assert call(node, "PUT", "/v1/keys/a", b"old") == (204, None)
        space.at = 1
        large = b"v" * (1 << 20)
        status, code, message = error(node, "PUT", "/v1/keys/a", large)
        assert (status, code) == (507, "disk_full")
        assert "nothing was changed" in message
        assert raw(node, "GET", "/v1/keys/a")[2] == b"old"
        assert b"\neverwrite_read_only 1.0\n" in raw(node, "GET", "/metrics")[2]
        space.returned = True
        assert call(node, "PUT", "/v1/keys/a", large) == (204, None)
        assert b"\neverwrite_read_only 0.0\n" in raw(node, "GET", "/metrics")[2]


def test_without_writes_too_a_store_finds_that_there_is_space_again() -> None:
    space = Space(at=1 << 30)
    with everwrite.open("/db", "os", files=WatchedFiles(MemoryFiles(), space), background=False) as store:
        space.at = 1
        with pytest.raises(everwrite.ReadOnlyError):
            store[b"a"] = b"v" * (1 << 20)
        space.returned = True
        eventually(lambda: store.maintain() or not store.statistics()["read_only"])


def test_a_closed_store_is_unavailable(real: StoreNode) -> None:
    real.store.close()  # type: ignore[attr-defined]
    assert error(real, "GET", "/v1/keys/a")[:2] == (503, "unavailable")
    assert error(real, "PUT", "/v1/keys/a", b"v")[:2] == (503, "unavailable")
