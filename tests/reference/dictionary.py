"""A store as a plain dictionary: what one store that nobody else writes to must show after a list of operations.

Operations are drawn from a seeded source and don't depend on what the store holds, so that whoever
knows the seed knows them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import everwrite
from everwrite import access
from tests.reference.sketch import estimate, groups_of, union

# What a key shows: a string or counter, a set, a map, or of the other kinds their name and what they show: of a
# HyperLogLog its registers, because of items that are added later no one could tell the count by the count. Absent keys
# are absent here, too.
Value = bytes | frozenset[bytes] | dict[bytes, bytes] | tuple[str, object]
State = dict[bytes, Value]


def kind_of(value: Value) -> str:
    """The name of what a key holds that shows `value`, as `Database.kind` has it."""
    if isinstance(value, tuple):
        return value[0]
    return {bytes: "string", frozenset: "set", dict: "map"}[type(value)]


@dataclass(frozen=True, slots=True)
class Operation:
    """`verb` on `key`; `parts` are pairs, elements or fields; a batch holds `inner` operations."""

    verb: str
    key: bytes = b""
    parts: tuple[bytes, ...] = ()
    amount: int = 0
    inner: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        if self.inner:
            return f"{self.verb}[{', '.join(map(str, self.inner))}]"
        sizes = ", ".join(repr(part) if len(part) < 12 else f"{len(part)} bytes" for part in self.parts)
        return f"{self.verb} {self.key.decode()} {sizes} {self.amount or ''}".rstrip()


# As often as they stand here.
SIMPLE_VERBS = (
    *("put", "put", "put", "put_ttl", "delete", "increment", "increment", "add", "add", "discard"),
    *("set_fields", "set_fields", "remove_field", "increment_field", "put_many"),
    *("multi_set", "enable", "disable", "update_max", "update_min"),
    *("set_scores", "set_scores", "increment_score", "discard_members", "sketch_add"),
    *("insert_items", "insert_items", "remove_items", "grant", "grant_and_spend"),
)

# The letter of a key says what it holds: string, number, set, map, multi-value register, flag, maximum, minimum,
# sorted set (z), HyperLogLog, bounded counter, sequence (q).
LETTERS = "snemrfxyzhbq"
KEYS_PER_KIND = 8
FAR_SECONDS = 1e6
BOUNDED_MINIMUM = -5
# Sums of quarters are exact.
SCORE_UNIT = 0.25
ITEMS_REMOVED = 2


def keys_of(owner: int) -> list[bytes]:
    """All keys that operations of this owner touch."""
    return [b"%d/%c%d" % (owner, kind, number) for kind in LETTERS.encode() for number in range(KEYS_PER_KIND)]


class Source:
    """Draws operations on the keys of one owner. `large_bytes`: how large the occasional large value is."""

    def __init__(self, random: Random, owner: int = 0, *, large_bytes: int = 20_000) -> None:
        self.random = random
        self.owner = owner
        self.large_bytes = large_bytes

    def _key(self, kind: str) -> bytes:
        return b"%d/%s%d" % (self.owner, kind.encode(), self.random.randrange(KEYS_PER_KIND))

    def _value(self) -> bytes:
        size = self.random.choice((0, 3, 30, 200, 200, 1500))
        if self.random.random() < 0.03:
            size = self.random.randrange(self.large_bytes)
        # Half of it compresses.
        return self.random.randbytes(size // 2) + b"v" * (size - size // 2)

    def _names(self) -> tuple[bytes, ...]:
        return tuple({b"e%d" % self.random.randrange(20): None for _ in range(self.random.choice((1, 1, 3, 6)))})

    def draw(self) -> Operation:
        """The next operation that changes one key, or several by one batch."""
        if self.random.random() < 0.1:
            drawn = [self._simple() for _ in range(self.random.randrange(2, 12))]
            return Operation(
                "batch", inner=tuple(each for operation in drawn for each in operation.inner or [operation])
            )
        return self._simple()

    def _simple(self) -> Operation:
        verb = self.random.choice(SIMPLE_VERBS)
        match verb:
            case "put" | "put_ttl":
                return Operation(verb, self._key("s"), (self._value(),))
            case "delete":
                return Operation(verb, self._key(self.random.choice(LETTERS)))
            case "increment":
                return Operation(verb, self._key("n"), amount=self.random.randrange(-5, 10))
            case "add" | "discard":
                return Operation(verb, self._key("e"), self._names())
            case "set_fields":
                fields = self._names()
                return Operation(verb, self._key("m"), tuple(part for name in fields for part in (name, self._value())))
            case "remove_field":
                return Operation(verb, self._key("m"), self._names()[:1])
            case "put_many":
                keys = {self._key("s"): None for _ in range(self.random.randrange(1, 6))}
                return Operation(verb, parts=tuple(part for key in keys for part in (key, self._value())))
            case "multi_set":
                return Operation(verb, self._key("r"), (self._value(),))
            case "enable" | "disable":
                return Operation(verb, self._key("f"))
            case "update_max" | "update_min":
                return Operation(
                    verb, self._key("x" if verb == "update_max" else "y"), amount=self.random.randrange(-50, 50)
                )
            case "set_scores" | "discard_members":
                return Operation(verb, self._key("z"), self._names(), self.random.randrange(-50, 50))
            case "increment_score":
                return Operation(verb, self._key("z"), self._names()[:1], self.random.randrange(-50, 50))
            case "sketch_add":
                return Operation(verb, self._key("h"), self._names())
            case "insert_items":
                items = tuple(self._value() for _ in range(self.random.choice((1, 1, 3))))
                return Operation(verb, self._key("q"), items, self.random.randrange(8))
            case "remove_items":
                return Operation(verb, self._key("q"), amount=self.random.randrange(8))
            case "grant":
                return Operation(verb, self._key("b"), amount=self.random.randrange(1, 10))
            case "grant_and_spend":
                # A store that came back as a new incarnation has no rights but those that it makes itself.
                key, amount = self._key("b"), self.random.randrange(1, 10)
                spent = Operation("spend", key, amount=self.random.randrange(1, amount + 1))
                return Operation("batch", inner=(Operation("grant", key, amount=amount), spent))
        # A field that is counted has a name of its own: other text in it would be refused.
        return Operation("increment_field", self._key("m"), (b"count",), amount=self.random.randrange(-5, 10))


def apply(db: everwrite.Database, operation: Operation) -> None:
    """Do it to a store."""
    key, parts = operation.key, operation.parts
    match operation.verb:
        case "put":
            db.put(key, parts[0])
        case "put_ttl":
            db.put(key, parts[0], ttl=FAR_SECONDS)
        case "delete":
            db.delete(key)
        case "increment":
            db.counter(key).increment(operation.amount)
        case "add":
            db.set(key).add(*parts)
        case "discard":
            db.set(key).discard(*parts)
        case "set_fields":
            db.map(key).set(dict(_pairs(parts)))
        case "remove_field":
            db.map(key).pop(parts[0], None)
        case "increment_field":
            db.map(key).increment(parts[0], operation.amount)
        case "put_many":
            db.put_many(dict(_pairs(parts)))
        case "multi_set":
            db.multi(key).set(parts[0])
        case "enable":
            db.flag(key).enable()
        case "disable":
            db.flag(key).disable()
        case "update_max":
            db.max(key).update(operation.amount)
        case "update_min":
            db.min(key).update(operation.amount)
        case "set_scores":
            db.sorted_set(key).update(_scores(operation))
        case "increment_score":
            db.sorted_set(key).increment(parts[0], operation.amount * SCORE_UNIT)
        case "discard_members":
            db.sorted_set(key).discard(*parts)
        case "sketch_add":
            db.hyperloglog(key).add(*parts)
        case "insert_items":
            db.sequence(key).insert_all(operation.amount, parts)
        case "remove_items":
            del db.sequence(key)[operation.amount : operation.amount + ITEMS_REMOVED]
        case "grant":
            db.bounded_counter(key, BOUNDED_MINIMUM).increment(operation.amount)
        case "spend":
            db.bounded_counter(key, BOUNDED_MINIMUM).decrement(operation.amount)
        case "batch":
            with db.batch() as batch:
                for inner in operation.inner:
                    apply(batch, inner)
        case _:
            raise ValueError(operation.verb)


def outcomes(operation: Operation) -> list[Operation]:
    """What may have been done, besides nothing, of an operation that was cut short: only put_many isn't atomic."""
    if operation.verb != "put_many":
        return [operation]
    return [Operation("put_many", parts=operation.parts[:end]) for end in range(2, len(operation.parts) + 1, 2)]


