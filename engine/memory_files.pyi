import random
from typing import Literal, Self

from typing_extensions import disjoint_base

from everwrite.files import Files, _Path

@disjoint_base
class MemoryFiles(Files):
    maps_for_reading: bool
    def fail(
        self,
        operation: Literal[
            "open", "read", "write", "sync", "truncate", "allocate", "map", "rename", "unlink", "sync_dir"
        ],
        error: int = 5,
        *,
        path: _Path = b"",
        skip: int = 0,
        times: int = 1,
        partial: int = 0,
    ) -> None: ...
    def heal(self) -> None: ...
    def crash(self, keep: random.Random | Literal["all"] | None = None) -> None: ...
    def copy(self) -> Self: ...
