"""Sequences through the public API."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwrite.batch import decode_batch, encode_batch
from everwrite.database import Database
from everwrite.errors import InsufficientRightsError, ProtocolError, ReadOnlyError, WrongTypeError
from everwrite.positions import between
from tests.reference import positions as twin
from tests.stores import exchange, open_store


@given(st.integers(0, 2**32), st.integers(1, 60))
@settings(max_examples=300)
def test_it_is_a_list(seed: int, steps: int) -> None:
    random = Random(seed)
    model: list[bytes] = []
    with open_store(1, memtable_bytes=1 << 14) as db:
        items = db.sequence(b"k")
        for number in range(steps):
            value, index = b"%d" % number, random.randint(-4, 8)
            match random.randrange(9):
                case 0 | 1:
                    items.append(value)
                    model.append(value)
                case 2:
                    items.appendleft(value)
                    model.insert(0, value)
                case 3 | 4:
                    items.insert(index, value)
                    model.insert(index, value)
                case 5:
                    values = [value + b"." + bytes([65 + i]) for i in range(3)]
                    at = max(0, len(model) + index) if index < 0 else min(index, len(model))
                    items.insert_all(index, values)
                    model[at:at] = values
                case 6:
                    try:
                        wanted: bytes | None = model.pop(index)
                    except IndexError:
                        wanted = None
                    if wanted is None:
                        with pytest.raises(IndexError):
                            items.pop(index)
                    else:
                        assert items.pop(index) == wanted
                case 7 if -len(model) <= index < len(model):
                    items[index] = model[index] = value + b"!"
                case 8 if model:
                    part = slice(
                        random.choice((None, index)), random.choice((None, index + 2)), random.choice((1, 1, 2))
                    )
                    del items[part]
                    del model[part]
        assert list(items) == items[:] == model
        assert list(reversed(items)) == items[::-1] == model[::-1]
        for step in (1, 2, -1, -2, 3):
            bounds = slice(random.choice((None, 1, -3)), random.choice((None, 4, -1)), step)
            assert items[bounds] == model[bounds]
        assert [items[index] for index in range(-len(model), len(model))] == model * 2
        assert len(items) == len(model)


def test_an_item_keeps_its_position(pair: tuple[Database, Database]) -> None:
    one, other = pair
    items = one.sequence(b"k")
    a, b, c = items.extend([b"a", b"b", b"c"])
    items.insert(1, b"between")
    assert items.position(2) == b
    assert items.index_of(b) == 2
    assert items.get(b) == b"b"
    items.discard(b)
    assert items.get(b) is None
    assert items.index_of(b) == 2
    # A place that is empty now still lies where it lay.
    (x,) = items.insert_after(b, b"x")
    (y,) = items.insert_before(b, b"y")
    assert set(items) == {b"a", b"between", b"x", b"y", b"c"}
    assert items[0] == b"a" and items[-1] == b"c"  # noqa: PT018
    assert not items.set(b, b"gone")
    assert items.set(c, b"C")
    exchange(one, other)
    assert other.sequence(b"k")[-1] == b"C"
    assert [position for position, _ in other.sequence(b"k").items()] == sorted([a, x, y, c, items.position(1)])


def test_concurrent_runs_do_not_mix(pair: tuple[Database, Database]) -> None:
    one, other = pair
    one.sequence(b"k").extend([b"<", b">"])
    exchange(one, other)
    for number in range(10):
        one.sequence(b"k").insert(1 + number, b"a%d" % number)
        other.sequence(b"k").insert(1, b"b%d" % (9 - number))
    exchange(one, other)
    for db in pair:
        text = b" ".join(db.sequence(b"k"))
        assert text in (
            b"< a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 b0 b1 b2 b3 b4 b5 b6 b7 b8 b9 >",
            b"< b0 b1 b2 b3 b4 b5 b6 b7 b8 b9 a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 >",
        )


def test_a_write_that_a_remove_had_not_seen_survives(pair: tuple[Database, Database]) -> None:
    one, other = pair
    one.sequence(b"k").extend([b"a", b"b", b"c"])
    exchange(one, other)
    del one.sequence(b"k")[1]
    other.sequence(b"k")[1] = b"B"
    one.sequence(b"k")[0] = b"one"
    other.sequence(b"k")[0] = b"other"
    exchange(one, other)
    shown = [list(db.sequence(b"k")) for db in pair]
    assert shown[0] == shown[1]
    assert shown[0][1:] == [b"B", b"c"]
    assert shown[0][0] in (b"one", b"other")


def test_a_hundred_thousand_appended_items_have_short_positions(db: Database) -> None:
    items = db.sequence(b"k")
    for number in range(0, 100_000, 500):
        made = items.extend([b"%d" % each for each in range(number, number + 500)])
        assert max(map(len, made)) <= 30
    assert len(items) == 100_000
    assert items[99_999] == b"99999"
    start = db.statistics()["log_end"]
    items.append(b"x")
    assert db.statistics()["log_end"] - start < 140


def test_what_is_refused_changes_nothing(db: Database) -> None:
    items = db.sequence(b"k")
    items.append(b"a")
    for wrong in (
        lambda: items.insert_after(b"nonsense", b"x"),
        lambda: items.insert_before(b"", b"x"),
        lambda: items.set(b"\x80", b"x"),
        lambda: items.get(b"\x40\x80"),
        lambda: items.index_of(b"x"),
    ):
        with pytest.raises(ValueError, match="position"):
            wrong()
    for absent in (lambda: items[1], lambda: items[-2], lambda: items.position(5), lambda: items.pop(1)):
        with pytest.raises(IndexError):
            absent()
    with pytest.raises(IndexError):
        items[3] = b"x"
    with pytest.raises(TypeError):
        items.append("text")  # type: ignore[arg-type]
    db[b"s"] = b"text"
    with pytest.raises(WrongTypeError):
        db.sequence(b"s").append(b"x")
    with pytest.raises(WrongTypeError):
        list(db.sequence(b"s"))
    assert items.extend([]) == []
    assert list(items) == [b"a"]
    items.clear()
    assert (len(items), list(items), db.kind(b"k")) == (0, [], "none")


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_positions_are_those_of_the_twin(seed: int) -> None:
    random = Random(seed)
    names: list[bytes] = []
    for timestamp in range(1000, 1040):
        index = random.choice((0, len(names), random.randint(0, len(names))))
        left = names[index - 1] if index else None
        right = names[index] if index < len(names) else None
        origin, count = random.choice((1 << 16, 2 << 16, 3 << 16)), random.choice((1, 1, 3))
        made = between(left, right, origin, timestamp, count)
        assert made == twin.between(left, right, origin, timestamp, count)
        names[index:index] = made
        if names and random.random() < 0.2:
            names.pop(random.randrange(len(names)))


@pytest.mark.parametrize(
    ("write", "old", "new"),
    [
        (lambda db: db.sequence(b"k").append(b"v"), None, b"\x81"),
        (lambda db: db.sequence(b"k").append(b"v"), b"\x80", b"\x60"),
    ],
)
def test_items_of_no_position_are_refused(
    pair: tuple[Database, Database], write: Callable[[Database], bytes], old: bytes | None, new: bytes
) -> None:
    one, other = pair
    position = write(one)
    forged_name = position[:-1] + new if old is None else new + position[1:]
    (packed,) = one.changes(other.applied)
    batch = decode_batch(packed)
    body = batch.body.replace(position, forged_name)
    assert body != batch.body
    with pytest.raises(ProtocolError):
        other.apply(encode_batch(batch.kind, batch.spans, batch.count, body))
    assert dict(other.applied) == {}
    other.apply(packed)
    assert list(other.sequence(b"k")) == [b"v"]


def test_a_batch_takes_all_three_types_or_none(pair: tuple[Database, Database]) -> None:
    one, other = pair
    with one.batch() as batch:
        batch.sorted_set(b"board").update({b"a": 1, b"b": 2})
        batch.sorted_set(b"board").increment(b"a", 5)
        batch.bounded_counter(b"seats", minimum=2).increment(10)
        batch.bounded_counter(b"seats").decrement(4)
        batch.sequence(b"list").extend([b"x", b"z"])
        batch.sequence(b"list").insert(1, b"y")
        assert one.key_count() == 0
    shown = list(one.sorted_set(b"board").items()), one.bounded_counter(b"seats").value, list(one.sequence(b"list"))
    assert shown == ([(b"b", 2), (b"a", 6)], 8, [b"x", b"y", b"z"])
    before = dict(one.applied)
    batch = one.batch()
    batch.sorted_set(b"board").increment(b"b", 50)
    batch.sequence(b"list").popleft()
    batch.bounded_counter(b"seats").decrement(7)
    with pytest.raises(InsufficientRightsError), batch:
        pass
    assert dict(one.applied) == before
    assert list(one.sorted_set(b"board").items(reverse=True)) == [(b"a", 6), (b"b", 2)]
    assert list(one.sequence(b"list")) == [b"x", b"y", b"z"]
    assert one.bounded_counter(b"seats").rights == 6
    assert one.verify().ok
    exchange(one, other)
    with other.snapshot() as frozen:
        other.sorted_set(b"board").clear()
        other.sequence(b"list").clear()
        assert list(frozen.sorted_set(b"board")) == [b"b", b"a"]
        assert list(frozen.sequence(b"list")) == [b"x", b"y", b"z"]
        assert frozen.bounded_counter(b"seats").value == 8
        with pytest.raises(ReadOnlyError):
            frozen.sequence(b"list").append(b"x")
