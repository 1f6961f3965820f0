"""zstd frames: made and opened by the library's functions and by the package's interface, which must agree."""

import contextlib
import random

import pytest

from everwrite import errors
from everwrite.compression import Zstd

SAMPLES = [b"", b"a", b"word " * 1_000, random.Random(1).randbytes(5_000), bytes(1 << 20)]


@pytest.mark.parametrize("maker", [True, False])
@pytest.mark.parametrize("opener", [True, False])
def test_frames_are_read_by_either_way(maker: bool, opener: bool) -> None:
    made = Zstd(native=maker)
    opened = Zstd(native=opener)
    for content in SAMPLES:
        assert opened.content(made.frame(content), len(content)) == content


def test_the_library_is_found_in_this_package() -> None:
    # The wheels of zstandard show its functions; if that ends, tables still work, but hold the GIL.
    assert Zstd().native
    assert not Zstd(native=False).native


@pytest.mark.parametrize("native", [True, False])
def test_damage_is_refused(native: bool) -> None:
    zstd = Zstd(native=native)
    frame = zstd.frame(b"word " * 1_000)
    for broken, size in [(frame, 4_999), (frame, 5_001), (frame[:-1], 5_000), (b"", 5), (b"\x00" * 20, 5)]:
        with pytest.raises(errors.ProtocolError):
            zstd.content(broken, size)
    flipped = bytearray(frame)
    flipped[-5] ^= 0xFF
    with contextlib.suppress(errors.ProtocolError):
        assert len(zstd.content(bytes(flipped), 5_000)) == 5_000
