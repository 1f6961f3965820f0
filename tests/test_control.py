"""Connection setup, introspection, WAIT and EW.WHY, as raw replies and through the clients that people use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from everwrite.server.commands import TABLE
from everwrite.server.control import WAIT_SECONDS_MAX
from everwrite.server.info import SECTIONS
from everwrite.server.resp import encode
from tests.reference.resp_twin import children
from tests.serving import Peer, Serving, request, served
from tests.support import eventually

REDIS_CLI = shutil.which("redis-cli")
REDIS_BENCHMARK = shutil.which("redis-benchmark")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Serving]:
    with served(tmp_path) as serving:
        yield serving


@pytest.fixture
def peer(host: Serving) -> Iterator[Peer]:
    with host.connect() as client:
        yield client


def text_of(reply: bytes) -> str:
    """The text of a bulk or verbatim string."""
    assert reply[:1] in b"$=", reply
    return reply.split(b"\r\n", 1)[1][:-2].decode().removeprefix("txt:")


def info_of(text: str) -> dict[str, str]:
    """INFO's lines."""
    lines = [line for line in text.split("\r\n") if line and not line.startswith("#")]
    return dict(line.split(":", 1) for line in lines)


def test_hello_tells_who_we_are(peer: Peer) -> None:
    fields = {
        "server": "everwrite", "version": "7.4.0", "proto": 3, "id": 1,
        "mode": "standalone", "role": "master", "modules": [],
    }  # fmt: skip
    assert peer.ask("HELLO", 3) == encode(fields, 3)
    assert peer.ask("HELLO") == encode(fields, 3)
    assert peer.ask("HELLO", 2) == encode(fields | {"proto": 2}, 2)
    assert peer.ask("HELLO", 3, "AUTH", "default", "any", "SETNAME", "me") == encode(fields, 3)
    assert peer.ask("CLIENT", "GETNAME") == b"$2\r\nme\r\n"


def test_a_refused_hello_changes_nothing(peer: Peer) -> None:
    assert peer.ask("HELLO", 4).startswith(b"-NOPROTO ")
    assert peer.ask("HELLO", 3, "AUTH", "other", "pw").startswith(b"-WRONGPASS ")
    assert peer.ask("HELLO", 3, "SETNAME", "a b").startswith(b"-ERR Client names cannot")
    assert peer.ask("HELLO", 3, "SETNAME", "me", "FOO") == b"-ERR Syntax error in HELLO option 'FOO'\r\n"
    assert peer.ask("GET", "none") == b"$-1\r\n"
    assert peer.ask("CLIENT", "GETNAME") == b"$-1\r\n"


def test_replies_switch_with_the_protocol(peer: Peer) -> None:
    peer.ask("SADD", "s", "a")
    peer.ask("HSET", "h", "f", "v")
    assert [peer.ask("SMEMBERS", "s")[:1], peer.ask("HGETALL", "h")[:1], peer.ask("INFO")[:1]] == [b"*", b"*", b"$"]
    peer.ask("HELLO", 3)
    assert [peer.ask("SMEMBERS", "s")[:1], peer.ask("HGETALL", "h")[:1], peer.ask("INFO")[:1]] == [b"~", b"%", b"="]
    assert peer.ask("GET", "none") == b"_\r\n"
    assert peer.ask("RESET") == b"+RESET\r\n"
    assert peer.ask("GET", "none") == b"$-1\r\n"


def test_clients_are_listed_and_killed(host: Serving, peer: Peer) -> None:
    peer.ask("CLIENT", "SETNAME", "first")
    peer.ask("CLIENT", "SETINFO", "LIB-NAME", "lib")
    peer.ask("CLIENT", "SETINFO", "LIB-VER", "1.2")
    with host.connect() as other, host.connect() as third:
        assert other.ask("CLIENT", "ID") == b":2\r\n"
        third.ask("PING")
        lines = text_of(peer.ask("CLIENT", "LIST")).splitlines()
        assert [line.split()[0] for line in lines] == ["id=1", "id=2", "id=3"]
        assert all(word in lines[0].split() for word in ("name=first", "lib-name=lib", "lib-ver=1.2", "cmd=client"))
        assert "cmd=ping" in lines[2].split()
        address = f"127.0.0.1:{other.sock.getsockname()[1]}"
        assert f"addr={address}" in lines[1].split()
        assert text_of(peer.ask("CLIENT", "INFO")).split()[0] == "id=1"
        assert len(text_of(peer.ask("CLIENT", "LIST", "ID", 2, 3)).splitlines()) == 2
        assert text_of(peer.ask("CLIENT", "LIST", "TYPE", "replica")) == ""
        assert peer.ask("CLIENT", "KILL", "ID", 2) == b":1\r\n"
        assert other.ended()
        assert peer.ask("CLIENT", "KILL", f"127.0.0.1:{third.sock.getsockname()[1]}") == b"+OK\r\n"
        assert third.ended()
        assert peer.ask("CLIENT", "KILL", "ID", 2) == b":0\r\n"
        assert peer.ask("CLIENT", "KILL", address) == b"-ERR No such client\r\n"
    assert peer.ask("CLIENT", "KILL", "ID", 1) == b":1\r\n"
    assert peer.ended()


