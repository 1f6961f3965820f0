"""One request from its first attempt to its outcome: where to, when again, and what an error means. Sans-I/O.

`Requests.exchange` is a generator. It yields what is to be done (`Open`, `Talk`, `Pause`, ...), and is sent the
result, or thrown `Unconnected` or `Lost`. The blocking and the asynchronous client are the two loops around it;
the tests are a third, with the clock in their hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from everwrite.client.addresses import Address
from everwrite.client.commands import Arg, Command, Safety
from everwrite.client.replies import ErrorReply, Remedy, error_of
from everwrite.client.router import Router
from everwrite.client.wire import Identity, Wire, packed
from everwrite.errors import (
    ConnectionLostError,
    DeadlineError,
    EverwriteError,
    Outcome,
    ProtocolError,
    UnreachableError,
)

__all__ = [
    "Answer",
    "Discard",
    "Effect",
    "Forget",
    "Lost",
    "Open",
    "Pause",
    "Release",
    "Requests",
    "Talk",
    "Unconnected",
]

# A pipeline is sent in pieces: a node stops reading from a client that lets too many replies wait.
PIECE_COMMANDS_MAX: Final = 512
# A server keeps for twice as long what it answered to an id.
IDS_SECONDS_MAX: Final = 300.0


@dataclass(frozen=True, slots=True)
class Open:
    """Get a connection to `address`, an idle one (of this level, if there is a choice) or a new one.

    Result: (Wire, whether it was used before). Throw `Unconnected` when there is none by `until`.
    """

    address: Address
    level: str | None
    until: float


@dataclass(frozen=True, slots=True)
class Talk:
    """Send `data`, and collect replies in `replies` until there are `count`; throw `Lost` when that fails."""

    data: bytes
    replies: list[Any]
    count: int
    until: float


@dataclass(frozen=True, slots=True)
class Release:
    """The open connection may serve others."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the open connection, if there is one."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Close idle connections to `address`: the node has ended since."""

    address: Address


@dataclass(frozen=True, slots=True)
class Pause:
    """Let `seconds` pass."""

    seconds: float


Effect = Open | Talk | Release | Discard | Forget | Pause


class Unconnected(Exception):
    """No connection came about; `str` says why."""


class Lost(Exception):
    """A connection broke, or was silent for too long, within `Talk`; `str` says how.

    `sent`: whether any of the data can have reached the node.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class Answer:
    """The replies to a request, and the node they came from (None: nothing had to be asked)."""

    def __init__(
        self, commands: Sequence[Command[Any]], replies: list[Any], unknown: bool, address: Address | None
    ) -> None:
        self.address = address
        self._commands = commands
        self._replies = replies
        self._unknown = unknown

    def results(self) -> list[Any]:
        """A result or an exception for each command."""
        replies = iter(self._replies)
        return [self._result(each, next(replies) if each.args else None) for each in self._commands]

    def _result(self, command: Command[Any], reply: Any) -> Any:
        if isinstance(reply, ErrorReply):
            error, _ = error_of(str(reply))
            # What was refused now may have been applied by an attempt before.
            maybe = command.safety > Safety.READ and (self._unknown or error.outcome is Outcome.UNKNOWN)
            return _about(error, Outcome.UNKNOWN if maybe else Outcome.NOT_APPLIED, self.address)
        try:
            return command.read(reply)
        except (KeyError, TypeError, ValueError) as error:
            return error


class _Progress:
    """How far one request is."""

    def __init__(self, commands: list[Command[Any]], level: str | None, until: float) -> None:
        self.commands = commands
        self.level = level
        self.until = until
        self.replies: list[Any] = []
        self.unknown = False  # an attempt that had no reply may have been applied
        self.tried: set[Address] = set()
        self.connected = False  # any of the attempts
        self.ids: list[bytes] = []  # of the commands that need one, b"" for the others; empty: none was sent yet
        self.only: Address | None = None  # the node that knows whether the ids were applied
        self.failures: dict[Address, str] = {}
        self.refusal: EverwriteError | None = None  # what a node that couldn't serve has said

    @property
    def left(self) -> list[Command[Any]]:
        return self.commands[len(self.replies) :]

    @property
    def safety(self) -> Safety:
        return max((command.safety for command in self.left), default=Safety.READ)

    def words(self, start: int, stop: int) -> Iterator[tuple[Arg, ...]]:
        """Some of the commands as they are sent, with their ids."""
        for command, number in zip(self.commands[start:stop], self.ids[start:stop], strict=True):
            yield ("EW.ONCE", number, *command.args) if number else command.args

    def outcome(self) -> Outcome:
        writes = self.safety > Safety.READ
        return Outcome.UNKNOWN if self.unknown and writes else Outcome.NOT_APPLIED

    def story(self) -> str:
        return "; ".join(f"{address}: {reason}" for address, reason in self.failures.items()) or "no node was asked"


