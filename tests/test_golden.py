"""Every golden store, of this version and of those before it, is read, and shows what it showed."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

import everwrite
from everwrite.doctor import diagnose, salvage
from everwrite.kinds import KIND_NAMES
from tests.golden.make import FOLDER, NOW_MS, VERSION, show

ARCHIVES = sorted(FOLDER.glob("store-*.zip"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with the store and its backup, and what they must show."""
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path)
    expected = json.loads(request.param.with_suffix(".json").read_text(encoding="ascii"))
    return tmp_path, expected


def test_there_is_one_of_this_version() -> None:
    assert FOLDER / f"store-{VERSION}.zip" in ARCHIVES


def test_it_has_every_kind_of_file_and_every_type(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    names = {
        re.sub(r"[0-9a-f]{16}", "N", str(path.relative_to(folder))) for path in folder.rglob("*") if path.is_file()
    }
    assert names == {
        "store/IDENTITY",
        "store/tables/manifest",
        "store/tables/N.table",
        "store/wal/N.log",
        "backup/BACKUP",
        "backup/IDENTITY",
        "backup/tables/manifest",
        "backup/tables/N.table",
        "backup/wal/N.log",
    }
    kinds = {entry["kind"] for entry in expected["keys"].values()}
    assert kinds == set(KIND_NAMES[1 : 1 + len(kinds)])


def test_it_shows_what_it_showed(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    report = diagnose(folder / "store")
    assert report.ok, str(report)
    with everwrite.open(folder / "store", now_ms=NOW_MS + 1_000_000) as db:
        assert show(db) == expected
        assert db.verify().ok
        with db.snapshot() as snapshot:
            assert dict(snapshot) == dict(db)
        db[b"new"] = b"written by this version"
        db.compact()
        assert db.verify().ok
    with everwrite.open(folder / "store", now_ms=NOW_MS + 2_000_000) as db:
        shown = show(db)
        del shown["keys"]["new"]
        assert shown["keys"] == expected["keys"]


def test_its_backup_is_restored(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    everwrite.restore(folder / "backup", folder / "restored")
    for name in ("restored", "backup"):
        with everwrite.open(folder / name, now_ms=NOW_MS + 1_000_000) as db:
            assert show(db) == expected


def test_it_is_salvaged_whole(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    report, saved = salvage(folder / "store", folder / "saved")
    assert report.ok
    assert saved.complete, str(saved)
    with everwrite.open(folder / "saved", now_ms=NOW_MS + 1_000_000) as db:
        shown = show(db)
        assert shown["keys"] == expected["keys"]
        assert shown["digest"] == expected["digest"]
