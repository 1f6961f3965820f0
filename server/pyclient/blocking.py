"""The client that blocks. What it decides is in `request`; here are sockets, threads and the methods."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from everwrite.client import commands
from everwrite.client.addresses import Address
from everwrite.client.commands import Command, Options
from everwrite.client.pipeline import Recorder, checked
from everwrite.client.pool import Idle
from everwrite.client.request import Answer, Discard, Effect, Forget, Lost, Open, Pause, Release, Talk, Unconnected
from everwrite.client.settings import SCAN_PAGE, Addresses, Regions, Settings, all_in_use, closed_error
from everwrite.client.wire import Wire
from everwrite.errors import EverwriteError

__all__ = ["Client", "CounterClient", "MapClient", "Pipeline", "SetClient"]

P = ParamSpec("P")
T = TypeVar("T")

RECEIVE_BYTES = 1 << 16


class _Connection:
    """A socket and its side of the protocol."""

    def __init__(self, address: Address, seconds: float) -> None:
        self.wire = Wire(address)
        try:
            self._socket = socket.create_connection((address.host, address.port), max(seconds, 0.001))
        except OSError as error:
            raise Unconnected(f"can't connect: {error.strerror or error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._poll = select.poll()

    def stale(self) -> bool:
        """Whether there is something to read although nothing was asked: the end, most often."""
        self._poll.register(self._socket, select.POLLIN)
        return bool(self._poll.poll(0))

    def talk(self, effect: Talk) -> None:
        """Do what `Talk` says."""
        unsent = memoryview(effect.data)
        sent = False
        try:
            while True:
                # Replies are read while there is more to send, or both sides could end up waiting.
                if unsent:
                    with suppress(BlockingIOError):
                        unsent = unsent[self._socket.send(unsent) :]
                        sent = True
                if not unsent and self.wire.take(effect.replies, effect.count):
                    return
                self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if unsent else 0))
                left = effect.until - time.monotonic()
                if left <= 0 or not (ready := self._poll.poll(left * 1000)):
                    raise Lost("no reply in time", sent=sent)
                if ready[0][1] & ~select.POLLOUT:
                    self._receive(sent)
        except OSError as error:
            raise Lost(f"the connection broke: {error.strerror or error}", sent=sent) from error

    def _receive(self, sent: bool) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise Lost("the connection was closed", sent=sent)
        self.wire.feed(data)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Lease:
    """The connection that one request uses at the moment, if any."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._held: _Connection | None = None

    def perform(self, effect: Effect) -> Any:
        """Do what the request asks for."""
        if isinstance(effect, Talk):
            assert self._held is not None
            return self._held.talk(effect)
        if isinstance(effect, Open):
            self._held, reused = self._client._connection(effect)
            return self._held.wire, reused
        if isinstance(effect, Release):
            held, self._held = self._held, None
            if held is not None:
                self._client._give_back(held)
        elif isinstance(effect, Discard):
            self.discard()
        elif isinstance(effect, Forget):
            self.discard()
            self._client._forget(effect.address)
        elif isinstance(effect, Pause):
            self._client._closing.wait(effect.seconds)
        return None

    def discard(self) -> None:
        """Close the connection, if there is one."""
        held, self._held = self._held, None
        if held is not None:
            self._client._throw_away(held)


def _blocking(build: Callable[P, Command[T]]) -> Callable[Concatenate[Client, P], T]:
    @wraps(build)
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> T:
        return self._call(build(*args, **options))

    return method


def _of_key(build: Callable[Concatenate[bytes, P], Command[T]]) -> Callable[Concatenate[_KeyClient, P], T]:
    @wraps(build)
    def method(self: _KeyClient, /, *args: P.args, **options: P.kwargs) -> T:
        return self._client._call(build(self.key, *args, **options))

    return method


