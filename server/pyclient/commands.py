"""What can be asked of a server: every command as arguments, how its reply is read, and whether it may be repeated.

The methods of the clients and of pipelines are made from these functions, so that all have the same.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack

from everwrite.errors import ConfigError

__all__ = ["Arg", "Command", "Options", "Safety", "level_of", "safety_of"]

T = TypeVar("T")
Arg = bytes | str | int | float

LEVELS: Final = ("ONE", "LOCAL_QUORUM", "GLOBAL_QUORUM", "ALL", "SERIAL")


class Options(TypedDict, total=False):
    """What every call can be given beside its arguments."""

    timeout: float | None  # seconds for all of it: connecting, retries and the reply
    consistency: str | None  # the level: "ONE", "LOCAL_QUORUM", "ALL"


class Safety(enum.IntEnum):
    """What happens when a command is sent twice; of several commands, the greatest counts."""

    READ = 0  # nothing
    REPEATABLE = 1  # it has the effect of one, as long as nobody else writes in between
    ONCE = 2  # it would be applied twice: it is sent again only with a request id
    SINGLE = 3  # unknown: it is never sent again


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """One command: its words (none: nothing needs to be asked), the reader of its reply, and the call's options."""

    args: tuple[Arg, ...]
    read: Callable[[Any], T]
    safety: Safety
    options: Options


_TABLE: Final = {
    Safety.READ: """
        get mget strlen exists type ttl pttl expiretime pexpiretime dbsize memory smembers sismember scard
        hget hmget hgetall hexists hlen ping echo info time command config ew.why
    """,
    Safety.REPEATABLE: """
        set mset del sadd srem hset hmset hdel expire pexpire expireat pexpireat persist
    """,
    Safety.ONCE: """
        getdel incr decr incrby decrby hincrby
    """,
}
_SAFETY: Final = {name: safety for safety, names in _TABLE.items() for name in names.split()}
_OF_CONNECTIONS: Final = {
    b"AUTH": "give username= and password= to the client",
    b"EW.CONSISTENCY": "give consistency= to the call or to the client",
    b"EW.DEADLINE": "give timeout= to the call or to the client",
    b"HELLO": "the client has said it already",
    b"QUIT": "close the client instead",
    b"RESET": "the client keeps its connections as they must be",
}
# With one of these, what is told or done depends on what was there before.
_CONDITIONS: Final = frozenset((b"NX", b"XX", b"GT", b"LT", b"GET"))
_CONDITIONAL: Final = {"set": 3, "expire": 3, "pexpire": 3, "expireat": 3, "pexpireat": 3}


def word(arg: Arg) -> bytes:
    """An argument as the bytes that are sent."""
    return arg if isinstance(arg, bytes) else str(arg).encode()


def safety_of(args: tuple[Arg, ...]) -> Safety:
    """Whether a command may be sent again after its connection broke.

    >>> from everwrite.client.commands import safety_of
    >>> safety_of(("SET", b"k", b"v")).name, safety_of(("SET", b"k", b"v", "NX")).name, safety_of(("INCR", "k")).name
    ('REPEATABLE', 'ONCE', 'ONCE')
    """
    name = word(args[0]).decode("utf-8", "replace").lower()
    if name in _CONDITIONAL and any(word(arg).upper() in _CONDITIONS for arg in args[_CONDITIONAL[name] :]):
        return Safety.ONCE
    return _SAFETY.get(name, Safety.SINGLE)


def level_of(text: str | None) -> str | None:
    """A consistency level in the server's spelling. Raises ConfigError."""
    if text is None:
        return None
    level = text.upper().replace("-", "_")
    if level not in LEVELS:
        raise ConfigError(f"consistency={text!r}: expected one of {', '.join(LEVELS)}")
    return level


def _as_is(reply: Any) -> Any:
    return reply


def _nothing(reply: Any) -> None:
    return None


def _command(args: tuple[Arg, ...], read: Callable[[Any], T], options: Options) -> Command[T]:
    return Command(args, read, safety_of(args), options)


def _answered(value: T, options: Options) -> Command[T]:
    """A command on nothing: no server needs to be asked."""
    return Command((), lambda reply: value, Safety.READ, options)


def _bytes_only(*values: object) -> None:
    # Text would silently depend on an encoding, and an integer isn't what it would be read back as.
    for value in values:
        if not isinstance(value, bytes):
            raise TypeError(f"keys and values are bytes, got {type(value).__name__}: {value!r}")


def _milliseconds(ttl: float) -> int:
    if not 0 < ttl < math.inf:
        raise ValueError(f"ttl={ttl!r}: expected seconds, more than 0")
    return math.ceil(ttl * 1000)


def execute(*args: Arg, **options: Unpack[Options]) -> Command[Any]:
    """Send any command, and return its reply: bytes, int, float, bool, None, list or dict.

    A command that this client doesn't know is never sent twice.
    """
    if not args:
        raise TypeError("execute: expected a command, as in execute('STRLEN', b'key')")
    if (advice := _OF_CONNECTIONS.get(word(args[0]).upper())) is not None:
        raise ValueError(f"execute: {args[0]!r} would change a connection that other calls use, too: {advice}")
    return _command(args, _as_is, options)


