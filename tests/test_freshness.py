"""Single keys get ahead of the log: asked for by their contexts, answered with what is news, and joined."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import permutations
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import everwrite
from everwrite import ClockDriftError, ClosedError, Database, ProtocolError, TooLargeError
from everwrite.clock import covers
from everwrite.digest import rebuild
from everwrite.freshness import Conversation, answer, forget_parts, join_states
from everwrite.memory_files import MemoryFiles
from everwrite.parts import PART_BYTES
from tests.reference.model import join, normal
from tests.reference.workload import make_request
from tests.simulation.engine_store import EngineStore
from tests.support import ROOT

START_MS = 1_700_000_000_000
KEYS = (b"k", b"q", b"")
STORES = 3


def open_store(store_id: int, files: MemoryFiles | None = None, *, now_ms: int = START_MS) -> Database:
    return everwrite.open(
        "/data", "os", files=files or MemoryFiles(), background=False, store_id=store_id, now_ms=now_ms
    )


def take_changes(receiver: Database, sender: Database) -> None:
    for batch in sender.changes(receiver.applied):
        receiver.apply(batch)


def ask(asking: Database, answering: Database, keys: Iterable[bytes]) -> list[bytes]:
    """One question, its answer, and the join of it."""
    states = answering.answer(asking.question(keys))
    assert asking.join_states(states) == len(states)
    return states


# ---- what an answer brings ----


def check_ask(one: EngineStore, other: EngineStore, keys: Iterable[bytes]) -> None:
    """Of these keys the asking store holds the join of both afterwards, and of nothing else anything new."""
    wanted = {key: normal(join(one.key_model(key), other.key_model(key))) for key in keys}
    untouched = {key: normal(one.key_model(key)) for key in KEYS if key not in wanted}
    news = sum(not covers(one.context(key), other.context(key)) for key in keys)
    applied, theirs = one.applied, other.database.digest()
    states = ask(one.database, other.database, keys)
    assert len(states) == news
    assert {key: normal(one.key_model(key)) for key in keys} == wanted
    assert {key: normal(one.key_model(key)) for key in untouched} == untouched
    for key in keys:
        assert covers(one.context(key), other.context(key))
    assert (one.applied, other.database.digest()) == (applied, theirs)
    # Whoever knows all of it is told nothing, and what is joined again changes nothing, nor does the log grow.
    assert other.database.answer(one.question(keys)) == []
    end = one.statistics()["log_end"]
    assert one.join_states(states) == 0
    assert one.statistics()["log_end"] == end
    assert one.database.digest_leaves() == rebuild(one.database)


STEPS = st.lists(
    st.tuples(
        st.integers(0, STORES - 1),
        st.sampled_from(["write"] * 6 + ["changes"] + ["ask"] * 3 + ["wait", "restart"]),
        st.integers(0, 2**16),
    ),
    max_size=60,
)


def run(steps: Iterable[tuple[int, str, int]]) -> None:
    """Stores that write, ask and follow each other at random hold the same at the end."""
    files = [MemoryFiles() for _ in range(STORES)]
    stores = [EngineStore(open_store(number + 1, files[number])) for number in range(STORES)]
    now_ms = START_MS
    for index, what, detail in steps:
        one, random = stores[index], Random(detail)
        other = random.choice([store for store in stores if store is not one])
        match what:
            case "write":
                key = random.choice(KEYS)
                reading = one.reading(key)
                one.execute(make_request(random, key, now_ms, reading[0] if reading else None))
            case "changes":
                take_changes(one.database, other.database)
            case "ask":
                check_ask(one, other, random.choice((KEYS, KEYS[:1], KEYS[1:])))
            case "wait":
                now_ms += random.choice((1, 30, 300))
                for store in stores:
                    store.set_time(now_ms)
                one.database.reap_expired()
            case "restart":
                # What was joined is in the log.
                held = [normal(one.key_model(key)) for key in KEYS]
                one.database.close()
                stores[index] = EngineStore(open_store(index + 1, files[index], now_ms=now_ms))
                assert [normal(stores[index].key_model(key)) for key in KEYS] == held
    for one, other in permutations(stores, 2):
        take_changes(one.database, other.database)
    for key in KEYS:
        assert len({repr(normal(store.key_model(key))) for store in stores}) == 1
    for one, other in permutations(stores, 2):
        assert other.database.answer(one.question(KEYS)) == []


@given(STEPS)
@settings(max_examples=150)
def test_asking_joins_these_keys_and_nothing_else(steps: list[tuple[int, str, int]]) -> None:
    run(steps)


@pytest.mark.parametrize("seed", range(12))
def test_long_runs_with_questions_converge(seed: int) -> None:
    random = Random(seed)
    kinds = ["write"] * 8 + ["changes", "ask", "ask", "wait", "restart"]
    run([(random.randrange(STORES), random.choice(kinds), random.randrange(2**30)) for _ in range(300)])


def test_a_question_costs_a_context_and_the_answer_only_what_is_news() -> None:
    one, other = open_store(1), open_store(2)
    for number in range(100):
        one[b"key-%d" % number] = bytes(1000)
    take_changes(other, one)
    other[b"key-7"] = b"new"
    keys = [b"key-%d" % number for number in range(100)]
    question = one.question(keys)
    assert len(question) < 100 * 32
    states = other.answer(question)
    assert len(states) == 1
    assert one.join_states(states) == 1
    assert one[b"key-7"] == b"new"
    assert one.answer(other.question(keys)) == []


def test_a_delete_and_a_deadline_are_news_and_an_absent_key_is_none() -> None:
    one, other = open_store(1), open_store(2)
    one[b"deleted"] = one[b"expires"] = b"value"
    take_changes(other, one)
    del other[b"deleted"]
    other.put(b"expires", b"value", ttl=1.0)
    for store in (one, other):
        store.set_time(START_MS + 2000)
    assert len(ask(one, other, [b"deleted", b"expires", b"absent"])) == 2
    assert b"deleted" not in one
    assert b"expires" not in one
    # What only the asking store has is no news to it.
    one[b"mine"] = b"1"
    assert ask(one, other, [b"mine"]) == []
    assert ask(other, one, [b"mine"]) != []
    assert other[b"mine"] == b"1"


def test_what_was_collected_is_known_from_the_horizon() -> None:
    one, other = open_store(1), open_store(2)
    one[b"k"] = b"value"
    del one[b"k"]
    take_changes(other, one)
    for store in (one, other):
        store.report()
    for receiver, sender in ((one, other), (other, one), (one, other)):
        take_changes(receiver, sender)
    one.collect((1, 2))
    one.compact()
    assert one.horizon
    # No row is left of the key here, and yet it is known to have been there.
    assert one.why(b"k")["context"] == {}
    assert other.answer(one.question([b"k"])) == []
    # Whoever knows nothing of it must not show it again.
    fresh = open_store(3)
    assert len(ask(fresh, one, [b"k"])) == 1
    assert b"k" not in fresh
    assert other.answer(fresh.question([b"k"])) == []
    assert one.answer(fresh.question([b"k"])) == []


def test_increments_build_on_what_was_asked_for() -> None:
    stores = [open_store(number) for number in (1, 2, 3)]
    for round_ in range(30):
        one = stores[round_ % 3]
        for other in stores:
            if other is not one:
                ask(one, other, [b"count"])
        assert one.counter(b"count").increment() == round_ + 1


def test_a_key_that_is_asked_about_twice_is_answered_once() -> None:
    one, other = open_store(1), open_store(2)
    other[b"hot"] = b"value"
    assert len(other.answer(one.question([b"hot"] * 50))) == 1


def test_what_does_not_fit_in_an_answer_is_left_for_the_next() -> None:
    one, other = open_store(1), open_store(2)
    keys = [b"key-%d" % number for number in range(10)]
    for key in keys:
        other[key] = bytes(1000)
    rest = one.question(keys)
    pieces = []
    while rest:
        states, rest = answer(other, rest, 2500)
        pieces.append(len(states))
        one.join_states(states)
    assert pieces == [3, 3, 3, 1]
    assert all(one[key] == bytes(1000) for key in keys)


def test_a_question_for_many_keys_is_answered_in_pieces_that_don_t_take_long() -> None:
    one, other = open_store(1), open_store(2)
    other[b"key-4999"] = other[b"key-5000"] = b"value"
    rest = one.question(b"key-%d" % number for number in range(10_000))
    pieces = []
    while rest:
        states, rest = answer(other, rest, 1 << 20)
        pieces.append(one.join_states(states))
    assert pieces == [0, 2, 0]
    assert one[b"key-4999"] == one[b"key-5000"] == b"value"


# ---- parts ----


def fill(db: Database, count: int = 3000) -> None:
    """A set that makes about three parts."""
    db.set(b"large").add(*(b"x" * 1000 + b"%d" % number for number in range(count)))


def test_a_large_state_comes_in_parts_over_several_pieces() -> None:
    one, other = open_store(1), open_store(2)
    fill(other)
    other[b"small"] = b"value"
    states = other.answer(one.question([b"large", b"small"]))
    assert len(states) == 4
    assert max(map(len, states)) < 1.1 * PART_BYTES
    conversation = Conversation()
    news = []
    for state in states:
        news.append(join_states(one, [state], conversation))
        assert conversation.whole == (len(news) >= 3)
    assert news == [0, 0, 1, 1]
    assert len(one.set(b"large")) == 3000


def test_parts_of_two_answers_with_the_same_state_do_not_meet() -> None:
    one, other, third = open_store(1), open_store(2), open_store(3)
    fill(other)
    take_changes(third, other)
    question = one.question([b"large"])
    states, same = other.answer(question), third.answer(question)
    assert states == same
    first, second = Conversation(), Conversation()
    for state in states[:2]:
        join_states(one, [state], first)
        join_states(one, [state], second)
    # The second answer is not whole, although all parts have come with both together.
    assert join_states(one, [states[2]], first) == 1
    assert first.whole
    assert not second.whole
    assert join_states(one, [states[2]], second) == 0
    assert second.whole


def test_an_answer_that_breaks_off_leaves_nothing_behind() -> None:
    one, other = open_store(1), open_store(2)
    fill(other)
    states = other.answer(one.question([b"large"]))
    with pytest.raises(ProtocolError, match="in the middle"):
        one.join_states(states[:2])
    conversation = Conversation()
    join_states(one, states[:2], conversation)
    forget_parts(one, conversation)
    # The parts before it are gone: the last one makes no whole.
    assert join_states(one, states[2:], conversation) == 0
    assert not conversation.whole
    assert b"large" not in one
    assert one.join_states(states) == 1


# ---- what is refused ----


@given(st.data())
@settings(max_examples=200)
def test_a_malformed_question_is_refused_or_answered_but_changes_nothing(data: st.DataObject) -> None:
    store = open_store(1)
    store[b"k"] = b"value"
    whole = bytearray(store.question([b"k", b"q"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    match data.draw(st.sampled_from(["cut", "flip", "insert"])):
        case "cut":
            del whole[at:]
        case "flip":
            whole[at] ^= 1 << data.draw(st.integers(0, 7))
        case _:
            whole[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    digest, end = store.digest(), store.stats()["log_end"]
    try:
        assert all(isinstance(state, bytes) for state in store.answer(bytes(whole)))
    except ProtocolError as error:
        assert "malformed question" in str(error)
    assert (store.digest(), store.stats()["log_end"]) == (digest, end)


PAIR = (1).to_bytes(8, "little") + (5).to_bytes(8, "little")


@pytest.mark.parametrize(
    "question",
    [
        b"\x02k",  # the key ends early
        b"\x01k",  # no context
        b"\x01k\x02" + PAIR,  # a pair is missing
        b"\x01k\x02" + PAIR + PAIR,  # an origin twice
        b"\x01k\x01" + PAIR[:8] + bytes(8),  # no timestamp
        b"\x01k\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # more pairs than memory
        b"\x81\x80\x04" + bytes(65537) + b"\x00",  # a key over 64 KiB
        b"\x80" * 10 + b"\x00",
    ],
)
def test_questions_that_no_store_asks_are_refused(question: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed question"):
        open_store(1).answer(question)


@given(st.data())
@settings(max_examples=200)
def test_malformed_states_are_refused_whole(data: st.DataObject) -> None:
    one, other = open_store(1), open_store(2)
    other[b"k"] = b"value"
    other.set(b"q").add(b"a", b"b")
    good, bad = other.answer(one.question([b"q", b"k"]))
    spoilt = bytearray(bad)
    del spoilt[data.draw(st.integers(0, len(spoilt) - 1)) :]
    with pytest.raises(ProtocolError, match="malformed"):
        one.join_states([good, bytes(spoilt)])
    assert b"q" not in one


def test_states_from_a_clock_that_is_ahead_or_with_own_updates_are_refused() -> None:
    one, other = open_store(1), open_store(2, now_ms=START_MS + 10_000)
    other[b"k"] = b"value"
    with pytest.raises(ClockDriftError, match="ahead of this node's clock"):
        one.join_states(other.answer(one.question([b"k"])))
    assert b"k" not in one
    twin = open_store(1)
    twin[b"k"] = b"value"
    with pytest.raises(ProtocolError, match="never made"):
        one.join_states(twin.answer(one.question([b"k"])))


def test_keys_that_cannot_be_are_refused_and_a_closed_store_says_so() -> None:
    store = open_store(1)
    with pytest.raises(TooLargeError, match="65537 bytes"):
        store.question([bytes(65537)])
    with pytest.raises(TypeError, match="encode"):
        store.question(["text"])  # type: ignore[list-item]
    assert store.question([]) == b""
    assert store.answer(b"") == []
    assert store.join_states([]) == 0
    question = store.question([b"k"])
    store.close()
    with pytest.raises(ClosedError):
        store.question([b"k"])
    with pytest.raises(ClosedError):
        store.answer(question)


def test_the_question_on_the_page_is_the_one_that_is_asked() -> None:
    page = (ROOT / "docs/protocols/replication.md").read_text()
    shown = re.search(r"^question example: `([0-9a-f ]+)`$", page, re.MULTILINE)
    assert shown is not None
    store = open_store(0xA1B2C3D4)
    store[b"k"] = b"value"
    assert store.question([b"k", b"no"]).hex(" ") == shown[1]


@example(b"")
@given(st.binary(max_size=200))
def test_any_bytes_are_a_question_or_refused(question: bytes) -> None:
    store = open_store(1)
    try:
        assert store.answer(question) == []
    except ProtocolError as error:
        assert "nothing was answered" in str(error)
