"""Sorted sets through the public API: their order, their scores, what they cost."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite.database import Database
from everwrite.errors import OverflowError, TooLargeError, WrongTypeError
from tests.stores import exchange, open_store

SCORES = st.floats(allow_nan=False)


def test_members_come_by_score_then_by_bytes(db: Database) -> None:
    board = db.sorted_set(b"k")
    board.update({b"c": 1, b"b": 2, b"a": 2, b"d": -math.inf, b"e": math.inf, b"f": -0.0, b"g": 0.0, b"": -1.5})
    wanted = [
        (b"d", -math.inf),
        (b"", -1.5),
        (b"f", 0.0),
        (b"g", 0.0),
        (b"c", 1),
        (b"a", 2),
        (b"b", 2),
        (b"e", math.inf),
    ]
    assert list(board.items()) == wanted
    assert math.copysign(1, board[b"f"]) == 1
    assert list(reversed(board)) == [member for member, _ in reversed(wanted)]
    assert board.range(0, 2) == wanted[2:7]
    assert board.range(0, 2, reverse=True) == wanted[2:7][::-1]
    assert board.range(0, 2, reverse=True, limit=3) == wanted[2:7][::-1][:3]
    assert board.range(math.nextafter(0, 1), math.nextafter(2, 0)) == [(b"c", 1)]
    assert board.range(3, 2) == board.range(1.25, 1.75) == board.range(limit=0) == []
    assert board.first(2) == wanted[:2]
    assert board.last(2) == wanted[:-3:-1]


@given(st.dictionaries(st.binary(max_size=3), SCORES, max_size=30), SCORES, SCORES)
@settings(max_examples=300)
def test_ranges_are_those_of_a_sorted_list(scores: dict[bytes, float], low: float, high: float) -> None:
    with open_store(1, memtable_bytes=4096) as db:
        db.sorted_set(b"\x05").update({b"x": 1.0})
        board = db.sorted_set(b"k")
        board.update(scores)
        db.sorted_set(b"k\0").update({b"y": 2.0})
        wanted = sorted(((member, score + 0.0) for member, score in scores.items()), key=lambda pair: pair[::-1])
        assert list(board.items()) == wanted
        assert list(board.items(reverse=True)) == wanted[::-1]
        inside = [pair for pair in wanted if low <= pair[1] <= high]
        assert board.range(low, high) == inside
        assert board.range(low, high, reverse=True, limit=5) == inside[::-1][:5]


def test_pages_go_on_where_the_last_one_ended(db: Database) -> None:
    board = db.sorted_set(b"k")
    wanted = [(b"%05d" % number, float(number // 700)) for number in range(2500)]
    board.update(dict(wanted))
    assert list(board.items()) == wanted
    assert list(board.items(reverse=True)) == wanted[::-1]
    assert list(board.items(1, 2)) == [pair for pair in wanted if 1 <= pair[1] <= 2]


def test_conditions(db: Database) -> None:
    board = db.sorted_set(b"k")
    assert board.add(b"a", 5, condition="absent")
    assert not board.add(b"a", 6, condition="absent")
    assert not board.add(b"b", 6, condition="present")
    assert board.add(b"a", 6, condition="present")
    assert not board.add(b"a", 6, condition="greater")
    assert board.add(b"a", 7, condition="greater")
    assert not board.add(b"a", 8, condition="less")
    assert board.add(b"a", 3, condition="less")
    assert board.add(b"b", 9, condition="less")
    before = db.statistics()["local_changes"]
    assert not board.add(b"a", 4, condition="less")
    assert db.statistics()["local_changes"] == before
    assert list(board.items()) == [(b"a", 3), (b"b", 9)]


def test_pop_takes_from_both_ends(db: Database) -> None:
    board = db.sorted_set(b"k")
    board.update({b"a": 1, b"b": 2, b"c": 3})
    assert board.pop_last() == (b"c", 3)
    assert board.pop_first() == (b"a", 1)
    assert board.pop_first() == (b"b", 2)
    with pytest.raises(KeyError):
        board.pop_first()
    assert db.kind(b"k") == "none"


def test_what_is_refused_changes_nothing(db: Database) -> None:
    board = db.sorted_set(b"k")
    board.add(b"a", 1)
    for wrong in (
        lambda: board.add(b"a", math.nan),
        lambda: board.update({b"b": 2, b"c": math.nan}),
        lambda: board.increment(b"a", math.inf),
        lambda: board.increment(b"a", math.nan),
        lambda: board.range(math.nan),
        lambda: board.range(limit=-1),
    ):
        with pytest.raises(ValueError, match=r"NaN|not a number|negative"):
            wrong()
    with pytest.raises(TooLargeError):
        board.add(b"m" * 65537, 1)
    with pytest.raises(TypeError):
        board.add("text", 1)  # type: ignore[arg-type]
    db[b"s"] = b"text"
    for write in (lambda: db.sorted_set(b"s").add(b"a", 1), lambda: db.sorted_set(b"s").increment(b"a")):
        with pytest.raises(WrongTypeError):
            write()
    with pytest.raises(WrongTypeError):
        db.sorted_set(b"s").first()
    with pytest.raises(KeyError):
        board.remove(b"b")
    assert list(board.items()) == [(b"a", 1)]


def test_sums_stay_finite(pair: tuple[Database, Database]) -> None:
    one, other = pair
    huge = 1.7e308
    assert one.sorted_set(b"k").increment(b"a", huge) == huge
    with pytest.raises(OverflowError):
        one.sorted_set(b"k").increment(b"a", huge)
    other.sorted_set(b"k").increment(b"a", huge)
    exchange(one, other)
    for db in pair:
        assert db.sorted_set(b"k")[b"a"] == math.nextafter(math.inf, 0)
    one.sorted_set(b"k").add(b"b", math.inf)
    assert one.sorted_set(b"k").increment(b"b", -5) == math.inf


def test_an_increment_after_a_reset_doesnt_drown_in_the_old_total(pair: tuple[Database, Database]) -> None:
    one, other = pair
    board = one.sorted_set(b"k")
    board.increment(b"a", 1e300)
    exchange(one, other)
    other.sorted_set(b"k").add(b"a", 0)
    exchange(one, other)
    assert board.increment(b"a", 0.5) == 0.5
    exchange(one, other)
    assert other.sorted_set(b"k")[b"a"] == 0.5
    one.delete(b"k")
    assert board.increment(b"a", 0.25) == 0.25
    exchange(one, other)
    assert other.sorted_set(b"k")[b"a"] == 0.25


def test_concurrent_writes(pair: tuple[Database, Database]) -> None:
    one, other = pair
    one.sorted_set(b"k").update({b"a": 10, b"b": 20, b"c": 30})
    exchange(one, other)
    one.sorted_set(b"k").increment(b"a", 1)
    other.sorted_set(b"k").increment(b"a", 2)
    one.sorted_set(b"k").discard(b"b")
    other.sorted_set(b"k").increment(b"b", 5)
    one.sorted_set(b"k").add(b"c", 31)
    other.sorted_set(b"k").add(b"c", 32)
    exchange(one, other)
    for db in pair:
        # The increment that the remove hadn't seen is what is left of b.
        assert list(db.sorted_set(b"k").items()) == [(b"b", 5), (b"a", 13), (b"c", 32)]
        assert list(db.sorted_set(b"k").items(reverse=True)) == [(b"c", 32), (b"a", 13), (b"b", 5)]


def test_expired_members_dont_come_back(db: Database) -> None:
    db.set_time(1_700_000_000_000)
    board = db.sorted_set(b"k")
    board.update({b"a": 1, b"b": 2})
    board.increment(b"a", 4)
    everwrite.access.expire_at(db, b"k", 1_700_000_000_050)
    db.set_time(1_700_000_000_100)
    assert list(board.items()) == []
    assert len(board) == 0
    assert board.increment(b"a", 3) == 3
    assert list(board.items()) == [(b"a", 3)]


def test_a_delta_is_a_few_dozen_bytes_however_many_members(db: Database) -> None:
    board = db.sorted_set(b"k")
    board.update({b"%07d" % number: number for number in range(20_000)})
    start = db.statistics()["log_end"]
    board.increment(b"0000007", 0.5)
    board.add(b"0000008", 3)
    board.discard(b"0000009")
    assert db.statistics()["log_end"] - start < 3 * 160


def test_the_order_is_that_of_the_members_after_anything(db: Database) -> None:
    random = Random(5)
    model: dict[bytes, float] = {}
    with open_store(3, memtable_bytes=1 << 14) as store:
        board = store.sorted_set(b"k")
        for number in range(3000):
            member = b"%d" % random.randrange(200)
            match random.randrange(6):
                case 0 | 1:
                    model[member] = float(random.randrange(-50, 50))
                    board.add(member, model[member])
                case 2 | 3:
                    model[member] = model.get(member, 0.0) + random.choice((1, -1, 0.5))
                    board.increment(member, model[member] - (board.score(member) or 0.0))
                case 4:
                    assert board.discard(member) == (model.pop(member, None) is not None)
                case _ if model and number % 7 == 0:
                    least = min(model.items(), key=lambda pair: pair[::-1])
                    assert board.pop_first() == least
                    del model[least[0]]
            if number % 100 == 0:
                store.maintain()
                assert list(board.items()) == sorted(model.items(), key=lambda pair: pair[::-1])
        assert list(board.items(reverse=True)) == sorted(model.items(), key=lambda pair: pair[::-1], reverse=True)
