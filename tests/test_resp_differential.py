"""The same commands to this server and to redis-server: the replies must be the same bytes.

Only the order of unordered collections may differ. Skipped where there is no redis-server.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reference.resp_twin import children, split_words
from tests.serving import Peer, Serving, request, served
from tests.support import eventually, free_port

REDIS_SERVER = shutil.which("redis-server")
UNORDERED = {b"smembers", b"hgetall"}
FAR_MS = 33_000_000_000_000  # a time to live that doesn't end while tests run

pytestmark = pytest.mark.skipif(REDIS_SERVER is None, reason="REDIS-SERVER IS MISSING: replies were not compared")


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    assert REDIS_SERVER is not None
    port = free_port()
    options = {"--port": str(port), "--bind": "127.0.0.1", "--save": "", "--appendonly": "no"}
    options["--dir"] = str(tmp_path_factory.mktemp("redis"))
    with subprocess.Popen(
        [REDIS_SERVER, *(word for pair in options.items() for word in pair)], stdout=subprocess.DEVNULL
    ) as process:

        def up() -> bool:
            assert process.poll() is None
            try:
                with Peer(port) as peer:
                    return peer.ask("PING") == b"+PONG\r\n"
            except OSError:
                return False

        try:
            eventually(up, what="redis-server answers")
            yield port
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(tmp_path_factory.mktemp("store")) as serving:
        yield serving


class Both:
    """One connection to each server."""

    def __init__(self, host: Serving, ours: Peer, theirs: Peer, protocol: int) -> None:
        self.host = host
        self.ours = ours
        self.theirs = theirs
        for peer in (ours, theirs):
            hello = peer.ask("HELLO", protocol)
            assert hello.startswith(b"%" if protocol == 3 else b"*")

    def clear(self) -> None:
        """Delete all keys on both, and those that DBSIZE counts because nobody has collected them yet."""
        self.theirs.ask("FLUSHALL")
        while self.host.store.reap_expired() > 0:
            pass
        cursor = b"0"
        while True:
            head, keys = children(self.ours.ask("SCAN", cursor, "COUNT", 1000))
            for key in children(keys):
                assert self.ours.ask("DEL", key.split(b"\r\n", 1)[1][:-2]) == b":1\r\n"
            cursor = head.split(b"\r\n")[1]
            if cursor == b"0":
                return

    def compare(self, *args: bytes | str | int) -> bytes:
        """Send a command to both, fail when the replies differ, and return the reply."""
        ours, theirs = self.ours.ask(*args), self.theirs.ask(*args)
        name = request(*args).split(b"\r\n")[2].lower()
        if name in UNORDERED and not ours.startswith(b"-"):
            assert ours.split(b"\r\n")[0] == theirs.split(b"\r\n")[0], args
            inner, other = children(ours), children(theirs)
            if name == b"hgetall" and ours.startswith(b"*"):
                inner = [b"".join(pair) for pair in zip(inner[::2], inner[1::2], strict=True)]
                other = [b"".join(pair) for pair in zip(other[::2], other[1::2], strict=True)]
            assert sorted(inner) == sorted(other), args
        else:
            assert ours == theirs, args
        return ours


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def both(request: pytest.FixtureRequest, host: Serving, redis_port: int) -> Iterator[Both]:
    with host.connect() as ours, Peer(redis_port) as theirs:
        pair = Both(host, ours, theirs, request.param)
        pair.clear()
        yield pair


# One list a subject, run in order on empty databases; each line is a command as redis-cli takes it.
SCRIPTS = {
    "strings": """
        get k / set k v / get k / set k "" / get k / strlen k / strlen none / set k 1 nx / set k2 1 nx / get k2
        set k3 1 xx / get k3 / set k 2 xx / get k / set k 3 get / set none 1 get / get none / set k 4 nx get
        set fresh 5 nx get / get fresh / set k 6 xx get / set absent 7 xx get / exists absent
        mset a 1 b 2 a 3 / mget a b none k / getdel a / getdel a / get a / mget none / mset a 1
        set k v ex 0 / set k v px -1 / set k v ex abc / set k v exat 0 / set k v pxat -5
        set k v ex 9223372036854775807 / set k v px 9223372036854775807 / set k v ex 9223372036854775
        set k v ex / set k v nx xx / set k v xx nx / set k v ex 10 px 10 / set k v keepttl ex 10
        set k v ex 10 keepttl
        set k v foo / set k v get get / set k v nx nx / set k v keepttl keepttl / set k v ex 10 ex
        set k v ex abc foo / get k
        """,
    "counters": """
        incr n / incr n / decr n / incrby n 10 / decrby n 3 / get n / type n / strlen n / incrby n -20 / get n
        set n 9223372036854775806 / incr n / incr n / get n / incrby n 1 / decrby n -1
        set n -9223372036854775808 / decr n / decrby n 1 / incrby n -1 / incrby n 9223372036854775807 / get n
        decrby n -9223372036854775808 / incrby n 9223372036854775808 / incrby n 1.5 / incrby n abc
        incrby n "" / incrby n " 1" / incrby n 01 / incrby n +1 / incrby n -0 / set s abc / incr s / set s ""
        incr s / set s " 1" / incr s
        set s 01 / incr s / set s -0 / incr s / set s 1.0 / decr s / set s 12345678901234567890 / incr s / get s
        incr m / set m 10 / incr m / del m / incr m / get m / getdel m / incrby m 5 / mget n m / del n
        """,
    "keys": """
        dbsize / set a 1 / sadd s x / hset h f v / dbsize / type a / type s / type h / type none / exists a a none s
        del a none s / dbsize / exists a s h / del none / del h h / dbsize / set a 1 / persist a / persist none
        ttl a / pttl a / ttl none / pttl none / expiretime a / pexpiretime none / expire none 100
        """,
    "expiry": """
        set a 1 / pexpireat a 33000000000000 / pexpiretime a / expiretime a / persist a / persist a / pexpiretime a
        set a 2 pxat 33000000000000 / pexpiretime a / set a 3 keepttl / pexpiretime a / set a 4 / pexpiretime a
        set a 5 exat 33000000000 / pexpiretime a / incr a / pexpiretime a / getdel a / pexpiretime a
        sadd s x / expireat s 33000000000 / sadd s y / pexpiretime s / srem s x y / exists s / sadd s z
        pexpiretime s
        hset h f 1 / pexpireat h 33000000000123 / expiretime h / pexpireat h 33000000000500 / expiretime h
        hincrby h f 1 / pexpiretime h / set a 1
        pexpireat a 33000000000000 xx / pexpireat a 33000000000000 gt / pexpireat a 33000000000000 lt / pexpiretime a
        pexpireat a 33000000000000 nx / persist a / pexpireat a 33000000000000 nx / pexpireat a 33000000000001 nx
        pexpireat a 33000000000001 gt / pexpireat a 33000000000001 gt / pexpireat a 33000000000000 lt
        pexpireat a 33000000000000 lt / pexpireat a 33000000000009 xx gt
        pexpireat a 33000000000005 xx lt / pexpiretime a / pexpireat a 1 nx gt / pexpireat a 1 nx xx
        pexpireat a 1 gt lt / pexpireat a 1 foo / pexpireat none 1 nx
        expire a abc / expire a 9223372036854775807 / expire a -9223372036854775808 / pexpire a 9223372036854775807
        expireat a 9223372036854775807 / pexpireat a 1.5 / exists a
        expire a 0 / exists a / set a 1 / expire a -1 / exists a / set a 1 / pexpireat a 1 / exists a / set a 1
        pexpireat a -5 / exists a / set a 1 / expireat a 1 gt / exists a / set a 1 pxat 1 / get a / exists a
        """,
    "sets": """
        sadd s a / sadd s a b c b / scard s / sismember s a / sismember s z / smembers s / srem s a z / srem s b c
        exists s / scard s / smembers s / sismember s a / srem s a / sadd s "" / smembers s / sismember s ""
        sadd s 1 2 3 / smembers s / set k v / sadd k a / srem k a / scard k / smembers k / sismember k a / get s
        incr s / strlen s / getdel s / set s v get / mget s k / set s v / get s
        """,
    "hashes": """
        hset h f 1 / hset h f 2 g 3 / hget h f / hget h none / hget none f / hmget h f none g / hmget none f g
        hgetall h / hgetall none / hlen h / hlen none / hexists h f / hexists h none / hexists none f / hdel h f none
        hdel h g / exists h / hdel h g / hmset h a 1 b 2 / hgetall h / hset h a "" / hget h a / hset h "" x
        hget h ""
        hincrby h n 5 / hincrby h n -7 / hget h n / hincrby h n abc / hincrby h b 1 / hset h t text / hincrby h t 1
        hset h big 9223372036854775807 / hincrby h big 1 / hincrby h big -1 / hset h small -9223372036854775808
        hincrby h small -1 / hincrby h b 9223372036854775808 / hset h f / hset h f 1 g / hmset h f / hmset h f 1 g
        set k v / hset k f v / hget k f / hmget k f / hgetall k / hlen k / hexists k f / hdel k f / hincrby k f 1
        hmset k f v / sadd s x / hget s f / scard h / smembers h / set h v / get h / hgetall h
        """,
    "connection": """
        ping / ping hello / ping a b / echo hi / echo / echo a b / select 0 / select 1000 / select abc
        client setname me / client getname / client setname "a b" / client getname / client setname ""
        client getname
        client foo / client / client setname / client getname x / client setname a b / client kill id abc
        auth x / auth default x / auth other x / auth a b c / hello 9 / hello abc / hello 3 foo / hello 2 auth default
        hello 2 setname "a b" / hello 3 auth other pw / cluster info / cluster nodes / cluster
        wait 0 0 / wait 0 100 / wait abc 0 / wait 0 abc / wait 0 -1 / wait 0
        command count x / command foo / module list / module foo / config get save
        config get nosuch / config / config get / config foo / memory foo / memory usage none / memory usage
        memory usage k samples / memory usage k samples abc / memory usage k foo 1
        """,
    "scans": """
        scan 0 / scan abc / scan "" / scan -x / scan 0 count 0 / scan 0 count -1 / scan 0 count abc / scan 0 foo
        scan 0 match / scan 0 count 10 foo / scan / set only 1 / scan 0 / scan 0 match o* / scan 0 match x*
        scan 0 match [m-p]nly / scan 0 match [^o]nly / scan 0 match on?y / scan 0 match \\\\only / scan 0 match o*l*y*
        scan 0 match *y / scan 0 match [o / scan 0 match only[ / scan 0 match "" / scan 0 type string
        scan 0 type set
        scan 0 type hash / scan 0 type foo / scan 0 type STRING / scan 0 count 5 match o* type string
        scan 0 match ONLY
        """,
    "unknown": """
        foo / foo a / foo a b / FooBar "a b" c / ew.nothing / ew.nothing 1 2 3
        foo "a\\r\\nb" c / "a\\r\\nb" / "" / "" a / geT k / SeT k v / foo "\\x00" b / "a\\x00b" c
        LONG / foo LONG b / foo LONG LONG c / foo HALF b HALF c d / HALF HALF HALF HALF
        """,
}


def commands_of(script: str) -> Iterator[list[bytes]]:
    """The commands of a script, in order."""
    for line in script.strip().splitlines():
        for text in line.split(" / "):
            # LONG and HALF are beyond what an error quotes, alone or together.
            words = split_words(text.strip().replace("LONG", "a" * 160).replace("HALF", "b" * 70).encode())
            assert words, text
            yield words


@pytest.mark.parametrize("subject", SCRIPTS)
def test_replies_are_those_of_redis(both: Both, subject: str) -> None:
    for words in commands_of(SCRIPTS[subject]):
        both.compare(*words)


ARITIES_COMPARED = """
    get set mget mset getdel strlen incr decr incrby decrby del exists type ttl pttl expiretime
    pexpiretime expire pexpire expireat pexpireat persist dbsize scan sadd srem smembers sismember
    scard hset hmset hget hmget hgetall hdel hexists hlen hincrby echo memory select command config
    client cluster module auth
"""


def test_arity_of_every_command(both: Both) -> None:
    for name in ARITIES_COMPARED.split():
        refused = 0
        for count in range(6):
            args = [b"1"] * count
            replies = [peer.ask(name, *args) for peer in (both.ours, both.theirs)]
            if any(reply.startswith(b"-ERR wrong number") for reply in replies):
                refused += 1
                assert replies[0] == replies[1], (name, count)
        assert refused or name == "command", name


# What a server may say of broken input before it closes the connection.
BROKEN = [
    b"*1\r\n$4611686018427387904\r\n",
    b"*1\r\n$-5\r\n",
    b"*9223372036854775807\r\n",
    b"*abc\r\n",
    b"*1\r\nPING\r\n",
    b'set "a\r\n',
    b"x" * 70000,
]


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: repr(data[:24]))
def test_protocol_errors_are_those_of_redis(host: Serving, redis_port: int, data: bytes) -> None:
    with host.connect() as ours, Peer(redis_port) as theirs:
        for peer in (ours, theirs):
            peer.send(b"PING\r\n" + data)
        assert [ours.reply(), ours.reply()] == [theirs.reply(), theirs.reply()]
        assert ours.ended()


@pytest.mark.parametrize(
    "data", [b"\r\n\r\nPING\r\n", b"*0\r\nPING\r\n", b"*-1\r\nPING\r\n", b"  ping   'a b' \r\n", b'ping "\\x41\\n"\n']
)
def test_inline_forms(both: Both, data: bytes) -> None:
    for peer in (both.ours, both.theirs):
        peer.send(data)
    assert both.ours.reply() == both.theirs.reply()


KEYS = st.sampled_from([b"a", b"b", b"c"])
VALUES = st.one_of(
    st.sampled_from([b"", b"0", b"1", b"-1", b"text", b"9223372036854775807", b"-9223372036854775808", b"007"]),
    st.binary(max_size=6),
)
NUMBERS = st.sampled_from([b"1", b"-1", b"5", b"9223372036854775807", b"x"])
TIMES = st.sampled_from([b"1", b"0", b"-7", b"%d" % FAR_MS, b"%d" % (FAR_MS + 500), b"x"])
STEPS = st.one_of(
    st.tuples(st.sampled_from([b"get", b"incr", b"decr", b"strlen", b"getdel", b"type", b"persist", b"ttl"]), KEYS),
    st.tuples(st.sampled_from([b"smembers", b"scard", b"hgetall", b"hlen", b"pexpiretime", b"del", b"exists"]), KEYS),
    st.tuples(st.just(b"set"), KEYS, VALUES),
    st.tuples(st.just(b"set"), KEYS, VALUES, st.sampled_from([b"nx", b"xx", b"get", b"keepttl"])),
    st.tuples(st.just(b"set"), KEYS, VALUES, st.just(b"pxat"), TIMES),
    st.tuples(st.sampled_from([b"incrby", b"decrby"]), KEYS, NUMBERS),
    st.tuples(st.sampled_from([b"sadd", b"srem", b"hdel", b"hmget"]), KEYS, VALUES, VALUES),
    st.tuples(st.sampled_from([b"sismember", b"hget", b"hexists"]), KEYS, VALUES),
    st.tuples(st.just(b"hset"), KEYS, VALUES, VALUES, VALUES, VALUES),
    st.tuples(st.just(b"hincrby"), KEYS, VALUES, NUMBERS),
    st.tuples(st.just(b"pexpireat"), KEYS, TIMES, st.sampled_from([b"nx", b"xx", b"gt", b"lt"])),
    st.tuples(st.just(b"mset"), KEYS, VALUES, KEYS, VALUES),
    st.tuples(st.sampled_from([b"mget", b"del", b"exists"]), KEYS, KEYS),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=1, max_size=40))
def test_random_histories(both: Both, steps: list[tuple[bytes, ...]]) -> None:
    both.clear()
    for step in steps:
        both.compare(*step)
    for key in (b"a", b"b", b"c"):
        for name in (b"type", b"pexpiretime", b"get", b"smembers", b"hgetall"):
            both.compare(name, key)


def test_a_pipeline_of_everything(both: Both) -> None:
    """The replies to one large write, in order."""
    lines = [words for subject in ("strings", "counters", "keys") for words in commands_of(SCRIPTS[subject])]
    for peer in (both.ours, both.theirs):
        peer.send(b"".join(request(*words) for words in lines) * 20)
    for _ in range(20):
        for words in lines:
            assert both.ours.reply() == both.theirs.reply(), words
