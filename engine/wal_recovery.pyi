from typing import NamedTuple

from everwrite.files import Files, _Path
from everwrite.wal_reader import WalReader
from everwrite.wal_writer import WalWriter

SEGMENT_BYTES: int
SEGMENT_BYTES_MIN: int

class OpenedLog(NamedTuple):
    writer: WalWriter
    reader: WalReader
    dropped_bytes: int
    dropped_at: int

def open_log(
    files: Files,
    folder: _Path,
    store_id: int,
    *,
    replay_from: int,
    durable_to: int = 0,
    segment_bytes: int = ...,
    fresh: bool = False,
) -> OpenedLog: ...
