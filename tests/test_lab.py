"""The lab with nodes that only answer HTTP: life and death of processes, and commands from other terminals."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import trio

from everwrite.errors import ConfigError, LabError, LockedError, PortInUseError
from everwrite.server import lab as lab_module
from everwrite.server.config import load
from everwrite.server.lab import Lab, LabOptions
from everwrite.server.lab_control import Answer, LabStatus, LinkStatus, NodeStatus, call, hold, ways
from everwrite.server.lab_plan import REGIONS, Plan
from everwrite.server.lab_view import PlainView, columns, status_text
from tests.cluster.processes import LAB_OFFSETS, free_base
from tests.support import ROOT, eventually_async

pytestmark = pytest.mark.usefixtures("no_new_processes")
NODE = ROOT / "tests" / "lab_node.py"


class Recorder:
    """A view that keeps what it is shown."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.became_ready = trio.Event()
        self.shown: LabStatus | None = None

    def event(self, text: str) -> None:
        self.events.append(text)

    def ready(self, status: LabStatus) -> None:
        self.became_ready.set()
        self.shown = status

    def show(self, status: LabStatus) -> None:
        self.shown = status


class RunningLab:
    """What a test does with a lab that is ready."""

    def __init__(self, folder: Path, plan: Plan, view: Recorder) -> None:
        self.folder = folder
        self.plan = plan
        self.view = view

    async def call(self, command: str, *arguments: str) -> Answer:
        return await trio.to_thread.run_sync(partial(call, self.folder, command, list(arguments), timeout_seconds=60))

    async def status(self) -> LabStatus:
        status = (await self.call("status")).status
        assert status is not None
        return status

    async def pids(self) -> list[int]:
        return [node.pid for node in (await self.status()).nodes if node.pid]

    async def states(self) -> list[str]:
        return [node.state for node in (await self.status()).nodes]


def options(folder: Path, mode: str = "works", **plan: int) -> LabOptions:
    return LabOptions(folder, Plan(base_port=free_base(LAB_OFFSETS), **plan), (sys.executable, str(NODE), mode))


def run_lab(folder: Path, body: Callable[[RunningLab], Awaitable[None]], mode: str = "works", **plan: int) -> Recorder:
    """Run a lab, `body` beside it when it is ready, then Ctrl-C; it must end with status 0."""

    async def main() -> Recorder:
        view = Recorder()
        chosen = options(folder, mode, **plan)
        statuses = []

        async def live() -> None:
            statuses.append(await Lab(chosen, view).run())

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live)
                await view.became_ready.wait()
                await body(RunningLab(folder, chosen.plan, view))
                os.kill(os.getpid(), signal.SIGINT)
        assert statuses == [0]
        return view

    return trio.run(main)


def fails(folder: Path, kind: type[Exception], mode: str = "works") -> str:
    with pytest.raises(kind) as caught:
        trio.run(Lab(options(folder, mode), Recorder()).run)
    return str(caught.value)


def test_all_regions_become_ready_and_drain(tmp_path: Path) -> None:
    pids: list[int] = []

    async def body(lab: RunningLab) -> None:
        status = await lab.status()
        assert [(node.region, node.node, node.state) for node in status.nodes] == [
            (region, f"{region}-0", "ready") for region in REGIONS
        ]
        assert {(link.source, link.target): link.round_trip_ms for link in status.links} == {
            ("us-east-0", "eu-west-0"): 80,
            ("us-east-0", "apac-0"): 180,
            ("eu-west-0", "us-east-0"): 80,
            ("eu-west-0", "apac-0"): 150,
            ("apac-0", "us-east-0"): 180,
            ("apac-0", "eu-west-0"): 150,
        }
        assert all((link.connected, link.lag_seconds, link.lag_changes) == (True, 0.25, 3) for link in status.links)
        pids.extend(await lab.pids())
        for pid in pids:
            assert os.getsid(pid) == pid, "Ctrl-C in the lab's terminal must not reach the nodes"

    run_lab(tmp_path / "lab", body)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    for region in REGIONS:
        assert (tmp_path / "lab" / f"{region}-0" / "data" / "drained").exists()
    assert not (tmp_path / "lab" / "lab.json").exists()


def test_nodes_get_the_ports_of_the_formula_and_reach_each_other_through_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERWRITE_REDIS_PORT", "1")  # of the lab's own environment: not for its nodes

    async def body(lab: RunningLab) -> None:
        base = lab.plan.places["us-east-0"].redis_port - 1
        peer_ports = {place.peer_port for place in lab.plan.places.values()}
        link_ports = []
        for i, region in enumerate(REGIONS):
            folder = lab.folder / f"{region}-0"
            config = load(folder / "node.toml").config
            ports = (config.redis_port, config.http_port, config.peer_port)
            assert ports == tuple(base + 100 * i + k for k in (1, 2, 3))
            assert config.data == folder / "data"
            assert {peer.region for peer in config.peers} == set(REGIONS) - {region}
            link_ports += [peer.port for peer in config.peers]
        assert len(set(link_ports)) == 6
        assert not peer_ports & set(link_ports)

    run_lab(tmp_path / "lab", body)


