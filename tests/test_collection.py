"""Collection by causal stability: what goes, what must stay, and who may come back."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite import Database, LogCutError, Stability
from everwrite.memory_files import MemoryFiles
from everwrite.reconcile import Initiator, Responder
from everwrite.stability import InStreamReport, decode_report, encode_report, stable_horizon
from tests.reference.vocabulary import Request, Verb
from tests.reference.workload import make_request
from tests.simulation.engine_store import EngineStore

START_MS = 1_700_000_000_000

Fill = Callable[[Database, bytes], object]
Exchange = Callable[[Database, Database], object]


def open_store(store_id: int, files: MemoryFiles | None = None, **options: int) -> Database:
    return everwrite.open(
        "/data", "os", files=files or MemoryFiles(), background=False, store_id=store_id, now_ms=START_MS, **options
    )


def at(seconds: int, *stores: Database) -> None:
    """Let all clocks show so many seconds after the start."""
    for store in stores:
        store.set_time(START_MS + 1000 * seconds)


def collected(*stores: Database) -> list[Stability]:
    """What each says after it has collected with all as members and merged its tables."""
    found = [store.collect([each.store_id for each in stores]) for store in stores]
    for store in stores:
        store.compact()
    return found


def by_changes(one: Database, other: Database) -> None:
    for sender, receiver in ((one, other), (other, one), (one, other)):
        for batch in sender.changes(receiver.applied):
            receiver.apply(batch)


def by_descent(one: Database, other: Database) -> None:
    asking, answering = Initiator(one), Responder(other)
    message: bytes | None = asking.start()
    while message is not None:
        message = asking.receive(answering.receive(message))


def by_descent_from_afar(one: Database, other: Database) -> None:
    by_descent(other, one)


EXCHANGES = [everwrite.sync, by_changes, by_descent, by_descent_from_afar]

# Each kind of key with something in it that can go without a trace.
FILLS: dict[str, Fill] = {
    "string": lambda db, key: db.__setitem__(key, b"v" * 100),
    "set": lambda db, key: db.set(key).add(b"a", b"b"),
    "map": lambda db, key: db.map(key).set({b"f": b"1"}),
    "multi": lambda db, key: db.multi(key).set(b"v"),
    "flag": lambda db, key: db.flag(key).enable(),
    "max": lambda db, key: db.max(key).update(3),
    "hyperloglog": lambda db, key: db.hyperloglog(key).add(b"x"),
    "sorted set": lambda db, key: db.sorted_set(key).add(b"m", 1.0),
    "sequence": lambda db, key: db.sequence(key).append(b"i"),
}
EMPTIES: dict[str, Fill] = {
    "set": lambda db, key: db.set(key).remove(b"a") or db.set(key).remove(b"b"),
    "map": lambda db, key: db.map(key).__delitem__(b"f"),
    "flag": lambda db, key: db.flag(key).disable(),
}


def fill_all(db: Database, prefix: bytes) -> list[bytes]:
    keys = [prefix + name.encode() for name in FILLS]
    for key, fill in zip(keys, FILLS.values(), strict=True):
        fill(db, key)
    return keys


def delete_all(db: Database, keys: list[bytes]) -> None:
    for key in keys:
        db.set(key).clear()  # deletes a key of any kind


# ---- what goes ----


def test_a_store_of_deleted_keys_takes_no_room() -> None:
    with open_store(1) as db:
        for number in range(3000):
            db[b"k%d" % number] = b"v" * 100
            fill_all(db, b"%d/" % number) if number < 100 else None
        db.compact()
        full = db.stats()["table_bytes"]
        for number in range(3000):
            del db[b"k%d" % number]
            delete_all(db, [b"%d/%s" % (number, name.encode()) for name in FILLS]) if number < 100 else None
        db.compact()
        assert db.key_count() == 0
        assert db.stats()["table_entries"] >= 3900  # tombstones and contexts
        assert db.collect() == Stability(db.applied_dict())
        db.compact()
        assert db.stats()["table_entries"] == 0
        assert db.stats()["table_bytes"] * 1000 < full
        assert db.verify().ok


@pytest.mark.parametrize("kind", EMPTIES)
def test_what_was_emptied_goes_as_what_was_deleted(kind: str) -> None:
    with open_store(1) as db:
        FILLS[kind](db, b"k")
        EMPTIES[kind](db, b"k")
        assert db.kind(b"k") == "none"
        collected(db)
        assert db.stats()["table_entries"] == 0


def test_expired_keys_that_were_removed_go() -> None:
    with open_store(1) as db:
        for number in range(10):
            db.put(b"k%d" % number, b"v", ttl=5)
            db.set(b"s%d" % number).add(b"e")
            db.expire(b"s%d" % number, 5)
        at(10, db)
        db.reap_expired()
        collected(db)
        assert db.stats()["table_entries"] == 0


def test_counters_keep_their_floors() -> None:
    with open_store(1) as db:
        db.counter(b"c").increment(5)
        db.map(b"m").increment(b"f", 5)
        db.sorted_set(b"z").increment(b"m", 5.0)
        for key in (b"c", b"m", b"z"):
            db.set(key).clear()
        collected(db)
        assert db.stats()["table_entries"] == 5
        assert db.counter(b"c").increment(2) == 2
        assert db.map(b"m").increment(b"f", 2) == 2
        assert db.verify().ok


def test_an_index_of_ranks_goes_with_its_elements() -> None:
    with open_store(1) as db:
        db.sorted_set(b"z").update({b"%d" % number: float(number) for number in range(3000)})
        db.sequence(b"q").extend([b"%d" % number for number in range(3000)])
        assert db.sorted_set(b"z").rank(b"2000") == 2000
        assert db.sequence(b"q")[2000] == b"2000"
        assert db.statistics()["rank_indexes_made"] == 2
        db.sorted_set(b"z").clear()
        while db.sequence(b"q"):
            db.sequence(b"q").pop()
        collected(db)
        assert db.stats()["table_entries"] == 0


def test_what_is_alive_or_not_yet_stable_stays() -> None:
    one, two = open_store(1), open_store(2)
    keys = fill_all(one, b"")
    everwrite.sync(one, two)
    delete_all(one, keys[:4])
    assert one.collect([2]).behind_ms == {2: 0}
    one.compact()
    assert one.stats()["table_entries"] >= len(keys)
    everwrite.sync(one, two)
    collected(one, two)
    assert one.digest() == two.digest()
    assert [one.kind(key) for key in keys] == ["none"] * 4 + list(FILLS)[4:]
    assert [two.kind(key) for key in keys] == ["none"] * 4 + list(FILLS)[4:]
    assert one.verify().ok
    assert two.verify().ok


def test_a_key_may_be_written_again() -> None:
    one, two = open_store(1), open_store(2)
    keys = fill_all(one, b"")
    delete_all(one, keys)
    everwrite.sync(one, two)
    collected(one)  # two members are needed: nothing goes
    one.collect([2])
    one.compact()
    assert one.stats()["table_entries"] == 2  # the reports
    # One has forgotten what the other remembers.
    for writer, reader in ((one, two), (two, one)):
        fill_all(writer, b"")
        by_changes(writer, reader)
        assert [reader.kind(key) for key in keys] == list(FILLS)
        assert one.digest() == two.digest()
        delete_all(writer, keys)
        by_changes(writer, reader)
        assert reader.key_count() == 0


# ---- how the horizon lasts ----


def test_the_horizon_survives_a_kill_and_never_goes_back() -> None:
    files = MemoryFiles()
    db = open_store(1, files)
    db[b"k"] = b"v"
    db[b"gone"] = b"v"
    del db[b"gone"]
    horizon = db.collect().horizon
    assert db.horizon == horizon == {db.origin: db.newest_timestamp}
    db.raise_horizon({db.origin: 1})
    files.crash()
    with open_store(1, files) as db:
        assert db.horizon == horizon
        assert dict(db) == {b"k": b"v"}
        db.compact()
    with open_store(1, files) as db:
        assert db.horizon == horizon
        assert dict(db) == {b"k": b"v"}


@pytest.mark.parametrize("flushed", [False, True])
def test_what_the_log_holds_before_the_horizon_is_replayed(flushed: bool) -> None:
    files = MemoryFiles()
    db = open_store(1, files)
    keys = fill_all(db, b"")
    if flushed:
        db.compact(keep_log=True)
    db.collect()
    fill_all(db, b"later/")
    db.commit()
    files.crash("all")
    with open_store(1, files) as db:
        assert [db.kind(key) for key in keys] == list(FILLS)
        assert db.key_count() == 2 * len(FILLS)
        assert db.verify().ok


def test_a_backup_carries_the_horizon(tmp_path) -> None:
    with everwrite.open(tmp_path / "store", "os") as db:
        db[b"k"] = b"v"
        horizon = db.collect().horizon
        db.backup(tmp_path / "backup")
    everwrite.restore(tmp_path / "backup", tmp_path / "restored")
    with everwrite.open(tmp_path / "restored", "os") as db:
        assert db.horizon == horizon
        assert dict(db) == {b"k": b"v"}


# ---- who comes back ----


def test_the_log_is_not_for_whom_the_horizon_has_passed() -> None:
    one, two = open_store(1), open_store(2)
    one[b"k"] = b"v"
    since = dict(one.applied)
    one[b"gone"] = b"v"
    del one[b"gone"]
    stream = one.open_stream(since)
    one.collect()
    with pytest.raises(LogCutError, match="horizon"):
        one.open_stream(since)
    with pytest.raises(LogCutError, match="horizon"):
        one.open_stream({})
    one[b"new"] = b"v"
    assert stream.next_batch() is not None  # it was there before, and gets all of the log
    for batch in one.changes(two.applied):
        two.apply(batch)
    assert dict(two) == {b"k": b"v", b"new": b"v"}
    assert two.stats()["resyncs"] == 1
    assert two.horizon == one.horizon
    assert one.open_stream(two.applied).next_batch() is None


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_an_old_backup_resurrects_nothing_and_keeps_what_only_it_wrote(exchange: Exchange) -> None:
    one, old = open_store(1), open_store(2)
    gone, stays = fill_all(one, b"gone/"), fill_all(one, b"stays/")
    everwrite.sync(one, old)
    # From here on `old` is away, and isn't a member.
    at(1, one, old)
    mine = fill_all(old, b"mine/")
    old.set(b"gone/set").add(b"c")
    old.map(b"stays/map")[b"g"] = b"2"
    at(2, one, old)
    delete_all(one, gone)
    one.set(b"stays/set").remove(b"a")
    collected(one)
    assert one.stats()["table_entries"] < 30
    exchange(one, old)
    assert [one.kind(key) for key in mine] == [old.kind(key) for key in mine] == list(FILLS)
    assert [one.kind(key) for key in stays] == [old.kind(key) for key in stays] == list(FILLS)
    for store in (one, old):
        assert [key for key in gone if store.kind(key) != "none"] == [b"gone/set"]
        assert list(store.set(b"gone/set")) == [b"c"]
        assert list(store.set(b"stays/set")) == [b"b"]
        assert dict(store.map(b"stays/map")) == {b"f": b"1", b"g": b"2"}
        assert store.verify().ok
    assert one.digest() == old.digest()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_stores_that_took_a_late_write_differently_agree_when_they_meet(exchange: Exchange) -> None:
    one, two, late = open_store(1), open_store(2), open_store(3)
    one[b"k"] = b"old"
    everwrite.sync(one, two)
    everwrite.sync(one, late)
    at(1, one, two, late)
    late[b"k"] = b"late"  # before the delete, by the clock, and unseen by it
    at(2, one, two, late)
    del one[b"k"]
    everwrite.sync(one, two)
    one.collect([2])
    one.compact()
    for store in (one, two):
        for batch in late.changes(store.applied):
            store.apply(batch)
    assert (one.get(b"k"), two.get(b"k")) == (b"late", None)
    exchange(one, two)
    if exchange is by_changes:
        by_descent(one, two)
    assert one.digest() == two.digest()
    assert one.get(b"k") is two.get(b"k") is None


def test_an_old_deadline_does_not_come_back() -> None:
    one, old = open_store(1), open_store(2)
    one.set(b"k").add(b"a")
    one.expire(b"k", 100)
    everwrite.sync(one, old)
    at(1, one, old)
    one.set(b"k").clear()
    collected(one)
    one.set(b"k").add(b"b")
    everwrite.sync(one, old)
    for store in (one, old):
        assert store.ttl(b"k") is None
        assert list(store.set(b"k")) == [b"b"]
    assert one.digest() == old.digest()


# ---- reports ----


def test_a_pair_collects_after_it_has_met() -> None:
    one, two = open_store(1), open_store(2)
    assert one.collect([2]) == Stability({}, (2,), {})
    one[b"k"] = b"v"
    del one[b"k"]
    everwrite.sync(one, two)
    for each in collected(one, two):
        assert each.silent == ()
        assert each.horizon[one.origin] > 0
    assert [store.stats()["table_entries"] for store in (one, two)] == [2, 2]  # the reports
    everwrite.sync(one, two)  # now each has said that it knows of the other
    before = one.applied, two.applied
    everwrite.sync(one, two)
    assert (one.applied, two.applied) == before, "idle stores answer each other's reports"


def test_a_report_counts_only_in_its_stream() -> None:
    one = open_store(1)
    seen = InStreamReport(2 << 16 | 1, 500, {1 << 16 | 1: 70, 2 << 16 | 1: 400})
    applied = {1 << 16 | 1: 90, 2 << 16 | 1: 499}
    assert stable_horizon(one.origin, applied, [2], {2: seen}).silent == (2,)
    applied[2 << 16 | 1] = 500
    assert stable_horizon(one.origin, applied, [2], {2: seen}).horizon == {1 << 16 | 1: 70, 2 << 16 | 1: 400}
    forged = seen._replace(origin=3 << 16 | 1)
    assert stable_horizon(one.origin, applied | {3 << 16 | 1: 900}, [2], {2: forged}).silent == (2,)


def test_earlier_incarnations_are_settled_first() -> None:
    own, old, new, third = 1 << 16 | 1, 2 << 16 | 1, 2 << 16 | 2, 3 << 16 | 1
    applied = {own: 90, old: 50, new: 60, third: 60}
    reports = {
        2: InStreamReport(new, 60, {own: 80, old: 40, new: 55}),
        3: InStreamReport(third, 60, {own: 80, old: 50, third: 50}),
    }
    # The third may hold, or get, more of the old incarnation than it has said.
    assert stable_horizon(own, applied, [2, 3], reports).silent == (2,)
    reports[3] = InStreamReport(third, 60, {own: 80, old: 51, new: 55, third: 50})
    assert stable_horizon(own, applied, [2, 3], reports).silent == (2,)
    applied[old] = 51
    assert stable_horizon(own, applied, [2, 3], reports).horizon == {own: 80, old: 40, new: 55}


def test_what_is_no_report_is_passed_over() -> None:
    for value in (b"", b"\xc1", b"\x90", b"\x81\xa7applied\x01", encode_report({1: 2})[:-1]):
        assert decode_report(value) is None
    assert decode_report(encode_report({1: 2})) == {1: 2}
    with open_store(1) as db:
        db.system_set(b"report/000000000002", b"nonsense")
        assert db.collect([2]).silent == (2,)


# ---- with and without ----

STORES = (1, 2, 3)
KEYS = (b"k", b"q")
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["write"] * 5 + ["delete"] * 2 + ["meet"] * 4 + ["collect"] * 3 + ["kill", "join"]),
        st.integers(0, 2**16),
    ),
    max_size=60,
)


class Cluster:
    """Three stores; with `collects`, they collect."""

    def __init__(self, *, collects: bool) -> None:
        self.collects = collects
        self.files = [MemoryFiles() for _ in STORES]
        self.stores = [self.open(index) for index in range(len(STORES))]

    def open(self, index: int, now_ms: int = START_MS) -> EngineStore:
        return EngineStore(
            everwrite.open(
                "/data",
                files=self.files[index],
                background=False,
                store_id=STORES[index],
                now_ms=now_ms,
                memtable_bytes=4 << 10,
            )
        )

    def step(self, index: int, what: str, detail: int, now_ms: int) -> None:
        for store in self.stores:
            store.set_time(now_ms)
        store, random = self.stores[index], Random(detail)
        other = random.choice([each for each in self.stores if each is not store])
        key = random.choice(KEYS)
        match what:
            case "write":
                reading = store.reading(key)
                store.execute(make_request(random, key, now_ms, reading[0] if reading else None))
            case "delete":
                store.execute(Request(Verb.DELETE, key))
            case "meet":
                for sender, receiver in ((store, other), (other, store)):
                    sender.database.report()
                    by_changes(sender.database, receiver.database)
            case "collect":
                store.database.collect(STORES) if self.collects else None
                store.database.compact(keep_log=detail % 2 == 0)
            case "kill":
                self.files[index].crash()
                self.stores[index] = self.open(index, now_ms)
            case "join":
                store.reconcile(other)

    def readings(self) -> list[object]:
        return [store.reading(key) for store in self.stores for key in KEYS]


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_stores_that_collect_show_what_others_show(steps: list[tuple[int, str, int]]) -> None:
    with_, without = Cluster(collects=True), Cluster(collects=False)
    now_ms = START_MS
    for step in steps:
        now_ms += 10
        for cluster in (with_, without):
            cluster.step(*step, now_ms)
        assert with_.readings() == without.readings()
    for round_ in range(2):
        for index in range(3):
            for cluster in (with_, without):
                cluster.step(index, "meet", round_, now_ms)
                cluster.step(index, "meet", round_ + 7, now_ms)
    assert with_.readings() == without.readings()
    for cluster in (with_, without):
        assert all(store.database.verify().ok for store in cluster.stores)


def one_way(sender: Database, receiver: Database) -> None:
    for batch in sender.changes(receiver.applied):
        receiver.apply(batch)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_members_and_a_store_that_is_none_agree_in_the_end(first: int) -> None:
    for seed in range(first, first + 50):
        random = Random(seed)
        stores = [EngineStore(open_store(number, memtable_bytes=4 << 10)) for number in STORES]
        members = stores[:2]
        now_ms = START_MS
        for _ in range(random.randrange(20, 80)):
            now_ms += 10
            for store in stores:
                store.set_time(now_ms)
            one, other = random.sample(stores, 2)
            what = random.random()
            if what < 0.5:
                key = random.choice(KEYS)
                reading = one.reading(key)
                request = make_request(random, key, now_ms, reading[0] if reading else None)
                one.execute(request if random.random() < 0.6 else Request(Verb.DELETE, key))
            elif what < 0.65:
                everwrite.sync(*(store.database for store in random.sample(members, 2)))
            elif what < 0.75:
                one_way(one.database, other.database)
            elif what < 0.8:
                random.choice(EXCHANGES)(one.database, other.database)
            else:
                member = random.choice(members)
                member.collect(STORES[:2], merge_tables=random.random() < 0.7)
        for _ in range(3):
            for one, other in ((stores[0], stores[1]), (stores[1], stores[2]), (stores[0], stores[2])):
                by_changes(one.database, other.database)
                by_descent(one.database, other.database)
        assert len({store.digest() for store in stores}) == 1, f"seed {seed}: the stores differ"
        for key in KEYS:
            shown = [store.reading(key) for store in stores]
            assert shown[0] == shown[1] == shown[2], f"seed {seed}: {key!r} shows {shown}"
        assert all(store.database.verify().ok for store in stores), f"seed {seed}"
