from typing import Any

from everwrite.store import Store

def why(store: Store, key: bytes) -> dict[str, Any]: ...
