"""What the client decides, without sockets: the third loop around `Requests.exchange`, with time in its hand."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwrite.client.addresses import Address, parse_address, parse_target
from everwrite.client.commands import Command, Safety, level_of, safety_of
from everwrite.client.replies import ErrorReply, error_of
from everwrite.client.request import Answer, Discard, Forget, Lost, Open, Pause, Release, Requests, Talk, Unconnected
from everwrite.client.router import BACKOFF_MAX_SECONDS, Router
from everwrite.client.settings import Settings
from everwrite.client.wire import Identity, Wire
from everwrite.errors import (
    AuthenticationError,
    ConfigError,
    ConnectionLostError,
    DeadlineError,
    EverwriteError,
    Outcome,
    ReadOnlyError,
    ServerError,
    Unavailable,
    UnreachableError,
    WriteTimeout,
)

HOME = [Address("h1"), Address("h2")]
AWAY = [Address("a1"), Address("a2")]
NODES = [*HOME, *AWAY]
TIMEOUT = 5.0

# What a node does with a request: before it has reached the store, or after.
OK = "ok"
REFUSES = "refuses the connection"
SILENT = "accepts no connection"
BREAKS_BEFORE = "breaks before it reads"
BREAKS_AFTER = "applies, and breaks"
HANGS_BEFORE = "hangs before it reads"
HANGS_AFTER = "applies, and hangs"
FULL = "MISCONF Errors writing to the log: the disk is full: nothing was changed"
FAILED = "MISCONF Errors writing to the log: the store stopped after an earlier failure"
LOADING = "LOADING the node is starting"
UNAVAILABLE = "UNAVAILABLE no quorum (required 2, alive 1)"
WRONG = "WRONGTYPE Operation against a key holding the wrong kind of value"
BEHAVIOURS = [
    *(OK, REFUSES, SILENT, BREAKS_BEFORE, BREAKS_AFTER, HANGS_BEFORE, HANGS_AFTER),
    *(FULL, FAILED, LOADING, UNAVAILABLE, WRONG),
]
APPLIES = {OK, BREAKS_AFTER, HANGS_AFTER, FAILED}

COMMANDS = {
    Safety.READ: ("GET", b"k"),
    Safety.REPEATABLE: ("SET", b"k", b"v"),
    Safety.ONCE: ("INCR", b"k"),
    Safety.SINGLE: ("EW.NEW", b"k"),
}


REQUEST_ID = re.compile(rb"EW\.ONCE\r\n\$16\r\n(.{16})", re.DOTALL)


class World:
    """Nodes that follow a script, and the time that passes while a client asks them."""

    def __init__(self, scripts: dict[Address, list[str]], seed: int = 0, *, ids: bool = True) -> None:
        self.scripts = {address: list(scripts.get(address, [])) for address in NODES}
        self.now = 0.0
        self.asked: list[Address] = []
        self.applied = 0
        self.known: set[tuple[Address, bytes]] = set()  # ids, by the node that has recorded them
        self.router = Router({"away": AWAY, "home": HOME}, "home", random.Random(seed))
        self.requests = Requests(
            self.router, Identity("test", None, None), lambda: self.now, connect_seconds=1.0, request_ids=ids
        )
        self.idle: list[Wire] = []

    def behaviour(self, address: Address) -> str:
        """What the node does this time; when its script is over, it serves."""
        script = self.scripts[address]
        return script.pop(0) if script else OK

    def ask(self, *commands: Command[Any], timeout: float = TIMEOUT) -> Answer:
        """Run a request, and let time pass."""
        steps = self.requests.exchange(commands, None, self.now + timeout)
        result: Any = None
        failure: Exception | None = None
        held: tuple[Wire, str] | None = None
        while True:
            try:
                effect = steps.send(result) if failure is None else steps.throw(failure)
            except StopIteration as done:
                assert held is None, "a connection was neither given back nor closed"
                answer: Answer = done.value
                return answer
            result = failure = None
            try:
                match effect:
                    case Open():
                        assert held is None
                        held = self._open(effect)
                        result = held[0], False
                    case Talk():
                        assert held is not None
                        self._talk(effect, *held)
                    case Release():
                        held = None
                    case Discard() | Forget():
                        held = None
                    case Pause():
                        assert effect.seconds > 0
                        self.now += effect.seconds
            except (Unconnected, Lost) as error:
                failure = error

    def _open(self, effect: Open) -> tuple[Wire, str]:
        self.asked.append(effect.address)
        does = self.behaviour(effect.address)
        if does == REFUSES:
            self.now += 0.001
            raise Unconnected("refused")
        if does == SILENT:
            self.now = effect.until
            raise Unconnected("no connection in time")
        wire = Wire(effect.address)
        wire.greeted = True
        return wire, does

    def _talk(self, effect: Talk, wire: Wire, does: str) -> None:
        self.now += 0.001
        found = REQUEST_ID.search(effect.data)
        if does in APPLIES and not (found and (wire.address, found[1]) in self.known):
            self.applied += 1
            if found:
                self.known.add((wire.address, found[1]))
        if does in (BREAKS_BEFORE, BREAKS_AFTER):
            raise Lost("the connection was closed", sent=True)
        if does in (HANGS_BEFORE, HANGS_AFTER):
            self.now = effect.until
            raise Lost("no reply in time", sent=True)
        if b"EW.DEADLINE" in effect.data:
            effect.replies.append(b"OK")
        effect.replies.append(b"OK" if does == OK else ErrorReply(does))


def command(safety: Safety) -> Command[Any]:
    args = COMMANDS[safety]
    assert safety_of(args) is safety
    return Command(args, lambda reply: reply, safety, {})


def outcome_of(world: World, safety: Safety) -> Any:
    """The result, or the error, of one request."""
    try:
        [result] = world.ask(command(safety)).results()
    except EverwriteError as error:
        return error
    return result


SCRIPTS = st.dictionaries(st.sampled_from(NODES), st.lists(st.sampled_from(BEHAVIOURS), max_size=6))


@given(SCRIPTS, st.sampled_from(list(COMMANDS)), st.integers(0, 5))
@settings(max_examples=400)
def test_outcomes_are_true_whatever_the_nodes_do(scripts: dict[Address, list[str]], safety: Safety, seed: int) -> None:
    world = World(scripts, seed)
    result = outcome_of(world, safety)
    assert world.now <= TIMEOUT + 1e-9
    if isinstance(result, EverwriteError):
        assert result.outcome is not None
        if safety is Safety.READ:
            assert result.outcome is Outcome.NOT_APPLIED
        elif result.outcome is Outcome.NOT_APPLIED:
            assert world.applied == 0
    else:
        assert result == b"OK"
        assert world.applied >= 1
    if safety >= Safety.ONCE:
        assert world.applied <= 1


@given(SCRIPTS, st.integers(0, 5))
@settings(max_examples=200)
def test_other_regions_are_asked_only_when_home_cannot(scripts: dict[Address, list[str]], seed: int) -> None:
    world = World(scripts, seed)
    outcome_of(world, Safety.READ)
    if any(each in AWAY for each in world.asked):
        first_away = next(at for at, each in enumerate(world.asked) if each in AWAY)
        tried = world.asked[:first_away]
        assert set(tried) == set(HOME)


def test_keeps_to_one_node_of_home_while_it_answers() -> None:
    world = World({})
    for _ in range(20):
        world.ask(command(Safety.READ))
    assert len(set(world.asked)) == 1
    assert world.asked[0] in HOME
    assert {World({}, seed).router.choose(0.0) for seed in range(20)} == set(HOME), "clients start at different nodes"


def test_goes_back_home_after_a_pause() -> None:
    world = World({address: [REFUSES] * 3 for address in HOME})
    world.ask(command(Safety.READ))
    assert world.asked[-1] in AWAY
    for _ in range(200):
        world.now += 0.1
        world.ask(command(Safety.READ))
    assert set(world.asked[-100:]) <= set(HOME)
    assert world.router.suspects() == [] or len(world.router.suspects()) == 1
    asked = [each for each in world.asked if each in HOME]
    assert len(asked) < len(world.asked), "others were asked meanwhile"


def test_a_node_that_hangs_leaves_time_for_another() -> None:
    world = World({address: [HANGS_BEFORE] for address in HOME})
    [result] = world.ask(command(Safety.READ)).results()
    assert result == b"OK"
    assert world.asked[-1] in AWAY
    assert world.now < TIMEOUT


def test_errors_name_what_is_known() -> None:
    lost = outcome_of(World({address: [BREAKS_AFTER] for address in HOME}), Safety.SINGLE)
    assert isinstance(lost, ConnectionLostError)
    assert lost.outcome is Outcome.UNKNOWN
    assert lost.address in {str(address) for address in HOME}
    hung = outcome_of(World({address: [HANGS_AFTER] for address in HOME}), Safety.SINGLE)
    assert isinstance(hung, DeadlineError)
    assert hung.outcome is Outcome.UNKNOWN
    nobody = outcome_of(World({address: [REFUSES] * 100 for address in NODES}), Safety.SINGLE)
    assert isinstance(nobody, UnreachableError)
    assert nobody.outcome is Outcome.NOT_APPLIED
    assert all(str(address) in str(nobody) for address in NODES)
    full = outcome_of(World({address: [FULL] for address in NODES}), Safety.REPEATABLE)
    assert isinstance(full, ReadOnlyError)
    assert full.outcome is Outcome.NOT_APPLIED


def test_a_region_without_a_quorum_hands_over_to_the_next_and_all_without_fail_at_once() -> None:
    world = World({address: [UNAVAILABLE] for address in HOME})
    assert outcome_of(world, Safety.REPEATABLE) == b"OK"
    assert set(world.asked[:-1]) == set(HOME), "one node that is cut off says nothing of the others"
    assert world.asked[-1] in AWAY
    world = World({address: [UNAVAILABLE] for address in NODES})
    error = outcome_of(world, Safety.REPEATABLE)
    assert isinstance(error, Unavailable)
    assert (error.required, error.alive) == (2, 1)
    assert world.now < 0.1


def test_an_increment_is_sent_again_with_its_id_to_the_node_that_may_have_it() -> None:
    world = World({address: [BREAKS_AFTER, REFUSES, HANGS_AFTER] for address in HOME})
    assert outcome_of(world, Safety.ONCE) == b"OK"
    assert world.applied == 1
    assert len(set(world.asked)) == 1
    assert len(world.asked) == 4


def test_an_increment_that_was_not_sent_goes_to_any_node() -> None:
    world = World({address: [REFUSES] for address in HOME})
    assert outcome_of(world, Safety.ONCE) == b"OK"
    assert world.asked[-1] in AWAY


def test_an_increment_whose_node_stays_away_is_unknown() -> None:
    world = World({address: [BREAKS_AFTER] + [REFUSES] * 1000 for address in HOME})
    error = outcome_of(world, Safety.ONCE)
    assert isinstance(error, (ConnectionLostError, DeadlineError))
    assert error.outcome is Outcome.UNKNOWN
    assert not set(world.asked) & set(AWAY)


def test_the_node_that_may_have_it_is_asked_until_it_can_tell() -> None:
    world = World({address: [BREAKS_AFTER, LOADING, UNAVAILABLE, UNAVAILABLE] for address in HOME})
    assert outcome_of(world, Safety.ONCE) == b"OK"
    assert world.applied == 1
    assert len(set(world.asked)) == 1
    world = World({address: [BREAKS_AFTER] + [UNAVAILABLE] * 1000 for address in HOME})
    error = outcome_of(world, Safety.ONCE)
    assert isinstance(error, Unavailable)
    assert error.outcome is Outcome.UNKNOWN


def test_ids_are_of_one_connection_and_grow() -> None:
    entropy = random.Random(1).randbytes
    one, other = Wire(HOME[0]), Wire(HOME[0])
    ids = [one.next_id(entropy), one.next_id(entropy), other.next_id(entropy)]
    assert all(len(each) == 16 for each in ids)
    assert ids[0][:10] == ids[1][:10] != ids[2][:10]
    assert ids[0] < ids[1]


def test_a_refusal_after_a_lost_reply_is_unknown() -> None:
    world = World({address: [BREAKS_AFTER, BREAKS_AFTER] for address in HOME} | {each: [UNAVAILABLE] for each in AWAY})
    error = outcome_of(world, Safety.REPEATABLE)
    assert error.outcome is Outcome.UNKNOWN


class Steps:
    """A request that a test answers by hand."""

    def __init__(
        self,
        requests: Requests,
        commands: Sequence[Command[Any]],
        level: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.generator = requests.exchange(commands, level, timeout)
        self.effect: Any = next(self.generator)

    def opened(self, wire: Wire, reused: bool = False) -> None:
        assert isinstance(self.effect, Open)
        self.effect = self.generator.send((wire, reused))

    def replied(self, *replies: Any) -> None:
        assert isinstance(self.effect, Talk)
        self.effect.replies.extend(replies)
        self.effect = self.generator.send(None)

    def lost(self) -> None:
        self.effect = self.generator.throw(Lost("the connection was closed", sent=True))

    def done(self) -> None:
        self.effect = self.generator.send(None)

    def wait(self) -> list[Any]:
        """Acknowledge the release; the results."""
        assert isinstance(self.effect, Release)
        try:
            self.generator.send(None)
        except StopIteration as done:
            answer: Answer = done.value
            return answer.results()
        raise AssertionError("the request goes on")


def test_a_level_is_told_only_when_it_differs_and_taken_back() -> None:
    world = World({})
    wire = Wire(HOME[0])
    wire.greeted = True
    read = command(Safety.READ)

    first = Steps(world.requests, [read], "ONE")
    first.opened(wire)
    assert first.effect.data == b"*1\r\n$14\r\nEW.CONSISTENCY\r\n*2\r\n$14\r\nEW.CONSISTENCY\r\n$3\r\nONE\r\n"
    first.replied(b"LOCAL_QUORUM", b"OK")
    assert first.effect.data == b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
    first.replied(b"v")
    assert first.wait() == [b"v"]

    again = Steps(world.requests, [read], "ONE")
    again.opened(wire, reused=True)
    assert again.effect.data == b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
    again.replied(b"v")
    assert again.wait() == [b"v"]

    without = Steps(world.requests, [read])
    without.opened(wire, reused=True)
    assert without.effect.data == b"*2\r\n$14\r\nEW.CONSISTENCY\r\n$12\r\nLOCAL_QUORUM\r\n"
    without.replied(b"OK")
    without.replied(b"v")
    assert without.wait() == [b"v"]


def test_a_server_without_levels_is_an_error_only_when_one_was_asked_for() -> None:
    world = World({})
    wire = Wire(HOME[0])
    wire.greeted = True
    steps = Steps(world.requests, [command(Safety.REPEATABLE)], "ALL")
    steps.opened(wire)
    unknown = ErrorReply("ERR unknown command 'EW.CONSISTENCY', with args beginning with: ")
    steps.replied(unknown, unknown)
    assert isinstance(steps.effect, Discard)
    with pytest.raises(ServerError, match="knows no consistency levels") as caught:
        steps.done()
    assert caught.value.outcome is Outcome.NOT_APPLIED


def test_a_server_is_told_of_short_deadlines_and_not_again_if_it_knows_none() -> None:
    world = World({})
    wire = Wire(HOME[0])
    wire.greeted = True
    read = command(Safety.READ)
    get = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"

    ample = Steps(world.requests, [read], timeout=TIMEOUT)
    ample.opened(wire)
    assert ample.effect.data == get
    ample.replied(b"v")
    assert ample.wait() == [b"v"]

    # Half of 2 s, for another node could be asked; nine tenths of it, for the reply has a way to go.
    short = Steps(world.requests, [read, read], timeout=2.0)
    short.opened(wire)
    assert short.effect.data == b"*2\r\n$11\r\nEW.DEADLINE\r\n$3\r\n900\r\n" + get + get
    short.replied(b"OK", b"v", b"w")
    assert short.wait() == [b"v", b"w"]

    old = Steps(world.requests, [read], timeout=2.0)
    old.opened(wire)
    old.replied(ErrorReply("ERR unknown command 'EW.DEADLINE', with args beginning with: "), b"v")
    assert old.wait() == [b"v"]
    again = Steps(world.requests, [read], timeout=2.0)
    again.opened(wire)
    assert again.effect.data == get


def test_what_came_before_a_loss_counts_with_a_deadline_too() -> None:
    world = World({})
    wire = Wire(HOME[0])
    wire.greeted = True
    steps = Steps(world.requests, [command(Safety.READ), command(Safety.REPEATABLE)], timeout=1.0)
    steps.opened(wire)
    steps.effect.replies.extend([b"OK", b"v"])
    steps.lost()
    assert isinstance(steps.effect, Discard)
    steps.done()
    other = Wire(steps.effect.address)
    other.greeted = True
    steps.opened(other)
    assert b"GET" not in steps.effect.data
    steps.replied(b"OK", b"OK")
    assert steps.wait() == [b"v", b"OK"]


def test_an_idle_connection_that_had_ended_says_nothing_of_the_node() -> None:
    world = World({})
    wire = Wire(HOME[0])
    wire.greeted = True
    steps = Steps(world.requests, [command(Safety.READ)])
    address = steps.effect.address
    steps.opened(wire, reused=True)
    steps.lost()
    assert steps.effect == Forget(address)
    steps.done()
    assert isinstance(steps.effect, Open)
    assert steps.effect.address == address
    assert world.router.suspects() == []


def test_a_pipeline_goes_on_where_it_was_lost() -> None:
    world = World({})
    steps = Steps(world.requests, [command(Safety.REPEATABLE), command(Safety.REPEATABLE), command(Safety.READ)])
    wire = Wire(steps.effect.address)
    wire.greeted = True
    steps.opened(wire)
    steps.effect.replies.append(b"OK")
    steps.lost()
    assert isinstance(steps.effect, Discard)
    steps.done()
    other = Wire(steps.effect.address)
    other.greeted = True
    steps.opened(other)
    assert steps.effect.data.count(b"SET") == 1
    steps.replied(b"OK", b"v")
    assert steps.wait() == [b"OK", b"OK", b"v"]


def test_wrong_credentials_are_told_at_once() -> None:
    world = World({})
    steps = Steps(world.requests, [command(Safety.READ)])
    steps.opened(Wire(steps.effect.address))
    steps.replied(ErrorReply("WRONGPASS invalid username-password pair or user is disabled."))
    with pytest.raises(AuthenticationError, match="WRONGPASS"):
        steps.done()


@given(st.lists(st.booleans(), max_size=40), st.integers())
def test_pauses_of_a_node_grow_to_a_bound(outcomes: list[bool], seed: int) -> None:
    router = Router({"": [HOME[0]]}, "", random.Random(seed))
    now, failures = 0.0, 0
    for good in outcomes:
        wait = router.wait(now)
        assert 0 <= wait <= BACKOFF_MAX_SECONDS
        assert (wait > 0) == (failures > 0)
        now += wait
        assert router.choose(now) == HOME[0]
        if good:
            router.succeeded(HOME[0])
            failures = 0
        else:
            router.failed(HOME[0], now)
            failures += 1
            assert router.choose(now) is None, "whoever has just failed is left alone"


def test_replies_become_the_exceptions_of_the_tree() -> None:
    error, _ = error_of("WRITETIMEOUT too slow (received 1, required 2)")
    assert isinstance(error, WriteTimeout)
    assert (error.received, error.required, error.outcome) == (1, 2, Outcome.UNKNOWN)
    other, _ = error_of("NEWCODE something")
    assert isinstance(other, ServerError)
    assert (other.code, other.outcome) == ("NEWCODE", Outcome.NOT_APPLIED)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("host", Address("host")),
        ("host:1", Address("host", 1)),
        ("[::1]:2", Address("::1", 2)),
        ("[fe80::1]", Address("fe80::1")),
    ],
)
def test_addresses_are_read(given: str, expected: Address) -> None:
    assert parse_address(given) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize("given", ["", ":1", "host:", "::1", "host:x", "host:70000", "[::1", "[::1]2", "a:1:2"])
def test_bad_addresses_are_refused(given: str) -> None:
    if given == "host:":
        assert parse_address(given) == Address("host")
        return
    with pytest.raises(ConfigError, match="address"):
        parse_address(given)


def test_urls_are_read_and_arguments_go_first() -> None:
    target = parse_target("everwrite://ada:s%40crt@h1,h2:7?timeout=2", None, None)
    assert target.regions == {"": (Address("h1"), Address("h2", 7))}
    assert (target.username, target.password) == ("ada", "s@crt")
    given: dict[str, Any] = dict.fromkeys(
        ["regions", "home", "timeout", "connect_timeout", "connections_max", "consistency", "username", "password"]
    )
    made = Settings.make("everwrite://h1?timeout=2&consistency=local_quorum", name=None, **given)
    assert (made.timeout, made.consistency) == (2.0, "LOCAL_QUORUM")
    made = Settings.make("everwrite://h1?timeout=2", name=None, **given | {"timeout": 3})
    assert made.timeout == 3.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"addresses": "http://h"},
        {"addresses": "everwrite://h/db"},
        {"addresses": "everwrite://h?speed=1"},
        {"addresses": "everwrite://h?timeout=soon"},
        {"addresses": ["h", "h"]},
        {"addresses": []},
        {"addresses": "h", "regions": {"eu": ["g"]}},
        {"regions": {"eu": ["g"], "us": ["h"]}},
        {"regions": {"eu": ["g"], "us": ["h"]}, "home": "asia"},
        {"regions": {"eu": "g"}, "home": "eu"},
        {"regions": {}},
        {"addresses": "h", "home": "eu"},
        {"addresses": "h", "timeout": 0},
        {"addresses": "h", "connections_max": 0},
        {"addresses": "h", "consistency": "some"},
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any]) -> None:
    given: dict[str, Any] = dict.fromkeys(
        [
            *("addresses", "regions", "home", "timeout", "connect_timeout", "connections_max"),
            *("consistency", "username", "password", "name"),
        ]
    )
    with pytest.raises(ConfigError):
        Settings.make(**given | arguments)


def test_levels_are_spelled_freely() -> None:
    assert level_of("local-quorum") == level_of("LOCAL_QUORUM") == "LOCAL_QUORUM"
