"""States larger than a message travel in parts, by elements: joined when all are there, and not before."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

import everwrite
from everwrite import Database, GapError, ProtocolError
from everwrite.batch import CHANGES, CLAIM, STATES, decode_batch, encode_batch
from everwrite.digest import rebuild
from everwrite.memory_files import MemoryFiles
from everwrite.need import Need
from everwrite.parts import PART_BYTES, as_body, split_state
from everwrite.reconcile import Initiator, Responder
from tests.test_replication_store import RealNode, regions

NOW_MS = 1_700_000_000_000
NAME = b"x" * 1000


def open_store(store_id: int, files: MemoryFiles | None = None) -> Database:
    return everwrite.open(
        "/data", "os", files=files or MemoryFiles(), background=False, store_id=store_id, now_ms=NOW_MS
    )


def fill(db: Database, count: int = 3000) -> None:
    """A set that makes about three parts."""
    db.set(b"large").add(*(NAME + b"%d" % number for number in range(count)))


def large_state(db: Database) -> bytes:
    state: bytes = db.key_state(b"\x02large")
    assert len(state) > 2 * PART_BYTES
    return state


def test_parts_are_small_and_one_state_is_itself() -> None:
    db = open_store(1)
    fill(db)
    parts = split_state(large_state(db))
    assert len(parts) == 3
    assert all(len(part) < 1.1 * PART_BYTES for part in parts)
    assert split_state(b"anything small") == [b"anything small"]
    db[b"register"] = bytes(3 << 20)
    state = db.key_state(b"\x02register")
    assert split_state(state) == [state]


def needing() -> tuple[Database, Database, bytes, Need]:
    """A sender, a receiver, and a batch for which it needs the large state."""
    us, eu, ap = (open_store(number) for number in (1, 2, 3))
    fill(us)
    for batch in us.changes({}):
        eu.apply(batch)
    eu.set(b"large").discard(NAME + b"7")
    stream = eu.open_stream({}, {eu.store_id})
    wanted = stream.next_batch()
    assert wanted is not None
    need = ap.apply_batch(wanted)
    assert need is not None
    return eu, ap, wanted, need


@pytest.mark.parametrize("seed", range(3))
def test_a_pulled_state_is_kept_when_its_last_part_has_come(seed: int) -> None:
    eu, ap, batch, need = needing()
    parts = split_state(large_state(eu))
    Random(seed).shuffle(parts)
    for part in parts[:-1]:
        assert ap.supply_state(need, part) is False
        assert ap.supply_state(need, part) is False
        assert ap.apply_batch(batch) == need
        assert ap.key_count() == 0
    assert ap.supply_state(need, parts[-1]) is True
    assert ap.key_count() == 0
    assert ap.apply_batch(batch) is None
    assert len(ap.set(b"large")) == 2999
    assert ap.digest() == eu.digest()
    assert ap.digest_leaves() == rebuild(ap)


def test_parts_of_two_states_are_never_taken_together() -> None:
    eu, ap, batch, need = needing()
    older = split_state(large_state(eu))
    eu.set(b"large").discard(NAME + b"8")
    newer = split_state(large_state(eu))
    assert ap.supply_state(need, older[0]) is False
    assert ap.supply_state(need, newer[1]) is False
    assert ap.supply_state(need, newer[2]) is False
    assert ap.supply_state(need, older[1]) is False
    assert ap.supply_state(need, older[2]) is True
    assert ap.apply_batch(batch) is None
    assert len(ap.set(b"large")) == 2999


def test_a_link_pulls_a_large_state() -> None:
    network, [us, eu, ap] = regions("us", "eu", "ap")
    network.cut("us", "ap")
    fill(us.writes())
    us.wrote()
    network.run(1.0)
    eu.writes().set(b"large").discard(NAME + b"7")
    eu.writes()[b"after"] = b"v"
    eu.wrote()

    def same(one: RealNode, other: RealNode) -> bool:
        return one.db.digest() == other.db.digest()

    network.run_until(lambda: same(ap, eu))
    assert len(ap.db.set(b"large")) == 2999
    assert ap.db.statistics()["pulls"] >= 1
    network.heal("us", "ap")
    network.run_until(lambda: same(us, ap) and us.replicator.drained())


def test_a_resync_sends_a_large_state_in_parts_and_its_claim_waits_for_all() -> None:
    us = open_store(1)
    us[b"a"] = b"v"
    fill(us)
    us[b"z"] = b"v"
    *states, claim = us.resync_batches({})
    assert [decode_batch(batch).kind for batch in (*states, claim)] == [STATES] * len(states) + [CLAIM]
    assert len(states) >= 4
    assert all(len(decode_batch(batch).body) < 1.2 * PART_BYTES for batch in states)
    for missing in range(len(states)):
        ap = open_store(3)
        others = [batch for index, batch in enumerate(states) if index != missing]
        Random(missing).shuffle(others)
        for batch in others * 2:
            ap.apply(batch)
        with pytest.raises(GapError):
            ap.apply(claim)
        assert ap.applied == {}
        ap.apply(states[missing])
        ap.apply(claim)
        assert ap.applied == us.applied
        assert ap.digest() == us.digest()


def test_a_crash_leaves_no_part_behind() -> None:
    us = open_store(1)
    fill(us)
    *states, claim = us.resync_batches({})
    files = MemoryFiles()
    ap = open_store(3, files)
    for batch in states[:-1]:
        ap.apply(batch)
    files.crash(None)
    ap = open_store(3, files)
    assert ap.key_count() == 0
    ap.apply(states[-1])
    with pytest.raises(GapError):
        ap.apply(claim)
    for batch in (*states, claim):
        ap.apply(batch)
    assert ap.digest() == us.digest()
    files.crash("all")
    ap = open_store(3, files)
    assert ap.digest_leaves() == rebuild(ap)


def reconcile(asking: Database, answering: Database) -> int:
    """The size of the largest message."""
    one, other = Initiator(asking), Responder(answering)
    message: bytes | None = one.start()
    largest = 0
    while message is not None:
        answer = other.receive(message)
        largest = max(largest, len(message), len(answer))
        message = one.receive(answer)
    return largest


@pytest.mark.parametrize("swap", [False, True])
def test_a_reconciliation_sends_large_states_in_parts(swap: bool) -> None:
    one, other = open_store(1), open_store(2)
    random = Random(1)
    one.set(b"large").add(*(random.randbytes(1000) for _ in range(3000)))
    other.set(b"large").add(*(random.randbytes(1000) for _ in range(3000)))
    one.map(b"map").set({random.randbytes(8): random.randbytes(1000) for _ in range(2500)})
    other[b"z"] = b"v"
    assert reconcile(*((other, one) if swap else (one, other))) < 1.2 * PART_BYTES
    assert len(one.set(b"large")) == len(other.set(b"large")) == 6000
    assert one.digest() == other.digest()
    assert other.digest_leaves() == rebuild(other)


def damage(position: int, value: int) -> Callable[[bytes], bytes]:
    return lambda part: part[:position] + bytes([value]) + part[position + 1 :]


# Flags 1, origin 8, timestamp 8, index 4, count 4.
@pytest.mark.parametrize(
    "spoil",
    [
        damage(0, 2),  # a part of nothing
        damage(0, 7),
        damage(9, 1),  # with a timestamp
        damage(17, 9),  # index beyond the count
        damage(21, 1),  # the only part
        damage(17, 0),  # a first part without a head
        lambda part: part[:-1],
    ],
)
def test_malformed_parts_are_refused(spoil: Callable[[bytes], bytes]) -> None:
    eu, ap, _, need = needing()
    part = spoil(split_state(large_state(eu))[1])
    with pytest.raises(ProtocolError):
        ap.supply_state(need, part)
    with pytest.raises(ProtocolError):
        ap.apply(encode_batch(STATES, [], 1, as_body([part]), resync=5))
    assert ap.key_count() == 0


def test_parts_do_not_stand_among_changes() -> None:
    eu, ap, batch, _ = needing()
    part = split_state(large_state(eu))[0]
    envelope = decode_batch(batch)
    spans = [tuple(span) for span in envelope.spans]
    group = envelope.body[len(envelope.body) - len(envelope.body.lstrip(b"")) :]
    changes = as_body([part])
    # The first byte or two are the group's length: the change within goes beside the part.
    mixed = as_body([changes + group[1:] if group[0] < 0x80 else changes + group[2:]])
    with pytest.raises(ProtocolError):
        ap.apply_batch(encode_batch(CHANGES, spans, envelope.count + 1, mixed))


def test_a_stream_of_all_origins_sends_a_large_state_ahead_in_parts() -> None:
    us, eu = open_store(1), open_store(2)
    files = MemoryFiles()
    ap = open_store(3, files)
    fill(us)
    eu[b"before"] = b"v"
    reconcile(us, eu)
    eu.set(b"large").discard(NAME + b"7")
    eu[b"after"] = b"v"
    batches = list(eu.changes({}))
    assert len(batches) >= 3
    assert all(len(decode_batch(batch).body) < 2.2 * PART_BYTES for batch in batches)
    for batch in batches[:-1]:
        ap.apply(batch)
        assert ap.kind(b"large") == "none"
    # What was set aside is gone with the process: the gap shows, and another stream brings all of it.
    files.crash(None)
    ap = open_store(3, files)
    with pytest.raises(everwrite.EverwriteError):
        ap.apply(batches[-1])
    assert ap.kind(b"large") == "none"
    for batch in eu.changes(ap.applied):
        ap.apply(batch)
        ap.apply(batch)
    assert len(ap.set(b"large")) == 2999
    assert ap[b"after"] == b"v"
    assert ap.applied == {eu.origin: eu.applied[eu.origin]}
    assert ap.digest() == eu.digest()
    stream = eu.open_stream({})
    while (one := stream.next_batch(1)) is not None:
        fourth = one
        assert decode_batch(fourth).count == 1
    assert stream.caught_up()
    assert stream.sent == {eu.origin: eu.applied[eu.origin]}


def test_a_state_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    eu, ap, batch, need = needing()
    monkeypatch.setattr("everwrite.aside.STATE_BYTES_MAX", 2 * PART_BYTES)
    *parts, last = split_state(large_state(eu))
    for part in parts:
        assert ap.supply_state(need, part) is False
    with pytest.raises(everwrite.TooLargeError, match="limit"):
        ap.supply_state(need, last)
    with pytest.raises(everwrite.TooLargeError, match="limit"):
        reconcile(ap, eu)
    assert ap.key_count() == 0
    assert ap.digest_leaves() == rebuild(ap)
    monkeypatch.setattr("everwrite.parts.WAITING_BYTES", 3 * PART_BYTES // 2)
    assert ap.supply_state(need, parts[0]) is False
    with pytest.raises(everwrite.TooLargeError, match="b'large' has over"):
        ap.supply_state(need, parts[1])
    ap[b"other"] = b"goes on"
    assert ap.apply_batch(batch) == need
