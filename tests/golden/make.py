"""Write the golden store of this version: `python -m tests.golden.make`.

One store with every kind of file and every type, small enough to be kept for ever, and a file that says what
it shows. Every later version must read it. The golden store of a version that was released is never written again.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import everwrite
from everwrite.kinds import KIND_NAMES

VERSION = 1
FOLDER = Path(__file__).resolve().parent
ARCHIVE = FOLDER / f"store-{VERSION}.zip"
EXPECTED = FOLDER / f"store-{VERSION}.json"

# Fixed, so that nothing depends on when it was made; deadlines lie far ahead.
NOW_MS = 1_760_000_000_000
YEARS_SECONDS = 3e9


def text(data: bytes) -> str:
    """Bytes as JSON can hold them: as they are when printable, else base64; long ones by length and end."""
    if len(data) > 100:
        return f"{len(data)} bytes, the last {text(data[-20:])}"
    if data.isascii() and data.decode("ascii").isprintable() and not data.startswith(b"base64:"):
        return data.decode("ascii")
    return "base64:" + base64.b64encode(data).decode("ascii")


SHOW: dict[str, Callable[[Any, bytes], Any]] = {
    "string": lambda db, key: text(db[key]),
    "set": lambda db, key: [text(each) for each in db.set(key)],
    "map": lambda db, key: {text(field): text(value) for field, value in db.map(key).items()},
    "multi": lambda db, key: [text(each) for each in db.multi(key).values],
    "flag": lambda db, key: bool(db.flag(key)),
    "max": lambda db, key: db.max(key).value,
    "min": lambda db, key: db.min(key).value,
    "hyperloglog": lambda db, key: db.hyperloglog(key).count(),
    "bounded counter": lambda db, key: [db.bounded_counter(key).value, db.bounded_counter(key).minimum],
    "sorted set": lambda db, key: [[text(member), score] for member, score in db.sorted_set(key).items()],
    "sequence": lambda db, key: [text(each) for each in db.sequence(key)],
}


def show(db: Any) -> dict[str, Any]:
    """What a database (or snapshot) shows, all of it."""
    shown: dict[str, Any] = {}
    for key, kind in db._keys(b""):
        why = db.why(key)
        shown[text(key)] = {
            "kind": kind,
            "value": SHOW[kind](db, key),
            "context": {f"{origin:016x}": timestamp for origin, timestamp in sorted(why["context"].items())},
            "expires_at_ms": why["expires_at_ms"],
        }
    return {
        "keys": shown,
        "system": [[text(name), text(value)] for name, value in db.system_items()],
        "digest": db.digest().hex(),
        "applied": {f"{origin:016x}": timestamp for origin, timestamp in sorted(db.applied.items())},
    }


def fill(db: everwrite.Database, name: bytes) -> None:
    """Something of every type; two stores that both do this and then meet also have conflicts."""
    for i in range(400):
        db[b"plain/%04d" % i] = b"of %s, %d " % (name, i) * (1 + i % 7)
    for i in range(0, 400, 9):
        del db[b"plain/%04d" % i]
    db[b"of " + name] = b"only here"
    db[b"both"] = name
    db[b""] = b"the empty key"
    db[b"empty value"] = b""
    db[bytes(range(256))] = bytes(range(256))
    db[b"large " + name] = bytes(i * i % 251 for i in range(30_000))
    db[b"long key " + b"k" * 5000] = name
    db.put(b"expires/" + name, b"in a century", ttl=YEARS_SECONDS)
    db.put(b"persisted", name, ttl=YEARS_SECONDS)
    db.persist(b"persisted")
    db.counter(b"counter").increment(5)
    db.counter(b"counter").decrement(2)
    db.counter(b"reset").increment(100)
    db.counter(b"reset").reset()
    db.counter(b"reset").increment(1)
    db[b"set then counted"] = b"40"
    db.counter(b"set then counted").increment(2)
    db.set(b"set").add(*(b"%s %d" % (name, i) for i in range(40)), b"\0\xff")
    db.set(b"set").discard(*(b"%s %d" % (name, i) for i in range(0, 40, 3)))
    db.set(b"emptied").add(b"x")
    db.set(b"emptied").clear()
    db.map(b"map").set({b"field": name, b"gone": b"x", name: b"1"})
    db.map(b"map").increment(b"count", 7)
    del db.map(b"map")[b"gone"]
    db.multi(b"multi").set(name)
    db.flag(b"flag").enable()
    db.flag(b"flag disabled").enable()
    db.flag(b"flag disabled").disable()
    db.max(b"max").update(len(name) * 1000)
    db.min(b"min").update(-len(name) * 1000)
    db.hyperloglog(b"hyperloglog").add(*(b"%s/%d" % (name, i) for i in range(300)))
    db.bounded_counter(b"bounded " + name, 3).increment(10)
    db.bounded_counter(b"bounded " + name).decrement(4)
    db.sorted_set(b"sorted set").update({b"low": -1.5, name: float(len(name)), b"inf": float("inf")})
    db.sorted_set(b"sorted set").increment(b"low", 0.25)
    db.sequence(b"sequence").extend([b"%s %d" % (name, i) for i in range(5)])
    db.sequence(b"sequence").insert(2, b"inserted by " + name)
    db.sequence(b"sequence").pop()
    db.set(b"type clash").add(name) if name == b"a" else db.map(b"type clash").set({b"f": name})
    with db.batch() as batch:
        batch[b"batch 1"] = name
        batch[b"batch 2"] = name
    db.system_set(b"node/" + name, b"its name")


def make(folder: Path) -> dict[str, Any]:
    """Write the store `store` and its backup `backup` in `folder`; what the store shows."""
    settings: dict[str, Any] = {"background": False, "memtable_bytes": 1 << 16, "segment_bytes": 1 << 14}
    with everwrite.open(folder / "other", "os", now_ms=NOW_MS + 10, store_id=0xBBBBBBBBBBBB, **settings) as other:
        fill(other, b"bee")
        db = everwrite.open(
            folder / "store", "os", now_ms=NOW_MS, store_id=0xAAAAAAAAAAAA, log_keep_bytes=1 << 15, **settings
        )
        fill(db, b"a")
        for batch in other.changes(db.applied):
            db.apply(batch)
    db.merge_tables()
    for i in range(200):
        db[b"plain/%04d" % (2 * i)] = b"written later %d" % i
    db.compact(keep_log=True)
    for i in range(100):
        # In the log, and in no table.
        db[b"plain/%04d" % (3 * i)] = b"written last %d" % i
    del db[b"plain/0002"]
    db.set(b"set").add(b"last")
    report = db.verify()
    assert report.ok, str(report)
    kinds = {kind for _, kind in db._keys(b"")}
    assert kinds == set(KIND_NAMES[1:]), f"lacks {set(KIND_NAMES[1:]) - kinds}"
    db.backup(folder / "backup")
    expected = show(db)
    db.close()
    return expected


def main() -> None:
    """Write the archive and what it shows."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        expected = make(folder)
        shutil.rmtree(folder / "other")
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "LOCK")
        with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in files:
                archive.writestr(
                    zipfile.ZipInfo(str(path.relative_to(folder))), path.read_bytes(), zipfile.ZIP_DEFLATED
                )
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="ascii")
    sys.stdout.write(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size} bytes, {len(files)} files\n")


if __name__ == "__main__":
    main()
