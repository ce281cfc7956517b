"""How many clients' TLS handshakes begin before everything else has a turn.

The first step of a handshake takes the event loop most of a millisecond, and everybody who has come may be
ready for it at once. So only so many begin in a turn of the loop; the others wait in the order in which they
came, within their deadlines, and logins that are further on, timers and orders go on in between.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import trio

WINDOW_SECONDS: Final = 0.005
"""Who comes at leisure does not wait for a turn, which would cost a login some 50 µs."""


class Handshakes:
    """Those of one worker."""

    def __init__(self) -> None:
        self._waiting: deque[trio.Event] = deque()
        self._window_ends = 0.0
        self._left = 0
        self._at_once = 1
        self._is_letting = False

    async def begin(self, at_once: int) -> None:
        """Wait until a handshake may begin.

        Args:
            at_once: how many may in a row (max_handshakes).
        """
        self._at_once = at_once
        now = time.monotonic()
        if now >= self._window_ends:
            self._window_ends, self._left = now + WINDOW_SECONDS, at_once
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        turn = trio.Event()
        self._waiting.append(turn)
        if not self._is_letting:
            self._is_letting = True
            trio.lowlevel.spawn_system_task(self._let_begin)
        try:
            await turn.wait()
        except trio.Cancelled:
            if not turn.is_set():
                self._waiting.remove(turn)
            raise

    async def _let_begin(self) -> None:
        """Let so many begin, and then everything else that is ready go on, until nobody waits."""
        while self._waiting:
            await trio.lowlevel.checkpoint()
            for _ in range(min(self._at_once, len(self._waiting))):
                self._waiting.popleft().set()
        self._is_letting = False
