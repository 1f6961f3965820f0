"""The coordinator of a node: what clients ask at a consistency level, between the tick, HTTP and replication.

The two phases are those of `levels.pxd`: before an operation, the other replicas are asked for what they have of its
keys; after a write, their acknowledgements are awaited. The tick does both natively for its connections and only
hands its questions through here; `before` and `after` are the same for whoever serves one request at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from everwrite.errors import ReadTimeout, Recovering, Unavailable, WriteTimeout
from everwrite.server.consistency import Level
from everwrite.server.effects import RegionChanged
from everwrite.server.frontend import TICK_MORE, TICK_WROTE

if TYPE_CHECKING:
    from everwrite.database import Database
    from everwrite.server.frontend import Frontend

__all__ = ["Coordination"]

EXPIRE_INTERVAL_SECONDS: Final = 0.02
TIMESTAMP_MAX: Final = (1 << 64) - 1


class _Replicas(Protocol):
    """What asks other replicas: a `Transport`."""

    def ask(self, question: bytes, answers: int, seconds: float) -> int: ...


class Coordination:
    """See the module. `timeout_seconds`: how long an operation may wait that says nothing else."""

    def __init__(
        self,
        store: Database,
        frontend: Frontend,
        replicas: _Replicas,
        *,
        consistency: Level,
        timeout_seconds: float,
        on_write: Callable[[], object],
    ) -> None:
        self.consistency = consistency
        self.region = RegionChanged(1, 1, TIMESTAMP_MAX, TIMESTAMP_MAX)
        # What `before` and `after` have raised, by the error code of HTTP.
        self.refusals: Counter[str] = Counter()
        self._store = store
        self._frontend = frontend
        self._replicas = replicas
        self._timeout_seconds = timeout_seconds
        self._asks: dict[int, Callable[[int], object]] = {}
        self._on_write = on_write
        self._changed = trio.Event()
        frontend.set_levels(self._ask_for_tick, consistency=consistency, timeout_seconds=timeout_seconds)

    # -- events of replication ------------------------------------------------------------------------

    def answered(self, token: int, received: int) -> None:
        """The ask `token` is over: so many other replicas have answered, and what they had is joined."""
        done = self._asks.pop(token, None)
        if done is not None:
            done(received + 1)

    def region_changed(self, region: RegionChanged) -> None:
        """Replicas have come, gone, or acknowledged more."""
        self.region = region
        self._frontend.set_region(
            region.replicas, region.alive, region.quorum_held, region.all_held, recovering=region.recovering
        )
        self._changed.set()
        self._changed = trio.Event()

    @property
    def recovering(self) -> bool:
        """Whether this node may lack what it once acknowledged, so that it refuses all levels but ONE."""
        return self.region.recovering

    async def run(self) -> None:
        """Give up what has waited for too long, until cancelled."""
        while True:
            await trio.sleep(EXPIRE_INTERVAL_SECONDS)
            if self._frontend.waiting:
                self._frontend.expire()

    # -- operations -----------------------------------------------------------------------------------

    async def before(self, keys: Sequence[bytes], level: Level | None = None, seconds: float | None = None) -> None:
        """Bring what enough replicas have of these keys into the store.

        Raises `Unavailable`, `Recovering` and `ReadTimeout`; nothing was done then.
        """
        level = self.consistency if level is None else level
        region = self.region
        required = level.required(region.replicas)
        if required == 1:
            return
        if region.recovering:
            self.refusals["recovering"] += 1
            raise Recovering(
                "this node is catching up with its region; nothing was done: ask another node, or again soon",
                required=required, alive=region.alive,
            )  # fmt: skip
        if region.alive < required:
            self.refusals["too_few_replicas"] += 1
            raise Unavailable(
                "too few replicas of this region are alive; nothing was done: try again, or ask for the level ONE "
                f"(required {required}, alive {region.alive})",
                required=required, alive=region.alive,
            )  # fmt: skip
        over = trio.Event()
        received = 1

        def done(count: int) -> None:
            nonlocal received
            received = count
            over.set()

        timeout = self._timeout_seconds if seconds is None else seconds
        token = self._replicas.ask(self._store.question(list(keys)), required - 1, timeout)
        self._asks[token] = done
        try:
            await over.wait()
        finally:
            self._asks.pop(token, None)
        if received < required:
            self.refusals["read_timeout"] += 1
            raise ReadTimeout(
                "too few replicas answered in time; nothing was done: try again "
                f"(received {received}, required {required})",
                received=received, required=required,
            )  # fmt: skip

    async def after(self, timestamp: int, level: Level | None = None, seconds: float | None = None) -> None:
        """Wait until enough replicas hold this node's updates up to `timestamp`.

        Raises `WriteTimeout`: whether the update survives is unknown then.
        """
        level = self.consistency if level is None else level
        with trio.move_on_after(self._timeout_seconds if seconds is None else seconds):
            while self._held(level) < timestamp:
                await self._changed.wait()
            return
        quorum = Level.LOCAL_QUORUM.required(self.region.replicas)
        received = quorum if self.region.quorum_held >= timestamp else 1
        required = level.required(self.region.replicas)
        self.refusals["write_timeout"] += 1
        raise WriteTimeout(
            "written here, but not acknowledged by enough replicas in time: it still spreads, but whether it survives "
            f"is unknown (received {received}, required {required})",
            received=received, required=required,
        )  # fmt: skip

    def _held(self, level: Level) -> int:
        if level is Level.ONE:
            return TIMESTAMP_MAX
        return self.region.all_held if level is Level.ALL else self.region.quorum_held

    def _ask_for_tick(self, number: int, answers: int, question: bytes) -> None:
        token = self._replicas.ask(question, answers, self._timeout_seconds)
        self._asks[token] = lambda received: self._go_on(number, received)

    def _go_on(self, number: int, received: int) -> None:
        """Run what has waited for a question at once: another turn of the loop would cost more than it."""
        self._frontend.answered(number, received)
        state = self._frontend.tick()
        if state & TICK_WROTE:
            self._on_write()
        if state & TICK_MORE:
            self._frontend.wake_up()
