"""The manifest: round trip, damage, versions, and what the Lsm does about files that it doesn't name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwrite import errors
from everwrite.checksum import checksum
from everwrite.lsm import Lsm
from everwrite.manifest import Manifest, TableInfo, decode, encode
from everwrite.memory_files import MemoryFiles

numbers = st.integers(0, 2**64 - 1)
tables = st.builds(TableInfo, numbers, numbers, numbers, numbers, st.binary(max_size=50), st.binary(max_size=50))
manifests = st.builds(Manifest, st.lists(tables, max_size=5).map(tuple), numbers, st.binary(max_size=100))
EXAMPLE = Manifest((TableInfo(3, 1000, 20, 2, b"a", b"zz"), TableInfo(1, 500, 7, 0, b"", b"q")), 4, b"checkpoint")


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    assert decode(encode(manifest), "manifest") == manifest


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_found(flip: int) -> None:
    data = bytearray(encode(EXAMPLE))
    for offset in range(len(data)):
        data[offset] ^= flip
        with pytest.raises(errors.CorruptionError) as caught:
            decode(bytes(data), "folder/manifest")
        assert caught.value.path == "folder/manifest"
        data[offset] ^= flip


def test_every_truncation_and_extension_is_found() -> None:
    data = encode(EXAMPLE)
    for size in range(len(data)):
        with pytest.raises(errors.CorruptionError):
            decode(data[:size], "manifest")
    with pytest.raises(errors.CorruptionError):
        decode(data + b"\x00", "manifest")


def reseal(data: bytearray) -> bytes:
    data[12:16] = checksum(bytes(data[16:]), checksum(bytes(data[:12]))).to_bytes(4, "little")
    return bytes(data)


def test_sizes_inside_are_checked_though_the_checksum_matches() -> None:
    data = encode(EXAMPLE)
    refused = 0
    for offset in range(16, len(data)):
        harmed = bytearray(data)
        harmed[offset] ^= 0xFF
        # A number may be any; a size that doesn't fit must be noticed. Nothing but a CorruptionError may come out.
        try:
            assert decode(reseal(harmed), "manifest") != EXAMPLE
        except errors.CorruptionError:
            refused += 1
    # The sizes of the body, the checkpoint and four keys, and the count of tables.
    assert refused >= 8 + 6 * 4 - 4


def test_a_newer_version_is_refused_and_left_alone() -> None:
    files = MemoryFiles()
    Lsm(files, "lsm").close()
    data = bytearray(files.read_file("lsm/manifest"))
    data[8] = 2
    files.replace_file("lsm/manifest", reseal(data))
    with pytest.raises(errors.FormatError, match="lsm/manifest"):
        Lsm(files, "lsm")
    assert files.read_file("lsm/manifest") == bytes(data)


def flushed() -> MemoryFiles:
    files = MemoryFiles()
    lsm = Lsm(files, "lsm")
    lsm[b"k"] = b"v"
    lsm.freeze(b"checkpoint")
    lsm.flush_frozen()
    lsm.close()
    return files


def test_orphans_are_removed_and_strangers_kept() -> None:
    files = flushed()
    for name in ("0000000000000077.table", "manifest.tmp", "notes.txt", "17.table"):
        with files.open_file(f"lsm/{name}", "fresh") as file:
            file.write(0, b"left behind")
    lsm = Lsm(files, "lsm")
    assert lsm[b"k"] == b"v"
    assert lsm.checkpoint == b"checkpoint"
    assert files.listdir("lsm") == ["0000000000000001.table", "17.table", "manifest", "notes.txt"]


def test_a_missing_manifest_is_not_an_empty_map() -> None:
    files = flushed()
    files.remove("lsm/manifest")
    with pytest.raises(errors.CorruptionError, match="lsm/manifest: the manifest is missing"):
        Lsm(files, "lsm")
    assert files.exists("lsm/0000000000000001.table")


def test_a_missing_table_is_named() -> None:
    files = flushed()
    files.remove("lsm/0000000000000001.table")
    with pytest.raises(errors.CorruptionError, match=r"0000000000000001\.table"):
        Lsm(files, "lsm")


def test_damage_leaves_all_files_alone() -> None:
    files = flushed()
    with files.open_file("lsm/manifest", "write") as file:
        file.write(20, b"\xff")
    before = {name: files.read_file(f"lsm/{name}") for name in files.listdir("lsm")}
    with pytest.raises(errors.CorruptionError):
        Lsm(files, "lsm")
    assert {name: files.read_file(f"lsm/{name}") for name in files.listdir("lsm")} == before
