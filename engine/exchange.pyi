from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everwrite.store import Store

ITEM: np.dtype[np.void]

def scan_leaves(store: Store, leaves: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[Any], list[bytes]]: ...
def contexts(store: Store, keys: list[bytes]) -> list[dict[int, int]]: ...
def collect_states(store: Store, keys: list[bytes], limit: int) -> tuple[list[bytes], int]: ...
def join_states(store: Store, body: bytes, count: int) -> None: ...
