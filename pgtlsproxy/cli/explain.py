"""`pgtlsproxy explain`."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any

import click

from pgtlsproxy.identity import printable

EXIT_ALLOWED, EXIT_NO_ANSWER, EXIT_REFUSED = 0, 1, 2


@click.command(context_settings={"max_content_width": 100})
@click.option("-c", "--config", "path", required=True, metavar="FILE", help="The configuration, a YAML file.")
@click.option(
    "--listener", metavar="NAME", help="Where the client comes; may be left out where there is one."
)
@click.option("--user", metavar="NAME", help="The user that it asks for.")
@click.option("--database", metavar="NAME", help="The database; by default named as the user.")
@click.option("--address", metavar="IP|local", help="Where it comes from; `local` is a Unix socket.")
@click.option("--replication", type=click.Choice(["true", "database"]), help="It asks for replication.")
@click.option(
    "--os-user", metavar="NAME", help="Who it is at a Unix socket; `uid:1000` where it has no name."
)
@click.option(
    "--certificate", metavar="FILE", help="Its certificate, and behind it the intermediates, as PEM."
)
@click.option("--cn", metavar="NAME", help="Or only the common name in it.")
@click.option("--dn", metavar="NAME", help="Or only the distinguished name, as PostgreSQL prints it.")
@click.option(
    "--san",
    multiple=True,
    metavar="KIND:NAME",
    help="A subjectAltName in it, DNS:..., URI:... or email:...; repeat it to say them all.",
)
@click.option("--issuer", metavar="DN", help="The CA that issued it, by its subject in ssl_ca_file.")
@click.option("--no-certificate", is_flag=True, help="It has none.")
@click.option("--no-tls", is_flag=True, help="It comes in clear text.")
@click.option("--log", metavar="FILE|-", help="A line of the log, session_decided as JSON, says all of that.")
@click.option("--connect", is_flag=True, help="Ask the server for the members of roles (roles_query).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, for machines.")
def explain(
    path: str, *, log: str | None, connect: bool, as_json: bool, certificate: str | None, **described: Any
) -> int:
    """Say which lines of pg_hba.conf and pg_ident.conf decide about a client, and what they decide.

    Reads the files as they are now. Says of every line before the deciding one which column does not
    match. Dials nobody, unless --connect is given; looks names up in the DNS where a line has one.
    Exit status: 0 the policy lets the client go on, 2 it refuses it, 1 there is no answer, because
    the question leaves open what the line asks for, or the configuration is wrong.

    \b
    Example:
      pgtlsproxy explain -c pgtlsproxy.yaml --user alice --database shop --address 10.0.0.7 --cn alice
      pgtlsproxy explain -c pgtlsproxy.yaml --user shop --address local --os-user www-data
      journalctl -u pgtlsproxy -o cat -g 4f8a12 | pgtlsproxy explain -c pgtlsproxy.yaml --log -
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    with _no_search_for_garbage():
        return _explain(path, log=log, connect=connect, as_json=as_json, certificate=certificate, **described)


@contextlib.contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """What is loaded is needed until the end, which is near; to look through it takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _explain(
    path: str, *, log: str | None, connect: bool, as_json: bool, certificate: str | None, **described: Any
) -> int:
    from pgtlsproxy.cli.explain_answer import Answer, answer
    from pgtlsproxy.cli.explain_question import Unanswerable, described_client, logged_client
    from pgtlsproxy.cli.explain_show import show
    from pgtlsproxy.policy.explanation import Explanation

    try:
        if log is None:
            listener = described.pop("listener")
            client = described_client(**described, certificate=certificate is not None)
        elif certificate is not None or any(described.values()):
            raise click.UsageError("--log says who the client is: leave the other options about it out")
        else:
            listener, client = logged_client(_log(log))
        found = answer(path, listener, client, certificate, connect=connect)
    except Unanswerable as error:
        found = Answer(Explanation(allowed=None, reason=str(error)))
    show(found, as_json=as_json)
    return {True: EXIT_ALLOWED, False: EXIT_REFUSED, None: EXIT_NO_ANSWER}[found.explanation.allowed]


def _log(path: str) -> bytes:
    """The log, `-` for standard input.

    Raises:
        Unanswerable: it cannot be read.
    """
    from pgtlsproxy.cli.explain_question import MAX_LOG_OCTETS, Unanswerable
    from pgtlsproxy.tls.file_access import UnusableFile, read_file

    if path == "-":
        return sys.stdin.buffer.read(MAX_LOG_OCTETS)
    try:
        return read_file(path, "log")
    except UnusableFile as error:
        raise Unanswerable(printable(str(error), limit=2000)) from None
