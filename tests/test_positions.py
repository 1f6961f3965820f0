"""Positions of sequences: their order, how short they stay, and that runs of several stores never mix."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwrite.positions import between, is_position

MAX_NAME = 65536


class Writer:
    """A store as far as positions go: its origin, its clock, and the list that it sees."""

    def __init__(self, origin: int, names: list[bytes], clock: list[int]) -> None:
        self.origin = origin
        self.names = names
        self.clock = clock  # shared by all writers: a hybrid clock's timestamps, here never equal

    def insert(self, index: int, count: int = 1) -> list[bytes]:
        left = self.names[index - 1] if index > 0 else None
        right = self.names[index] if index < len(self.names) else None
        self.clock[0] += 1
        made = between(left, right, self.origin, self.clock[0], count)
        chain = [name for name in (left, *made, right) if name is not None]
        assert all(one < other for one, other in pairwise(chain)), "out of order"
        assert all(is_position(name) for name in made)
        self.names[index:index] = made
        return made

    def remove(self, index: int) -> None:
        del self.names[index]


def writers(count: int, names: list[bytes], clock: list[int]) -> list[Writer]:
    """Writers that have seen the same list, and from now on only what each does itself."""
    return [Writer((origin << 16) | 1, list(names), clock) for origin in range(1, count + 1)]


def scribble(random: Random, clock: list[int], steps: int) -> list[bytes]:
    """A list that several stores have written and cut about in, each seeing all that the others did."""
    names: list[bytes] = []
    authors = [Writer((origin << 16) | 1, names, clock) for origin in range(1, 5)]
    for _ in range(steps):
        author = random.choice(authors)
        what = random.random()
        if what < 0.2 and names:
            author.remove(random.randrange(len(names)))
        elif what < 0.4:
            author.insert(len(names), random.choice((1, 1, 3)))
        elif what < 0.5:
            author.insert(0, random.choice((1, 1, 3)))
        else:
            author.insert(random.randint(0, len(names)), random.choice((1, 1, 1, 4)))
    assert names == sorted(set(names))
    return names


def type_run(writer: Writer, start: int, length: int, step: Callable[[], str]) -> list[bytes]:
    """Type a run into the gap before index `start`; `step` says at which end of the run each item goes."""
    first, last = start, start
    for number in range(length):
        if number and step() == "back":
            writer.insert(first)
        else:
            writer.insert(last)
        last += 1
    return writer.names[first:last]


@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(2, 4), st.integers(1, 12))
@settings(max_examples=2000)
def test_runs_typed_at_once_at_one_place_do_not_mix(seed: int, steps: int, stores: int, length: int) -> None:
    random = Random(seed)
    clock = [1000]
    names = scribble(random, clock, steps)
    start = random.randint(0, len(names))
    crowd = writers(stores, names, clock)
    manners = {
        "forwards": lambda: "on",
        "backwards": lambda: "back",
        "both": lambda: random.choice(("on", "back")),
    }
    if random.random() < 0.5:
        runs = [type_run(writer, start, length, manners[random.choice(list(manners))]) for writer in crowd]
    else:
        # Their clocks run at the same time: timestamps of the runs mix.
        bounds = [[start, start] for _ in crowd]
        manner = manners[random.choice(list(manners))]
        for number in range(length):
            for writer, bound in zip(crowd, bounds, strict=True):
                writer.insert(bound[0] if number and manner() == "back" else bound[1])
                bound[1] += 1
        runs = [writer.names[low:high] for writer, (low, high) in zip(crowd, bounds, strict=True)]
    merged = sorted(set().union(*(writer.names for writer in crowd)))
    assert len(merged) == len(names) + stores * length
    for run in runs:
        at = merged.index(run[0])
        assert merged[at : at + length] == run, "a run of another store lies inside"


@given(st.integers(0, 2**32), st.integers(0, 30))
@settings(max_examples=500)
def test_runs_stay_whole_when_others_insert_around_them_and_items_are_removed(seed: int, steps: int) -> None:
    """Each writer types, erases its last item, types on; at the end the rest of its run is still in one piece."""
    random = Random(seed)
    clock = [1000]
    names = scribble(random, clock, steps)
    start = random.randint(0, len(names))
    crowd = writers(3, names, clock)
    ends = [start] * 3
    for _ in range(25):
        number = random.randrange(3)
        if ends[number] > start and random.random() < 0.3:
            ends[number] -= 1
            crowd[number].remove(ends[number])
        else:
            crowd[number].insert(ends[number])
            ends[number] += 1
    merged = sorted(set().union(*(writer.names for writer in crowd)))
    for writer, end in zip(crowd, ends, strict=True):
        run = writer.names[start:end]
        if run:
            at = merged.index(run[0])
            assert merged[at : at + len(run)] == run


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_an_item_lies_between_its_neighbours_whatever_comes_at_once(seed: int) -> None:
    """Writers that see different parts of a list: each insert lands where its writer put it, in the union too."""
    random = Random(seed)
    clock = [1000]
    names = scribble(random, clock, 20)
    crowd = writers(3, names, clock)
    for _ in range(40):
        writer = random.choice(crowd)
        if random.random() < 0.3:
            for name in random.choice(crowd).names:
                at = bisect_left(writer.names, name)
                if at == len(writer.names) or writer.names[at] != name:
                    insort(writer.names, name)
        elif writer.names and random.random() < 0.2:
            writer.remove(random.randrange(len(writer.names)))
        else:
            writer.insert(random.randint(0, len(writer.names)), random.choice((1, 2)))


@pytest.mark.parametrize("stores", [1, 3])
@pytest.mark.parametrize("at_end", [True, False])
def test_positions_of_appended_and_prepended_items_stay_short(stores: int, at_end: bool) -> None:
    clock = [1_700_000_000_000 << 16]
    random = Random(7)
    crowd = [Writer((origin << 16) | 1, [], clock) for origin in range(1, stores + 1)]
    edge: bytes | None = None
    longest = 0
    for _ in range(100_000):
        writer = random.choice(crowd)
        clock[0] += random.choice((1, 1 << 16, 1 << 30))
        pair = (edge, None) if at_end else (None, edge)
        (name,) = between(*pair, writer.origin, clock[0])
        assert edge is None or (edge < name) is at_end
        edge, longest = name, max(longest, len(name))
    # One segment; two for a store that puts items before its own first one.
    assert longest <= (28 if at_end else 46)


def test_many_items_of_one_update_share_a_timestamp() -> None:
    names = between(None, None, 1 << 16, 5, 70_000)
    assert names == sorted(set(names))
    assert max(map(len, names)) <= 23
    inside = between(names[7], names[8], 2 << 16, 6, 300)
    assert names[7] < inside[0]
    assert inside[-1] < names[8]
    assert inside == sorted(set(inside))


def test_random_places_make_positions_longer_slowly() -> None:
    random = Random(3)
    crowd = [Writer((origin << 16) | 1, [], [1000]) for origin in (1, 2)]
    crowd[1].names, crowd[1].clock = crowd[0].names, crowd[0].clock
    for _ in range(5000):
        random.choice(crowd).insert(random.randint(0, len(crowd[0].names)))
    sizes = sorted(map(len, crowd[0].names))
    assert sizes[len(sizes) // 2] < 400
    assert sizes[-1] < 1000


def test_alternating_at_one_place_is_the_worst_case_and_goes_on_for_long() -> None:
    writer = Writer(1 << 16, [], [1000])
    writer.insert(0, 2)
    for number in range(2000):
        # Always between the newest item and the one before: now on its left, now on its right.
        at = 1 + number // 2 + number % 2
        writer.insert(at)
    assert max(map(len, writer.names)) < MAX_NAME


# ---- the bytes, from their description alone ----


def number(value: int) -> bytes:
    digits = value.to_bytes(8, "big").lstrip(b"\0")
    return bytes([len(digits)]) + digits


def flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


def big(value: int) -> bytes:
    return value.to_bytes(8, "big")


def on_right(opened: int, origin: int, since: int = 0, index: int = 0) -> bytes:
    return b"\x80" + big(opened) + big(origin) + number(since) + number(index)


def on_left(opened: int, origin: int, since: int = 0, index: int = 0) -> bytes:
    return b"\x40" + flipped(big(opened)) + big(origin) + flipped(number(since) + number(index))


def test_the_bytes_are_those_of_the_description() -> None:
    a, b = 1 << 16, 2 << 16
    (first,) = between(None, None, a, 1000)
    assert first == on_right(1000, a) + b"\x80"
    (second,) = between(first, None, a, 1300)
    assert second == on_right(1000, a, since=300) + b"\x80"
    (other,) = between(second, None, b, 1400)
    assert other == on_right(1400, b) + b"\x80"
    (front,) = between(None, first, b, 1500)
    assert front == on_left(1500, b) + b"\x80"
    (more,) = between(None, front, b, 1600)
    assert more == on_left(1500, b, since=100) + b"\x80"
    two = between(first, second, b, 1700, 2)
    assert two == [on_right(1000, a, 300) + on_left(1700, b, 0, index) + b"\x80" for index in (1, 0)] or two == [
        on_right(1000, a) + on_right(1700, b, 0, index) + b"\x80" for index in (0, 1)
    ]


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"\x80",
        b"x",
        on_right(5, 1),
        on_right(5, 1) + b"\x81",
        on_right(5, 1) + b"\x80\x80",
        b"\x60" + on_right(5, 1)[1:] + b"\x80",
        on_right(5, 1)[:-2] + b"\x01\x00\x00\x80",
        on_right(5, 1)[:-2] + b"\x09" + bytes(9) + b"\x00\x80",
        on_right(2**64 - 1, 1, since=1) + b"\x80",
    ],
)
def test_other_bytes_are_no_positions(name: bytes) -> None:
    assert not is_position(name)
    with pytest.raises(ValueError, match="is not a position"):
        between(name, None, 1 << 16, 9)
    with pytest.raises(ValueError, match="is not a position"):
        between(None, name, 1 << 16, 9)


def test_neighbours_out_of_order_are_refused() -> None:
    first, second = between(None, None, 1 << 16, 9, 2)
    with pytest.raises(ValueError, match="doesn't lie before"):
        between(second, first, 1 << 16, 10)
    with pytest.raises(ValueError, match="doesn't lie before"):
        between(first, first, 1 << 16, 10)


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_timestamps_from_the_future_in_foreign_names_do_no_harm(seed: int) -> None:
    """A neighbour's name may carry any timestamp: an item still lands between the two."""
    random = Random(seed)
    names = scribble(random, [2**63], 15)
    writer = Writer((9 << 16) | 1, names, [1000])
    for _ in range(20):
        writer.insert(random.randint(0, len(names)))
