"""What a lab prints: a live picture on a terminal, lines on change into a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from everwrite.server.lab_control import LabStatus, LinkStatus, NodeStatus, ways
from everwrite.server.lab_plan import REGIONS

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["LINK_COLUMNS", "NODE_COLUMNS", "LiveView", "PlainView", "columns", "link_row", "node_row", "status_text"]

NODE_COLUMNS = ("REGION", "NODE", "STATE", "REDIS", "HTTP", "PEERS", "PROCESS")
LINK_COLUMNS = ("LINK", "ROUND TRIP", "STATE", "LAG")
# A link further behind than this is worth a line where only changes are printed.
BEHIND_SECONDS = 1.0
COLOURS = {"ready": "green", "connected": "green", "starting": "yellow", "not ready": "yellow", "behind": "yellow"}


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def node_row(node: NodeStatus) -> tuple[str, ...]:
    """The cells of `NODE_COLUMNS`."""
    state = node.state + (f" ({'; '.join(node.reasons)})" if node.reasons else "")
    ports = (str(port) for port in (node.redis_port, node.http_port, node.peer_port))
    return (node.region, node.node, state, *ports, str(node.pid or "-"))


def link_row(link: LinkStatus) -> tuple[str, ...]:
    """The cells of `LINK_COLUMNS`."""
    lag = "-"
    if link.lag_seconds is not None:
        changes = "" if link.lag_changes is None else f", {link.lag_changes} changes"
        lag = f"{link.lag_seconds:.3f} s{changes}"
    return (link_name(link), f"{link.round_trip_ms} ms", link_state(link), lag)


def link_name(link: LinkStatus) -> str:
    """Where changes go on it."""
    return f"within {link.source}" if link.source == link.target else f"{link.source} -> {link.target}"


def link_state(link: LinkStatus) -> str:
    """In one word."""
    if link.cut:
        return "cut"
    if not link.connected:
        return "down"
    return "behind" if (link.lag_seconds or 0) >= BEHIND_SECONDS else "connected"


def status_text(status: LabStatus) -> str:
    """Both tables as text."""
    nodes = columns([NODE_COLUMNS, *map(node_row, status.nodes)])
    return nodes + "\n\n" + columns([LINK_COLUMNS, *map(link_row, ways(status))])


def hints(status: LabStatus) -> str:
    """What to try next, in another terminal."""
    ports = {node.region: node.redis_port for node in reversed(status.nodes)}
    data = "" if status.data == "everwrite-lab" else f" --data {status.data}"
    here, there, _ = REGIONS
    victim = there if len(status.nodes) == len(REGIONS) else f"{there}/0"
    return "\n".join(
        [
            "Try in another terminal:",
            f'  redis-cli -p {ports[here]} SET greeting "hello from {here}"',
            *(f"  redis-cli -p {ports[region]} GET greeting" for region in REGIONS[1:]),
            f"  everwrite lab cut {here} {there}{data}",
            f"  everwrite lab heal{data}",
            f"  everwrite lab kill {victim}{data}",
            f"  everwrite lab start {victim}{data}",
            f"  everwrite lab status{data}",
            "Ctrl-C here drains and stops all regions; the data stays.",
        ]
    )


def _silence(output: TextIO) -> None:
    """The reader has gone: let what is still printed go nowhere. A lab that nobody watches goes on."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, output.fileno())
    finally:
        os.close(devnull)


class PlainView:
    """For pipes and files: the table once, then a line for each thing that changes."""

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output or sys.stdout
        self._shown: dict[str, str] = {}

    def _print(self, text: str) -> None:
        try:
            click.echo(text, file=self._output)
            self._output.flush()
        except OSError:
            _silence(self._output)

    def event(self, text: str) -> None:
        """Print the line."""
        self._print(text)

    def ready(self, status: LabStatus) -> None:
        """Print the tables and the hints; what they say isn't printed again."""
        self._changes(status)
        self._print(status_text(status) + "\n\n" + hints(status) + "\n")

    def show(self, status: LabStatus) -> None:
        """Print what is different from the last time."""
        for line in self._changes(status):
            self._print(line)

    def close(self) -> None:
        """Nothing is left open."""

    def _changes(self, status: LabStatus) -> list[str]:
        lines = []
        states = {node.node: node.state for node in status.nodes}
        states |= {link_name(way): link_state(way) for way in ways(status)}
        details = {node.node: "; ".join(node.reasons) for node in status.nodes}
        details |= {row[0]: f"lag {row[3]}" for row in map(link_row, ways(status))}
        for what, state in states.items():
            if self._shown.get(what) != state:
                self._shown[what] = state
                detail = f" ({details[what]})" if details[what] not in ("", "lag -") else ""
                lines.append(f"{what}: {state}{detail}")
        return lines


class LiveView:
    """For terminals: both tables, redrawn in place, and what happened above them."""

    def __init__(self) -> None:
        from rich.console import Console  # a tenth of a second that the other commands needn't spend
        from rich.live import Live

        self._console = Console(highlight=False)
        # Redrawn from the lab's own loop: a thread of its own would draw half-made states.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._started = False

    def event(self, text: str) -> None:
        """Print the line above the tables."""
        with self._unless_gone():
            self._console.print(text, markup=False)

    def ready(self, status: LabStatus) -> None:
        """Print the hints and begin to draw."""
        with self._unless_gone():
            self._console.print(hints(status), markup=False)
            self._live.start()
            self._started = True
        self.show(status)

    def show(self, status: LabStatus) -> None:
        """Draw the tables."""
        with self._unless_gone():
            self._live.update(self._tables(status), refresh=True)

    def close(self) -> None:
        """Take the tables off the screen; what happened stays."""
        if self._started:
            with self._unless_gone():
                self._live.stop()

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            _silence(sys.stdout)

    def _tables(self, status: LabStatus) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        tables = []
        for names, rows in (
            (NODE_COLUMNS, map(node_row, status.nodes)),
            (LINK_COLUMNS, map(link_row, ways(status))),
        ):
            table = Table(*names, box=box.SIMPLE_HEAD, pad_edge=False)
            for row in rows:
                state = row[2]
                style = COLOURS.get(state.partition(" (")[0], "red")
                table.add_row(*row[:2], Text(state, style=style), *row[3:])
            tables.append(table)
        return Group(*tables)
