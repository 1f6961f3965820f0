"""Random requests that collide: few keys, few elements, every type on every key."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.reference.sketch import GROUP, place_of
from tests.reference.vocabulary import KIND_OF, LOGICAL_BITS, QUARTER, Kind, Request, Verb, score_bytes

NAMES = (b"a", b"b", b"c")
# Items that meet in two groups of a HyperLogLog's registers, some in one register.
ITEMS = tuple([item for item in (b"%d" % i for i in range(2000)) if place_of(item)[0] // GROUP < 2][:10])
TEXTS = (b"7", b"-3", b"x", b"007", b"")
# Increments are frequent: they are what a lost or doubled update shows in at once.
OF_KIND: dict[Kind, tuple[Verb, ...]] = {
    Kind.STRING: (Verb.INCREMENT,) * 5 + (Verb.SET,) * 2 + (Verb.GET,),
    Kind.SET: (Verb.ADD,) * 4 + (Verb.REMOVE,) * 3,
    Kind.MAP: (Verb.FIELD_SET,) * 3 + (Verb.FIELD_INCREMENT,) * 4 + (Verb.FIELD_REMOVE,) * 2,
    Kind.MULTI: (Verb.MULTI_SET,),
    Kind.FLAG: (Verb.FLAG_ENABLE, Verb.FLAG_DISABLE),
    Kind.MAX: (Verb.MAX_UPDATE,),
    Kind.MIN: (Verb.MIN_UPDATE,),
    Kind.HYPERLOGLOG: (Verb.SKETCH_ADD,),
    Kind.SORTED_SET: (Verb.SCORE_SET,) * 3 + (Verb.SCORE_INCREMENT,) * 4 + (Verb.SCORE_REMOVE,) * 2 + (Verb.SCORE_POP,),
    Kind.BOUNDED: (Verb.BOUNDED_INCREMENT,) * 2 + (Verb.BOUNDED_TRANSFER,) * 3 + (Verb.BOUNDED_DECREMENT,) * 3,
    Kind.SEQUENCE: (Verb.ITEM_INSERT,) * 4 + (Verb.ITEM_REMOVE,) * 2 + (Verb.ITEM_SET,),
}
# Of rights and of indexes.
AMOUNTS: dict[Kind | None, tuple[int, ...]] = {Kind.BOUNDED: (1, 1, 2, 10), Kind.SEQUENCE: (0, 0, 1, 2, 3, 10**6)}
OF_ANY = (Verb.DELETE,) * 3 + (Verb.SET,) * 2 + (Verb.EXPIRE,) * 2 + (Verb.PERSIST,)


def choose_verb(random: Random, kind: Kind | None, kinds: Sequence[Kind]) -> Verb:
    """Mostly one that fits what the key holds; `kind` None: it holds nothing."""
    if random.random() < 0.25:
        verb = random.choice(OF_ANY)
        if verb is not Verb.SET or Kind.STRING in kinds:
            return verb
    if kind is None or random.random() < 0.1:
        kind = random.choice(kinds)
    return random.choice(OF_KIND[kind])


def make_request(
    random: Random, key: bytes, now_ms: int, kind: Kind | None, kinds: Sequence[Kind] = tuple(OF_KIND)
) -> Request:
    """A request on the key, of one of the `kinds`. Deadlines are near enough to pass during a run."""
    verb = choose_verb(random, kind, kinds)
    names: tuple[bytes, ...] = ()
    values: tuple[bytes, ...] = ()
    if verb in (Verb.ADD, Verb.REMOVE, Verb.FIELD_SET, Verb.FIELD_REMOVE, Verb.SCORE_SET, Verb.SCORE_REMOVE):
        names = tuple(random.sample(NAMES, random.choice((1, 1, 1, 2, 3))))
    if verb in (Verb.FIELD_INCREMENT, Verb.SCORE_INCREMENT):
        names = (random.choice(NAMES),)
    if verb is Verb.BOUNDED_TRANSFER:
        # Mostly to a store that exists; a transfer to a former or coming incarnation is legal, too.
        names = (b"%d" % (random.randint(1, 3) << LOGICAL_BITS | random.choice((1, 1, 1, 2))),)
    if verb is Verb.SCORE_SET:
        values = tuple(score_bytes(random.randint(-8, 8) * QUARTER) for _ in names)
    if verb is Verb.BOUNDED_INCREMENT:
        values = (random.choice((b"0", b"0", b"-5", b"3")),)
    if verb in (Verb.ITEM_INSERT, Verb.ITEM_SET):
        values = tuple(random.choice(TEXTS) for _ in range(random.choice((1, 1, 3)) if verb is Verb.ITEM_INSERT else 1))
    if verb is Verb.FIELD_SET:
        values = tuple(random.choice(TEXTS) for _ in names)
    if verb is Verb.SKETCH_ADD:
        names = tuple(random.sample(ITEMS, random.choice((1, 1, 2, 3))))
    if verb in (Verb.SET, Verb.MULTI_SET):
        values = (random.choice(TEXTS),)
    deadline_ms = 0
    if verb is Verb.EXPIRE or (verb is Verb.SET and random.random() < 0.3):
        deadline_ms = now_ms + random.choice((-1, 1, 20, 200, 2000, 10**6) if verb is Verb.EXPIRE else (20, 200, 10**6))
    return Request(
        verb,
        key,
        names,
        values,
        amount=random.choice(AMOUNTS.get(KIND_OF.get(verb), (1, 1, 2, -1, 10))),
        deadline_ms=deadline_ms,
        keep_deadline=verb is Verb.SET and not deadline_ms and random.random() < 0.2,
    )
