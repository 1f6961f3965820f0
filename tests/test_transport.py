"""The trio shell over real sockets and real TLS on loopback."""

from __future__ import annotations

import logging
import random
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from everwrite.errors import StorageError
from everwrite.server import certs
from everwrite.server.peer import PeerAddress
from everwrite.server.replication import Replicator
from everwrite.server.session import Identity
from everwrite.server.settings import ReplicationSettings
from everwrite.server.transport import Transport
from tests.fake_store import FakeStore
from tests.support import eventually_async, free_port

SETTINGS = ReplicationSettings(
    heartbeat_interval=0.2, dead_after=2.0, backoff_min=0.02, backoff_max=0.2, dial_timeout=2.0
)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Shell:
    """A transport with all that it needs, on a port of loopback."""

    def __init__(self, folder: Path, region: str, store_id: int, port: int, peers: dict[str, int]) -> None:
        self.store = FakeStore(store_id, wall_ms)
        self.port = port
        self.resolved: dict[int, int] = {}
        self.replicator = Replicator(
            self.store,
            Identity("test", region, f"{region}-0"),
            [PeerAddress(name, None, f"127.0.0.1:{number}") for name, number in peers.items()],
            rng=random.Random(store_id),
            settings=SETTINGS,
        )
        files = certs.node_certs(folder, f"{region}-0")
        self.server_context = certs.server_context(files)
        self.client_context = certs.client_context(files)
        self.transport = Transport(
            self.replicator,
            commit=self.store.commit,
            commit_blocks=True,
            server_context=self.server_context,
            client_context=self.client_context,
            on_resolve=self.resolved.__setitem__,
        )

    def set(self, key: bytes, value: bytes) -> int:
        timestamp = self.store.set(key, value)
        self.transport.local_write()
        return timestamp

    def errors(self) -> dict[str, int]:
        return {name: value for name, value in self.replicator.statistics().items() if name.startswith("errors_")}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    certs.init_authority(folder, cluster="test")
    for region in ("us", "eu"):
        certs.make_node(folder, region=region, node=f"{region}-0")
    return folder


@asynccontextmanager
async def running(*shells: Shell) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for shell in shells:
            listeners = await trio.open_tcp_listeners(shell.port, host="127.0.0.1")
            await nursery.start(shell.transport.run, listeners)
        yield
        nursery.cancel_scope.cancel()


def pair(folder: Path) -> tuple[Shell, Shell]:
    ports = {"us": free_port(), "eu": free_port()}
    return (
        Shell(folder, "us", 1, ports["us"], {"eu": ports["eu"]}),
        Shell(folder, "eu", 2, ports["eu"], {"us": ports["us"]}),
    )


async def connected(*shells: Shell) -> None:
    await eventually_async(
        lambda: all(peer["connected"] for shell in shells for peer in shell.replicator.statuses(trio.current_time())),
        what="connected",
    )


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(60):  # a bound for a hang
            await test()

    trio.run(limited)


async def answer_to(stream: trio.SSLStream[trio.SocketStream], data: bytes) -> bytes:
    """What a TLS client gets that sends `data`, up to the end of the connection."""
    answer = b""
    try:
        await stream.send_all(data)
        while piece := await stream.receive_some():
            answer += piece
    except trio.BrokenResourceError:
        pass
    await trio.aclose_forcefully(stream)
    return answer


def test_two_nodes_replicate_over_tls(authority: Path) -> None:
    async def main() -> None:
        us, eu = pair(authority)
        async with running(us, eu):
            await connected(us, eu)
            for number in range(500):
                us.set(b"us%d" % number, b"x" * 100)
                eu.set(b"eu%d" % number, b"y" * 100)
            token = us.transport.wait(us.store.last_timestamp, 1, 20.0)
            await eventually_async(lambda: token in us.resolved)
            assert us.resolved[token] == 1
            await eventually_async(lambda: us.store.visible() == eu.store.visible(), what="converged")
            assert len(us.store.visible()) == 1000

    run(main)


def test_values_of_many_megabytes_pass(authority: Path) -> None:
    async def main() -> None:
        us, eu = pair(authority)
        async with running(us, eu):
            await connected(us, eu)
            for number in range(8):
                us.set(b"big%d" % number, bytes([number]) * (5 << 20))
            await eventually_async(lambda: eu.store.visible() == us.store.visible(), what="converged")
            await eventually_async(us.replicator.drained)

    run(main)


def test_a_peer_that_starts_later_is_found(authority: Path) -> None:
    async def main() -> None:
        us, eu = pair(authority)
        async with running(us):
            us.set(b"key", b"value")
            await eventually_async(lambda: us.errors().get("errors_unreachable", 0) >= 2)
            async with running(eu):
                await eventually_async(lambda: eu.store.get(b"key") == b"value")

    run(main)


def test_stop_pushes_the_log_and_says_goodbye(authority: Path) -> None:
    async def main() -> None:
        us, eu = pair(authority)
        async with running(us, eu):
            await connected(us, eu)
            for number in range(3000):
                us.store.set(b"%d" % number, b"value")
            us.transport.local_write()
            await us.transport.stop(20.0)
            assert len(eu.store.visible()) == 3000
            await eventually_async(lambda: eu.errors().get("errors_peer_stopping", 0) > 0)

    run(main)


