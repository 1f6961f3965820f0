"""Stores with one flipped bit, in any file, at any place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from random import Random

import everwrite
from everwrite.memory_files import MemoryFiles
from tests.faults.script import FOLDER, START_MS, shown_by
from tests.reference.dictionary import Operation, State, apply, apply_to

OPTIONS = {"background": False, "now_ms": START_MS, "store_id": 1, "block_cache_bytes": 0}
# What a lock file holds is for messages only.
IGNORED = {"LOCK"}


class Silent(AssertionError):
    """Damage led to a wrong answer, or to an error that doesn't name the file."""


def sample(*, clean: bool) -> tuple[MemoryFiles, list[State]]:
    """A store with a small file of each kind, and what it showed after each operation.

    `clean`: it was closed; else killed, so that its last writes are in the log alone.
    """
    random = Random(5)
    disk = MemoryFiles()
    states: list[State] = [{}]

    def do(db: everwrite.Database, *operations: Operation) -> None:
        for operation in operations:
            apply(db, operation)
            states.append(dict(states[-1]))
            apply_to(states[-1], operation)

    # A log of more than one segment, and a table that replaced others.
    db = everwrite.open(FOLDER, files=disk, memtable_bytes=1, segment_bytes=512, log_keep_bytes=600, **OPTIONS)
    do(db, *(Operation("put", b"0/s%d" % (i % 7), (random.randbytes(20 + i),)) for i in range(12)))
    do(db, Operation("add", b"0/e0", (b"e1", b"e2", b"e3")), Operation("set_fields", b"0/m0", (b"f", b"v" * 300)))
    db.close()
    db = everwrite.open(FOLDER, files=disk, segment_bytes=512, log_keep_bytes=600, **OPTIONS)
    do(db, Operation("set_scores", b"0/z0", (b"a", b"b"), 3), Operation("insert_items", b"0/q0", (b"x", b"y")))
    do(db, Operation("grant", b"0/b0", amount=7), Operation("spend", b"0/b0", amount=2))
    do(db, Operation("sketch_add", b"0/h0", (b"item",)), Operation("multi_set", b"0/r0", (b"value",)))
    do(db, Operation("enable", b"0/f0"), Operation("update_max", b"0/x0", amount=9))
    do(db, Operation("increment", b"0/n0", amount=7), Operation("delete", b"0/s1"))
    do(db, Operation("put", b"0/s2", (b"last but one",)), Operation("put", b"0/s3", (b"last",)))
    if clean:
        db.close()
    disk.crash("all")
    return disk, states


def files_of(disk: MemoryFiles) -> Iterator[PurePosixPath]:
    """All files of the store."""
    folders = [PurePosixPath(FOLDER)]
    while folders:
        folder = folders.pop()
        for name in disk.listdir(folder):
            path = folder / name
            try:
                disk.listdir(path)
            except OSError:
                if name not in IGNORED:
                    yield path
            else:
                folders.append(path)


def flipped(disk: MemoryFiles, path: PurePosixPath, bit: int) -> MemoryFiles:
    """A copy of the disk with one bit changed."""
    twin = disk.copy()
    with twin.open_file(path, "write") as file:
        old = file.read(bit // 8, 1)[0]
        file.write(bit // 8, bytes([old ^ 1 << bit % 8]))
        file.sync()
    return twin


def check_damage(disk: MemoryFiles, path: PurePosixPath, bit: int, allowed: list[State]) -> str:
    """Open, read and verify: the right data, or an error that names the file. Returns which."""
    damaged = flipped(disk, path, bit)
    try:
        with everwrite.open(FOLDER, files=damaged, segment_bytes=512, **OPTIONS) as db:
            shown = shown_by(db)
            if shown not in allowed:
                raise Silent(f"bit {bit % 8} of byte {bit // 8} of {path} flipped: wrong answers")
            report = db.verify()
    except (everwrite.CorruptionError, everwrite.FormatError) as error:
        if path.name not in str(error):
            raise Silent(f"bit {bit % 8} of byte {bit // 8} of {path} flipped: the error is {error!r}") from error
        return f"{kind_of(path)}: {type(error).__name__}"
    if not report.ok:
        # What nothing reads but a peer that catches up, verify has read.
        if path.name not in str(report):
            raise Silent(f"bit {bit % 8} of byte {bit // 8} of {path} flipped: verify says {report}")
        return f"{kind_of(path)}: found by verify"
    return f"{kind_of(path)}: right data"


def kind_of(path: PurePosixPath) -> str:
    """One of "log", "table", or the name of a file that there is one of."""
    return path.suffix[1:] or path.name


def flip(disk: MemoryFiles, states: list[State], *, clean: bool, bits: Iterable[int]) -> Counter[str]:
    """Flip each of `bits` (0 to 7) of every byte of every file.

    After a kill, the newest write of the log is told from one that the kill has torn by nothing: it may be missing.
    """
    counts: Counter[str] = Counter()
    paths = list(files_of(disk))
    last_log = max(path for path in paths if path.suffix == ".log")
    for path in paths:
        with disk.open_file(path, "read") as file:
            size = file.size()
        allowed = states[-2:] if path == last_log and not clean else states[-1:]
        for byte in range(size):
            counts.update(check_damage(disk, path, byte * 8 + bit, allowed) for bit in bits)
    return counts
