"""The doctor names every damage, changes nothing, and salvages what can be read without passing off old as current."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import everwrite
from everwrite.doctor import diagnose, salvage
from everwrite.inspection import table_name
from tests.support import ROOT
from tests.test_backup import content, fill


def digest_of(folder: Path) -> dict[str, bytes]:
    """All files but the lock's, with their content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "LOCK"
    }


def make(path: Path, **settings: Any) -> dict[bytes, object]:
    """A closed store with tables and log, and content beyond both; what it shows."""
    settings = {"memtable_bytes": 1 << 16, "background": False, "segment_bytes": 1 << 14} | settings
    with everwrite.open(path, "os", **settings) as db:
        fill(db)
        for i in range(300, 600):
            db[b"key %d" % i] = b"newer %d" % i
        db.set(b"set").add(b"c")
        return content(db)


def shown(path: Path) -> dict[bytes, object]:
    with everwrite.open(path) as db:
        assert db.verify().ok
        return content(db)


def without_origins(shows: dict[bytes, object]) -> dict[bytes, object]:
    return {name: value for name, value in shows.items() if name != b"applied"}


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))


def tables(path: Path) -> list[Path]:
    return sorted((path / "tables").glob("*.table"))


def segments(path: Path) -> list[Path]:
    return sorted((path / "wal").glob("*.log"))


def test_a_whole_store_is_healthy_and_untouched(tmp_path: Path) -> None:
    held = make(tmp_path / "db")
    before = digest_of(tmp_path / "db")
    report = diagnose(tmp_path / "db")
    assert report.ok, str(report)
    assert report.keys == len(held[b"pairs"]) + 10  # type: ignore[arg-type]
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert report.ok
    assert saved.complete
    assert saved.keys == report.keys
    assert digest_of(tmp_path / "db") == before
    assert without_origins(shown(tmp_path / "new")) == without_origins(held)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["IDENTITY", "LOCK", "tables", "wal"]


