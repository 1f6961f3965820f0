"""Reconciliation: two stores find the keys in which they differ, and join the states of these.

Sans-I/O. One side asks (`Initiator`), the other answers (`Responder`); each takes a message as bytes
and gives the next one, over whatever carries bytes. What differs is found by descending a tree of
sums over ranges of the keys' hashes (Merkle 1987; the sums are those of `digest`): d differences among n
keys cost O(d log n) bytes and O(log n) round trips. docs/protocols/reconcile.md has the messages byte by byte.

Writes meanwhile are harmless: differences are hints, and joining is idempotent. No prefix of anybody's log
is claimed: `applied` stays as it is on both sides.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from everwrite import exchange
from everwrite.batch import STATES, decode_batch, encode_batch
from everwrite.clock import compare, covers
from everwrite.errors import LocalProtocolError, LogCutError, ProtocolError
from everwrite.leaf_scan import ITEM, scan_leaves
from everwrite.parts import as_body, split_state
from everwrite.reconcile_messages import (
    Ask,
    Digests,
    Message,
    Offer,
    Push,
    Root,
    States,
    child_bits,
    decode_message,
    encode_message,
)
from everwrite.store import Store

if TYPE_CHECKING:
    from everwrite.database import Database

__all__ = ["Initiator", "Reconciled", "Responder", "sync"]

Numbers: TypeAlias = NDArray[np.uint64]
_M = TypeVar("_M", Root, Digests, States)

LEAF_BITS: Final = 14
NODES_MAX: Final = 1024
"""Nodes that one message asks about."""
LISTED_MAX: Final = 32
"""A node with no more keys than this is answered with their items instead of sums."""
OFFERED_MAX: Final = 512
"""Differing hashes whose keys are exchanged together."""
WINDOW_LEAVES: Final = 1024
"""Differing leaves that are descended into together: what bounds the memory."""
STATES_BYTES: Final = 1 << 20
"""States go in messages of about this size; a single larger one goes alone."""
_LISTED_BITS: Final = 58


@dataclass(frozen=True)
class Reconciled:
    """What a reconciliation came to: keys that differed, states joined here and there, messages and bytes."""

    keys: int = 0
    joined: int = 0
    sent: int = 0
    messages: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


def sums_of(items: NDArray[Any], first: Numbers, bits: int) -> NDArray[np.uint64]:
    """The sums, as rows of (low, high), of the items in ranges of hashes that begin at `first` and have `bits` bits.

    `items` is in order of hash.
    """
    starts = np.searchsorted(items["hash"], first, "left")
    ends = np.searchsorted(items["hash"], first + _last(bits), "right")
    limbs = np.stack([items["low"], items["high"]], axis=1).view("<u4").astype(np.uint64)
    running = np.concatenate([np.zeros((1, 4), np.uint64), np.cumsum(limbs, axis=0)])
    return _carried(running[ends] - running[starts])


def _last(bits: int) -> np.uint64:
    """The distance from the first to the last hash of a range that `bits` bits name."""
    return np.uint64((1 << (64 - bits)) - 1)


def _carried(limbs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sums of four 32-bit limbs, each too wide, as rows of (low, high) modulo 2^128."""
    limbs = limbs.copy()
    for at in range(3):
        limbs[:, at + 1] += limbs[:, at] >> np.uint64(32)
    limbs &= np.uint64(0xFFFFFFFF)
    return np.stack([limbs[:, 0] | limbs[:, 1] << np.uint64(32), limbs[:, 2] | limbs[:, 3] << np.uint64(32)], axis=1)


def children_of(prefixes: Numbers, bits: int) -> Numbers:
    """The first hashes of the children of nodes, in order."""
    width = child_bits(bits)
    steps = np.arange(1 << (width - bits), dtype=np.uint64) << np.uint64(64 - width)
    return (prefixes[:, None] + steps[None, :]).ravel()


