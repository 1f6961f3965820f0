"""Bad input on purpose, on every port and in the configuration of a live node.

After each test the node must be the same process, ready, with its data, and hardly larger.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import trustme

from everwrite.server.certs import client_context, init_authority, make_node, node_certs
from tests.cluster.processes import HOST, Node, everwrite, free_base, http_get, running_node

TIMEOUT_SECONDS = 30.0
GROWTH_BYTES_MAX = 24 << 20
REPEATS = 50
TWO_TO_62 = 1 << 62


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority with certificates for the node `home-0` and its peer `guest-0`."""
    folder = tmp_path_factory.mktemp("certs")
    init_authority(folder)
    make_node(folder, region="home", node="home-0")
    make_node(folder, region="guest", node="guest-0")
    return folder


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[Node]:
    """A node that waits for a peer; the peer's part is played by the tests."""
    folder = tmp_path_factory.mktemp("live")
    configuration = folder / "node.toml"
    configuration.write_text(
        f"""
region = "home"
peers = [{{ region = "guest", node = "guest-0", address = "{HOST}:{free_base([0])}" }}]

[certs]
ca = "{certificates / "ca.pem"}"
cert = "{certificates / "home-0.pem"}"
key = "{certificates / "home-0.key"}"
""",
        encoding="utf-8",
    )
    with running_node(folder, f"--config={configuration}") as node:
        yield node


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """The promises of this module, for every test that uses the live node."""
    if "live" not in request.fixturenames:
        yield
        return
    node: Node = request.getfixturevalue("live")
    with node.client() as client:
        client.set("kept", "value")
        client.sadd("kept:set", "a", "b")
    pid, before = node.process.pid, node.process.memory_info().rss
    yield
    assert psutil.pid_exists(pid), node.background.output()
    assert node.background.process.poll() is None, node.background.output()
    assert http_get(node.http_port, "/readyz")[0] == 200
    with node.client() as client:
        assert client.get("kept") == b"value"
        assert client.smembers("kept:set") == {b"a", b"b"}
        client.incr("kept:counter")
    assert node.process.memory_info().rss - before < GROWTH_BYTES_MAX


def answers_until_closed(port: int, payload: bytes, *, finish: bool = False) -> bytes:
    """All that the node answers before it closes the connection. With `finish` we stop sending first."""
    with socket.create_connection((HOST, port), timeout=TIMEOUT_SECONDS) as connection:
        answers = bytearray()
        try:
            connection.sendall(payload)
            if finish:
                connection.shutdown(socket.SHUT_WR)
            while received := connection.recv(1 << 16):
                answers += received
        except (ConnectionResetError, BrokenPipeError):
            pass  # closed while we still sent
        return bytes(answers)


BROKEN_RESP = {
    "bulk of 2^62": b"*1\r\n$%d\r\n" % TWO_TO_62,
    "array of 2^62": b"*%d\r\n" % TWO_TO_62,
    "bulk beyond 64 bits": b"*1\r\n$99999999999999999999999\r\n",
    "negative bulk": b"*1\r\n$-7\r\n",
    "no number": b"*1\r\n$abc\r\n",
    "integer for a bulk": b"*1\r\n:5\r\n",
    "bulk without its end": b"*1\r\n$4\r\nPINGxx",
    "array that never was": b"*abc\r\n",
    "bulk over the limit": b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000000\r\n",
}


@pytest.mark.parametrize("name", BROKEN_RESP)
def test_broken_resp_is_answered_by_an_error_and_closed(live: Node, name: str) -> None:
    for _ in range(REPEATS):
        answer = answers_until_closed(live.redis_port, BROKEN_RESP[name])
        assert answer.startswith(b"-ERR Protocol error"), answer
        assert answer.endswith(b"\r\n")


def test_commands_before_broken_resp_are_answered(live: Node) -> None:
    answer = answers_until_closed(live.redis_port, b"*1\r\n$4\r\nPING\r\n*1\r\n$9223372036854775807\r\n")
    assert answer.startswith(b"+PONG\r\n-ERR Protocol error"), answer


