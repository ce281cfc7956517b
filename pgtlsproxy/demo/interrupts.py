"""Ctrl-C and its relatives as an exception, at moments when leaving cleans up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt.

    Every later one is ignored, to the end of the process, so that nobody cuts the clean-up short. A SIGHUP
    that is ignored already, as under nohup, stays so. A context manager, for the main thread alone.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._pending = False
        self._raised = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._raised:
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold an interrupt back until the block is over: initdb must not outlive its folder."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            if self._pending:
                self._raise()

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        if self._deferring:
            self._pending = True
        else:
            self._raise()

    def _raise(self) -> None:
        self._raised = True
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt
