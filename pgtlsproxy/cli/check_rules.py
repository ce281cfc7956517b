"""`pgtlsproxy check --rules`: each listener's rules as PostgreSQL's views show them, and its databases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields

from pgtlsproxy.cli.tables import print_table
from pgtlsproxy.config import ANY_DATABASE, Listener
from pgtlsproxy.identity import printable
from pgtlsproxy.policy.views import HbaRow, IdentRow, hba_rows, ident_rows
from pgtlsproxy.proxy.files import read_rules

HBA_VIEW, IDENT_VIEW, ROUTES = "pg_hba_file_rules", "pg_ident_file_mappings", "databases"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRow:
    """Where a database leads.

    Args:
        database: as clients call it; `*` for all that are not listed.
        backend: the name of the backend.
        dbname: what the database is called there; None for the name that was asked for.
    """

    database: str
    backend: str
    dbname: str | None


@dataclass(frozen=True, slots=True)
class _Views:
    """The two views of a listener, and where its databases lead."""

    listener: str
    hba: Sequence[HbaRow]
    ident: Sequence[IdentRow]
    routes: Sequence[RouteRow]


_Row = HbaRow | IdentRow | RouteRow


def rules_as_object(path: str) -> dict[str, object]:
    """The views by listener, a row as an object."""
    return {
        one.listener: {
            HBA_VIEW: [asdict(row) for row in one.hba],
            IDENT_VIEW: [asdict(row) for row in one.ident],
            ROUTES: [asdict(row) for row in one.routes],
        }
        for one in _views(path)
    }


def print_rules(path: str) -> None:
    """Print the views of every listener."""
    for one in _views(path):
        _print(f"{HBA_VIEW} of listener {one.listener}", HbaRow, one.hba)
        if one.ident:
            _print(f"{IDENT_VIEW} of listener {one.listener}", IdentRow, one.ident)
        if [row.database for row in one.routes] != [ANY_DATABASE]:
            _print(f"{ROUTES} of listener {one.listener}", RouteRow, one.routes)


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
            tuple(_routes(listener)),
        )


def _routes(listener: Listener) -> Iterator[RouteRow]:
    for name, database in listener.destinations.items():
        called = None if database.dbname is None else printable(database.dbname)
        yield RouteRow(database=printable(name), backend=database.backend, dbname=called)


def _print(title: str, kind: type[_Row], rows: Sequence[_Row]) -> None:
    columns = [field.name for field in fields(kind)]
    print_table(title, columns, [[_cell(getattr(row, column)) for column in columns] for row in rows])


def _cell(value: object) -> str:
    """A value as psql shows it: an array in braces, NULL as nothing."""
    if isinstance(value, tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return "" if value is None else str(value)
