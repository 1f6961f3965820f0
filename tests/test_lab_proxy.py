"""The links of a lab: delay and order under a virtual clock, partitions over real sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from everwrite.server.lab_proxy import DelayLine, Link, carry
from tests.support import eventually_async, free_port


def run_virtually(function: object) -> None:
    trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def test_every_chunk_takes_the_delay_and_keeps_its_place() -> None:
    async def main() -> None:
        line = DelayLine(0.04)
        taken: list[tuple[float, bytes]] = []

        async def taker() -> None:
            while data := await line.take():
                taken.append((trio.current_time(), data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(taker)
            start = trio.current_time()
            for number in range(5):
                await line.put(b"%d" % number)
                await trio.sleep(0.01)
            await line.put(b"")
        assert [data for _, data in taken] == [b"0", b"1", b"2", b"3", b"4"]
        # Ten milliseconds apart, as they were put: the delay isn't paid once for each.
        assert [round(when - start, 6) for when, _ in taken] == [0.04, 0.05, 0.06, 0.07, 0.08]

    run_virtually(main)


def test_what_is_on_its_way_is_bounded() -> None:
    async def main() -> None:
        line = DelayLine(1.0, bytes_max=100)
        put: list[float] = []

        async def putter() -> None:
            for _ in range(4):
                await line.put(b"x" * 60)
                put.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(putter)
            await trio.testing.wait_all_tasks_blocked()
            assert line.in_flight_bytes == 120
            for _ in range(4):
                await line.take()
                await trio.testing.wait_all_tasks_blocked()
                assert line.in_flight_bytes <= 160
        assert line.in_flight_bytes == 0
        assert [round(when - put[0], 6) for when in put] == [0, 0, 1, 1]

    run_virtually(main)


def test_a_reader_that_stops_stops_the_writer() -> None:
    async def main() -> None:
        writer, source = trio.testing.memory_stream_one_way_pair()
        # A lockstep stream takes nothing until somebody reads.
        sink, _reader = trio.testing.lockstep_stream_pair()
        line = DelayLine(0.01, bytes_max=1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, source, sink, line)
            for _ in range(10):
                await writer.send_all(b"x" * 400)
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(1)
            assert line.in_flight_bytes <= 1400
            nursery.cancel_scope.cancel()

    run_virtually(main)


def test_the_end_of_a_stream_and_a_reset_travel_as_long_as_bytes() -> None:
    async def main() -> None:
        writer, source = trio.testing.memory_stream_one_way_pair()
        sink, reader = trio.testing.memory_stream_pair()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, source, sink, DelayLine(0.09))
            await writer.send_all(b"last")
            await writer.aclose()
            assert await reader.receive_some() == b"last"
            assert await reader.receive_some() == b""
        assert round(trio.current_time() - start, 6) == 0.09

        class Broken(trio.abc.ReceiveStream):
            async def receive_some(self, max_bytes: int | None = None) -> bytes:
                raise trio.BrokenResourceError

            async def aclose(self) -> None:
                """Nothing is open."""

        start = trio.current_time()
        with pytest.raises(BaseExceptionGroup) as caught:
            await carry(Broken(), sink, DelayLine(0.09))
        assert caught.group_contains(trio.BrokenResourceError)
        assert round(trio.current_time() - start, 6) == 0.09

    run_virtually(main)


class Target:
    """Stands for a node's peer port: echoes, and remembers what arrived."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.connections = 0
        self.port = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                while data := await stream.receive_some():
                    self.received += data
                    await stream.send_all(data)


@contextlib.asynccontextmanager
async def linked(delay_seconds: float = 0.0) -> AsyncIterator[tuple[Link, Target]]:
    target = Target()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        target.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, target.handle, listeners)
        link = Link("a", "b", target.port, delay_seconds)
        nursery.start_soon(link.run)
        with trio.fail_after(60):
            yield link, target
        nursery.cancel_scope.cancel()


async def dial(link: Link) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", link.port)


