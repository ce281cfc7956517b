"""Reloads of a large policy, one after the other, beside what is measured."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LINES: Final = 10_000

_PERIOD_SECONDS: Final = 2.0
"""From one SIGHUP to the next."""


@dataclass(slots=True)
class Reloads:
    """A proxy whose pg_hba.conf changes all the time.

    Args:
        hba_file: the file; its own lines stay the last ones.
        pid: of the proxy, which reads it at SIGHUP.
    """

    hba_file: Path
    pid: int
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @contextmanager
    def going(self) -> Iterator[None]:
        """It does while the context lasts."""
        own = self.hba_file.read_text()
        is_over = threading.Event()

        def reload_again_and_again() -> None:
            while not is_over.is_set():
                self.hba_file.write_text(_lines(next(self._numbers)) + own)
                os.kill(self.pid, signal.SIGHUP)
                is_over.wait(_PERIOD_SECONDS)

        thread = threading.Thread(target=reload_again_and_again)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            self.hba_file.write_text(own)


def _lines(generation: int) -> str:
    return "".join(
        f"host db{number} user{number}_{generation} 10.{number >> 8}.{number & 255}.0/24 scram-sha-256\n"
        for number in range(LINES)
    )
