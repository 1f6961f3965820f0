"""The client for trio and asyncio, through anyio. What it decides is in `request`; here are streams and the methods."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import anyio
import anyio.abc

from everwrite.client import commands
from everwrite.client.addresses import Address
from everwrite.client.commands import Command, Options
from everwrite.client.pipeline import Recorder, checked
from everwrite.client.pool import Idle
from everwrite.client.request import Answer, Discard, Effect, Forget, Lost, Open, Pause, Release, Talk, Unconnected
from everwrite.client.settings import SCAN_PAGE, Addresses, Regions, Settings, all_in_use, closed_error
from everwrite.client.wire import Wire
from everwrite.errors import EverwriteError

__all__ = ["AsyncClient", "AsyncCounter", "AsyncMap", "AsyncPipeline", "AsyncSet"]

P = ParamSpec("P")
T = TypeVar("T")

RECEIVE_BYTES = 1 << 16
# What certainly fits into the socket's buffers is sent before replies are read.
SMALL_BYTES = 1 << 14


class _Connection:
    """A stream and its side of the protocol."""

    def __init__(self, address: Address, stream: anyio.abc.SocketStream) -> None:
        self.wire = Wire(address)
        self._stream = stream

    @classmethod
    async def open(cls, effect: Open) -> _Connection:
        """Connect. Raises Unconnected."""
        address = effect.address
        try:
            with anyio.fail_after(effect.until - anyio.current_time()):
                return cls(address, await anyio.connect_tcp(address.host, address.port))
        except TimeoutError:
            raise Unconnected("no connection in time") from None
        except OSError as error:
            raise Unconnected(f"can't connect: {error.strerror or error}") from error

    def stale(self) -> bool:
        """Whether there is something to read although nothing was asked: the end, most often."""
        poll = select.poll()
        poll.register(self._stream.extra(anyio.abc.SocketAttribute.raw_socket), select.POLLIN)
        return bool(poll.poll(0))

    async def talk(self, effect: Talk) -> None:
        """Do what `Talk` says."""
        started = False
        with anyio.move_on_after(effect.until - anyio.current_time()):
            started = True
            if len(effect.data) <= SMALL_BYTES:
                await self._send(effect.data)
                await self._collect(effect)
                return
            # Replies are read while there is more to send, or both sides could end up waiting.
            await self._both_ways(effect)
            return
        raise Lost("no reply in time", sent=started)

    async def _both_ways(self, effect: Talk) -> None:
        failures: list[Lost | EverwriteError] = []

        async def run(step: Callable[[], Awaitable[None]]) -> None:
            try:
                await step()
            except (Lost, EverwriteError) as failure:
                failures.append(failure)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, lambda: self._send(effect.data))
            tasks.start_soon(run, lambda: self._collect(effect))
        if failures:
            raise failures[0]

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise Lost("the connection broke", sent=True) from error

    async def _collect(self, effect: Talk) -> None:
        while not self.wire.take(effect.replies, effect.count):
            try:
                self.wire.feed(await self._stream.receive(RECEIVE_BYTES))
            except anyio.EndOfStream as error:
                raise Lost("the connection was closed", sent=True) from error
            except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                raise Lost("the connection broke", sent=True) from error

    async def close(self) -> None:
        """Close the stream, without waiting for anything."""
        await anyio.aclose_forcefully(self._stream)


class _Lease:
    """The connection that one request uses at the moment, if any."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._held: _Connection | None = None

    async def perform(self, effect: Effect) -> Any:
        """Do what the request asks for."""
        if isinstance(effect, Talk):
            assert self._held is not None
            return await self._held.talk(effect)
        if isinstance(effect, Open):
            self._held, reused = await self._client._connection(effect)
            return self._held.wire, reused
        if isinstance(effect, Release):
            held, self._held = self._held, None
            if held is not None:
                await self._client._give_back(held)
        elif isinstance(effect, Discard):
            await self.discard()
        elif isinstance(effect, Forget):
            await self.discard()
            await self._client._forget(effect.address)
        elif isinstance(effect, Pause):
            await anyio.sleep(effect.seconds)
        return None

    async def discard(self) -> None:
        """Close the connection, if there is one."""
        held, self._held = self._held, None
        if held is not None:
            await self._client._throw_away(held)


