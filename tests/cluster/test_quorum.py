"""Three nodes of a region, one after the other killed: no acknowledged write is lost, no read misses one."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.processes import running_region
from tests.cluster.quorum_history import Event, History, Outcome, violations
from tests.cluster.quorum_load import Client
from tests.cluster.quorum_soak import run
from tests.support import eventually

SECONDS = 8.0
ACKNOWLEDGED, UNKNOWN, NOT_APPLIED = Outcome.ACKNOWLEDGED, Outcome.UNKNOWN, Outcome.NOT_APPLIED


@pytest.mark.parametrize(("durability", "faults"), [("always", ["kill"]), ("os", ["kill", "freeze", "kill all"])])
def test_no_acknowledged_write_is_lost_or_missed_while_nodes_are_killed(
    tmp_path: Path, durability: str, faults: list[str]
) -> None:
    run(tmp_path, SECONDS, faults=faults, options=[f"--durability={durability}"])


def test_http_names_the_level_of_a_request_and_what_became_of_it(tmp_path: Path) -> None:
    with running_region(tmp_path) as region, closing(Client(region)) as client:
        _, other, third = region.nodes
        assert client.http(0, "PUT", "/v1/keys/k?consistency=ALL", "everywhere") == (204, b"")
        assert client.http(1, "GET", "/v1/keys/k?consistency=ONE") == (200, b"everywhere")
        third.end()

        def refused(node: int, method: str, level: str) -> tuple[int, dict[str, object]]:
            status, body = client.http(node, method, f"/v1/keys/k?consistency={level}")
            return status, json.loads(body)["error"] if status >= 500 else {}

        # Until the loss is noticed, it is the deadline that ends the wait.
        eventually(lambda: refused(0, "DELETE", "ALL")[0] == 503)
        wanted = {"code": "too_few_replicas", "outcome": "not applied", "required": 3, "alive": 2}
        error = refused(0, "DELETE", "ALL")[1]
        assert {name: error[name] for name in wanted} == wanted
        eventually(lambda: client.http(0, "PUT", "/v1/keys/k", "two of three")[0] == 204)
        assert client.http(1, "GET", "/v1/keys/k?consistency=LOCAL_QUORUM") == (200, b"two of three")
        other.end()
        eventually(lambda: refused(0, "GET", "LOCAL_QUORUM")[0] == 503)
        assert client.http(0, "DELETE", "/v1/keys/k?consistency=ONE") == (204, b"")
        assert client.http(0, "GET", "/v1/keys/k?consistency=ONE")[0] == 404


# ---- the judge itself ----


def at(start: int, end: int) -> Event:
    return Event("a command", "local-0", start, end)


def register(*writes: tuple[object, Outcome, int, int], read: tuple[object, int, int]) -> list[str]:
    """The violations of a read (value, start, end) of a register with these writes (value, outcome, start, end)."""
    history = History()
    for value, outcome, start, end in writes:
        history.wrote("r", value, outcome, at(start, end))
    history.read("r", read[0], at(*read[1:]))
    return violations(history)


FIRST, SECOND = ("a", ACKNOWLEDGED, 0, 10), ("b", ACKNOWLEDGED, 20, 30)


@pytest.mark.parametrize(
    ("writes", "read", "allowed"),
    [
        ((FIRST, SECOND), ("b", 40, 50), True),
        ((FIRST, SECOND), ("a", 40, 50), False),
        ((FIRST, SECOND), (None, 40, 50), False),
        ((FIRST, SECOND), ("a", 25, 50), True),  # it began before the second one was acknowledged
        ((FIRST, SECOND), ("b", 15, 25), True),
        ((FIRST, SECOND), ("b", 15, 18), False),  # nobody had begun to write it
        ((FIRST, SECOND), (None, 5, 50), True),
        ((FIRST, SECOND), ("c", 40, 50), False),
        ((), (None, 0, 1), True),
        ((FIRST, ("b", UNKNOWN, 20, 30)), ("b", 40, 50), True),
        ((FIRST, ("b", UNKNOWN, 20, 30)), ("a", 40, 50), True),
        ((FIRST, ("b", NOT_APPLIED, 20, 30)), ("a", 40, 50), True),
        ((FIRST, ("b", NOT_APPLIED, 20, 30)), ("b", 40, 50), False),
        ((("b", UNKNOWN, 0, 10), ("a", ACKNOWLEDGED, 20, 30)), ("b", 40, 50), False),
        ((FIRST, (None, ACKNOWLEDGED, 20, 30)), (None, 40, 50), True),
        ((FIRST, (None, ACKNOWLEDGED, 20, 30)), ("a", 40, 50), False),
    ],
)
def test_a_read_gets_the_newest_acknowledged_write_or_a_later_one(
    writes: tuple[tuple[object, Outcome, int, int], ...], read: tuple[object, int, int], allowed: bool
) -> None:
    found = register(*writes, read=read)
    assert len(found) == (not allowed), found


@pytest.mark.parametrize(
    ("results", "shown", "wrong"),
    [
        ((1, 2, 3), 3, 0),
        ((1, 2, 2), 3, 1),  # the third one missed an acknowledged one
        ((1, 2, 3), 2, 1),
        ((1, 2, 3), 4, 1),  # one was done twice
        ((1, 3, 3), 3, 1),
    ],
)
def test_a_counter_has_what_was_acknowledged_and_no_more_than_was_begun(
    results: tuple[int, ...], shown: int, wrong: int
) -> None:
    history = History()
    for place, result in enumerate(results):
        history.incremented("c", result, ACKNOWLEDGED, at(10 * place, 10 * place + 5))
    history.read("c", shown, at(100, 110))
    assert len(violations(history)) == wrong
    history.incremented("c", None, NOT_APPLIED, at(50, 60))
    assert len(violations(history)) == wrong
    # An increment of which it isn't known may be counted or not.
    history.incremented("c", None, UNKNOWN, at(50, 60))
    assert len(violations(history)) == (wrong if shown < 4 else 0)


@pytest.mark.parametrize(
    ("claims", "wrong"),
    [
        ([(True, ACKNOWLEDGED, 0, 10), (False, ACKNOWLEDGED, 20, 30)], 0),
        ([(True, ACKNOWLEDGED, 0, 10), (True, ACKNOWLEDGED, 20, 30)], 1),
        ([(True, ACKNOWLEDGED, 0, 10), (True, ACKNOWLEDGED, 5, 30)], 0),
        ([(False, ACKNOWLEDGED, 0, 10)], 1),
        ([(None, UNKNOWN, 0, 10), (False, ACKNOWLEDGED, 20, 30)], 0),
        ([(None, NOT_APPLIED, 0, 10), (False, ACKNOWLEDGED, 20, 30)], 1),
    ],
)
def test_a_name_is_claimed_once(claims: list[tuple[bool | None, Outcome, int, int]], wrong: int) -> None:
    history = History()
    for won, outcome, start, end in claims:
        history.claimed("n", won, outcome, at(start, end))
    assert len(violations(history)) == wrong
