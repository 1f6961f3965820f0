"""The embedded store through its public API: types, recovery, identity, and merging by bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys

import pytest

import everwrite
from everwrite.memory_files import MemoryFiles


@pytest.fixture
def db(tmp_path):
    with everwrite.open(tmp_path / "db") as opened:
        yield opened


@pytest.fixture
def pair(tmp_path):
    with everwrite.open(tmp_path / "a") as a, everwrite.open(tmp_path / "b") as b:
        yield a, b


def sync(*stores):
    """Exchange until everybody holds everything."""
    for _ in range(2):
        for source in stores:
            for target in stores:
                if source is not target:
                    for batch in source.changes(target.applied):
                        target.apply(batch)


def contents(db):
    """All that a user can see of a store."""
    return {
        key: {
            "string": lambda key=key: db[key],
            "set": lambda key=key: set(db.set(key)),
            "map": lambda key=key: dict(db.map(key).items()),
        }[kind]()
        for key, kind in db._keys(b"")
    }


def test_a_mapping_of_bytes(db):
    db[b"k"] = b"v"
    assert db[b"k"] == b"v"
    assert b"k" in db
    assert db.get(b"none") is None
    db.update({b"l": b"", b"m": b"3"})
    assert dict(db) == {b"k": b"v", b"l": b"", b"m": b"3"}
    assert len(db) == 3
    assert db.pop(b"m") == b"3"
    del db[b"k"]
    with pytest.raises(KeyError):
        db[b"k"]
    with pytest.raises(KeyError):
        del db[b"k"]
    with pytest.raises(TypeError, match="str"):
        db["k"] = b"v"


def test_scan_is_ordered_and_by_prefix(db):
    keys = [f"p{i:04}".encode() for i in range(2500)] + [b"a", b"q"]
    for key in random.Random(1).sample(keys, len(keys)):
        db[key] = key
    db.set(b"p-set").add(b"x")
    assert [key for key, _ in db.scan(b"p")] == sorted(key for key in keys if key.startswith(b"p"))
    assert list(db) == sorted(keys)


def test_counters_add_to_registers(db):
    counter = db.counter(b"c")
    assert counter.value == 0
    assert counter.increment() == 1
    assert counter.decrement(5) == -4
    assert db[b"c"] == b"-4"
    db[b"c"] = b"10"
    assert counter.increment(5) == 15
    counter.reset()
    assert counter.value == 0
    assert b"c" not in db
    db[b"text"] = b"abc"
    with pytest.raises(everwrite.NotAnIntegerError):
        db.counter(b"text").increment()
    db[b"max"] = str(2**63 - 1).encode()
    with pytest.raises(everwrite.OverflowError):
        db.counter(b"max").increment()
    with pytest.raises(everwrite.OverflowError):
        counter.increment(2**63)
    assert db[b"max"] == str(2**63 - 1).encode()


def test_sets_and_maps(db):
    tags = db.set(b"s")
    tags.add(b"b", b"a", b"a")
    assert list(tags) == [b"a", b"b"]
    assert len(tags) == 2
    tags.discard(b"a", b"none")
    assert b"a" not in tags
    assert b"b" in tags
    with pytest.raises(KeyError):
        tags.remove(b"a")
    tags.discard(b"b")
    assert db.kind(b"s") == "none"
    fields = db.map(b"m")
    fields[b"f"] = b"1"
    assert fields.increment(b"f", 4) == 5
    assert fields.increment(b"g", -2) == -2
    fields.set({b"f": b"x", b"h": b"y"})
    assert dict(fields.items()) == {b"f": b"x", b"g": b"-2", b"h": b"y"}
    assert len(fields) == 3
    with pytest.raises(everwrite.NotAnIntegerError):
        fields.increment(b"f")
    del fields[b"g"]
    assert b"g" not in fields
    assert fields.increment(b"g", 3) == 3
    for wrong in (lambda: db[b"m"], lambda: db.set(b"m").add(b"x"), lambda: db.counter(b"m").increment()):
        with pytest.raises(everwrite.WrongTypeError):
            wrong()
    db[b"m"] = b"register"
    assert len(fields.key) == 1
    assert db[b"m"] == b"register"
    assert db.key_count() == 1


def test_concurrent_updates_merge(pair):
    a, b = pair
    a.counter(b"n").increment(5)
    a.set(b"s").add(b"x")
    a.map(b"m")[b"f"] = b"a"
    sync(a, b)
    b.counter(b"n").increment(2)
    a.counter(b"n").reset()
    b.set(b"s").add(b"x")
    a.set(b"s").discard(b"x")
    a.map(b"m").increment(b"n", 1)
    b.map(b"m").increment(b"n", 2)
    a[b"r"] = b"from a"
    b[b"r"] = b"from b"
    winner, loser = (a, b) if (a.last_timestamp, a.origin) > (b.last_timestamp, b.origin) else (b, a)
    sync(a, b)
    for db in pair:
        assert contents(db) == {
            b"n": b"2",
            b"s": {b"x"},
            b"m": {b"f": b"a", b"n": b"3"},
            b"r": b"from a" if winner is a else b"from b",
        }
        reason = db.why(b"r")
        assert reason["visible"]["origin"] == winner.origin
        assert [lost["origin"] for lost in reason["lost"]] == [loser.origin]
        assert reason["rule"].startswith("lww: concurrent writes met")
    assert a.why(b"r")["context"] == b.why(b"r")["context"]


def test_a_key_of_two_types_shows_the_newest_and_a_delete_takes_both(pair):
    a, b = pair
    a[b"k"] = b"text"
    b.set_time(b.now_ms() + 100)
    b.set(b"k").add(b"x")
    sync(a, b)
    assert a.kind(b"k") == b.kind(b"k") == "set"
    assert "clash" in a.why(b"k")["rule"]
    assert a.statistics()["conflicts_type"] == 1
    a.set(b"k").discard(b"x")
    sync(a, b)
    assert a.kind(b"k") == b.kind(b"k") == "none"
    b[b"k"] = b"again"
    a.map(b"k")[b"f"] = b"v"
    sync(a, b)
    a.delete(b"k")
    sync(a, b)
    assert a.kind(b"k") == b.kind(b"k") == "none"
    assert a.key_count() == b.key_count() == 0


def test_expiry_is_the_same_everywhere(tmp_path):
    now = 1_800_000_000_000
    stores = [everwrite.open(tmp_path / name, background=False, now_ms=now, durability="os") for name in ("a", "b")]
    a, b = stores
    a.put(b"k", b"v", ttl=10)
    a.counter(b"n").increment(3)
    everwrite.database.access.expire_at(a, b"n", now + 10_000)
    sync(a, b)
    b.counter(b"n").increment(4)
    for db in stores:
        db.set_time(now + 9_999)
    assert b[b"k"] == b"v"
    sync(a, b)
    assert a[b"n"] == b"7"
    for db in stores:
        db.set_time(now + 10_000)
        assert b"k" not in db
        assert b"n" not in db
    assert b.counter(b"n").increment(1) == 1
    b[b"k"] = b"new"
    assert a.reap_expired() == 2
    sync(a, b)
    for db in stores:
        assert contents(db) == {b"k": b"new", b"n": b"1"}
        assert db.key_count() == 2
        db.close()


def test_batches_late_twice_and_out_of_order(pair, tmp_path):
    a, b = pair
    batches = []
    for i in range(30):
        since = a.applied
        a.counter(b"n").increment()
        a.set(b"s").add(b"%d" % i)
        batches += a.changes(since)
    with pytest.raises(everwrite.GapError) as caught:
        b.apply(batches[1])
    assert caught.value.origin == a.origin
    assert (caught.value.held, caught.value.required) == (
        0,
        max(b.applied.values(), default=0) or caught.value.required,
    )
    assert contents(b) == {}
    for batch in batches:
        b.apply(batch)
        b.apply(batches[0])
    random.Random(3).shuffle(batches)
    for batch in batches:
        b.apply(batch)
    assert contents(b) == contents(a)
    assert b.applied == a.applied


def test_malformed_batches_are_refused_whole(pair):
    a, b = pair
    a[b"k"] = b"v"
    a.set(b"s").add(b"x")
    (batch,) = a.changes({})
    for cut in range(len(batch)):
        with pytest.raises(everwrite.EverwriteError):
            b.apply(batch[:cut])
    generator = random.Random(5)
    for _ in range(2000):
        damaged = bytearray(batch)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            everwrite.batch.decode_batch(bytes(damaged))
        except everwrite.EverwriteError:
            with pytest.raises(everwrite.EverwriteError):
                b.apply(bytes(damaged))
    b[b"alive"] = b"yes"
    assert b[b"alive"] == b"yes"


def test_a_clock_too_far_ahead_is_refused(tmp_path):
    now = 1_800_000_000_000
    with (
        everwrite.open(tmp_path / "a", background=False, now_ms=now + 501) as ahead,
        everwrite.open(tmp_path / "b", background=False, now_ms=now) as db,
    ):
        ahead[b"k"] = b"v"
        (batch,) = ahead.changes({})
        with pytest.raises(everwrite.ClockDriftError, match="501 ms ahead"):
            db.apply(batch)
        assert not db.applied
        db.set_time(now + 1)
        db.apply(batch)
        db[b"k"] = b"later"
        assert db.last_timestamp > ahead.last_timestamp


def test_reopened_after_a_clean_close(tmp_path):
    with everwrite.open(tmp_path) as db:
        db[b"k"] = b"v"
        db.set(b"s").add(b"x")
        origin, applied = db.origin, dict(db.applied)
    with everwrite.open(tmp_path) as db:
        assert db.origin == origin
        assert dict(db.applied) == applied
        assert contents(db) == {b"k": b"v", b"s": {b"x"}}
        db[b"k"] = b"w"
        assert db.last_timestamp > max(applied.values())


def test_a_kill_begins_a_new_incarnation_and_loses_nothing(tmp_path):
    code = (
        "import everwrite, os, signal, sys\n"
        f"db = everwrite.open({str(tmp_path)!r})\n"
        "for i in range(100): db[b'%d' % i] = b'v'\n"
        "print(db.origin, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    origins = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == -9, done.stderr
        origins.append(int(done.stdout))
    assert origins[1] == origins[0] + 1
    with everwrite.open(tmp_path) as db:
        assert db.origin == origins[1] + 1
        assert len(db) == 100


def test_a_copied_directory_is_another_store(tmp_path):
    with everwrite.open(tmp_path / "a") as db:
        db[b"k"] = b"v"
        origin = db.origin
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with everwrite.open(tmp_path / "a") as a, everwrite.open(tmp_path / "b") as b:
        assert a.origin == origin
        assert b.origin >> 16 != origin >> 16
        a[b"k"] = b"from a"
        b[b"l"] = b"from b"
        sync(a, b)
        assert contents(a) == contents(b) == {b"k": b"from a", b"l": b"from b"}


def test_a_second_opener_is_told_who_holds_it(tmp_path):
    with everwrite.open(tmp_path), pytest.raises(everwrite.LockedError, match=r"\d+"):
        everwrite.open(tmp_path)
    with everwrite.open(tmp_path) as db:
        pass
    db.close()
    with pytest.raises(everwrite.ClosedError):
        db[b"k"]
    with pytest.raises(everwrite.ClosedError):
        db[b"k"] = b"v"


def test_wrong_settings(tmp_path):
    with pytest.raises(everwrite.ConfigError, match=r"durability is 'sometimes'.*always, interval, os"):
        everwrite.open(tmp_path, durability="sometimes")
    with pytest.raises(everwrite.StorageError, match="no store here"):
        everwrite.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_limits(db):
    with pytest.raises(everwrite.TooLargeError):
        db[b"k" * 65_537] = b""
    db[b"k" * 65_536] = b"longest key"
    db.set(b"s" * 65_536).add(b"e" * 65_536)
    assert db[b"k" * 65_536] == b"longest key"
    assert list(db.set(b"s" * 65_536)) == [b"e" * 65_536]
    with pytest.raises(everwrite.TooLargeError):
        db[b"v"] = bytes((64 << 20) + 1)
    db[b"v"] = bytes(64 << 20)
    assert len(db[b"v"]) == 64 << 20


def small_log() -> tuple[list[dict], dict[str, bytes]]:
    """A store killed after a few writes: the contents after each of them, and its files."""
    files = MemoryFiles()
    db = everwrite.open("/db", files=files, background=False)
    states = [contents(db)]
    for step in (
        lambda: db.put(b"a", b"1"),
        lambda: db.counter(b"a").increment(2),
        lambda: db.set(b"s").add(b"x", b"y"),
        lambda: db.set(b"s").discard(b"x"),
        lambda: db.map(b"m").increment(b"f", 3),
        lambda: db.delete(b"a"),
        lambda: db.put(b"b", b"last"),
    ):
        step()
        states.append(contents(db))
    (segment,) = files.listdir("/db/wal")
    names = ["/db/IDENTITY", f"/db/wal/{segment}"]
    saved = {name: bytes(files.read_file(name)) for name in names}
    db.close()
    return states, saved


def opened(files: MemoryFiles) -> tuple[dict, everwrite.CorruptionError | None]:
    """What the store in `files` holds, or why it doesn't open."""
    try:
        with everwrite.open("/db", files=files, background=False) as db:
            return contents(db), None
    except everwrite.CorruptionError as error:
        return {}, error