class Requests:
    """What the requests of one client share. Times are seconds of the clock that `now` reads."""

    def __init__(
        self,
        router: Router,
        identity: Identity,
        now: Callable[[], float],
        *,
        connect_seconds: float,
        request_ids: bool = True,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.router = router
        self._identity = identity
        self._now = now
        self._connect_seconds = connect_seconds
        self._request_ids = request_ids
        self._entropy = entropy
        self.retries = 0

    def exchange(
        self, commands: Sequence[Command[Any]], level: str | None, until: float, only: Address | None = None
    ) -> Generator[Effect, Any, Answer]:
        """Ask, by `until` at the latest; `only` names the node if no other will do.

        Raises the errors of the request as a whole, with their `outcome`.
        """
        progress = _Progress([command for command in commands if command.args], level, until)
        address: Address | None = None
        while progress.left:
            address = yield from self._next_address(progress, progress.only or only)
            try:
                yield from self._attempt(progress, address)
            except (Unconnected, Lost) as failure:
                yield from self._failed(progress, address, failure)
        return Answer(commands, progress.replies, progress.unknown, address)

    def _next_address(self, progress: _Progress, only: Address | None) -> Generator[Effect, Any, Address]:
        while True:
            now = self._now()
            if now >= progress.until:
                raise self._over(progress) if progress.connected or not progress.tried else self._unreachable(progress)
            if only is not None:
                wait = self.router.retry_in(only, now) if only in progress.tried else 0.0
                address: Address | None = only if wait <= 0 else None
            else:
                address = self.router.choose(now, tried=progress.tried)
                wait = self.router.wait(now) if address is None else 0.0
            if address is not None:
                return address
            if now + wait >= progress.until:
                # Nobody can be asked in time: tell so now.
                raise self._unreachable(progress)
            yield Pause(wait)

    def _attempt(self, progress: _Progress, address: Address) -> Generator[Effect, Any, None]:
        now = self._now()
        until = progress.until
        if self._safety(progress) < Safety.SINGLE and not self.router.alone(address):
            # A node that hangs must leave time to ask another.
            until = now + (progress.until - now) / 2
        wire, reused = yield Open(address, progress.level, min(until, now + self._connect_seconds))
        progress.connected = True
        try:
            yield from self._prepare(wire, progress, until)
        except EverwriteError as error:
            yield Discard()
            error.outcome, error.address = progress.outcome(), str(address)
            raise
        except Lost as lost:
            lost.sent = False  # of what was asked
            raise
        try:
            yield from self._converse(wire, progress, until)
        except Lost as lost:
            if reused and not progress.replies and self._now() < until:
                # It may have ended while it was idle, which says nothing of the node as it is now.
                yield Forget(address)
                self._note_loss(progress, address, lost)
                return
            raise
        except ProtocolError as error:
            raise Lost(str(error), sent=True) from error
        remedy = self._refused(progress, address)
        if remedy is Remedy.NONE:
            self.router.succeeded(address)
        # A reply that nobody asked for must not become the answer to the next request.
        yield Release() if wire.settled else Discard()

    def _prepare(self, wire: Wire, progress: _Progress, until: float) -> Generator[Effect, Any, None]:
        """Introduce the client, and bring the connection to the level asked for."""
        replies: list[Any] = []
        if not wire.greeted:
            yield Talk(packed(self._identity.hello()), replies, 1, until)
            wire.accept(replies.pop())
        # On its own, so that a server that doesn't know the level does nothing at another one.
        if words := wire.level_words(progress.level):
            yield Talk(b"".join(map(packed, words)), replies, len(words), until)
            wire.accept_level(replies, progress.level)

    def _converse(self, wire: Wire, progress: _Progress, until: float) -> Generator[Effect, Any, None]:
        if progress.only is None:
            # Whatever was sent before was not applied.
            progress.ids = [
                wire.next_id(self._entropy) if self._with_id(command) else b"" for command in progress.commands
            ]
        while progress.left:
            start = len(progress.replies)
            stop = min(start + PIECE_COMMANDS_MAX, len(progress.commands))
            words = list(progress.words(start, stop))
            bound = wire.deadline_words(until - self._now(), progress.level)
            replies: list[Any] = []
            try:
                yield Talk(b"".join(map(packed, bound + words)), replies, len(bound) + len(words), until)
            finally:
                wire.accept_deadline(replies[: len(bound)])
                progress.replies += replies[len(bound) :]

    def _safety(self, progress: _Progress) -> Safety:
        """What counts for sending again: without an id, what would need one may not be."""
        return Safety.SINGLE if progress.safety is Safety.ONCE and not self._request_ids else progress.safety

    def _with_id(self, command: Command[Any]) -> bool:
        return command.safety is Safety.ONCE and self._request_ids

    def _refused(self, progress: _Progress, address: Address) -> Remedy:
        """Look at the reply to a single command: one that another node can serve is forgotten, to be asked there."""
        if len(progress.commands) > 1 or not isinstance(progress.replies[0], ErrorReply):
            return Remedy.NONE
        error, remedy = error_of(str(progress.replies[0]))
        command = progress.commands[0]
        maybe = error.outcome is Outcome.UNKNOWN and command.safety > Safety.READ
        if remedy is Remedy.NONE or (maybe and command.safety > Safety.REPEATABLE):
            return Remedy.NONE
        progress.unknown |= maybe
        progress.tried.add(address)
        progress.failures[address] = str(error)
        progress.refusal = error
        self.router.failed(address, self._now())
        if progress.only is None and self.router.wait(self._now()) > 0:
            # Nobody else can be asked at once, and whoever asks wants to know.
            return Remedy.NONE
        progress.replies.clear()
        self.retries += 1
        return remedy

    def _failed(
        self, progress: _Progress, address: Address, failure: Unconnected | Lost
    ) -> Generator[Effect, Any, None]:
        yield Discard()
        progress.tried.add(address)
        self.router.failed(address, self._now())
        self._note_loss(progress, address, failure)

    def _note_loss(self, progress: _Progress, address: Address, failure: Unconnected | Lost) -> None:
        progress.failures[address] = str(failure)
        if isinstance(failure, Lost) and failure.sent:
            progress.unknown |= progress.safety > Safety.READ
            if self._safety(progress) is Safety.SINGLE:
                raise self._lost(progress, address)
            if progress.safety is Safety.ONCE and progress.only is None:
                # No other node is sure to know of it; and this one doesn't for ever.
                progress.only = address
                progress.until = min(progress.until, self._now() + IDS_SECONDS_MAX)
        self.retries += 1

    def _lost(self, progress: _Progress, address: Address) -> EverwriteError:
        if self._now() >= progress.until:
            return self._over(progress)
        return _about(
            ConnectionLostError(
                f"{address}: {progress.failures[address]}, after the request was sent: it may have been applied, and "
                "sending it again could apply it twice; look whether it was"
            ),
            Outcome.UNKNOWN,
            address,
        )

    def _over(self, progress: _Progress) -> EverwriteError:
        outcome = progress.outcome()
        text = f"no reply within the timeout, and the request is {outcome.value}: {progress.story()}"
        if outcome is Outcome.UNKNOWN:
            text = f"no reply within the timeout; the request may have been applied: {progress.story()}"
        return _about(DeadlineError(text), outcome, next(reversed(progress.failures), None))

    def _unreachable(self, progress: _Progress) -> EverwriteError:
        outcome = progress.outcome()
        address = next(reversed(progress.failures), None)
        if progress.refusal is not None:
            return _about(progress.refusal, outcome, address)
        if outcome is Outcome.UNKNOWN:
            text = f"no node can say whether the request was applied: {progress.story()}"
            return _about(ConnectionLostError(text), outcome, address)
        suspects = ", ".join(map(str, self.router.suspects()))
        text = f"no node answers (tried lately: {suspects}): {progress.story()}; is a server running there?"
        return _about(UnreachableError(text), outcome, address)


def _about(error: EverwriteError, outcome: Outcome, address: Address | None) -> EverwriteError:
    error.outcome = outcome
    error.address = None if address is None else str(address)
    return error
