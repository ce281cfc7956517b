"""How commands tell a person what is wrong: colour in a terminal, plain text in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pgtlsproxy.errors import Mistake


def print_mistakes(mistakes: Sequence[Mistake]) -> None:
    """One line a mistake on stderr, and how many there are."""
    for mistake in mistakes:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {mistake}", err=True)
    count = len(mistakes)
    click.echo(f"{count} mistake{'s' if count != 1 else ''}: nothing was started.", err=True)


def print_warnings(warnings: Sequence[Mistake]) -> None:
    """One line a warning on stderr."""
    for warning in warnings:
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {warning}", err=True)


def print_notes(notes: Sequence[Mistake]) -> None:
    """One line on stderr for each thing that is as it may be, and good to know."""
    for note in notes:
        click.echo(f"{click.style('note:', bold=True)} {note}", err=True)
