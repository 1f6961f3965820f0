"""The threads of an open store. They live as long as it is open, and don't keep it alive.

The child of a fork has none of them: there the store is closed.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everwrite.store import Store
    from everwrite.waiting import Alarm
    from everwrite.wal_writer import WalWriter

__all__ = ["close_in_forks", "new_worker", "start_tending"]

# How long the log's thread waits at most before it looks whether its store is still there.
_TEND_MS = 1000

_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def new_worker(store: Store, work: str, wake: Alarm, interval: float) -> threading.Thread:
    """A thread, not started yet, that calls the store's method `work` every `interval` seconds, or when woken.

    It goes on as long as that answers that there is more to do. An exception ends it, and is the store's failure.
    """
    arguments = (weakref.ref(store), work, wake, interval)
    return threading.Thread(target=_work, args=arguments, name=f"everwrite-{work}", daemon=True)


def _work(reference: weakref.ref[Store], work: str, wake: Alarm, interval: float) -> None:
    while True:
        wake.wait(interval)
        store = reference()
        if store is None or store.closing():
            return
        try:
            while getattr(store, work)() and not store.closing():
                pass
        except BaseException as error:
            # There is nobody above to raise it to, whatever it is: whoever writes next gets to know.
            store.stop_writing(error)
            return
        del store


def start_tending(store: Store, wal: WalWriter) -> threading.Thread:
    """Start the thread that makes segments of the log ahead and seals full ones."""
    thread = threading.Thread(target=_tend, args=(weakref.ref(store), wal), name="everwrite-log", daemon=True)
    thread.start()
    return thread


def _tend(reference: weakref.ref[Store], wal: WalWriter) -> None:
    while True:
        store = reference()
        if store is None or store.closing():
            return
        # Not held while waiting: a store that nobody refers to goes.
        del store
        try:
            wal.tend(_TEND_MS)
        except BaseException as error:
            # As above.
            store = reference()
            if store is not None:
                store.stop_writing(error)
            return


def close_in_forks(store: Store) -> None:
    """See to it that the store is closed in every child of this process."""
    _open_stores.add(store)


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
