"""The session's table, its checks, and whose fault an error is."""

from __future__ import annotations

import itertools
import struct
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.errors import LocalProtocolError, PeerError
from everwrite.server import codec
from everwrite.server.messages import PROTOCOL_VERSION, Ack, Batch, Goodbye, Heartbeat, Hello, Message
from everwrite.server.session import TRANSITIONS, Event, Identity, Local, Role, Session, State, check_hello, event_name
from tests.support import ROOT

OWN = Identity("test", "us", "us-0")
PEER = Identity("test", "eu", "eu-0")
NOW_MS = 1_700_000_000_000
EVENTS: list[Event] = [*get_args(Message), *Local]


def hello(**changes: object) -> Hello:
    values: dict[str, object] = {
        "protocol": PROTOCOL_VERSION,
        "cluster": "test",
        "region": "eu",
        "node": "eu-0",
        "store_id": 2,
        "origin": 2 << 16 | 1,
        "now_ms": NOW_MS,
        "applied": {},
    }
    return Hello(**(values | changes))  # type: ignore[arg-type]


def session(role: Role = Role.SENDER) -> Session:
    return Session(1, role, PEER, 0.0)


def diagram(role: Role) -> str:
    lines = ["| State | Event | Next state |", "|---|---|---|"]
    for state, events in TRANSITIONS[role].items():
        for event, target in events.items():
            lines.append(f"| {state.value} | {event_name(event)} | {target.value} |")
    return "\n".join(lines)


@pytest.mark.parametrize("role", Role)
def test_the_page_shows_the_table(role: Role) -> None:
    page = (ROOT / "docs" / "protocols" / "replication.md").read_text(encoding="utf-8")
    assert f"### {role.value.capitalize()}\n\n{diagram(role)}\n" in page, diagram(role)


@pytest.mark.parametrize("role", Role)
def test_every_state_is_reached_and_left(role: Role) -> None:
    table = TRANSITIONS[role]
    reached = {State.AWAIT_HELLO}
    for _ in State:
        reached |= {target for state in reached for target in table[state].values()}
    assert reached == set(table)
    for state, events in table.items():
        assert Local.CLOSE in events
        assert state is State.CLOSED or Goodbye in events


@pytest.mark.parametrize(("role", "state", "event"), list(itertools.product(Role, State, EVENTS)))
def test_what_the_table_does_not_list_is_blamed(role: Role, state: State, event: Event) -> None:
    if state not in TRANSITIONS[role]:
        return
    subject = session(role)
    subject.state = state
    target = TRANSITIONS[role][state].get(event)
    if target is not None:
        subject.step(event)
        assert subject.state is target
        return
    blamed = LocalProtocolError if isinstance(event, Local) else PeerError
    with pytest.raises(blamed, match=event_name(event)):
        subject.step(event)
    assert subject.state is state


def test_a_message_before_the_hello_is_the_peers_fault() -> None:
    subject = session()
    subject.feed(0.0, codec.encode(Ack(1, {})))
    with pytest.raises(PeerError, match=r"eu/eu-0 sent 'Ack' while the session \(sender\) is 'await hello'") as caught:
        subject.next_message()
    assert caught.value.cause == "illegal_message"


def test_a_large_frame_is_welcome_only_after_the_hello() -> None:
    large = codec.encode(Batch(1, 1, 1, b"x" * codec.HELLO_BYTES_MAX))
    early = session(Role.RECEIVER)
    early.feed(0.0, large)
    with pytest.raises(PeerError, match="oversized") as caught:
        early.next_message()
    assert caught.value.cause == "oversized"

    greeted = session(Role.RECEIVER)
    greeted.feed(0.0, codec.encode(hello()) + large)
    message = greeted.next_message()
    assert isinstance(message, Hello)
    greeted.accept_hello(message)
    assert isinstance(greeted.next_message(), Batch)


@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_any_bytes_end_in_a_message_or_a_peer_error(data: bytes, framed: bool) -> None:
    subject = session()
    subject.feed(0.0, struct.pack("<I", len(data)) + data if framed else data)
    causes = []
    try:
        while subject.next_message() is not None:
            pass
    except PeerError as error:
        causes.append(error.cause)
    assert set(causes) <= {"garbage", "oversized", "illegal_message"}


def check(greeting: Hello, **changes: object) -> None:
    arguments: dict[str, object] = {
        "identity": PEER,
        "own": OWN,
        "own_store_id": 1,
        "now_ms": NOW_MS,
        "max_clock_drift_ms": 500,
    }
    check_hello(greeting, **(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("now_ms", [0, NOW_MS - 10_000, NOW_MS, NOW_MS + 500])
def test_a_right_hello_is_accepted(now_ms: int) -> None:
    check(hello(now_ms=now_ms))


@pytest.mark.parametrize(
    ("changes", "identity", "cause", "text"),
    [
        ({"protocol": 2}, PEER, "protocol_version", "speaks replication protocol 2 and this node 1"),
        ({"cluster": "other"}, PEER, "wrong_cluster", "of the cluster 'other' and this node of 'test'"),
        ({"region": "ap"}, PEER, "identity", "peer ap/eu-0 shows the certificate of eu/eu-0"),
        ({"node": "eu-1"}, PEER, "identity", "peer eu/eu-1 shows the certificate of eu/eu-0"),
        ({"region": "us", "node": "us-0"}, OWN, "self", "is this node itself"),
        ({"store_id": 1, "origin": 1 << 16 | 9}, PEER, "same_store", "one data directory is a copy"),
        ({"origin": 3 << 16 | 1}, PEER, "protocol", "isn't of its store id"),
        ({"now_ms": NOW_MS + 501}, PEER, "clock_drift", "is 501 ms ahead of this node's and at most 500 ms"),
    ],
)
def test_a_wrong_hello_is_refused(changes: dict[str, object], identity: Identity, cause: str, text: str) -> None:
    with pytest.raises(PeerError, match=text) as caught:
        check(hello(**changes), identity=identity)
    assert caught.value.cause == cause


def test_heartbeats_keep_their_state() -> None:
    for role, table in TRANSITIONS.items():
        for state, events in table.items():
            if Heartbeat in events:
                assert events[Heartbeat] is state, (role, state)
