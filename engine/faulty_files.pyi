from collections.abc import Callable

from typing_extensions import disjoint_base

from everwrite.files import PosixFiles

@disjoint_base
class FaultyFiles(PosixFiles):
    error: BaseException | None
    def __init__(self, decide: Callable[[str, int], int | tuple[int, int] | None], *, durable: bool = True) -> None: ...
