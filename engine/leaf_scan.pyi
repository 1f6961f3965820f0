from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everwrite.store import Store

ITEM: np.dtype[np.void]

def scan_leaves(
    store: Store, leaves: Sequence[int] | NDArray[np.int64] | NDArray[np.uint64], *, by_hash: bool | None = None
) -> tuple[NDArray[Any], list[bytes]]: ...
