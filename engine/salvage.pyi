from collections.abc import Callable, Iterable, Iterator

from typing_extensions import disjoint_base

from everwrite.files import Files
from everwrite.manifest import TableInfo
from everwrite.mapping import StoreMapping

def whole_frames(data: bytes, start: int) -> Iterator[tuple[int, bytes]]: ...
def write_table(
    files: Files, path: str, number: int, flushes: tuple[int, int], entries: Iterable[tuple[bytes, bytes | None]]
) -> TableInfo | None: ...

@disjoint_base
class SalvageStore(StoreMapping):
    def feed(self, payload: bytes) -> list[bytes] | None: ...
    def distrust(self, may_lack: Callable[[bytes], bool]) -> None: ...
    def adopt_elements(self) -> list[bytes]: ...