GARBAGE = {
    "zeros": bytes(4096),
    "every byte": bytes(range(256)) * 16,
    "a TLS client": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
    "an HTTP client": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    "a line without end": b"x" * (4 << 20),
    "an unbalanced quote": b'SET k "v\r\n',
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_on_the_redis_port(live: Node, name: str) -> None:
    for _ in range(5):
        answer = answers_until_closed(live.redis_port, GARBAGE[name], finish=True)
        assert not answer or answer.startswith(b"-"), answer


def test_announced_lengths_take_no_memory(live: Node) -> None:
    # 100 times 60 MB, all permitted: memory may grow by what arrives, not by what is announced.
    connections = [socket.create_connection((HOST, live.redis_port), timeout=TIMEOUT_SECONDS) for _ in range(100)]
    before = live.process.memory_info()
    try:
        for connection in connections:
            connection.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$60000000\r\nstart")
        with live.client() as client:
            assert client.ping()
        after = live.process.memory_info()
        assert after.rss - before.rss < GROWTH_BYTES_MAX
        assert after.vms - before.vms < 1 << 30
    finally:
        for connection in connections:
            connection.close()


def test_a_client_that_never_reads_is_bounded(live: Node) -> None:
    with live.client() as client:
        client.set("large", bytes(1 << 20))
    with socket.create_connection((HOST, live.redis_port), timeout=1.0) as connection:
        try:
            for _ in range(2000):
                connection.sendall(b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n")
        except OSError:
            pass  # the node stopped reading, or closed
        with live.client() as client:
            assert client.ping()
        # 2 GB of replies are owed at most.
        assert live.process.memory_info().rss < 600 << 20
    with live.client() as client:
        client.delete("large")


def test_wrong_arity_and_types_are_errors_that_change_nothing(live: Node) -> None:
    with live.client() as client:
        for command in (["GET"], ["SET", "k"], ["HSET", "h", "f"], ["DEL"], ["EXPIRE", "kept"], ["EW.WHY"]):
            with pytest.raises(Exception, match="wrong number of arguments"):
                client.execute_command(*command)
        for command in (["SADD", "kept", "x"], ["INCR", "kept:set"], ["HGET", "kept", "f"], ["GET", "kept:set"]):
            with pytest.raises(Exception, match="WRONGTYPE"):
                client.execute_command(*command)
        for command in (["SET", "k", "v", "EX", "-1"], ["SET", "k", "v", "SOON"], ["INCRBY", "kept", "x"]):
            with pytest.raises(Exception, match=r"invalid|syntax|not an integer"):
                client.execute_command(*command)
        assert client.exists("k", "h") == 0


def plain_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def foreign_tls() -> ssl.SSLContext:
    context = plain_tls()
    trustme.CA().issue_cert("guest-0").configure_cert(context)
    return context


def over_tls(node: Node, context: ssl.SSLContext, payload: bytes) -> bytes:
    """Connect to the peer port, send, and return what comes back until the node closes; b"" when it refuses."""
    received = bytearray()
    with socket.create_connection((HOST, node.peer_port), timeout=TIMEOUT_SECONDS) as raw:
        try:
            with context.wrap_socket(raw) as connection:
                connection.sendall(payload)
                while data := connection.recv(1 << 16):
                    received += data
        except (ssl.SSLError, ConnectionError):
            pass
    return bytes(received)


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_on_the_peer_port(live: Node, name: str) -> None:
    for _ in range(5):
        answers_until_closed(live.peer_port, GARBAGE[name], finish=True)


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


HELLO_OF_ANOTHER_CLUSTER = msgspec.msgpack.encode([1, 1, "other", "guest", "guest-0", 7, 7 << 16, 0, {}, "x"])


@pytest.mark.parametrize("context", [plain_tls, foreign_tls], ids=["no certificate", "another authority"])
def test_peers_without_a_certificate_of_the_cluster_hear_nothing(
    live: Node, context: Callable[[], ssl.SSLContext]
) -> None:
    for _ in range(5):
        assert over_tls(live, context(), frame(HELLO_OF_ANOTHER_CLUSTER)) == b""


BAD_FRAMES = {
    "a length of 4 GiB": b"\xff\xff\xff\xff",
    "a length of 1 MiB before the hello": struct.pack("<I", 1 << 20) + bytes(100_000),
    "an empty frame": frame(b""),
    "no msgpack": frame(b"\xc1" * 100),
    "an unknown message": frame(msgspec.msgpack.encode([99, 1, 2])),
    "a batch before the hello": frame(msgspec.msgpack.encode([2, 1, 1, 1, b"data"])),
    "a map of 2^32 entries": frame(b"\xdf\xff\xff\xff\xff"),
    "nested without end": frame(b"\x91" * 60_000),
    "another cluster": frame(HELLO_OF_ANOTHER_CLUSTER),
    "text": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames_of_a_peer_end_its_connection(live: Node, certificates: Path, name: str) -> None:
    context = client_context(node_certs(certificates, "guest-0"))
    for _ in range(10):
        over_tls(live, context, BAD_FRAMES[name])


def test_garbage_on_the_http_port(live: Node) -> None:
    for payload in (*GARBAGE.values(), b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000, b"GET /v1/keys/%zz HTTP/9.9\r\n\r\n"):
        answer = answers_until_closed(live.http_port, payload, finish=True)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:200]


def test_an_http_body_of_2_to_62_is_refused(live: Node) -> None:
    head = f"PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: {TWO_TO_62}\r\nConnection: close\r\n\r\n"
    answer = answers_until_closed(live.http_port, head.encode(), finish=True)
    assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
    with live.client() as client:
        assert not client.exists("k")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('region = "us-east"\ndurability = "alw', ["node.toml"]),
        ('durability = "sometimes"', ["node.toml", "durability", "sometimes", "always", "interval", "os"]),
        ("redis_port = 70000", ["node.toml", "redis_port", "70000", "65535"]),
        ("redis_prot = 7000", ["node.toml", "redis_prot", "redis_port"]),
        ('[[peers]]\nregion = "eu-west"', ["node.toml", "peers", "address"]),
        ('peers = [{ region = "eu-west", address = "127.0.0.1:7403" }]', ["certs"]),
        ('[certs]\nca = "ca.pem"\ncert = "a.pem"\nkey = "a.key"', ["ca.pem"]),
    ],
)
def test_a_wrong_configuration_names_file_key_and_value(tmp_path: Path, text: str, named: list[str]) -> None:
    (tmp_path / "node.toml").write_text(text, encoding="utf-8")
    outcome = everwrite("serve", "--config=node.toml", cwd=tmp_path, check=False)
    assert outcome.returncode != 0
    for word in named:
        assert word in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["node.toml"]
