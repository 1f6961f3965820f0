from collections.abc import Sequence

from everwrite.manifest import TableInfo

TABLES_MAX: int
WINDOW: int
INDEX_ENTRIES: int

def pick_run(tables: Sequence[TableInfo]) -> tuple[int, int] | None: ...
def pick_all(tables: Sequence[TableInfo]) -> tuple[int, int] | None: ...
