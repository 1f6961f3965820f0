"""Which release this is: told to peers, in INFO, among the metrics, and on the command line."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

__all__ = ["UNKNOWN", "software_version"]

UNKNOWN: Final = "unknown"


def software_version() -> str:
    """The version of the installed package; `UNKNOWN` in a source tree that isn't installed."""
    try:
        return version("everwrite")
    except PackageNotFoundError:
        return UNKNOWN
