"""Reading of files in threads: a file system may hang, and whoever asked goes on without an answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from pgtlsproxy.proxy.rule_files import Note

HANG_SECONDS: Final = 30.0
"""How long one file, or one passphrase command, may take. A whole errand may take longer."""

MAX_ERRANDS: Final = 8
"""How many threads there may be; a thread that hangs cannot be ended."""

_T = TypeVar("_T")


class NoThread(Exception):
    """There is none to read in."""


class Errand(Generic[_T]):
    """One reading, in a thread of its own.

    Args:
        action: does it; given what to tell of every file before it is opened.
        wake: called in the end, from the thread.

    Raises:
        NoThread: the system has none to give.
    """

    def __init__(self, action: Callable[[Note], _T], wake: Callable[[], None]) -> None:
        self._action = action
        self._wake = wake
        self._at, self._since = "", time.monotonic()
        self._outcome: list[_T | Exception] = []
        try:
            threading.Thread(target=self._run, daemon=True).start()
        except RuntimeError as error:
            raise NoThread(str(error)) from None

    def _run(self) -> None:
        try:
            self._outcome.append(self._action(self._note))
        except Exception as error:  # noqa: BLE001 - a file that trips us must not end the proxy
            self._outcome.append(error)
        self._wake()

    def _note(self, at: str) -> None:
        self._at, self._since = at, time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether there is an outcome."""
        return bool(self._outcome)

    @property
    def outcome(self) -> _T | Exception | None:
        """What came of it, or what it tripped over; None before it is over."""
        return self._outcome[0] if self._outcome else None

    @property
    def hangs_at(self) -> str | None:
        """The file that it has been at for too long; None where it has not."""
        is_late = time.monotonic() - self._since >= HANG_SECONDS
        return self._at if is_late and not self._outcome else None

    @property
    def due(self) -> float:
        """`time.monotonic()` when it is to be seen whether it hangs; infinite where that is known."""
        if self._outcome or self.hangs_at is not None:
            return math.inf
        return self._since + HANG_SECONDS


class Errands:
    """All of them.

    Args:
        wake: called when one is over, from its thread.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._alive: list[Errand[object]] = []
        self._forgotten: list[Errand[object]] = []

    def begin(self, action: Callable[[Note], _T]) -> Errand[_T]:
        """Begin one.

        Raises:
            NoThread: too many hang, or the system has none to give.
        """
        self._alive = [each for each in self._alive if not each.is_over]
        self._forgotten = [each for each in self._forgotten if not each.is_over]
        if len(self._alive) + len(self._forgotten) >= MAX_ERRANDS:
            raise NoThread(f"{MAX_ERRANDS} threads hang that read files")
        errand = Errand(action, self._wake)
        self._alive.append(errand)  # type: ignore[arg-type]  # only whether it is over counts here
        return errand

    def forget(self) -> None:
        """Let nobody care any more about those that hang: another one has read everything."""
        self._forgotten += [each for each in self._alive if each.hangs_at is not None]
        self._alive = [each for each in self._alive if each.hangs_at is None]

    @property
    def hangs_at(self) -> str | None:
        """The file that one of them hangs at; None where none does."""
        return next((each.hangs_at for each in self._alive if each.hangs_at is not None), None)

    @property
    def due(self) -> float:
        """`time.monotonic()` when it is to be seen whether one hangs."""
        return min((each.due for each in self._alive), default=math.inf)