def test_without_wan_the_links_add_no_delay(tmp_path: Path) -> None:
    async def body(lab: RunningLab) -> None:
        status = await lab.status()
        assert not status.wan
        assert {link.round_trip_ms for link in status.links} == {0}

    run_lab(tmp_path / "lab", body, wan=False)


def test_cut_and_heal_concern_both_directions_and_say_when_it_was_so_already(tmp_path: Path) -> None:
    async def body(lab: RunningLab) -> None:
        async def cut_links() -> set[tuple[str, str]]:
            return {(link.source, link.target) for link in (await lab.status()).links if link.cut}

        assert (await lab.call("cut", "us-east", "eu-west")).changed
        assert await cut_links() == {("us-east-0", "eu-west-0"), ("eu-west-0", "us-east-0")}
        again = await lab.call("cut", "eu-west", "us-east")
        assert (again.changed, again.message) == (False, "eu-west - us-east was cut already")
        await lab.call("cut", "eu-west", "apac")
        await lab.call("heal", "us-east", "eu-west")
        assert await cut_links() == {("apac-0", "eu-west-0"), ("eu-west-0", "apac-0")}
        assert not (await lab.call("heal", "us-east", "eu-west")).changed
        assert (await lab.call("heal")).changed
        assert await cut_links() == set()
        assert not (await lab.call("heal")).changed

    run_lab(tmp_path / "lab", body)


def test_kill_reaps_and_start_waits_until_ready(tmp_path: Path) -> None:
    async def body(lab: RunningLab) -> None:
        before = (await lab.status()).nodes[2].pid
        assert before is not None
        assert (await lab.call("kill", "apac")).message == "apac-0 killed"
        assert not psutil.pid_exists(before)
        status = await lab.status()
        assert (status.nodes[2].state, status.nodes[2].pid) == ("killed", None)
        assert not (lab.folder / "apac-0" / "data" / "drained").exists()
        assert not any(link.connected for link in status.links if link.source == "apac-0")
        again = await lab.call("kill", "apac/0")
        assert (again.changed, again.message) == (False, "apac-0 was down already")
        assert (await lab.call("start", "apac/0")).message == "apac-0 is ready"
        status = await lab.status()
        assert status.nodes[2].state == "ready"
        assert status.nodes[2].pid not in (None, before)
        again = await lab.call("start", "apac")
        assert (again.changed, again.message) == (False, "apac-0 was running already")

    run_lab(tmp_path / "lab", body)