@pytest.mark.parametrize("damage", ["cut", "flip", "zero"])
def test_a_log_damaged_at_any_byte_opens_to_a_prefix_or_is_refused(damage):
    states, saved = small_log()
    segment = next(name for name in saved if "/wal/" in name)
    whole = saved[segment].rstrip(b"\0")
    prefixes = set()
    refused = 0
    for at in range(len(whole)):
        data = bytearray(whole)
        if damage == "cut":
            data = data[:at]
        else:
            data[at] = 0 if damage == "zero" else data[at] ^ 0x41
            if data == whole:
                continue
        files = MemoryFiles()
        files.mkdir("/db")
        files.mkdir("/db/wal")
        for name, content in (saved | {segment: bytes(data)}).items():
            with files.open_file(name, "fresh") as file:
                file.write(0, content)
        found, complaint = opened(files)
        if complaint is None:
            assert found in states
            prefixes.add(states.index(found))
        else:
            assert segment in str(complaint)
            assert f"offset {complaint.offset}" in str(complaint)
            refused += 1
    if damage == "cut":
        assert prefixes == set(range(len(states) - 1))
    else:
        assert refused
        assert prefixes == {len(states) - 2}


def test_a_failed_sync_stops_the_store_for_good(tmp_path):
    files = MemoryFiles()
    db = everwrite.open("/db", files=files, background=False)
    db[b"k"] = b"v"
    files.fail("sync")
    with pytest.raises(everwrite.StorageError):
        db[b"l"] = b"lost?"
    files.heal()
    for refused in (lambda: db.put(b"m", b"v"), lambda: db.counter(b"n").increment(), lambda: db.__delitem__(b"k")):
        with pytest.raises(everwrite.StorageError, match="no write is accepted any more"):
            refused()
    assert db[b"k"] == b"v", "what memory holds is read on"
    assert b"m" not in db
    db.close()
    files.crash()
    with everwrite.open("/db", files=files, background=False) as db:
        assert db[b"k"] == b"v"


