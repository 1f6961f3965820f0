from typing import NamedTuple

class CommandInfo(NamedTuple):
    name: str
    arity: int
    flags: tuple[str, ...]
    keys: tuple[int, int, int]
    group: str
    since: str
    summary: str

TABLE: tuple[CommandInfo, ...]
