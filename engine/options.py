"""What the options of a store may be."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import SupportsIndex

from everwrite.errors import ConfigError

__all__ = ["number_of", "path_of"]

_LIMIT = 1 << 62


def number_of(name: str, value: SupportsIndex, least: int) -> int:
    """The integer that an option gives. Raises ConfigError when it is none, less than `least`, or absurd."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; it must be an integer") from None
    if not least <= number <= _LIMIT:
        raise ConfigError(f"{name} is {number}; it must be at least {least}, and at most {_LIMIT}")
    return number


def path_of(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """The path of a folder, from the root: it stays the same wherever the process goes. Raises ConfigError for ""."""
    name = os.fsdecode(path)
    if not name:
        raise ConfigError("the path is empty: name the folder, '.' for the current one")
    return str(Path(name).absolute())
