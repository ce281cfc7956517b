"""`pgtlsproxy certs show`: what certificates say, for people and for machines."""

from __future__ import annotations

import enum
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import click
from cryptography import x509

from pgtlsproxy.errors import BackendTLSFailed, ClientCertificateRefused
from pgtlsproxy.identity import Certificate, printable
from pgtlsproxy.protocol.messages import SSL_REQUEST
from pgtlsproxy.tls.certificates import days_left, describe, expires_soon
from pgtlsproxy.tls.file_access import UnusableFile, read_file
from pgtlsproxy.tls.files import certificate_chain
from pgtlsproxy.tls.probe import presented_chain

CONNECT_SECONDS: Final = 10
DEFAULT_PORT: Final = 5432

_REFUSALS: Final = {
    b"N": "the server does not offer TLS",
    b"E": "the server answered SSLRequest with an error",
    b"": "the server closed the connection instead of answering SSLRequest",
}


class State(enum.StrEnum):
    """What a certificate's dates mean today."""

    VALID = "valid"
    EXPIRES_SOON = "expires soon"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate and where it was found.

    Args:
        source: the file, or the server.
        certificate: what it says.
        days_left: whole days until it expires; negative when it has.
        state: what that means today.
    """

    source: str
    certificate: Certificate
    days_left: int
    state: State

    @property
    def is_usable(self) -> bool:
        """Whether a peer would accept its dates now."""
        return self.state in (State.VALID, State.EXPIRES_SOON)

    def fields(self) -> dict[str, str]:
        """What people are shown, all of it printable."""
        one = self.certificate
        return {
            "subject": printable(one.dn),
            "issuer": printable(one.issuer_dn),
            "names": ", ".join(one.subject_alt_names) or "none",
            "serial": f"{one.serial:x}",
            "not after": f"{one.not_after:%Y-%m-%d %H:%M:%S} UTC",
            "days left": f"{self.days_left} ({self.state})",
        }


def show(files: Sequence[str], server: str | None, *, as_json: bool) -> int:
    """Print the certificates of files and of a server.

    Returns:
        The exit status: 0, or 1 where something could not be read, or is not valid today.
    """
    now = datetime.now(UTC)
    found: list[Shown] = []
    problems: list[str] = []
    sources = [(file, _file_chain) for file in files] + ([(server, _server_chain)] if server else [])
    for source, read_chain in sources:
        try:
            found.extend(_shown(source, certificate, now) for certificate in read_chain(source))
        except UnusableFile as error:
            problems.append(str(error))
        except (BackendTLSFailed, ClientCertificateRefused) as error:
            problems.append(f"{source}: {error}")
    if as_json:
        click.echo(json.dumps([_machine_readable(one) for one in found], indent=2))
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        _print_plain(found)
    problems.extend(
        f"{one.source}: {one.fields()['subject']} is {one.state}" for one in found if not one.is_usable
    )
    for problem in problems:
        click.echo(f"Error: {printable(problem, limit=2000)}", err=True)
    return 1 if problems else 0


def _shown(source: str, certificate: x509.Certificate, now: datetime) -> Shown:
    described = describe(certificate)
    if now < described.not_before:
        state = State.NOT_YET_VALID
    elif now > described.not_after:
        state = State.EXPIRED
    else:
        state = State.EXPIRES_SOON if expires_soon(described, now) else State.VALID
    return Shown(source, described, days_left(described, now), state)


def _file_chain(file: str) -> tuple[x509.Certificate, ...]:
    content = read_file(file, "certificate file")
    try:
        return (x509.load_der_x509_certificate(content),)
    except ValueError:
        return certificate_chain(content, file)


def _server_chain(server: str) -> tuple[x509.Certificate, ...]:
    host, port = _host_and_port(server)
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as sock:
            sock.sendall(SSL_REQUEST)
            answer = sock.recv(1)
            if answer != b"S":
                raise BackendTLSFailed(_REFUSALS.get(answer, f"answered SSLRequest with {answer!r}"))
            return presented_chain(sock, host, CONNECT_SECONDS)
    except (OSError, UnicodeError) as error:
        raise BackendTLSFailed(f"cannot connect: {error}") from None


def _host_and_port(server: str) -> tuple[str, int]:
    host, separator, port = server.rpartition(":")
    if not separator or "]" in port or (":" in host and not host.startswith("[")):
        host, port = server, str(DEFAULT_PORT)
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise click.UsageError(f'--connect takes HOST:PORT or [V6]:PORT, not "{printable(server)}"')
    return host.removeprefix("[").removesuffix("]"), int(port)


def _machine_readable(one: Shown) -> dict[str, object]:
    certificate = one.certificate
    return {
        "source": one.source,
        "subject": certificate.dn,
        "issuer": certificate.issuer_dn,
        "common_names": [printable(name) for name in certificate.common_names],
        "subject_alt_names": list(certificate.subject_alt_names),
        "serial": f"{certificate.serial:x}",
        "sha256": certificate.sha256,
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
        "days_left": one.days_left,
        "state": one.state,
    }


def _print_plain(found: Sequence[Shown]) -> None:
    for one in found:
        click.echo(printable(one.source))
        for label, value in one.fields().items():
            click.echo(f"  {label + ':':<11}{value}")


_STYLES: Final = {
    State.VALID: "",
    State.EXPIRES_SOON: "yellow",
    State.EXPIRED: "bold red",
    State.NOT_YET_VALID: "bold red",
}


def _print_table(found: Sequence[Shown]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for one in found:
        # Text and not str: names come from certificates, and may look like rich's markup.
        table = Table(title=Text(printable(one.source)), title_justify="left", show_header=False)
        for label, value in one.fields().items():
            table.add_row(Text(label), Text(value))
        table.columns[1].overflow = "fold"
        table.rows[-1].style = _STYLES[one.state]
        console.print(table)
