"""The engine's store with the interface of its slow twin."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

from everwrite import access, ordered_access, register_access
from everwrite.batch import decode_batch
from everwrite.clock import merge
from everwrite.database import Database
from everwrite.errors import InsufficientRightsError, NotAnIntegerError, OverflowError, WrongTypeError
from everwrite.kinds import KIND_NUMBERS
from everwrite.reconcile import Initiator, Responder
from tests.reference.model import KeyState
from tests.reference.model_store import USER
from tests.reference.state_format import read_full_state, read_pushed_states
from tests.reference.vocabulary import (
    QUARTER,
    Dot,
    Kind,
    Reading,
    Refusal,
    Reply,
    Request,
    Shown,
    Vector,
    Verb,
    score_of,
)

REFUSALS = {
    WrongTypeError: Refusal.WRONG_TYPE,
    NotAnIntegerError: Refusal.NOT_AN_INTEGER,
    OverflowError: Refusal.OVERFLOW,
    InsufficientRightsError: Refusal.NO_RIGHTS,
}


class EngineStore:
    """What replication uses is the database's own; requests and readings are in the reference's words."""

    def __init__(self, database: Database) -> None:
        self.database = database
        # Looked up often, by the oracle and by replication.
        self.now_ms = database.now_ms
        self.origin = database.origin

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    @property
    def applied(self) -> dict[int, int]:
        return self.database.applied_dict()

    def execute(self, request: Request) -> Reply:
        """Run one operation: its answer, or why it is refused."""
        try:
            return self._execute(request)
        except tuple(REFUSALS) as error:
            return REFUSALS[type(error)]

    def _execute(self, request: Request) -> Reply:
        database, key = self.database, request.key
        match request.verb:
            case Verb.GET:
                return access.get(database, key)
            case Verb.SET:
                value = request.values[0]
                assert access.put(database, key, value, request.deadline_ms, keep_ttl=request.keep_deadline)
                return None
            case Verb.DELETE:
                return int(access.delete(database, key))
            case Verb.INCREMENT:
                return access.increment(database, key, request.amount)
            case Verb.EXPIRE:
                return int(access.expire_at(database, key, request.deadline_ms))
            case Verb.PERSIST:
                return int(access.expire_at(database, key, 0))
            case Verb.ADD:
                return access.set_add(database, key, request.names)
            case Verb.REMOVE:
                return access.remove_elements(database, key, "set", request.names)
            case Verb.FIELD_SET:
                pairs = zip(request.names, request.values, strict=True)
                return access.map_set(database, key, [part for pair in pairs for part in pair])
            case Verb.FIELD_REMOVE:
                return access.remove_elements(database, key, "map", request.names)
            case Verb.FIELD_INCREMENT:
                return access.map_increment(database, key, request.names[0], request.amount)

            case Verb.MULTI_SET:
                register_access.multi_set(database, key, request.values[0])
                return None
            case Verb.FLAG_ENABLE:
                register_access.flag_enable(database, key)
                return None
            case Verb.FLAG_DISABLE:
                return int(register_access.flag_disable(database, key))
            case Verb.MAX_UPDATE:
                return register_access.extreme_update(database, key, "max", request.amount)
            case Verb.MIN_UPDATE:
                return register_access.extreme_update(database, key, "min", request.amount)
            case Verb.SKETCH_ADD:
                return int(register_access.sketch_add(database, key, request.names))
            case _:
                return execute_ordered(database, request)

    def reading(self, key: bytes) -> Reading:
        """What the key shows."""
        database = self.database
        match access.kind(database, key):
            case "none":
                return None
            case kind:
                return Kind(KIND_NUMBERS[kind]), SHOWN[kind](database, key)

    def context(self, key: bytes) -> Vector:
        """The updates of the key that its state includes."""
        return {
            origin: stamp for origin, stamp in merge(self.kept_context(key), self.database.horizon).items() if stamp
        }

    def kept_context(self, key: bytes) -> Vector:
        """What of the context stands with the key; nothing when the key was collected."""
        context: Vector = self.database.why(key)["context"]
        return context

    def collect(self, members: Collection[int], *, merge_tables: bool) -> bool:
        """Raise the horizon, as far as reports go, and maybe drop what lies behind it. Whether it was raised."""
        before = self.database.horizon
        self.database.collect(members)
        if merge_tables:
            self.database.compact(keep_log=True)
        return self.database.horizon != before

    def key_model(self, key: bytes) -> KeyState:
        """The key's whole state, as the model holds one."""
        named, state = read_full_state(self.database.key_state(USER + key))
        assert named == USER + key
        return state

    def reconcile(self, other: EngineStore) -> None:
        """As the side that asks."""
        asking, answering = Initiator(self.database), Responder(other.database)
        message: bytes | None = asking.start()
        while message is not None:
            message = asking.receive(answering.receive(message))

    def pushed_states(self, batch: bytes) -> list[tuple[bytes, Dot]]:
        """The users' keys whose states go ahead of a change in a batch, and the changes' dots."""
        return [(key[1:], dot) for key, dot in read_pushed_states(decode_batch(batch).body) if key[:1] == USER]

    def reap(self, keys: tuple[bytes, ...]) -> list[tuple[bytes, int]]:
        """Remove keys that are past their deadline: which of `keys`, and the timestamps of these updates."""
        before = self.database.last_timestamp
        self.database.reap_expired()
        if self.database.last_timestamp == before:
            return []
        own = [(key, self.context(key).get(self.origin, 0)) for key in keys]
        return [(key, timestamp) for key, timestamp in own if timestamp > before]


