from collections.abc import Callable

from typing_extensions import disjoint_base

from everwrite.files import Files

@disjoint_base
class WatchedFiles(Files):
    error: BaseException | None
    def __init__(self, inner: Files, watch: Callable[[str, bytes, int], int | tuple[int, int] | None]) -> None: ...
