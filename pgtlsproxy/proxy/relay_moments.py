"""What the relay's thread is to do later."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable


class Moments:
    """What is to be done when: a heap. Whatever is cancelled is forgotten at once."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._actions: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()

    def add(self, seconds: float, action: Callable[[], None]) -> int:
        """Do something in so many seconds; the number cancels it."""
        number = next(self._numbers)
        self._actions[number] = action
        heapq.heappush(self._heap, (time.monotonic() + seconds, number))
        return number

    def cancel(self, number: int | None) -> None:
        """Do it not, where it has not been done yet."""
        if number is not None:
            self._actions.pop(number, None)

    def seconds_to_next(self) -> float | None:
        """How long nothing is to be done; None for ever."""
        while self._heap and self._heap[0][1] not in self._actions:
            heapq.heappop(self._heap)
        return max(self._heap[0][0] - time.monotonic(), 0.0) if self._heap else None

    def run(self) -> None:
        """Do what is due."""
        while self._heap and self._heap[0][0] <= time.monotonic():
            action = self._actions.pop(heapq.heappop(self._heap)[1], None)
            if action is not None:
                action()