async def exchange(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    back = b""
    while len(back) < len(data):
        chunk = await stream.receive_some()
        assert chunk
        back += chunk
    assert back == data


async def until_reset(stream: trio.SocketStream) -> bytes:
    """What arrives before the connection is reset. Fails when it ends in order instead."""
    rest = b""
    while True:
        try:
            data = await stream.receive_some()
        except trio.BrokenResourceError:
            return rest
        assert data, "the connection ended in order"
        rest += data


def test_a_link_carries_both_directions_whole() -> None:
    async def main() -> None:
        async with linked(0.001) as (link, target), await dial(link) as stream:
            payload = bytes(range(256)) * 8192
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, payload)
                back = bytearray()
                while len(back) < len(payload):
                    back += await stream.receive_some()
            assert back == payload == target.received
            assert link.statistics().connections == 1
            await stream.send_eof()
            assert await stream.receive_some() == b""
            await eventually_async(lambda: link.statistics().connections == 0)
            assert link.statistics().in_flight_bytes == 0

    trio.run(main)


def test_a_cut_loses_everything_and_heal_resets() -> None:
    async def main() -> None:
        async with linked() as (link, target), await dial(link) as stream:
            await exchange(stream, b"before")
            link.cut()
            link.cut()
            assert link.statistics().cut
            await stream.send_all(b"during")
            during = await dial(link)
            await during.send_all(b"hello?")
            link.heal()
            link.heal()
            assert await until_reset(stream) == b""
            assert await until_reset(during) == b""
            async with during, await dial(link) as after:
                await exchange(after, b"after")
            assert target.received == b"beforeafter"
            assert target.connections == 2
            assert not link.statistics().cut

    trio.run(main)


def test_what_was_on_its_way_at_the_cut_is_lost() -> None:
    async def main() -> None:
        async with linked(3600.0) as (link, target), await dial(link) as stream:
            await stream.send_all(b"never")
            await eventually_async(lambda: link.statistics().in_flight_bytes == 5)
            link.cut()
            link.heal()
            assert await until_reset(stream) == b""
            await eventually_async(lambda: link.statistics().connections == 0)
            assert target.received == b""

    trio.run(main)


def test_the_end_of_a_process_does_not_pass_a_cut() -> None:
    async def main() -> None:
        async with linked() as (link, target), await dial(link) as stream:
            await exchange(stream, b"x")
            link.cut()
            # The target's side closes; a partition must not show it, so that only heal ends the connection.
            await stream.send_eof()
            link.heal()
            assert await until_reset(stream) == b""
            assert target.received == b"x"

    trio.run(main)


def test_cutting_and_healing_over_and_over_leaves_a_working_link() -> None:
    async def main() -> None:
        async with linked() as (link, _):
            for _ in range(20):
                link.cut()
                waiting = await dial(link)
                link.heal()
                await until_reset(waiting)
                await waiting.aclose()
                link.cut()
                link.heal()
                async with await dial(link) as stream:
                    await exchange(stream, b"x")
            await eventually_async(lambda: link.statistics().connections == 0)

    trio.run(main)


def test_a_link_to_a_dead_node_resets() -> None:
    async def main() -> None:
        link = Link("a", "b", free_port(), 0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            with trio.fail_after(60):
                async with await dial(link) as stream:
                    assert await until_reset(stream) == b""
                await eventually_async(lambda: link.statistics().connections == 0)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_node_that_dies_resets_its_connections() -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        link = Link("a", "b", port, 0.0)
        async with trio.open_nursery() as nursery, listeners[0]:
            nursery.start_soon(link.run)
            with trio.fail_after(60):
                async with await dial(link) as stream:
                    far = await listeners[0].accept()
                    await stream.send_all(b"unread")
                    await trio.lowlevel.wait_readable(far.socket)
                    await far.aclose()  # with bytes unread: the kernel sends a reset, as for a killed process
                    assert await until_reset(stream) == b""
            nursery.cancel_scope.cancel()

    trio.run(main)
