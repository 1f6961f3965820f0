from collections.abc import Iterable, Iterator

from everwrite.files import Files
from everwrite.manifest import TableInfo
from everwrite.mapping import StoreMapping

def whole_frames(data: bytes, start: int) -> Iterator[tuple[int, bytes]]: ...
def write_table(
    files: Files, path: str, number: int, flushes: tuple[int, int], entries: Iterable[tuple[bytes, bytes | None]]
) -> TableInfo | None: ...

class SalvageStore(StoreMapping):
    def feed(self, payload: bytes) -> list[bytes] | None: ...
    def adopt_elements(self) -> list[bytes]: ...
