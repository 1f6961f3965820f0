"""What an inspection of a store found: `Database.verify`, and `everwrite doctor`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Damage", "Report"]


@dataclass(frozen=True)
class Damage:
    """One place that isn't as it must be.

    `path`: the file, or "" when the fault is in what the files say together; `offset`: in bytes, or None
    when it is the file as a whole; `fault`: what is wrong; `lost`: what can't be read because of it, in words.
    """

    path: str
    offset: int | None
    fault: str
    lost: str = ""

    def __str__(self) -> str:
        place = self.path + ("" if self.offset is None else f" at byte offset {self.offset}")
        text = f"{place}: {self.fault}" if place else self.fault
        return f"{text}; lost: {self.lost}" if self.lost else text


@dataclass
class Report:
    """The outcome of an inspection of the store at `path`.

    `damages`: what is wrong, empty when all is well; `notes`: what an operator may want to know but is no damage;
    `files` and `bytes`: how much was read; `keys`: live keys seen, None when the store can't be opened to count them;
    `entries`: entries of the ordered map seen; `frames`: frames of the log seen.
    """

    path: str
    damages: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    keys: int | None = 0
    entries: int = 0
    frames: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        keys = "keys not counted" if self.keys is None else f"{self.keys} keys"
        seen = f"{self.files} files, {self.bytes} bytes, {keys}"
        lines = [f"{self.path}: {'no damage' if self.ok else f'{len(self.damages)} damaged places'} ({seen})"]
        lines += [f"  damage: {damage}" for damage in self.damages]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
