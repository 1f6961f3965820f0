"""Reconciliation: what differs is found, joined both ways, and costs what it may."""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from random import Random

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite import ClockDriftError, Database, FormatError, ProtocolError, Reconciled
from everwrite.digest import rebuild
from everwrite.errors import LocalProtocolError, TooLargeError
from everwrite.leaf_scan import scan_leaves
from everwrite.memory_files import MemoryFiles
from everwrite.reconcile import Initiator, Responder
from everwrite.reconcile_messages import MESSAGE_BYTES_MAX

LEAVES = 1 << 14
NOW_MS = 1_700_000_000_000


def open_store(store_id: int, **options: int) -> Database:
    return everwrite.open(
        "/data", "os", files=MemoryFiles(), background=False, store_id=store_id, now_ms=NOW_MS, **options
    )


def reconcile(asking: Database, answering: Database) -> Reconciled:
    one, other = Initiator(asking), Responder(answering)
    message: bytes | None = one.start()
    while message is not None:
        message = one.receive(other.receive(message))
    assert one.done
    for store in (asking, answering):
        assert store.digest_leaves() == rebuild(store)
    return one.result


def contents(db: Database) -> dict[bytes, object]:
    kinds: dict[str, Callable[[bytes], object]] = {
        "string": lambda key: db[key],
        "set": lambda key: set(db.set(key)),
        "map": lambda key: dict(db.map(key).items()),
    }
    return {key: kinds[kind](key) for key, kind in db._keys(b"")}


def fill(db: Database, names: range, seed: int = 1) -> None:
    random = Random(seed)
    for number in names:
        db[b"key-%d" % number] = random.randbytes(8)


def copy(sender: Database, receiver: Database) -> None:
    for batch in sender.changes(receiver.applied):
        receiver.apply(batch)


def test_stores_that_hold_the_same_say_so_in_two_messages() -> None:
    one, other = open_store(1), open_store(2)
    fill(one, range(100))
    copy(one, other)
    assert one.digest() == other.digest()
    result = reconcile(one, other)
    assert (result.keys, result.messages) == (0, 2)
    assert result.bytes_sent == result.bytes_received < 32


@pytest.mark.parametrize("keys", [1, 2, 40, 5000])
def test_an_empty_store_gets_all(keys: int) -> None:
    one, other = open_store(1), open_store(2)
    fill(one, range(keys))
    result = reconcile(other, one)
    assert contents(other) == contents(one)
    assert (result.keys, result.joined, result.sent) == (keys, keys, 0)
    back = open_store(3)
    assert reconcile(one, back).sent == keys
    assert contents(back) == contents(one)


def test_differences_of_every_kind_are_joined_both_ways() -> None:
    one, other = open_store(1), open_store(2)
    fill(one, range(2000))
    one.set(b"set").add(b"a", b"b")
    one.map(b"map").set({b"f": b"1", b"g": b"2"})
    one.counter(b"count").increment(5)
    copy(one, other)
    one[b"key-1"] = b"one"
    other[b"key-2"] = b"other"
    one[b"key-3"] = b"one"
    other[b"key-3"] = b"other"
    del one[b"key-4"]
    del other[b"key-5"]
    other[b"new"] = b"other"
    one.set(b"set").add(b"c")
    other.set(b"set").discard(b"a")
    one.map(b"map").increment(b"h", 3)
    other.map(b"map").increment(b"h", 4)
    one.counter(b"count").increment()
    other.counter(b"count").reset()
    other.put(b"key-6", b"soon gone", ttl=10)
    result = reconcile(one, other)
    assert contents(one) == contents(other)
    assert one.digest() == other.digest()
    assert one.set(b"set").__contains__(b"a") is False
    assert set(one.set(b"set")) == {b"b", b"c"}
    assert one.map(b"map")[b"h"] == b"7"
    assert one.counter(b"count").value == 1
    assert one[b"key-2"] == b"other"
    assert one[b"key-3"] == b"other"
    assert b"key-4" not in other
    assert b"key-5" not in one
    assert result.keys == 10
    assert reconcile(one, other).messages == 2


def test_neither_applied_nor_the_log_s_prefix_is_claimed() -> None:
    one, other = open_store(1), open_store(2)
    fill(one, range(10))
    before = dict(other.applied)
    reconcile(one, other)
    assert dict(other.applied) == before
    copy(one, other)
    assert other.applied[one.origin] == one.applied[one.origin]
    assert other.statistics()["duplicate_changes"] == 10


def test_a_write_on_a_reconciled_state_reaches_a_store_that_knows_nothing_of_it() -> None:
    one, other, third = open_store(1), open_store(2), open_store(3)
    one.set(b"s").add(b"a", b"b")
    reconcile(one, other)
    other.set(b"s").discard(b"a")
    other.set(b"s").add(b"c")
    # `third` has nothing of `one`, and nobody to ask: the state goes ahead of the change.
    copy(other, third)
    assert set(third.set(b"s")) == {b"b", b"c"}
    assert dict(third.applied) == {other.origin: other.applied[other.origin]}
    third.set(b"s").discard(b"b")
    fourth = open_store(4)
    copy(third, fourth)
    assert set(fourth.set(b"s")) == {b"c"}
    copy(one, third)
    copy(one, fourth)
    assert contents(third) == contents(fourth)


