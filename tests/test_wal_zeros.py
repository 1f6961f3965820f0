"""What the log writes ahead of the frames that are going to be synced."""

import errno
from pathlib import Path

import pytest

from everwrite.files import PosixFiles
from everwrite.wal_reader import WalReader
from everwrite.watched_files import WatchedFiles
from tests.test_wal import opened, rest


@pytest.mark.parametrize("space", [True, False])
def test_zeros_are_written_to_where_synced_frames_will_be(space: bool, tmp_path: Path) -> None:
    zeros: list[int] = []

    def watch(operation: str, path: bytes, size: int) -> int | None:
        # No frame here is as large as a part of the zeros.
        if operation != "write" or size < 1 << 14:
            return None
        zeros.append(size)
        return None if space else errno.ENOSPC

    log = opened(WatchedFiles(PosixFiles(), watch), str(tmp_path / "wal"), segment_bytes=1 << 20)
    log.writer.buffered = True
    payloads = [b"%4d" % number * 200 for number in range(1000)]
    for payload in payloads:
        log.writer.extend([payload])
        assert not space or sum(zeros) > log.writer.end - (1 << 14)
    log.writer.make_durable()
    # Without space they are done without: that of the frames is reserved.
    assert rest(WalReader(PosixFiles(), tmp_path / "wal", 0), log.writer.durable) == payloads
    assert 4 <= len(zeros) < 30
    log.writer.close()
