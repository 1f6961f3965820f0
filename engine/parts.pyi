from typing_extensions import disjoint_base

PART_BYTES: int
WAITING_BYTES: int

def split_state(state: bytes, limit: int = 0) -> list[bytes]: ...
def as_body(states: list[bytes]) -> bytes: ...

@disjoint_base
class PartStore: ...
