"""A HyperLogLog in plain Python, written from docs/formats/state.md: a slow twin of the engine's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

from tests.reference.digest import hash64

BITS = 14
REGISTERS = 1 << BITS
GROUP = 64  # registers an element
RANK_MAX = 64 - BITS + 1
SEED = 0x9FB21C651E98DF25

# The registers that aren't zero.
Registers = dict[int, int]


def place_of(item: bytes) -> tuple[int, int]:
    """The register that an item raises, and to what."""
    hashed = hash64(item, SEED)
    rest = hashed & ((1 << 64 - BITS) - 1)
    return hashed >> 64 - BITS, RANK_MAX - rest.bit_length()


def groups_of(items: Iterable[bytes]) -> dict[bytes, bytes]:
    """The elements that make up the registers of these items: name to 48 bytes."""
    registers: Registers = {}
    for item in items:
        place, rank = place_of(item)
        registers[place] = max(registers.get(place, 0), rank)
    names = sorted({place // GROUP for place in registers})
    return {bytes([name]): pack([registers.get(name * GROUP + i, 0) for i in range(GROUP)]) for name in names}


def pack(group: list[int]) -> bytes:
    """64 registers of six bits, the first in the lowest bits."""
    return sum(rank << 6 * i for i, rank in enumerate(group)).to_bytes(48, "little")


@lru_cache(maxsize=1 << 14)
def unpack(packed: bytes) -> tuple[int, ...]:
    number = int.from_bytes(packed, "little")
    return tuple([number >> 6 * i & 63 for i in range(GROUP)])


@lru_cache(maxsize=1 << 14)
def union(*packed: bytes) -> bytes:
    """The larger of each register; of nothing all zeros."""
    return pack([max(ranks) for ranks in zip([0] * GROUP, *map(unpack, packed), strict=True)])


def estimate(groups: Mapping[bytes, bytes]) -> int:
    """Ertl 2017, improved raw estimator."""
    return estimate_of(tuple(groups.values()))


@lru_cache(maxsize=1 << 10)
def estimate_of(groups: tuple[bytes, ...]) -> int:
    histogram = [0.0] * (RANK_MAX + 1)
    for packed in groups:
        for rank in unpack(packed):
            histogram[rank] += 1
    histogram[0] += REGISTERS - GROUP * len(groups)
    if histogram[0] == REGISTERS:
        return 0
    z = REGISTERS * tau(1 - histogram[RANK_MAX] / REGISTERS)
    for k in range(RANK_MAX - 1, 0, -1):
        z = 0.5 * (z + histogram[k])
    z += REGISTERS * sigma(histogram[0] / REGISTERS)
    return math.floor(REGISTERS**2 / (2 * math.log(2)) / z + 0.5)


def sigma(x: float) -> float:
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


def tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x = math.sqrt(x)
        before = z
        y /= 2
        z -= (1 - x) ** 2 * y
    return z / 3
