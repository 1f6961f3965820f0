"""The index of ranks: what it answers, how many entries it looks at, and that every way to change the order keeps it.

The oracle is the order itself, walked from one end, which other tests hold against models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import everwrite
from everwrite.database import Database
from everwrite.doctor import salvage
from everwrite.errors import ProtocolError
from everwrite.lsm import Lsm
from everwrite.memory_files import MemoryFiles
from tests.reference.model_store import USER
from tests.reference.state_format import read_full_state

START_MS = 1_700_000_000_000
BOARD, ITEMS = b"board", b"items"
RANK_SPACE = b"\x06"
# Far more than a walk down the levels may look at: 128 steps a level, three levels.
VISITS_MAX = 3 * 128 + 10


def open_on(files: MemoryFiles, number: int = 1, **options: Any) -> Database:
    settings = {"memtable_bytes": 1 << 16, "segment_bytes": 1 << 16, "now_ms": START_MS} | options
    return everwrite.open("/data", "os", files=files, background=False, store_id=number, **settings)  # type: ignore[arg-type]


@pytest.fixture
def files() -> MemoryFiles:
    return MemoryFiles()


@pytest.fixture
def db(files: MemoryFiles) -> Iterator[Database]:
    with open_on(files) as opened:
        yield opened


def member(number: int) -> bytes:
    return b"m%06d" % number


def fill(db: Database, numbers: range, key: bytes = BOARD) -> None:
    for start in range(0, len(numbers), 5000):
        db.sorted_set(key).update({member(number): number / 4 for number in numbers[start : start + 5000]})


def visits(db: Database) -> int:
    return db.stats()["rank_entries_visited"]


def check_board(board: Any, random: Random) -> None:
    order = list(board.items())
    size = len(order)
    assert len(board) == size
    for each in {0, size - 1, *(random.randrange(size) for _ in range(4))} if size else ():
        name, score = order[each]
        assert (board.rank(name), board.reverse_rank(name)) == (each, size - 1 - each)
        assert board.at(each) == board.at(each - size) == (name, score)
        low, high = sorted((score, order[random.randrange(size)][1]))
        assert board.count(low, high) == sum(low <= other <= high for _, other in order)
    assert board.rank(b"nobody") is board.reverse_rank(b"nobody") is None
    for beyond in (size, -size - 1):
        with pytest.raises(IndexError):
            board.at(beyond)
    start, stop = (random.randrange(-size - 2, size + 3) for _ in range(2))
    step = random.choice((1, 1, 2, -1, -3, 70, -99))
    assert board.ranks(start, stop, step) == order[start:stop:step]


def check_items(items: Any, random: Random) -> None:
    order = list(items.items())
    size = len(order)
    assert len(items) == size
    for each in {0, size - 1, *(random.randrange(size) for _ in range(4))} if size else ():
        position, value = order[each]
        assert items[each] == items[each - size] == value
        assert items.position(each) == position
        assert items.index_of(position) == each
    start, stop = (random.randrange(-size - 2, size + 3) for _ in range(2))
    step = random.choice((1, 1, 2, -1, -3, 70, -99))
    assert items[start:stop:step] == [value for _, value in order][start:stop:step]


def check(db: Any, seed: int = 5) -> None:
    check_board(db.sorted_set(BOARD), Random(seed))
    check_items(db.sequence(ITEMS), Random(seed))


def test_a_rank_among_many_looks_at_few_entries(db: Database) -> None:
    board, size = db.sorted_set(BOARD), 200_000
    fill(db, range(size))
    assert visits(db) == 0, "who never asks pays nothing"
    assert board.rank(member(7)) == 7
    assert visits(db) >= size, "the first question makes the index"
    for number in (0, 300, size // 2, size - 300, size - 1):
        for ask, answer in (
            (lambda number=number: board.rank(member(number)), number),
            (lambda number=number: board.reverse_rank(member(number)), size - 1 - number),
            (lambda number=number: board.at(number), (member(number), number / 4)),
            (lambda number=number: board.ranks(number, number + 1), [(member(number), number / 4)]),
        ):
            before = visits(db)
            assert ask() == answer
            assert visits(db) - before <= VISITS_MAX
        before = visits(db)
        assert board.count(number / 4, size) == size - number
        assert visits(db) - before <= 2 * VISITS_MAX
        before = visits(db)
        board.add(member(number), number / 4 + 0.125)
        board.discard(member(number))
        board.add(member(number), number / 4)
        assert visits(db) - before <= 4 * VISITS_MAX
    assert db.stats()["rank_indexes_made"] == 1
    before = visits(db)
    assert len(board.ranks(1000, size - 1000, 10_000)) == 20
    assert visits(db) - before <= 20 * VISITS_MAX


def test_an_index_among_many_looks_at_few_entries(db: Database) -> None:
    items, size = db.sequence(ITEMS), 50_000
    for start in range(0, size, 5000):
        items.extend([b"%d" % number for number in range(start, start + 5000)])
    assert (items[0], items[-1], items.pop(), items.popleft()) == (b"0", b"49999", b"49999", b"0")
    items.append(b"49999")
    items.appendleft(b"0")
    assert db.stats()["rank_indexes_made"] == 0, "the ends need none"
    assert items[size // 2] == b"25000"
    assert db.stats()["rank_indexes_made"] == 1
    for number in (200, size // 2, size - 200):
        position = items.position(number)
        before = visits(db)
        assert items[number] == b"%d" % number
        assert items.index_of(position) == number
        items.insert(number, b"new")
        assert items.pop(number) == b"new"
        items[number] = b"changed"
        items[number] = b"%d" % number
        assert items[number : number + 2] == [b"%d" % number, b"%d" % (number + 1)]
        assert visits(db) - before <= 12 * VISITS_MAX
    assert db.verify().ok


def test_it_grows_and_shrinks_with_the_collection(db: Database) -> None:
    """To two levels and back, each element at random: splits and joins on every level, and no entry is left behind."""
    board, items, random = db.sorted_set(BOARD), db.sequence(ITEMS), Random(3)
    fill(db, range(600))
    items.extend([b"%d" % number for number in range(600)])
    check(db)
    for number in random.sample(range(600, 20_000), 19_000):
        board.add(member(number), float(random.randrange(500)))
        items.insert(random.randrange(len(items) + 1), b"%d" % number)
        db.maintain()
    assert db.verify().ok
    check(db)
    for number in random.sample(range(20_000), 20_000):
        board.discard(member(number))
        if len(items) > 5:
            items.pop(random.randrange(len(items)))
        if number % 4000 == 0:
            report = db.verify()
            assert report.ok, str(report)
            check(db)
        db.maintain()
    assert db.stats()["rank_indexes_made"] == 2, "made once each, and kept from then on"
    report = db.verify()
    assert report.ok, str(report)
    assert report.entries == 2 + 2 * len(items) - len(items), "heads and items, and no entry of an index"


def test_it_is_there_after_the_next_start(files: MemoryFiles) -> None:
    size = 70_000
    with open_on(files, memtable_bytes=1 << 26) as db:
        fill(db, range(size))
    with open_on(files, memtable_bytes=1 << 26) as db:
        assert db.sorted_set(BOARD).at(size // 2)[0] == member(size // 2)
        assert db.stats()["rank_indexes_made"] == 1
    # That start wrote nothing to the log.
    db = open_on(files, memtable_bytes=1 << 26)
    board = db.sorted_set(BOARD)
    assert board.rank(member(size - 1)) == size - 1
    for number in range(300):
        board.add(member(size + number), -1.0)
    board.discard(member(40))
    assert db.stats()["rank_indexes_made"] == 0
    assert visits(db) < 1000 * VISITS_MAX
    db.commit_log()
    files.crash("all")
    # These writes are in the log alone: they find the index in the tables.
    with open_on(files, memtable_bytes=1 << 26) as db:
        board = db.sorted_set(BOARD)
        assert board.rank(member(size)) == 0
        assert board.rank(member(41)) == 340
        assert db.stats()["rank_indexes_made"] == 0
        assert db.verify().ok


def test_an_index_that_a_crash_took_is_made_again(files: MemoryFiles) -> None:
    db = open_on(files, memtable_bytes=1 << 26)
    fill(db, range(1000))
    assert db.sorted_set(BOARD).rank(member(700)) == 700
    fill(db, range(1000, 2000))
    db.commit_log()
    files.crash("all")
    with open_on(files) as db:
        assert db.verify().ok
        assert db.sorted_set(BOARD).rank(member(1700)) == 1700
        assert db.stats()["rank_indexes_made"] == 1
        assert db.verify().ok


def test_a_batch_that_fails_takes_its_part_of_the_index_back(db: Database) -> None:
    board, items = db.sorted_set(BOARD), db.sequence(ITEMS)
    fill(db, range(255))
    items.extend([b"%d" % number for number in range(400)])
    assert items[200] == b"200"
    before = list(board.items()), list(items.items())

    def fails() -> None:
        with db.batch() as batch:
            # Enough for an index, which is made inside of the batch, and for splits.
            batch.sorted_set(BOARD).update({member(number): -float(number) for number in range(2000)})
            batch.sorted_set(BOARD).pop_at(1000)
            batch.sequence(ITEMS).insert_all(150, [b"x"] * 500)
            batch.sequence(ITEMS).pop(300)
            del batch[b"absent"]

    for _ in range(3):
        with pytest.raises(KeyError):
            fails()
        assert (list(board.items()), list(items.items())) == before
        check(db)
        report = db.verify()
        assert report.ok, str(report)
    with db.batch() as batch:
        batch.sorted_set(BOARD).update({member(number): -float(number) for number in range(2000)})
        batch.sorted_set(BOARD).pop_at(1000)
        batch.sorted_set(BOARD).discard_ranks(100, 300)
    assert len(board) == 1799
    check(db)
    assert db.verify().ok


def test_clearing_and_replacing_drop_it(db: Database) -> None:
    db.set_time(START_MS)
    for end in (
        lambda: (db.sorted_set(BOARD).clear(), db.sequence(ITEMS).clear()),
        lambda: (db.put(BOARD, b"text"), db.put(ITEMS, b"text")),
        lambda: (db.expire(BOARD, 1), db.expire(ITEMS, 1), db.set_time(START_MS + 5000), db.reap_expired()),
    ):
        db.set_time(START_MS)
        db.delete(BOARD)
        db.delete(ITEMS)
        fill(db, range(1000))
        db.sequence(ITEMS).extend([b"%d" % number for number in range(1000)])
        check(db)
        held = db.verify().entries
        end()
        report = db.verify()
        assert report.ok, str(report)
        assert report.entries < held - 3000
    fill(db, range(300))
    check(db)


def test_a_snapshot_answers_as_of_its_time(db: Database) -> None:
    fill(db, range(3000))
    db.sequence(ITEMS).extend([b"%d" % number for number in range(3000)])
    with db.snapshot() as without:
        check(db)
        with db.snapshot() as within:
            db.sorted_set(BOARD).discard_ranks(0, 1000)
            del db.sequence(ITEMS)[:1000]
            fill(db, range(3000, 5000))
            assert db.sorted_set(BOARD).rank(member(1500)) == 500
            for frozen in (without, within):
                assert frozen.sorted_set(BOARD).rank(member(1500)) == 1500
                assert frozen.sorted_set(BOARD).count(0, 250) == 1001
                assert frozen.sequence(ITEMS)[1500] == b"1500"
                check(frozen)
            check(db)
    assert db.stats()["rank_indexes_made"] == 2


def test_other_stores_dont_hear_of_it(db: Database) -> None:
    fill(db, range(1000))
    state, root = db.key_state(USER + BOARD), db.digest()
    assert db.sorted_set(BOARD).rank(member(500)) == 500
    assert (db.key_state(USER + BOARD), db.digest()) == (state, root)
    read_full_state(db.key_state(USER + BOARD))
    with open_on(MemoryFiles(), 2) as other:
        everwrite.sync(db, other)
        assert other.digest() == root
        assert other.stats()["rank_indexes_made"] == 0
        check(other)


def test_a_state_that_tells_of_an_index_is_refused(db: Database) -> None:
    fill(db, range(10))
    with open_on(MemoryFiles(), 2) as other:
        (batch, *_) = list(db.resync_batches({}))
        body = everwrite.batch.decode_batch(batch)
        kind, count = bytes([1, 10]), bytes([10])
        at = body.body.index(kind) + 1
        forged = body.body[:at] + bytes([10 | 128]) + body.body[at + 1 : at + 17] + count + b"\x01"
        assert body.body[at + 17 : at + 18] == count
        with pytest.raises(ProtocolError):
            other.apply(everwrite.batch.encode_batch(body.kind, body.spans, body.count, forged, resync=1, index=0))
        assert other.key_count() == 0


def test_a_backup_has_it(files: MemoryFiles, db: Database) -> None:
    fill(db, range(5000))
    assert db.sorted_set(BOARD).rank(member(2500)) == 2500
    db.backup("/backup")
    everwrite.restore("/backup", "/restored", files=files)
    with everwrite.open("/restored", "os", files=files, background=False) as restored:
        assert restored.sorted_set(BOARD).at(2500) == (member(2500), 625.0)
        assert restored.stats()["rank_indexes_made"] == 0
        assert restored.verify().ok


def test_a_salvaged_store_makes_its_own(tmp_path: Path) -> None:
    """The damaged table may have held a part of the index."""
    with everwrite.open(tmp_path / "db", "os", background=False, memtable_bytes=1 << 18) as db:
        fill(db, range(3000))
        assert db.sorted_set(BOARD).rank(member(2000)) == 2000
        fill(db, range(3000, 6000))
        db.compact(keep_log=True)
        for number in range(0, 6000, 7):
            db.sorted_set(BOARD).discard(member(number))
        left = list(db.sorted_set(BOARD).items())
    (table, *_) = sorted((tmp_path / "db" / "tables").glob("*.table"))
    damaged = bytearray(table.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    table.write_bytes(damaged)
    salvage(tmp_path / "db", tmp_path / "new")
    with everwrite.open(tmp_path / "new", background=False) as db:
        assert db.verify().ok
        # The log has all that the table has lost.
        assert list(db.sorted_set(BOARD).items()) == left
        check(db)
        assert db.verify().ok


@pytest.mark.parametrize("harm", ["count", "lost span", "stray span", "lost level"])
def test_a_wrong_index_is_found(files: MemoryFiles, harm: str) -> None:
    with open_on(files) as db:
        fill(db, range(20_000))
        assert db.sorted_set(BOARD).rank(member(700)) == 700
        db.compact()
        assert db.verify().ok
    lsm = Lsm(files, "/data/tables")
    spans = dict(lsm.items(RANK_SPACE))
    at = 1 + 4 + len(BOARD) + 1
    lowest = [key for key in spans if key[at] == 1]
    assert {key[at] for key in spans} == {1, 2}
    if harm == "count":
        lsm[lowest[7]] = b"\x01" + spans[lowest[7]][1:]
    elif harm == "lost span":
        del lsm[lowest[7]]
    elif harm == "stray span":
        lsm[lowest[7] + b"x"] = b"\x00" * 8
        lsm[next(key for key in spans if key[at] == 2 and len(key) > at + 1) + b"x"] = b"\x00" * 8
    else:
        for key in spans:
            if key[at] == 2:
                del lsm[key]
    lsm.freeze(lsm.checkpoint)
    lsm.flush_frozen()
    lsm.close()
    with open_on(files) as db:
        report = db.verify()
        assert not report.ok
        assert "ranks" in str(report)


def test_what_there_is_no_rank_of(db: Database) -> None:
    board = db.sorted_set(BOARD)
    db.sorted_set(b"other").add(b"a", 1)
    assert board.rank(b"a") is board.reverse_rank(b"a") is board.score(b"a") is None
    assert (board.count(), board.ranks(), board.discard_ranks()) == (0, [], 0)
    for absent in (lambda: board.at(0), lambda: board.at(-1), lambda: board.pop_at(0)):
        with pytest.raises(IndexError):
            absent()
    board.update({b"a": 1, b"b": 1, b"c": float("inf"), b"d": -float("inf")})
    assert [board.rank(name) for name in (b"d", b"a", b"b", b"c")] == [0, 1, 2, 3]
    assert (board.count(), board.count(1, 1), board.count(2, 1), board.count(minimum=2)) == (4, 2, 0, 1)
    assert board.count(float("inf")) == board.count(maximum=-float("inf")) == 1
    with pytest.raises(ValueError, match="NaN"):
        board.count(float("nan"))
    assert board.pop_at(-1) == (b"c", float("inf"))
    assert board.pop_at(1) == (b"a", 1)
    assert board.discard_ranks(0, 1) == 1
    assert list(board.items()) == [(b"b", 1)]
    db[b"text"] = b"x"
    for wrong in (
        lambda: db.sorted_set(b"text").rank(b"a"),
        lambda: db.sorted_set(b"text").at(0),
        lambda: db.sorted_set(b"text").count(),
        lambda: db.sorted_set(b"text").ranks(),
        lambda: db.sorted_set(b"text").pop_at(0),
    ):
        with pytest.raises(everwrite.errors.WrongTypeError):
            wrong()


class RankMachine(RuleBasedStateMachine):
    """Two stores that write one sorted set and one sequence, and tell each other now and then."""

    @initialize(size=st.sampled_from([100, 300, 900]))
    def begin(self, size: int) -> None:
        self.now_ms = START_MS
        self.disks = [MemoryFiles(), MemoryFiles()]
        self.stores = [self.open(number) for number in range(2)]
        fill(self.stores[0], range(size))
        self.stores[0].sequence(ITEMS).extend([b"%d" % number for number in range(size)])
        self.exchange()

    def open(self, number: int) -> Database:
        return open_on(self.disks[number], number + 1, memtable_bytes=1 << 14, now_ms=self.now_ms)

    @rule(seed=st.integers(0, 1 << 32), number=st.integers(0, 1), count=st.sampled_from([1, 30, 400]))
    def write(self, seed: int, number: int, count: int) -> None:
        db, random = self.stores[number], Random(seed)
        board, items = db.sorted_set(BOARD), db.sequence(ITEMS)
        if db.kind(BOARD) == "string":
            db.delete(BOARD)
        first, upto = random.randrange(1200), random.choice((10, 1000))
        for each in range(first, first + count):
            board.add(member(each), float(random.randrange(upto)))
            items.insert(random.randrange(len(items) + 1), b"%d" % each)
        db.maintain()

    @rule(seed=st.integers(0, 1 << 32), number=st.integers(0, 1), count=st.sampled_from([1, 30, 400]))
    def remove(self, seed: int, number: int, count: int) -> None:
        db, random = self.stores[number], Random(seed)
        board, items = db.sorted_set(BOARD), db.sequence(ITEMS)
        if db.kind(BOARD) == "string":
            db.delete(BOARD)
        size = len(board)
        start = random.randrange(size + 1)
        order = list(board)
        assert board.discard_ranks(start, start + count) == len(order[start : start + count])
        assert list(board) == order[:start] + order[start + count :]
        for _ in range(min(count, len(items))):
            items.pop(random.randrange(len(items)))
        db.maintain()

    @rule(number=st.integers(0, 1), amount=st.integers(-500, 500))
    def change_scores(self, number: int, amount: int) -> None:
        db = self.stores[number]
        board = db.sorted_set(BOARD)
        if db.kind(BOARD) == "sorted set":
            for name, _ in board.ranks(step=7):
                board.increment(name, amount)

    @rule(number=st.integers(0, 1), seed=st.integers(0, 1 << 32))
    def batch_that_fails(self, number: int, seed: int) -> None:
        db, random = self.stores[number], Random(seed)
        if db.kind(BOARD) == "string":
            return
        batch = db.batch()
        batch.sorted_set(BOARD).update({member(random.randrange(1500)): 3.5 for _ in range(300)})
        batch.sequence(ITEMS).insert_all(random.randrange(2000), [b"undone"] * 300)
        batch.sorted_set(BOARD).discard_ranks(10, 200)
        del batch[b"absent"]
        with pytest.raises(KeyError), batch:
            pass

    @rule(number=st.integers(0, 1), what=st.sampled_from(["clear", "text", "expire"]))
    def end(self, number: int, what: str) -> None:
        db = self.stores[number]
        if what == "clear":
            db.delete(BOARD)
            db.delete(ITEMS)
        elif what == "text":
            db[BOARD] = b"text"
        elif db.kind(BOARD) != "none":
            db.expire(BOARD, 1)
            self.now_ms += 2000
            for store in self.stores:
                store.set_time(self.now_ms)
            db.reap_expired()

    @rule()
    def exchange(self) -> None:
        for receiver, sender in permutations(self.stores, 2):
            for batch in sender.changes(receiver.applied):
                receiver.apply(batch)
        self.agree()

    @rule()
    def sync_by_states(self) -> None:
        for receiver, sender in permutations(self.stores, 2):
            for batch in sender.resync_batches({}):
                receiver.apply(batch)
        self.agree()

    def agree(self) -> None:
        one, other = self.stores
        assert one.digest() == other.digest()
        assert list(one.sequence(ITEMS).items()) == list(other.sequence(ITEMS).items())

    @rule(number=st.integers(0, 1), crash=st.booleans())
    def reopen(self, number: int, crash: bool) -> None:
        if crash:
            self.stores[number].commit_log()
            self.disks[number].crash("all")
        else:
            self.stores[number].close()
        self.stores[number] = self.open(number)

    @rule(number=st.integers(0, 1))
    def compact(self, number: int) -> None:
        self.stores[number].compact(keep_log=True)

    @rule(number=st.integers(0, 1), seed=st.integers(0, 1 << 32))
    def ask(self, number: int, seed: int) -> None:
        db = self.stores[number]
        if db.kind(BOARD) != "string":
            check_board(db.sorted_set(BOARD), Random(seed))
        check_items(db.sequence(ITEMS), Random(seed))

    @invariant()
    def every_entry_is_right(self) -> None:
        for db in getattr(self, "stores", ()):
            report = db.verify()
            assert report.ok, str(report)

    def teardown(self) -> None:
        with ExitStack() as stack:
            for db in getattr(self, "stores", ()):
                stack.callback(db.close)


def test_every_way_to_change_the_order_keeps_it() -> None:
    run_state_machine_as_test(RankMachine, settings=settings(max_examples=12, stateful_step_count=15, deadline=None))


@pytest.mark.slow
def test_every_way_to_change_the_order_keeps_it_in_many_runs() -> None:
    run_state_machine_as_test(RankMachine, settings=settings(max_examples=150, stateful_step_count=30, deadline=None))
