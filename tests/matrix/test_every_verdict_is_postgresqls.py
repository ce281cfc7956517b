"""Random files and clients: whom a server lets in by them the proxy lets in, and whom it turns away it turns away.

The same pg_hba.conf and pg_ident.conf lie at a PostgreSQL 17 and at a proxy, and the same clients come to both, most
of them with the right password. Behind the proxy is another server, which asks everybody for it. What the client is
told has to be the same, down to PostgreSQL's words, and of some of them `explain` has to say it, too.
`PGTLSPROXY_VERDICTS` in the environment says how many clients come; with `pytest -s` what they were told is counted.
"""

from __future__ import annotations

import os
import pwd
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from fixtures import wire
from fixtures.certs import common_names
from fixtures.deployments import config, passthrough, with_tls
from fixtures.postgres import password
from fixtures.wire import WireClient
from matrix.attempt import Challenge
from pgtlsproxy.cli import explain_question
from pgtlsproxy.cli.explain_answer import answer

CLIENTS = int(os.environ.get("PGTLSPROXY_VERDICTS", "0")) or 480
CLIENTS_OF_A_FILE = 24
FILES_OF_A_PROXY = 10
"""Behind those a new one goes on: what it has counted of wrong passwords, from so few addresses, would slow them."""
EXPLAINED = 6
"""Of so many clients one is asked about."""
SEED = 20

OWN_USER = pwd.getpwuid(os.geteuid()).pw_name
ROLES_SQL = "CREATE ROLE staff; GRANT staff TO alice; CREATE ROLE shop LOGIN PASSWORD 'shop-secret'; GRANT shop TO bob"
ROLES_FILE = b"staff alice\nshop bob\n"

DATABASES = (
    "alice", "bob,app", "sameuser", "samerole", "replication", "replication,alice", '"all"', "/^a", "/^(alice|bob)$", "absent",
    '"sameuser"', '"samerole"', 'samegroup,"replication"', '"/^(a|b)"', "/", 'a"lic"e', "Alice", "/^ali.e$,staff",
)  # fmt: skip
USERS = (
    "alice", "bob,alice", "+staff", "+shop", '"all"', "/^a", "/e$", "postgres", "absent", "alice,+shop", '"+staff"', '+"staff"',
    "+alice", '"/^a",+shop', "/^$", "ALICE", "+STAFF",
)  # fmt: skip
ADDRESSES = (
    "127.0.0.1/32", "127.0.0.0/8", "127.0.0.2/32", "127.0.0.1 255.255.255.255", "::1/128", "::/0", "0.0.0.0/0", "samehost",
    "samenet", "10.0.0.0/8", "127.0.0.1 255.255.255.254", "0.0.0.0 0.0.0.0", ":: ::", "::ffff:0:0/95", "localhost", '"all"',
)  # fmt: skip
METHODS = ("scram-sha-256", "scram-sha-256", "md5", "reject", "trust")
WITH_CERTIFICATE = (
    "cert", "cert map=people", "cert clientname=DN map=subjects", "cert clientname=DN",
    "scram-sha-256 clientcert=verify-ca", "scram-sha-256 clientcert=verify-full", "trust clientcert=verify-full",
    "trust clientcert=verify-ca", "reject clientcert=verify-ca",
)  # fmt: skip
AT_A_SOCKET = ("scram-sha-256", "reject", "trust", "peer", "peer map=system", "md5")
MAPS = (
    "people alice alice", "people alice bob", "people bob all", "people stranger +staff", "people bob /^a", "people all all",
    'people "alice" "all"', "people ALICE all", "PEOPLE alice bob", "people /^alice$ /^b", 'people "/alice" bob',
    r"people /^(.*)@corp$ \1", r'people /^(.*)@corp$ "x\1"', r'people "/^(.*)@corp$" "\1"', r"people /^(.*)ce@corp$ \1ce",
    r"people /^(.*)$ \1", r"people /^(.*)$ x\1", r"people all \1", r"people /^([+/].*)$ \1", r"people \\1 alice",
    r"people /^(a)lice$ +\1", r"people alice \1", r"people /^al(.*)$ /\\1", r'people /^(.*)$ "+\1"',
    'subjects "CN=alice,OU=eng" alice', r'subjects "/^CN=(.*),OU=eng$" \1', 'subjects "CN=alice" all',
    f"system {OWN_USER} alice", f"system {OWN_USER} +shop", f"system /^{OWN_USER}$ bob",
)  # fmt: skip

