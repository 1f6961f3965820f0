"""Nodes of one region as real processes: what each level promises, and what is told when replicas are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.cluster.processes import Region, running_region
from tests.support import eventually


def refused(client: redis.Redis, *command: str) -> str:
    """The error with which a node answers."""
    with pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*command)
    return str(caught.value)


def test_a_quorum_carries_reads_and_writes_from_any_node_to_any(tmp_path: Path) -> None:
    with running_region(tmp_path) as region:
        clients = [node.client() for node in region.nodes]
        for number in range(30):
            writer, reader = clients[number % 3], clients[(number + 1) % 3]
            assert writer.set("k", number)
            assert reader.get("k") == b"%d" % number
            assert clients[(number * 7) % 3].incr("n") == number + 1
        pipeline = clients[0].pipeline(transaction=False)
        for number in range(500):
            pipeline.sadd("s", number)
        assert pipeline.execute() == [1] * 500
        assert [client.scard("s") for client in clients] == [500] * 3
        # One of them is gone: nothing is refused.
        region.nodes[1].end()
        assert eventually_set(clients[0], b"without one")
        assert clients[2].get("k") == b"without one"
        assert "required 3, alive 2" in refused_all(clients[0])
        # Two are gone.
        region.nodes[2].end()
        eventually(lambda: "required 2, alive 1" in refused(clients[0], "SET", "k", "not applied"))
        assert clients[0].execute_command("EW.CONSISTENCY", "ONE") == b"OK"
        assert clients[0].get("k") == b"without one"
        for client in clients:
            client.close()


def eventually_set(client: redis.Redis, value: bytes) -> bool:
    """Set, again while the node hasn't noticed yet that a replica is gone."""

    def done() -> bool:
        try:
            return bool(client.set("k", value))
        except redis.ResponseError as error:
            assert "TIMEOUT" in str(error)
            return False

    eventually(done)
    return True


def refused_all(client: redis.Redis) -> str:
    client.execute_command("EW.CONSISTENCY", "ALL")
    try:
        return refused(client, "GET", "k")
    finally:
        client.execute_command("EW.CONSISTENCY", "LOCAL_QUORUM")


def test_a_node_alone_never_acknowledges_at_a_quorum(tmp_path: Path) -> None:
    """Not even its first request, before it has heard of any other."""
    region = Region(tmp_path)
    try:
        node = region.nodes[0].start()
        with node.client() as client:
            answer = ""
            try:
                client.set("k", "v")
            except (redis.ResponseError, redis.exceptions.BusyLoadingError) as error:
                answer = str(error)
            assert "alive 1" in answer or "catching up" in answer
            client.execute_command("EW.CONSISTENCY", "ONE")
            assert client.get("k") is None
            assert client.set("k", "v")
    finally:
        region.end()