class Contents:
    """What one store holds, as sums: of the leaves at once, below them after a scan of the leaves asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._scanned = np.zeros(0, np.int64)
        self._items = np.zeros(0, ITEM)
        self._keys: list[bytes] = []

    def root(self) -> bytes:
        return self.store.digest()

    def upper_sums(self, prefixes: Numbers, bits: int) -> NDArray[np.uint64]:
        """The sums of ranges no finer than leaves, from the leaves as they are now."""
        limbs = np.frombuffer(self.store.digest_leaves(), "<u4").reshape(-1, 1 << (LEAF_BITS - bits), 4)
        return _carried(limbs.sum(axis=1, dtype=np.uint64))[(prefixes >> np.uint64(64 - bits)).astype(np.int64)]

    def scan(self, hashes: Numbers, *, anew: bool = False) -> None:
        """See to it that the leaves of these hashes are among those scanned; `anew`: as they are now."""
        leaves = np.unique((hashes >> np.uint64(64 - LEAF_BITS)).astype(np.int64))
        if anew or not np.isin(leaves, self._scanned).all():
            self._items, self._keys = scan_leaves(self.store, leaves)
            self._scanned = leaves

    def lower_sums(self, prefixes: Numbers, bits: int) -> NDArray[np.uint64]:
        """The sums of scanned ranges."""
        return sums_of(self._items, prefixes, bits)

    def within(self, prefix: np.uint64, bits: int) -> slice:
        """Where the scanned keys of a node stand."""
        hashes = self._items["hash"]
        start = np.searchsorted(hashes, prefix, "left")
        return slice(int(start), int(np.searchsorted(hashes, prefix + _last(bits), "right")))

    def alive(self, prefixes: Numbers, bits: int) -> Iterator[NDArray[Any]]:
        """Of each scanned node, the items of keys of which something is alive."""
        for prefix in prefixes:
            items = self._items[self.within(prefix, bits)]
            yield items[(items["low"] != 0) | (items["high"] != 0)]

    def keys(self, hashes: Iterable[int]) -> list[bytes]:
        """The scanned keys with these hashes, also of those of which nothing is alive."""
        found: list[bytes] = []
        for each in hashes:
            found += self._keys[self.within(np.uint64(each), 64)]
        return found


def differing_items(mine: NDArray[Any], theirs: NDArray[Any]) -> set[int]:
    """The hashes of keys that only one side has, or whose items differ."""
    if len(mine) == len(theirs) and np.array_equal(mine, theirs):
        return set()
    return {each[0] for each in set(mine.tolist()) ^ set(theirs.tolist())}


class Initiator:
    """The side that asks. `start` gives the first message, `receive` takes an answer and gives the next message.

    Not thread-safe; the store may be used by others meanwhile. After an exception it is of no further use.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._contents = Contents(store)
        self._outbox = _Outbox(store)
        self._conversation = self._converse()
        self._counts = {"keys": 0, "joined": 0, "sent": 0, "messages": 0, "bytes_sent": 0, "bytes_received": 0}
        self._started = False
        self.done = False

    def start(self) -> bytes:
        """The first message."""
        if self._started:
            raise LocalProtocolError("this reconciliation was started before: make another one")
        self._started = True
        return self._encode(next(self._conversation))

    def receive(self, data: bytes) -> bytes | None:
        """Take an answer; the next message, or None when all is done.

        Raises ProtocolError when the answer is malformed or none to what was asked, ClockDriftError when
        it has timestamps too far ahead; states that earlier answers brought stay joined.
        """
        if not self._started or self.done:
            raise LocalProtocolError("no answer is expected: the reconciliation hasn't begun, or is over")
        self._counts["messages"] += 1
        self._counts["bytes_received"] += len(data)
        try:
            message = self._conversation.send(decode_message(data))
        except StopIteration:
            self.done = True
            return None
        return self._encode(message)

    @property
    def result(self) -> Reconciled:
        """What it has come to so far."""
        return Reconciled(**self._counts)

    def _encode(self, message: Message) -> bytes:
        data = encode_message(message)
        self._counts["messages"] += 1
        self._counts["bytes_sent"] += len(data)
        return data

    def _converse(self) -> Generator[Message, Message, None]:
        root = self._contents.root()
        answer = yield Root(root)
        if _expect(answer, Root).root == root:
            return
        prefixes = np.zeros(1, np.uint64)
        bits = 0
        while bits < LEAF_BITS:
            prefixes = yield from self._descend(prefixes, bits, set())
            bits = child_bits(bits)
        for window in _chunks(prefixes, WINDOW_LEAVES):
            self._contents.scan(window, anew=True)
            differing: set[int] = set()
            nodes, bits = window, LEAF_BITS
            while len(nodes):
                nodes = yield from self._descend(nodes, bits, differing)
                bits = child_bits(bits)
            hashes = sorted(differing)
            self._counts["keys"] += len(hashes)
            for at in range(0, len(hashes), OFFERED_MAX):
                yield from self._exchange(hashes[at : at + OFFERED_MAX])

    def _descend(self, prefixes: Numbers, bits: int, differing: set[int]) -> Generator[Message, Message, Numbers]:
        """Ask about nodes: the children that differ. Of nodes whose items are listed, these go to `differing`."""
        found = []
        for nodes in _chunks(prefixes, NODES_MAX):
            answer = _expect((yield Ask(bits, nodes)), Digests)
            if answer.bits != bits or not np.array_equal(answer.prefixes, nodes):
                raise ProtocolError("malformed answer: it is about other nodes than were asked about")
            if bits < LEAF_BITS and answer.lists:
                raise ProtocolError("malformed answer: it lists the items of a node above the leaves")
            for index, mine in zip(
                answer.lists, self._contents.alive(nodes[list(answer.lists)], bits) if answer.lists else (), strict=True
            ):
                theirs = answer.lists[index]
                first, last = nodes[index], nodes[index] + _last(bits)
                if len(theirs) and (theirs["hash"].min() < first or theirs["hash"].max() > last):
                    raise ProtocolError("malformed answer: an item lies outside of its node")
                differing |= differing_items(mine, theirs)
            summed = nodes[[index for index in range(len(nodes)) if index not in answer.lists]]
            if bits >= _LISTED_BITS and len(summed):
                raise ProtocolError("malformed answer: a node this small must be listed")
            if len(summed):
                children = children_of(summed, bits)
                finer = child_bits(bits)
                own = self._contents.upper_sums if finer <= LEAF_BITS else self._contents.lower_sums
                differs = np.any(own(children, finer) != answer.sums, axis=1)
                found.append(children[differs])
        return np.concatenate(found) if found else np.zeros(0, np.uint64)

    def _exchange(self, hashes: list[int]) -> Generator[Message, Message, None]:
        """Join the states of the keys with these hashes, both ways."""
        keys = self._contents.keys(hashes)
        held = exchange.contexts(self._store, keys)
        offers = {key: context for key, context in zip(keys, held, strict=True) if context}
        horizon = self._store.horizon_dict()
        answer = _expect((yield Offer(np.array(hashes, np.uint64), offers, horizon)), States)
        self._join(answer)
        # Of a key that was collected here, the state is that nothing is left of it.
        if not horizon and not set(answer.wanted) <= offers.keys():
            raise ProtocolError("malformed answer: it wants keys that weren't offered")
        wanted, left = list(answer.wanted), list(answer.left)
        while wanted or left:
            batch, taken = self._outbox.collect(wanted)
            self._counts["sent"] += taken
            fetched, left = left[:OFFERED_MAX], left[OFFERED_MAX:]
            wanted = wanted[taken:]
            answer = _expect((yield Push(batch, fetched)), States)
            self._join(answer)
            fewer = answer.batch or len(answer.left) < len(fetched)
            if answer.wanted or not set(answer.left) <= set(fetched) or (fetched and not fewer):
                raise ProtocolError("malformed answer: it brings nothing of what was asked for")
            left = list(answer.left) + left

    def _join(self, answer: States) -> None:
        self._counts["joined"] += _join(self._store, answer.batch, self)


