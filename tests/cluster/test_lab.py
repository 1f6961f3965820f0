"""`everwrite lab` and its commands from another terminal."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.processes import HOST, PAIRS, REGIONS, Lab, client, everwrite, http_get, is_free, running_lab
from tests.support import eventually


def value_everywhere(lab: Lab, key: str, expected: bytes | None) -> None:
    clients = lab.clients()
    eventually(
        lambda: all(each.get(key) == expected for each in clients), what=f"{key} is {expected!r} in every region"
    )


def nodes_of(status: Any) -> dict[str, Any]:
    """The regions' entries of a status, by region."""
    return {entry["region"]: entry for entry in status["nodes"]}


def test_a_write_in_any_region_reaches_all(lab: Lab) -> None:
    for region in REGIONS:
        lab.client(region).set(f"from:{region}", region)
    for region in REGIONS:
        value_everywhere(lab, f"from:{region}", region.encode())


def test_status_names_every_region_and_link(lab: Lab) -> None:
    status = lab.status()
    assert set(nodes_of(status)) == set(REGIONS)
    table = lab.command("status").stdout
    for region in REGIONS:
        assert region in table


def test_a_cut_link_stops_changes_and_healing_it_delivers_them(lab: Lab) -> None:
    us, eu, apac = lab.clients()
    for pair in PAIRS:
        lab.command("cut", *pair)
    us.set("held back", "1")
    # WAIT answers how many other regions have it: a statement about the link, not about time passed.
    assert us.wait(1, 200) == 0
    assert eu.get("held back") is None
    assert apac.get("held back") is None
    lab.command("heal")
    assert us.wait(2, 30_000) == 2
    value_everywhere(lab, "held back", b"1")


def test_one_cut_link_leaves_the_others(lab: Lab) -> None:
    us, _eu, apac = lab.clients()
    lab.command("cut", "us-east", "eu-west")
    us.set("two thirds", "1")
    assert us.wait(1, 30_000) == 1
    assert apac.get("two thirds") == b"1"
    lab.command("heal")
    value_everywhere(lab, "two thirds", b"1")


def test_a_killed_region_comes_back_with_its_data_and_what_it_missed(lab: Lab) -> None:
    us, _eu, apac = lab.clients()
    apac.set("before", "crash")
    value_everywhere(lab, "before", b"crash")
    lab.command("kill", "apac")
    assert http_get(lab.port("apac", "http"), "/livez")[0] == 0
    us.set("during", "crash")
    assert us.wait(1, 30_000) == 1
    lab.command("start", "apac/0")
    assert http_get(lab.port("apac", "http"), "/readyz")[0] == 200
    value_everywhere(lab, "before", b"crash")
    value_everywhere(lab, "during", b"crash")
    apac.set("after", "crash")
    value_everywhere(lab, "after", b"crash")


def test_commands_for_what_is_so_already_say_so(lab: Lab) -> None:
    assert "already" in lab.command("start", "apac").stdout
    assert "already" in lab.command("heal").stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("kill", "atlantis"), "atlantis"),
        (("kill", "apac/7"), "apac/7"),
        (("cut", "us-east", "us-east"), "us-east"),
        (("cut", "us-east", "atlantis"), "atlantis"),
        (("heal", "us-east"), "two regions"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_changes_nothing(
    lab: Lab, arguments: tuple[str, ...], named: str
) -> None:
    outcome = lab.command(*arguments, check=False)
    assert outcome.returncode != 0
    assert named in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert all(http_get(lab.port(region, "http"), "/readyz")[0] == 200 for region in REGIONS)


def test_commands_without_a_lab_name_the_folder(tmp_path: Path) -> None:
    outcome = everwrite("lab", "status", "--data=nowhere", cwd=tmp_path, check=False)
    assert outcome.returncode != 0
    assert "nowhere" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_second_lab_on_the_same_folder_is_refused(lab: Lab) -> None:
    outcome = everwrite("lab", f"--data={lab.data}", "--base-port=33000", "--no-wan", cwd=lab.folder, check=False)
    assert outcome.returncode != 0
    assert str(lab.data) in outcome.stderr
    assert all(http_get(lab.port(region, "http"), "/readyz")[0] == 200 for region in REGIONS)


@pytest.mark.slow
def test_ctrl_c_drains_and_a_start_on_the_same_folder_has_all_the_data(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        us, eu, apac = lab.clients()
        us.set("string", "value")
        eu.incrby("counter", 5)
        apac.sadd("set", "a", "b")
        lab.command("cut", "us-east", "eu-west")
        lab.command("cut", "us-east", "apac")
        us.incrby("counter", 2)
        lab.stop()
        assert all(is_free(lab.port(region, kind)) for region in REGIONS for kind in ("redis", "http", "peer"))
        lab.start()
        for each in lab.clients():
            eventually(lambda each=each: each.get("counter") == b"7", what="the change that was cut off arrives")
            assert each.get("string") == b"value"
            assert each.smembers("set") == {b"a", b"b"}


@pytest.mark.slow
def test_a_lab_that_was_killed_starts_again_on_its_folder(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        for region in REGIONS:
            lab.client(region).incr("counter")
        value_everywhere(lab, "counter", b"3")
        nodes = lab.background.descendants()
        lab.background.process.kill()
        lab.background.process.wait()
        eventually(
            lambda: not any(node.is_running() and node.status() != "zombie" for node in nodes),
            what="the nodes end when the lab dies",
        )
        lab.start()
        value_everywhere(lab, "counter", b"3")


@pytest.mark.slow
def test_a_node_answers_everything_that_it_had_read_before_it_ends(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        with client(lab.port("us-east")) as us, us.pipeline(transaction=False) as pipeline:
            for _ in range(1000):
                pipeline.incr("counter")
            assert pipeline.execute()[-1] == 1000
        lab.stop()
        lab.start()
        value_everywhere(lab, "counter", b"1000")


@pytest.mark.slow
def test_delay_between_regions_is_the_wan(tmp_path: Path) -> None:
    with running_lab(tmp_path, wan=True) as lab:
        us = lab.client("us-east")
        us.set("far", "away")
        assert us.wait(2, 30_000) == 2
        value_everywhere(lab, "far", b"away")
        assert lab.background.stop(signal.SIGINT) == 0
    assert is_free(lab.port("us-east")), HOST
