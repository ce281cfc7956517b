"""Tables for people: ruled in a terminal, plain in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table.

    Args:
        title: what stands above it; printable, as everything here.
        columns: their names.
        rows: a text for each column.
    """
    if sys.stdout.isatty():
        _print_ruled(title, columns, rows)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    click.echo(f"{title}:")
    for row in (columns, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(f"  {line}".rstrip())


def _print_ruled(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text and not str: names come from clients and files, and may look like rich's markup.
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
