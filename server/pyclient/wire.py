"""One connection's side of the protocol: bytes to send, replies found in what came. Sans-I/O.

hiredis does the framing of RESP3. Here is what the connection is set to, and how requests are numbered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from everwrite.client.addresses import Address
from everwrite.client.commands import Arg
from everwrite.client.replies import ErrorReply, error_of
from everwrite.errors import EverwriteError, ProtocolError, ServerError

__all__ = ["Identity", "Wire"]

# Of an id for EW.ONCE, and of the part that names who counts.
ID_BYTES: Final = 16
SLOT_BYTES: Final = 10

# How long a server lets a request wait for other replicas unless told otherwise (`request_timeout_ms`).
SERVER_WAIT_SECONDS: Final = 2.0
# Of the time that is left: so that what the server says in the end still arrives.
SERVER_SHARE: Final = 0.9

_NOT_YET: Final = object()


class Identity:
    """Who the client is to a server: name of the connection, user and password."""

    def __init__(self, name: str, username: str | None, password: str | None) -> None:
        self.name = name
        self.username = username
        self.password = password

    def hello(self) -> tuple[Arg, ...]:
        """The command that opens a connection."""
        words: tuple[Arg, ...] = ("HELLO", 3)
        if self.username is not None or self.password is not None:
            words += ("AUTH", self.username or "default", self.password or "")
        return (*words, "SETNAME", self.name)


class Wire:
    """The state of one connection to the node at `address`.

    Invariant: `level` is what the server was last told and has confirmed; None: it was never told anything.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.level: str | None = None
        self.level_of_server: str | None = None
        self.greeted = False
        self._knows_deadlines = True
        self._slot = b""
        self._number = 0
        self._reader = hiredis.Reader(replyError=ErrorReply, notEnoughData=_NOT_YET)

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._reader.feed(data)

    def take(self, replies: list[Any], count: int) -> bool:
        """Move replies that are complete to `replies`, up to `count`; whether it has them. Raises ProtocolError."""
        while len(replies) < count:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError as error:
                raise ProtocolError(f"{self.address} sent what isn't RESP3: {error}") from error
            if reply is _NOT_YET:
                return False
            if not isinstance(reply, hiredis.PushNotification):
                replies.append(reply)
        return True

    def deadline_words(self, seconds: float, level: str | None) -> list[tuple[Arg, ...]]:
        """The command that tells the server how long the next one may wait; none where it wouldn't wait longer."""
        if seconds >= SERVER_WAIT_SECONDS or not self._knows_deadlines or (level or self.level_of_server) == "ONE":
            return []
        return [("EW.DEADLINE", max(1, int(seconds * SERVER_SHARE * 1000)))]

    def accept_deadline(self, replies: Sequence[Any]) -> None:
        """Look at the reply to `deadline_words`: a server without deadlines isn't told any again."""
        self._knows_deadlines &= not any(isinstance(reply, ErrorReply) for reply in replies)

    def next_id(self, entropy: Callable[[int], bytes]) -> bytes:
        """A new id for EW.ONCE: a random name of this connection, and a number that grows.

        The server keeps one answer for a name and a key. Names are never used on two connections: on two nodes,
        whose clocks differ, an older answer could hide a newer one.
        """
        if not self._slot:
            self._slot = entropy(SLOT_BYTES)
        self._number += 1
        return self._slot + self._number.to_bytes(ID_BYTES - SLOT_BYTES, "big")

    @property
    def settled(self) -> bool:
        """Whether everything that was received has been taken."""
        return not self._reader.has_data()

    def accept(self, greeting: Any) -> None:
        """Look at the reply to `Identity.hello`. Raises what the server said."""
        if isinstance(greeting, ErrorReply):
            raise error_of(str(greeting))[0]
        if not isinstance(greeting, dict) or greeting.get(b"proto") != 3:
            raise ProtocolError(f"{self.address} doesn't speak RESP3: it answered HELLO 3 with {greeting!r:.100}")
        self.greeted = True

    def level_words(self, level: str | None) -> list[tuple[Arg, ...]]:
        """The commands that bring the connection to this level (None: the server's own); often none."""
        if level is None:
            level = self.level_of_server
        if level == self.level:
            return []
        ask: list[tuple[Arg, ...]] = [("EW.CONSISTENCY",)] if self.level_of_server is None else []
        return [*ask, ("EW.CONSISTENCY", level or "")]

    def accept_level(self, replies: Sequence[Any], level: str | None) -> None:
        """Look at the replies to `level_words`. Raises what the server said."""
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise self._level_refused(str(reply), level)
        if self.level_of_server is None:
            self.level_of_server = bytes(replies[0]).decode("ascii", "replace")
        self.level = level or self.level_of_server

    def _level_refused(self, text: str, level: str | None) -> EverwriteError:
        if text.startswith("ERR unknown command"):
            return ServerError(
                f"consistency={level!r}: the server at {self.address} knows no consistency levels; "
                "leave it out, or use a newer server"
            )
        return error_of(text)[0]


def packed(words: tuple[Arg, ...]) -> bytes:
    """A command as it is sent."""
    data: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub says: exactly one word
    return data