def test_two_starts_at_once_start_one_process(tmp_path: Path) -> None:
    # Other tests may have left helpers of their own behind, such as the resource tracker of multiprocessing.
    others = {child.pid for child in psutil.Process().children()}

    async def body(lab: RunningLab) -> None:
        await lab.call("kill", "apac")
        answers: list[Answer] = []

        async def start() -> None:
            answers.append(await lab.call("start", "apac"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            nursery.start_soon(start)
        assert sorted(answer.changed for answer in answers) == [False, True]
        assert len({child.pid for child in psutil.Process().children()} - others) == 3

    run_lab(tmp_path / "lab", body)


def test_a_node_that_ends_by_itself_is_down_and_stays_so(tmp_path: Path) -> None:
    async def body(lab: RunningLab) -> None:
        victim = (await lab.pids())[1]
        os.kill(victim, signal.SIGSEGV)
        await eventually_async(lambda: any("eu-west-0 was ended by SIGSEGV" in event for event in lab.view.events))
        node = (await lab.status()).nodes[1]
        assert (node.state, node.reasons, node.exit_status) == ("down", ["was ended by SIGSEGV"], -signal.SIGSEGV)
        assert await lab.states() == ["ready", "down", "ready"]
        await lab.call("start", "eu-west")
        assert await lab.states() == ["ready", "ready", "ready"]

    run_lab(tmp_path / "lab", body)


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    requests = {
        ("cut", "us-east", "atlantis"): "there is no region atlantis: the regions are us-east, eu-west, apac",
        ("cut", "us-east", "us-east"): "are the same region",
        ("heal", "mars", "us-east"): "there is no region mars",
        ("heal", "us-east"): "unknown request",
        ("kill", "apac/1"): "there is no node apac/1: the nodes are us-east/0, eu-west/0, apac/0",
        ("kill", "apac/"): "there is no node apac/",
        ("start", "atlantis/0"): "there is no region atlantis",
        ("reboot",): "unknown request 'reboot'",
    }

    async def body(lab: RunningLab) -> None:
        for request, text in requests.items():
            with pytest.raises(LabError, match=text):
                await lab.call(*request)
        assert await lab.states() == ["ready", "ready", "ready"]

    run_lab(tmp_path / "lab", body)


def test_a_second_lab_on_the_folder_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    with hold(folder):
        assert f"process {os.getpid()}" in fails(folder, LockedError)
    assert [path.name for path in folder.iterdir()] == ["lab.lock"]


def test_taken_ports_are_all_named_and_nothing_is_made(tmp_path: Path) -> None:
    chosen = options(tmp_path / "lab")
    place = chosen.plan.places["apac-0"]
    with (
        socket.create_server(("127.0.0.1", place.http_port)),
        socket.create_server(("127.0.0.1", place.peer_port)),
        pytest.raises(PortInUseError) as caught,
    ):
        trio.run(Lab(chosen, Recorder()).run)
    for port, kind in ((place.http_port, "http"), (place.peer_port, "peer")):
        assert f"port {port} ({kind} of apac-0): Address already in use" in str(caught.value)
    assert "--base-port" in str(caught.value)
    assert not (tmp_path / "lab").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    assert "isn't empty and no lab's folder" in fails(tmp_path, ConfigError)
    assert "can't be used" in fails(tmp_path / "thesis.txt", ConfigError)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_node_that_dies_at_the_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    for _ in range(2):  # the second time the log has a first half, which isn't shown
        message = fails(tmp_path / "lab", LabError, "dies")
        assert "ended with status 3 while it started" in message
        assert "second complaint" in message
        assert message.count("first complaint") == 1


def test_a_node_that_does_not_become_ready_in_time_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "READY_SECONDS_MAX", 0.1)
    monkeypatch.setattr(lab_module, "STARTING_TELL_SECONDS", 0.0)
    view = Recorder()
    with pytest.raises(LabError, match=r"isn't ready after 0\.1 s: no answer over HTTP"):
        trio.run(Lab(options(tmp_path / "lab", "silent"), view).run)
    assert "apac-0 isn't ready yet: no answer over HTTP" in view.events


def test_a_node_that_does_not_drain_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "DRAIN_SECONDS", 0.1)

    async def body(lab: RunningLab) -> None:
        """Only Ctrl-C."""

    view = run_lab(tmp_path / "lab", body, "stubborn")
    assert [event for event in view.events if "didn't end by itself" in event] == [
        f"{region}-0 didn't end by itself and is killed" for region in REGIONS
    ]


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    async def main() -> int:
        view = Recorder()
        statuses = []

        async def live() -> None:
            statuses.append(await Lab(options(tmp_path / "lab", "stubborn"), view).run())

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live)
                await view.became_ready.wait()
                os.kill(os.getpid(), signal.SIGTERM)
                await eventually_async(lambda: any(event.startswith("stopping") for event in view.events))
                os.kill(os.getpid(), signal.SIGTERM)
        return statuses[0]

    assert trio.run(main) == 130


def test_the_certificates_stay_from_one_run_to_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "lab"

    async def body(lab: RunningLab) -> None:
        """Only Ctrl-C."""

    run_lab(folder, body)
    before = {path.name: path.read_bytes() for path in (folder / "certs").iterdir()}
    assert len(before) == 8
    run_lab(folder, body)
    assert {path.name: path.read_bytes() for path in (folder / "certs").iterdir()} == before


def test_several_nodes_a_region_reach_each_other_directly_and_other_regions_through_links(tmp_path: Path) -> None:
    async def body(lab: RunningLab) -> None:
        places = lab.plan.places
        base = places["us-east-0"].redis_port - 1
        config = load(lab.folder / "eu-west-2" / "node.toml").config
        assert (config.redis_port, config.http_port, config.peer_port) == (base + 121, base + 122, base + 123)
        ports = {peer.node: peer.port for peer in config.peers}
        assert set(ports) == set(places) - {"eu-west-2"}
        assert {node for node, port in ports.items() if port == places[node].peer_port} == {"eu-west-0", "eu-west-1"}
        await lab.call("cut", "us-east", "eu-west")
        links = (await lab.status()).links
        assert len(links) == 9 * 8
        cut = {(link.source, link.target) for link in links if link.cut}
        between = {(f"us-east-{i}", f"eu-west-{j}") for i in range(3) for j in range(3)}
        assert cut == between | {(target, source) for source, target in between}
        assert {link.round_trip_ms for link in links if link.source[:2] == link.target[:2]} == {0}
        assert (await lab.call("kill", "apac/1")).message == "apac-1 killed"
        assert (await lab.states()).count("ready") == 8
        assert (await lab.call("start", "apac/1")).message == "apac-1 is ready"

    run_lab(tmp_path / "lab", body, nodes=3)


