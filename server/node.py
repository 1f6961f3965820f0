"""A node: store, Redis frontend, HTTP and replication, assembled under trio.

Opening: the store first (it holds the lock on the data), then all ports, and only when everything is
there the node accepts and dials. Closing in reverse: no new clients, replies finished, the log pushed
to the peers for a bounded moment, then the store.

Invariant: after the store has failed, nothing is served any more: the process ends with an error.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final

import trio

import everwrite
from everwrite.errors import EverwriteError, PortInUseError, ReadOnlyError, StorageError
from everwrite.server import certs
from everwrite.server.config import NodeConfig
from everwrite.server.consistency import Level
from everwrite.server.control import Control
from everwrite.server.coordination import Coordination
from everwrite.server.frontend import Frontend
from everwrite.server.frontend_loop import close_frontend, serve_frontend
from everwrite.server.http_adapter import HttpServer, Limits
from everwrite.server.http_app import make_app
from everwrite.server.peer import PeerAddress
from everwrite.server.replication import Replicator
from everwrite.server.reports import origin_names
from everwrite.server.session import Identity
from everwrite.server.settings import ReplicationSettings
from everwrite.server.transport import Transport
from everwrite.server.version import software_version

__all__ = ["Node", "run_node"]

logger = logging.getLogger("everwrite.node")

BACKLOG: Final = 1024
REAP_INTERVAL_SECONDS: Final = 0.1
REAP_KEYS_MAX: Final = 1000
SWEEP_INTERVAL_SECONDS: Final = 1.0
# Together below the ten seconds that a service manager is promised.
DRAIN_CLIENTS_SECONDS: Final = 3.0
DRAIN_PEERS_SECONDS: Final = 2.0
DRAIN_HTTP_SECONDS: Final = 5.0


def _listen(host: str, port: int, setting: str) -> list[socket.socket]:
    """Listening sockets on every address of `host`. Raises `PortInUseError`, or OSError naming the setting."""
    sockets: list[socket.socket] = []
    try:
        for family, kind, number, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, number)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"{setting} = {port}: something listens on port {port} of {host} already: "
                "end it, or choose another port"
            ) from error
        raise StorageError(f"{setting} = {port}: can't listen on {host}: {error.strerror or error}") from error
    return sockets


def _trio_listeners(sockets: list[socket.socket]) -> list[trio.SocketListener]:
    for sock in sockets:
        sock.setblocking(False)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]


class Node:
    """One running node. Made by `run_node`; its parts are public for HTTP, metrics and the control commands."""

    def __init__(self, config: NodeConfig, store: everwrite.Database) -> None:
        self.config = config
        self.store = store
        self.identity = Identity(config.cluster, config.region, config.node)
        self.state = "starting"
        self.ports: dict[str, int] = {}
        self.replicator = Replicator(
            store,
            self.identity,
            [PeerAddress(peer.region, peer.node, peer.address) for peer in config.peers],
            rng=random.Random(),
            settings=ReplicationSettings(max_clock_drift_ms=config.max_clock_drift_ms),
            software=software_version(),
        )
        self.frontend = Frontend(store, Control(self))
        self.coordination: Coordination
        self.transport = Transport(
            self.replicator,
            commit=store.commit,
            commit_blocks=config.durability == "always",
            server_context=certs.server_context(config.certs) if config.certs is not None else None,
            client_context=certs.client_context(config.certs) if config.certs is not None else None,
            on_resolve=self._resolved,
            on_answered=lambda token, received: self.coordination.answered(token, received),
            on_region_changed=lambda region: self.coordination.region_changed(region),
        )
        self.coordination = Coordination(
            store,
            self.frontend,
            self.transport,
            consistency=Level.parse(config.consistency),
            timeout_seconds=config.request_timeout_ms / 1000,
            on_write=self.transport.local_write,
        )
        self.http = HttpServer(make_app(self), Limits(drain_seconds=DRAIN_HTTP_SECONDS))
        self._started_at = trio.current_time()
        self._nursery: trio.Nursery | None = None
        self._waits: dict[int, tuple[Callable[[int], object], Callable[[], bool]]] = {}

    # -- for HTTP, metrics and the control commands -----------------------------------------------

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the node was assembled."""
        return trio.current_time() - self._started_at

    def ready_reasons(self) -> list[str]:
        """Why the node can't serve now; empty when it can."""
        failure = self.store.failed_with
        if failure is not None:
            return [f"the store has failed: {failure}"]
        reasons = {"starting": ["the node is starting"], "draining": ["the node is draining: it is about to stop"]}
        return reasons.get(self.state, [])

    def notify_write(self) -> None:
        """Tell replication that the store has local changes that are committed."""
        self.transport.local_write()

    def origin_names(self) -> Mapping[int, tuple[str, str]]:
        """Region and node id by origin, as far as they are known."""
        return origin_names(self.store)

    def wait_for_regions(
        self,
        timestamp: int,
        regions: int,
        timeout_seconds: float,
        done: Callable[[int], object],
        gone: Callable[[], bool],
    ) -> None:
        """Call `done(n)` later, once: `n` other regions hold this node's updates up to `timestamp`.

        It is at least `regions`, or less after `timeout_seconds`. When `gone()` has become true it need not.
        """
        self._waits[self.transport.wait(timestamp, regions, timeout_seconds)] = done, gone

    def _resolved(self, token: int, regions: int) -> None:
        # Resolved at the very moment at which it was found to be gone: then it isn't there any more.
        done, _ = self._waits.pop(token, (None, None))
        if done is not None:
            done(regions)

    def status(self) -> dict[str, Any]:
        """What /v1/status shows."""
        return {
            "cluster": self.config.cluster,
            "region": self.config.region,
            "node": self.config.node,
            "state": self.state,
            "reasons": self.ready_reasons(),
            "uptime_seconds": self.uptime_seconds,
            "origin": f"{self.store.origin:016x}",
            "durability": self.config.durability,
            "ports": self.ports,
            "peers": self.replicator.statuses(trio.current_time()),
            "replication": self.statistics(),
            "store": self.store.statistics(),
        }

    def statistics(self) -> dict[str, int]:
        """Counters of replication over all peers."""
        return {**self.replicator.statistics(), **self.transport.statistics()}

    # -- running ----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until a signal or cancellation. Raises `StorageError` when the store fails."""
        config = self.config
        with ExitStack() as opened:
            redis = _listen(config.host, config.redis_port, "redis_port")
            opened.callback(_close_all, redis)
            http = _listen(config.host, config.http_port, "http_port")
            opened.callback(_close_all, http)
            peers = _listen(config.peer_host, config.peer_port, "peer_port") if config.certs is not None else []
            opened.callback(_close_all, peers)
            opened.callback(close_frontend, self.frontend)
            for name, sockets in (("redis", redis), ("http", http), ("peer", peers)):
                if sockets:
                    self.ports[name] = sockets[0].getsockname()[1]
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.transport.run, _trio_listeners(peers))
                for sock in redis:
                    self.frontend.add_listener(sock)
                nursery.start_soon(serve_frontend, self.frontend, self.transport.local_write)
                nursery.start_soon(self._run_reaper)
                nursery.start_soon(self._run_wait_sweeper)
                nursery.start_soon(self.coordination.run)
                await nursery.start(self.http.serve, _trio_listeners(http))
                if threading.current_thread() is threading.main_thread():
                    await nursery.start(self._run_signals)
                self.state = "ready"
                logger.info(
                    "%s is ready: Redis on port %d, HTTP on %d, peers on %s [event=ready origin=%016x durability=%s]",
                    self.identity,
                    self.ports["redis"],
                    self.ports["http"],
                    self.ports.get("peer", "no port"),
                    self.store.origin,
                    config.durability,
                )
                task_status.started(self)

    async def _run_reaper(self) -> None:
        """Remove expired keys in small portions; notice when the store's background work has failed."""
        while True:
            await trio.sleep(REAP_INTERVAL_SECONDS)
            if self.store.failed_with is not None:
                self._raise_failure()
            # On a full disk expired keys stay, unseen, until there is space to write down that they are gone.
            with suppress(ReadOnlyError):
                while (seen := self.store.reap_expired(REAP_KEYS_MAX)) > 0:
                    self.transport.local_write()
                    if seen < REAP_KEYS_MAX:
                        break
                    await trio.lowlevel.checkpoint()

    async def _run_wait_sweeper(self) -> None:
        """Forget what clients that have gone were waiting for: a wait may last an hour."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_SECONDS)
            for token in [token for token, (_, gone) in self._waits.items() if gone()]:
                self.replicator.cancel(token)
                del self._waits[token]

    def _raise_failure(self) -> None:
        self.state = "failed"
        failure = self.store.failed_with
        raise StorageError(
            f"the store in {self.config.data} has failed and serves nothing until the node is started again: "
            f"{failure or 'a commit was refused'}"
        ) from failure

    async def _run_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if self.state == "draining":
                    logger.warning("%s again: ending at once [event=killed]", name)
                    # The default action: whoever started the node sees that it was killed.
                    signal.signal(number, signal.SIG_DFL)
                    os.kill(os.getpid(), number)
                logger.info("%s: draining [event=draining]", name)
                self.drain()

    def drain(self) -> None:
        """Begin to stop: `run` returns within ten seconds."""
        if self.state == "draining":
            return
        assert self._nursery is not None, "the node isn't running"
        self.state = "draining"
        self._nursery.start_soon(self._drain)

    async def _drain(self) -> None:
        assert self._nursery is not None
        self.frontend.drain()
        self.http.drain()
        await self._clients_gone(DRAIN_CLIENTS_SECONDS)
        # Ends the waits for acknowledgement, too: their clients get what was reached.
        await self.transport.stop(DRAIN_PEERS_SECONDS)
        await self._clients_gone(0.5)
        logger.info("drained [event=drained]")
        self._nursery.cancel_scope.cancel()

    async def _clients_gone(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            # The frontend counts natively, and nobody but this waits for the count.
            while self.frontend.connected_clients:  # noqa: ASYNC110
                await trio.sleep(0.01)


def _close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


async def run_node(config: NodeConfig, *, task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED) -> None:
    """Run a node until it is told to stop; `task_status` gets the `Node` once it is ready.

    Raises what opening the store raises (`LockedError`, `CorruptionError` and so on), `PortInUseError`,
    `ConfigError` for certificates, and `StorageError` when the store fails later on.
    """
    store = await trio.to_thread.run_sync(lambda: _open(config))
    try:
        await Node(config, store).run(task_status=task_status)
    except BaseException:
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(store.close)
            except EverwriteError as error:
                logger.error("closing the store, too, has failed: %s [event=close_failed]", error)
        raise
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(store.close)


def _open(config: NodeConfig) -> everwrite.Database:
    return everwrite.open(
        config.data,
        config.durability,
        max_clock_drift_ms=config.max_clock_drift_ms,
        memtable_bytes=config.memtable_bytes,
        block_cache_bytes=config.block_cache_bytes,
        mapped_reads=config.mapped_reads,
        log_keep_bytes=config.log_keep_bytes,
    )
