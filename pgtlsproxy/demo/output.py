"""What a child process says, line by line, as events to wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import IO


class OutputEnded(Exception):
    """The process closed its output before it said what was waited for."""


class FollowedOutput:
    """Reads a stream in a thread until it ends, and keeps every line.

    Args:
        stream: the read end of a pipe; closed when it ends.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def lines(self) -> tuple[str, ...]:
        """Every line so far, without its end."""
        with self._changed:
            return tuple(self._lines)

    @property
    def ended(self) -> bool:
        """Whether everybody who held the other end has closed it."""
        with self._changed:
            return self._ended

    def wait_for(self, wanted: Callable[[str], bool], *, timeout: float, since: int = 0) -> str:
        """The first line that is wanted, as soon as it is there.

        Args:
            wanted: whether a line is the one.
            timeout: seconds.
            since: how many lines, from the first, are not looked at.

        Raises:
            OutputEnded: the stream ended without it.
            TimeoutError: it did not come in time.
        """
        deadline = time.monotonic() + timeout
        seen = since
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    if wanted(line):
                        return line
                seen = max(seen, len(self._lines))
                if self._ended:
                    raise OutputEnded("the process ended its output; its last lines:\n" + self._tail())
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"not said within {timeout} s; the last lines:\n" + self._tail())

    def wait_until_ended(self, timeout: float) -> bool:
        """Wait for the stream's end. Returns whether it came within `timeout` seconds."""
        self._reader.join(timeout)
        return not self._reader.is_alive()

    def _tail(self) -> str:
        return "\n".join(self._lines[-20:])
