"""The table's cells as one proxy with many listeners, one real server, and one fake."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixtures import wire
from fixtures.addresses import address_beyond_loopback
from fixtures.certs import Certs, Issued
from fixtures.deployments import config, in_clear, passthrough, with_certificate, with_tls
from fixtures.fake_backend import Conversation
from fixtures.postgres import password
from fixtures.proxy import RunningProxy
from fixtures.scram_secrets import secrets_file
from matrix.attempt import attempt, md5_answer
from matrix.table import (
    ANOTHER,
    USER,
    Backend,
    Cell,
    Listener,
    Login,
    Method,
    Secret,
    Shown,
    hba_line,
)
from pgtlsproxy.demo.postgres import Cluster

DATABASES = {
    Backend.SCRAM: "alice",
    Backend.TRUST: "bob",
    Backend.CERT_MAP: "app",
    Backend.PEER: "alice",
    Backend.IMPOSTOR: "alice",
}
"""The database decides what the one real server does with a session of the proxy's."""

SERVER_HBA = """\
hostssl alice all all scram-sha-256
hostssl bob all all trust
hostssl app all all cert map=proxy
local alice all peer map=proxy
"""

WRONG = "not-the-password"
OWN_UID = pwd.getpwuid(os.geteuid()).pw_name
SERVER_IDENT = "".join(
    f"proxy {name} {user}\n" for name in ("pgtlsproxy", OWN_UID) for user in (USER, ANOTHER)
)
PROXY_IDENT = f"people {USER}.smith {USER}\npeople {ANOTHER}.smith {ANOTHER}\npeople {OWN_UID} {USER}\n"


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the backends are.

    Args:
        cluster: the real one.
        fake_port: the fake's.
        sockets: a folder for the proxy's Unix sockets.
    """

    cluster: Cluster
    fake_port: int
    sockets: Path


def listener_name(cell: Cell) -> str:
    """The listener that a cell's client comes to; cells that differ in the client only share it."""
    return "-".join((cell.login.name, cell.method.name, cell.listener.name, _place(cell.backend))).lower()


def _backend_name(cell: Cell) -> str:
    return f"{cell.login.name}-{_place(cell.backend)}".lower()


def _place(backend: Backend) -> str:
    """What is dialled; backends that differ in the database only share it."""
    if backend.is_fake:
        return "FAKE"
    return "SERVER" if backend in {Backend.SCRAM, Backend.TRUST} else backend.name


