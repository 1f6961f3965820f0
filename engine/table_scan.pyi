import os
from collections.abc import Iterator

from typing_extensions import disjoint_base

from everwrite.files import Files
from everwrite.manifest import TableInfo

@disjoint_base
class TableScan(Iterator[tuple[int, int, list[tuple[bytes, bytes | None]]]]):
    def __init__(self, files: Files, path: str | bytes | os.PathLike[str]) -> None: ...
    def __iter__(self) -> TableScan: ...
    def __next__(self) -> tuple[int, int, list[tuple[bytes, bytes | None]]]: ...
    def properties(self, number: int) -> tuple[TableInfo, int, int] | None: ...
