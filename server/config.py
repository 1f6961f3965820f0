"""A node's configuration: what can be set, where a value came from, and what is wrong with it.

A setting has one name, its key path in the TOML file (`redis_port`, `certs.ca`). Its flag is `--redis-port`,
`--certs-ca`; its environment variable `EVERWRITE_REDIS_PORT`, `EVERWRITE_CERTS_CA`. The first of these that
gives a value wins: flag, environment, file, default.

Reading configuration creates nothing and opens nothing but the files that it names.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from everwrite.errors import ConfigError

__all__ = [
    "SETTINGS",
    "Certs",
    "Loaded",
    "NodeConfig",
    "Peer",
    "Setting",
    "is_loopback",
    "load",
    "split_address",
    "to_toml",
]

ENVIRONMENT_PREFIX = "EVERWRITE_"
FILE_BYTES_MAX = 1 << 20

# Variables of ours that are no settings: the file to read, and what the build and the tests listen to.
_NOT_SETTINGS = re.compile(r"EVERWRITE_(CONFIG|CHECKED|CFLAGS|LDFLAGS|BUILD_.*|TEST_.*|BENCH_.*)")
# Kubernetes sets these for each service called everwrite or everwrite-*; refusing them would refuse to start there.
_KUBERNETES = re.compile(r"EVERWRITE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")

# Names go into certificates, metric labels and folder names: the label of a host name fits them all.
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"
NAME_ALLOWED = "1 to 63 of a-z, 0-9 and '-', with no '-' at either end"
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, extra={"allowed": NAME_ALLOWED})]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port` or `[IPv6]:port`. Raises `ValueError` that says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise ValueError("must be HOST:PORT, or [IPv6]:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host):
            raise ValueError("has no IPv6 address between the brackets")
    elif ":" in host:
        raise ValueError("must have its IPv6 address in brackets, [ADDRESS]:PORT")
    if not _is_host(host):
        raise ValueError("must begin with a host name or an IP address")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError("must end in a port from 1 to 65535")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a listener on `host` can be reached from this machine only. Names but `localhost` count as not."""
    if host.lower() == "localhost":
        return True
    return _is_ip(host) and ipaddress.ip_address(host).is_loopback


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    return _is_ip(host) or _HOST.fullmatch(host) is not None


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node to replicate with. `region/node` must be what its certificate says."""

    region: Annotated[Name, msgspec.Meta(description="The peer's region.")]
    address: Annotated[
        str,
        msgspec.Meta(description="Where it listens for peers.", extra={"allowed": "HOST:PORT, or [IPv6]:PORT"}),
    ]
    node: Annotated[Name | None, msgspec.Meta(description="Its node id; without it any node of the region.")] = None

    @property
    def host(self) -> str:
        """The host part of `address`, without brackets."""
        return split_address(self.address)[0]

    @property
    def port(self) -> int:
        """The port of `address`."""
        return split_address(self.address)[1]


class Certs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of mutual TLS between nodes, as `everwrite certs` makes them."""

    ca: Annotated[
        Path, msgspec.Meta(description="The certificate authority that all nodes of the cluster trust (PEM).")
    ]
    cert: Annotated[Path, msgspec.Meta(description="This node's certificate (PEM).")]
    key: Annotated[Path, msgspec.Meta(description="The private key of the certificate (PEM).")]


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that `everwrite serve` needs to know. Every field has a default.

    A struct made by hand isn't checked; `load` checks.
    """

    cluster: Annotated[Name, msgspec.Meta(description="Name of the cluster; nodes of other clusters are refused.")] = (
        "everwrite"
    )
    region: Annotated[Name, msgspec.Meta(description="Region of this node.")] = "local"
    node: Annotated[
        Name, msgspec.Meta(description="Id of this node, unique in the cluster.", extra={"default": "<region>-0"})
    ] = ""
    data: Annotated[Path, msgspec.Meta(description="Folder of the data; made at the first start.")] = Path(
        "everwrite-data"
    )
    durability: Annotated[
        Literal["always", "interval", "os"],
        msgspec.Meta(
            description="When a write is answered: always, on the device; interval, at most a second before it is; "
            "os, in the file, and on the device when the operating system likes."
        ),
    ] = "always"
    consistency: Annotated[
        Literal["ONE", "LOCAL_QUORUM", "ALL"],
        msgspec.Meta(
            description="How many replicas of the region take part in a request that doesn't say: this node alone, a "
            "majority, or all."
        ),
    ] = "LOCAL_QUORUM"
    request_timeout_ms: Annotated[
        int, msgspec.Meta(ge=1, le=3_600_000, description="How long a request may wait for other replicas.")
    ] = 2000
    host: Annotated[
        str,
        msgspec.Meta(
            description="Address of the Redis and HTTP listeners.", extra={"allowed": "a host name or an IP address"}
        ),
    ] = "127.0.0.1"
    insecure_bind: Annotated[
        bool, msgspec.Meta(description="Permit a `host` that other machines reach; there is no authentication yet.")
    ] = False
    redis_port: Annotated[Port, msgspec.Meta(description="Port for Redis clients; 0 lets the system choose.")] = 7379
    http_port: Annotated[Port, msgspec.Meta(description="Port for HTTP; 0 lets the system choose.")] = 7380
    peer_host: Annotated[
        str,
        msgspec.Meta(
            description="Address of the listener for peers (mutual TLS).",
            extra={"allowed": "a host name or an IP address"},
        ),
    ] = "127.0.0.1"
    peer_port: Annotated[
        Port, msgspec.Meta(description="Port for peers, opened when there are certificates; 0 lets the system choose.")
    ] = 7381
    peers: Annotated[
        tuple[Peer, ...],
        msgspec.Meta(
            description="The nodes to replicate with.",
            extra={"allowed": "a list of tables with region, address and, if wanted, node"},
        ),
    ] = ()
    certs: Annotated[
        Certs | None,
        msgspec.Meta(
            description="Certificates; required with peers.", extra={"allowed": "a table with ca, cert and key"}
        ),
    ] = None
    max_clock_drift_ms: Annotated[
        int,
        msgspec.Meta(ge=1, le=3_600_000, description="How far a peer's clock may be ahead; beyond that it is refused."),
    ] = 500
    memtable_bytes: Annotated[
        int, msgspec.Meta(ge=1 << 16, le=1 << 34, description="Size at which the memory table goes to a file.")
    ] = 256 << 20
    block_cache_bytes: Annotated[
        int, msgspec.Meta(ge=1 << 20, le=1 << 40, description="Memory for blocks that were read from table files.")
    ] = 256 << 20
    mapped_reads: Annotated[
        bool,
        msgspec.Meta(
            description="Read table files through mappings; a device's read error then ends the process instead of "
            "failing one read."
        ),
    ] = False
    log_keep_bytes: Annotated[
        int, msgspec.Meta(ge=1 << 20, le=1 << 50, description="How much log is kept for peers that are behind.")
    ] = 1 << 30

    def __post_init__(self) -> None:
        if not self.node:
            msgspec.structs.force_setattr(self, "node", f"{self.region}-0")


class Setting(msgspec.Struct, frozen=True):
    """One thing that can be set. `path` is its key in the file."""

    path: str
    hint: Any
    default: str
    allowed: str
    description: str

    @property
    def flag(self) -> str:
        """The flag of `everwrite serve`."""
        return "--peer" if self.path == "peers" else "--" + self.path.replace(".", "-").replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.path.replace(".", "_").upper()


class Loaded(msgspec.Struct, frozen=True):
    """A checked configuration, and for each setting where its value came from."""

    config: NodeConfig
    origins: dict[str, str]


def load(
    file: Path | None = None, *, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> Loaded:
    """Merge flags, environment, file and defaults, and check the result.

    `flags` maps setting paths to values; values may be text, as typed. Relative paths in the file start at the
    file's folder, all others at the working directory.

    Raises `ConfigError` with one line for each thing that is wrong: where, which key, which value, what is allowed.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    origins = {setting.path: "default" for setting in SETTINGS}
    if file is not None:
        for path, value in _from_file(_read_toml(file), file, problems).items():
            values[path], origins[path] = value, f"file {file}"
    for layer in (_from_environment(environment or {}, problems), _from_flags(flags or {}, problems)):
        for path, (value, origin) in layer.items():
            values[path], origins[path] = value, origin
    if not problems:
        config = _build(values, origins, problems)
        problems.extend(f"{_place(origins[path], path)}: {text}" for path, text in _contradictions(config, origins))
    if problems:
        raise ConfigError("\n".join(problems))
    return Loaded(config, origins)