def _awaited(build: Callable[P, Command[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @wraps(build)
    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> T:
        return await self._call(build(*args, **options))

    return method


def _of_key(build: Callable[Concatenate[bytes, P], Command[T]]) -> Callable[Concatenate[_KeyClient, P], Awaitable[T]]:
    @wraps(build)
    async def method(self: _KeyClient, /, *args: P.args, **options: P.kwargs) -> T:
        return await self._client._call(build(self.key, *args, **options))

    return method


class AsyncClient:
    """`Client` for trio and asyncio: the same arguments and methods, to be awaited. Any number of tasks may use it.

    A call that is cancelled closes its connection; whether a write was applied then is unknown.

    >>> import anyio, everwrite
    >>> async def main():
    ...     async with everwrite.AsyncClient(address) as client:
    ...         await client.put(b"title", b"Countess", ttl=60)
    ...         return await client.get(b"title"), await client.counter(b"calls").increment(2)
    >>> anyio.run(main, backend="trio"), anyio.run(main, backend="asyncio")
    ((b'Countess', 2), (b'Countess', 4))
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
        self._requests = self._settings.requests(anyio.current_time)
        self._idle: Idle[_Connection] = Idle(self._settings.connections_max)
        self._free: anyio.Semaphore | None = None  # made within the event loop
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls that are under way end with an error. Idempotent."""
        self._closed = True
        for connection in self._idle.drain():
            await connection.close()

    def statistics(self) -> dict[str, int]:
        """Counters and gauges by name: connections in use and idle, nodes that failed lately, retries so far."""
        return {
            "connections_used": self._idle.used,
            "connections_idle": len(self._idle),
            "nodes_suspected": len(self._requests.router.suspects()),
            "retries": self._requests.retries,
        }

    ping = _awaited(commands.ping)
    execute = _awaited(commands.execute)
    get = _awaited(commands.get)
    put = _awaited(commands.put)
    delete = _awaited(commands.delete)
    pop = _awaited(commands.pop)
    exists = _awaited(commands.exists)
    get_many = _awaited(commands.get_many)
    put_many = _awaited(commands.put_many)
    delete_many = _awaited(commands.delete_many)
    expire = _awaited(commands.expire)
    persist = _awaited(commands.persist)
    ttl = _awaited(commands.ttl)
    why = _awaited(commands.why)

    def counter(self, key: bytes) -> AsyncCounter:
        """The counter at `key`; it exists from its first increment on."""
        return AsyncCounter(self, key)

    def set(self, key: bytes) -> AsyncSet:
        """The set at `key`; it exists while it has elements."""
        return AsyncSet(self, key)

    def map(self, key: bytes) -> AsyncMap:
        """The map at `key`; it exists while it has fields."""
        return AsyncMap(self, key)

    def pipeline(self) -> AsyncPipeline:
        """Commands to send together; see `AsyncPipeline.run`."""
        return AsyncPipeline(self)

    async def keys(self, prefix: bytes = b"", **options: Unpack[Options]) -> AsyncIterator[bytes]:
        """Keys of every type that begin with `prefix`, in byte order; the options are for each page of them.

        All pages come from one node; when that fails in between, so does the iteration.
        """
        cursor, address = 0, None
        while True:
            page = commands.scan_page(cursor, commands.escape_pattern(prefix), SCAN_PAGE)
            [result], address = await self._exchange([page], options, address)
            if isinstance(result, Exception):
                raise result
            cursor, found = result
            for key in found:
                yield key
            if not cursor:
                return

    async def _call(self, command: Command[T]) -> T:
        [result], _ = await self._exchange([command], command.options)
        if isinstance(result, Exception):
            raise result
        value: T = result
        return value

    async def _exchange(
        self, wanted: Sequence[Command[Any]], options: Options, only: Address | None = None
    ) -> tuple[list[Any], Address | None]:
        """Results or exceptions of some commands, and the node that answered; see `Requests.exchange`."""
        answer = await self._run(wanted, options, only)
        return answer.results(), answer.address

    async def _run(self, wanted: Sequence[Command[Any]], options: Options, only: Address | None) -> Answer:
        seconds, level = self._settings.call(options)
        until = anyio.current_time() + seconds
        if self._free is None:
            self._free = anyio.Semaphore(self._settings.connections_max)
        with anyio.move_on_after(seconds) as waiting:
            await self._free.acquire()
        if waiting.cancelled_caught:
            raise all_in_use(self._idle.limit, seconds)
        lease = _Lease(self)
        steps = self._requests.exchange(wanted, level, until, only)
        advance: Callable[[], Effect] = lambda: next(steps)  # noqa: E731  # what comes first, then every result
        try:
            while True:
                if self._closed:
                    raise closed_error()
                try:
                    effect = advance()
                except StopIteration as done:
                    answer: Answer = done.value
                    return answer
                try:
                    result = await lease.perform(effect)
                except (Unconnected, Lost, EverwriteError) as failure:
                    advance = partial(steps.throw, failure)
                else:
                    advance = partial(steps.send, result)
        finally:
            self._free.release()
            with anyio.CancelScope(shield=True):
                await lease.discard()

    async def _connection(self, effect: Open) -> tuple[_Connection, bool]:
        while (idle := self._idle.take(effect.address, effect.level)) is not None:
            if not idle.stale():
                return idle, True
            await self._throw_away(idle)
        opened = False
        try:
            for connection in self._idle.start():
                await connection.close()
            made = await _Connection.open(effect)
            opened = True
            return made, False
        finally:
            if not opened:
                self._idle.end()

    async def _give_back(self, connection: _Connection) -> None:
        if self._closed:
            await self._throw_away(connection)
        else:
            self._idle.give(connection)

    async def _throw_away(self, connection: _Connection) -> None:
        self._idle.end()
        await connection.close()

    async def _forget(self, address: Address) -> None:
        for connection in self._idle.forget(address):
            await connection.close()


class _KeyClient:
    def __init__(self, client: AsyncClient, key: bytes) -> None:
        self._client = client
        self.key = key

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r}>"


class AsyncCounter(_KeyClient):
    """A counter on a server: increments of all regions add up, each exactly once. Made by `AsyncClient.counter`."""

    increment = _of_key(commands.counter_increment)
    decrement = _of_key(commands.counter_decrement)
    value = _of_key(commands.counter_value)
    reset = _of_key(commands.clear)


class AsyncSet(_KeyClient):
    """An add-wins set on a server. Made by `AsyncClient.set`."""

    add = _of_key(commands.set_add)
    discard = _of_key(commands.set_discard)
    contains = _of_key(commands.set_contains)
    members = _of_key(commands.set_members)
    size = _of_key(commands.set_size)
    clear = _of_key(commands.clear)


class AsyncMap(_KeyClient):
    """A map of fields to bytes on a server; a field may also be counted up. Made by `AsyncClient.map`."""

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


class AsyncPipeline(Recorder):
    """Commands that are sent together. Made by `AsyncClient.pipeline`; for one task at a time.

    >>> import anyio, everwrite
    >>> async def main():
    ...     async with everwrite.AsyncClient(address) as client:
    ...         pipeline = client.pipeline()
    ...         city, reads = pipeline.get(b"city"), pipeline.counter(b"reads").increment()
    ...         return await pipeline.run(), reads.value
    >>> anyio.run(main)
    ([None, 1], 1)
    """

    def __init__(self, client: AsyncClient) -> None:
        super().__init__()
        self._client = client

    async def run(self, *, raise_errors: bool = True, **options: Unpack[Options]) -> list[Any]:
        """Send what is recorded, and return the results in order; then the pipeline is empty.

        The commands run one by one, and others may run in between. When some fail, the first
        error is raised, or, without `raise_errors`, errors are among the results.
        """
        wanted, laters = self.take()
        results, _ = await self._client._exchange(wanted, options)
        for later, result in zip(laters, results, strict=True):
            later.settle(result)
        return checked(results) if raise_errors else results
