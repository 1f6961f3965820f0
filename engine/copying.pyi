import os
from collections.abc import Callable

from everwrite.files import Files

_Path = str | bytes | os.PathLike[str]

def copy_file(
    files: Files, source: _Path, target: _Path, progress: Callable[[int], object] | None = None
) -> tuple[int, int]: ...
def checksum_file(files: Files, path: _Path, progress: Callable[[int], object] | None = None) -> tuple[int, int]: ...