def link(source: str, target: str, **changes: Any) -> LinkStatus:
    whole = {"round_trip_ms": 80, "cut": False, "connected": True, "lag_seconds": 0.0, "lag_changes": 0}
    return LinkStatus(source=source, target=target, **(whole | changes))


def test_the_way_between_regions_is_as_good_as_the_best_link_of_each_node_and_within_one_as_the_worst() -> None:
    def node(region: str, number: int, pid: int | None) -> NodeStatus:
        return NodeStatus(
            region=region, node=f"{region}-{number}", state="ready" if pid else "killed", reasons=[], pid=pid,
            exit_status=None, redis_port=1, http_port=2, peer_port=3, log="",
        )  # fmt: skip

    nodes = [node("a", 0, 1), node("a", 1, 2), node("b", 0, 3), node("b", 1, None)]
    status = LabStatus(
        pid=1, data="", wan=True, nodes=nodes,
        links=[
            link("a-0", "b-0", lag_seconds=3.0, lag_changes=30),
            link("a-0", "b-1", connected=False),
            link("a-1", "b-0", lag_seconds=2.0, lag_changes=9),
            link("a-1", "b-1", lag_seconds=9.0),  # of before it was killed
            link("b-0", "a-0", connected=False),
            link("b-0", "a-1", cut=True, connected=False),
            link("b-1", "a-0"),
            link("a-0", "a-1", round_trip_ms=0, lag_seconds=0.5, lag_changes=2),
            link("a-1", "a-0", round_trip_ms=0, connected=False),
        ],
    )  # fmt: skip
    assert ways(status) == [
        link("a", "b", lag_seconds=3.0, lag_changes=30),
        link("b", "a", connected=False, lag_seconds=None, lag_changes=None),
        link("a", "a", round_trip_ms=0, connected=False, lag_seconds=0.5, lag_changes=2),
    ]
    assert "within a" in status_text(status)
    assert "a -> b " in status_text(status)


@pytest.mark.parametrize("nodes", [-1, 0, 4])
def test_other_numbers_of_nodes_are_refused(nodes: int) -> None:
    with pytest.raises(ConfigError, match=rf"--nodes {nodes}: must be from 1 to 3"):
        Plan(nodes=nodes)


@pytest.mark.parametrize("base_port", [-1, 65333, 10**9])
def test_base_ports_that_leave_the_range_are_refused(base_port: int) -> None:
    with pytest.raises(ConfigError, match=r"must be from 0 to 65332"):
        Plan(base_port=base_port)


def test_plain_output_has_a_line_only_for_what_changes(tmp_path: Path) -> None:
    output = io.StringIO()
    view = PlainView(output)

    async def body(lab: RunningLab) -> None:
        first = await lab.status()
        view.ready(first)
        length = len(output.getvalue())
        assert status_text(first) in output.getvalue()
        port = lab.plan.places["us-east-0"].redis_port
        assert f"redis-cli -p {port} SET" in output.getvalue()
        view.show(first)
        view.show(await lab.status())
        assert len(output.getvalue()) == length
        await lab.call("cut", "us-east", "apac")
        await lab.call("kill", "eu-west")
        view.show(await lab.status())
        assert output.getvalue()[length:].splitlines() == [
            "eu-west-0: killed",
            "us-east-0 -> apac-0: cut (lag 0.250 s, 3 changes)",
            "eu-west-0 -> us-east-0: down",
            "eu-west-0 -> apac-0: down",
            "apac-0 -> us-east-0: cut (lag 0.250 s, 3 changes)",
        ]

    run_lab(tmp_path / "lab", body)


def test_columns_are_aligned() -> None:
    assert columns([("A", "BB"), ("ccc", "d")]) == "A    BB\nccc  d"


@pytest.mark.parametrize("struct", [LabStatus, NodeStatus, LinkStatus])
def test_the_page_of_the_lab_names_every_field_of_the_status(struct: type[msgspec.Struct]) -> None:
    page = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    assert [name for name in struct.__struct_encode_fields__ if f"`{name}`" not in page] == []


def test_a_lab_whose_reader_has_gone_goes_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    async def body(lab: RunningLab) -> None:
        with os.fdopen(writer, "w") as output:
            view = PlainView(output)
            os.close(reader)
            view.event("nobody reads this")
            view.ready(await lab.status())

    run_lab(tmp_path / "lab", body)
