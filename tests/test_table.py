"""Table files: what is read is what was written, or an error that names the file and the place."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import everwrite
from everwrite import compaction, errors
from everwrite.checksum import checksum
from everwrite.lsm import Lsm
from everwrite.lsm_cursor import LsmCursor, table_items_by_hash
from everwrite.manifest import TableDamage
from everwrite.memory_files import MemoryFiles
from everwrite.table_verify import readable_entries, table_flushes, verify_table

TABLE = "lsm/0000000000000001.table"
MAPPED = {"mapped": False}


@pytest.fixture(params=[False, True], ids=["read", "mapped"], scope="module", autouse=True)
def mapped(request: pytest.FixtureRequest) -> bool:
    """Each test reads tables by calls, and once more through mappings."""
    MAPPED["mapped"] = request.param
    return MAPPED["mapped"]


def store(entries: dict[bytes, bytes], removed: list[bytes] | None = None) -> MemoryFiles:
    """An Lsm's files with all of `entries` in one table, and below it one table that `removed` hides keys of."""
    files = MemoryFiles()
    files.maps_for_reading = MAPPED["mapped"]
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


def backwards(lsm: Lsm) -> list[tuple[bytes, bytes]]:
    cursor = LsmCursor(lsm)
    found = []
    item = cursor.last()
    while item is not None:
        found.append(item)
        item = cursor.prev()
    return found


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
    assert backwards(lsm) == sorted(entries.items(), reverse=True)


def test_many_blocks() -> None:
    source = random.Random(5)
    entries = {b"key:%08d" % source.randrange(10**8): source.randbytes(source.randrange(200)) for _ in range(20_000)}
    lsm = Lsm(store(entries), "lsm")
    assert lsm.statistics()["tables"] == 1
    assert list(lsm.items()) == sorted(entries.items())
    assert backwards(lsm) == sorted(entries.items(), reverse=True)
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


def random_entries(count: int, seed: int) -> dict[bytes, bytes]:
    source = random.Random(seed)
    return {source.randbytes(17): source.randbytes(117) for _ in range(count)}


def test_an_absent_key_costs_a_line_of_the_index_and_hardly_ever_a_block() -> None:
    entries = random_entries(20_000, 9)
    files = store(entries)
    lsm = Lsm(files, "lsm", block_cache_bytes=1 << 30)
    present = list(entries)[:2_000]
    for key in present:
        assert lsm[key] == entries[key]
    assert lsm.statistics()["cache_misses"] > 500
    lsm = Lsm(files, "lsm", block_cache_bytes=1 << 30)
    source = random.Random(10)
    for _ in range(20_000):
        assert source.randbytes(17) not in lsm
    # 12 bits of fingerprint and ten entries in a line let one absent key in 400 read a block of the 700 there are.
    assert lsm.statistics()["cache_misses"] < 30 + 3 * 20_000 // 400


def test_a_table_is_little_larger_than_what_it_holds() -> None:
    entries = random_entries(50_000, 11)
    lsm = Lsm(store(entries), "lsm")
    assert lsm.statistics()["table_bytes"] <= 1.12 * sum(len(key) + len(value) for key, value in entries.items())


def test_blocks_that_shrink_are_compressed_and_others_are_not() -> None:
    source = random.Random(12)
    alike = {b"%05d" % i: b"the same words over and over" * 4 for i in range(10_000)}
    sizes = sum(len(key) + len(value) for key, value in alike.items())
    lsm = Lsm(store(alike), "lsm")
    assert list(lsm.items()) == sorted(alike.items())
    assert lsm.statistics()["table_bytes"] < sizes // 3
    lsm = Lsm(store(alike), "lsm", block_cache_bytes=1 << 16)
    for key in source.sample(sorted(alike), 1_000):
        assert lsm[key] == alike[key]
    lsm = Lsm(store({key: source.randbytes(112) for key in alike}), "lsm")
    assert lsm.statistics()["table_bytes"] > sizes


