"""How many sessions there were and are, by listener and outcome, in memory that all workers share.

Every worker has a row that it alone adds to, and the next worker in its place goes on there: what was counted
survives it. A word has 64 bits, is written by one instruction, and never starts over.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pgtlsproxy.errors import ErrorKind

OK: Final = "ok"

OUTCOMES: Final = (OK, *(str(kind) for kind in ErrorKind))
"""How a session may have ended, or why it never began."""

_INDEX: Final = {outcome: index for index, outcome in enumerate(OUTCOMES, start=1)}
_WORDS: Final = 1 + len(OUTCOMES)
"""Of a listener in a row: the active sessions, and those of each outcome."""

_WORD_OCTETS: Final = 8


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """The sessions of one listener.

    Args:
        active: that are let in and not over.
        total: by outcome, those that are over.
    """

    active: int
    total: Mapping[str, int]


class Tally:
    """The memory.

    Args:
        rows: how many workers have one.
        listeners: their names, from the start on; no other is listened on.
        descriptor: of the memory, when another process has made it.
        reads_only: whether nothing is counted here.
    """

    def __init__(
        self, rows: int, listeners: Sequence[str], descriptor: int | None = None, *, reads_only: bool = False
    ) -> None:
        self.listeners = tuple(listeners)
        self.rows = rows
        self._row_words = len(self.listeners) * _WORDS
        octets = max(rows * self._row_words * _WORD_OCTETS, mmap.PAGESIZE)
        if descriptor is None:
            descriptor = os.memfd_create("pgtlsproxy-tally", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, octets)
        self.descriptor = descriptor
        access = mmap.ACCESS_READ if reads_only else mmap.ACCESS_WRITE
        self.words = memoryview(mmap.mmap(descriptor, octets, access=access)).cast("Q")

    def open_to_read(self) -> int:
        """A descriptor of the memory for a process that counts nothing, which the caller closes.

        Raises:
            OSError: there is no /proc, or no descriptor to be had.
        """
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def row(self, number: int) -> TallyRow:
        """The row of a worker, by its number from 1."""
        start = (number - 1) * self._row_words
        places = {name: start + index * _WORDS for index, name in enumerate(self.listeners)}
        return TallyRow(self.words, places)

    def bury(self, number: int) -> None:
        """Count the sessions of a worker that has died as what they are: cut."""
        start = (number - 1) * self._row_words
        for place in range(start, start + self._row_words, _WORDS):
            self.words[place + _INDEX[ErrorKind.BUG]] += self.words[place]
            self.words[place] = 0

    def figures(self) -> dict[str, SessionFigures]:
        """All workers together, by listener."""

        def total(offset: int) -> int:
            return sum(self.words[row * self._row_words + offset] for row in range(self.rows))

        return {
            name: SessionFigures(
                total(index * _WORDS),
                {outcome: total(index * _WORDS + place) for outcome, place in _INDEX.items()},
            )
            for index, name in enumerate(self.listeners)
        }


@dataclass(frozen=True, slots=True)
class TallyRow:
    """What one worker counts.

    Args:
        words: the memory.
        places: by listener, where its words begin.
    """

    words: memoryview = field(repr=False)
    places: Mapping[str, int]

    def session(self, listener: str) -> SessionCount:
        """One session, which counts when it is over."""
        return SessionCount(self, self.places[listener])


class SessionCount:
    """What is counted of one session.

    Attributes:
        outcome: how it ended; None for what was none, as a CancelRequest.
    """

    __slots__ = ("_is_active", "_place", "_words", "outcome")

    def __init__(self, row: TallyRow, place: int) -> None:
        self._words = row.words
        self._place = place
        self._is_active = False
        self.outcome: str | None = None

    def let_in(self) -> None:
        """It is active from now on."""
        self._is_active = True
        self._words[self._place] += 1

    def over(self) -> None:
        """It is over."""
        if self._is_active:
            self._words[self._place] -= 1
        if self.outcome is not None:
            self._words[self._place + _INDEX[self.outcome]] += 1