def test_attributes_must_be_plain(peer: Peer) -> None:
    assert peer.ask("CLIENT", "SETINFO", "LIB-NAME", "a b").startswith(b"-ERR lib-name cannot contain")
    assert peer.ask("CLIENT", "SETINFO", "COLOUR", "red") == b"-ERR Unrecognized option 'COLOUR'\r\n"
    assert peer.ask("CLIENT", "SETNAME", "\x7f").startswith(b"-ERR Client names cannot")


def test_info_has_what_tools_look_for(host: Serving, peer: Peer) -> None:
    peer.ask("SET", "a", 1)
    peer.ask("GET", "a")
    peer.ask("GET", "none")
    info = info_of(text_of(peer.ask("INFO")))
    assert info["redis_version"] == "7.4.0"
    assert info["loading"] == "0"
    assert info["durability"] == "os"
    assert info["connected_clients"] == "1"
    assert info["blocked_clients"] == "0"
    assert info["total_commands_processed"] == "4"
    assert (info["keyspace_hits"], info["keyspace_misses"]) == ("1", "1")
    assert info["db0"].startswith("keys=1,")
    assert int(info["used_memory"]) > 1 << 20
    only = text_of(peer.ask("INFO", "Stats"))
    assert only.startswith("# Stats\r\n")
    assert only.count("#") == 1
    everything = text_of(peer.ask("INFO", "everything"))
    assert everything.count("# ") == len(SECTIONS)
    assert info_of(everything)["cmdstat_get"] == "calls=2"
    assert text_of(peer.ask("INFO", "nosuch")) == ""


def test_commands_are_described(peer: Peer) -> None:
    assert peer.ask("COMMAND", "COUNT") == b":%d\r\n" % len(TABLE)
    assert len(children(peer.ask("COMMAND"))) == len(TABLE)
    assert len(children(peer.ask("COMMAND", "LIST"))) == len(TABLE)
    found = children(peer.ask("COMMAND", "INFO", "get", "nosuch"))
    assert found[0].startswith(b"*10\r\n$3\r\nget\r\n:2\r\n")
    assert found[1] == b"$-1\r\n"
    docs = children(peer.ask("COMMAND", "DOCS", "GET", "nosuch"))
    assert docs[0] == b"$3\r\nget\r\n"
    assert b"Get the value of a key" in docs[1]
    assert len(docs) == 2


def test_configuration_is_told_in_redis_terms(peer: Peer) -> None:
    assert peer.ask("CONFIG", "GET", "save") == encode({"save": ""})
    assert peer.ask("CONFIG", "GET", "APPEND*") == encode({"appendfsync": "no", "appendonly": "yes"})
    assert peer.ask("CONFIG", "SET", "save", "1") == b"-ERR unknown subcommand 'SET'. Try CONFIG HELP.\r\n"


def test_wait_counts_regions(host: Serving, peer: Peer) -> None:
    assert peer.ask("WAIT", 0, 0) == b":0\r\n"
    peer.ask("SET", "a", 1)
    peer.send(b"WAIT 2 1500\r\nWAIT 1 0\r\n")
    for expected, count in (((2, 1.5), 2), ((1, WAIT_SECONDS_MAX), 0)):
        timestamp, regions, seconds, done = eventually(lambda: host.waits.pop() if host.waits else None)
        assert (regions, seconds) == expected
        assert timestamp == host.store.last_timestamp
        host.call(done, count)
        assert peer.reply() == b":%d\r\n" % count


def test_why_names_regions(host: Serving, peer: Peer) -> None:
    origin = f"{host.store.origin:016x}"
    host.store.system_set(f"origin/{origin}".encode(), msgspec.msgpack.encode({"region": "eu", "node": "eu-0"}))
    peer.ask("SET", "k", "v")
    peer.ask("HELLO", 3)
    why = peer.ask("EW.WHY", "k")
    assert why.startswith(b"%")
    for part in ("visible", "context", "rule", "eu", "eu-0", origin, f"{origin} eu/eu-0"):
        assert b"\r\n%s\r\n" % part.encode() in why, part
    assert b"$7\r\nvisible\r\n_\r\n" in peer.ask("EW.WHY", "none")


