"""The visits of the tour: what a client does, what must come of it, and what that means."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pgtlsproxy.demo.clients import Psql, PsqlCommand
from pgtlsproxy.demo.deployment import DATABASE, PASSWORD, PROXY_NAME, Certificates, write_pair
from pgtlsproxy.demo.narrator import Narrator
from pgtlsproxy.demo.proxy import Event, ProxyProcess
from pgtlsproxy.pki import renew
from pgtlsproxy.protocol.messages import SSL_REQUEST
from pgtlsproxy.tls.probe import presented_chain

_WHO_AM_I = "SELECT current_user, ssl, version, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
_WHICH_BACKEND = "SELECT pg_backend_pid();"
_HANDSHAKE_SECONDS = 10


class Unexpected(Exception):
    """Something came that should not have; says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is running.

    Args:
        folder: where the configuration, the certificates and the sidecar's socket are.
        certificates: whose files those are.
        proxy: the proxy.
        psql: the client.
        os_name: who runs psql, as the operating system says; None where its word counts for nothing.
    """

    folder: Path
    certificates: Certificates
    proxy: ProxyProcess
    psql: Psql
    os_name: str | None

    def legacy(self, sql: str | None = None) -> PsqlCommand:
        """A client that cannot do TLS, with its password."""
        port = self.proxy.port("legacy")
        conninfo = f"host=127.0.0.1 port={port} user=app dbname={DATABASE} sslmode=disable"
        return PsqlCommand(conninfo, sql, password=PASSWORD)

    def sidecar(self, sql: str | None = None) -> PsqlCommand:
        """A client at the Unix socket."""
        return PsqlCommand(f"host={_conninfo_value(self.folder)} user=orders dbname={DATABASE}", sql)

    def central(self, certificate: str, sql: str | None = None, options: str = "-X") -> PsqlCommand:
        """A client who says it is alice, with this certificate."""
        where = f"host={PROXY_NAME} hostaddr=127.0.0.1 port={self.proxy.port('central')}"
        tls = f"sslmode=verify-full sslrootcert=ca.crt sslcert={certificate}.crt sslkey={certificate}.key"
        return PsqlCommand(f"{where} user=alice dbname={DATABASE}\n    {tls}", sql, options=options)

    def central_in_clear(self, sql: str | None = None) -> PsqlCommand:
        """A client at the TLS listener that does not do TLS."""
        port = self.proxy.port("central")
        return PsqlCommand(f"host=127.0.0.1 port={port} user=alice dbname={DATABASE} sslmode=disable", sql)


def _conninfo_value(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return escaped if re.fullmatch(r"\S+", escaped) else f"'{escaped}'"


@dataclass(frozen=True, slots=True)
class Visit:
    """One step of the tour.

    Args:
        title: what it shows.
        go: does it, and returns the explanation; raises Unexpected where it goes otherwise.
    """

    title: str
    go: Callable[[Scene, Narrator], str]


def _legacy(scene: Scene, narrator: Narrator) -> str:
    row = _let_in(scene.legacy(_WHO_AM_I), scene, narrator)
    _expect(row, {"current_user": "app", "ssl": "t", "version": "TLSv1.3"})
    return (
        "psql spoke in clear, yet PostgreSQL sees TLS 1.3: the proxy verified the server and encrypts; the "
        "password went through to the server, which checked it."
    )


def _sidecar(scene: Scene, narrator: Narrator) -> str:
    if scene.os_name is None:
        _refused(scene.sidecar(_WHO_AM_I), "Peer authentication failed", scene, narrator)
        return (
            "refused, as it must be: you run as the kernel's overflow user, who stands for everybody unknown "
            "and so proves nothing; peer lets other users in."
        )
    row = _let_in(scene.sidecar(_WHO_AM_I), scene, narrator)
    _expect(row, {"current_user": "orders", "ssl": "t", "client_dn": "/CN=pgtlsproxy"})
    return (
        f"no password: the kernel says that psql is run by {scene.os_name}, the map makes that orders, and "
        "the proxy logs in with its own certificate."
    )


def _central(scene: Scene, narrator: Narrator) -> str:
    row = _let_in(scene.central("alice", _WHO_AM_I), scene, narrator)
    _expect(row, {"current_user": "alice", "ssl": "t", "client_dn": "/CN=pgtlsproxy"})
    return (
        "the certificate says alice.smith, and the map makes that alice; both legs are verified TLS, and "
        "the server sees the proxy's certificate."
    )


def _stranger(scene: Scene, narrator: Narrator) -> str:
    refusal = 'certificate authentication failed for user "alice"'
    decision = _refused(scene.central("bob", _WHO_AM_I), refusal, scene, narrator)
    hba, number = Path(str(decision["hba_file"])), int(decision["hba_line"] or 0)
    lines = hba.read_text(encoding="utf-8").splitlines()
    if hba.name != "central_hba.conf" or not 0 < number <= len(lines):
        raise Unexpected(f"expected a line of central_hba.conf to refuse it, found {hba}:{number}")
    rule = f"{hba.name}:{number}"
    narrator.output(f"the proxy's log: {decision['reason']}".replace(f"{scene.folder}/", ""))
    narrator.output(f"{rule} reads: {lines[number - 1]}")
    return (
        f"bob's certificate is genuine, but no line maps bob.jones to alice, so {rule} refused; the client "
        "learns a session id, and the proxy's log has the reason under it."
    )


def _in_clear(scene: Scene, narrator: Narrator) -> str:
    _refused(scene.central_in_clear(_WHO_AM_I), "no pg_hba.conf entry for host", scene, narrator)
    return (
        "loopback may ask in clear even at a TLS listener, but central_hba.conf has only hostssl lines: "
        "nothing matches, and the refusal is PostgreSQL's own text."
    )


def _renewal(scene: Scene, narrator: Narrator) -> str:
    command = scene.central("alice", options="-XAt")
    narrator.command(command.shown, note="a session that stays open")
    with scene.psql.open(command) as session:
        before = _ask(session.ask, narrator)
        old = _served_serial(scene)
        narrator.output(f"a new client is shown serial {old:x}")
        renewed = renew(scene.certificates.ca, scene.certificates.proxy.certificate)
        write_pair(scene.folder, "proxy", renewed)
        narrator.command(f"kill -HUP {scene.proxy.pid}", note="proxy.crt and proxy.key are new")
        scene.proxy.reload()
        new = _served_serial(scene)
        narrator.output(f"a new client is shown serial {new:x}")
        after = _ask(session.ask, narrator)
    if new != renewed.certificate.serial_number or new == old:
        raise Unexpected(f"expected serial {renewed.certificate.serial_number:x} after SIGHUP, found {new:x}")
    if not before.isdigit() or after != before:
        raise Unexpected(
            f"expected the open session to answer with the same process, found {before}, {after}"
        )
    return "new clients get the renewed certificate, and the open session still answers, on the same backend."


VISITS: Mapping[str, Visit] = {
    "a": Visit("legacy: a client that cannot do TLS, with its password", _legacy),
    "b": Visit("sidecar: through a Unix socket, by the operating system's word", _sidecar),
    "c": Visit("central: TLS and a client certificate, mapped by pg_ident.conf", _central),
    "d": Visit("central: somebody else's certificate", _stranger),
    "e": Visit("central: sslmode=disable at the TLS listener", _in_clear),
    "f": Visit("central: a renewed certificate, taken on SIGHUP", _renewal),
}
"""All of them, by letter, in their order."""


def _let_in(command: PsqlCommand, scene: Scene, narrator: Narrator) -> dict[str, str]:
    """Run it, and return the one row that it printed, by column."""
    done = _run(command, scene, narrator)
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) < 3:
        raise Unexpected(f"expected one row, found psql's exit status {done.returncode}")
    names, values = ([cell.strip() for cell in line.split("|")] for line in (lines[0], lines[2]))
    return dict(zip(names, values, strict=False))


def _refused(command: PsqlCommand, message: str, scene: Scene, narrator: Narrator) -> Event:
    """Run it, and return what the proxy's log says of the refused session."""
    done = _run(command, scene, narrator)
    session = re.search(r"DETAIL:\s+pgtlsproxy session (\w+)", done.stderr)
    if done.returncode == 0 or message not in done.stderr or session is None:
        raise Unexpected(f"expected a refusal that says: {message}, and the session's id")
    decision = scene.proxy.decision(session[1])
    if decision.get("verdict") != "refused":
        raise Unexpected(f"expected the log to say refused, found {decision.get('verdict')}")
    return decision


def _run(command: PsqlCommand, scene: Scene, narrator: Narrator) -> subprocess.CompletedProcess[str]:
    narrator.command(command.shown)
    done = scene.psql.run(command)
    narrator.output(done.stdout)
    narrator.output(done.stderr)
    return done


def _expect(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise Unexpected(f"expected {name} to be {value}, found {found.get(name)}")


def _ask(ask: Callable[[str], str], narrator: Narrator) -> str:
    narrator.command(_WHICH_BACKEND, prompt=f"{DATABASE}=> ")
    answer = ask(_WHICH_BACKEND)
    narrator.output(answer)
    return answer


def _served_serial(scene: Scene) -> int:
    """The serial number of the certificate that the central listener shows to whoever comes now."""
    with socket.create_connection(("127.0.0.1", scene.proxy.port("central")), _HANDSHAKE_SECONDS) as sock:
        sock.sendall(SSL_REQUEST)
        if (answer := sock.recv(1)) != b"S":
            raise Unexpected(f"expected S for SSLRequest, found {answer!r}")
        leaf = presented_chain(sock, PROXY_NAME, _HANDSHAKE_SECONDS)[0]
    return leaf.serial_number
