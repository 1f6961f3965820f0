"""The Python clients beside nodes that die."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

import everwrite
from everwrite.errors import Outcome
from tests.cluster.processes import HOST, Node, running_node, running_region
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
    failed: list[everwrite.EverwriteError] = []

    async def work(client: everwrite.AsyncClient, number: int) -> None:
        for step in range(100):
            await client.put(b"key%d" % number, b"%d" % step)
            try:
                # Whether the dead node has applied it, only that node can tell.
                await client.counter(b"count").increment(timeout=1)
            except everwrite.EverwriteError as error:
                failed.append(error)
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
    unknown = sum(error.outcome is Outcome.UNKNOWN for error in failed)
    with everwrite.Client(address(away)) as client:
        counted = client.counter(b"count").value()
    with everwrite.Client(address(home.start())) as client:
        counted += client.counter(b"count").value()
    assert 1000 - len(failed) <= counted <= 1000 - len(failed) + unknown


class Killer:
    """Kills nodes in turn with SIGKILL, each time that so many increments are done, and starts them again."""

    def __init__(self, nodes: Sequence[Node], every: int, times: int) -> None:
        self.nodes = nodes
        self.every = every
        self.times = times
        self.done = 0
        self._ready = threading.Semaphore(0)
        self._lock = threading.Lock()

    def count(self) -> None:
        """One more increment is acknowledged."""
        with self._lock:
            self.done += 1
            if self.done % self.every == 0:
                self._ready.release()

    def run(self, until: Callable[[], object] = lambda: None) -> None:
        """Do so; `until` returns when the next one may be killed."""
        for turn in range(self.times):
            assert self._ready.acquire(timeout=TIMEOUT)
            node = self.nodes[turn % len(self.nodes)]
            node.process.kill()
            node.start()
            until()


@pytest.mark.parametrize("backend", ["blocking", "trio", "asyncio"])
def test_increments_are_exact_while_their_node_is_killed(tmp_path: Path, backend: str) -> None:
    workers, each, amount = 8, 100, 3
    with running_node(tmp_path) as node, ThreadPoolExecutor(workers + 1) as threads:
        killer = Killer([node], every=workers * each // 4, times=2)
        killing = threads.submit(killer.run)
        if backend == "blocking":
            with everwrite.Client(address(node), timeout=TIMEOUT) as client:

                def work() -> None:
                    for _ in range(each):
                        client.counter(b"n").increment(amount)
                        killer.count()

                for running in [threads.submit(work) for _ in range(workers)]:
                    running.result()
                retries = client.statistics()["retries"]
        else:

            async def work_async(client: everwrite.AsyncClient) -> None:
                for _ in range(each):
                    await client.counter(b"n").increment(amount)
                    killer.count()

            async def main() -> int:
                async with everwrite.AsyncClient(address(node), timeout=TIMEOUT) as client:
                    async with anyio.create_task_group() as tasks:
                        for _ in range(workers):
                            tasks.start_soon(work_async, client)
                    return client.statistics()["retries"]

            retries = anyio.run(main, backend=backend)
        killing.result()
        assert retries > 0, "the node was killed, and nobody noticed"
        with everwrite.Client(address(node), timeout=TIMEOUT) as client:
            assert client.counter(b"n").value() == workers * each * amount
            assert list(client.keys()) == [b"n"]


def test_levels_of_a_region_and_what_is_told_when_it_has_no_quorum(tmp_path: Path) -> None:
    with running_region(tmp_path) as region:
        addresses = [address(node) for node in region.nodes]
        with everwrite.Client(addresses, timeout=TIMEOUT, consistency="LOCAL_QUORUM") as client:
            client.put(b"k", b"v")
            for each in addresses:
                with everwrite.Client(each, timeout=TIMEOUT) as other:
                    assert other.get(b"k", consistency="local_quorum") == b"v"
            assert client.get(b"k", consistency="ALL") == b"v"
            assert client.counter(b"n").increment(2) == 2

            region.nodes[0].process.kill()
            for number in range(20):
                client.put(b"k", b"%d" % number)
                assert client.get(b"k") == b"%d" % number
            eventually(lambda: refusal(client, "ALL").required == 3, what="a level that needs all is refused")

            region.nodes[1].process.kill()
            error = eventually(lambda: refusal(client, "LOCAL_QUORUM"), what="a quorum is refused")
            assert (error.required, error.alive, error.outcome) == (2, 1, Outcome.NOT_APPLIED)
            assert client.get(b"k", consistency="ONE") == b"19"


def test_increments_are_exact_while_nodes_of_a_region_are_killed(tmp_path: Path) -> None:
    workers, each, amount = 6, 100, 3
    # What nodes wait for each other at most: not what this is about, and machines may be slow.
    patient = f"--request-timeout-ms={1000 * TIMEOUT:.0f}"
    with running_region(tmp_path, 3, patient) as region, ThreadPoolExecutor(2 * workers) as threads:
        addresses = [address(node) for node in region.nodes]
        # A client starts at any node: with several, more than one node is in use when it dies.
        clients = [everwrite.Client(addresses, timeout=TIMEOUT) for _ in range(workers)]
        killer = Killer(region.nodes[:2], every=workers * each // 3, times=2)

        def work(client: everwrite.Client) -> None:
            for _ in range(each):
                client.counter(b"n").increment(amount)
                killer.count()

        killing = threads.submit(killer.run, region.wait_connected)
        for running in [threads.submit(work, client) for client in clients]:
            running.result()
        killing.result()
        assert clients[0].counter(b"n").value(consistency="ALL") == workers * each * amount
        for client in clients:
            client.close()


def refusal(client: everwrite.Client, level: str) -> everwrite.Unavailable:
    """How a write at this level is refused, once the survivors have noticed that too few are left."""
    while True:
        try:
            client.put(b"refused", b"", consistency=level)
        except everwrite.Unavailable as error:
            return error
        except (everwrite.WriteTimeout, everwrite.ReadTimeout):
            continue
        raise AssertionError(f"a write at {level} was acknowledged")