def to_toml(config: NodeConfig, origins: Mapping[str, str] | None = None) -> str:
    """The configuration as a file that `load` reads to the same values; with `origins`, a comment on each line."""

    def line(key: str, value: Any, path: str) -> str:
        text = f"{key} = {str(value).lower() if isinstance(value, bool | int) else _toml_string(str(value))}"
        return f"{text}  # {_toml_string(origins[path])[1:-1]}" if origins else text

    lines = [
        line(setting.path, getattr(config, setting.path), setting.path)
        for setting in SETTINGS
        if "." not in setting.path and setting.path != "peers"
    ]
    if config.certs is not None:
        lines += ["", "[certs]"]
        lines += [line(name, getattr(config.certs, name), f"certs.{name}") for name in Certs.__struct_fields__]
    for peer in config.peers:
        lines += ["", "[[peers]]"]
        given = (name for name in Peer.__struct_fields__ if getattr(peer, name) is not None)
        lines += [line(name, getattr(peer, name), "peers") for name in given]
    return "\n".join(lines) + "\n"


def _toml_string(text: str) -> str:
    escape = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(escape.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'


# ---- settings, from the structs ----


def _meta(hint: Any) -> tuple[Any, list[msgspec.Meta]]:
    """The bare type of an annotation, and its metadata, the outermost last."""
    metas: list[msgspec.Meta] = []
    while typing.get_origin(hint) is Annotated:
        metas[:0] = [m for m in hint.__metadata__ if isinstance(m, msgspec.Meta)]
        hint = hint.__origin__
    return hint, metas


def _allowed(hint: Any) -> str:
    bare, metas = _meta(hint)
    for meta in reversed(metas):
        if meta.extra and "allowed" in meta.extra:
            return str(meta.extra["allowed"])
    if typing.get_origin(bare) is Literal:
        return "one of " + ", ".join(typing.get_args(bare))
    if bare is bool:
        return "true or false"
    if bare is int:
        least = max((m.ge for m in metas if m.ge is not None), default=None)
        most = min((m.le for m in metas if m.le is not None), default=None)
        return f"a whole number from {least} to {most}"
    if bare is Path:
        return "a path"
    return _allowed(next(arg for arg in typing.get_args(bare) if arg is not types.NoneType))


def _struct_of(hint: Any) -> type[msgspec.Struct] | None:
    """The struct that a setting is a table of, if it is one (`Certs | None`)."""
    bare, _ = _meta(hint)
    for arg in (bare, *typing.get_args(bare)):
        if isinstance(arg, type) and issubclass(arg, msgspec.Struct):
            return arg
    return None


def _settings(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[Setting]:
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        bare, metas = _meta(hint)
        table = _struct_of(hint)
        if table is not None and typing.get_origin(bare) is not tuple:
            yield from _settings(table, f"{prefix}{field.name}.")
            continue
        extra = {key: text for meta in metas for key, text in (meta.extra or {}).items()}
        default = extra.get("default", "" if field.required else _text(field.default))
        description = next(m.description for m in reversed(metas) if m.description)
        yield Setting(prefix + field.name, hint, default, _allowed(hint), description)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in ((), None) else str(value)


SETTINGS: tuple[Setting, ...] = tuple(_settings(NodeConfig))
_BY_PATH = {setting.path: setting for setting in SETTINGS}


# ---- the layers ----


def _shown(value: Any) -> str:
    # A wrong value may be anything a file can hold: shorten it, so that the message stays one readable line.
    if isinstance(value, str):
        text = '"' + repr(value)[1:-1] + '"'
    else:
        text = _text(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:60] + "..." + text[-15:]


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = ", ".join(known)
    return f"did you mean {close[0]}? Known are: {listed}" if close else f"known are: {listed}"


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror or error}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{file}: is larger than {FILE_BYTES_MAX} bytes: that is no configuration file")
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}: line {line}: is not UTF-8 text (byte {raw[error.start]:#04x})") from error
    except tomllib.TOMLDecodeError as error:
        # Until Python 3.14 the position is only in the text.
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
        what, line_text = (found[1], found[2]) if found else (str(error), None)
        lines = raw.rstrip().count(b"\n") + 1
        where = f"line {line_text}, column {found[3]}" if found and line_text else f"line {lines}, at the end"
        raise ConfigError(f"{file}: {where}: not valid TOML: {what}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: not valid TOML: nested too deeply") from error


def _from_file(table: Mapping[str, Any], file: Path, problems: list[str]) -> dict[str, Any]:
    """The settings that a parsed file gives, by path."""
    values: dict[str, Any] = {}
    folder = file.parent

    def walk(struct: type[msgspec.Struct], part: Mapping[str, Any], prefix: str) -> None:
        hints = typing.get_type_hints(struct, include_extras=True)
        for key, value in part.items():
            path = prefix + key
            if key not in hints:
                problems.append(f"{file}: {path}: there is no such setting; {_suggestion(key, list(hints))}")
                continue
            inner = _struct_of(hints[key])
            if path == "peers":
                peers = _peers(value, str(file), problems)
                if peers is not None:
                    values[path] = peers
            elif inner is not None:
                if isinstance(value, dict):
                    walk(inner, value, path + ".")
                else:
                    problems.append(f"{file}: {path} = {_shown(value)}: must be {_allowed(hints[key])}")
            else:
                converted = _convert(path, value, str(file), problems)
                values[path] = folder / converted if isinstance(converted, Path) else converted

    walk(NodeConfig, table, "")
    return values


def _peers(value: Any, file: str, problems: list[str]) -> tuple[Peer, ...] | None:
    """The list of tables `[[peers]]` of a file."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        problems.append(f"{file}: peers = {_shown(value)}: must be {_BY_PATH['peers'].allowed}")
        return None
    hints = typing.get_type_hints(Peer, include_extras=True)
    peers: list[Peer] = []
    for number, item in enumerate(value):
        found = len(problems)
        for key, part in item.items():
            path = f"peers[{number}].{key}"
            if key not in hints:
                problems.append(f"{file}: {path}: there is no such setting; {_suggestion(key, list(hints))}")
            else:
                _convert(path, part, file, problems, hint=hints[key])
        problems.extend(
            f"{file}: peers[{number}]: lacks {field.name}, {_allowed(hints[field.name])}"
            for field in msgspec.structs.fields(Peer)
            if field.required and field.name not in item
        )
        if len(problems) == found:
            peers.append(Peer(**item))
    return tuple(peers)


def _from_environment(environment: Mapping[str, str], problems: list[str]) -> dict[str, tuple[Any, str]]:
    values: dict[str, tuple[Any, str]] = {}
    variables = {setting.variable: setting for setting in SETTINGS}
    for variable, text in environment.items():
        setting = variables.get(variable)
        if setting is not None:
            values[setting.path] = _convert_text(setting, text, variable, problems), variable
        elif (
            variable.startswith(ENVIRONMENT_PREFIX)
            and not _NOT_SETTINGS.fullmatch(variable)
            and not _KUBERNETES.fullmatch(variable)
        ):
            problems.append(
                f"environment: {variable}: there is no such setting; {_suggestion(variable, list(variables))}"
            )
    return values


def _from_flags(flags: Mapping[str, Any], problems: list[str]) -> dict[str, tuple[Any, str]]:
    values: dict[str, tuple[Any, str]] = {}
    for path, value in flags.items():
        setting = _BY_PATH[path]
        converted = (
            _convert_text(setting, value, setting.flag, problems)
            if isinstance(value, str)
            else _convert(path, value, setting.flag, problems)
        )
        values[path] = converted, setting.flag
    return values


def _convert_text(setting: Setting, text: str, origin: str, problems: list[str]) -> Any:
    if setting.path != "peers":
        return _convert(setting.path, text, origin, problems, strict=False)
    peers: list[Peer] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        who, _, address = item.partition("=")
        region, slash, node = who.partition("/")
        peer = {"region": region, "address": address} | ({"node": node} if slash else {})
        try:
            split_address(address)
            peers.append(msgspec.convert(peer, Peer))
        except ValueError:
            problems.append(
                f"{_place(origin, 'peers')} = {_shown(item)}: must be REGION=HOST:PORT or REGION/NODE=HOST:PORT, "
                "several separated by commas"
            )
    return tuple(peers)


def _convert(path: str, value: Any, origin: str, problems: list[str], *, hint: Any = None, strict: bool = True) -> Any:
    """`value` as the type of the setting; None, and a line in `problems`, when it can't be."""
    hint = hint or _BY_PATH[path].hint
    try:
        converted = msgspec.convert(value, hint, strict=strict, dec_hook=_decode_path)
        if path == "host" or path == "peer_host":
            if not _is_host(converted):
                raise ValueError
        elif path.endswith(".address"):
            split_address(converted)
    except ValueError:
        problems.append(f"{_place(origin, path)} = {_shown(value)}: must be {_allowed(hint)}")
        return None
    return converted


def _decode_path(kind: type, value: Any) -> Path:
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("not a path")


def _place(origin: str, path: str) -> str:
    """Where a reader finds the setting: file and key, variable, or flag."""
    if origin.startswith("--"):
        return f"command line: {origin}"
    if origin.startswith(ENVIRONMENT_PREFIX):
        return f"environment: {origin}"
    return f"{origin.removeprefix('file ')}: {path}"


# ---- the whole ----


def _build(values: dict[str, Any], origins: Mapping[str, str], problems: list[str]) -> NodeConfig:
    certs = {path.removeprefix("certs."): value for path, value in values.items() if path.startswith("certs.")}
    plain = {path: value for path, value in values.items() if "." not in path}
    names = [field.name for field in msgspec.structs.fields(Certs)]
    if not certs:
        return NodeConfig(**plain)
    missing = [name for name in names if name not in certs]
    if missing:
        given = "certs." + next(iter(certs))
        lacking = " and ".join("certs." + name for name in missing)
        problems.append(f"{_place(origins[given], given)}: needs {lacking} too: a path each")
        return NodeConfig(**plain)
    return NodeConfig(**plain, certs=Certs(**certs))


def _contradictions(config: NodeConfig, origins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the settings together: (path, text)."""
    if not is_loopback(config.host) and not config.insecure_bind:
        text = (
            f'"{config.host}" can be reached from other machines, and there is no authentication yet: must be a '
            "loopback address (127.0.0.1, ::1, localhost), unless insecure_bind = true says that something else "
            "protects it"
        )
        yield "host", text
    ports: dict[int, str] = {}
    for path in ("redis_port", "http_port", "peer_port"):
        port = getattr(config, path)
        if port and port in ports:
            other = ports[port]
            blamed, free = (other, path) if origins[path] == "default" else (path, other)
            yield blamed, f"{port} is also {free}: each listener needs a port of its own"
        ports.setdefault(port, path)
    if config.peers and config.certs is None:
        text = "nodes talk to each other only with certificates: set certs.ca, certs.cert and certs.key"
        yield "peers", text + " (`everwrite certs` makes them)"
    seen: set[tuple[str, str | None]] = set()
    for number, peer in enumerate(config.peers):
        who = peer.region + (f"/{peer.node}" if peer.node else "")
        if (peer.region, peer.node) in ((config.region, config.node), (config.region, None)):
            yield "peers", f"entry {number} ({who}) is this node itself: must be another one"
        if (peer.region, peer.node) in seen:
            yield "peers", f"entry {number} ({who}) is there twice: each peer must be there once"
        seen.add((peer.region, peer.node))
    if config.data.exists() and not config.data.is_dir():
        yield "data", f'"{config.data}" is a file: must be a folder, or a path where one can be made'
