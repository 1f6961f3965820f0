"""Clients that read and write at any node of a region while nodes are killed, and note what they were answered."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.cluster.processes import HOST, READY_SECONDS, Node, Region
from tests.cluster.quorum_history import Event, History, Outcome
from tests.support import eventually

__all__ = ["Load", "Nemesis", "check_end"]

# What a node says when nothing was done.
NOT_APPLIED = ("UNAVAILABLE", "READTIMEOUT", "LOADING", "MISCONF")
OWNED = 3
SHARED = 2
# Keys that are read with one command.
MANY = 4
CLAIM_EVERY = 40
PIPELINE = 5
UNKNOWN_PAUSE_SECONDS = 0.005
REFUSED_PAUSE_SECONDS = 0.01


class NotApplied(Exception):
    """The request did nothing; it may be sent again."""


class Unknown(Exception):
    """The request may have been done."""


def _is_retried(error: Exception) -> bool:
    return isinstance(error, redis.BusyLoadingError) or str(error).startswith(NOT_APPLIED)


class Client:
    """Connections of one thread to all nodes: of each request it is known whether it was sent."""

    def __init__(self, region: Region) -> None:
        self.nodes = len(region.nodes)
        ports = [node.redis_port for node in region.nodes]
        self._http = [http.client.HTTPConnection(HOST, node.http_port, timeout=READY_SECONDS) for node in region.nodes]
        self._connections = [
            redis.Connection(host=HOST, port=port, retry=Retry(NoBackoff(), 0), socket_timeout=READY_SECONDS)
            for port in ports
        ]

    def close(self) -> None:
        for connection in self._connections:
            connection.disconnect()
        for http_connection in self._http:
            http_connection.close()

    def http(self, node: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Status and body. Raises as `call`."""
        connection = self._http[node]
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                raise NotApplied(str(error)) from None
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise Unknown(str(error)) from None

    def call(self, node: int, *commands: tuple[Any, ...]) -> list[Any]:
        """The replies to commands that are sent together; a command's error reply is its reply.

        Raises NotApplied when nothing was sent, Unknown when the connection was lost afterwards.
        """
        connection = self._connections[node]
        try:
            connection.connect()
        except (redis.RedisError, OSError) as error:
            connection.disconnect()
            raise NotApplied(str(error)) from None
        replies: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    # Else redis-py hangs up on LOADING.
                    replies.append(connection.read_response(disconnect_on_error=False))
                except (redis.ResponseError, redis.BusyLoadingError) as error:
                    replies.append(error)
        except (redis.RedisError, OSError) as error:
            connection.disconnect()
            raise Unknown(str(error)) from None
        return replies