def test_a_joined_state_survives_a_crash_and_a_flush() -> None:
    files = MemoryFiles()
    one = open_store(1)
    fill(one, range(300))
    other = everwrite.open("/data", files=files, background=False, store_id=2, now_ms=NOW_MS, memtable_bytes=16 << 10)
    reconcile(one, other)
    other.set(b"s").add(b"x")
    wanted = contents(other)
    files.crash("all")
    again = everwrite.open("/data", files=files, background=False, now_ms=NOW_MS)
    assert contents(again) == wanted
    assert again.digest_leaves() == rebuild(again)


@pytest.mark.parametrize("keys", [300, 3000, 30_000])
def test_the_cost_grows_with_the_differences_and_the_logarithm_of_the_keys(keys: int) -> None:
    one, other = open_store(1), open_store(2)
    fill(one, range(keys))
    copy(one, other)
    random = Random(keys)
    for differences in (1, 8, 64):
        for number in random.sample(range(keys), differences):
            random.choice((one, other))[b"key-%d" % number] = random.randbytes(8)
        result = reconcile(one, other)
        assert one.digest() == other.digest()
        assert 1 <= result.keys <= differences
        # Four bits of the hash a level, sixteen sums of sixteen bytes; and two states with what surrounds them.
        levels = log2(keys) / 4 + 3
        assert result.bytes_sent + result.bytes_received < differences * (levels * 300 + 1000) + 2000
        assert result.messages < 2 * (levels + 6)


def test_few_leaves_read_by_hash_are_what_a_scan_of_all_finds() -> None:
    db = open_store(1, memtable_bytes=1 << 16)
    random = Random(3)
    for number in range(6000):
        db[b"key-%d" % random.randrange(4000)] = random.randbytes(30)
        if number % 3 == 0:
            db.set(b"set-%d" % random.randrange(50)).add(b"%d" % number)
            db.pop(b"key-%d" % random.randrange(4000), None)
        if number % 1000 == 0:
            db.maintain()
    statistics = db.statistics()
    # All places where a key may lie.
    assert statistics["tables"] > 1
    assert statistics["memtable_keys"]
    items, keys = scan_leaves(db, range(LEAVES), by_hash=False)
    assert set(keys) >= {key for key, _ in db._keys(b"")}
    leaves = items["hash"] >> np.uint64(64 - 14)
    for chosen in (random.sample(range(LEAVES), 256), [0], [LEAVES - 1], range(7000, 7200), []):
        inside = np.isin(leaves, np.array(chosen, np.uint64))
        few, names = scan_leaves(db, chosen, by_hash=True)
        assert np.array_equal(few, items[inside])
        assert names == [key for key, taken in zip(keys, inside, strict=True) if taken]


def test_more_states_than_a_message_holds() -> None:
    one, other = open_store(1), open_store(2)
    for number in range(30):
        one[b"one-%d" % number] = Random(number).randbytes(100_000)
        other[b"other-%d" % number] = Random(number).randbytes(100_000)
    result = reconcile(one, other)
    assert contents(one) == contents(other)
    assert len(contents(one)) == 60
    assert (result.joined, result.sent) == (30, 30)


def test_writes_in_between_are_harmless() -> None:
    one, other = open_store(1), open_store(2)
    fill(one, range(3000))
    asking, answering = Initiator(one), Responder(other)
    random = Random(5)
    message: bytes | None = asking.start()
    while message is not None:
        for store in (one, other):
            store[b"key-%d" % random.randrange(3000)] = random.randbytes(5)
        message = asking.receive(answering.receive(message))
    reconcile(one, other)
    assert contents(one) == contents(other)
    assert one.digest() == other.digest()


def test_sync_goes_by_logs_first_and_by_descent_where_they_are_cut() -> None:
    one = open_store(1, memtable_bytes=16 << 10, segment_bytes=16 << 10, log_keep_bytes=16 << 10)
    other = open_store(2)
    fill(one, range(20))
    fill(other, range(10, 30), seed=2)
    assert everwrite.sync(one, other).messages == 2
    assert one.applied == other.applied
    fill(one, range(3000), seed=3)
    one.maintain()
    with pytest.raises(everwrite.LogCutError):
        one.open_stream(other.applied)
    other[b"new"] = b"goes by the log"
    result = everwrite.sync(one, other)
    assert result.keys == 3000
    assert contents(one) == contents(other)
    assert one.digest() == other.digest()
    # States brought what the log no longer holds, and no claim: later writes follow all the same.
    one.set(b"s").add(b"a")
    everwrite.sync(other, one)
    other.set(b"s").discard(b"a")
    everwrite.sync(one, other)
    assert contents(one) == contents(other)
    assert one.kind(b"s") == "none"


