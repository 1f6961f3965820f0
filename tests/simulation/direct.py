"""Stores that exchange batches with no sessions between them: late, twice, out of order, to the wrong one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from everwrite.errors import ClockDriftError, GapError, LogCutError, ProtocolError
from tests.reference.history import History
from tests.reference.model import normal
from tests.reference.replica import Replica
from tests.reference.vocabulary import Request, Verb
from tests.simulation.digests import check_digests
from tests.simulation.disks import Disk
from tests.simulation.engine_store import EngineStore
from tests.simulation.scenario import HEAVY_BYTES, HEAVY_KEY, KEYS, MakeDisk
from tests.simulation.world import START_MS, World

ALL_KEYS = (*KEYS, HEAVY_KEY)
MORTAL = (
    Request(Verb.DELETE, b""),
    Request(Verb.DELETE, b""),
    Request(Verb.SET, b"", values=(b"x",)),
    Request(Verb.ADD, b"", names=(b"a", b"b")),
    Request(Verb.REMOVE, b"", names=(b"a", b"b")),
)


@dataclass(slots=True)
class Shipment:
    """A batch somewhere on its way.

    `life` is the sender's when it was made: a pull asks that very process. `whole`: it holds the updates
    of all origins, so that nobody needs to be asked.
    """

    data: bytes
    sender: Region
    life: int
    whole: bool


class Region:
    """A disk and the store on it."""

    def __init__(self, disk: Disk, history: History) -> None:
        self.disk = disk
        self.history = history
        self.life = 0
        self.replica: Replica
        self.vectors: list[dict[int, int]] = [{}]  # some that its store once held

    def open(self, now_ms: int) -> None:
        pulled = self.replica.pulled if self.life else []
        self.life += 1
        self.replica = Replica(self.disk.open(now_ms), self.history, pulled)
        self.replica.restarted()


class DirectScenario:
    """One run, made from a seed."""

    def __init__(self, seed: int, make_disk: MakeDisk, tell: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, tell=tell)
        self.random: Random = self.world.random
        history = History()
        durability = self.random.choice(("always", "interval", "os"))
        self.heavy = self.random.choice((0.0, 0.5))
        self.collects = self.random.random() < 0.5
        self.regions = [
            Region(make_disk(number, self.random, durability), history)
            for number in range(1, self.random.choice((3, 4, 4)))
        ]
        self.under_way: list[Shipment] = []

    @property
    def now_ms(self) -> int:
        return START_MS + int(self.world.now * 1000)

    def run(self) -> dict[str, int]:
        """Run to the end. Returns counts of what happened; raises AssertionError when something is wrong."""
        for region in self.regions:
            region.open(self.now_ms)
        for _ in range(self.random.randrange(20, 120)):
            self.world.now += self.random.choice((0.0, 0.0, 0.0, 0.001, 0.05))
            for region in self.regions:
                region.replica.store.set_time(self.now_ms)
            self.random.choice(STEPS)(self)
        self.settle()
        self.check()
        return self.world.counts

    def pair(self) -> list[Region]:
        return self.random.sample(self.regions, 2)

    # Steps.

    def write(self) -> None:
        region = self.random.choice(self.regions)
        request = region.replica.make_request(self.random, self.random.choice(KEYS))
        if self.random.random() < self.heavy:
            request = Request(Verb.SET, HEAVY_KEY, values=(self.random.randbytes(HEAVY_BYTES),))
        elif self.collects and self.random.random() < 0.7:
            # What is wrong with collecting shows where writes meet deletes that they haven't seen.
            request = replace(self.random.choice(MORTAL), key=request.key)
        reply = region.replica.execute(request)
        self.world.count("operations")
        self.world.tell(f"{region.disk.number} {request} -> {reply!r}")

    def send(self) -> None:
        """Put batches on the way, for some vector that the receiver has or once had."""
        sender, receiver = self.pair()
        since = self.random.choice((receiver.replica.store.applied, self.random.choice(receiver.vectors)))
        own = {region.replica.store.origin >> 16 for region in (sender, receiver)}
        store_ids = self.random.choice((own, None))
        batches: list[bytes] = []
        try:
            stream = sender.replica.open_stream(since, store_ids)
            for _ in range(self.random.randrange(1, 5)):
                batch = stream.next_batch(self.random.choice((1, 2, 100)))
                if batch is None:
                    break
                batches.append(batch)
            stream.close()
        except LogCutError:
            self.world.count("log cuts")
            batches = list(sender.replica.resync_batches(since, store_ids))
            if self.random.random() < 0.3:
                self.random.shuffle(batches)
        self.under_way += [Shipment(batch, sender, sender.life, store_ids is None) for batch in batches]

    def deliver(self) -> None:
        """One of the batches arrives, at anybody; it may arrive again."""
        if not self.under_way:
            return
        index = self.random.choice((0, 0, self.random.randrange(len(self.under_way))))
        shipment = self.under_way[index]
        if self.random.random() < 0.7:
            del self.under_way[index]
        region = self.random.choice(self.regions)
        before = self.picture(region)
        refused: Exception | None = None
        try:
            if shipment.whole:
                region.replica.apply(shipment.data)
            else:
                region.replica.receive(shipment.data, LivingSender(shipment))
            self.world.count("batches")
        except (GapError, ClockDriftError) as error:
            refused = error
        except ProtocolError as error:
            # A pull can bring a state that doesn't help; a batch that needs none must apply or name its gap.
            if shipment.whole:
                raise
            refused = error
        except SenderGone:
            self.world.count("senders gone")
        if refused is not None:
            self.world.count(type(refused).__name__)
            assert self.picture(region) == before, f"a refused batch changed something: {refused}"
        if isinstance(refused, GapError):
            held = region.replica.store.applied.get(refused.origin, 0)
            assert held == refused.held < refused.required, f"the error names another gap than there is: {refused}"
        if self.random.random() < 0.7:
            region.replica.store.commit()
        for key in ALL_KEYS:
            region.replica.check(key)
        region.vectors.append(dict(region.replica.store.applied))

    def picture(self, region: Region) -> Any:
        """All that a refused batch must leave as it is."""
        store = region.replica.store
        return dict(store.applied), [(store.reading(key), store.context(key)) for key in ALL_KEYS]

    def restart(self) -> None:
        region = self.random.choice(self.regions)
        store = region.replica.store
        if self.random.random() < 0.3:
            region.disk.close(store)
        else:
            self.world.count("crashes")
            region.disk.crash(store)
            if self.collects:
                # What a process had sent and then lost ends with it, as a connection does: see docs/embedding.md.
                self.under_way = [shipment for shipment in self.under_way if shipment.sender is not region]
        region.open(self.now_ms)
        for key in ALL_KEYS:
            region.replica.check(key)

    def sync(self) -> None:
        region = self.random.choice(self.regions)
        region.disk.sync(region.replica.store)

    def reconcile(self) -> None:
        """Two regions join what differs, whatever their logs say; the rest goes on by streams."""
        one, other = self.pair()
        one.replica.reconcile(other.replica)
        self.world.count("reconciliations")
        for region in (one, other):
            for key in ALL_KEYS:
                region.replica.check(key)

    def reap(self) -> None:
        region = self.random.choice(self.regions)
        self.world.count("reaped", region.replica.reap(ALL_KEYS))

    def report(self) -> None:
        region = self.random.choice(self.regions)
        if self.collects and isinstance(region.replica.store, EngineStore):
            region.replica.store.report()

    def meet(self) -> None:
        """Two regions exchange all that they have, and say so."""
        one, other = self.pair()
        if self.collects and isinstance(one.replica.store, EngineStore):
            for sender, receiver in ((one, other), (other, one), (one, other)):
                sender.replica.store.report()
                self.catch_up(sender, receiver)
            for key in ALL_KEYS:
                one.replica.check(key)
                other.replica.check(key)

    def collect(self) -> None:
        region = self.random.choice(self.regions)
        if self.collects and isinstance(region.replica.store, EngineStore):
            members = [each.disk.number for each in self.regions]
            raised = region.replica.collect(members, merge_tables=self.random.random() < 0.7)
            self.world.count("horizons", raised)
            self.world.tell(f"{region.disk.number} collects: {region.replica.store.horizon}")

    def wait(self) -> None:
        self.world.now += self.random.choice((0.03, 0.3, 3.0))

    # The end.

    def settle(self) -> None:
        """Everybody gets from everybody what it lacks, in order."""
        for region in self.regions:
            region.replica.store.set_time(self.now_ms)
            region.replica.store.commit()
        for _ in range(3):
            for receiver in self.regions:
                for sender in self.regions:
                    if sender is not receiver:
                        self.catch_up(sender, receiver)

    def catch_up(self, sender: Region, receiver: Region) -> None:
        since = dict(receiver.replica.store.applied)
        try:
            stream = sender.replica.open_stream(since)
            while (batch := stream.next_batch()) is not None:
                receiver.replica.receive(batch, sender.replica)
        except LogCutError:
            for batch in sender.replica.resync_batches(since):
                receiver.replica.receive(batch, sender.replica)
        receiver.replica.store.commit()

    def check(self) -> None:
        """Every region shows what the history says."""
        applied = dict(self.regions[0].replica.store.applied)
        for region in self.regions:
            assert dict(region.replica.store.applied) == applied
        check_digests([region.replica.store for region in self.regions])
        for key in ALL_KEYS:
            wanted = self.regions[0].history.final(key, applied).reading(self.now_ms)
            for region in self.regions:
                region.replica.check(key)
                shown = region.replica.store.reading(key)
                assert shown == wanted, f"{region.disk.number} shows {shown!r} for {key!r}, but must show {wanted!r}"
            if self.collects:
                continue  # what doesn't show depends on what was dropped
            states = [normal(region.replica.store.key_model(key)) for region in self.regions]
            assert all(state == states[0] for state in states), f"the states of {key!r} differ: {states}"


class SenderGone(Exception):
    """Whoever made the batch has restarted since: there is nobody to pull from."""


class LivingSender(Replica):
    """The sender of a batch, as long as it is the process that made it."""

    def __init__(self, shipment: Shipment) -> None:
        super().__init__(shipment.sender.replica.store, shipment.sender.history, shipment.sender.replica.pulled)
        self.shipment = shipment

    def key_state(self, namespace_key: bytes) -> bytes:
        if self.shipment.life != self.shipment.sender.life:
            raise SenderGone
        return super().key_state(namespace_key)


STEPS: tuple[Callable[[DirectScenario], None], ...] = (
    *(DirectScenario.write,) * 8,
    *(DirectScenario.send,) * 4,
    *(DirectScenario.deliver,) * 7,
    DirectScenario.report,
    *(DirectScenario.meet,) * 5,
    *(DirectScenario.collect,) * 2,
    DirectScenario.reconcile,
    DirectScenario.restart,
    DirectScenario.sync,
    DirectScenario.reap,
    DirectScenario.wait,
)
