"""CRC-32C against published vectors, a bitwise twin, and its two implementations against each other."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite.checksum import checksum, checksum_portable, implementation

# RFC 3720 appendix B.4, and the check value of the catalogue of parametrised CRC algorithms.
VECTORS = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
    (
        bytes.fromhex(
            "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 0000001828000000 00000000 02000000 00000000"
        ),
        0xD9963A56,
    ),
]


def bitwise(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("function", [checksum, checksum_portable])
@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_published_vectors(function: Callable[[bytes], int], data: bytes, expected: int) -> None:
    assert function(data) == expected


def test_the_implementation_has_a_name() -> None:
    assert implementation in {"sse4.2", "armv8", "portable"}


@given(st.binary(max_size=300))
def test_both_agree_with_the_definition(data: bytes) -> None:
    assert checksum(data) == checksum_portable(data) == bitwise(data)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_a_value_continues(first: bytes, second: bytes) -> None:
    assert checksum(second, checksum(first)) == checksum(first + second)
    assert checksum_portable(second, checksum_portable(first)) == checksum(first + second)


def test_every_alignment_and_length() -> None:
    data = bytes(i * 7 & 0xFF for i in range(64))
    view = memoryview(data)
    for start in range(16):
        for stop in range(start, 64):
            expected = bitwise(data[start:stop])
            assert checksum(view[start:stop]) == checksum_portable(view[start:stop]) == expected


@pytest.mark.parametrize("size", [503, 504, 505, 1_007, 1_008, 4_079, 4_080, 4_089, 5_000, 100_003])
def test_both_agree_on_long_data(size: int) -> None:
    data = random.Random(size).randbytes(size)
    for start in (0, 1, 0xFFFFFFFF, 0x12345678):
        assert checksum(data, start) == checksum_portable(data, start)
