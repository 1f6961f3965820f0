"""What both clients are made with: checked once, in one place."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from everwrite.client.addresses import Address, parse_target
from everwrite.client.commands import Options, level_of
from everwrite.client.request import Requests
from everwrite.client.router import Router
from everwrite.client.wire import Identity
from everwrite.errors import ClosedError, ConfigError, DeadlineError, Outcome

__all__ = ["SCAN_PAGE", "Settings", "all_in_use", "closed_error"]

Addresses = str | Iterable[str | Address]
Regions = Mapping[str, Sequence[str | Address]]

TIMEOUT_SECONDS = 5.0
CONNECT_SECONDS = 1.0
CONNECTIONS_MAX = 16
SCAN_PAGE = 512  # keys


@dataclass(frozen=True, slots=True)
class Settings:
    """A client's settings, whole and checked."""

    router: Router
    identity: Identity
    timeout: float
    connect_timeout: float
    connections_max: int
    consistency: str | None
    request_ids: bool

    @classmethod
    def make(
        cls,
        addresses: Addresses | None,
        *,
        regions: Regions | None,
        home: str | None,
        timeout: float | None,
        connect_timeout: float | None,
        connections_max: int | None,
        consistency: str | None,
        request_ids: bool = True,
        username: str | None,
        password: str | None,
        name: str | None,
    ) -> Settings:
        """Put settings together: arguments go before the URL's, which go before the defaults. Raises ConfigError."""
        target = parse_target(addresses, regions, home)
        told = dict(target.options or {})
        made = cls(
            router=Router(target.regions, target.home, random.Random()),
            identity=Identity(
                name or told.pop("name", f"everwrite-{os.getpid()}"),
                target.username if username is None else username,
                target.password if password is None else password,
            ),
            timeout=_seconds("timeout", timeout, told.pop("timeout", None), TIMEOUT_SECONDS),
            connect_timeout=_seconds(
                "connect_timeout", connect_timeout, told.pop("connect_timeout", None), CONNECT_SECONDS
            ),
            connections_max=_count("connections_max", connections_max, told.pop("connections_max", None)),
            consistency=level_of(consistency or told.pop("consistency", None)),
            request_ids=request_ids,
        )
        told.pop("name", None)
        told.pop("consistency", None)
        if told:
            raise ConfigError(
                f"URL option {next(iter(told))!r}: the options are timeout, connect_timeout, connections_max, "
                "consistency and name"
            )
        return made

    def requests(self, now: Callable[[], float]) -> Requests:
        """What the requests of one client share."""
        return Requests(
            self.router, self.identity, now, connect_seconds=self.connect_timeout, request_ids=self.request_ids
        )

    def call(self, options: Options) -> tuple[float, str | None]:
        """Timeout in seconds and level of one call. Raises ConfigError."""
        timeout = options.get("timeout")
        level = options.get("consistency")
        seconds = self.timeout if timeout is None else _seconds("timeout", timeout, None, self.timeout)
        return seconds, self.consistency if level is None else level_of(level)


def all_in_use(connections: int, seconds: float) -> DeadlineError:
    """The error of a call for which no connection became free in time."""
    error = DeadlineError(
        f"all {connections} connections of the client were in use for {seconds:g} s: "
        "raise connections_max, or make fewer calls at once"
    )
    error.outcome = Outcome.NOT_APPLIED
    return error


def closed_error() -> ClosedError:
    """The error of a call on a closed client."""
    return ClosedError("the client is closed: make another")


def _seconds(what: str, given: float | None, told: str | None, default: float) -> float:
    value: float | str = default if given is None and told is None else (told or "") if given is None else given
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{what}={value!r}: expected seconds, more than 0")
    return seconds


def _count(what: str, given: int | None, told: str | None) -> int:
    value: int | str = CONNECTIONS_MAX if given is None and told is None else (told or "") if given is None else given
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ConfigError(f"{what}={value!r}: expected a number of connections, at least 1")
    return count
