"""`pgtlsproxy check`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from pgtlsproxy.cli.reporting import print_notes, print_warnings
from pgtlsproxy.errors import ConfigError, Mistake

if TYPE_CHECKING:
    from pgtlsproxy.proxy.snapshot import Snapshot


@click.command(context_settings={"max_content_width": 100})
@click.option("-c", "--config", "path", required=True, metavar="FILE", help="The configuration, a YAML file.")
@click.option(
    "--connect",
    is_flag=True,
    help="Also dial every backend, let it prove itself, and run each roles_query and auth_query.",
)
@click.option("--rules", is_flag=True, help="Print the rules of every listener, as PostgreSQL's views do.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, for machines.")
def check(path: str, *, connect: bool, rules: bool, as_json: bool) -> int:
    """Load everything that `serve` would load, and say everything that is wrong with it.

    Warns of what works and deserves a look: lines that never decide, maps that nobody uses, expressions
    that mean parts of names, CAs that vouch for more clients than need be, certificates that expire soon,
    listeners where SCRAM's channel binding will keep clients out.
    Names the files of include_if_exists that do not exist, and options that mean something to the backend
    alone. Opens no socket and writes nothing, unless --connect is given. Exit status: 0 it can be served,
    1 it cannot, or something in it has expired, or a backend does not prove itself or not answer a
    roles_query or auth_query.

    \b
    Example:
      pgtlsproxy check -c config/central/pgtlsproxy.yaml
      pgtlsproxy check -c config/central/pgtlsproxy.yaml --connect
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    from pgtlsproxy.cli.check_connect import Connected, connect_to_all
    from pgtlsproxy.cli.check_rules import print_rules, rules_as_object
    from pgtlsproxy.policy.review import for_the_backend
    from pgtlsproxy.proxy.binding_review import binding_warnings
    from pgtlsproxy.proxy.expiry import judge_expiry
    from pgtlsproxy.proxy.files import read_rules
    from pgtlsproxy.proxy.policy_review import left_out
    from pgtlsproxy.proxy.snapshot import load

    mistakes: Sequence[Mistake]
    warnings: Sequence[Mistake] = ()
    connected = Connected()
    notes = left_out(read_rules(path))
    try:
        loaded = load(path)
    except ConfigError as error:
        mistakes = error.mistakes
    else:
        expiry = judge_expiry(loaded.snapshot)
        notes += for_the_backend(listener.rules for listener in loaded.snapshot.listeners.values())
        if connect:
            connected = connect_to_all(loaded.snapshot)
        binding = binding_warnings(loaded.snapshot, connected.backends if connect else None)
        warnings = (*loaded.warnings, *expiry.soon, *_review(loaded.snapshot), *binding)
        mistakes = (*expiry.expired, *connected.mistakes(path))
    if as_json:
        found = _as_object(mistakes, warnings, notes) | connected.as_object()
        if rules:
            found["rules"] = rules_as_object(path)
        click.echo(json.dumps(found))
    else:
        if rules:
            print_rules(path)
        print_warnings(warnings)
        print_notes(notes)
        connected.show()
        _conclude(path, mistakes)
    return 1 if mistakes else 0


def _review(snapshot: Snapshot) -> list[Mistake]:
    """What works, and deserves a look."""
    from pgtlsproxy.proxy.policy_review import review_policies

    policies = [listener.rules for listener in snapshot.listeners.values()]
    return [
        *review_policies(snapshot.settings, policies),
        *_breadth_warnings(snapshot),
        *_folder_warnings(snapshot),
    ]


def _breadth_warnings(snapshot: Snapshot) -> Iterator[Mistake]:
    """Where more CAs vouch for clients than need be."""
    from pgtlsproxy.tls.anchors import breadth_warning
    from pgtlsproxy.tls.file_access import is_system_bundle

    for name, listener in snapshot.listeners.items():
        path = listener.settings.ssl_ca_file
        if path is None or listener.trust is None:
            continue
        warning = None if listener.rules.names_every_issuer else breadth_warning(listener.trust.anchors)
        if is_system_bundle(path):
            warning = (
                f"is this system's list of public CAs ({path}): anybody can have a certificate of one of "
                "them; name the CA that issues your clients' certificates"
            )
        if warning is not None:
            yield Mistake(f"{snapshot.path}: listeners.{name}.ssl_ca_file", warning)


def _folder_warnings(snapshot: Snapshot) -> list[Mistake]:
    """Where no Unix socket could be made now."""
    from pgtlsproxy.config import UnixAddress
    from pgtlsproxy.proxy.unix_sockets import folder_warning

    return [
        Mistake(f"{snapshot.path}: listeners.{name}.listen[{index}]", warning)
        for name, listener in snapshot.settings.listeners.items()
        for index, address in enumerate(listener.listen)
        if isinstance(address, UnixAddress) and (warning := folder_warning(address)) is not None
    ]


def _as_object(
    mistakes: Sequence[Mistake], warnings: Sequence[Mistake], notes: Sequence[Mistake]
) -> dict[str, object]:
    def rows(entries: Sequence[Mistake]) -> list[dict[str, str]]:
        return [{"where": entry.where, "what": entry.what} for entry in entries]

    return {
        "ok": not mistakes,
        "mistakes": rows(mistakes),
        "warnings": rows(warnings),
        "notes": rows(notes),
    }


def _conclude(path: str, mistakes: Sequence[Mistake]) -> None:
    """Print what is wrong, and whether anything is."""
    for mistake in mistakes:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {mistake}", err=True)
    if mistakes:
        click.echo(f"{path}: {len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''}", err=True)
    else:
        click.echo(f"{path}: ok")
