"""Table files: what is read is what was written, or an error that names the file and the place."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everwrite import errors
from everwrite.checksum import checksum
from everwrite.lsm import Lsm
from everwrite.memory_files import MemoryFiles

TABLE = "lsm/0000000000000001.table"


def store(entries: dict[bytes, bytes], removed: list[bytes] | None = None) -> MemoryFiles:
    """An Lsm's files with all of `entries` in one table, and below it one table that `removed` hides keys of."""
    files = MemoryFiles()
    lsm = Lsm(files, "lsm")
    for key, value in entries.items():
        lsm[key] = value
    lsm.freeze(b"checkpoint")
    lsm.flush_frozen()
    if removed:
        for key in removed:
            del lsm[key]
        lsm.freeze(b"checkpoint")
        lsm.flush_frozen()
    lsm.close()
    return files


def patch(files: MemoryFiles, path: str, offset: int, data: bytes) -> None:
    with files.open_file(path, "write") as file:
        file.write(offset, data)


ENTRIES = {b"key:%03d" % i: b"%d" % i * (i % 5) for i in range(60)}


@settings(deadline=None)
@given(st.dictionaries(st.binary(max_size=60), st.binary(max_size=300), min_size=1, max_size=300), st.data())
def test_round_trip(entries: dict[bytes, bytes], data: st.DataObject) -> None:
    lsm = Lsm(store(entries), "lsm")
    assert list(lsm.items()) == sorted(entries.items())
    for key, value in entries.items():
        assert lsm[key] == value
    for key in data.draw(st.lists(st.binary(max_size=60))):
        assert (key in lsm) == (key in entries)
        assert list(lsm.items(key)) == sorted(item for item in entries.items() if item[0] >= key)


def test_many_blocks() -> None:
    source = random.Random(5)
    entries = {b"key:%08d" % source.randrange(10**8): source.randbytes(source.randrange(200)) for _ in range(20_000)}
    lsm = Lsm(store(entries), "lsm")
    assert lsm.statistics()["tables"] == 1
    assert list(lsm.items()) == sorted(entries.items())
    assert lsm.statistics()["cache_misses"] > 50
    for key in source.sample(sorted(entries), 2_000):
        assert lsm[key] == entries[key]
        assert key + b"\x00" not in lsm
        assert key[:-1] not in lsm


@pytest.mark.parametrize("size", [16_384, 100_000, (64 << 20) + (64 << 10)])
def test_large_values(size: int) -> None:
    value = random.Random(6).randbytes(1_000) * (size // 1_000 + 1)
    entries = {b"a": b"1", b"large": value[:size], b"z" * 132_000: b"2", b"zz": value[: size // 2]}
    lsm = Lsm(store(entries), "lsm", block_cache_bytes=1 << 20)
    assert lsm[b"large"] == entries[b"large"]
    assert list(lsm.items()) == sorted(entries.items())
    assert lsm.statistics()["cache_bytes"] <= 1 << 20


def test_reading_neighbours_of_a_large_value_does_not_read_it() -> None:
    files = store({b"a": b"1", b"b": random.Random(7).randbytes(1 << 20), b"c": b"3"})
    with files.open_file(TABLE, "read") as file:
        middle = file.size() // 2
    patch(files, TABLE, middle, b"\x00\x01\x02\x03")
    lsm = Lsm(files, "lsm")
    assert lsm[b"a"] == b"1"
    assert lsm[b"c"] == b"3"
    with pytest.raises(errors.CorruptionError):
        lsm[b"b"]


def observe(files: MemoryFiles) -> dict[bytes, bytes]:
    """All that can be read, by lookups and by a scan; both must agree."""
    lsm = Lsm(files, "lsm")
    found = {}
    for key in [*ENTRIES, b"absent", b"key:0005"]:
        if key in lsm:
            found[key] = lsm[key]
    assert dict(lsm.items()) == found
    return found


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_found(flip: int) -> None:
    files = store(ENTRIES)
    content = files.read_file(TABLE)
    for offset, byte in enumerate(content):
        patch(files, TABLE, offset, bytes([byte ^ flip]))
        with pytest.raises(errors.CorruptionError, match=TABLE) as caught:
            observe(files)
        assert caught.value.path == TABLE
        assert caught.value.offset <= offset
        patch(files, TABLE, offset, bytes([byte]))
    assert observe(files) == ENTRIES


def test_every_truncation_is_found() -> None:
    files = store(ENTRIES)
    content = files.read_file(TABLE)
    for size in range(len(content)):
        with files.open_file(TABLE, "fresh") as file:
            file.write(0, content[:size])
        with pytest.raises(errors.CorruptionError) as caught:
            Lsm(files, "lsm")
        assert caught.value.path == TABLE


def test_remove_markers_hide_what_is_below() -> None:
    lsm = Lsm(store(ENTRIES, removed=[b"key:003", b"key:059"]), "lsm")
    assert lsm.statistics()["tables"] == 2
    left = {key: value for key, value in ENTRIES.items() if key not in (b"key:003", b"key:059")}
    assert b"key:003" not in lsm
    assert dict(lsm.items()) == left


def test_a_newer_version_is_refused_and_left_alone() -> None:
    files = store(ENTRIES)
    content = files.read_file(TABLE)
    footer = bytearray(content[-64:])
    footer[48] = 2
    footer[52:56] = checksum(bytes(footer[:52])).to_bytes(4, "little")
    patch(files, TABLE, len(content) - 64, bytes(footer))
    before = files.read_file(TABLE)
    with pytest.raises(errors.FormatError, match=r"0000000000000001\.table"):
        Lsm(files, "lsm")
    assert files.read_file(TABLE) == before


def test_a_block_in_another_place_is_found() -> None:
    # Two tables of the same shape: a whole block of one, checksum and all, doesn't pass at another offset.
    source = random.Random(8)
    entries = {b"key:%05d" % i: source.randbytes(100) for i in range(1_000)}
    files = store(entries)
    content = files.read_file(TABLE)
    first = next(size for size in range(9, 40_000) if content[size - 4 : size] == block_checksum(content, 0, size))
    second = next(
        size
        for size in range(9, 40_000)
        if content[first + size - 4 : first + size] == block_checksum(content, first, size)
    )
    size = min(first, second)
    patch(files, TABLE, first, content[:size])
    with pytest.raises(errors.CorruptionError) as caught:
        dict(Lsm(files, "lsm").items())
    assert caught.value.offset == first


def block_checksum(content: bytes, offset: int, size: int) -> bytes:
    return checksum(offset.to_bytes(8, "little"), checksum(content[offset : offset + size - 4])).to_bytes(4, "little")
