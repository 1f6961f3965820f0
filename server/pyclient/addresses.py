"""Where servers are: addresses, grouped by region, and the URLs that name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from everwrite.errors import ConfigError

__all__ = ["DEFAULT_PORT", "Address", "Target", "parse_address", "parse_target"]

DEFAULT_PORT = 7379
SCHEMES = ("everwrite", "redis")
ONLY_REGION = ""  # of addresses that were given without regions


@dataclass(frozen=True, slots=True)
class Address:
    """One node: host name or IP address, and its Redis port."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """What a client was told of its servers: addresses by region, the home region, and who it is."""

    regions: Mapping[str, tuple[Address, ...]]
    home: str
    username: str | None = None
    password: str | None = None
    options: Mapping[str, str] | None = None  # of the URL's query, unchecked


def parse_address(text: str) -> Address:
    """Read `host`, `host:port` or `[v6]:port`. Raises ConfigError.

    >>> from everwrite.client.addresses import parse_address
    >>> parse_address("db1.example:7401"), str(parse_address("[::1]"))
    (Address(host='db1.example', port=7401), '[::1]:7379')
    """
    host, bracket, rest = text.partition("]") if text.startswith("[") else ("", "", "")
    if bracket:
        host, port = host[1:], rest.removeprefix(":") if rest else ""
        fits = rest == "" or rest.startswith(":")
    else:
        host, _, port = text.partition(":")
        fits = text.count(":") <= 1
    if not host or not fits or (port and not (port.isascii() and port.isdigit())) or int(port or DEFAULT_PORT) > 65535:
        raise ConfigError(f"address {text!r}: expected host, host:port or [IPv6 address]:port")
    return Address(host, int(port) if port else DEFAULT_PORT)


def parse_target(
    addresses: str | Iterable[str | Address] | None,
    regions: Mapping[str, Sequence[str | Address]] | None,
    home: str | None,
) -> Target:
    """Put together what a client is made with: a URL, addresses, or addresses by region. Raises ConfigError."""
    if regions is not None:
        if addresses is not None:
            raise ConfigError("addresses and regions: give one of the two")
        return _by_region(regions, home)
    if home is not None:
        raise ConfigError(f"home={home!r} names a region: give regions={{{home!r}: [...], ...}} with it")
    if isinstance(addresses, str) and "://" in addresses:
        return _parse_url(addresses)
    if addresses is None:
        addresses = "127.0.0.1"
    given = [addresses] if isinstance(addresses, str) else list(addresses)
    return _by_region({ONLY_REGION: given}, ONLY_REGION)


def _by_region(regions: Mapping[str, Sequence[str | Address]], home: str | None) -> Target:
    parsed: dict[str, tuple[Address, ...]] = {}
    for name, given in regions.items():
        if isinstance(given, str):
            raise ConfigError(f"region {name!r}: expected a list of addresses, got the text {given!r}")
        parsed[name] = tuple(parse_address(each) if isinstance(each, str) else each for each in given)
        if not parsed[name]:
            raise ConfigError(f"region {name!r} has no addresses" if name else "there are no addresses")
    if home is None:
        if len(parsed) != 1:
            raise ConfigError(f"home: say which of the regions {', '.join(parsed) or '(none)'} is near")
        home = next(iter(parsed))
    if home not in parsed:
        raise ConfigError(f"home={home!r} isn't one of the regions {', '.join(parsed)}")
    everyone = [each for given in parsed.values() for each in given]
    for each in everyone:
        if everyone.count(each) > 1:
            raise ConfigError(f"address {each} is given twice")
    return Target(parsed, home)


def _parse_url(url: str) -> Target:
    """Read `everwrite://[user[:password]@]host[:port][,host...][/][?option=value&...]`."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"URL: {error}") from error
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"URL scheme {parts.scheme!r}: expected everwrite://host:port,host:port")
    if parts.path.strip("/") or parts.fragment:
        raise ConfigError(f"URL path {parts.path!r}: there is one database, and nothing is named by a path")
    user, at, hosts = parts.netloc.rpartition("@")
    username, colon, password = user.partition(":")
    target = _by_region({ONLY_REGION: hosts.split(",")}, ONLY_REGION)
    return Target(
        target.regions,
        target.home,
        unquote(username) if at and username else None,
        unquote(password) if colon else None,
        dict(parse_qsl(parts.query, keep_blank_values=True)),
    )