def ping(**options: Unpack[Options]) -> Command[None]:
    """Ask a node whether it answers."""
    return _command(("PING",), _nothing, options)


# -- registers, and keys of any type --------------------------------------------------------------


def get(key: bytes, default: bytes | None = None, /, **options: Unpack[Options]) -> Command[bytes | None]:
    """The value of a register or counter; `default` when the key doesn't exist. Raises WrongTypeError."""
    _bytes_only(key)
    return _command(("GET", key), lambda reply: default if reply is None else reply, options)


def put(key: bytes, value: bytes, *, ttl: float | None = None, **options: Unpack[Options]) -> Command[None]:
    """Write a register that expires after `ttl` seconds (None: never)."""
    _bytes_only(key, value)
    expiry: tuple[Arg, ...] = () if ttl is None else ("PX", _milliseconds(ttl))
    return _command(("SET", key, value, *expiry), _nothing, options)


def delete(key: bytes, /, **options: Unpack[Options]) -> Command[bool]:
    """Delete a key of any type; whether it existed."""
    _bytes_only(key)
    return _command(("DEL", key), bool, options)


def pop(key: bytes, default: bytes | None = None, /, **options: Unpack[Options]) -> Command[bytes | None]:
    """Delete a register and return its value; `default` when the key doesn't exist. Raises WrongTypeError."""
    _bytes_only(key)
    return _command(("GETDEL", key), lambda reply: default if reply is None else reply, options)


def exists(key: bytes, /, **options: Unpack[Options]) -> Command[bool]:
    """Whether the key exists, of whatever type."""
    _bytes_only(key)
    return _command(("EXISTS", key), bool, options)


def get_many(keys: Iterable[bytes], /, **options: Unpack[Options]) -> Command[list[bytes | None]]:
    """The values of several keys; None for one that doesn't exist or holds another type."""
    names = list(keys)
    _bytes_only(*names)
    if not names:
        return _answered([], options)
    return _command(("MGET", *names), list, options)


def put_many(
    pairs: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]], /, **options: Unpack[Options]
) -> Command[None]:
    """Write several registers as one update."""
    items = list(pairs.items() if isinstance(pairs, Mapping) else pairs)
    words = [each for pair in items for each in pair]
    _bytes_only(*words)
    if not words:
        return _answered(None, options)
    return _command(("MSET", *words), _nothing, options)


def delete_many(keys: Iterable[bytes], /, **options: Unpack[Options]) -> Command[int]:
    """Delete keys of any type as one update; how many existed."""
    names = list(keys)
    _bytes_only(*names)
    if not names:
        return _answered(0, options)
    return _command(("DEL", *names), int, options)


def expire(key: bytes, ttl: float, /, **options: Unpack[Options]) -> Command[bool]:
    """Let a key of any type expire after `ttl` seconds; whether it exists."""
    _bytes_only(key)
    return _command(("PEXPIRE", key, _milliseconds(ttl)), bool, options)


def persist(key: bytes, /, **options: Unpack[Options]) -> Command[bool]:
    """Take a key's deadline away; whether it had one."""
    _bytes_only(key)
    return _command(("PERSIST", key), bool, options)


def ttl(key: bytes, /, **options: Unpack[Options]) -> Command[float | None]:
    """Seconds until a key expires; None when it has no deadline. Raises KeyError when it doesn't exist."""
    _bytes_only(key)

    def read(reply: int) -> float | None:
        if reply == -2:
            raise KeyError(key)
        return None if reply < 0 else reply / 1000

    return _command(("PTTL", key), read, options)


def why(key: bytes, /, **options: Unpack[Options]) -> Command[dict[bytes, Any]]:
    """What the key shows and why: which write, of which region, won over what (`EW.WHY`)."""
    _bytes_only(key)
    return _command(("EW.WHY", key), dict, options)


# -- counters -------------------------------------------------------------------------------------


def counter_increment(key: bytes, n: int = 1, /, **options: Unpack[Options]) -> Command[int]:
    """Add `n`; returns the value on the node that was asked. Raises NotAnIntegerError, OverflowError."""
    _bytes_only(key)
    return _command(("INCRBY", key, n), int, options)


def counter_decrement(key: bytes, n: int = 1, /, **options: Unpack[Options]) -> Command[int]:
    """Subtract `n`; returns the value on the node that was asked. Raises as `increment`."""
    _bytes_only(key)
    return _command(("DECRBY", key, n), int, options)


def counter_value(key: bytes, /, **options: Unpack[Options]) -> Command[int]:
    """The value; 0 when the key doesn't exist. Raises WrongTypeError, ValueError when it holds other text."""
    _bytes_only(key)
    return _command(("GET", key), lambda reply: 0 if reply is None else int(reply), options)


