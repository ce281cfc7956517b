"""`pgtlsproxy secrets`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from pgtlsproxy.errors import BackendUnavailable, ConfigError, Mistake
from pgtlsproxy.identity import Secret, encode_name, printable

if TYPE_CHECKING:
    from pgtlsproxy.protocol.scram.keys import Verifier
    from pgtlsproxy.protocol.scram.secrets import UserlistEntry
    from pgtlsproxy.proxy.snapshot import BackendSnapshot

SQL: Final = """\
SELECT format('"%s" "%s"', replace(rolname, '"', '""'), rolpassword)
    || CASE WHEN rolvaliduntil < '9999-01-01'
       THEN format(' "%s+00"', to_char(rolvaliduntil AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'))
       ELSE '' END
FROM pg_authid
WHERE rolpassword ~ ('^SCRAM-SHA-256\\$[1-9][0-9]{0,5}:[A-Za-z0-9+/]{1,172}={0,2}'
        || '\\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$')
    AND rolname !~ E'[\\n\\r]|^(SCRAM-SHA-256\\\\$|md5[0-9a-fA-F]{32}$)'
    AND (rolvaliduntil IS NULL OR rolvaliduntil > now())
ORDER BY rolname;
"""
"""What a superuser lists all verifiers with, and until when they are good; see docs/scram.md. A role may give
itself a verifier of any form that PostgreSQL's strtol takes for one, and whoever may create roles any name:
what would make a file that does not load is left out."""

SECONDS: Final = 30.0
"""How long a server may take to let a role in."""


@click.command(context_settings={"max_content_width": 100})
@click.option("--sql", is_flag=True, help="Print the query with which a superuser lists all verifiers.")
@click.option("-u", "--user", metavar="ROLE", help="Make the line of this role; asks for its password.")
@click.option(
    "--from", "userlist", metavar="FILE", help="Make the lines of PgBouncer's userlist.txt, passwords too."
)
@click.option("-c", "--config", "path", metavar="FILE", help="The configuration that --backend is in.")
@click.option(
    "--backend", metavar="NAME", help="Take salt and iterations from this backend: what the bridge needs."
)
@click.option("--database", default="postgres", show_default=True, metavar="NAME", help="Where to log in.")
@click.option(
    "--password-file", metavar="FILE", help="The password is this file's first line; else it is asked for."
)
def secrets(
    *,
    sql: bool,
    user: str | None,
    userlist: str | None,
    path: str | None,
    backend: str | None,
    database: str,
    password_file: str | None,
) -> int:
    """Make lines for scram_secrets_file; they go to stdout, and are as good as passwords.

    With --backend the role logs in there, over the leg that sessions take, and its line is what the server
    itself keeps: no right to read pg_authid is needed. Without it the line has a new salt, which does where
    the proxy asks for passwords itself (login: certificate and passfile), and not for the bridge. Exit
    status: 0 every line was made, 1 one was not.

    \b
    Example:
      pgtlsproxy secrets --sql | psql -AtX > scram_secrets.txt
      pgtlsproxy secrets -c pgtlsproxy.yaml --backend primary --user alice >> scram_secrets.txt
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    if sum((sql, user is not None, userlist is not None)) != 1:
        raise click.UsageError("say what to make: --sql, --user ROLE or --from FILE")
    if (path is None) != (backend is None):
        raise click.UsageError("--backend NAME and -c FILE belong together")
    if sql:
        click.echo(SQL, nl=False)
        return 0
    try:
        maker = _Maker(path, backend, database)
        entries = _entries(user, userlist, password_file, confirms=backend is None)
        return _print_lines(maker, entries)
    except ConfigError as error:
        for mistake in error.mistakes:
            click.echo(f"error: {mistake}", err=True)
        return 1


def _entries(
    user: str | None, userlist: str | None, password_file: str | None, *, confirms: bool
) -> tuple[UserlistEntry, ...]:
    """The users and their secrets."""
    from pgtlsproxy.protocol.scram.secrets import MAX_SECRETS_OCTETS, UserlistEntry, parse_userlist

    if userlist is not None:
        return parse_userlist(userlist, _read(userlist, "userlist file", MAX_SECRETS_OCTETS))
    if password_file is not None:
        password = _read(password_file, "password file", 1 << 20).partition(b"\n")[0].rstrip(b"\r")
    else:
        label = f'Password of "{printable(user or "")}"'
        password = encode_name(click.prompt(label, hide_input=True, confirmation_prompt=confirms, err=True))
    return (UserlistEntry(0, user or "", Secret(password)),)


def _read(path: str, kind: str, limit: int) -> bytes:
    from pgtlsproxy.tls.file_access import UnusableFile, read_key_file

    try:
        return read_key_file(path, os.geteuid(), kind, limit)
    except UnusableFile as error:
        raise ConfigError([Mistake(printable(path), str(error))]) from None


def _print_lines(maker: _Maker, entries: tuple[UserlistEntry, ...]) -> int:
    from pgtlsproxy.protocol.scram.secrets import format_secret

    status = 0
    for entry in entries:
        who = f'user "{printable(entry.user)}"' + (f" (line {entry.line})" if entry.line else "")
        try:
            click.echo(format_secret(entry.user, maker.verifier_of(entry)))
        except _Impossible as error:
            click.echo(f"error: {who}: {error}", err=True)
            status = 1
    return status


class _Impossible(Exception):
    """Why there is no line of a user."""


class _Maker:
    """Makes verifiers, at a backend or with a new salt.

    Args:
        path: the configuration; None for a new salt.
        backend: the backend's name in it.
        database: where to log in there.
    """

    def __init__(self, path: str | None, backend: str | None, database: str) -> None:
        self._backend: BackendSnapshot | None = None
        self._database = database
        if path is None or backend is None:
            return
        from pgtlsproxy.proxy.snapshot import load

        snapshot = load(path).snapshot
        if backend not in snapshot.backends:
            known = ", ".join(snapshot.backends)
            raise ConfigError(
                [Mistake(f"{path}: backends.{printable(backend)}", f"there is none, only {known}")]
            )
        self._backend = snapshot.backends[backend]

    def verifier_of(self, entry: UserlistEntry) -> Verifier:
        """The verifier of a user.

        Raises:
            _Impossible: there can be none.
        """
        from pgtlsproxy.protocol.scram.keys import SALT_OCTETS, Verifier

        if (given := entry.verifier) is not None:
            return given
        if entry.is_md5:
            raise _Impossible("has an MD5 secret, of which no verifier can be made; set the password anew")
        if not entry.secret.reveal():
            raise _Impossible("has an empty password")
        if self._backend is None:
            return Verifier.make(entry.secret, os.urandom(SALT_OCTETS))
        return self._ask(self._backend, entry)

    def _ask(self, backend: BackendSnapshot, entry: UserlistEntry) -> Verifier:
        import trio

        from pgtlsproxy.observability.logs import configure
        from pgtlsproxy.proxy.own_login import at_a_server, log_in_as
        from pgtlsproxy.proxy.resolve import Resolver
        from pgtlsproxy.tls.stream import Leg

        async def ask(leg: Leg) -> Verifier | None:
            return (await log_in_as(leg, backend.settings, entry.user, self._database, entry.secret)).verifier

        async def main() -> Verifier | None:
            with trio.fail_after(SECONDS):
                return await at_a_server(backend, Resolver(configure(None, "error")), entry.user, ask)

        try:
            verifier = trio.run(main)
        except BackendUnavailable as error:
            raise _Impossible(error.reason) from None
        except trio.TooSlowError:
            raise _Impossible(f"backend {backend.name} did not answer within {SECONDS:g} s") from None
        if verifier is None:
            raise _Impossible(
                f"backend {backend.name} let the role in without asking for its password: its pg_hba.conf "
                "has to say scram-sha-256 for this host"
            )
        return verifier