def test_entries_are_found_by_ranges_of_their_hashes() -> None:
    entries = random_entries(5_000, 13)
    removed = list(entries)[:100]
    lsm = Lsm(store(entries, removed), "lsm")
    newer, older = table_items_by_hash(lsm, 0, 2**64 - 1)
    assert {key: value for _, key, value in older} == entries
    assert [key for _, key, _ in newer] == [key for _, key, _ in older if key in removed]
    assert all(value is None for _, _, value in newer)
    assert [item[0] for item in older] == sorted(item[0] for item in older)
    found = []
    for i in range(256):
        found += table_items_by_hash(lsm, i << 56, (i << 56) + 2**56 - 1)[1]
    assert found == older
    middle = older[2_500][0]
    assert table_items_by_hash(lsm, middle, middle)[1] == [older[2_500]]


@pytest.mark.parametrize("capacity", [1, 17, 1_000])
def test_an_index_larger_than_its_memory_is_the_same(capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = random_entries(3_000, 15)
    expected = store(entries).read_file(TABLE)
    monkeypatch.setattr(compaction, "INDEX_ENTRIES", capacity)
    files = store(entries)
    assert files.read_file(TABLE) == expected
    assert files.listdir("lsm") == ["0000000000000001.table", "manifest"]


def test_keys_whose_hashes_begin_alike_are_all_found() -> None:
    # Keys chosen for one line of the index overflow it by far.
    entries = random_entries(60_000, 14)
    lsm = Lsm(store(entries), "lsm")
    chosen = {key: value for _, key, value in table_items_by_hash(lsm, 0, 2**64 // 300)[0]}
    assert 100 < len(chosen) < 400
    others = dict(list(entries.items())[:50])
    lsm = Lsm(store(chosen | others), "lsm")
    for key, value in (chosen | others).items():
        assert lsm[key] == value
    assert not any(key in lsm for key in list(entries)[50:2_000] if key not in chosen)


def test_data_larger_than_the_cache_reads_the_same(tmp_path: Path, mapped: bool) -> None:
    entries = random_entries(20_000, 16)
    sizes = {"memtable_bytes": 1 << 20, "block_cache_bytes": 1 << 19}
    with everwrite.open(tmp_path, durability="os", mapped_reads=mapped, **sizes) as db:
        for key, value in entries.items():
            db[key] = value
        db.compact()
        assert db.stats()["cache_bytes"] <= 1 << 19
        keys = list(entries)
        random.Random(17).shuffle(keys)
        for key in keys[:5_000]:
            assert db[key] == entries[key]
        assert db.get_many(keys[5_000:10_000]) == [entries[key] for key in keys[5_000:10_000]]
        assert list(db.scan()) == sorted(entries.items())
        assert list(db.scan(reverse=True)) == sorted(entries.items(), reverse=True)
        assert db.stats()["cache_bytes"] <= 1 << 19
        about = db.stats()
        assert about["mapped_bytes"] in (0, about["table_bytes"] if mapped else 0)
        # In a mapping a block is checked once, and no cache is too small for it.
        assert (about["cache_misses"] > 5_000) == (about["mapped_bytes"] == 0)


def test_what_is_looked_up_often_is_copied_into_the_cache(mapped: bool) -> None:
    entries = random_entries(5_000, 19)
    lsm = Lsm(store(entries), "lsm", block_cache_bytes=1 << 30)
    assert list(lsm.items()) == sorted(entries.items())
    assert (lsm.statistics()["cache_bytes"] == 0) == mapped
    for _ in range(2):
        for key, value in entries.items():
            assert lsm[key] == value
    about = lsm.statistics()
    assert about["cache_bytes"] > about["table_bytes"] * 9 // 10


def test_a_file_that_was_cut_is_no_reason_to_die(tmp_path: Path, mapped: bool) -> None:
    # Loads behind the end of a mapped file end the process.
    options = {"durability": "os", "background": False, "mapped_reads": mapped}
    with everwrite.open(tmp_path, **options) as db:
        for key, value in random_entries(5_000, 18).items():
            db[key] = value
        db.compact()
        (table,) = (tmp_path / "tables").glob("*.table")
        size = table.stat().st_size
        os.truncate(table, size // 2)
        report = db.verify()
        assert [damage.path for damage in report.damages] == [str(table)]
        assert any("because of damage" in note for note in report.notes)
    with pytest.raises(errors.CorruptionError, match=table.name) as caught:
        everwrite.open(tmp_path, **options)
    assert caught.value.offset == size // 2


def observe(files: MemoryFiles, entries: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """All that can be read, by lookups and by a scan; both must agree."""
    lsm = Lsm(files, "lsm")
    found = {}
    for key in [*entries, b"absent", b"key:0005"]:
        if key in lsm:
            found[key] = lsm[key]
    assert dict(lsm.items()) == found
    assert dict(backwards(Lsm(files, "lsm"))) == found
    return found


SEVERAL_BLOCKS = {b"%d" % i: random.Random(i).randbytes(700) for i in range(12)}


@pytest.mark.parametrize("entries", [ENTRIES, SEVERAL_BLOCKS], ids=["one block", "several"])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_found(flip: int, entries: dict[bytes, bytes]) -> None:
    files = store(entries)
    content = files.read_file(TABLE)
    for offset, byte in enumerate(content):
        patch(files, TABLE, offset, bytes([byte ^ flip]))
        with pytest.raises(errors.CorruptionError, match=TABLE) as caught:
            observe(files, entries)
        assert caught.value.path == TABLE
        assert caught.value.offset <= offset
        patch(files, TABLE, offset, bytes([byte]))
    assert observe(files, entries) == entries


@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_with_a_flipped_byte_each_key_reads_right_or_as_damaged(flip: int) -> None:
    files = store(SEVERAL_BLOCKS)
    content = files.read_file(TABLE)
    damaged = 0
    for offset in range(0, len(content), 7):
        patch(files, TABLE, offset, bytes([content[offset] ^ flip]))
        for key, value in SEVERAL_BLOCKS.items():
            try:
                assert Lsm(files, "lsm")[key] == value
            except errors.CorruptionError:
                damaged += 1
        patch(files, TABLE, offset, content[offset : offset + 1])
    assert damaged


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
    footer[48] = 3
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


def block_checksum(content: bytes | bytearray, offset: int, size: int) -> bytes:
    return checksum(offset.to_bytes(8, "little"), checksum(bytes(content[offset : offset + size - 4]))).to_bytes(
        4, "little"
    )


def report(files: MemoryFiles) -> list[TableDamage]:
    with files.open_file(TABLE, "read") as file:
        return verify_table(files, TABLE, 1, file.size())


def test_verification_names_each_damaged_place() -> None:
    files = store(SEVERAL_BLOCKS)
    content = files.read_file(TABLE)
    assert report(files) == []
    assert dict(readable_entries(files, TABLE, 1, len(content))) == SEVERAL_BLOCKS
    assert table_flushes(files, TABLE, 1, len(content)) == (1, 1)
    order = sorted(SEVERAL_BLOCKS)
    lost = set()
    for offset in range(0, len(content), 5):
        patch(files, TABLE, offset, bytes([content[offset] ^ 0x10]))
        (damage,) = report(files)
        assert damage.path == TABLE
        assert damage.offset <= offset
        if damage.first_key is not None:
            left = dict(readable_entries(files, TABLE, 1, len(content)))
            gone = [key for key in order if key not in left]
            assert gone == [
                key for key in order if damage.first_key <= key and (damage.next_key is None or key < damage.next_key)
            ]
            assert left == {key: SEVERAL_BLOCKS[key] for key in order if key in left}
            lost.update(gone)
        patch(files, TABLE, offset, content[offset : offset + 1])
    assert lost == set(order)


def test_verification_holds_the_index_against_the_entries() -> None:
    # A page of the index with another entry's place in it, and a checksum that matches.
    files = store(ENTRIES)
    content = bytearray(files.read_file(TABLE))
    directory = int.from_bytes(content[-64:-56], "little")
    properties = int.from_bytes(content[-56:-48], "little")
    end = len(content) - 64 - properties - directory
    first = next(size for size in range(9, end) if bytes(content[size - 4 : size]) == block_checksum(content, 0, size))
    content[first + 40] ^= 1
    content[end - 4 : end] = block_checksum(content, first, end - first)
    patch(files, TABLE, 0, bytes(content))
    (damage,) = report(files)
    assert damage.offset == first
    assert "index" in damage.reason
