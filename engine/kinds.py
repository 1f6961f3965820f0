"""The names of what a key can hold, by their numbers in stores and changes (`state.Kind`)."""

from __future__ import annotations

KIND_NAMES = (
    "none",
    "string",
    "set",
    "map",
    "multi",
    "flag",
    "max",
    "min",
    "hyperloglog",
    "bounded counter",
    "sorted set",
    "sequence",
)
KIND_NUMBERS = {name: number for number, name in enumerate(KIND_NAMES)}
