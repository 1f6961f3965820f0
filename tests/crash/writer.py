"""The process that is killed: it writes, and tells through a pipe what was acknowledged."""

from __future__ import annotations

import os
import signal
import struct
import threading
import traceback
from pathlib import Path
from random import Random
from typing import NoReturn

import everwrite
from everwrite.files import PosixFiles
from everwrite.watched_files import WatchedFiles
from tests.crash.plan import Plan
from tests.reference.dictionary import Source, apply

# What is told: one letter, then a number (the origin, the thread, or the backup's number).
MESSAGE = struct.Struct("<cQ")
BEGINS, OPENED, ACKNOWLEDGED, BACKED_UP, CLOSES, CLOSED = b"b", b"o", b"a", b"s", b"c", b"e"
# Backups lie beside the store, under this name and a number.
BACKUP = "backup-"
ERROR_STATUS = 70


class Suicide:
    """Ends this process before the storage call with this number."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, operation: str, path: bytes, size: int) -> tuple[int, int] | None:
        self.calls -= 1
        if self.calls <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return None


def write(path: Path, plan: Plan, pipe: int, complaint: Path) -> NoReturn:
    """Be the writer. What goes wrong is written to the file `complaint`."""
    try:
        _Writer(path, plan, pipe, complaint).run()
    except BaseException:
        complaint.write_text(traceback.format_exc())
        os._exit(ERROR_STATUS)
    os._exit(0)


class _Writer:
    def __init__(self, path: Path, plan: Plan, pipe: int, complaint: Path) -> None:
        self.path = path
        self.plan = plan
        self.pipe = pipe
        self.complaint = complaint
        self.files = WatchedFiles(PosixFiles(), Suicide(plan.count)) if plan.end == "call" else None

    def tell(self, what: bytes, number: int = 0) -> None:
        os.write(self.pipe, MESSAGE.pack(what, number))

    def open(self) -> everwrite.Database:
        self.tell(BEGINS)
        db = everwrite.open(self.path, files=self.files, **self.plan.options)
        self.tell(OPENED, db.origin)
        return db

    def run(self) -> None:
        db = self.open()
        if self.plan.threads == 1:
            db = self.work(db, 0)
        else:
            threads = [threading.Thread(target=self.work_apart, args=(db, i)) for i in range(self.plan.threads)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.tell(CLOSES)
        db.close()
        self.tell(CLOSED)

    def work_apart(self, db: everwrite.Database, thread: int) -> None:
        try:
            self.work(db, thread)
        except BaseException:
            self.complaint.write_text(traceback.format_exc())
            os._exit(ERROR_STATUS)

    def work(self, db: everwrite.Database, thread: int) -> everwrite.Database:
        source = Source(self.plan.source(thread), thread)
        chores = Random(f"{self.plan.seed}/{thread}/chores")
        for _ in range(self.plan.limit):
            operation = source.draw()
            if not self.plan.forgetful or chores.random() < 0.98:
                apply(db, operation)
            self.tell(ACKNOWLEDGED, thread)
            if chores.random() < 0.05:
                db = self.chore(db, chores)
        return db

    def chore(self, db: everwrite.Database, chores: Random) -> everwrite.Database:
        """Something that changes no key: it must not matter when the process dies in it."""
        match chores.choice(("compact", "read", "reopen", "verify", "backup")):
            case "compact":
                db.compact()
            case "read":
                with db.snapshot() as snapshot:
                    list(snapshot.scan())
            case "verify":
                report = db.verify()
                if not report.ok:
                    raise AssertionError(str(report))
            case "backup":
                number = chores.getrandbits(32)
                db.backup(self.path.with_name(f"{BACKUP}{number}"))
                self.tell(BACKED_UP, number)
            case "reopen" if self.plan.threads == 1:
                self.tell(CLOSES)
                db.close()
                db = self.open()
        return db
