import os
from collections.abc import Iterator

from everwrite.files import Files
from everwrite.manifest import TableDamage

def verify_table(files: Files, path: str | bytes | os.PathLike[str], number: int, size: int) -> list[TableDamage]: ...
def readable_entries(
    files: Files, path: str | bytes | os.PathLike[str], number: int, size: int
) -> Iterator[tuple[bytes, bytes | None]]: ...
def table_flushes(files: Files, path: str | bytes | os.PathLike[str], number: int, size: int) -> tuple[int, int]: ...
