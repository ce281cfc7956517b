"""The place of one worker, whoever fills it, and when the next one may."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from pgtlsproxy.proxy.worker_process import WorkerProcess

STEADY_SECONDS: Final = 10.0
"""A worker that has served for so long and dies is replaced at once; one that has not, ever later."""

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0


@dataclass(slots=True)
class Seat:
    """The place of one worker.

    Attributes:
        worker: who fills it; None between two.
        failures: how many have died in a row without having served for long.
        due: `time.monotonic()` when the next may start.
    """

    worker: WorkerProcess | None = None
    failures: int = 0
    due: float = 0.0

    def vacate(self) -> None:
        """Note that its worker is dead or has to go, and that it had come that far."""
        since = self.worker.served_since if self.worker is not None else None
        if since is not None and time.monotonic() - since >= STEADY_SECONDS:
            self.failures = 0
        self.worker = None

    def wait(self) -> float:
        """Have the next one start at once, and after each failure ever later; returns in how many seconds."""
        self.failures += 1
        pause = 0.0
        if self.failures > 1:
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (self.failures - 2), LONGEST_PAUSE_SECONDS)
        self.due = time.monotonic() + pause
        return pause