def execute_ordered(database: Database, request: Request) -> Reply:
    """An operation on a sorted set, a bounded counter or a sequence."""
    key, amount, values = request.key, request.amount, request.values
    match request.verb:
        case Verb.SCORE_SET:
            scores = dict(zip(request.names, map(score_of, values), strict=True))
            return ordered_access.sorted_set_add(database, key, scores)[0]
        case Verb.SCORE_INCREMENT:
            return ordered_access.sorted_set_increment(database, key, request.names[0], amount * QUARTER)
        case Verb.SCORE_REMOVE:
            return access.remove_elements(database, key, "sorted set", request.names)
        case Verb.SCORE_POP:
            popped = ordered_access.sorted_set_pop(database, key, amount < 0, 1)
            return popped[0][0] if popped else None
        case Verb.BOUNDED_INCREMENT:
            return ordered_access.bounded_increment(database, key, int(values[0]), amount)
        case Verb.BOUNDED_DECREMENT:
            return ordered_access.bounded_decrement(database, key, amount)
        case Verb.BOUNDED_TRANSFER:
            ordered_access.bounded_transfer(database, key, int(request.names[0]), amount)
            return None
        case Verb.ITEM_INSERT:
            made = ordered_access.sequence_insert(database, key, values, amount)
            assert [ordered_access.sequence_get(database, key, name) for name in made] == list(values)
            return None
        case Verb.ITEM_REMOVE:
            removed = ordered_access.sequence_pop(database, key, amount, False)
            return None if removed is None else removed[1]
        case Verb.ITEM_SET:
            return int(ordered_access.sequence_set_at(database, key, amount, False, values[0]))
        case verb:
            raise AssertionError(f"{verb} is unknown")


def show_scores(database: Database, key: bytes) -> tuple[tuple[bytes, float], ...]:
    """What a sorted set shows by its order; its elements, read one by one, must show the same."""
    handle = database.sorted_set(key)
    shown = tuple(handle.items())
    assert len(shown) == len(handle)
    assert tuple(handle.items(reverse=True)) == shown[::-1]
    assert all(handle[member] == score for member, score in shown)
    return shown


def show_rights(database: Database, key: bytes) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    state = ordered_access.bounded_state(database, key)
    assert state is not None
    return state[0], state[1], tuple(state[2].items())


def show_items(database: Database, key: bytes) -> tuple[tuple[bytes, bytes], ...]:
    handle = database.sequence(key)
    shown = tuple(handle.items())
    assert len(shown) == len(handle)
    assert [handle[index] for index in range(len(shown))] == [value for _, value in shown]
    assert list(reversed(handle)) == [value for _, value in reversed(shown)]
    return shown


def show_string(database: Database, key: bytes) -> bytes:
    value = access.get(database, key)
    assert value is not None
    return value


def show_set(database: Database, key: bytes) -> frozenset[bytes]:
    elements = list(database.set(key))
    assert len(elements) == access.cardinality(database, key, "set")
    return frozenset(elements)


def show_map(database: Database, key: bytes) -> tuple[tuple[bytes, bytes], ...]:
    fields = tuple(database.map(key).items())
    assert len(fields) == access.cardinality(database, key, "map")
    return fields


def show_extreme(database: Database, key: bytes, of: Literal["max", "min"]) -> int:
    value = register_access.extreme_value(database, key, of)
    assert value is not None
    return value


SHOWN: dict[str, Callable[[Database, bytes], Shown]] = {
    "string": show_string,
    "set": show_set,
    "map": show_map,
    "multi": register_access.multi_values,
    "flag": register_access.flag_enabled,
    "max": lambda database, key: show_extreme(database, key, "max"),
    "min": lambda database, key: show_extreme(database, key, "min"),
    "hyperloglog": lambda database, key: register_access.sketch_count(database, [key]),
    "sorted set": show_scores,
    "bounded counter": show_rights,
    "sequence": show_items,
}