class Load:
    """Threads that work until `stop`. What went wrong for themselves is in `errors`, what they saw in `history`."""

    def __init__(self, region: Region, threads: int = 4, seed: int = 0) -> None:
        self.history = History()
        self.errors: list[str] = []
        self.refusals: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.region = region
        self._claims = 0
        self._threads = [
            threading.Thread(target=self._work, args=(number, random.Random(f"{seed}/{number}")), name=f"load-{number}")
            for number in range(threads)
        ]
        self.registers = [f"r:{thread}:{number}" for thread in range(threads) for number in range(OWNED)]
        self.members = [(f"s:{number}", f"m:{thread}") for thread in range(threads) for number in range(SHARED)]
        self.fields = [(f"h:{number}", f"f:{thread}") for thread in range(threads) for number in range(SHARED)]
        self.counters = [f"c:{number}" for number in range(SHARED)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()

    # ---- one thread ----

    def _work(self, number: int, rng: random.Random) -> None:
        client = Client(self.region)
        worker = _Worker(self, number, client, rng)
        try:
            while not self.stopping.is_set():
                worker.step()
        except Exception as error:
            self.errors.append(f"{threading.current_thread().name}: {error!r}")
            raise
        finally:
            client.close()

    def all_reads(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Everything that is written, by the name in the history, with the command that reads it."""
        return [
            *((name, ("GET", name)) for name in self.registers + self.counters),
            *((f"{key} {element}", ("SISMEMBER", key, element)) for key, element in self.members),
            *((f"{key} {element}", ("HGET", key, element)) for key, element in self.fields),
        ]

    def next_claim(self) -> str:
        """A name that several threads claim at about the same time."""
        self._claims += 1
        return f"n:{self._claims // CLAIM_EVERY}"


class _Worker:
    """One thread's requests; at the same node always when `node` says which."""

    def __init__(self, load: Load, number: int, client: Client, rng: random.Random, node: int | None = None) -> None:
        self.load = load
        self.node = node
        self.history = load.history
        self.number = number
        self.client = client
        self.rng = rng
        self.written = 0

    def step(self) -> None:
        """One request, or a few together."""
        weights = {
            self.write_register: 4,
            self.write_element: 3,
            self.increment: 3,
            self.claim: 1,
            self.read: 6,
            self.read_many: 3,
            self.pipeline: 1,
            self.use_http: 2,
        }
        self.rng.choices(list(weights), list(weights.values()))[0]()

    def request(self, *commands: tuple[Any, ...]) -> tuple[list[Any], Outcome, Event]:
        """Send commands to any node; the replies, what is known of them as writes, and when it was."""
        text = "; ".join(" ".join(map(str, command)) for command in commands)
        replies, outcome, event = self.attempt(text, lambda node: self.client.call(node, *commands))
        return replies or [], outcome, event

    def attempt(self, what: str, send: Callable[[int], Any]) -> tuple[Any, Outcome, Event]:
        """Send something to any node: the answer or None, what is known of it, and when it was."""
        node = self.rng.randrange(self.client.nodes) if self.node is None else self.node
        start = time.monotonic_ns()
        answer: Any = None
        outcome = Outcome.ACKNOWLEDGED
        try:
            answer = send(node)
        except NotApplied:
            outcome = Outcome.NOT_APPLIED
            self.pause()
        except Unknown:
            outcome = Outcome.UNKNOWN
        end = time.monotonic_ns()
        if outcome is Outcome.UNKNOWN:
            # All nodes have the same clock: whoever writes next, in another millisecond, writes what is newer.
            time.sleep(UNKNOWN_PAUSE_SECONDS)
        shown = outcome.value if answer is None else answer
        return answer, outcome, Event(f"{what} -> {shown}", f"local-{node}", start, end)

    def pause(self) -> None:
        """A node is down, or refuses: don't ask again at once."""
        self.load.stopping.wait(REFUSED_PAUSE_SECONDS)

    def outcome_of(self, reply: object) -> Outcome:
        """What is known of a write with this reply."""
        if not isinstance(reply, Exception):
            return Outcome.ACKNOWLEDGED
        word = "LOADING" if isinstance(reply, redis.BusyLoadingError) else str(reply).split(" ", 1)[0]
        self.load.refusals[word] += 1
        if _is_retried(reply):
            self.pause()
            return Outcome.NOT_APPLIED
        if word == "WRITETIMEOUT":
            return Outcome.UNKNOWN
        raise reply

    def write(self, command: tuple[Any, ...]) -> tuple[Any, Outcome, Event]:
        replies, outcome, event = self.request(command)
        if replies:
            outcome = self.outcome_of(replies[0])
        return replies[0] if replies else None, outcome, event

    def write_register(self) -> None:
        key = f"r:{self.number}:{self.rng.randrange(OWNED)}"
        self.written += 1
        value = None if self.rng.random() < 0.2 else f"{self.number}.{self.written}"
        _, outcome, event = self.write(("DEL", key) if value is None else ("SET", key, value))
        self.history.wrote(key, value, outcome, event)

    def use_http(self) -> None:
        key = f"r:{self.number}:{self.rng.randrange(OWNED)}"
        self.written += 1
        method, value = self.rng.choice([("GET", None), ("DELETE", None), ("PUT", f"{self.number}.{self.written}")])
        level = self.rng.choice(["", "?consistency=LOCAL_QUORUM", "?consistency=local_quorum"])
        path = f"/v1/keys/{quote(key, safe='')}{level}"
        answer, outcome, event = self.attempt(
            f"HTTP {method} {key}", lambda node: self.client.http(node, method, path, value)
        )
        status, body = answer or (0, b"")
        if status in (503, 504):
            error = json.loads(body)["error"]
            self.load.refusals[error["code"]] += 1
            outcome = Outcome(error["outcome"])
        elif answer is not None and status not in (200, 204, 404):
            raise AssertionError(str(event))
        if method != "GET":
            self.history.wrote(key, value, outcome, event)
        elif outcome is Outcome.ACKNOWLEDGED:
            self.history.read(key, body.decode() if status == 200 else None, event)

    def write_element(self) -> None:
        shared = self.rng.randrange(SHARED)
        self.written += 1
        if self.rng.random() < 0.5:
            name, member = f"s:{shared}", f"m:{self.number}"
            add = self.rng.random() < 0.6
            _, outcome, event = self.write(("SADD" if add else "SREM", name, member))
            self.history.wrote(f"{name} {member}", 1 if add else None, outcome, event)
        else:
            name, member = f"h:{shared}", f"f:{self.number}"
            value = f"{self.number}.{self.written}"
            _, outcome, event = self.write(("HSET", name, member, value))
            self.history.wrote(f"{name} {member}", value, outcome, event)

    def increment(self) -> None:
        key = self.rng.choice(self.load.counters)
        reply, outcome, event = self.write(("INCR", key))
        self.history.incremented(key, reply if outcome is Outcome.ACKNOWLEDGED else None, outcome, event)

    def claim(self) -> None:
        name = self.load.next_claim()
        reply, outcome, event = self.write(("SET", name, f"{self.number}", "NX"))
        self.history.claimed(name, reply is not None, outcome, event)

    def read(self) -> None:
        name, command = self.rng.choice(self.load.all_reads())
        reply, outcome, event = self.write(command)
        if outcome is Outcome.ACKNOWLEDGED:
            self.note_read(name, reply, event)

    def note_read(self, name: str, reply: Any, event: Event) -> None:
        value = reply.decode() if isinstance(reply, bytes) else reply
        if name.startswith("c:"):
            value = None if value is None else int(value)
        elif name.startswith("s:"):
            value = value or None
        self.history.read(name, value, event)

    def read_many(self) -> None:
        names = self.rng.sample(self.load.registers + self.load.counters, MANY)
        reply, outcome, event = self.write(("MGET", *names))
        if outcome is Outcome.ACKNOWLEDGED:
            for name, value in zip(names, reply, strict=True):
                self.note_read(name, value, event)

    def pipeline(self) -> None:
        """Commands that are sent together and answered in order, some of them writes."""
        key = f"r:{self.number}:{self.rng.randrange(OWNED)}"
        values = []
        commands: list[tuple[Any, ...]] = []
        for _ in range(PIPELINE):
            self.written += 1
            values.append(f"{self.number}.{self.written}")
            commands += [("SET", key, values[-1]), ("GET", key)]
        replies, sent, event = self.request(*commands)
        for place, value in enumerate(values):
            outcome = self.outcome_of(replies[2 * place]) if replies else sent
            self.history.wrote(key, value, outcome, event)
            if not replies or self.outcome_of(replies[2 * place + 1]) is not Outcome.ACKNOWLEDGED:
                continue
            if outcome is Outcome.ACKNOWLEDGED and replies[2 * place + 1] != value.encode():
                self.load.errors.append(f"{event}: a connection doesn't read its own write {value}")


class Nemesis:
    """Does something to the nodes again and again, out of `faults`:

    "kill": one is killed without warning, and started again at once or a little later. "freeze": one stands still and
    goes on. "kill all": all are killed at the same time. "lose": one is killed, and its data are gone.
    """

    FAULTS = ("kill", "freeze", "kill all", "lose")

    def __init__(self, region: Region, seed: int = 0, faults: Sequence[str] = ("kill",)) -> None:
        self.region = region
        self.done: Counter[str] = Counter()
        self._faults = list(faults)
        self._rng = random.Random(seed)

    def run(self, seconds: float) -> None:
        """Go on for so long; all nodes run and are connected at the end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            fault = self._rng.choice(self._faults)
            self.done[fault] += 1
            node = self._rng.choice(self.region.nodes)
            match fault:
                case "freeze":
                    self._freeze(node)
                case "kill all":
                    self._kill(*self.region.nodes)
                case "lose":
                    # Two at a time are more than a region of three survives.
                    eventually(self._recovered, what="no node recovers any more")
                    self._kill(node, loses=True)
                case _:
                    self._kill(node)
            self.region.wait_connected()
            time.sleep(self._rng.choice((0, 0.5, 1.0)))

    def _recovered(self) -> bool:
        return not any(status["replication"]["recovering"] for status in self.region.statuses())

    def _freeze(self, node: Node) -> None:
        process = node.background.process
        process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(self._rng.choice((0.3, 1.0, 3.0)))
        finally:
            process.send_signal(signal.SIGCONT)

    def _kill(self, *nodes: Node, loses: bool = False) -> None:
        for node in nodes:
            node.background.process.kill()
        for node in nodes:
            node.background.process.wait()
        time.sleep(self._rng.choice((0, 0.2, 1.0)))
        for node in nodes:
            if loses:
                shutil.rmtree(node.folder / "data")
            node.start()


def check_end(region: Region, load: Load) -> list[str]:
    """After the load, with all nodes up: read everything at each node at a quorum, and wait until all hold the same.

    The reads are added to the history; returned is what couldn't be read at all.
    """
    region.wait_whole()
    client = Client(region)
    try:
        failed = []
        for node in range(len(region.nodes)):
            worker = _Worker(load, -1, client, random.Random(node), node=node)
            for name, command in load.all_reads():
                reply, outcome, event = worker.write(command)
                if outcome is Outcome.ACKNOWLEDGED:
                    worker.note_read(name, reply, event)
                else:
                    failed.append(f"with all nodes up: {event}")
        commands = [("EW.CONSISTENCY", "ONE"), *(command for _, command in load.all_reads())]

        def equal() -> bool:
            shown = [client.call(node, *commands) for node in range(len(region.nodes))]
            return all(replies == shown[0] for replies in shown)

        eventually(equal, what="all nodes hold the same")
        return failed
    finally:
        client.close()
