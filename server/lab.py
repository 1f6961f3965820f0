"""`everwrite lab`: several regions on this machine, each node a process, every link through a proxy.

The lab starts the nodes, shows how they are, does what commands from other terminals ask, and drains all nodes at
the end. It holds no data: the nodes do, each in its own folder.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from everwrite.errors import ConfigError, EverwriteError, LabError, PortInUseError, first_of
from everwrite.server import certs, lab_control
from everwrite.server.config import ENVIRONMENT_PREFIX, NodeConfig, to_toml
from everwrite.server.lab_control import Answer, LabStatus, LinkStatus, NodeStatus, Request, ways
from everwrite.server.lab_plan import CLUSTER, Place, Plan, region_of
from everwrite.server.lab_process import Child, get_json
from everwrite.server.lab_proxy import Link

__all__ = ["Lab", "LabOptions", "View"]

POLL_SECONDS = 0.5
STARTING_POLL_SECONDS = 0.05
STARTING_TELL_SECONDS = 5.0
LINKS_SECONDS_MAX = 5.0
READY_SECONDS_MAX = 120.0
# Together they stay below the 10 s within which a lab ends.
DRAIN_SECONDS = 8.0
KILL_SECONDS = 1.0
# The states of a node that the lab itself ends, and what comes of them.
_STATE_AFTER_END = {"killing": "killed", "stopping": "stopped"}


class LabOptions(msgspec.Struct, frozen=True):
    """What `everwrite lab` was asked for. `command` starts a node when a path of a configuration is appended."""

    data: Path
    plan: Plan
    command: tuple[str, ...] = ()


class View(Protocol):
    """Where a lab shows what it does."""

    def event(self, text: str) -> None:
        """Something happened that is worth a line."""

    def ready(self, status: LabStatus) -> None:
        """All nodes are ready, for the first time."""

    def show(self, status: LabStatus) -> None:
        """The state of affairs, several times a second."""


class LabNode:
    """One node. Invariant: `child` is None exactly when no process of it runs."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.folder = folder
        self.state = "stopped"
        self.reasons: list[str] = []
        self.exit_status: int | None = None
        self.child: Child | None = None
        self.report: dict[str, Any] = {}  # of /v1/status, empty when the node doesn't answer
        self.became_ready = trio.Event()

    @property
    def log(self) -> Path:
        """What the node prints."""
        return self.folder / "node.log"

    def status(self) -> NodeStatus:
        """As shown to people."""
        return NodeStatus(
            region=self.place.region,
            node=self.place.node,
            state=self.state,
            reasons=self.reasons,
            pid=self.child.pid if self.child else None,
            exit_status=self.exit_status,
            redis_port=self.place.redis_port,
            http_port=self.place.http_port,
            peer_port=self.place.peer_port,
            log=str(self.log),
        )

    async def poll(self) -> None:
        """Ask the node how it is."""
        child = self.child
        if child is None or self.state in _STATE_AFTER_END:
            return
        ready = await get_json(self.place.http_port, "/readyz")
        report = await get_json(self.place.http_port, "/v1/status") if ready else None
        if self.child is not child or self.state in _STATE_AFTER_END:
            return  # it ended meanwhile, or another process took its place
        self.report = report[1] if report and report[0] == 200 and isinstance(report[1], dict) else {}
        if ready and ready[0] == 200 and self.report.get("node") == self.place.node:
            self.state, self.reasons = "ready", []
            self.became_ready.set()
            return
        reasons = ready[1].get("reasons") if ready and isinstance(ready[1], dict) else None
        self.reasons = [str(reason) for reason in reasons] if isinstance(reasons, list) else ["no answer over HTTP"]
        if self.state == "ready":
            self.state = "not ready"