def _pairs(parts: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    return zip(parts[::2], parts[1::2], strict=True)


def _scores(operation: Operation) -> dict[bytes, float]:
    return {member: (operation.amount + i) * SCORE_UNIT for i, member in enumerate(operation.parts)}


def apply_to(state: State, operation: Operation) -> None:
    """Do it to a dictionary."""
    key, parts = operation.key, operation.parts
    old = state.pop(key, None)
    match operation.verb:
        case "put" | "put_ttl":
            state[key] = parts[0]
        case "delete":
            pass
        case "increment":
            state[key] = _plus(old, operation.amount)
        case "add" | "discard":
            elements = old if isinstance(old, frozenset) else frozenset()
            elements = elements | set(parts) if operation.verb == "add" else elements - set(parts)
            if elements:
                state[key] = elements
        case "set_fields" | "remove_field" | "increment_field":
            fields = dict(old) if isinstance(old, dict) else {}
            if operation.verb == "set_fields":
                fields.update(_pairs(parts))
            elif operation.verb == "remove_field":
                fields.pop(parts[0], None)
            else:
                fields[parts[0]] = _plus(fields.get(parts[0]), operation.amount)
            if fields:
                state[key] = fields
        case "put_many":
            state.update(_pairs(parts))
        case "multi_set":
            state[key] = ("multi", (parts[0],))
        case "enable":
            state[key] = ("flag", True)
        case "disable":
            pass
        case "update_max":
            state[key] = ("max", max(_amount(old, operation.amount), operation.amount))
        case "update_min":
            state[key] = ("min", min(_amount(old, operation.amount), operation.amount))
        case "set_scores" | "increment_score" | "discard_members":
            scores = dict(_content(old))
            if operation.verb == "set_scores":
                scores.update(_scores(operation))
            elif operation.verb == "increment_score":
                scores[parts[0]] = scores.get(parts[0], 0.0) + operation.amount * SCORE_UNIT
            else:
                scores = {member: score for member, score in scores.items() if member not in parts}
            if scores:
                state[key] = ("sorted set", tuple(sorted(scores.items(), key=lambda pair: pair[::-1])))
        case "sketch_add":
            groups = dict(_content(old))
            for name, group in groups_of(parts).items():
                groups[name] = union(groups.get(name, group), group)
            state[key] = ("hyperloglog", tuple(sorted(groups.items())))
        case "insert_items" | "remove_items":
            items = list(_content(old))
            if operation.verb == "insert_items":
                items[operation.amount : operation.amount] = parts
            else:
                del items[operation.amount : operation.amount + ITEMS_REMOVED]
            if items:
                state[key] = ("sequence", tuple(items))
        case "grant":
            state[key] = ("bounded counter", _amount(old, BOUNDED_MINIMUM) + operation.amount)
        case "spend":
            state[key] = ("bounded counter", _amount(old, BOUNDED_MINIMUM) - operation.amount)
        case "batch":
            for inner in operation.inner:
                apply_to(state, inner)
        case _:
            raise ValueError(operation.verb)


def _plus(old: Value | None, amount: int) -> bytes:
    return b"%d" % (int(old if isinstance(old, bytes) else 0) + amount)


def _amount(old: Value | None, otherwise: int) -> int:
    return old[1] if isinstance(old, tuple) and isinstance(old[1], int) else otherwise


def _content(old: Value | None) -> tuple[Any, ...]:
    return old[1] if isinstance(old, tuple) and isinstance(old[1], tuple) else ()


def read(db: everwrite.Database, keys: Iterable[bytes]) -> State:
    """What a store shows of `keys`."""
    state: State = {}
    for key in keys:
        match db.kind(key):
            case "none":
                assert key not in db
            case "string":
                state[key] = db[key]
            case "set":
                state[key] = frozenset(db.set(key))
                assert len(db.set(key)) == len(state[key])
            case "map":
                state[key] = dict(db.map(key).items())
                assert len(db.map(key)) == len(state[key])
            case "multi":
                state[key] = ("multi", db.multi(key).values)
            case "flag":
                state[key] = ("flag", db.flag(key).enabled)
            case "max":
                state[key] = ("max", db.max(key).value)
            case "min":
                state[key] = ("min", db.min(key).value)
            case "sorted set":
                members = db.sorted_set(key)
                state[key] = ("sorted set", tuple(members.items()))
                assert len(members) == len(list(members))
                assert all(members[member] == score for member, score in members.items())
            case "hyperloglog":
                sketch = db.hyperloglog(key)
                groups = access.elements(sketch._store, key, "hyperloglog")
                state[key] = ("hyperloglog", tuple(groups))
                assert sketch.count() == estimate(dict(groups))
            case "sequence":
                state[key] = ("sequence", tuple(db.sequence(key)))
                assert len(db.sequence(key)) == len(_content(state[key]))
            case "bounded counter":
                counter = db.bounded_counter(key)
                state[key] = ("bounded counter", counter.value)
                assert counter.minimum == BOUNDED_MINIMUM
                assert sum(counter.rights_by_origin.values()) == counter.value - counter.minimum
            case other:
                raise AssertionError(f"{key!r} holds a {other}, which nobody wrote")
    return state
