"""A whole node in this process: real sockets, a real store."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.backoff
import redis.retry
import trio

import everwrite
from everwrite.errors import ConfigError, LockedError, PortInUseError, ReadOnlyError, StorageError
from everwrite.memory_files import MemoryFiles
from everwrite.server import certs
from everwrite.server.config import NodeConfig, Peer
from everwrite.server.node import Node, run_node
from tests.support import eventually, eventually_async, free_port


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(60):  # a bound for a hang
            await test()

    trio.run(limited)


def config(folder: Path, **changes: Any) -> NodeConfig:
    values: dict[str, Any] = {"data": folder / "data", "redis_port": 0, "http_port": 0, "peer_port": 0}
    return NodeConfig(**(values | changes))


@asynccontextmanager
async def serving(*configs: NodeConfig) -> AsyncIterator[list[Node]]:
    """Run nodes; at the end those that still run are drained."""
    async with trio.open_nursery() as nursery:
        nodes: list[Node] = [await nursery.start(run_node, each) for each in configs]
        yield nodes
        for node in nodes:
            if node.state == "ready":
                node.drain()


def client(node: Node) -> redis.Redis:
    return redis.Redis(
        port=node.ports["redis"], socket_timeout=20, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    )


async def execute(node: Node, *command: Any) -> Any:
    """One command on a connection of its own."""

    def call() -> Any:
        with client(node) as connection:
            return connection.execute_command(*command)

    return await trio.to_thread.run_sync(call)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    certs.init_authority(folder, cluster="everwrite")
    for region in ("us", "eu"):
        certs.make_node(folder, region=region, node=f"{region}-0")
    return folder


def pair(folder: Path, certificates: Path) -> tuple[NodeConfig, NodeConfig]:
    """Two regions that know each other."""
    ports = {"us": free_port(), "eu": free_port()}
    us, eu = (
        config(
            folder,
            data=folder / region,
            region=region,
            node=f"{region}-0",
            peer_port=ports[region],
            certs=certs.node_certs(certificates, f"{region}-0"),
            peers=(Peer(other, f"127.0.0.1:{ports[other]}"),),
        )
        for region, other in (("us", "eu"), ("eu", "us"))
    )
    return us, eu


async def connected(*nodes: Node) -> None:
    await eventually_async(lambda: all(peer["connected"] for node in nodes for peer in node.status()["peers"]))


def test_a_node_serves_and_keeps_its_data(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(config(tmp_path)) as [node]:
            assert node.ready_reasons() == []
            assert await execute(node, "SET", "key", "value") is True
            assert await execute(node, "INCR", "count") == 1
            assert node.status()["state"] == "ready"
            assert node.status()["store"]["keys"] == 2
        async with serving(config(tmp_path)) as [node]:
            assert await execute(node, "GET", "key") == b"value"
            assert await execute(node, "INCR", "count") == 2

    run(main)


def test_two_nodes_replicate_and_wait_counts_the_other_region(tmp_path: Path, certificates: Path) -> None:
    async def main() -> None:
        async with serving(*pair(tmp_path, certificates)) as [us, eu]:
            await connected(us, eu)

            def write_and_wait() -> Any:
                with client(us) as connection:
                    connection.set("key", "value")
                    return connection.execute_command("WAIT", 1, 20_000)

            assert await trio.to_thread.run_sync(write_and_wait) == 1
            assert await execute(eu, "GET", "key") == b"value"
            why = eu.store.why(b"key")
            assert eu.origin_names()[why["visible"]["origin"]] == ("us", "us-0")
            assert await execute(eu, "WAIT", 2, 50) == 1  # nothing written on this connection; no second region

    run(main)


def test_what_a_client_that_has_gone_waited_for_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(config(tmp_path)) as [node]:

            def wait_and_go() -> None:
                connection = client(node).connection_pool.get_connection()
                connection.send_command("WAIT", 3, 0)
                eventually(lambda: node.statistics()["waits"] == 1)
                connection.disconnect()

            await trio.to_thread.run_sync(wait_and_go)
            await eventually_async(lambda: node.statistics()["waits"] == 0)

    run(main)


def test_expired_keys_go_without_being_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(config(tmp_path)) as [node]:
            for number in range(50):
                node.store.put(b"%d" % number, b"value", ttl=0.05)
            node.store[b"stays"] = b"value"
            await eventually_async(lambda: node.store.key_count() == 1)

    run(main)


def test_on_a_full_disk_expired_keys_wait_for_space(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(config(tmp_path)) as [node]:
            reap, refusals = node.store.reap_expired, 0

            def refuse(limit: int) -> int:
                nonlocal refusals
                refusals += 1
                raise ReadOnlyError("the disk is full")

            node.store.put(b"k", b"value", ttl=0.05)
            node.store.reap_expired = refuse  # type: ignore[method-assign]
            await eventually_async(lambda: refusals >= 2)
            assert node.store.key_count() == 1
            node.store.reap_expired = reap  # type: ignore[method-assign]
            await eventually_async(lambda: node.store.key_count() == 0)

    run(main)


def test_a_write_by_http_is_replicated(tmp_path: Path, certificates: Path) -> None:
    async def main() -> None:
        async with serving(*pair(tmp_path, certificates)) as [us, eu]:
            await connected(us, eu)
            us.store[b"key"] = b"value"
            us.notify_write()
            await eventually_async(lambda: eu.store.get(b"key") == b"value")

    run(main)


def test_draining_answers_waits_pushes_the_log_and_ends(tmp_path: Path, certificates: Path) -> None:
    async def main() -> None:
        us_config, eu_config = pair(tmp_path, certificates)
        async with serving(eu_config) as [eu]:
            async with serving(us_config) as [us]:
                await connected(us, eu)
                answers: list[Any] = []

                async def waiting() -> None:
                    answers.append(await execute(us, "WAIT", 5, 60_000))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiting)
                    await eventually_async(lambda: us.frontend.statistics()["blocked_clients"] == 1)
                    for number in range(200):
                        us.store[b"%d" % number] = b"value"
                    us.drain()
                    assert us.ready_reasons() == ["the node is draining: it is about to stop"]
                assert answers == [1]
            assert len(eu.store) == 200

    run(main)


@pytest.mark.parametrize("setting", ["redis_port", "http_port", "peer_port"])
def test_a_port_in_use_is_named_and_nothing_stays_open(tmp_path: Path, certificates: Path, setting: str) -> None:
    us, _ = pair(tmp_path, certificates)

    async def main() -> None:
        async with serving(config(tmp_path)) as [other]:
            taken = other.ports["redis"]
            values = {name: getattr(us, name) for name in us.__struct_fields__} | {setting: taken}
            with pytest.RaisesGroup(
                pytest.RaisesExc(PortInUseError, match=f"{setting} = {taken}: something listens"),
                allow_unwrapped=True,
                flatten_subgroups=True,
            ):
                await run_node(NodeConfig(**values))
            everwrite.open(us.data).close()

    run(main)


def test_data_of_a_running_node_is_locked(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(config(tmp_path)):
            with pytest.raises(LockedError):
                await run_node(config(tmp_path))

    run(main)


def test_missing_certificates_are_named(tmp_path: Path, certificates: Path) -> None:
    us, _ = pair(tmp_path, certificates)
    values = {name: getattr(us, name) for name in us.__struct_fields__}
    values["certs"] = certs.node_certs(tmp_path, "nowhere")

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"ca\.pem"):
            await run_node(NodeConfig(**values))

    run(main)


def test_after_a_failed_sync_the_node_stops(tmp_path: Path) -> None:
    files = MemoryFiles()
    store = everwrite.open(tmp_path / "data", files=files)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            node: Node = await nursery.start(Node(config(tmp_path), store).run)
            assert await execute(node, "SET", "key", "value")
            files.fail("sync", times=1000)
            with pytest.raises(redis.RedisError):
                await execute(node, "SET", "key", "lost")
            await trio.sleep_forever()

    try:
        with pytest.RaisesGroup(
            pytest.RaisesExc(StorageError, match="has failed and serves nothing until"),
            allow_unwrapped=True,
            flatten_subgroups=True,
        ):
            run(main)
    finally:
        files.heal()
        store.close()


def served(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """`everwrite serve` as a process of its own."""
    log = tmp_path / "node.log"
    command = [sys.executable, "-m", "everwrite", "serve", "--data", str(tmp_path / "data")]
    ports = ["--redis-port", str(free_port()), "--http-port", str(free_port())]
    with log.open("w") as output:
        process = subprocess.Popen([*command, *ports], stderr=output, text=True)
    eventually(lambda: "event=ready" in log.read_text() or process.poll() is not None, what="ready")
    return process, log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    process, log = served(tmp_path)
    process.send_signal(number)
    assert process.wait(30) == 0
    assert "event=drained" in log.read_text()
    everwrite.open(tmp_path / "data", create=False).close()


def test_a_second_signal_is_hard(tmp_path: Path) -> None:
    process, log = served(tmp_path)
    port = int(process.args[process.args.index("--redis-port") + 1])  # type: ignore[index,union-attr,arg-type]
    with redis.Redis(port=port, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0)) as connection:
        # A client that waits for a region that doesn't exist holds the drain up for a moment.
        held = connection.connection_pool.get_connection()
        held.send_command("WAIT", 1, 60_000)
        eventually(lambda: connection.info("clients")["blocked_clients"] == 1)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: "event=draining" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
        held.disconnect()
    assert "event=killed" in log.read_text()