class Lab:
    """A running lab. `run` is its whole life."""

    def __init__(self, options: LabOptions, view: View) -> None:
        self._folder = options.data
        self._plan = options.plan
        self._command = options.command or (sys.executable, "-P", "-m", "everwrite", "serve")
        self._view = view
        self._nodes = {name: LabNode(place, options.data / place.node) for name, place in options.plan.places.items()}
        self._links: dict[tuple[str, str], Link] = {}
        self._serving = trio.CancelScope()
        self._draining = trio.CancelScope()

    # ---- life ----

    async def run(self) -> int:
        """Start all nodes, serve until a signal says stop, drain. Returns the exit status.

        Raises `ConfigError`, `LockedError` or `PortInUseError` before anything was changed, `LabError` when a node
        doesn't start.
        """
        lab_control.refuse_second(self._folder)
        self._check_ports()
        _make_folder(self._folder)
        with lab_control.hold(self._folder):
            self._make_certificates()
            self._make_links()
            try:
                return await self._live()
            except* EverwriteError as group:
                error = first_of(group)
            raise error

    async def _live(self) -> int:
        async with trio.open_nursery() as nursery:
            for link in self._links.values():
                nursery.start_soon(link.run)
            await nursery.start(self._heed_signals)
            try:
                with self._serving:
                    await self._serve(nursery)
            finally:
                with trio.CancelScope(shield=True):
                    await self._drain()
                nursery.cancel_scope.cancel()
        return 130 if self._draining.cancel_called else 0

    async def _serve(self, nursery: trio.Nursery) -> None:
        """Until cancelled. Nodes live in `nursery`, which outlives this."""
        self._view.event(f"starting {', '.join(self._nodes)}")
        async with self._control(nursery):
            for node in self._nodes.values():
                self._spawn(node, nursery)
            async with trio.open_nursery() as starting:
                starting.start_soon(self._tell_what_is_missing)
                for node in self._nodes.values():
                    starting.start_soon(self._wait_ready, node)
            # The nodes need a moment to find each other; a table of links that are all down would alarm.
            deadline = trio.current_time() + LINKS_SECONDS_MAX
            while trio.current_time() < deadline:
                if all(way.connected for way in ways(self._status())):
                    break
                await trio.sleep(STARTING_POLL_SECONDS)
            self._view.ready(self._status())
            while True:
                self._view.show(self._status())
                await trio.sleep(POLL_SECONDS)

    async def _tell_what_is_missing(self) -> None:
        """While nodes start: now and then a line on those that aren't ready."""
        told = trio.current_time()
        while waiting := [node for node in self._nodes.values() if not node.became_ready.is_set()]:
            if trio.current_time() - told >= STARTING_TELL_SECONDS:
                told = trio.current_time()
                for node in waiting:
                    self._view.event(f"{node.place.node} isn't ready yet: {'; '.join(node.reasons) or 'starting'}")
            await trio.sleep(STARTING_POLL_SECONDS)

    async def _heed_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                if self._serving.cancel_called:
                    self._draining.cancel()
                self._serving.cancel()

    async def _drain(self) -> None:
        running = {node.place.node: node.child for node in self._nodes.values() if node.child is not None}
        if running:
            self._view.event("stopping: every node finishes what it has accepted; Ctrl-C again ends them at once")
        for name, child in running.items():
            self._nodes[name].state = "stopping"
            child.send_signal(signal.SIGTERM)
        with trio.move_on_after(DRAIN_SECONDS), self._draining:
            for child in running.values():
                await child.ended.wait()
        for name, child in running.items():
            if not child.ended.is_set():
                self._view.event(f"{name} didn't end by itself and is killed")
                child.send_signal(signal.SIGKILL)
        with trio.move_on_after(KILL_SECONDS):
            for child in running.values():
                await child.ended.wait()
        self._view.event("stopped")

    # ---- preparation ----

    def _check_ports(self) -> None:
        taken = []
        for place in self._plan.places.values():
            for kind in ("redis", "http", "peer"):
                port = getattr(place, f"{kind}_port")
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind(("127.0.0.1", port))
                        probe.listen(1)
                    except OSError as error:
                        taken.append(f"port {port} ({kind} of {place.node}): {error.strerror}")
        if taken:
            raise PortInUseError("\n".join(taken) + "\nend what listens there, or choose other ports with --base-port")

    def _make_certificates(self) -> None:
        folder = self._folder / "certs"
        if not (folder / "ca.key").exists():
            certs.init_authority(folder, cluster=CLUSTER)
        for name, place in self._plan.places.items():
            if not certs.node_certs(folder, name).key.exists():
                certs.make_node(folder, region=place.region, node=name)

    def _make_links(self) -> None:
        for source, target in self._plan.linked():
            delay_seconds = self._plan.round_trip_ms(source, target) / 2000
            self._links[source.node, target.node] = Link(source.node, target.node, target.peer_port, delay_seconds)

    # ---- nodes ----

    def _spawn(self, node: LabNode, nursery: trio.Nursery) -> None:
        node.folder.mkdir(exist_ok=True)
        file = node.folder / "node.toml"
        ports = {target: link.port for (source, target), link in self._links.items() if source == node.place.node}
        config: NodeConfig = self._plan.config(node.place, ports)
        file.write_text(
            "# Written by `everwrite lab` at each start of the node: changes here are lost.\n" + to_toml(config),
            encoding="utf-8",
        )
        # A setting in the lab's own environment would override the file, and all nodes would get the same port.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
        command = (*self._command, "--config", str(file), "--parent-pid", str(os.getpid()))
        node.child = Child(command, node.log, environment)
        node.state, node.reasons, node.exit_status, node.report = "starting", [], None, {}
        node.became_ready = trio.Event()
        nursery.start_soon(self._watch, node, node.child)

    async def _watch(self, node: LabNode, child: Child) -> None:
        """Follow a process of the node to its end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poll, node)
            await child.watch(partial(self._ended, node, child))
            nursery.cancel_scope.cancel()

    def _ended(self, node: LabNode, child: Child) -> None:
        starting = node.state == "starting"
        node.state = _STATE_AFTER_END.get(node.state, "down")
        node.child, node.exit_status, node.report = None, child.exit_status, {}
        node.reasons = [child.described()] if node.state == "down" else []
        if node.state == "down" and not starting:  # who waits for the start tells that it failed
            self._view.event(f"{node.place.node} {child.described()}; its log: {node.log}")

    async def _poll(self, node: LabNode) -> None:
        while True:
            await node.poll()
            await trio.sleep(POLL_SECONDS if node.became_ready.is_set() else STARTING_POLL_SECONDS)

    async def _wait_ready(self, node: LabNode) -> None:
        """Raises `LabError` when the process that runs now ends first, or isn't ready in time."""
        child = node.child
        if child is None:
            raise LabError(f"{node.place.node} ended while it started; its log: {node.log}")
        with trio.move_on_after(READY_SECONDS_MAX):
            async with trio.open_nursery() as nursery:

                async def either(event: trio.Event) -> None:
                    await event.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(either, node.became_ready)
                nursery.start_soon(either, child.ended)
        if node.became_ready.is_set() and node.child is child:
            return
        name = node.place.node
        if child.ended.is_set():
            tail = "\n".join("  " + line for line in child.log_tail().splitlines()) or "  (nothing)"
            raise LabError(f"{name} {child.described()} while it started; the end of its log, {node.log}:\n{tail}")
        raise LabError(
            f"{name} isn't ready after {READY_SECONDS_MAX:g} s: {'; '.join(node.reasons)}; its log: {node.log}"
        )

    # ---- status ----

    def _status(self) -> LabStatus:
        return LabStatus(
            pid=os.getpid(),
            data=str(self._folder),
            wan=self._plan.wan,
            nodes=[node.status() for node in self._nodes.values()],
            links=[self._link_status(*ends) for ends in (*self._plan.linked(), *self._plan.neighbours())],
        )

    def _link_status(self, source: Place, target: Place) -> LinkStatus:
        peers = self._nodes[source.node].report.get("peers")
        known = [
            peer
            for peer in (peers if isinstance(peers, list) else [])
            if peer.get("region") == target.region and peer.get("node") in (None, target.node)
        ]
        peer = known[0] if known else {}
        return LinkStatus(
            source=source.node,
            target=target.node,
            round_trip_ms=self._plan.round_trip_ms(source, target),
            cut=source.region != target.region and self._links[source.node, target.node].is_cut,
            connected=bool(peer.get("sending")),
            standby=bool(peer.get("standby")),
            lag_seconds=peer.get("lag_seconds"),
            lag_changes=peer.get("lag_changes"),
        )

    # ---- commands from other terminals ----

    @asynccontextmanager
    async def _control(self, nursery: trio.Nursery) -> AsyncIterator[None]:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        with lab_control.publish(self._folder, port) as token:
            async with trio.open_nursery() as control:
                handle = partial(self._answer, token, nursery)
                control.start_soon(trio.serve_listeners, handle, listeners)
                yield
                control.cancel_scope.cancel()

    async def _answer(self, token: str, nursery: trio.Nursery, stream: trio.SocketStream) -> None:
        # Whatever one connection does, it must not end the lab.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                await lab_control.answer_one(stream, token, partial(self._do, nursery))

    async def _do(self, nursery: trio.Nursery, request: Request) -> Answer:
        match request.command, request.arguments:
            case "cut", [one, other]:
                return self._set_cut(one, other, cut=True)
            case "heal", [one, other]:
                return self._set_cut(one, other, cut=False)
            case "heal", []:
                return self._heal_all()
            case "kill", [name]:
                return await self._kill(self._plan.find(name))
            case "start", [name]:
                return await self._start(self._plan.find(name), nursery)
            case "status", []:
                async with trio.open_nursery() as polls:
                    for node in self._nodes.values():
                        polls.start_soon(node.poll)
                return Answer(status=self._status())
        raise LabError(f"unknown request {request.command!r} with {len(request.arguments)} arguments")

    def _set_cut(self, one: str, other: str, *, cut: bool) -> Answer:
        if region_of(one) == region_of(other):
            raise LabError(f"{one} and {other} are the same region: name two")
        ends = {one, other}
        links = [
            self._links[source.node, target.node]
            for source, target in self._plan.linked()
            if {source.region, target.region} == ends
        ]
        word = "cut" if cut else "whole"
        if all(link.is_cut == cut for link in links):
            return Answer(f"{one} - {other} was {word} already", changed=False)
        for link in links:
            link.cut() if cut else link.heal()
        self._view.event(f"{one} - {other} is {word}{' again' if not cut else ''}")
        return Answer(f"{one} - {other} is {word}{' again' if not cut else ''}")

    def _heal_all(self) -> Answer:
        broken = [link for link in self._links.values() if link.is_cut]
        if not broken:
            return Answer("every link was whole already", changed=False)
        for link in broken:
            link.heal()
        self._view.event("every link is whole again")
        return Answer("every link is whole again")

    async def _kill(self, places: list[Place]) -> Answer:
        names, ended = [], []
        for place in places:
            node = self._nodes[place.node]
            if node.child is not None:
                names.append(place.node)
                ended.append(node.child.ended)
                node.state = "killing"
                node.child.send_signal(signal.SIGKILL)
        if not names:
            return Answer(f"{_list(places)} was down already", changed=False)
        for event in ended:
            await event.wait()
        self._view.event(f"{', '.join(names)} killed")
        return Answer(f"{', '.join(names)} killed")

    async def _start(self, places: list[Place], nursery: trio.Nursery) -> Answer:
        down = [self._nodes[place.node] for place in places if self._nodes[place.node].child is None]
        for node in down:
            self._spawn(node, nursery)
        for place in places:  # also those that somebody else is just starting
            await self._wait_ready(self._nodes[place.node])
        if not down:
            return Answer(f"{_list(places)} was running already", changed=False)
        self._view.event(f"{', '.join(node.place.node for node in down)} started")
        return Answer(f"{', '.join(node.place.node for node in down)} is ready")


def _make_folder(folder: Path) -> None:
    """Make the lab's folder, or check that it is one. Raises `ConfigError`."""
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / lab_control.LOCK_FILE).exists():
            raise ConfigError(f"{folder}: isn't empty and no lab's folder: name another one with --data")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be used as the lab's folder: {error.strerror or error}") from error


def _list(places: list[Place]) -> str:
    return ", ".join(place.node for place in places)
