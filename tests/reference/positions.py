"""Positions of a sequence, from their description in docs/formats/state.md: a slow twin of `everwrite.positions`."""

from __future__ import annotations

from dataclasses import dataclass

LEFT, RIGHT, END = b"\x40", b"\x80", b"\x80"


def flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


def big(value: int) -> bytes:
    return value.to_bytes(8, "big")


def number(value: int) -> bytes:
    digits = value.to_bytes(8, "big").lstrip(b"\0")
    return bytes([len(digits)]) + digits


@dataclass(frozen=True)
class Segment:
    """One level of a position."""

    side: bytes
    opened: int
    origin: int
    since: int = 0
    index: int = 0

    @property
    def timestamp(self) -> int:
        return self.opened + self.since

    def encode(self) -> bytes:
        opened, item = big(self.opened), number(self.since) + number(self.index)
        if self.side == LEFT:
            opened, item = flipped(opened), flipped(item)
        return self.side + opened + big(self.origin) + item


Path = tuple[Segment, ...]


def encode(path: Path) -> bytes:
    return b"".join(segment.encode() for segment in path) + END


def decode(name: bytes) -> Path:
    """The path that a valid position spells."""
    at, path = 0, []
    while at + 1 < len(name):
        side = name[at : at + 1]
        turn = flipped if side == LEFT else bytes
        opened, origin = (
            int.from_bytes(turn(name[at + 1 : at + 9]), "big"),
            int.from_bytes(name[at + 9 : at + 17], "big"),
        )
        at += 17
        numbers = []
        for _ in range(2):
            size = turn(name[at : at + 1])[0]
            numbers.append(int.from_bytes(turn(name[at + 1 : at + 1 + size]), "big"))
            at += 1 + size
        path.append(Segment(side, opened, origin, *numbers))
    return tuple(path)


def between(left: bytes | None, right: bytes | None, origin: int, timestamp: int, count: int) -> list[bytes]:
    """The positions for `count` items between two neighbours."""
    parent, side, group = place(left, right, origin, timestamp)
    opened, since = (timestamp, 0) if group is None else (group.opened, timestamp - group.opened)
    indexes = range(count) if side == RIGHT else range(count - 1, -1, -1)
    return [encode((*parent, Segment(side, opened, origin, since, index))) for index in indexes]


def place(left: bytes | None, right: bytes | None, origin: int, timestamp: int) -> tuple[Path, bytes, Segment | None]:
    """The item above the new ones, on which side of it, and in whose group they lie (None: a new one)."""
    before, behind = decode(left) if left else (), decode(right) if right else ()

    def fits(parent: Path, side: bytes, since: int | None = None, opened: int = timestamp) -> bool:
        name = encode((*parent, Segment(side, opened, origin, since or 0)))
        return (left is None or left < name) and (right is None or name < right)

    own = [(path, path is before) for path in (before, behind) if path and path[-1].origin == origin]
    # The newest of its own neighbours is the one of the run that it writes.
    for path, on_its_right in sorted(own, key=lambda each: -each[0][-1].timestamp):
        last, side = path[-1], RIGHT if on_its_right else LEFT
        if (
            last.side == side
            and timestamp > last.timestamp
            and fits(path[:-1], side, timestamp - last.opened, last.opened)
        ):
            return path[:-1], side, last
        if fits(path, side):
            return path, side, None
    found = []
    for path, name, side, open_end in ((before, left, RIGHT, right is None), (behind, right, LEFT, left is None)):
        if name is not None:
            parents = [
                path[:depth]
                for depth in range(len(path) + 1)
                if depth == len(path) or path[depth].side == side or (depth == 0 and open_end)
            ]
            found += [(parent, side, None) for parent in parents if fits(parent, side)][:1]
    if not found:
        return (), RIGHT, None
    # The one nearest to the root, by bytes.
    return min(found, key=lambda each: len(encode(each[0])))
