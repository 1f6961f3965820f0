"""The commands that go up to Python: connection setup, introspection, WAIT and those that begin with EW.

None of them touches a key's value, and none is on a hot path. Replies and error texts are Redis's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from everwrite.errors import EverwriteError
from everwrite.server.commands import TABLE, CommandInfo
from everwrite.server.consistency import Level
from everwrite.server.glob import matches
from everwrite.server.info import REDIS_VERSION, InfoHost, info_text
from everwrite.server.reports import origin_names
from everwrite.server.resp import Error, Simple, Verbatim, encode

if TYPE_CHECKING:
    from everwrite.database import Database
    from everwrite.server.client import Client
    from everwrite.server.frontend import Frontend

__all__ = ["Control", "Host"]

# A client that asks to wait for ever (WAIT n 0) is answered after this all the same.
WAIT_SECONDS_MAX = 3600.0

OK = Simple("OK")
NOT_INTEGER = Error("ERR value is not an integer or out of range")
SYNTAX = Error("ERR syntax error")

_BY_NAME = {info.name: info for info in TABLE}


class Host(InfoHost, Protocol):
    """What a node offers to the commands."""

    @property
    def frontend(self) -> Frontend: ...
    @property
    def store(self) -> Database: ...
    def wait_for_regions(
        self,
        timestamp: int,
        regions: int,
        timeout_seconds: float,
        done: Callable[[int], object],
        gone: Callable[[], bool],
    ) -> None:
        """Call `done(n)` once, now or later, in the trio thread.

        `n` is the number of other regions that have acknowledged this node's updates up to
        `timestamp`: at least `regions`, or fewer after `timeout_seconds`. A timestamp of 0 (the client
        has written nothing) is acknowledged by every region. Once `gone()` is true nobody waits for it.
        """
        ...


class Control:
    """Answers the commands that the frontend hands up: the `handler` of a `Frontend`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._commands: dict[str, Callable[[Client, list[bytes]], object]] = {
            "hello": self._hello,
            "auth": self._auth,
            "select": self._select,
            "client": self._client,
            "reset": self._reset,
            "quit": self._quit,
            "command": self._command,
            "config": self._config,
            "info": self._info,
            "time": self._time,
            "cluster": self._cluster,
            "module": self._module,
            "wait": self._wait,
            "ew.consistency": self._consistency,
            "ew.why": self._why,
        }
        self._client_commands: dict[str, tuple[int, Callable[[Client, list[bytes]], object]]] = {
            "id": (2, lambda client, args: client.id),
            "getname": (2, lambda client, args: client.name or None),
            "setname": (3, self._client_setname),
            "setinfo": (4, self._client_setinfo),
            "info": (2, lambda client, args: Verbatim(_client_line(client) + "\n")),
            "list": (-2, self._client_list),
            "kill": (-3, self._client_kill),
            "no-evict": (3, self._client_switch),
            "no-touch": (3, self._client_switch),
        }

    def __call__(self, client: Client, args: list[bytes]) -> bytes | None:
        """Answer a command whose arity has been checked: the encoded reply, or None when it comes later."""
        try:
            answer = self._commands[_word(args[0])](client, args)
        except _Refusal as refusal:
            answer = refusal.reply
        except EverwriteError as error:
            answer = Error(f"ERR {error}")
        return None if answer is LATER else encode(answer, client.protocol)

    # -- connection -------------------------------------------------------------------------------

    def _hello(self, client: Client, args: list[bytes]) -> object:
        version = client.protocol
        if len(args) > 1:
            if not args[1].isdigit():
                return Error("ERR Protocol version is not an integer or out of range")
            version = int(args[1])
            if version not in (2, 3):
                return Error("NOPROTO unsupported protocol version")
        at, name = 2, None
        while at < len(args):
            option = _word(args[at])
            if option == "auth" and at + 2 < len(args):
                _check_user(args[at + 1])
                at += 3
            elif option == "setname" and at + 1 < len(args):
                name = _client_name(args[at + 1], "client name")
                at += 2
            else:
                return Error(f"ERR Syntax error in HELLO option '{_shown(args[at])}'")
        client.protocol = version
        if name is not None:
            client.name = name
        return {
            "server": "everwrite",
            "version": REDIS_VERSION,
            "proto": version,
            "id": client.id,
            "mode": "standalone",
            "role": "master",
            "modules": [],
        }

    def _auth(self, client: Client, args: list[bytes]) -> object:
        if len(args) > 3:
            return SYNTAX
        if len(args) == 2:
            return Error(
                "ERR AUTH <password> called without any password configured for the default user. "
                "Are you sure your configuration is correct?"
            )
        _check_user(args[1])
        return OK

    def _select(self, client: Client, args: list[bytes]) -> object:
        return OK if _integer(args[1]) == 0 else Error("ERR DB index is out of range")

    def _reset(self, client: Client, args: list[bytes]) -> object:
        client.protocol = 2
        client.name = ""
        client.level = 0
        client.limit_seconds = 0
        return Simple("RESET")

    def _quit(self, client: Client, args: list[bytes]) -> object:
        client.close_after_reply()
        return OK

    def _client(self, client: Client, args: list[bytes]) -> object:
        arity, run = self._client_commands.get(_word(args[1]), (0, None))
        if run is None:
            return _unknown_subcommand(args)
        _check_arity(args, arity)
        return run(client, args)

    def _client_setname(self, client: Client, args: list[bytes]) -> object:
        client.name = _client_name(args[2], "client name")
        return OK

    def _client_setinfo(self, client: Client, args: list[bytes]) -> object:
        attribute = _word(args[2])
        if attribute == "lib-name":
            client.lib_name = _client_name(args[3], "lib-name")
        elif attribute == "lib-ver":
            client.lib_version = _client_name(args[3], "lib-ver")
        else:
            return Error(f"ERR Unrecognized option '{_shown(args[2])}'")
        return OK

    def _client_list(self, client: Client, args: list[bytes]) -> object:
        clients = self.host.frontend.clients()
        option = _word(args[2]) if len(args) > 2 else ""
        if option == "id" and len(args) > 3:
            wanted = set()
            for arg in args[3:]:
                if not arg.isdigit():
                    return Error("ERR Invalid client ID")
                wanted.add(int(arg))
            clients = [one for one in clients if one.id in wanted]
        elif option == "type" and len(args) == 4:
            kind = _word(args[3])
            if kind not in ("normal", "master", "replica", "slave", "pubsub"):
                return Error(f"ERR Unknown client type '{_shown(args[3])}'")
            clients = clients if kind == "normal" else []
        elif option:
            return SYNTAX
        return Verbatim("".join(_client_line(one) + "\n" for one in sorted(clients, key=lambda one: one.id)))

    def _client_kill(self, client: Client, args: list[bytes]) -> object:
        clients = self.host.frontend.clients()
        if len(args) == 3:
            chosen = [one for one in clients if one.address.encode() == args[2]]
            if not chosen:
                return Error("ERR No such client")
        elif len(args) == 4 and _word(args[2]) == "id":
            if not args[3].isdigit() or int(args[3]) == 0:
                return Error("ERR client-id should be greater than 0")
            chosen = [one for one in clients if one.id == int(args[3])]
        elif len(args) == 4 and _word(args[2]) == "addr":
            chosen = [one for one in clients if one.address.encode() == args[3]]
        else:
            return SYNTAX
        for one in chosen:
            if one.id == client.id:
                client.close_after_reply()
            else:
                self.host.frontend.close_client(one.id)
        return OK if len(args) == 3 else len(chosen)

    def _client_switch(self, client: Client, args: list[bytes]) -> object:
        # Nothing is ever evicted here, and reads don't touch: both answers are true as they are.
        return OK if _word(args[2]) in ("on", "off") else SYNTAX

    # -- introspection ----------------------------------------------------------------------------

    def _command(self, client: Client, args: list[bytes]) -> object:
        name = _word(args[1]) if len(args) > 1 else ""
        if not name:
            return [_describe(info) for info in TABLE]
        if name == "count":
            _check_arity(args, 2)
            return len(TABLE)
        if name == "list":
            _check_arity(args, 2)
            return [info.name for info in TABLE]
        wanted = [_word(arg) for arg in args[2:]]
        if name == "info":
            names = wanted or list(_BY_NAME)
            return [_describe(_BY_NAME[one]) if one in _BY_NAME else None for one in names]
        if name == "docs":
            names = wanted or list(_BY_NAME)
            return {one: _document(_BY_NAME[one]) for one in names if one in _BY_NAME}
        return _unknown_subcommand(args)

    def _config(self, client: Client, args: list[bytes]) -> object:
        if _word(args[1]) != "get":
            return _unknown_subcommand(args)
        _check_arity(args, -3)
        settings = self._settings()
        return {
            name: value
            for name, value in settings.items()
            if any(matches(pattern.lower(), name.encode()) for pattern in args[2:])
        }

    def _settings(self) -> dict[str, str]:
        """What CONFIG GET tells, in Redis's terms: a log that is synced by durability, no snapshots, no eviction."""
        config = self.host.config
        return {
            "appendfsync": {"always": "always", "interval": "everysec", "os": "no"}[config.durability],
            "appendonly": "yes",
            "databases": "1",
            "maxclients": str(self.host.frontend.statistics()["clients_max"]),
            "maxmemory": "0",
            "maxmemory-policy": "noeviction",
            "port": str(config.redis_port),
            "proto-max-bulk-len": str(64 << 20),
            "save": "",
            "timeout": "0",
        }

    def _info(self, client: Client, args: list[bytes]) -> object:
        return Verbatim(info_text(self.host, [_shown(arg) for arg in args[1:]]))

    def _time(self, client: Client, args: list[bytes]) -> object:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        return [str(seconds), str(nanoseconds // 1000)]

    def _cluster(self, client: Client, args: list[bytes]) -> object:
        return Error("ERR This instance has cluster support disabled")

    def _module(self, client: Client, args: list[bytes]) -> object:
        if _word(args[1]) != "list":
            return _unknown_subcommand(args)
        _check_arity(args, 2)
        return []

    # -- replication ------------------------------------------------------------------------------

    def _wait(self, client: Client, args: list[bytes]) -> object:
        regions = _integer(args[1])
        if not _is_integer(args[2]):
            return Error("ERR timeout is not an integer or out of range")
        timeout_ms = int(args[2])
        if timeout_ms < 0:
            return Error("ERR timeout is negative")
        seconds = min(timeout_ms / 1000 or WAIT_SECONDS_MAX, client.limit_seconds or WAIT_SECONDS_MAX)
        client.limit_seconds = 0.0
        frontend, number = self.host.frontend, client.id
        self.host.wait_for_regions(
            client.last_write_timestamp,
            max(regions, 0),
            seconds,
            lambda count: frontend.reply(number, encode(count)),
            lambda: client.closed,
        )
        return LATER

    def _consistency(self, client: Client, args: list[bytes]) -> object:
        if len(args) > 2:
            raise _Refusal("ERR wrong number of arguments for 'ew.consistency' command")
        if len(args) == 1:
            return (Level(client.level) if client.level else Level.parse(self.host.config.consistency)).name
        try:
            client.level = Level.parse(args[1].decode("utf-8", "replace"))
        except ValueError as error:
            raise _Refusal(f"ERR {error}") from None
        return OK

    def _why(self, client: Client, args: list[bytes]) -> object:
        return _named(self.host.store.why(args[1]), origin_names(self.host.store))


class _Later:
    """The type of LATER."""


LATER = _Later()


class _Refusal(Exception):
    """Ends a command with an error reply."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.reply = Error(text)


def _word(arg: bytes) -> str:
    """A command or option name, in lower case."""
    return arg.decode("utf-8", "replace").lower()


def _shown(arg: bytes) -> str:
    """At most 128 bytes of what a client sent, for an error text."""
    return arg[:128].decode("utf-8", "replace")


def _is_integer(arg: bytes) -> bool:
    try:
        value = int(arg)
    except ValueError:
        return False
    return str(value).encode() == arg and -(1 << 63) <= value < 1 << 63


def _integer(arg: bytes) -> int:
    if not _is_integer(arg):
        raise _Refusal(NOT_INTEGER)
    return int(arg)


def _check_arity(args: list[bytes], arity: int) -> None:
    """Check the arguments of a subcommand; `arity` as in the table, the container's name counted."""
    if len(args) != arity if arity > 0 else len(args) < -arity:
        raise _Refusal(f"ERR wrong number of arguments for '{_word(args[0])}|{_word(args[1])}' command")


def _unknown_subcommand(args: list[bytes]) -> Error:
    return Error(f"ERR unknown subcommand '{_shown(args[1])}'. Try {_shown(args[0]).upper()} HELP.")


def _check_user(user: bytes) -> None:
    # There are no users to check against yet: the default user has no password, as in a new Redis.
    if user != b"default":
        raise _Refusal("WRONGPASS invalid username-password pair or user is disabled.")


def _client_name(arg: bytes, what: str) -> str:
    if any(not 33 <= byte <= 126 for byte in arg):
        if what == "client name":
            raise _Refusal("ERR Client names cannot contain spaces, newlines or special characters.")
        raise _Refusal(f"ERR {what} cannot contain spaces, newlines or special characters.")
    return arg.decode("ascii")


def _client_line(client: Client) -> str:
    """One line of CLIENT LIST."""
    input_bytes, output_bytes = client.buffer_bytes
    fields: dict[str, object] = {
        "id": client.id,
        "addr": client.address,
        "laddr": client.local_address,
        "fd": client.descriptor,
        "name": client.name,
        "age": int(time.time() - client.created),
        "idle": int(client.idle_seconds),
        "flags": "b" if client.deferred and client.last_command == "wait" else "N",
        "db": 0,
        "qbuf": input_bytes,
        "omem": output_bytes,
        "cmd": client.last_command or "NULL",
        "user": "default",
        "lib-name": client.lib_name,
        "lib-ver": client.lib_version,
        "resp": client.protocol,
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _describe(info: CommandInfo) -> list[object]:
    """A command in the shape of COMMAND INFO."""
    categories = {f"@{info.group}", *(f"@{'read' if flag == 'readonly' else flag}" for flag in _categories(info))}
    return [
        info.name,
        info.arity,
        {Simple(flag) for flag in info.flags},
        *info.keys,
        {Simple(category) for category in categories},
        [],
        [],
        [],
    ]


def _categories(info: CommandInfo) -> list[str]:
    named = [flag for flag in info.flags if flag in ("readonly", "write", "admin", "fast")]
    return named if "fast" in named else [*named, "slow"]


def _document(info: CommandInfo) -> dict[str, object]:
    """A command in the shape of COMMAND DOCS."""
    return {"summary": info.summary, "since": info.since, "group": info.group}


def _named(value: object, names: Mapping[int, tuple[str, str]], field: str = "") -> object:
    """`Store.why` for people: origins in hexadecimal, with the region and node that announced them."""
    if isinstance(value, dict):
        out: dict[object, object] = {}
        for name, item in value.items():
            if field == "context":
                out[_origin_text(name, names)] = item
            elif name == "origin":
                region, node = names.get(item, (None, None))
                out |= {"origin": f"{item:016x}", "region": region, "node": node}
            else:
                out[name] = _named(item, names, str(name))
        return out
    if isinstance(value, (list, tuple)):
        return [_named(item, names) for item in value]
    return value


def _origin_text(origin: Any, names: Mapping[int, tuple[str, str]]) -> str:
    region, node = names.get(origin, ("", ""))
    return f"{origin:016x} {region}/{node}" if region else f"{origin:016x}"
