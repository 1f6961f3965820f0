"""Random requests that collide: few keys, few elements, every type on every key."""

from __future__ import annotations

from random import Random

from tests.reference.vocabulary import Kind, Request, Verb

NAMES = (b"a", b"b", b"c")
TEXTS = (b"7", b"-3", b"x", b"007", b"")
# Increments are frequent: they are what a lost or doubled update shows in at once.
OF_KIND: dict[Kind, tuple[Verb, ...]] = {
    Kind.STRING: (Verb.INCREMENT,) * 5 + (Verb.SET,) * 2 + (Verb.GET,),
    Kind.SET: (Verb.ADD,) * 4 + (Verb.REMOVE,) * 3,
    Kind.MAP: (Verb.FIELD_SET,) * 3 + (Verb.FIELD_INCREMENT,) * 4 + (Verb.FIELD_REMOVE,) * 2,
}
OF_ANY = (Verb.DELETE,) * 3 + (Verb.SET,) * 2 + (Verb.EXPIRE,) * 2 + (Verb.PERSIST,)


def choose_verb(random: Random, kind: Kind | None) -> Verb:
    """Mostly one that fits what the key holds; `kind` None: it holds nothing."""
    if random.random() < 0.25:
        return random.choice(OF_ANY)
    if kind is None or random.random() < 0.1:
        kind = random.choice(list(OF_KIND))
    return random.choice(OF_KIND[kind])


def make_request(random: Random, key: bytes, now_ms: int, kind: Kind | None) -> Request:
    """A request on the key. Deadlines are near enough to pass during a run."""
    verb = choose_verb(random, kind)
    names: tuple[bytes, ...] = ()
    values: tuple[bytes, ...] = ()
    if verb in (Verb.ADD, Verb.REMOVE, Verb.FIELD_SET, Verb.FIELD_REMOVE):
        names = tuple(random.sample(NAMES, random.choice((1, 1, 1, 2, 3))))
    if verb is Verb.FIELD_INCREMENT:
        names = (random.choice(NAMES),)
    if verb is Verb.FIELD_SET:
        values = tuple(random.choice(TEXTS) for _ in names)
    if verb is Verb.SET:
        values = (random.choice(TEXTS),)
    deadline_ms = 0
    if verb is Verb.EXPIRE or (verb is Verb.SET and random.random() < 0.3):
        deadline_ms = now_ms + random.choice((-1, 1, 20, 200, 2000, 10**6) if verb is Verb.EXPIRE else (20, 200, 10**6))
    return Request(
        verb,
        key,
        names,
        values,
        amount=random.choice((1, 1, 2, -1, 10)),
        deadline_ms=deadline_ms,
        keep_deadline=verb is Verb.SET and not deadline_ms and random.random() < 0.2,
    )
