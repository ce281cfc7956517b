"""How the tour is told: coloured in a terminal, plain text in a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from pgtlsproxy.identity import printable

WIDTH = 100
"""Longest line of an explanation in characters; commands and what they print keep their own lines."""

_INDENT = "    "
_LABEL = 12


class Narrator:
    """Tells what happens, on standard output.

    Whatever came from a program is made printable, and nothing is read as rich's markup.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def heading(self, text: str) -> None:
        """What all of it is."""
        self._print(Text(text, style="bold"))

    def fact(self, label: str, text: str) -> None:
        """One line of a list of labels and texts."""
        self._print(Text.assemble("  ", (label.ljust(_LABEL), "bold cyan"), printable(text)))

    def step(self, letter: str, title: str) -> None:
        """A new step begins."""
        self._print(Text())
        self._print(Text.assemble((f"({letter}) ", "bold cyan"), (title, "bold")))

    def command(self, shown: str, prompt: str = "$ ", note: str = "") -> None:
        """A command as one would type it.

        Args:
            shown: may have several lines.
            prompt: what stands before it.
            note: what is not typed but said of it.
        """
        lines = shown.splitlines()
        for index, line in enumerate(lines):
            before = prompt if index == 0 else ""
            after = f"  # {note}" if note and index == len(lines) - 1 else ""
            self._print(Text.assemble(_INDENT, (before, "dim"), (printable(line), "yellow"), (after, "dim")))

    def output(self, text: str) -> None:
        """What a program printed."""
        for line in text.splitlines():
            if line.strip():
                self._print(Text(f"{_INDENT}{printable(line.rstrip())}"))

    def ok(self, explanation: str) -> None:
        """It came as expected, and what that means."""
        self._verdict("ok", "bold green", explanation)

    def failed(self, explanation: str) -> None:
        """It did not come as expected."""
        self._verdict("NOT AS EXPECTED", "bold red", explanation)

    def say(self, text: str, style: str = "") -> None:
        """A line of its own, with an empty one before it."""
        self._print(Text())
        self._print(Text(printable(text), style=style))

    def line(self, text: str, style: str = "") -> None:
        """A line of its own."""
        self._print(Text(printable(text), style=style))

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show in a terminal that something takes its time; a pipe gets the result alone."""
        with self._console.status(Text(what)):
            yield

    def _verdict(self, word: str, style: str, explanation: str) -> None:
        indent = " " * (len(_INDENT) + len(word) + 2)
        width = min(self._console.width, WIDTH) if self._console.is_terminal else WIDTH
        for index, line in enumerate(_wrapped(explanation, width - len(indent))):
            start = Text.assemble(_INDENT, (f"{word}: ", style)) if index == 0 else Text(indent)
            self._print(start.append(line))

    def _print(self, text: Text) -> None:
        self._console.print(text)


def _wrapped(text: str, width: int) -> Iterable[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(printable(line, 2000), max(width, 30)) or [""]
