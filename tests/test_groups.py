"""Atomic groups from another store: one becomes visible at once, whatever has to be pulled for it, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

import everwrite
from everwrite import Database, ProtocolError
from everwrite.batch import CHANGES, decode_batch, encode_batch
from everwrite.digest import rebuild
from everwrite.memory_files import MemoryFiles
from everwrite.need import Need
from tests.reference.state_format import Cursor

NOW_MS = 1_700_000_000_000
KEYS = [b"k%d" % number for number in range(5)]


def open_store(store_id: int, files: MemoryFiles | None = None) -> Database:
    return everwrite.open(
        "/data", "os", files=files or MemoryFiles(), background=False, store_id=store_id, now_ms=NOW_MS
    )


def copy(sender: Database, receiver: Database) -> None:
    for batch in sender.changes(receiver.applied):
        receiver.apply(batch)


@dataclass(frozen=True)
class Part:
    """One change of a group, and its bytes."""

    key: bytes
    origin: int
    timestamp: int
    data: bytes


def changes_in(batch: bytes) -> list[Part]:
    """All changes of a batch without their groups."""
    parts = []
    groups = Cursor(decode_batch(batch).body)
    while groups.left:
        group = Cursor(groups.slice())
        while group.left:
            data = group.slice()
            change = Cursor(data)
            change.byte()
            dot = change.dot()
            change.unsigned()
            parts.append(Part(change.slice()[1:], dot.origin, dot.timestamp, data))
    return parts


def varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def grouped(groups: list[list[Part]], after: dict[int, int]) -> bytes:
    """A batch of these groups for a store that holds `after`."""
    body = b""
    upto: dict[int, int] = {}
    for group in groups:
        packed = b"".join(varint(len(part.data)) + part.data for part in group)
        body += varint(len(packed)) + packed
        upto |= {part.origin: part.timestamp for part in group}
    spans = [(origin, after.get(origin, 0), stamp) for origin, stamp in upto.items()]
    return encode_batch(CHANGES, spans, sum(map(len, groups)), body)


def own_changes(store: Database) -> list[Part]:
    """The store's own changes, without states that would go ahead of them."""
    stream = store.open_stream({}, {store.store_id})
    parts = []
    while (batch := stream.next_batch(100)) is not None:
        parts += changes_in(batch)
    return parts


def test_nothing_of_a_group_shows_before_all_that_it_needs_is_there() -> None:
    us, eu, ap = (open_store(number) for number in (1, 2, 3))
    for key in KEYS[:2]:
        us.set(key).add(b"a", b"b")
    copy(us, eu)
    eu[b"plain"] = b"v"
    eu.set(KEYS[0]).discard(b"a")
    eu.counter(b"n").increment()
    eu.set(KEYS[1]).discard(b"b")
    batch = grouped([own_changes(eu)], {})
    wanted = ap.needs(batch, 10)
    assert [need.namespace_key for need in wanted] == [b"\x02k0", b"\x02k1"]
    for need in wanted:
        assert ap.apply_batch(batch) == need
        assert ap.needs(batch, 10)[0] == need
        assert ap.key_count() == 0
        assert ap.applied == {}
        ap.supply_state(need, eu.key_state(need.namespace_key))
    assert ap.key_count() == 0
    assert ap.needs(batch, 10) == []
    assert ap.apply_batch(batch) is None
    assert dict(ap.items()) == {b"plain": b"v", b"n": b"1"}
    assert set(ap.set(KEYS[0])) == {b"b"}
    assert set(ap.set(KEYS[1])) == {b"a"}
    assert ap.applied == {eu.origin: eu.applied[eu.origin]}
    assert ap.digest_leaves() == rebuild(ap)


def test_changes_of_a_group_build_on_each_other() -> None:
    eu, ap = open_store(2), open_store(3)
    for number in range(5):
        eu.counter(b"n").increment(number)
        eu.set(b"s").add(b"%d" % number)
    eu.set(b"s").discard(b"0", b"1")
    eu.set(b"s").clear()
    eu.set(b"s").add(b"9")
    batch = grouped([own_changes(eu)], {})
    assert ap.needs(batch, 10) == []
    assert ap.apply_batch(batch) is None
    assert ap.counter(b"n").value == 10
    assert set(ap.set(b"s")) == {b"9"}


