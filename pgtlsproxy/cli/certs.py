"""`pgtlsproxy certs`: what the openssl recipes for PostgreSQL do, in one command each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pgtlsproxy import pki
from pgtlsproxy.cli import certs_files, certs_show
from pgtlsproxy.identity import printable
from pgtlsproxy.tls.file_access import UnusableFile, read_file
from pgtlsproxy.tls.files import certificate_chain, revocation_lists

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PATH: Final = click.Path(path_type=Path)
_PLAIN_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,62}")
_HEXADECIMAL: Final = re.compile(r"(?:0x)?([0-9a-f]{1,40})", re.IGNORECASE)
"""20 octets at most (RFC 5280, section 4.1.2.2)."""
_DECIMAL: Final = re.compile(r"[0-9]{1,49}")

_out = click.option(
    "--out", type=_PATH, metavar="BASE", help="Where to write, without the endings .crt and .key."
)
_force = click.option("--force", is_flag=True, help="Replace files that exist.")
_key_type = click.option(
    "--key-type", type=click.Choice([one.value for one in pki.KeyType]), default="p256", show_default=True
)


def _days(default: int | None) -> Callable[[_Function], _Function]:
    return click.option(
        "--days", type=click.IntRange(1, 36500), default=default, show_default=default is not None,
        help="How long it is valid.",
    )  # fmt: skip


def _signed_by(command: _Function) -> _Function:
    command = click.option(
        "--ca-key", type=_PATH, help="The CA's key.  [default: --ca with the ending .key]"
    )(command)
    return click.option(
        "--ca", type=_PATH, default=Path("ca.crt"), show_default=True, help="The CA's certificate."
    )(command)


@click.group()
def certs() -> None:
    """Make, renew, revoke and show certificates.

    \b
    Example, from nothing to a TLS server and a client with a certificate:
      pgtlsproxy certs ca
      pgtlsproxy certs server db.example.com
      pgtlsproxy certs client alice
    """  # noqa: D301 - \b is click's mark for text that it must not fill


@certs.command()
@click.option("--name", default="pgtlsproxy CA", show_default=True, help="The CA's name (commonName).")
@click.option("--ca", type=_PATH, help="Make an intermediate, signed by this CA.")
@click.option("--ca-key", type=_PATH, help="That CA's key.  [default: --ca with the ending .key]")
@_out
@_days(3650)
@_key_type
@_force
def ca(
    *,
    name: str,
    ca: Path | None,
    ca_key: Path | None,
    out: Path | None,
    days: int,
    key_type: str,
    force: bool,
) -> None:
    """Make a certificate authority.

    \b
    Example:
      pgtlsproxy certs ca --name "Example Database CA" --out pki/ca
    """  # noqa: D301
    base = out or Path("ca")
    with _problems_as_errors():
        kind, lifetime = pki.KeyType(key_type), timedelta(days=days)
        if ca is None:
            issued = pki.make_ca(name, key_type=kind, lifetime=lifetime)
        else:
            issued = pki.make_intermediate(_load_ca(ca, ca_key), name, key_type=kind, lifetime=lifetime)
        certificate_file, key_file = _write_pair(issued, base, force=force)
    _say_next(
        f"keep {key_file} off the servers; ssl_ca_file and sslrootcert take {ca or certificate_file}",
        f"pgtlsproxy certs server db.example.com --ca {certificate_file}",
    )


@certs.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_signed_by
@_out
@_days(365)
@_key_type
@_force
def server(
    *,
    names: tuple[str, ...],
    ca: Path,
    ca_key: Path | None,
    out: Path | None,
    days: int,
    key_type: str,
    force: bool,
) -> None:
    """Make a server's certificate.

    NAME is what clients call the server: a DNS name or an IP address.

    \b
    Example:
      pgtlsproxy certs server db.example.com localhost 127.0.0.1 ::1
    """  # noqa: D301
    with _problems_as_errors():
        issued = pki.issue_server(
            _load_ca(ca, ca_key), names, key_type=pki.KeyType(key_type), lifetime=timedelta(days=days)
        )
        certificate_file, key_file = _write_pair(issued, out or Path("server"), force=force)
    _say_next(
        f"ssl_cert_file: {certificate_file} and ssl_key_file: {key_file}; clients connect with",
        f'psql "host={names[0]} sslmode=verify-full sslrootcert={_root(issued, ca)}"',
    )


@certs.command()
@click.argument("user", metavar="USER")
@_signed_by
@_out
@_days(365)
@_key_type
@_force
def client(
    *,
    user: str,
    ca: Path,
    ca_key: Path | None,
    out: Path | None,
    days: int,
    key_type: str,
    force: bool,
) -> None:
    """Make a client's certificate.

    Its commonName is USER, the database user.

    \b
    Example:
      pgtlsproxy certs client alice --days 90
    """  # noqa: D301
    if out is None and _PLAIN_FILE_NAME.fullmatch(user) is None:
        raise click.UsageError(f'"{printable(user)}" makes no good file name: say where to write with --out')
    with _problems_as_errors():
        issued = pki.issue_client(
            _load_ca(ca, ca_key), user, key_type=pki.KeyType(key_type), lifetime=timedelta(days=days)
        )
        certificate_file, key_file = _write_pair(issued, out or Path(user), force=force)
    _say_next(
        f"if {printable(user)} is a database user, a pg_hba.conf line for it: hostssl all {printable(user)} "
        f"0.0.0.0/0 cert; if it is the proxy, sslcert: {certificate_file} and sslkey: {key_file}; to connect",
        f'psql "user={printable(user)} sslmode=verify-full sslrootcert={_root(issued, ca)} '
        f'sslcert={certificate_file} sslkey={key_file}"',
    )


@certs.command()
@click.argument("certificate", type=_PATH, metavar="CERTIFICATE")
@click.option("--key", type=_PATH, help="Its key.  [default: CERTIFICATE with the ending .key]")
@click.option("--same-key", is_flag=True, help="Keep the key instead of making a new one.")
@_signed_by
@_days(None)
def renew(
    *,
    certificate: Path,
    key: Path | None,
    same_key: bool,
    ca: Path,
    ca_key: Path | None,
    days: int | None,
) -> None:
    """Replace a certificate and its key.

    Same names, new dates, as long as before.

    \b
    Example:
      pgtlsproxy certs renew server.crt && systemctl reload pgtlsproxy
    """  # noqa: D301
    key_file = key or certificate.with_suffix(".key")
    with _problems_as_errors():
        old = certs_files.load_issued(certificate, key_file)
        issued = pki.renew(
            _load_ca(ca, ca_key),
            old.certificate,
            key=old.key if same_key else None,
            lifetime=None if days is None else timedelta(days=days),
        )
        if same_key:
            certs_files.write(certificate, issued.certificate_pem(), certs_files.PUBLIC_MODE, force=True)
        else:
            certs_files.write_pair(issued, certificate, key_file, force=True)
    click.echo(f"replaced {certificate}{'' if same_key else f' and {key_file}'}, {_until(issued)}")
    _say_next(
        "a running proxy takes it by itself, at once on SIGHUP. If the old key was stolen, revoke",
        f"pgtlsproxy certs crl --revoke {old.certificate.serial_number:#x}",
    )


@certs.command()
@click.option(
    "--revoke",
    multiple=True,
    metavar="FILE|SERIAL",
    help="A certificate's file, or its serial number in hexadecimal, as `show` and the log have it.",
)
@click.option("--out", type=_PATH, metavar="FILE", help="The CRL.  [default: --ca with the ending .crl]")
@_signed_by
@_days(30)
def crl(*, revoke: tuple[str, ...], out: Path | None, ca: Path, ca_key: Path | None, days: int) -> None:
    """Write a CA's revocation list anew.

    It holds what it held before, and what --revoke adds. A list that is past its end lets nobody
    in: run this again, without --revoke, before --days are over.

    \b
    Example:
      pgtlsproxy certs crl --revoke alice.crt && systemctl reload pgtlsproxy
    """  # noqa: D301
    file = out or ca.with_suffix(".crl")
    with _problems_as_errors():
        serials = [_serial(one) for one in revoke]
        previous = _only_crl(file) if file.exists() else None
        made = pki.make_crl(_load_ca(ca, ca_key), serials, previous=previous, lifetime=timedelta(days=days))
        certs_files.write(file, made.public_bytes(Encoding.PEM), certs_files.PUBLIC_MODE, force=True)
    click.echo(f"wrote {file}: {len(made)} revoked, next one due {made.next_update_utc:%Y-%m-%d}")
    _say_next("a running proxy takes it by itself, at once on SIGHUP, as", f"ssl_crl_file: {file}")


@certs.command()
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option("--connect", metavar="HOST:PORT", help="Show what this server presents; nothing is verified.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array instead of a table.")
@click.pass_context
def show(ctx: click.Context, *, files: tuple[str, ...], connect: str | None, as_json: bool) -> None:
    """Show the certificates in files and those of a server.

    FILE is PEM or DER. --connect asks a PostgreSQL server, or this proxy. The exit status is 1 if
    something cannot be read, has expired, or is not valid yet.

    \b
    Example:
      pgtlsproxy certs show server.crt --json
      pgtlsproxy certs show --connect db.example.com:5432
    """  # noqa: D301
    if not files and connect is None:
        raise click.UsageError("name a FILE, or a server with --connect")
    ctx.exit(certs_show.show(files, connect, as_json=as_json))


@contextlib.contextmanager
def _problems_as_errors() -> Iterator[None]:
    try:
        yield
    except (pki.CannotIssue, UnusableFile, certs_files.AlreadyThere) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename}: {error.strerror}") from None


def _load_ca(certificate_file: Path, key_file: Path | None) -> pki.Issued:
    return certs_files.load_issued(certificate_file, key_file or certificate_file.with_suffix(".key"))


def _write_pair(issued: pki.Issued, base: Path, *, force: bool) -> tuple[Path, Path]:
    # Not with_suffix: db.example.com has none.
    certificate_file, key_file = Path(f"{base}.crt"), Path(f"{base}.key")
    certs_files.write_pair(issued, certificate_file, key_file, force=force)
    click.echo(f"wrote {certificate_file} ({_until(issued)}) and {key_file} (mode 0600)")
    return certificate_file, key_file


def _root(issued: pki.Issued, ca: Path) -> str:
    # Below an intermediate: an intermediate alone is no trust anchor for OpenSSL.
    return "ROOT.crt" if issued.chain else str(ca)


def _until(issued: pki.Issued) -> str:
    return f"valid until {issued.certificate.not_valid_after_utc:%Y-%m-%d}"


def _only_crl(file: Path) -> x509.CertificateRevocationList:
    found = revocation_lists(read_file(str(file), "CRL file"), str(file))
    if len(found) > 1:
        raise click.ClickException(
            f"{file} holds {len(found)} CRLs: name a file for this CA's alone with --out"
        )
    return found[0]


def _serial(certificate_or_number: str) -> int:
    if not Path(certificate_or_number).exists():
        text = certificate_or_number.replace(":", "")  # as openssl prints it
        number = _HEXADECIMAL.fullmatch(text)
        if _DECIMAL.fullmatch(certificate_or_number):
            if number is None:
                return int(text)  # as pg_stat_ssl has it; longer than any in hexadecimal
            raise click.UsageError(
                f"the serial number {text} may be hexadecimal or decimal: write 0x{text}, or {int(text):#x} "
                "if it is decimal"
            )
        if number is not None:
            return int(number[1], 16)
    content = read_file(certificate_or_number, "certificate file")
    return certificate_chain(content, certificate_or_number)[0].serial_number


def _say_next(what: str, command: str) -> None:
    click.echo(f"next: {what}\n  {command}")