class Responder:
    """The side that answers. Any message may be the last one; nothing is kept that matters but for speed.

    Not thread-safe; the store may be used by others meanwhile.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._contents = Contents(store)
        self._outbox = _Outbox(store)

    def receive(self, data: bytes) -> bytes:
        """Take a message; the answer.

        Raises ProtocolError when it is malformed, ClockDriftError when it has states with timestamps too
        far ahead; nothing of it was joined then.
        """
        message = decode_message(data)
        match message:
            case Root():
                answer: Message = Root(self._contents.root())
            case Ask():
                answer = self._digests(message)
            case Offer():
                answer = self._offered(message)
            case Push():
                _join(self._store, message.batch, self)
                answer = self._states(list(message.fetch), [])
            case _:
                raise ProtocolError(f"malformed message: a {type(message).__name__} is an answer, not a question")
        return encode_message(answer)

    def _digests(self, ask: Ask) -> Digests:
        if len(ask.prefixes) > NODES_MAX:
            raise ProtocolError(f"a message asks about {len(ask.prefixes)} nodes; the limit is {NODES_MAX}")
        if ask.bits < LEAF_BITS:
            return Digests(
                ask.bits,
                ask.prefixes,
                {},
                self._contents.upper_sums(children_of(ask.prefixes, ask.bits), child_bits(ask.bits)),
            )
        self._contents.scan(ask.prefixes, anew=ask.bits == LEAF_BITS)
        lists = {
            index: items
            for index, items in enumerate(self._contents.alive(ask.prefixes, ask.bits))
            if len(items) <= LISTED_MAX or ask.bits >= _LISTED_BITS
        }
        summed = ask.prefixes[[index for index in range(len(ask.prefixes)) if index not in lists]]
        sums = np.zeros((0, 2), np.uint64)
        if len(summed):
            sums = self._contents.lower_sums(children_of(summed, ask.bits), child_bits(ask.bits))
        return Digests(ask.bits, ask.prefixes, lists, sums)

    def _offered(self, offer: Offer) -> States:
        if len(offer.hashes) > OFFERED_MAX:
            raise ProtocolError(f"a message offers {len(offer.hashes)} hashes; the limit is {OFFERED_MAX}")
        self._contents.scan(offer.hashes)
        offered = list(offer.keys)
        others = [key for key in self._contents.keys(offer.hashes.tolist()) if key not in offer.keys]
        wanted: list[bytes] = []
        give: list[bytes] = []
        keys = others + offered
        collects = offer.horizon or self._store.horizon_dict()
        for key, held in zip(keys, exchange.contexts(self._store, keys), strict=True):
            theirs = offer.keys.get(key, offer.horizon)
            order = compare(held, theirs)
            # Behind a horizon contexts don't tell who knows more: a late write may have met a delete on one side only.
            if (collects and theirs) or order in ("before", "concurrent"):
                wanted.append(key)
            if collects or order in ("after", "concurrent"):
                give.append(key)
        return self._states(give, wanted)

    def _states(self, keys: list[bytes], wanted: list[bytes]) -> States:
        batch, taken = self._outbox.collect(keys)
        return States(batch, wanted, keys[taken:])


class _Outbox:
    """States on their way out, a message at a time; one that is large in parts, as it was when it began."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key: bytes | None = None
        self._parts: list[bytes] = []

    def collect(self, keys: list[bytes]) -> tuple[bytes, int]:
        """A batch with states of the first of these keys, or with some parts of one, and how many keys it finishes."""
        if not keys:
            return b"", 0
        if keys[0] != self._key:
            states, taken = exchange.collect_states(self._store, keys, STATES_BYTES)
            if len(states) != 1 or len(states[0]) <= STATES_BYTES:
                return self._pack(states), taken
            self._key, self._parts = keys[0], split_state(states[0])
        parts = [self._parts.pop(0)]
        if self._parts:
            return self._pack(parts), 0
        self._key = None
        return self._pack(parts), 1

    def _pack(self, states: list[bytes]) -> bytes:
        return encode_batch(STATES, [], len(states), as_body(states)) if states else b""