SUBJECTS = {
    "alice": common_names("alice"),
    "bob": common_names("bob"),
    "stranger": common_names("stranger"),
    # Names that mean something in a file, and nothing where they were captured.
    "all": common_names("all"),
    "+staff": common_names("+staff"),
    "/^": common_names("/^"),
    "alice@corp": common_names("alice@corp"),
    "alice of eng": x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "eng"),
            x509.NameAttribute(NameOID.COMMON_NAME, "alice"),
        ]
    ),
}


@dataclass(frozen=True, slots=True)
class Client:
    """One who comes.

    Args:
        door: `tls`, `clear` or `socket`.
        family: 4 or 6; nothing to a socket.
        source: an address to come from, or None.
        certificate: of `SUBJECTS`, or None.
        user, database, replication: of the StartupMessage.
        knows_password: whether it answers rightly.
    """

    door: str
    family: int
    source: str | None
    certificate: str | None
    user: str
    database: str
    replication: str | None
    knows_password: bool


def some_files(numbers: random.Random) -> tuple[str, str]:
    """A pg_hba.conf and a pg_ident.conf that both can load."""

    def all_or_one(others: Sequence[str]) -> str:
        return "all" if numbers.random() < 0.55 else numbers.choice(others)

    lines = []
    for _ in range(numbers.randint(2, 12)):
        kind = numbers.choice(("local", "host", "host", "hostssl", "hostssl", "hostssl", "hostnossl"))
        columns = [kind, all_or_one(DATABASES), all_or_one(USERS)]
        if kind == "local":
            columns.append(numbers.choice(AT_A_SOCKET))
        else:
            columns.append(all_or_one(ADDRESSES))
            columns.append(
                numbers.choice(WITH_CERTIFICATE if kind == "hostssl" and numbers.random() < 0.7 else METHODS)
            )
        lines.append(" ".join(columns))
    maps = numbers.sample(MAPS, numbers.randint(0, len(MAPS)))
    # A map that no line of pg_ident.conf has is refused at load: it lets nobody in.
    nobody = [f"{name} nobody-at-all nobody" for name in ("people", "subjects", "system")]
    return "\n".join(lines) + "\n", "\n".join(maps + nobody) + "\n"


def some_client(numbers: random.Random) -> Client:
    door = numbers.choice(("tls", "tls", "tls", "clear", "socket"))
    family = numbers.choice((4, 4, 4, 6))
    user = numbers.choice(("alice", "alice", "bob", "app", "shop", "postgres", "absent"))
    return Client(
        door,
        family,
        "127.0.0.2" if door != "socket" and family == 4 and numbers.random() < 0.3 else None,
        numbers.choice((None, *SUBJECTS)) if door == "tls" else None,
        user,
        numbers.choice((user, "alice", "app", "postgres", "absent")),
        numbers.choice((*[None] * 8, "true", "database")),
        numbers.random() < 0.85,
    )


class Doors:
    """Where clients come to one of the two."""

    def __init__(self, host_ports, socket_path, certificates):
        self._host_ports, self._socket, self._certificates = host_ports, socket_path, certificates

    def verdict(self, client):
        """What a client is told: `let in` and as whom, or the SQLSTATE and the text."""
        address = self._socket if client.door == "socket" else self._host_ports[client.family]
        with WireClient(address, source=client.source) as connection:
            if client.door == "tls":
                assert connection.ask_for_tls() == b"S"
                certificate = client.certificate and self._certificates[client.certificate]
                connection.start_tls(wire.tls_context(certificate=certificate))
            words = {} if client.replication is None else {"replication": client.replication}
            connection.send(wire.startup(user=client.user, database=client.database, **words))
            secret = password(client.user) if client.knows_password else "wrong"
            challenge = Challenge(client.user, secret)
            while (message := connection.read_message()).kind not in {b"E", b"Z"}:
                if message.kind == b"R" and message.code not in {0, 12}:
                    connection.send(challenge.answer(message))
            if message.kind == b"E":
                return message.error
            return "let in", self._who_is_there(connection, client)

    @staticmethod
    def _who_is_there(connection, client):
        if client.replication == "true":
            return client.user
        connection.send(wire.query("SELECT session_user"))
        (row,) = [each for each in connection.read_until(b"Z") if each.kind == b"D"]
        return row.body[6:].decode()


