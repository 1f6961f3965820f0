"""The clients that people use, end to end: redis-py with its defaults, redis-cli, redis-benchmark."""

from __future__ import annotations

import csv
import subprocess

import pytest
import redis

from tests.cluster.processes import HOST, Node, http_get, program


@pytest.fixture(scope="module", params=[2, 3], ids=["RESP2", "RESP3"])
def py(node: Node, request: pytest.FixtureRequest) -> redis.Redis:
    with redis.Redis(HOST, node.redis_port, protocol=request.param) as client:
        yield client


def cli(node: Node, *arguments: str, text: str | None = None) -> str:
    """What redis-cli prints for one command."""
    outcome = subprocess.run(
        [program("redis-cli"), "-h", HOST, "-p", str(node.redis_port), *arguments],
        input=text,
        stdin=None if text is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert outcome.stderr == ""
    return outcome.stdout.removesuffix("\n")


def test_redis_py_with_its_defaults(node: Node) -> None:
    with redis.Redis(HOST, node.redis_port) as client:
        assert client.ping()
        assert client.set("default", "value")
        assert client.get("default") == b"value"


def test_strings(py: redis.Redis) -> None:
    py.delete("s", "t", "missing")
    assert py.set("s", b"\x00\r\n\xff")
    assert py.get("s") == b"\x00\r\n\xff"
    assert py.strlen("s") == 4
    assert py.set("s", "no", nx=True) is None
    assert py.set("t", "no", xx=True) is None
    assert py.set("s", "new", get=True) == b"\x00\r\n\xff"
    assert py.mset({"s": "1", "t": "2"})
    assert py.mget("s", "missing", "t") == [b"1", None, b"2"]
    assert py.getdel("t") == b"2"
    assert py.exists("s", "t") == 1
    assert py.type("s") == b"string" if isinstance(py.type("s"), bytes) else "string"


def test_numbers(py: redis.Redis) -> None:
    py.delete("n")
    assert [py.incr("n"), py.incrby("n", 41), py.decr("n"), py.decrby("n", 40)] == [1, 42, 41, 1]
    py.set("n", "ten")
    with pytest.raises(redis.ResponseError, match="not an integer"):
        py.incr("n")


def test_sets(py: redis.Redis) -> None:
    py.delete("x")
    assert py.sadd("x", "a", "b", "c") == 3
    assert py.srem("x", "c", "d") == 1
    assert py.smembers("x") == {b"a", b"b"}
    assert py.scard("x") == 2
    assert bool(py.sismember("x", "a")) is True
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        py.get("x")


def test_hashes(py: redis.Redis) -> None:
    py.delete("h")
    assert py.hset("h", mapping={"f": "1", "g": "2"}) == 2
    assert py.hincrby("h", "f", 9) == 10
    assert py.hgetall("h") == {b"f": b"10", b"g": b"2"}
    assert py.hmget("h", "g", "none") == [b"2", None]
    assert py.hdel("h", "g") == 1
    assert py.hlen("h") == 1
    assert bool(py.hexists("h", "f"))


def test_deadlines(py: redis.Redis) -> None:
    py.set("d", "v", ex=1000)
    assert 990 <= py.ttl("d") <= 1000
    assert py.pexpire("d", 500_000)
    assert 490_000 <= py.pttl("d") <= 500_000
    assert py.persist("d")
    assert py.ttl("d") == -1
    assert py.ttl("never there") == -2


def test_keys_are_found_by_scanning(py: redis.Redis) -> None:
    expected = {f"scan:{number}".encode() for number in range(250)}
    py.mset(dict.fromkeys(expected, "v"))
    py.sadd("scan:set", "e")
    assert set(py.scan_iter(match="scan:[0-9]*", count=20)) == expected
    assert set(py.scan_iter(match="scan:*", _type="set")) == {b"scan:set"}
    assert py.dbsize() >= 251


def test_pipelines_answer_in_order(py: redis.Redis) -> None:
    with py.pipeline(transaction=False) as pipeline:
        for number in range(2000):
            pipeline.set(f"p:{number}", number)
            pipeline.get(f"p:{number}")
        answers = pipeline.execute()
    assert answers[1::2] == [str(number).encode() for number in range(2000)]


def test_an_unknown_command_gets_the_reply_that_clients_match(py: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError, match=r"unknown command 'NOSUCH', with args beginning with: 'a' 'b'"):
        py.execute_command("NOSUCH", "a", "b")


def test_why_names_the_region_that_wrote(py: redis.Redis, node: Node) -> None:
    py.set("why", "because")
    assert b"local" in repr(py.execute_command("EW.WHY", "why")).encode()


def test_redis_cli(node: Node) -> None:
    assert cli(node, "PING") == "PONG"
    assert cli(node, "SET", "cli", "value") == "OK"
    assert cli(node, "GET", "cli") == "value"
    assert cli(node, "INCR", "cli:n") == "1"
    assert cli(node, "DEL", "cli") == "1"
    assert cli(node, "GET", "cli") == ""
    assert cli(node, "NOSUCH").startswith("ERR unknown command 'NOSUCH'")
    assert "everwrite" in cli(node, "INFO").lower()


def test_redis_cli_reads_commands_from_a_pipe(node: Node) -> None:
    assert cli(node, text="SET piped 1\nINCR piped\nGET piped\n").split() == ["OK", "2", "2"]
    assert "errors: 0, replies: 2" in cli(node, "--pipe", text="SET mass 1\r\nSET insertion 2\r\n")
    assert cli(node, "GET", "insertion") == "2"


def test_redis_cli_in_resp3(node: Node) -> None:
    assert cli(node, "-3", "HSET", "cli:h", "f", "v") == "1"
    assert cli(node, "-3", "HGETALL", "cli:h").split() == ["f", "v"]


@pytest.mark.parametrize("option", ["--scan", "--bigkeys", "--memkeys"])
def test_redis_cli_walks_the_keys(node: Node, option: str) -> None:
    cli(node, "SET", "walked", "value")
    assert "walked" in cli(node, option) or option != "--scan"


def test_redis_benchmark_runs_to_its_end(node: Node) -> None:
    tests = "ping_inline,ping_mbulk,set,get,incr,sadd,hset,mset"
    command = [program("redis-benchmark"), "-h", HOST, "-p", str(node.redis_port), "-n", "500", "-c", "5", "-P", "4"]
    outcome = subprocess.run(
        [*command, "-t", tests, "--csv"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    rows = [row[0] for row in csv.reader(outcome.stdout.splitlines()) if len(row) > 2]
    for name in ("SET", "GET", "INCR", "SADD", "HSET"):
        assert name in rows, outcome.stdout + outcome.stderr
    assert "ERR" not in outcome.stdout + outcome.stderr


def test_metrics_show_the_operations(node: Node) -> None:
    status, body = http_get(node.http_port, "/metrics")
    assert status == 200
    assert b"everwrite_" in body
