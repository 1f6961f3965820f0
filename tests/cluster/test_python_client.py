"""The Python clients beside nodes that die."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

import everwrite
from everwrite.errors import Outcome
from tests.cluster.processes import HOST, Node, running_node
from tests.support import eventually

TIMEOUT = 30.0  # a bound, far above what anything takes


def address(node: Node) -> str:
    return f"{HOST}:{node.redis_port}"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Node, ...]]:
    with ExitStack() as stack:
        folders = tmp_path / "home", tmp_path / "away"
        for folder in folders:
            folder.mkdir()
        yield tuple(stack.enter_context(running_node(folder)) for folder in folders)


def test_reads_and_puts_go_on_elsewhere_and_come_back(pair: tuple[Node, Node]) -> None:
    home, away = pair
    regions = {"home": [address(home)], "away": [address(away)]}
    with everwrite.Client(regions=regions, home="home", timeout=TIMEOUT) as client:
        client.put(b"where", b"home")
        home.process.kill()
        for _ in range(50):
            client.put(b"where", b"away")
        assert client.get(b"where") == b"away"
        home.start()
        eventually(lambda: client.get(b"where") == b"home", what="reading at home again")
        assert client.statistics()["nodes_suspected"] == 0


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_many_tasks_lose_a_node_and_none_is_left_waiting(pair: tuple[Node, Node], backend: str) -> None:
    home, away = pair
    regions = {"home": [address(home)], "away": [address(away)]}
    done: list[int] = []
    unknown: list[everwrite.EverwriteError] = []

    async def work(client: everwrite.AsyncClient, number: int) -> None:
        for step in range(100):
            await client.put(b"key%d" % number, b"%d" % step)
            try:
                await client.counter(b"count").increment()
            except everwrite.EverwriteError as error:
                unknown.append(error)
            if number == 0 and step == 20:
                home.process.kill()
        done.append(number)

    async def main() -> list[bytes | None]:
        async with everwrite.AsyncClient(regions=regions, home="home", timeout=TIMEOUT) as client:
            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(work, client, number)
            return await client.get_many([b"key%d" % number for number in range(10)])

    assert anyio.run(main, backend=backend) == [b"99"] * 10
    assert sorted(done) == list(range(10))
    assert all(error.outcome is Outcome.UNKNOWN for error in unknown)
    with everwrite.Client(address(away)) as client:
        counted = client.counter(b"count").value()
    with everwrite.Client(address(home.start())) as client:
        counted += client.counter(b"count").value()
    assert 1000 - len(unknown) <= counted <= 1000