class Both:
    """A server and a proxy with the same files.

    Args:
        server: the server.
        serve: starts a proxy that listens at TCP ports and a socket.
        socket: that socket.
        certificates: those of clients.
    """

    def __init__(self, server, serve, socket, certificates):
        self._server, self._serve, self._running = server, serve, None
        self._socket, self._certificates = socket, certificates
        self._taken = 0
        at_server = {4: ("127.0.0.1", server.port), 6: ("::1", server.port)}
        self.server = Doors(at_server, f"{server.socket_dir}/.s.PGSQL.{server.port}", certificates)
        self.proxy = None

    def take(self, hba, ident):
        files = {"pg_hba.conf": hba, "pg_ident.conf": ident}
        for name, content in files.items():
            self._server.write(name, content)
        since = len(self._server.log_lines)
        self._server.reload()
        assert not [line for line in self._server.log_lines[since:] if "was not reloaded" in line]
        if self._taken % FILES_OF_A_PROXY == 0:
            self._start(files)
        else:
            for name, content in files.items():
                (self._running.config.parent / name).write_text(content)
            event = self._running.reload()
            assert event["event"] == "reloaded", f"{event}\n{hba}\n{ident}"
        self._taken += 1

    def explained(self, client):
        """What `explain` says of a client: what it is told; None where the policy lets it go on."""
        address = {4: client.source or "127.0.0.1", 6: "::1"}[client.family]
        asked = explain_question.Client(
            user=client.user,
            database=client.database,
            address=explain_question.LOCAL if client.door == "socket" else address,
            replication=client.replication,
            os_user=OWN_USER if client.door == "socket" else None,
            tls=client.door == "tls",
            certificate=None if client.certificate else False,
        )
        certificate = client.certificate and str(self._certificates[client.certificate].crt)
        found = answer(str(self._running.config), "central", asked, certificate, connect=False).explanation
        assert found.allowed is not None, found.reason
        return None if found.allowed else (found.sqlstate, found.reply)

    def _start(self, files):
        if self._running is not None:
            assert self._running.stop() == 0
        self._running = self._serve(files)
        at_proxy = {}
        for address in self._running.addresses("central"):
            host, _, port = address.rpartition(":")
            if not address.startswith("unix:"):
                at_proxy[6 if "[" in host else 4] = (host.strip("[]"), int(port))
        self.proxy = Doors(at_proxy, self._socket, self._certificates)


@pytest.fixture
def both(own_cluster, certs, proxy):
    server = own_cluster(17, settings={"listen_addresses": "127.0.0.1,::1"})
    behind = own_cluster(17)
    for each in (server, behind):
        each.psql(ROLES_SQL)
    with tempfile.TemporaryDirectory(prefix="verdicts-") as sockets:  # a socket's path has 107 bytes at most
        Path(sockets).chmod(0o755)
        listen = ["127.0.0.1:0", "[::1]:0", f"unix:{sockets}:5432"]
        central = with_tls(certs, listen=listen, ident_file="pg_ident.conf", roles_file="roles")
        certificates = {name: certs.ca.issue(subject, usage="client") for name, subject in SUBJECTS.items()}
        yield Both(
            server,
            lambda files: proxy(
                config({"central": central}, primary=passthrough(behind, certs)),
                files | {"roles": ROLES_FILE},
            ),
            f"{sockets}/.s.PGSQL.5432",
            certificates,
        )


WORKED = {"let in", "3D000", "42501"}
"""What a server says behind a login that has worked: there is no such database, or no such right."""


def expected(at_server, client):
    """What the proxy has to say: the same. But for its server everybody has to know the password."""
    is_in = at_server[0] in WORKED or at_server[1] == f'role "{client.user}" does not exist'
    if is_in and not (client.knows_password and client.user != "absent"):
        return "28P01", f'password authentication failed for user "{client.user}"'
    return at_server


def test_every_verdict_is_postgresqls(both):
    numbers = random.Random(SEED)
    told = Counter()
    for file in range(CLIENTS // CLIENTS_OF_A_FILE):
        hba, ident = some_files(numbers)
        both.take(hba, ident)
        clients = [some_client(numbers) for _ in range(CLIENTS_OF_A_FILE)]
        for client in clients:
            at_server = both.server.verdict(client)
            at_proxy = both.proxy.verdict(client)
            where = f"file {file}:\n{hba}\n{ident}\n{client}: {at_server}"
            if client.user == "absent" and ("samerole" in hba or "samegroup" in hba):
                # Here a user is a member of itself, known as a role or not: other words, but no way in.
                assert "let in" not in {at_proxy[0], at_server[0]}, where
            else:
                assert at_proxy == expected(at_server, client), where
            if client in clients[::EXPLAINED]:
                explained = both.explained(client)
                may_be_servers = at_proxy[0] in {*WORKED, "28P01"} or at_proxy[1].startswith("role ")
                assert explained == at_proxy or (explained is None and may_be_servers), where
            told[at_server[0] if at_server[0] == "let in" else f"{at_server[0]} {at_server[1]}"] += 1
    lines = [f"{count:6} {verdict}" for verdict, count in told.most_common(20)]
    sys.stdout.write("\n".join(["", f"{sum(told.values())} clients:", *lines, ""]))
    assert told["let in"] > CLIENTS // 20
    assert len(told) > 10
