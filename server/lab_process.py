"""A node of a lab as a process: started, watched, ended; and its health as it tells it over HTTP."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h11
import msgspec
import trio

__all__ = ["Child", "end_with_parent", "get_json"]

PR_SET_PDEATHSIG = 1
BODY_BYTES_MAX = 4 << 20
TAIL_BYTES = 4096


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; end now when that has happened.

    Linux only; raises `OSError` elsewhere. The process that starts this one must do so from its main thread: the
    signal comes at the end of the thread, not of the process.
    """
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None:
        raise OSError(errno.ENOSYS, "prctl: not on this system")
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    # The parent may have ended before the call; then no signal comes any more.
    if os.getppid() != parent_pid:
        os._exit(1)


class Child:
    """A process in a session of its own, so that Ctrl-C reaches only the lab, which then drains in order.

    Invariant: until `ended` is set the process isn't reaped, so that a signal can't hit another process.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.ended = trio.Event()
        self.exit_status: int | None = None  # negative: the signal that ended it
        with log.open("ab") as output:
            self._log_start = output.tell()
            # Not trio's open_process: that starts it from a worker thread, with whose end the child would die.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._descriptor = os.pidfd_open(self.pid)

    async def watch(self, on_end: Callable[[], None]) -> None:
        """Wait for the end, reap, call `on_end`, then tell all who wait for `ended`. Run it once, as a task."""
        try:
            await trio.lowlevel.wait_readable(self._descriptor)
            self.exit_status = self._process.wait()
            on_end()
            self.ended.set()
        finally:
            trio.lowlevel.notify_closing(self._descriptor)
            os.close(self._descriptor)

    def send_signal(self, number: int) -> None:
        """Signal it, if it still runs."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def described(self) -> str:
        """How it ended, as the rest of a sentence."""
        status = self.exit_status
        if status is None:
            return "runs"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def log_tail(self) -> str:
        """The last lines that this process wrote."""
        with self.log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(self._log_start, size - TAIL_BYTES))
            text = stream.read(TAIL_BYTES).decode(errors="replace")
        return "\n".join(text.splitlines()[-10:])


async def get_json(port: int, path: str, *, timeout_seconds: float = 2.0) -> tuple[int, Any] | None:
    """GET a JSON document from a node on loopback: status and document. None when there is no such answer."""
    with trio.move_on_after(timeout_seconds):
        try:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                status, body = await _get(stream, path)
                return status, msgspec.json.decode(body)
        except (OSError, trio.BrokenResourceError, h11.ProtocolError, msgspec.DecodeError, UnicodeDecodeError):
            return None
    return None


async def _get(stream: trio.SocketStream, path: str) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=path, headers=[("Host", "127.0.0.1"), ("Connection", "close")])
    await stream.send_all((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    status, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(1 << 16)))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_BYTES_MAX:
                raise h11.RemoteProtocolError(f"the body is larger than {BODY_BYTES_MAX} bytes")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return status, bytes(body)