def test_a_clock_too_far_ahead_is_refused_before_anything_is_joined() -> None:
    one, other = open_store(1), open_store(2)
    one.set_time(NOW_MS + 10_000)
    one[b"k"] = b"v"
    with pytest.raises(ClockDriftError):
        reconcile(other, one)
    with pytest.raises(ClockDriftError):
        reconcile(one, other)
    assert contents(other) == {}


def test_stores_that_share_an_origin_are_told() -> None:
    one, other = open_store(1), open_store(1)
    one[b"k"] = b"v"
    with pytest.raises(ProtocolError, match="share an origin"):
        reconcile(one, other)
    assert contents(other) == {}


def test_out_of_turn() -> None:
    asking = Initiator(open_store(1))
    with pytest.raises(LocalProtocolError):
        asking.receive(b"")
    message = asking.start()
    with pytest.raises(LocalProtocolError):
        asking.start()
    assert asking.receive(message) is None
    with pytest.raises(LocalProtocolError):
        asking.receive(message)


def conversation() -> tuple[list[bytes], list[bytes]]:
    """The questions and answers of a reconciliation that has all kinds of them."""
    one, other = open_store(1), open_store(2)
    fill(one, range(2500))
    copy(one, other)
    for number in range(12):
        one[b"key-%d" % number] = bytes(200_000)
        other[b"key-%d" % (50 + number)] = Random(number).randbytes(200_000)
    asking, answering = Initiator(one), Responder(other)
    questions, answers = [], []
    message: bytes | None = asking.start()
    while message is not None:
        questions.append(message)
        answers.append(answering.receive(message))
        message = asking.receive(answers[-1])
    return questions, answers


QUESTIONS, ANSWERS = conversation()


def test_every_kind_of_message_is_in_the_conversation() -> None:
    assert {msgpack.unpackb(message)[1] for message in QUESTIONS} == {1, 2, 4, 6}
    assert {msgpack.unpackb(message)[1] for message in ANSWERS} == {1, 3, 5}


@given(st.integers(0, len(QUESTIONS) - 1), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_questions_are_answered_or_refused(index: int, data: st.DataObject) -> None:
    store = open_store(3)
    message = damaged(QUESTIONS[index], data)
    held = store.digest()
    try:
        Responder(store).receive(message)
    except (ProtocolError, FormatError, TooLargeError, ClockDriftError):
        assert store.digest() == held
    assert store.digest_leaves() == rebuild(store)


@given(st.integers(0, len(ANSWERS) - 1), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_answers_are_taken_or_refused(index: int, data: st.DataObject) -> None:
    one = open_store(1)
    one[b"k"] = b"v"
    asking = Initiator(one)
    asking.start()
    try:
        for answer in (*ANSWERS[:1], damaged(ANSWERS[index], data)):
            if asking.receive(answer) is None:
                break
    except (ProtocolError, FormatError, TooLargeError, ClockDriftError):
        pass
    assert one.digest_leaves() == rebuild(one)
    assert one[b"k"] == b"v"


def damaged(message: bytes, data: st.DataObject) -> bytes:
    """Cut, with a byte changed, or with a field of another message or of nonsense."""
    match data.draw(st.sampled_from(["cut", "byte", "field"])):
        case "cut":
            return message[: data.draw(st.integers(0, len(message) - 1))]
        case "byte":
            at = data.draw(st.integers(0, min(len(message) - 1, 400)))
            return message[:at] + bytes([data.draw(st.integers(0, 255))]) + message[at + 1 :]
    fields = msgpack.unpackb(message)
    nonsense = st.one_of(
        st.integers(-1, 70),
        st.binary(max_size=64),
        st.lists(st.one_of(st.binary(max_size=8), st.lists(st.binary(max_size=16), max_size=3)), max_size=3),
        st.sampled_from([np.arange(3, dtype="<u8").tobytes(), None, True, 2**64 - 1]),
    )
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(nonsense)
    packed: bytes = msgpack.packb(fields)
    return packed


def test_limits() -> None:
    store = open_store(1)
    with pytest.raises(TooLargeError):
        Responder(store).receive(bytes(MESSAGE_BYTES_MAX + 1))
    with pytest.raises(FormatError):
        Responder(store).receive(msgpack.packb([2, 1, bytes(16)]))
    many = np.arange(1025, dtype=np.uint64) << np.uint64(50)
    with pytest.raises(ProtocolError, match="limit is 1024"):
        Responder(store).receive(msgpack.packb([1, 2, 14, many.astype("<u8").tobytes()]))
    with pytest.raises(ProtocolError, match="limit is 512"):
        Responder(store).receive(msgpack.packb([1, 4, np.arange(513, dtype="<u8").tobytes(), [], b""]))