def test_after_a_kill_a_torn_tail_is_a_note_and_no_damage(tmp_path: Path) -> None:
    program = (
        "import everwrite, os, sys, signal; db = everwrite.open(sys.argv[1], 'os')\n"
        "for i in range(2000): db[b'%d' % i] = b'x' * 50\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "build" / "links")}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "db")], env=environment, check=False)
    before = digest_of(tmp_path / "db")
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert report.ok, str(report)
    assert saved.complete, str(saved)
    assert saved.keys == 2000
    assert digest_of(tmp_path / "db") == before


@pytest.mark.parametrize("gone", ["IDENTITY", "tables/manifest"])
def test_a_missing_or_damaged_small_file_costs_nothing(gone: str, tmp_path: Path) -> None:
    held = make(tmp_path / "db", log_keep_bytes=1 << 15)
    whole = (tmp_path / "db" / gone).read_bytes()
    for number, damaged in enumerate((None, whole[:-3], whole[:40] + b"?" + whole[41:])):
        if damaged is None:
            (tmp_path / "db" / gone).unlink()
        else:
            (tmp_path / "db" / gone).write_bytes(damaged)
        report, saved = salvage(tmp_path / "db", tmp_path / f"new {number}")
        assert str(tmp_path / "db" / gone) in [damage.path for damage in report.damages]
        assert without_origins(shown(tmp_path / f"new {number}")) == without_origins(held)
        assert not saved.lost, str(saved)


def test_without_its_log_the_tables_are_left(tmp_path: Path) -> None:
    held = make(tmp_path / "db")
    shutil.rmtree(tmp_path / "db" / "wal")
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert [damage.path for damage in report.damages if damage.path] == [str(tmp_path / "db" / "wal")]
    assert any("the log" in each for each in saved.lost)
    assert not saved.complete
    with everwrite.open(tmp_path / "new") as db:
        assert len(db) > 1000
        # Nothing passes for current: what the log held may have been about any key.
        assert saved.uncertain_count == db.key_count()
        assert any(db.get(key) != value for key, value in held[b"pairs"].items())  # type: ignore[attr-defined]


def test_a_damaged_block_loses_its_keys_and_no_others(tmp_path: Path) -> None:
    """With the log cut: what is not salvaged is reported, and what may be old is named."""
    held = make(tmp_path / "db", log_keep_bytes=1)
    pairs: dict[bytes, bytes] = held[b"pairs"]  # type: ignore[assignment]
    chance = random.Random(1)
    for number, table in enumerate(tables(tmp_path / "db")):
        at = chance.randrange(table.stat().st_size // 3)
        flip(table, at)
        before = digest_of(tmp_path / "db")
        report, saved = salvage(tmp_path / "db", tmp_path / f"new {number}")
        assert digest_of(tmp_path / "db") == before
        assert [damage.path for damage in report.damages] == [str(table)]
        assert report.damages[0].lost
        assert report.damages[0].offset is not None
        assert saved.lost
        with everwrite.open(tmp_path / f"new {number}") as db:
            assert db.verify().ok
            got = dict(db.scan())
            wrong = {key for key, value in got.items() if pairs.get(key) != value}
            assert wrong <= {key.encode() for key in saved.uncertain}
            assert len(got) > len(pairs) - 200
        flip(table, at)


@pytest.mark.parametrize("at", [1000, 0.3, 0.5])
def test_the_log_heals_a_damaged_block(at: float, tmp_path: Path) -> None:
    make(tmp_path / "db", log_keep_bytes=1 << 30)
    with everwrite.open(tmp_path / "db", "os", background=False, log_keep_bytes=1 << 30) as db:
        for i in range(500):
            db.set(b"members").add(b"%05d" % i)
            db.map(b"fields")[b"%05d" % i] = b"old"
        for i in range(0, 500, 3):
            db.set(b"members").discard(b"%05d" % i)
            db.map(b"fields")[b"%05d" % i] = b"new"
        db.compact(keep_log=True)
        held = content(db)
        members, fields = list(db.set(b"members")), dict(db.map(b"fields"))
    for table in tables(tmp_path / "db"):
        flip(table, int(at if at > 1 else at * table.stat().st_size))
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert {damage.path for damage in report.damages} == {str(table) for table in tables(tmp_path / "db")}
    assert saved.lost
    assert without_origins(shown(tmp_path / "new")) == without_origins(held)
    with everwrite.open(tmp_path / "new") as db:
        assert list(db.set(b"members")) == members
        assert dict(db.map(b"fields")) == fields
        db.set(b"members").add(b"and on")
        db.map(b"fields").clear()
        assert db.verify().ok


def test_a_whole_table_that_is_gone(tmp_path: Path) -> None:
    held = make(tmp_path / "db", log_keep_bytes=1)
    pairs: dict[bytes, bytes] = held[b"pairs"]  # type: ignore[assignment]
    newest = tables(tmp_path / "db")[-1]
    newest.unlink()
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert str(newest) in [damage.path for damage in report.damages]
    assert str(newest) in str(saved)
    with everwrite.open(tmp_path / "new") as db:
        wrong = {key for key, value in db.scan() if pairs.get(key) != value}
        assert wrong <= {key.encode() for key in saved.uncertain}


def zero(path: Path, first: int, last: int) -> None:
    with path.open("r+b") as file:
        file.seek(first)
        file.write(bytes(last - first))


def directory_place(table: Path) -> int:
    """A byte of the directory."""
    data = table.read_bytes()
    directory_size, properties_size = struct.unpack_from("<QQ", data, len(data) - 64)
    return len(data) - 64 - int(properties_size) - int(directory_size) // 2


def make_one_table(path: Path, values: str) -> dict[bytes, bytes]:
    """A closed store whose keys are all in one table, and nowhere else."""
    chance = random.Random(values)
    make_value = {
        "compressible": lambda: b"value " * chance.randrange(1, 60),
        "random": lambda: chance.randbytes(chance.randrange(1, 300)),
        "large": lambda: chance.randbytes(30_000) if chance.random() < 0.05 else bytes(chance.randrange(40_000)),
        # Full of what looks like the end of a block, or the beginning of one.
        "deceptive": lambda: b"".join(
            struct.pack("<BII", chance.randrange(2), chance.randrange(5000), chance.getrandbits(32))
            + b"\x28\xb5\x2f\xfd" * chance.randrange(2)
            for _ in range(chance.randrange(1, 1000))
        ),
    }[values]
    with everwrite.open(path, "os", background=False, log_keep_bytes=0) as db:
        db.put_many({b"key %05d" % i: make_value() for i in range(400 if values in ("large", "deceptive") else 6000)})
        for i in range(0, 400, 9):
            del db[b"key %05d" % i]
        db.set(b"set").add(*(b"%d" % i for i in range(500)))
        db.compact()
        return dict(db.scan())


@pytest.mark.parametrize("values", ["compressible", "random", "large", "deceptive"])
@pytest.mark.parametrize("place", ["footer", "directory", "both", "properties"])
def test_a_table_without_footer_or_directory_is_found_block_by_block(place: str, values: str, tmp_path: Path) -> None:
    held = make_one_table(tmp_path / "db", values)
    (table,) = tables(tmp_path / "db")
    size = table.stat().st_size
    flips = {
        "footer": [size - 30],
        "directory": [directory_place(table)],
        "both": [size - 30, directory_place(table)],
        "properties": [size - 70],
    }
    for at in flips[place]:
        flip(table, at)
    before = digest_of(tmp_path / "db")
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert digest_of(tmp_path / "db") == before
    assert [damage.path for damage in report.damages] == [str(table)]
    # All blocks of data are whole, so that nothing is lost, and nothing called uncertain.
    assert saved.complete, str(saved)
    with everwrite.open(tmp_path / "new") as db:
        assert db.verify().ok
        assert dict(db.scan()) == held
        assert len(db.set(b"set")) == 500


def test_with_blocks_and_the_footer_damaged_the_ranges_are_named(tmp_path: Path) -> None:
    held = make_one_table(tmp_path / "db", "random")
    (table,) = tables(tmp_path / "db")
    size = table.stat().st_size
    zero(table, size - 64, size)
    zero(table, 100_000, 120_000)
    flip(table, 300_000)
    _, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert len(saved.lost) == 2
    for lost, (first, last) in zip(saved.lost, [(100_000, 120_000), (300_000, 300_000)], strict=True):
        begin, end = map(int, re.findall(r"bytes (\d+) to (\d+)", lost)[0])
        assert first - 4200 < begin <= first
        assert last <= end < last + 4200
    with everwrite.open(tmp_path / "new") as db:
        assert db.verify().ok
        got = dict(db.scan())
        assert got.items() <= held.items()
        # 28 KB of what was some 900.
        assert len(held) * 0.94 < len(got) < len(held)
        # Nothing older could show in their place: no key that is there is doubtful, but for the set's.
        assert set(saved.uncertain) <= {"set"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_of_a_truncated_table_what_is_left_is_salvaged(share: float, tmp_path: Path) -> None:
    held = make_one_table(tmp_path / "db", "compressible")
    (table,) = tables(tmp_path / "db")
    size = table.stat().st_size
    os.truncate(table, int(size * share) - (share == 1.0))
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert [damage.path for damage in report.damages] == [str(table)]
    # What follows the data is more than a tenth of such a table.
    assert saved.complete == (share > 0.8)
    with everwrite.open(tmp_path / "new") as db:
        assert db.verify().ok
        got = dict(db.scan())
        assert got.items() <= held.items()
        assert (len(got) > 0) == (share > 0)
        assert (got == held) == (share > 0.8)


def test_of_tables_without_footers_the_newest_entry_wins(tmp_path: Path) -> None:
    """Several tables, all damaged, with the log cut, with and without a manifest to say which is newer."""
    held = make(tmp_path / "db", log_keep_bytes=1)
    assert len(tables(tmp_path / "db")) > 1
    for table in tables(tmp_path / "db"):
        flip(table, table.stat().st_size - 30)
    for name in ("with", "without"):
        _, saved = salvage(tmp_path / "db", tmp_path / name)
        assert saved.complete, str(saved)
        assert without_origins(shown(tmp_path / name)) == without_origins(held)
        (tmp_path / "db" / "tables" / "manifest").unlink(missing_ok=True)


def test_without_manifest_footer_and_properties_all_is_uncertain(tmp_path: Path) -> None:
    held = make_one_table(tmp_path / "db", "random")
    (table,) = tables(tmp_path / "db")
    (tmp_path / "db" / "tables" / "manifest").unlink()
    os.truncate(table, table.stat().st_size - 80)
    _, saved = salvage(tmp_path / "db", tmp_path / "new")
    with everwrite.open(tmp_path / "new") as db:
        assert dict(db.scan()) == held
        assert saved.uncertain_count == db.key_count()


def test_damage_in_the_middle_of_the_log(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", "os", segment_bytes=1 << 14, background=False) as db:
        fill(db)
        for i in range(300):
            db.map(b"map")[b"%d" % i] = b"value" * 5
        held = content(db)
    damaged = segments(tmp_path / "db")[-2]
    flip(damaged, 5000)
    report, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert [damage.path for damage in report.damages] == [str(damaged)]
    assert any(str(damaged) in each for each in saved.lost)
    with everwrite.open(tmp_path / "new") as db:
        assert db.verify().ok
        assert len(db.map(b"map")) >= len(held[b"map"]) - 2  # type: ignore[arg-type]
        assert set(dict(db.map(b"map"))) <= set(held[b"map"])  # type: ignore[call-overload]
        missing = dict(held[b"pairs"].items() - dict(db.scan()).items())  # type: ignore[attr-defined]
        assert len(missing) <= 2
        assert saved.uncertain_count == db.key_count()


def test_elements_whose_head_is_lost_are_kept(tmp_path: Path) -> None:
    with everwrite.open(tmp_path / "db", "os", background=False, log_keep_bytes=1, segment_bytes=4096) as db:
        for i in range(3000):
            db.set(b"members").add(b"%05d" % i * 4)
        db.compact()
    (table,) = tables(tmp_path / "db")
    flip(table, 20)  # the first block begins with the heads
    _, saved = salvage(tmp_path / "db", tmp_path / "new")
    assert saved.lost
    assert saved.uncertain == ["members"]
    with everwrite.open(tmp_path / "new") as db:
        assert db.verify().ok
        assert 2500 < len(db.set(b"members")) < 3000


def test_what_is_no_store_or_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(everwrite.ConfigError, match="no such folder"):
        diagnose(tmp_path / "nowhere")
    with pytest.raises(everwrite.ConfigError, match="not a store"):
        diagnose(tmp_path)
    with everwrite.open(tmp_path / "db") as db:
        db[b"k"] = b"v"
        with pytest.raises(everwrite.LockedError, match=f"process {os.getpid()}"):
            diagnose(tmp_path / "db")
    with pytest.raises(everwrite.BackupError, match="is there already"):
        salvage(tmp_path / "db", tmp_path)
    assert diagnose(tmp_path / "db").ok


def run(*arguments: object) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "build" / "links")}
    command = [sys.executable, "-m", "everwrite", *map(str, arguments)]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return outcome.returncode, outcome.stdout, outcome.stderr


def test_the_commands_and_their_exit_status(tmp_path: Path) -> None:
    held = make(tmp_path / "db", log_keep_bytes=1)
    status, out, _ = run("doctor", tmp_path / "db")
    assert (status, "no damage" in out) == (0, True)
    status, out, err = run("backup", tmp_path / "db", tmp_path / "backup")
    assert (status, err) == (0, "")
    assert run("backup", tmp_path / "db", tmp_path / "backup")[0] == 1
    assert run("restore", tmp_path / "backup", tmp_path / "restored", "--output", "json")[0] == 0
    assert without_origins(shown(tmp_path / "restored")) == without_origins(held)
    assert run("restore", tmp_path / "db", tmp_path / "other")[0] == 1
    assert run("doctor", tmp_path / "nowhere")[0] == 2
    with everwrite.open(tmp_path / "db"):
        status, _, err = run("doctor", tmp_path / "db")
        assert (status, f"process {os.getpid()}" in err) == (3, True)
    flip(tables(tmp_path / "db")[0], 100)
    status, out, _ = run("doctor", tmp_path / "db")
    assert (status, "damage: " in out) == (5, True)
    status, out, _ = run("doctor", tmp_path / "db", "--salvage", tmp_path / "saved", "--output", "json")
    assert status == 5
    answer = json.loads(out)
    assert answer["ok"] is False
    assert answer["damages"][0]["path"] == str(tables(tmp_path / "db")[0])
    assert answer["salvaged"]["keys"] > 1000
    assert answer["salvaged"]["complete"] is False


def newer_identity(data: bytes) -> bytes:
    from everwrite.checksum import checksum

    start = data[:8] + struct.pack("<I", 99)
    return start + struct.pack("<I", checksum(data[16:], checksum(start))) + data[16:]


def newer_manifest(data: bytes) -> bytes:
    from everwrite.checksum import checksum

    start = data[:8] + struct.pack("<I", 99)
    return start + struct.pack("<I", checksum(data[16:], checksum(start))) + data[16:]


def newer_table(data: bytes) -> bytes:
    from everwrite.checksum import checksum

    footer = data[-64:-16] + struct.pack("<I", 99)
    return data[:-64] + footer + struct.pack("<I", checksum(footer)) + data[-8:]


def newer_segment(data: bytes) -> bytes:
    from everwrite.checksum import checksum

    header = data[:8] + struct.pack("<I", 99) + data[12:60]
    return header + struct.pack("<I", checksum(header)) + data[64:]


NEWER = {
    "IDENTITY": newer_identity,
    "tables/manifest": newer_manifest,
    "table": newer_table,
    "log": newer_segment,
    "BACKUP": newer_identity,
}


@pytest.mark.parametrize("kind", NEWER)
def test_a_newer_release_of_any_file_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    make(tmp_path / "made")
    path = tmp_path / "made"
    if kind == "BACKUP":
        with everwrite.open(path) as db:
            db.backup(tmp_path / "backup")
        path = tmp_path / "backup"
    chosen = {"table": tables(path)[0], "log": segments(path)[-1]}.get(kind, path / kind)
    chosen.write_bytes(NEWER[kind](chosen.read_bytes()))
    before = digest_of(path)
    uses = [lambda: everwrite.open(path), lambda: everwrite.restore(path, tmp_path / "restored")]
    if kind == "BACKUP":
        uses = uses[1:]
    else:
        uses[1] = lambda: diagnose(path)
    for use in uses:
        with pytest.raises(everwrite.FormatError) as caught:
            use()
        assert str(chosen) in str(caught.value)
        assert digest_of(path) == before
    assert not (tmp_path / "restored").exists()
    assert table_name(1) == "0000000000000001.table"
