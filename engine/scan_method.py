"""The type of `scan`: what it yields depends on what is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, overload

__all__ = ["ScanMethod"]


class ScanMethod(Protocol):
    """`Database.scan` and `Snapshot.scan`, for each choice of `keys` and `values`."""

    @overload
    def __call__(
        self,
        prefix: bytes = b"",
        start: bytes | None = None,
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        keys: Literal[True] = True,
        values: Literal[True] = True,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]: ...
    @overload
    def __call__(
        self,
        prefix: bytes = b"",
        start: bytes | None = None,
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        keys: Literal[True] = True,
        values: Literal[False],
        limit: int | None = None,
    ) -> Iterator[bytes]: ...
    @overload
    def __call__(
        self,
        prefix: bytes = b"",
        start: bytes | None = None,
        stop: bytes | None = None,
        *,
        reverse: bool = False,
        keys: Literal[False],
        values: Literal[True] = True,
        limit: int | None = None,
    ) -> Iterator[bytes]: ...
