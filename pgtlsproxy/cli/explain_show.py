"""How `pgtlsproxy explain` shows its answer, to people and to machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import click

from pgtlsproxy.cli.tables import print_table
from pgtlsproxy.identity import printable

if TYPE_CHECKING:
    from pgtlsproxy.cli.explain_answer import Answer
    from pgtlsproxy.policy.matching import Skipped
    from pgtlsproxy.policy.records import LineRef

MAX_TEXT: Final = 8192
"""Longest line of a file that is shown, in characters."""

_VERDICTS: Final = {True: "allowed", False: "refused", None: "no answer"}
_COLORS: Final = {True: "green", False: "red", None: "yellow"}
_COLUMNS: Final = ("line", "column", "the client has", "the line wants")


def show(answer: Answer, *, as_json: bool) -> None:
    """Print an answer; what is wrong with the configuration goes to stderr, as `check` has it."""
    for mistake in answer.mistakes:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {mistake}", err=True)
    if as_json:
        click.echo(json.dumps(_as_object(answer)))
    elif not answer.mistakes:
        _print(answer)


def _as_object(answer: Answer) -> dict[str, object]:
    found, client, rules, to = answer.explanation, answer.client, answer.rules, answer.destination
    shown: dict[str, object] = {
        "allowed": found.allowed,
        "sqlstate": found.sqlstate,
        "reply": found.reply,
        "reason": found.reason,
        "listener": None if rules is None else rules.listener,
        "backend": None if to is None else to.backend.name,
        "login": None if to is None else to.backend.login,
        "needs": found.needs,
        "hba": _line(found.hba),
        "ident": _line(found.ident),
        "decided_by": found.decided_by,
        "skipped": [_skipped(one) for one in found.skipped],
    }
    if rules is not None and rules.databases.have_a_map:
        called = None if to is None or client is None else printable(to.called(client.database))
        shown["backend_database"] = called
    return shown


def _line(ref: LineRef | None) -> dict[str, object] | None:
    if ref is None:
        return None
    return {"file": printable(ref.file), "line": ref.number, "text": _text(ref)}


def _text(ref: LineRef) -> str:
    """A line of a file, its tabs as blanks."""
    return printable(ref.text.replace("\t", " ").strip(), MAX_TEXT)


def _skipped(one: Skipped) -> dict[str, object]:
    return {
        "file": printable(one.rule.ref.file),
        "line": one.rule.ref.number,
        "field": one.mismatch.field,
        "found": one.mismatch.found,
        "wanted": one.mismatch.wanted,
    }


def _print(answer: Answer) -> None:
    found = answer.explanation
    verdict = click.style(_VERDICTS[found.allowed], fg=_COLORS[found.allowed], bold=True)
    whom = _whom(answer)
    click.echo(f"{verdict}{': ' if whom else ''}{whom}")
    for label, value in _facts(answer).items():
        click.echo(f"  {label + ':':<12}{value}")
    if not found.skipped:
        return
    rows = [
        (str(one.rule.ref), one.mismatch.field, one.mismatch.found, one.mismatch.wanted)
        for one in found.skipped
    ]
    before = "Lines before it" if found.hba is not None else "Lines"
    print_table(f"{before} that do not apply", _COLUMNS, rows)


def _whom(answer: Answer) -> str:
    client, rules = answer.client, answer.rules
    if client is None or rules is None or client.refusal is not None:
        return ""
    replication = "" if client.replication in {None, "none"} else " for replication"
    at = f"from {client.address}" if client.address != "local" else "at a Unix socket"
    return (
        f'user "{printable(client.user)}", database "{printable(client.database)}"{replication}, {at}, '
        f"listener {rules.listener}"
    )


def _facts(answer: Answer) -> dict[str, str]:
    """What is said besides, by its label."""
    found, to = answer.explanation, answer.destination
    facts = {"reason": found.reason}
    if found.decided_by is not None:
        facts["decided by"] = found.decided_by
    if found.reply is not None:
        facts["reply"] = f"{found.sqlstate}: {found.reply}"
    if found.needs is not None and to is not None:
        named = "" if to.dbname is None else f', database "{printable(to.dbname)}"'
        facts["needs"] = found.needs
        facts["goes on to"] = f"backend {to.backend.name}{named}, login {to.backend.login}"
    for label, ref in (("hba", found.hba), ("ident", found.ident)):
        if ref is not None:
            facts[label] = f"{ref}: {_text(ref)}"
    return facts