def test_redis_py_with_its_defaults(host: Serving) -> None:
    client = redis.Redis(port=host.port)
    try:
        assert client.ping()
        assert client.set("k", "v", ex=1000, get=True) is None
        assert client.get("k") == b"v"
        assert 0 < client.ttl("k") <= 1000
        assert client.incrby("n", 5) == 5
        assert client.sadd("s", "a", "b") == 2
        assert client.smembers("s") == {b"a", b"b"}
        assert client.hset("h", mapping={"f": 1, "g": 2}) == 2
        assert client.hgetall("h") == {b"f": b"1", b"g": b"2"}
        assert sorted(client.scan_iter(count=1)) == [b"h", b"k", b"n", b"s"]
        assert client.info()["db0"]["keys"] == 4
        assert client.config_get("save") == {"save": ""}
        assert client.client_list()[0]["lib-name"].startswith("redis-py")
        assert client.command_count() == len(TABLE)
        assert client.time()[0] > 1 << 30
        with pytest.raises(redis.ResponseError, match="unknown command 'LPUSH'"):
            client.lpush("l", "x")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            client.get("s")
        pipeline = client.pipeline(transaction=False)
        for number in range(500):
            pipeline.set(f"p{number}", number)
        assert pipeline.execute() == [True] * 500
        assert client.dbsize() == 504
        assert client.delete("k", "n", "none") == 2
    finally:
        client.close()


def run(*command: str | Path) -> str:
    """Run a client program to its end, and return what it printed."""
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.mark.skipif(REDIS_CLI is None, reason="REDIS-CLI IS MISSING: its modes were not tried")
def test_redis_cli_modes(host: Serving, peer: Peer) -> None:
    assert REDIS_CLI is not None
    for number in range(200):
        peer.ask("SET", f"string:{number}", "v" * number)
    peer.ask("SADD", "set", *range(30))
    peer.ask("HSET", "hash", *range(40))
    cli = [REDIS_CLI, "-p", str(host.port)]
    assert run(*cli, "-3", "hgetall", "hash").count("\n") == 20
    assert len(run(*cli, "--scan", "--pattern", "string:*").split()) == 200
    bigkeys = run(*cli, "--bigkeys")
    assert "200 strings" in bigkeys
    assert "'\"set\"' has 30 members" in bigkeys or '"set" with 30 members' in bigkeys, bigkeys
    assert "Sampled 202 keys" in run(*cli, "--memkeys")
    assert run(*cli, "ping") == "PONG\n"


@pytest.mark.skipif(REDIS_CLI is None, reason="REDIS-CLI IS MISSING: --stat was not tried")
def test_redis_cli_stat(host: Serving, peer: Peer) -> None:
    assert REDIS_CLI is not None
    peer.ask("MSET", "a", 1, "b", 2)
    # To a pipe it writes by the block, and a block takes a minute.
    terminal, shown = os.openpty()
    with (
        os.fdopen(terminal, "rb", buffering=0) as reader,
        os.fdopen(shown, "wb", buffering=0) as writer,
        subprocess.Popen([REDIS_CLI, "-p", str(host.port), "--stat"], stdout=writer) as process,
    ):
        output = b""
        try:
            while output.count(b"\n") < 3:
                output += reader.read(4096)
        finally:
            process.terminate()
    lines = output.splitlines()
    assert lines[1].split()[0] == b"keys"
    assert lines[2].split()[0] == b"2"


@pytest.mark.skipif(REDIS_BENCHMARK is None, reason="REDIS-BENCHMARK IS MISSING: it was not tried")
def test_redis_benchmark_runs(host: Serving) -> None:
    assert REDIS_BENCHMARK is not None
    tests = "ping_inline,ping_mbulk,set,get,incr,sadd,hset,mset"
    lines = run(REDIS_BENCHMARK, "-p", str(host.port), "-n", "500", "-c", "10", "-P", "4", "-t", tests, "--csv")
    assert len(lines.splitlines()) == 1 + len(tests.split(","))


def test_a_deadline_bounds_the_next_wait_alone(tmp_path: Path) -> None:
    with served(tmp_path) as host, host.connect() as one, host.connect() as two:
        one.send(request("EW.DEADLINE", 50) + request("WAIT", 1, 0))
        two.send(request("WAIT", 1, 0))
        eventually(lambda: len(host.waits) == 2)
        assert sorted(seconds for _, _, seconds, _ in host.waits) == [0.05, 3600.0]
        for _, _, _, done in host.waits:
            host.call(done, 0)
        assert [one.reply(), one.reply(), two.reply()] == [b"+OK\r\n", b":0\r\n", b":0\r\n"]
        one.send(request("WAIT", 1, 7))
        eventually(lambda: len(host.waits) == 3)
        assert host.waits[-1][2] == 0.007
        host.call(host.waits[-1][3], 0)