class Client:
    """Talks to Everwrite servers, and blocks meanwhile. Any number of threads may use one client.

    `addresses`: a URL (`everwrite://user:password@host:port,host:port?consistency=local_quorum&timeout=2`), an
    address (`"host:port"`), or a list of them; 127.0.0.1:7379 when nothing is given. Or `regions`: addresses by
    region, and `home`, the region to ask as long as one of its nodes answers.

    `timeout` bounds a call from end to end, in seconds, connecting and retries included (5); `connect_timeout` one
    attempt to connect (1). `connections_max` bounds the connections, and with them the calls under way (16).
    `consistency` is the level of calls that name none; None leaves it to the server. `request_ids` gives ids to writes
    that must not be applied twice, so that they can be sent again; it costs the server a second, small write.

    Nothing is connected to before the first call. Values are bytes.

    >>> import everwrite
    >>> with everwrite.Client(address) as client:
    ...     client.put(b"name", b"Ada", ttl=60)
    ...     client.counter(b"visits").increment(2)
    ...     client.set(b"tags").add(b"blue", b"green")
    ...     client.get(b"name"), client.counter(b"visits").value(), sorted(client.set(b"tags").members())
    2
    2
    (b'Ada', 2, [b'blue', b'green'])
    """

    def __init__(
        self,
        addresses: Addresses | None = None,
        *,
        regions: Regions | None = None,
        home: str | None = None,
        timeout: float | None = None,
        connect_timeout: float | None = None,
        connections_max: int | None = None,
        consistency: str | None = None,
        request_ids: bool = True,
        username: str | None = None,
        password: str | None = None,
        name: str | None = None,
    ) -> None:
        self._settings = Settings.make(
            addresses,
            regions=regions,
            home=home,
            timeout=timeout,
            connect_timeout=connect_timeout,
            connections_max=connections_max,
            consistency=consistency,
            request_ids=request_ids,
            username=username,
            password=password,
            name=name,
        )
        self._requests = self._settings.requests(time.monotonic)
        self._idle: Idle[_Connection] = Idle(self._settings.connections_max)
        # Held while a request decides, never while it waits.
        self._lock = threading.Lock()
        self._free = threading.Semaphore(self._settings.connections_max)
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls that are under way end with an error. Idempotent."""
        self._closing.set()
        with self._lock:
            idle = self._idle.drain()
        for connection in idle:
            connection.close()

    def statistics(self) -> dict[str, int]:
        """Counters and gauges by name: connections in use and idle, nodes that failed lately, retries so far."""
        with self._lock:
            return {
                "connections_used": self._idle.used,
                "connections_idle": len(self._idle),
                "nodes_suspected": len(self._requests.router.suspects()),
                "retries": self._requests.retries,
            }

    ping = _blocking(commands.ping)
    execute = _blocking(commands.execute)
    get = _blocking(commands.get)
    put = _blocking(commands.put)
    delete = _blocking(commands.delete)
    pop = _blocking(commands.pop)
    exists = _blocking(commands.exists)
    get_many = _blocking(commands.get_many)
    put_many = _blocking(commands.put_many)
    delete_many = _blocking(commands.delete_many)
    expire = _blocking(commands.expire)
    persist = _blocking(commands.persist)
    ttl = _blocking(commands.ttl)
    why = _blocking(commands.why)

    def counter(self, key: bytes) -> CounterClient:
        """The counter at `key`; it exists from its first increment on."""
        return CounterClient(self, key)

    def set(self, key: bytes) -> SetClient:
        """The set at `key`; it exists while it has elements."""
        return SetClient(self, key)

    def map(self, key: bytes) -> MapClient:
        """The map at `key`; it exists while it has fields."""
        return MapClient(self, key)

    def pipeline(self) -> Pipeline:
        """Commands to send together; see `Pipeline.run`."""
        return Pipeline(self)

    def keys(self, prefix: bytes = b"", **options: Unpack[Options]) -> Iterator[bytes]:
        """Keys of every type that begin with `prefix`, in byte order; the options are for each page of them.

        All pages come from one node; when that fails in between, so does the iteration.
        """
        cursor, address = 0, None
        while True:
            page = commands.scan_page(cursor, commands.escape_pattern(prefix), SCAN_PAGE)
            [result], address = self._exchange([page], options, address)
            if isinstance(result, Exception):
                raise result
            cursor, found = result
            yield from found
            if not cursor:
                return

    def _call(self, command: Command[T]) -> T:
        [result], _ = self._exchange([command], command.options)
        if isinstance(result, Exception):
            raise result
        value: T = result
        return value

    def _exchange(
        self, wanted: Sequence[Command[Any]], options: Options, only: Address | None = None
    ) -> tuple[list[Any], Address | None]:
        """Results or exceptions of some commands, and the node that answered; see `Requests.exchange`."""
        answer = self._run(wanted, options, only)
        return answer.results(), answer.address

    def _run(self, wanted: Sequence[Command[Any]], options: Options, only: Address | None) -> Answer:
        seconds, level = self._settings.call(options)
        until = time.monotonic() + seconds
        if not self._free.acquire(timeout=seconds):
            raise all_in_use(self._idle.limit, seconds)
        lease = _Lease(self)
        steps = self._requests.exchange(wanted, level, until, only)
        advance: Callable[[], Effect] = lambda: next(steps)  # noqa: E731  # what comes first, then every result
        try:
            while True:
                if self._closing.is_set():
                    raise closed_error()
                try:
                    with self._lock:
                        effect = advance()
                except StopIteration as done:
                    answer: Answer = done.value
                    return answer
                try:
                    result = lease.perform(effect)
                except (Unconnected, Lost, EverwriteError) as failure:
                    advance = partial(steps.throw, failure)
                else:
                    advance = partial(steps.send, result)
        finally:
            lease.discard()
            self._free.release()

    def _connection(self, effect: Open) -> tuple[_Connection, bool]:
        while True:
            with self._lock:
                idle = self._idle.take(effect.address, effect.level)
                closed = self._idle.start() if idle is None else []
            if idle is not None and not idle.stale():
                return idle, True
            if idle is None:
                break
            self._throw_away(idle)
        for connection in closed:
            connection.close()
        try:
            return _Connection(effect.address, effect.until - time.monotonic()), False
        except BaseException:
            with self._lock:
                self._idle.end()
            raise

    def _give_back(self, connection: _Connection) -> None:
        if self._closing.is_set():
            self._throw_away(connection)
            return
        with self._lock:
            self._idle.give(connection)

    def _throw_away(self, connection: _Connection) -> None:
        with self._lock:
            self._idle.end()
        connection.close()

    def _forget(self, address: Address) -> None:
        with self._lock:
            gone = self._idle.forget(address)
        for connection in gone:
            connection.close()


class _KeyClient:
    def __init__(self, client: Client, key: bytes) -> None:
        self._client = client
        self.key = key

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r}>"


class CounterClient(_KeyClient):
    """A counter on a server: increments of all regions add up, each exactly once. Made by `Client.counter`."""

    increment = _of_key(commands.counter_increment)
    decrement = _of_key(commands.counter_decrement)
    value = _of_key(commands.counter_value)
    reset = _of_key(commands.clear)


class SetClient(_KeyClient):
    """An add-wins set on a server. Made by `Client.set`."""

    add = _of_key(commands.set_add)
    discard = _of_key(commands.set_discard)
    contains = _of_key(commands.set_contains)
    members = _of_key(commands.set_members)
    size = _of_key(commands.set_size)
    clear = _of_key(commands.clear)


class MapClient(_KeyClient):
    """A map of fields to bytes on a server; a field may also be counted up. Made by `Client.map`."""

    get = _of_key(commands.map_get)
    get_many = _of_key(commands.map_get_many)
    put = _of_key(commands.map_put)
    set = _of_key(commands.map_set)
    discard = _of_key(commands.map_discard)
    increment = _of_key(commands.map_increment)
    contains = _of_key(commands.map_contains)
    items = _of_key(commands.map_items)
    size = _of_key(commands.map_size)
    clear = _of_key(commands.clear)


class Pipeline(Recorder):
    """Commands that are sent together. Made by `Client.pipeline`; for one thread at a time.

    >>> import everwrite
    >>> client = everwrite.Client(address)
    >>> pipeline = client.pipeline()
    >>> city, hits = pipeline.get(b"city"), pipeline.counter(b"hits").increment()
    >>> pipeline.run()
    [None, 1]
    >>> city.value, hits.value
    (None, 1)
    >>> client.close()
    """

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def run(self, *, raise_errors: bool = True, **options: Unpack[Options]) -> list[Any]:
        """Send what is recorded, and return the results in order; then the pipeline is empty.

        The commands run one by one, and others may run in between. When some fail, the first
        error is raised, or, without `raise_errors`, errors are among the results.
        """
        wanted, laters = self.take()
        results, _ = self._client._exchange(wanted, options)
        for later, result in zip(laters, results, strict=True):
            later.settle(result)
        return checked(results) if raise_errors else results