def configuration(
    cells: Iterable[Cell], certs: Certs, servers: Servers
) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration with every listener and backend of these cells, and its files by name."""
    listeners: dict[str, Any] = {}
    backends: dict[str, Any] = {}
    files = {"pg_ident.conf": PROXY_IDENT, "secrets.txt": secrets_file(servers.cluster)}
    files["passwords"] = "".join(f"*:*:*:{user}:{password(user)}\n" for user in (USER, ANOTHER))
    for cell in cells:
        name = listener_name(cell)
        if name not in listeners:
            files[f"{name}.hba"] = hba_line(cell.method, cell.listener) + "\n"
            words = {"hba_file": f"{name}.hba", "ident_file": "pg_ident.conf", "backend": _backend_name(cell)}
            if cell.login in {Login.CERTIFICATE_VERIFIERS, Login.PASSFILE}:
                words["scram_secrets_file"] = "secrets.txt"
            listeners[name] = _listener(cell.listener, certs, servers, len(listeners)) | words
            backends[_backend_name(cell)] = _backend(cell, certs, servers)
    return config(listeners, **backends), files


def _listener(listener: Listener, certs: Certs, servers: Servers, number: int) -> dict[str, Any]:
    match listener:
        case Listener.TLS:
            return with_tls(certs)
        case Listener.CLEAR:
            return in_clear()
        case Listener.UNIX:
            return in_clear(listen=[f"unix:{servers.sockets}:{1 + number}"])
    afar = address_beyond_loopback()
    if listener is Listener.AFAR:
        return with_tls(certs, listen=[f"{afar}:0"])
    return in_clear(listen=[f"{afar}:0"], plaintext_from=[f"{afar}/32"])


def _backend(cell: Cell, certs: Certs, servers: Servers) -> dict[str, Any]:
    words: dict[str, Any] = {"login": "passthrough" if cell.login.is_passthrough else "certificate"}
    if cell.login is Login.PASSFILE:
        words = {"login": "passfile", "passfile": "passwords"}
    if cell.login is Login.PASSTHROUGH_OR_NONE:
        words["require_auth"] = "scram-sha-256,none"
    if cell.backend.is_unix:
        owner = pwd.getpwuid(servers.cluster.socket_dir.stat().st_uid).pw_name
        # PostgreSQL never runs as root.
        words["requirepeer"] = "root" if cell.backend is Backend.IMPOSTOR else owner
        return {"host": str(servers.cluster.socket_dir), "port": servers.cluster.port, **words}
    if cell.backend.is_fake:
        words["port"] = servers.fake_port
    by_certificate = {Login.CERTIFICATE, Login.CERTIFICATE_VERIFIERS}
    shows_certificate = cell.login in by_certificate or cell.backend is Backend.CERT_MAP
    make = with_certificate if shows_certificate else passthrough
    return make(servers.cluster, certs, **words)


def addresses(running: RunningProxy) -> dict[str, str]:
    """Where each listener listens."""
    return {event["listener"]: event["address"] for event in running.log_events("listening")}


def observe(cell: Cell, where: str, certs: Certs) -> str:
    """Be the cell's client at this address. Returns the verdict's text, or what came instead of any."""
    host, _, port = where.rpartition(":")
    # A uid cannot be chosen: there "another's" is a session for another user.
    is_other = cell.listener is Listener.UNIX and cell.shown is Shown.ANOTHERS
    user = ANOTHER if is_other else USER
    return attempt(
        where.removeprefix("unix:") if cell.listener is Listener.UNIX else (host, int(port)),
        user=user,
        database=DATABASES.get(cell.backend, cell.backend.name),
        tls=cell.listener is Listener.TLS,
        certificate=_certificate(cell, certs) if cell.listener is Listener.TLS else None,
        secret={Secret.RIGHT: password(user), Secret.WRONG: WRONG, Secret.NONE: None}[cell.secret],
    )


def _certificate(cell: Cell, certs: Certs) -> Issued | None:
    suffix = ".smith" if cell.method is Method.CERT_MAP else ""
    match cell.shown:
        case Shown.NOTHING:
            return None
        case Shown.OWN:
            return certs.client(USER + suffix)
        case Shown.ANOTHERS:
            return certs.client(ANOTHER + suffix)
    return certs.other_ca.client(USER + suffix)


def fake(conversation: Conversation) -> None:
    """A server that does with each session what the database's name says: one of the table's fakes."""
    startup = conversation.accept()
    user, backend = startup["user"], Backend[startup["database"]]
    if backend is Backend.FAKE_OK:
        conversation.let_in()
    else:
        conversation.send(OPENINGS[backend])
        answer = conversation.read_message().body
        if backend is not Backend.FAKE_HALF_SCRAM and not _is_right(backend, user, answer):
            conversation.send(wire.error_response("28P01", f'password authentication failed for "{user}"'))
            return
        conversation.let_in()
    conversation.answer_queries()


_SALT = b"salt"

OPENINGS: Mapping[Backend, bytes] = {
    Backend.FAKE_CLEARTEXT: wire.authentication(3),
    Backend.FAKE_MD5: wire.authentication(5, _SALT),
    Backend.FAKE_GSS: wire.authentication(7),
    Backend.FAKE_GSS_CONTINUE: wire.authentication(8, b"token"),
    Backend.FAKE_SSPI: wire.authentication(9),
    Backend.FAKE_OAUTH: wire.authentication_sasl("OAUTHBEARER"),
    Backend.FAKE_HALF_SCRAM: wire.authentication_sasl("SCRAM-SHA-256"),
    Backend.FAKE_SASL_FINAL: wire.authentication(12, b"v=" + b"A" * 43 + b"="),
}


def _is_right(backend: Backend, user: str, answer: bytes) -> bool:
    if backend is Backend.FAKE_MD5:
        return answer == wire.string(md5_answer(user, password(user), _SALT))
    return password(user).encode() in answer
