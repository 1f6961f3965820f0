"""Multi-value registers, flags, max and min registers, HyperLogLogs: through the public API."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import everwrite
from everwrite import access, register_access
from everwrite.batch import CHANGES, STATES, encode_batch
from everwrite.database import Database
from everwrite.kinds import KIND_NAMES
from tests.reference.model_store import USER
from tests.reference.sketch import estimate, groups_of
from tests.reference.state_format import read_full_state
from tests.reference.vocabulary import Kind
from tests.stores import exchange, open_store

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


def changes_of(db: Database, write: Callable[[], object]) -> int:
    """How many updates a write made."""
    before = db.statistics()["local_changes"]
    write()
    return db.statistics()["local_changes"] - before


# What writes a key of each type.
WRITERS: dict[str, Callable[[Database, bytes], Any]] = {
    "multi": lambda db, key: db.multi(key).set(b"v"),
    "flag": lambda db, key: db.flag(key).enable(),
    "max": lambda db, key: db.max(key).update(1),
    "min": lambda db, key: db.min(key).update(1),
    "hyperloglog": lambda db, key: db.hyperloglog(key).add(b"item"),
    "sorted set": lambda db, key: db.sorted_set(key).add(b"member", 1.5),
    "bounded counter": lambda db, key: db.bounded_counter(key).increment(),
    "sequence": lambda db, key: db.sequence(key).append(b"item"),
    "set": lambda db, key: db.set(key).add(b"element"),
    "map": lambda db, key: db.map(key).increment(b"field"),
    "string": lambda db, key: db.counter(key).increment(),
}


def test_a_multi_value_register_keeps_concurrent_values_until_a_write_has_seen_them(
    pair: tuple[Database, Database],
) -> None:
    one, other = pair
    one.multi(b"k").set(b"first")
    exchange(one, other)
    one.multi(b"k").set(b"a")
    other.multi(b"k").set(b"b")
    other.multi(b"k").set(b"c")
    exchange(one, other)
    assert one.multi(b"k").values == other.multi(b"k").values
    assert sorted(one.multi(b"k").values) == [b"a", b"c"]
    assert sorted(one.why(b"k")["value"]) == [b"a", b"c"]
    one.multi(b"k").set(b"")
    exchange(one, other)
    assert other.multi(b"k").values == (b"",)
    one.multi(b"k").clear()
    other.multi(b"k").set(b"later")
    exchange(one, other)
    assert one.multi(b"k").values == (b"later",)


def test_enabling_a_flag_wins_over_a_disabling_that_had_not_seen_it(pair: tuple[Database, Database]) -> None:
    one, other = pair
    one.flag(b"k").enable()
    exchange(one, other)
    one.flag(b"k").disable()
    other.flag(b"k").enable()
    exchange(one, other)
    assert one.flag(b"k").enabled
    assert other.flag(b"k")
    assert one.why(b"k")["value"] is True
    other.flag(b"k").disable()
    exchange(one, other)
    assert not one.flag(b"k")
    assert one.kind(b"k") == "none"
    assert changes_of(one, one.flag(b"k").disable) == 0


@pytest.mark.parametrize("of", ["max", "min"])
def test_an_extreme_register_shows_the_most_extreme_of_all_writes(pair: tuple[Database, Database], of: str) -> None:
    one, other = (getattr(db, of)(b"k") for db in pair)
    sign = 1 if of == "max" else -1
    assert one.value is None
    assert one.update(sign * 5) == sign * 5
    assert changes_of(pair[0], lambda: one.update(sign * 5)) == 0
    assert changes_of(pair[0], lambda: one.update(sign * 4)) == 0
    assert other.update(sign * 3) == sign * 3
    exchange(*pair)
    assert one.value == other.value == sign * 5
    assert other.update(sign * 4) == sign * 5
    other.clear()
    one.update(sign * 6)
    exchange(*pair)
    assert one.value == other.value == sign * 6, "the clear has seen only what came before"
    assert one.update(INT64_MAX if of == "max" else INT64_MIN) in (INT64_MIN, INT64_MAX)
    for value in (INT64_MAX + 1, INT64_MIN - 1):
        with pytest.raises(everwrite.OverflowError, match="64 bits"):
            one.update(value)


@pytest.mark.parametrize("written", WRITERS)
def test_a_key_of_one_type_refuses_the_operations_of_others(db: Database, written: str) -> None:
    WRITERS[written](db, b"k")
    assert db.kind(b"k") == written
    assert db.why(b"k")["type"] == written
    for kind, write in WRITERS.items():
        if kind != written:
            issued = db.last_timestamp
            with pytest.raises(everwrite.WrongTypeError):
                write(db, b"k")
            assert db.last_timestamp == issued
    readers: dict[str, Callable[[], object]] = {
        "multi": lambda: db.multi(b"k").values,
        "flag": lambda: db.flag(b"k").enabled,
        "max": lambda: db.max(b"k").value,
        "min": lambda: db.min(b"k").value,
        "hyperloglog": lambda: db.hyperloglog(b"k").count(),
    }
    for kind, read in readers.items():
        if kind != written:
            with pytest.raises(everwrite.WrongTypeError):
                read()
    db[b"k"] = b"text"
    assert db.kind(b"k") == "string"


@pytest.mark.parametrize(("first", "second"), list(permutations(WRITERS, 2)))
def test_of_two_types_written_concurrently_the_newer_shows(
    pair: tuple[Database, Database], first: str, second: str
) -> None:
    one, other = pair
    WRITERS[first](one, b"k")
    other.set_time(other.now_ms() + 100)
    WRITERS[second](other, b"k")
    exchange(one, other)
    assert one.kind(b"k") == other.kind(b"k") == second
    assert "type clash" in one.why(b"k")["rule"]
    # The next write has seen both, and removes the hidden one.
    one.set_time(one.now_ms() + 200)
    WRITERS[second](one, b"k")
    if second in ("max", "min", "hyperloglog"):
        return  # had nothing to write
    exchange(one, other)
    for db in pair:
        assert "type clash" not in db.why(b"k")["rule"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_deadline_ends_every_type(db: Database, kind: str) -> None:
    db.set_time(db.now_ms())
    WRITERS[kind](db, b"k")
    access.expire_at(db, b"k", db.now_ms() + 1000)
    db.set_time(db.now_ms() + 1001)
    assert db.kind(b"k") == "none"
    WRITERS[kind](db, b"k")
    assert db.kind(b"k") == kind
    assert access.deadline(db, b"k") is None


def test_writes_survive_a_restart(tmp_path: Path) -> None:
    with everwrite.open(tmp_path, "os") as db:
        for kind, write in WRITERS.items():
            write(db, kind.encode())
    with everwrite.open(tmp_path, "os") as db:
        assert {kind: db.kind(kind.encode()) for kind in WRITERS} == {kind: kind for kind in WRITERS}
        assert db.multi(b"multi").values == (b"v",)
        assert db.hyperloglog(b"hyperloglog").count() == 1


def test_a_hyperloglog_is_what_its_description_says(db: Database) -> None:
    sketch = db.hyperloglog(b"k")
    items = [b"item %d" % (i * i) for i in range(3000)] + [b"", b"x" * 100]
    for start in range(0, len(items), 100):
        sketch.add(*items[start : start + 100])
    wanted = groups_of(items)
    _, state = read_full_state(db.key_state(USER + b"k"))
    held = {name: list(element.dots.values()) for (kind, name), element in state.entries.items()}
    assert held == {name: [packed] for name, packed in wanted.items()}
    assert {kind for kind, _ in state.entries} == {Kind.HYPERLOGLOG}
    assert sketch.count() == estimate(wanted)
    assert changes_of(db, lambda: sketch.add(*items[:500])) == 0


def test_the_error_of_a_hyperloglog_is_what_its_registers_allow(db: Database) -> None:
    # 1.04 / sqrt(2^14) = 0.81 %, over every size: from sizes where registers are mostly empty to full ones.
    sizes = (100, 1_000, 10_000, 40_000, 100_000)
    errors: dict[int, list[float]] = {size: [] for size in sizes}
    for run in range(30):
        sketch = db.hyperloglog(b"run %d" % run)
        items = [b"%d of run %d" % (i, run) for i in range(sizes[-1])]
        done = 0
        for size in sizes:
            sketch.add(*items[done:size])
            done = size
            errors[size].append(sketch.count() / size - 1)
    for size, found in errors.items():
        standard_error = math.sqrt(sum(error**2 for error in found) / len(found))
        assert standard_error < 1.3 * 1.04 / 128, f"{size}: {standard_error:.4f}"
        assert abs(sum(found) / len(found)) < 3 * 1.04 / 128 / math.sqrt(len(found)), f"{size} is biased"
        assert max(map(abs, found)) < 4 * 1.04 / 128


def test_hyperloglogs_unite(pair: tuple[Database, Database]) -> None:
    one, other = pair
    a, b = one.hyperloglog(b"a"), one.hyperloglog(b"b")
    a.add(*(b"%d" % i for i in range(600)))
    b.add(*(b"%d" % i for i in range(300, 900)))
    both = groups_of(b"%d" % i for i in range(900))
    assert a.count(b) == b.count(a) == one.hyperloglog(b"none").count(a, b) == estimate(both)
    assert a.merge(b)
    assert a.count() == estimate(both)
    assert not a.merge(b, one.hyperloglog(b"none"))
    other.hyperloglog(b"a").add(*(b"%d" % i for i in range(800, 1500)))
    exchange(one, other)
    assert a.count() == other.hyperloglog(b"a").count() == estimate(groups_of(b"%d" % i for i in range(1500)))
    with pytest.raises(ValueError, match="another database"):
        a.merge(other.hyperloglog(b"a"))
    one[b"text"] = b"t"
    with pytest.raises(everwrite.WrongTypeError):
        a.count(one.hyperloglog(b"text"))
    assert a.count() == other.hyperloglog(b"a").count(), "what a refused count collected is forgotten"


def delta_bytes(db: Database, write: Callable[[], object]) -> int:
    before = db.statistics()["log_end"]
    write()
    return db.statistics()["log_end"] - before


def test_a_write_of_any_size_of_key_is_a_few_dozen_bytes_of_log(db: Database) -> None:
    db.hyperloglog(b"k").add(*(b"%d" % i for i in range(50_000)))
    fresh = next(item for item in (b"n%d" % i for i in range(10**6)) if len(item) and grows(db, item))
    # One element of 48 bytes replaces another: two dots, and the key.
    assert delta_bytes(db, lambda: db.hyperloglog(b"k").add(fresh)) < 160
    for kind in ("max", "min"):
        register = getattr(db, kind)(kind.encode())
        register.update(0)
        assert delta_bytes(db, lambda register=register, kind=kind: register.update(9 if kind == "max" else -9)) < 100
    db.flag(b"f").enable()
    assert delta_bytes(db, db.flag(b"f").disable) < 90


def grows(db: Database, item: bytes) -> bool:
    """Whether adding it changes anything, tried on a copy."""
    copied = db.hyperloglog(b"copy")
    if not copied.count():
        copied.merge(db.hyperloglog(b"k"))
    return register_access.sketch_add(db, b"copy", [item])


def test_names_and_values_are_bytes(db: Database) -> None:
    for write in (lambda: db.multi(b"k").set("v"), lambda: db.hyperloglog(b"k").add("v"), lambda: db.flag("k")):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="bytes"):
            write()
    assert db.kind(b"k") == "none"


ORIGIN = 9 << 16 | 1


def change(db: Database, parts: bytes, flags: int = 0) -> bytes:
    """A batch with one change of another store, made of these parts."""
    timestamp = db.now_ms() << 16
    dot = b"" if flags else struct.pack("<QQ", ORIGIN, timestamp)
    body = bytes([flags]) + dot.rjust(16, b"\0") + bytes(8) + b"\2" + USER + b"k" + parts
    if flags:
        return encode_batch(STATES, [], 1, varint(len(body)) + body, resync=1, index=0)
    group = varint(len(body)) + body
    return encode_batch(CHANGES, [(ORIGIN, 0, timestamp)], 1, varint(len(group)) + group)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def element_part(kind: int, value: bytes) -> bytes:
    return bytes([5, kind, 0, 1]) + varint(len(value)) + value + b"\0\0"


def state_parts(listed: int, kind: int, value: bytes) -> bytes:
    """A whole state whose head lists one kind and which has an element of another."""
    dot = struct.pack("<QQ", ORIGIN, 5)
    rows = b"\1" + struct.pack("<QBQ", ORIGIN, 0, 5)
    head = bytes([16 | 8, 1, listed]) + dot + b"\1" + bytes(16) + rows
    element = b"\1" + dot + varint(len(value)) + value + b"\0"
    return b"\7" + varint(len(head)) + head + bytes([8, kind, 0]) + varint(len(element)) + element


WELL_FORMED = {4: b"v", 5: b"", 6: b"\1" + bytes(7), 7: b"\1" + bytes(7), 8: bytes(48)}


@pytest.mark.parametrize("kind", WELL_FORMED)
def test_a_change_that_is_well_formed_is_taken(kind: int) -> None:
    for make in (
        lambda db: change(db, element_part(kind, WELL_FORMED[kind])),
        lambda db: change(db, state_parts(kind, kind, WELL_FORMED[kind]), 1),
    ):
        with open_store(1) as db:
            db.apply(make(db))
            assert db.kind(b"k") == KIND_NAMES[kind]


@pytest.mark.parametrize(
    "malformed",
    [
        *(
            pytest.param(lambda db, k=k: change(db, element_part(k, b"1234567")), id=f"value of {k}")
            for k in (5, 6, 7, 8)
        ),
        *(
            pytest.param(lambda db, k=k: change(db, state_parts(k, k, b"7"), 1), id=f"state of {k}")
            for k in (5, 6, 7, 8)
        ),
        *(pytest.param(lambda db, k=k: change(db, element_part(k, b"")), id=f"kind {k}") for k in (0, 1, 12, 255)),
        pytest.param(lambda db: change(db, state_parts(4, 5, b""), 1), id="kind not listed"),
        pytest.param(lambda db: change(db, state_parts(12, 12, b""), 1), id="unknown kind listed"),
        *(
            pytest.param(lambda db, m=m: change(db, b"\6" + struct.pack("<H", m) + b"\0"), id=f"mask {m}")
            for m in (0, 1, 2, 1 << 12, 0xFFFF)
        ),
    ],
)
def test_a_malformed_change_is_refused_whole(db: Database, malformed: Callable[[Database], bytes]) -> None:
    db.flag(b"k").enable()
    before = db.applied_dict()
    with pytest.raises(everwrite.ProtocolError, match="nothing of it was applied"):
        db.apply(malformed(db))
    assert db.flag(b"k").enabled
    assert db.applied_dict() == before