def _join(store: Store, packed: bytes, scope: Initiator | Responder) -> int:
    """Join states or parts from a message; how many, durable as the store was opened for."""
    if not packed:
        return 0
    batch = decode_batch(packed)
    if batch.kind != STATES:
        raise ProtocolError("malformed message: its batch is not one of states; nothing of it was joined")
    exchange.join_states(store, batch.body, batch.count, scope)
    store.commit_log()
    return batch.count


def _expect(message: Message, wanted: type[_M]) -> _M:
    if not isinstance(message, wanted):
        raise ProtocolError(f"a {type(message).__name__} came in answer; expected was a {wanted.__name__}")
    return message


def _chunks(numbers: Numbers, size: int) -> Iterator[Numbers]:
    for at in range(0, len(numbers), size):
        yield numbers[at : at + size]


def sync(a: Database, b: Database) -> Reconciled:
    """Bring two open stores to hold the same: by changes where the logs reach, the rest by reconciliation.

    What others write meanwhile may be in or not. When a log was cut past what the other store holds,
    states are joined, and `applied` of the two may differ although they show the same: `digest` tells. A store that
    lacks what the other may have collected gets a resync of all of it. At the end both report, for `Database.collect`.
    Raises ClockDriftError when the clocks are too far apart, ProtocolError when the stores share an origin, TypeError
    for anything but open stores: snapshots are read-only.
    """
    for store in (a, b):
        if not isinstance(store, Store):
            raise TypeError(f"{store!r} isn't an open store: give what everwrite.open returned")
    pairs = ((a, b), (b, a))
    # Once a store has taken a resync, its log serves nobody who lacks what was there before: streams come first.
    for sender, receiver in sorted(pairs, key=lambda pair: not covers(pair[1].applied, pair[0].horizon)):
        _stream(sender, receiver)
    asking, answering = Initiator(a), Responder(b)
    message: bytes | None = asking.start()
    while message is not None:
        message = asking.receive(answering.receive(message))
    for sender, receiver in pairs:
        if sender.report():
            _stream(sender, receiver)
    return asking.result


def _stream(sender: Database, receiver: Database) -> None:
    """Apply what the receiver lacks of the sender's log, as far as the log goes."""
    sender.commit()
    if not covers(receiver.applied, sender.horizon):
        for states in sender.resync_batches(receiver.applied):
            receiver.apply(states)
    try:
        stream = sender.open_stream(receiver.applied)
    except LogCutError:
        return
    try:
        while (batch := stream.next_batch(5000, STATES_BYTES)) is not None:
            receiver.apply(batch)
    except LogCutError:
        return
    finally:
        stream.close()