def test_a_client_without_a_certificate_is_refused(authority: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        us, _ = pair(authority)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(authority / "ca.pem")
        async with running(us):
            for _ in range(3):
                stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", us.port), context)
                assert await answer_to(stream, b"hello") == b""
            await eventually_async(lambda: us.transport.statistics()["tls_failures"] == 3)
            assert us.replicator.statistics()["connections"] == 0

    with caplog.at_level(logging.WARNING):
        run(main)
    refusals = [record.getMessage() for record in caplog.records if "refused a connection" in record.getMessage()]
    assert len(refusals) == 1
    assert "certificate" in refusals[0]


def test_a_certificate_of_another_authority_is_refused(authority: Path, tmp_path: Path) -> None:
    certs.init_authority(tmp_path, cluster="test")
    certs.make_node(tmp_path, region="eu", node="eu-0")

    async def main() -> None:
        us, _ = pair(authority)
        stranger = Shell(tmp_path, "eu", 2, free_port(), {"us": us.port})
        async with running(us, stranger):
            await eventually_async(lambda: stranger.errors().get("errors_unreachable", 0) >= 2)
            assert us.replicator.statistics()["connections"] == 0

    run(main)


def test_a_certificate_that_names_no_node_is_refused(authority: Path, tmp_path: Path) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("localhost")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "us-0.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "us-0.key"))

    async def main() -> None:
        us = Shell(tmp_path, "us", 1, free_port(), {})
        us_again = Shell(tmp_path, "us", 2, free_port(), {"eu": us.port})
        async with running(us, us_again):
            await eventually_async(lambda: us_again.errors().get("errors_unreachable", 0) >= 1)
            status = us_again.replicator.statuses(trio.current_time())[0]
            assert "certificate must have one URI" in status["last_error"]["message"]

    run(main)


def test_the_wrong_node_at_an_address_is_refused(authority: Path) -> None:
    async def main() -> None:
        _, eu = pair(authority)
        lost = Shell(authority, "us", 3, free_port(), {"ap": eu.port})
        async with running(lost, eu):
            await eventually_async(lambda: lost.errors().get("errors_identity", 0) >= 1)
            message = lost.replicator.statuses(trio.current_time())[0]["last_error"]["message"]
            assert "should be peer ap but shows the certificate of eu/eu-0" in message

    run(main)


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack("<I", 0xFFFFFFFF),
    struct.pack("<I", 70_000) + b"x" * 100,
    struct.pack("<I", 5) + b"\xc1\xc1\xc1\xc1\xc1",
    struct.pack("<I", 0),
    struct.pack("<I", 3) + b"\x93\x03\x01\x80",
]


def test_garbage_after_the_handshake_ends_one_connection(authority: Path) -> None:
    async def main() -> None:
        us, eu = pair(authority)
        async with running(us, eu):
            await connected(us, eu)
            for data in GARBAGE:
                stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", us.port), eu.client_context)
                await stream.do_handshake()
                assert b"eu/eu-0 sent" in await answer_to(stream, data), data
            stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", us.port), eu.client_context)
            await stream.do_handshake()
            await stream.send_all(b"\x00")  # a part of a length, and nothing more
            await trio.aclose_forcefully(stream)
            us.set(b"still", b"there")
            await eventually_async(lambda: eu.store.get(b"still") == b"there")
            assert us.errors()["errors_oversized"] >= 3
            assert us.errors()["errors_garbage"] >= 2

    run(main)


def test_a_reset_connection_is_made_again(authority: Path) -> None:
    async def main() -> None:
        us, eu = pair(authority)
        async with running(us, eu):
            await connected(us, eu)
            for number in range(3):
                for connection in list(us.transport._connections.values()):
                    # Linger 0: the close becomes a reset, as of a load balancer's probe.
                    sock = connection.stream.transport_stream.socket
                    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
                us.set(b"%d" % number, b"again")
                await eventually_async(lambda number=number: eu.store.get(b"%d" % number) == b"again")  # type: ignore[misc]

    run(main)


def test_a_failed_commit_ends_the_node(authority: Path) -> None:
    async def main() -> None:
        us, eu = pair(authority)
        async with running(us, eu):
            await connected(us, eu)
            eu.store.fail_commits = True
            us.set(b"key", b"value")
            await trio.sleep_forever()

    with pytest.RaisesGroup(StorageError, allow_unwrapped=True, flatten_subgroups=True):
        run(main)


def test_a_defect_met_on_a_connection_ends_only_that(authority: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        us, eu = pair(authority)
        async with running(us, eu):
            await connected(us, eu)
            original = eu.store.apply_batch

            def broken(batch: bytes) -> None:
                raise AssertionError("a defect")

            eu.store.apply_batch = broken  # type: ignore[method-assign,assignment]
            us.set(b"key", b"value")
            await eventually_async(lambda: eu.transport.statistics()["internal_errors"] >= 2)
            eu.store.apply_batch = original  # type: ignore[method-assign]
            await eventually_async(lambda: eu.store.get(b"key") == b"value")

    run(main)
    assert any("an internal error" in record.getMessage() or record.exc_info for record in caplog.records)
