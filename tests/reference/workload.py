"""Random requests that collide: few keys, few elements, every type on every key."""

from __future__ import annotations

from random import Random

from tests.reference.vocabulary import Request, Verb

NAMES = (b"a", b"b", b"c")
TEXTS = (b"7", b"-3", b"x", b"007", b"")
# Increments are frequent: they are what a lost or doubled update shows in at once.
VERBS = (
    (Verb.INCREMENT, 6),
    (Verb.SET, 4),
    (Verb.DELETE, 3),
    (Verb.ADD, 5),
    (Verb.REMOVE, 4),
    (Verb.FIELD_SET, 4),
    (Verb.FIELD_INCREMENT, 4),
    (Verb.FIELD_REMOVE, 3),
    (Verb.EXPIRE, 2),
    (Verb.PERSIST, 1),
    (Verb.GET, 1),
)
CHOICES = tuple(verb for verb, weight in VERBS for _ in range(weight))


def make_request(random: Random, key: bytes, now_ms: int, verb: Verb | None = None) -> Request:
    """A request on the key. Deadlines are near enough to pass during a run."""
    verb = verb or random.choice(CHOICES)
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