def test_a_lost_tail_comes_back_from_a_peer(tmp_path):
    files = MemoryFiles()
    with everwrite.open(tmp_path) as peer:
        db = everwrite.open("/db", "os", files=files, background=False)
        for _ in range(10):
            db.counter(b"n").increment()
        old = db.origin
        for batch in db.changes({}):
            peer.apply(batch)
        files.crash()
        db = everwrite.open("/db", "os", files=files, background=False)
        assert db.origin == old + 1
        assert b"n" not in db
        db.counter(b"n").increment(100)
        sync(db, peer)
        assert db[b"n"] == peer[b"n"] == b"110"
        assert db.applied == peer.applied
        db.close()


def test_a_store_behind_a_cut_log_gets_whole_states(tmp_path):
    with (
        everwrite.open(
            tmp_path / "a", "os", memtable_bytes=1 << 16, log_keep_bytes=1 << 16, segment_bytes=1 << 14
        ) as a,
        everwrite.open(tmp_path / "b", "os") as b,
    ):
        a[b"dead"] = b"x"
        sync(a, b)
        del a[b"dead"]
        b.counter(b"both").increment(7)
        for i in range(3000):
            a[b"key%d" % (i % 500)] = b"%d" % i * 20
            a.counter(b"both").increment()
            a.set(b"s").add(b"%d" % i)
        a.maintain()
        assert a.statistics()["log_start"] > 0
        batches = list(a.changes(b.applied))
        with pytest.raises(everwrite.GapError):
            b.apply(batches[-1])
        for batch in batches:
            b.apply(batch)
        assert b.statistics()["resyncs"] == 1
        sync(a, b)
        assert contents(a) == contents(b)
        assert b"dead" not in b
        assert b[b"both"] == b"3007"
        assert a.applied == b.applied
        # What was learned as states can't be streamed from b's log: it says so and sends states, too.
        with everwrite.open(tmp_path / "c", "os") as c:
            for batch in b.changes(c.applied):
                c.apply(batch)
            assert contents(c) == contents(a)


