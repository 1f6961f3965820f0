"""Both clients against a node in this process: the same calls, the same answers."""

from __future__ import annotations

import doctest
import importlib
import inspect
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

import everwrite
from everwrite.client import asynchronous, blocking, pipeline
from everwrite.errors import (
    ClosedError,
    ConnectionLostError,
    DeadlineError,
    NotAnIntegerError,
    Outcome,
    OverflowError,
    ProtocolError,
    ServerError,
    UnreachableError,
    WrongTypeError,
)
from tests.serving import Serving, served
from tests.support import free_port

BACKENDS = ["blocking", "trio", "asyncio"]


class Twin:
    """A client of one of the kinds; `do` runs a call of it, awaited where it must be."""

    def __init__(self, kind: str, stack: ExitStack, *args: Any, **settings: Any) -> None:
        self.kind = kind
        self.client: Any
        if kind == "blocking":
            self.client = stack.enter_context(everwrite.Client(*args, **settings))
        else:
            self._portal = stack.enter_context(start_blocking_portal(backend=kind))
            self.client = everwrite.AsyncClient(*args, **settings)
            stack.callback(self._portal.call, self.client.close)

    def do(self, call: Callable[[Any], Any]) -> Any:
        """`call(client)`, and what it gives."""
        if self.kind == "blocking":
            return call(self.client)

        async def run() -> Any:
            result = call(self.client)
            if inspect.isasyncgen(result):
                return [each async for each in result]
            return await result if isinstance(result, Awaitable) else result

        return self._portal.call(run)

    def together(self, call: Callable[[Any], Any], times: int) -> None:
        """The same call, many times at once."""
        if self.kind == "blocking":
            threads = [threading.Thread(target=call, args=(self.client,)) for _ in range(times)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            return

        async def run() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(times):
                    tasks.start_soon(call, self.client)

        self._portal.call(run)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with served(tmp_path_factory.mktemp("store")) as host:
        yield host


@pytest.fixture(params=BACKENDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def twin(kind: str, host: Serving, stack: ExitStack) -> Twin:
    for key in list(host.store.scan(values=False)):
        host.store.delete(key)
    for key in (b"set", b"map"):
        host.store.delete(key)
    return Twin(kind, stack, f"127.0.0.1:{host.port}")


def test_registers_and_keys(twin: Twin) -> None:
    do = twin.do
    assert do(lambda c: c.get(b"k")) is None
    assert do(lambda c: c.get(b"k", b"default")) == b"default"
    do(lambda c: c.put(b"k", b"\x00\r\n\xff"))
    assert do(lambda c: c.get(b"k")) == b"\x00\r\n\xff"
    do(lambda c: c.put_many({b"a": b"1", b"b": b""}))
    do(lambda c: c.put_many([]))
    assert do(lambda c: c.get_many([b"b", b"nothing", b"a"])) == [b"", None, b"1"]
    assert do(lambda c: c.get_many([])) == []
    assert do(lambda c: c.exists(b"a")) is True
    assert do(lambda c: c.pop(b"a")) == b"1"
    assert do(lambda c: c.pop(b"a", b"gone")) == b"gone"
    assert do(lambda c: c.delete(b"a")) is False
    assert do(lambda c: c.delete_many([b"k", b"b", b"a"])) == 2
    assert do(lambda c: c.delete_many([])) == 0


def test_deadlines_of_keys(twin: Twin) -> None:
    do = twin.do
    do(lambda c: c.put(b"k", b"v", ttl=60.0))
    assert 59 < do(lambda c: c.ttl(b"k")) <= 60
    assert do(lambda c: c.persist(b"k")) is True
    assert do(lambda c: c.ttl(b"k")) is None
    assert do(lambda c: c.expire(b"k", 0.5)) is True
    assert do(lambda c: c.ttl(b"k")) <= 0.5
    assert do(lambda c: c.expire(b"nothing", 1)) is False
    with pytest.raises(KeyError):
        do(lambda c: c.ttl(b"nothing"))
    with pytest.raises(ValueError, match="more than 0"):
        do(lambda c: c.put(b"k", b"v", ttl=0))


def test_counters(twin: Twin) -> None:
    do = twin.do
    assert do(lambda c: c.counter(b"n").value()) == 0
    assert do(lambda c: c.counter(b"n").increment(5)) == 5
    assert do(lambda c: c.counter(b"n").decrement()) == 4
    assert do(lambda c: c.counter(b"n").value()) == 4
    do(lambda c: c.counter(b"n").reset())
    assert do(lambda c: c.exists(b"n")) is False
    do(lambda c: c.put(b"n", b"text"))
    with pytest.raises(NotAnIntegerError):
        do(lambda c: c.counter(b"n").increment())
    do(lambda c: c.put(b"n", b"9223372036854775807"))
    with pytest.raises(OverflowError) as caught:
        do(lambda c: c.counter(b"n").increment())
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert caught.value.address is not None


def test_sets(twin: Twin) -> None:
    do = twin.do
    assert do(lambda c: c.set(b"set").add(b"x", b"y", b"x")) == 2
    assert do(lambda c: c.set(b"set").add()) == 0
    assert do(lambda c: c.set(b"set").members()) == {b"x", b"y"}
    assert do(lambda c: c.set(b"set").size()) == 2
    assert do(lambda c: c.set(b"set").contains(b"x")) is True
    assert do(lambda c: c.set(b"set").discard(b"x", b"z")) == 1
    assert do(lambda c: c.set(b"set").contains(b"x")) is False
    with pytest.raises(WrongTypeError):
        do(lambda c: c.get(b"set"))
    do(lambda c: c.set(b"set").clear())
    assert do(lambda c: c.set(b"set").members()) == set()


def test_maps(twin: Twin) -> None:
    do = twin.do
    assert do(lambda c: c.map(b"map").set({b"f": b"1", b"g": b"2"})) == 2
    assert do(lambda c: c.map(b"map").set({})) == 0
    assert do(lambda c: c.map(b"map").put(b"f", b"3")) is False
    assert do(lambda c: c.map(b"map").get(b"f")) == b"3"
    assert do(lambda c: c.map(b"map").get(b"z", b"default")) == b"default"
    assert do(lambda c: c.map(b"map").get_many([b"g", b"z"])) == [b"2", None]
    assert do(lambda c: c.map(b"map").increment(b"n", 4)) == 4
    assert do(lambda c: c.map(b"map").items()) == {b"f": b"3", b"g": b"2", b"n": b"4"}
    assert do(lambda c: c.map(b"map").contains(b"g")) is True
    assert do(lambda c: c.map(b"map").discard(b"g", b"z")) == 1
    assert do(lambda c: c.map(b"map").size()) == 2
    do(lambda c: c.map(b"map").clear())
    assert do(lambda c: c.map(b"map").items()) == {}


def test_keys_of_a_prefix_even_one_with_wildcards(twin: Twin) -> None:
    do = twin.do
    names = [b"p*%04d" % number for number in range(1200)]
    do(lambda c: c.put_many(dict.fromkeys(names, b"")))
    do(lambda c: c.put(b"px", b""))
    assert list(do(lambda c: c.keys(b"p*"))) == names
    assert list(do(lambda c: c.keys(b"[?"))) == []
    assert len(list(do(lambda c: c.keys()))) == 1201


def test_any_command(twin: Twin) -> None:
    do = twin.do
    do(lambda c: c.ping())
    assert do(lambda c: c.execute("SET", b"k", b"v", "NX")) == b"OK"
    assert do(lambda c: c.execute("SET", b"k", b"v", "NX")) is None
    assert do(lambda c: c.execute("MEMORY", "USAGE", b"k")) > 0
    assert do(lambda c: c.why(b"k"))[b"value"] == b"v"
    with pytest.raises(ServerError, match="unknown command") as caught:
        do(lambda c: c.execute("NOPE"))
    assert caught.value.code == "ERR"
    with pytest.raises(TypeError, match="expected a command"):
        do(lambda c: c.execute())


def test_keys_and_values_are_bytes(twin: Twin) -> None:
    for call in (
        lambda c: c.get("k"),
        lambda c: c.put(b"k", 1),
        lambda c: c.set(b"set").add(b"x", "y"),
        lambda c: c.map(b"map").set({b"f": None}),
    ):
        with pytest.raises(TypeError, match="keys and values are bytes"):
            twin.do(call)


def test_a_pipeline_larger_than_all_buffers(twin: Twin) -> None:
    def run(client: Any) -> Any:
        recorded = client.pipeline()
        for number in range(3000):
            recorded.put(b"key%d" % number, b"v" * 5000)
        reads = [recorded.get(b"key%d" % number) for number in range(3000)]
        recorded.counter(b"count").increment(7)
        recorded.set(b"set").add(b"x")
        recorded.map(b"map").put(b"f", b"v")
        return recorded, reads, recorded.run()

    if twin.kind == "blocking":
        _, reads, results = twin.do(run)
    else:

        async def awaited(client: Any) -> Any:
            recorded, reads, running = run(client)
            return recorded, reads, await running

        _, reads, results = twin.do(awaited)
    assert results[-3:] == [7, 1, True]
    assert {each.value for each in reads} == {b"v" * 5000}
    assert len(results) == 6003


def test_a_pipelines_errors(twin: Twin) -> None:
    twin.do(lambda c: c.set(b"set").add(b"x"))
    recorded = twin.client.pipeline()
    wrong, right = recorded.get(b"set"), recorded.exists(b"set")
    with pytest.raises(RuntimeError, match="hasn't run"):
        _ = right.value
    with pytest.raises(WrongTypeError):
        twin.do(lambda c: recorded.run())
    assert right.value is True
    with pytest.raises(WrongTypeError):
        _ = wrong.value
    recorded.get(b"set")
    [result] = twin.do(lambda c: recorded.run(raise_errors=False))
    assert isinstance(result, WrongTypeError)
    assert twin.do(lambda c: recorded.run()) == []
    with pytest.raises(TypeError, match="whole pipeline's"):
        recorded.get(b"k", timeout=1)


def test_many_at_once_share_few_connections(kind: str, host: Serving, stack: ExitStack) -> None:
    twin = Twin(kind, stack, f"127.0.0.1:{host.port}", connections_max=3)
    twin.do(lambda c: c.counter(b"shared").reset())
    twin.together(lambda c: c.counter(b"shared").increment(), 40)
    assert twin.do(lambda c: c.counter(b"shared").value()) == 40
    numbers = twin.client.statistics()
    assert numbers["connections_used"] == 0
    assert 1 <= numbers["connections_idle"] <= 3


def test_a_timeout_names_what_is_known(twin: Twin) -> None:
    with pytest.raises(DeadlineError) as caught:
        twin.do(lambda c: c.execute("WAIT", 1, 0, timeout=0.05))
    assert caught.value.outcome is Outcome.UNKNOWN
    twin.do(lambda c: c.put(b"k", b"v"))  # on another connection: this one still owes a reply
    assert twin.do(lambda c: c.get(b"k")) == b"v"


def test_nobody_listens(kind: str, stack: ExitStack) -> None:
    twin = Twin(kind, stack, f"127.0.0.1:{free_port()}", timeout=0.3)
    with pytest.raises(UnreachableError, match="is a server running there") as caught:
        twin.do(lambda c: c.counter(b"n").increment())
    assert caught.value.outcome is Outcome.NOT_APPLIED


def test_fails_over_and_returns(kind: str, host: Serving, stack: ExitStack) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    twin = Twin(kind, stack, regions={"eu": [nowhere], "us": [f"127.0.0.1:{host.port}"]}, home="eu")
    twin.do(lambda c: c.put(b"k", b"v"))
    assert twin.do(lambda c: c.get(b"k")) == b"v"
    assert twin.client.statistics()["nodes_suspected"] == 1


def test_a_closed_client_says_so(kind: str, host: Serving, stack: ExitStack) -> None:
    twin = Twin(kind, stack, f"127.0.0.1:{host.port}")
    twin.do(lambda c: c.ping())
    twin.do(lambda c: c.close())
    twin.do(lambda c: c.close())
    with pytest.raises(ClosedError):
        twin.do(lambda c: c.ping())


class Scripted:
    """A server that answers each connection with the next script: bytes for each thing received, then the end.

    It sends byte by byte, so that no reply arrives whole; or, if told so, each answer at once.
    """

    def __init__(self, *scripts: list[bytes], whole: bool = False) -> None:
        self.whole = whole
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.received: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, args=(scripts,))
        self._thread.start()

    def _serve(self, scripts: tuple[list[bytes], ...]) -> None:
        for script in scripts:
            connection, _ = self.listener.accept()
            with connection, suppress(OSError):  # a client that has read enough hangs up
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for answer in script:
                    self.received.append(connection.recv(1 << 16))
                    step = len(answer) if self.whole else 1
                    for at in range(0, len(answer), step or 1):
                        connection.sendall(answer[at : at + step])

    def end(self) -> None:
        self._thread.join()
        self.listener.close()


GREETING = b"%1\r\n$5\r\nproto\r\n:3\r\n"


def test_an_increment_whose_reply_is_lost_is_sent_again_with_its_id(kind: str, stack: ExitStack) -> None:
    server = Scripted([GREETING, b""], [GREETING, b":1\r\n"])
    stack.callback(server.end)
    twin = Twin(kind, stack, f"127.0.0.1:{server.port}")
    assert twin.do(lambda c: c.counter(b"n").increment()) == 1
    first, again = (each for each in server.received if b"INCRBY" in each)
    assert first == again
    assert b"EW.ONCE" in first


def test_without_an_id_it_is_not_sent_again(kind: str, stack: ExitStack) -> None:
    server = Scripted([GREETING, b""])
    stack.callback(server.end)
    twin = Twin(kind, stack, f"127.0.0.1:{server.port}", request_ids=False)
    with pytest.raises(ConnectionLostError, match="it may have been applied") as caught:
        twin.do(lambda c: c.counter(b"n").increment())
    assert caught.value.outcome is Outcome.UNKNOWN
    assert sum(b"INCRBY" in each for each in server.received) == 1


def test_a_read_whose_reply_is_lost_is_sent_again(kind: str, stack: ExitStack) -> None:
    server = Scripted([GREETING, b""], [GREETING, b"$1\r\nv\r\n"])
    stack.callback(server.end)
    twin = Twin(kind, stack, f"127.0.0.1:{server.port}")
    assert twin.do(lambda c: c.get(b"k")) == b"v"


def test_a_reply_that_nobody_asked_for_is_nobodys_answer(kind: str, stack: ExitStack) -> None:
    server = Scripted([GREETING, b"$1\r\nv\r\n$6\r\nsecret\r\n", b""], [GREETING, b"$1\r\nw\r\n"], whole=True)
    stack.callback(server.end)
    twin = Twin(kind, stack, f"127.0.0.1:{server.port}")
    assert twin.do(lambda c: c.get(b"k")) == b"v"
    assert twin.client.statistics()["connections_idle"] == 0
    assert twin.do(lambda c: c.get(b"l")) == b"w"


def test_what_speaks_no_redis_is_named(kind: str, stack: ExitStack) -> None:
    server = Scripted([b"HTTP/1.1 400 Bad Request\r\n\r\n"])
    stack.callback(server.end)
    twin = Twin(kind, stack, f"127.0.0.1:{server.port}")
    with pytest.raises(ProtocolError, match="isn't RESP3"):
        twin.do(lambda c: c.get(b"k"))


def public(of: type) -> dict[str, list[str]]:
    """Public methods by name, with the names of their parameters."""
    return {
        name: list(inspect.signature(value).parameters)
        for name, value in inspect.getmembers(of, callable)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (blocking.Client, asynchronous.AsyncClient),
        (blocking.CounterClient, asynchronous.AsyncCounter),
        (blocking.SetClient, asynchronous.AsyncSet),
        (blocking.MapClient, asynchronous.AsyncMap),
        (blocking.Pipeline, asynchronous.AsyncPipeline),
        (blocking.CounterClient, pipeline.CounterRecorder),
        (blocking.SetClient, pipeline.SetRecorder),
        (blocking.MapClient, pipeline.MapRecorder),
    ],
)
def test_both_clients_and_pipelines_have_the_same_methods(one: type, other: type) -> None:
    assert public(one) == public(other)
    assert all(getattr(one, name).__doc__ for name in public(one))


def test_importing_the_client_brings_neither_trio_nor_the_server() -> None:
    code = (
        "import sys, everwrite; everwrite.Client; "
        "print([name for name in ('trio', 'anyio', 'asyncio', 'everwrite.server') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["blocking", "asynchronous"])
def test_examples_run(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"everwrite.client.{name}")
    with served(tmp_path) as host:
        finder = doctest.DocTestFinder(exclude_empty=True)
        runner = doctest.DocTestRunner()
        for each in finder.find(module, globs={"address": f"127.0.0.1:{host.port}"}):
            runner.run(each)
    assert runner.failures == 0
    assert runner.tries > 0