def clear(key: bytes, /, **options: Unpack[Options]) -> Command[None]:
    """Delete the key: what the node has seen of it is gone, concurrent additions stay."""
    _bytes_only(key)
    return _command(("DEL", key), _nothing, options)


# -- sets -----------------------------------------------------------------------------------------


def set_add(key: bytes, /, *elements: bytes, **options: Unpack[Options]) -> Command[int]:
    """Add elements as one update; how many are new. Raises WrongTypeError."""
    _bytes_only(key, *elements)
    return _command(("SADD", key, *elements), int, options) if elements else _answered(0, options)


def set_discard(key: bytes, /, *elements: bytes, **options: Unpack[Options]) -> Command[int]:
    """Remove elements, as one update, those that are there; how many were. Raises WrongTypeError."""
    _bytes_only(key, *elements)
    return _command(("SREM", key, *elements), int, options) if elements else _answered(0, options)


def set_contains(key: bytes, element: bytes, /, **options: Unpack[Options]) -> Command[bool]:
    """Whether the element is there. Raises WrongTypeError."""
    _bytes_only(key, element)
    return _command(("SISMEMBER", key, element), bool, options)


def set_members(key: bytes, /, **options: Unpack[Options]) -> Command[set[bytes]]:
    """All elements. Raises WrongTypeError."""
    _bytes_only(key)
    return _command(("SMEMBERS", key), set, options)


def set_size(key: bytes, /, **options: Unpack[Options]) -> Command[int]:
    """The number of elements. Raises WrongTypeError."""
    _bytes_only(key)
    return _command(("SCARD", key), int, options)


# -- maps -----------------------------------------------------------------------------------------


def map_get(
    key: bytes, field: bytes, default: bytes | None = None, /, **options: Unpack[Options]
) -> Command[bytes | None]:
    """The value of a field; `default` when it isn't there. Raises WrongTypeError."""
    _bytes_only(key, field)
    return _command(("HGET", key, field), lambda reply: default if reply is None else reply, options)


def map_get_many(key: bytes, fields: Iterable[bytes], /, **options: Unpack[Options]) -> Command[list[bytes | None]]:
    """The values of several fields; None for one that isn't there. Raises WrongTypeError."""
    names = list(fields)
    _bytes_only(key, *names)
    if not names:
        return _answered([], options)
    return _command(("HMGET", key, *names), list, options)


def map_set(key: bytes, fields: Mapping[bytes, bytes], /, **options: Unpack[Options]) -> Command[int]:
    """Write several fields as one update; how many are new. Raises WrongTypeError."""
    words = [each for pair in fields.items() for each in pair]
    _bytes_only(key, *words)
    if not words:
        return _answered(0, options)
    return _command(("HSET", key, *words), int, options)


def map_put(key: bytes, field: bytes, value: bytes, /, **options: Unpack[Options]) -> Command[bool]:
    """Write a field; whether it is new. Raises WrongTypeError."""
    _bytes_only(key, field, value)
    return _command(("HSET", key, field, value), bool, options)


def map_discard(key: bytes, /, *fields: bytes, **options: Unpack[Options]) -> Command[int]:
    """Remove fields, as one update, those that are there; how many were. Raises WrongTypeError."""
    _bytes_only(key, *fields)
    return _command(("HDEL", key, *fields), int, options) if fields else _answered(0, options)


def map_increment(key: bytes, field: bytes, n: int = 1, /, **options: Unpack[Options]) -> Command[int]:
    """Add `n` to a field (absent: 0); returns its value on the node that was asked. Raises as `increment`."""
    _bytes_only(key, field)
    return _command(("HINCRBY", key, field, n), int, options)


def map_contains(key: bytes, field: bytes, /, **options: Unpack[Options]) -> Command[bool]:
    """Whether the field is there. Raises WrongTypeError."""
    _bytes_only(key, field)
    return _command(("HEXISTS", key, field), bool, options)


def map_items(key: bytes, /, **options: Unpack[Options]) -> Command[dict[bytes, bytes]]:
    """All fields and values. Raises WrongTypeError."""
    _bytes_only(key)
    return _command(("HGETALL", key), dict, options)


def map_size(key: bytes, /, **options: Unpack[Options]) -> Command[int]:
    """The number of fields. Raises WrongTypeError."""
    _bytes_only(key)
    return _command(("HLEN", key), int, options)


def scan_page(cursor: int, match: bytes, count: int, **options: Unpack[Options]) -> Command[tuple[int, list[bytes]]]:
    """One page of SCAN: the cursor of the next (0: none), and keys. A cursor belongs to the node that gave it."""
    return Command(
        ("SCAN", cursor, "MATCH", match, "COUNT", count),
        lambda reply: (int(reply[0]), list(reply[1])),
        Safety.READ,
        options,
    )


def escape_pattern(prefix: bytes) -> bytes:
    """A pattern that matches what begins with `prefix`."""
    return (
        b"".join(b"\\" + prefix[i : i + 1] if prefix[i] in b"*?[]\\" else prefix[i : i + 1] for i in range(len(prefix)))
        + b"*"
    )
