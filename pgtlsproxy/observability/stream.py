"""A stream that nobody waits for: what cannot be written at once queues up for a thread that writes it.

Whoever reads our stderr may stop reading, and a write to a full pipe blocks. That must hold up one
thread, and neither the event loop nor the end of the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TextIO

MAX_LINES: Final = 10_000
"""Lines that wait to be written; then they are dropped."""

MAX_OCTETS: Final = 8 * 1024 * 1024
"""Octets that wait to be written; then lines are dropped."""

DRAIN_SECONDS: Final = 1.0
"""How long what is queued at the end may take to be written."""


def open_lock() -> int:
    """A file that is there for its lock alone, for all processes that write to one stream: its descriptor."""
    return os.memfd_create("pgtlsproxy-log", os.MFD_CLOEXEC)


class QueuedStream:
    """The lines of a text stream, written whole and in order by a thread of its own.

    When the queue is full, lines are dropped and counted until half of it is free again, so that the
    reader finds one gap and its size, and not a gap behind every line. Failures of the stream stay its
    own: a full disk must not end sessions, nor the proxy.

    Args:
        stream: what has a file descriptor.
        lock: the descriptor of a file that every process which writes there has, too; None where no other
            does. Only lines of up to PIPE_BUF octets would be whole without it, and only in a pipe. The
            kernel lets go of it when a process dies.
    """

    def __init__(self, stream: TextIO, lock: int | None = None) -> None:
        self._stream = stream
        self._lock = lock
        # Not the stream itself: the interpreter cannot end while a thread is blocked inside its buffer.
        self._descriptor = stream.fileno()
        self._process = os.getpid()
        self._lines: deque[bytes] = deque()
        self._octets = 0
        self._dropped = 0
        # Reentrant, for a collected object can make an event in the middle of any of ours.
        self._changed = threading.Condition(threading.RLock())

    def isatty(self) -> bool:
        """Whether a person may be reading."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Queue one line, with its end, or drop it. Never waits and never fails."""
        line = text.encode(self._stream.encoding, "backslashreplace")
        if os.getpid() != self._process:
            self._write_whole(line)  # a forked child has no writer
            return len(text)
        with self._changed:
            if self._dropped or len(self._lines) >= MAX_LINES or self._octets >= MAX_OCTETS:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._octets += len(line)
                if len(self._lines) > 1 or not self._write_at_once(line):
                    self._changed.notify_all()
        return len(text)

    def _write_at_once(self, line: bytes) -> bool:
        """Write the only line there is where nobody need wait; whether nothing is left to the thread.

        A pipe or a socket can be asked not to wait for its reader, whatever others have made of its
        flags. It takes up to PIPE_BUF octets whole or not at all. To wake the thread for each line took
        200 µs of CPU time more a session, which has two lines.
        """
        if len(line) > select.PIPE_BUF:
            return False
        try:
            if self._lock is not None:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                written = os.pwritev(self._descriptor, (line,), -1, os.RWF_NOWAIT)
            finally:
                self._unlock()
        except OSError:  # whoever reads is behind, another process writes, or it is a file or a terminal
            return False
        self._octets -= written
        if written < len(line):
            self._lines[0] = line[written:]
            return False
        self._lines.popleft()
        return True

    def flush(self) -> None:
        """Nothing: the writer leaves nothing in between."""

    @contextlib.contextmanager
    def writing(self, on_dropped: Callable[[int], None]) -> Iterator[None]:
        """Write what is queued while the context lasts; wait for the rest, but not for long, when it ends.

        Args:
            on_dropped: told how many lines are missing; what it writes stands where they would have stood.
        """
        threading.Thread(target=self._write_lines, args=(on_dropped,), name="log", daemon=True).start()
        try:
            yield
        finally:
            with self._changed:
                self._changed.wait_for(lambda: not self._lines, DRAIN_SECONDS)

    def _write_lines(self, on_dropped: Callable[[int], None]) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines[0]
            self._write_whole(line)
            with self._changed:
                self._lines.popleft()
                self._octets -= len(line)
                if self._dropped and len(self._lines) <= MAX_LINES // 2 and self._octets <= MAX_OCTETS // 2:
                    count, self._dropped = self._dropped, 0
                    on_dropped(count)
                self._changed.notify_all()

    def _write_whole(self, line: bytes) -> None:
        with self._locked():
            self._write_in_pieces(line)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is None:
            yield
            return
        with contextlib.suppress(OSError):  # rather a torn line than none
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _write_in_pieces(self, line: bytes) -> None:
        left = memoryview(line)
        with contextlib.suppress(OSError):
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # whoever shares our stderr may have made it non-blocking
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    poll.poll()
