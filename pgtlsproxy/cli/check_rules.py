"""`pgtlsproxy check --rules`: the rules of each listener as PostgreSQL's views show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields

from pgtlsproxy.cli.tables import print_table
from pgtlsproxy.policy.views import HbaRow, IdentRow, hba_rows, ident_rows
from pgtlsproxy.proxy.files import read_rules

HBA_VIEW, IDENT_VIEW = "pg_hba_file_rules", "pg_ident_file_mappings"


@dataclass(frozen=True, slots=True)
class _Views:
    """The two views of a listener."""

    listener: str
    hba: Sequence[HbaRow]
    ident: Sequence[IdentRow]


def rules_as_object(path: str) -> dict[str, object]:
    """The views by listener, a row as an object."""
    return {
        one.listener: {
            HBA_VIEW: [asdict(row) for row in one.hba],
            IDENT_VIEW: [asdict(row) for row in one.ident],
        }
        for one in _views(path)
    }


def print_rules(path: str) -> None:
    """Print the views of every listener."""
    for one in _views(path):
        _print(f"{HBA_VIEW} of listener {one.listener}", HbaRow, one.hba)
        if one.ident:
            _print(f"{IDENT_VIEW} of listener {one.listener}", IdentRow, one.ident)


def _views(path: str) -> Iterator[_Views]:
    """The views of every listener, as far as its files can be read: what cannot, `check` has said."""
    files = read_rules(path)
    for name, listener in files.settings.listeners.items() if files.settings is not None else ():
        hba, ident = files.rules[listener.hba_file], files.rules.get(listener.ident_file or "")
        yield _Views(
            name,
            tuple(hba_rows(listener.hba_file, hba, files.included, tls=listener.ssl))
            if isinstance(hba, bytes)
            else (),
            tuple(ident_rows(listener.ident_file, ident, files.included))
            if listener.ident_file is not None and isinstance(ident, bytes)
            else (),
        )


def _print(title: str, kind: type[HbaRow | IdentRow], rows: Sequence[HbaRow | IdentRow]) -> None:
    columns = [field.name for field in fields(kind)]
    print_table(title, columns, [[_cell(getattr(row, column)) for column in columns] for row in rows])


def _cell(value: object) -> str:
    """A value as psql shows it: an array in braces, NULL as nothing."""
    if isinstance(value, tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return "" if value is None else str(value)