def test_memory_and_restart_do_not_grow_with_overwrites(tmp_path):
    options = {"memtable_bytes": 1 << 18, "log_keep_bytes": 1 << 18, "segment_bytes": 1 << 16}
    with everwrite.open(tmp_path, "os", **options) as db:
        for i in range(40_000):
            db[b"k%d" % (i % 50)] = b"%0100d" % i
        db.maintain()
        numbers = db.statistics()
        assert numbers["tables"] >= 1
        assert numbers["memtable_bytes"] < 4 << 18
        assert numbers["log_bytes"] < 8 << 18
        expected = dict(db)
    with everwrite.open(tmp_path, "os", **options) as db:
        assert dict(db) == expected


def test_threads_share_a_store(db):
    import threading

    def work(name):
        for i in range(200):
            db.counter(b"n").increment()
            db[b"%d-%d" % (name, i)] = b"v"
            db.set(b"s").add(b"%d-%d" % (name, i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db[b"n"] == b"800"
    assert len(db.set(b"s")) == 800
    assert len(db) == 801


def test_system_registers_are_replicated_apart(pair):
    a, b = pair
    a.system_set(b"origin/1", b"us-east")
    sync(a, b)
    assert b.system_get(b"origin/1") == b"us-east"
    assert b.system_items(b"origin/") == [(b"origin/1", b"us-east")]
    assert b.key_count() == 0
    assert list(b) == []