def test_a_group_of_two_origins_is_malformed() -> None:
    us, eu, ap = (open_store(number) for number in (1, 2, 3))
    us[b"a"] = b"v"
    eu[b"b"] = b"v"
    with pytest.raises(ProtocolError):
        ap.apply_batch(grouped([own_changes(us) + own_changes(eu)], {}))
    assert ap.key_count() == 0


def test_a_state_that_does_not_reach_is_refused_and_kept_ones_make_room() -> None:
    us, eu, ap = (open_store(number) for number in (1, 2, 3))
    us.set(b"s").add(b"a")
    copy(us, eu)
    stale = us.key_state(b"\x02s")
    eu.set(b"s").discard(b"a")
    batch = grouped([own_changes(eu)], {})
    need = ap.apply_batch(batch)
    assert isinstance(need, Need)
    with pytest.raises(ProtocolError, match="lacks update"):
        ap.supply_state(need, stale)
    with pytest.raises(ProtocolError, match="malformed"):
        ap.supply_state(need, stale[:-1])
    assert ap.apply_batch(batch) == need
    ap.supply_state(need, eu.key_state(b"\x02s"))
    # Twice is once.
    ap.supply_state(need, eu.key_state(b"\x02s"))
    assert ap.apply_batch(batch) is None
    ap.supply_state(need, eu.key_state(b"\x02s"))
    assert ap.kind(b"s") == "none"


def visible(store: Database, group: list[Part]) -> set[int]:
    """The timestamps of the group's changes that the store's keys include."""
    return {part.timestamp for part in group if store.why(part.key)["context"].get(part.origin, 0) >= part.timestamp}


@pytest.mark.parametrize("seed", range(40))
def test_a_group_is_never_half_visible(seed: int) -> None:
    """Whatever part of a group shows before the group is applied came with a state that another group needed."""
    random = Random(seed)
    us, eu = open_store(1), open_store(2)
    files = MemoryFiles()
    ap = open_store(3, files)

    def write(store: Database) -> None:
        key = random.choice(KEYS)
        match random.randrange(4):
            case 0:
                store.delete(key)
            case 1 if store.kind(key) == "set":
                store.set(key).discard(*random.sample([b"a", b"b", b"c"], 2))
            case 2 if store.kind(key) in ("none", "string"):
                store.counter(key).increment() if random.random() < 0.5 else store.put(key, b"1")
            case _ if store.kind(key) in ("none", "set"):
                store.set(key).add(random.choice([b"a", b"b", b"c"]))

    for _ in range(30):
        write(us)
        if random.random() < 0.3:
            copy(us, eu)
        write(eu)
    parts = own_changes(eu)
    groups = []
    while parts:
        size = random.randint(1, 4)
        groups.append(parts[:size])
        parts = parts[size:]
    brought: set[int] = set()

    def check() -> None:
        held = ap.applied.get(eu.origin, 0)
        assert held in {0, *(group[-1].timestamp for group in groups)}, "the log holds half a group"
        for group in groups:
            shown = visible(ap, group)
            if held >= group[-1].timestamp:
                assert shown == {part.timestamp for part in group}
            else:
                assert shown <= brought, "half a group shows"
        assert ap.digest_leaves() == rebuild(ap)

    position = 0
    waiting: set[int] = set()
    for _ in range(1000):
        if position == len(groups):
            break
        group_at = position
        count = random.randint(1, 3)
        batch = grouped(groups[position : position + count], dict(ap.applied))
        need = ap.apply_batch(batch)
        position = sum(group[-1].timestamp <= ap.applied.get(eu.origin, 0) for group in groups)
        if position > group_at:
            brought |= waiting
            waiting = set()
        check()
        if need is not None:
            ap.supply_state(need, eu.key_state(need.namespace_key))
            context = eu.why(need.namespace_key[1:])["context"].get(eu.origin, 0)
            waiting |= {
                part.timestamp
                for group in groups
                for part in group
                if b"\x02" + part.key == need.namespace_key and part.timestamp <= context
            }
            check()
        if random.random() < 0.15:
            files.crash(random.choice([None, "all", random]))
            ap = open_store(3, files)
            position = sum(group[-1].timestamp <= ap.applied.get(eu.origin, 0) for group in groups)
            waiting = set()
            check()
    assert position == len(groups)
    copy(us, ap)
    copy(us, eu)
    assert ap.digest() == eu.digest()
