"""What each client is told in each set-up, and the manual's table of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path

from clients.kinds import KINDS, Kind, Outcome
from clients.setups import SETUPS, Asked, Setup

_ROOT = Path(__file__).parents[2]
_START = "<!-- clients: PGTLSPROXY_WRITE_TABLE=1 ./dev test tests/clients writes from here -->\n"
_END = "<!-- clients: to here -->\n"


class Verdict(Enum):
    """What became of a login: the mark in the table, and the texts, libpq's first."""

    LOGGED_IN = ("yes",)
    NO_TLS = (
        "a",
        "channel binding required, but SSL not in use",
        "Channel Binding is required, but SSL is not in use",
    )
    NOT_OFFERED = (
        "b",
        "channel binding is required, but server did not offer an authentication method that supports channel binding",
        "Channel Binding is required, but server did not offer an authentication method that supports channel binding",
    )
    TLS_ENDS = (
        "c",
        "SCRAM channel binding cannot pass through this proxy: it ends TLS. Connect with channel_binding=disable, or "
        "with a client certificate, or ask the administrator for a listener that knows SCRAM secrets",
    )
    NOT_ASKED = ("d", "channel binding required, but server authenticated client without channel binding")
    IN_CLEAR = ("e", "channel binding required but not supported by server's authentication request")
    OTHER = ("?",)

    @property
    def mark(self) -> str:
        return self.value[0]

    @property
    def texts(self) -> tuple[str, ...]:
        return self.value[1:]


Verdicts = Callable[[Kind, Setup], Verdict]


def verdict(outcome: Outcome, user: str) -> Verdict:
    """Which it was."""
    if outcome.user == user:
        return Verdict.LOGGED_IN
    told = outcome.error.strip().splitlines() or [""]
    # psql says where it tried to connect in front, and the proxy the session's id behind.
    lines = [line for line in told if "pgtlsproxy session" not in line]
    found = [verdict for verdict in Verdict if any(lines[-1].endswith(text) for text in verdict.texts)]
    return found[0] if len(found) == 1 and outcome.user is None else Verdict.OTHER


def expected(kind: Kind, setup: Setup) -> Verdict:
    """What a client is told that has the right password, or certificate where that is asked for.

    Args:
        kind: the client.
        setup: what it meets.
    """
    if kind.setting == "require":
        if setup.clear:
            return Verdict.NO_TLS
        if setup.asked in {Asked.UNBOUND, Asked.UNBOUND_BY_SERVER}:
            return Verdict.NOT_OFFERED
        # pgjdbc holds other ways than SCRAM to it since 42.7.7 only (CVE-2025-49146).
        if kind.client != "pgjdbc":
            asked = {Asked.NOTHING: Verdict.NOT_ASKED, Asked.PASSWORD: Verdict.IN_CLEAR}
            return asked.get(setup.asked, Verdict.LOGGED_IN)
    misses = kind.binds and kind.setting != "disable"
    if setup.clear:  # where others know that there is nothing to bind to, node-postgres does not look
        misses = kind.client == "node-postgres, enableChannelBinding"
    if misses and setup.asked is Asked.UNBOUND_BY_SERVER:
        return Verdict.TLS_ENDS
    return Verdict.LOGGED_IN


def render(verdicts: Verdicts) -> dict[Path, str]:
    """The tables, by the files in which they stand.

    Args:
        verdicts: what became of each client in each set-up.
    """
    return {
        _ROOT / "docs" / "scram.md": f"{_setups()}\n{_cells(verdicts)}\n{_texts()}",
        _ROOT / "README.md": _summary(verdicts),
    }


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = tuple(header)
    lines = [titles, ("---",) * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _setups() -> str:
    header = ("set-up", "client leg", "server leg", "`login`", "method of pg_hba.conf")
    return _table(header, ((setup.name, *setup.words) for setup in SETUPS))


def _cells(verdicts: Verdicts) -> str:
    """Clients that have the same lines share them."""
    rows: dict[tuple[str, tuple[Verdict, ...]], list[str]] = {}
    for kind in KINDS:
        cells = tuple(verdicts(kind, setup) for setup in SETUPS)
        rows.setdefault((kind.setting or "", cells), []).append(kind.client)
    return _table(
        ("client", "channel binding", *(setup.name for setup in SETUPS)),
        (
            (", ".join(clients), setting, *(cell.mark for cell in cells))
            for (setting, cells), clients in rows.items()
        ),
    )


def _texts() -> str:
    return "".join(f"* {verdict.mark}: `{verdict.texts[0]}`\n" for verdict in Verdict if verdict.texts)


def _summary(verdicts: Verdicts) -> str:
    """For psql alone."""
    kinds = [kind for kind in KINDS if kind.client == "psql 17"]
    return _table(
        ("client leg", "server leg", "`login`", "method", *(f"`{kind.setting}`" for kind in kinds)),
        (
            (*setup.words, *("yes" if verdicts(kind, setup) is Verdict.LOGGED_IN else "no" for kind in kinds))
            for setup in SETUPS
        ),
    )


def in_file(path: Path) -> str:
    """The table that a file has."""
    _, _, rest = path.read_text().partition(_START)
    return rest.partition(_END)[0]


def write_to_file(path: Path, table: str) -> None:
    """Put it in the place of the one that is there."""
    before, _, rest = path.read_text().partition(_START)
    path.write_text(before + _START + table + _END + rest.partition(_END)[2])
