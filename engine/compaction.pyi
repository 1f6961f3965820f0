from collections.abc import Mapping, Sequence
from typing import Self

from typing_extensions import disjoint_base

from everwrite.manifest import TableInfo

TABLES_MAX: int
WINDOW: int
INDEX_ENTRIES: int

@disjoint_base
class Collector:
    def __new__(cls, horizon: Mapping[int, int]) -> Self: ...

def pick_run(tables: Sequence[TableInfo]) -> tuple[int, int] | None: ...
def pick_all(tables: Sequence[TableInfo]) -> tuple[int, int] | None: ...
