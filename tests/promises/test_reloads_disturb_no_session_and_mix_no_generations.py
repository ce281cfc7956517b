"""Reloads, good and bad in turn and of every kind of file: no session notices, and each is under one generation.

`PGTLSPROXY_RELOADS=50` in the environment makes it that many reloads and 64 sessions in transactions; with
`pytest -s` what was seen is printed.
"""

import itertools
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest
from cryptography import x509

from fixtures import wire
from fixtures.certs import common_names
from fixtures.crls import crl
from fixtures.deployments import config, in_clear, passthrough, with_certificate, with_tls
from fixtures.postgres import ROLES, password
from fixtures.scram_secrets import secrets_file

ASKED_FOR = int(os.environ.get("PGTLSPROXY_RELOADS", "0"))
RELOADS = ASKED_FOR or 26
SESSIONS = 64 if ASKED_FOR else 8
THREADS = 4
WRITES_AT_LEAST = 3
"""Rows that every session has written in its transaction, however fast the reloads are."""

SERVER_HBA = "hostssl all bob all scram-sha-256\nhostssl all all all cert map=pgtlsproxy\n"
SERVER_IDENT = "".join(f"pgtlsproxy pgtlsproxy {role}\n" for role in ROLES)
NONSENSE = "a b\nb a\n"
"""Roles that are members of each other, and no line of anything else."""

TLS_FILES = {
    "ssl_cert_file": "server.crt",
    "ssl_key_file": "server.key",
    "ssl_ca_file": "ca.crt",
    "ssl_crl_file": "ca.crl",
    "ident_file": "pg_ident.conf",
    "roles_file": "roles.conf",
}


class Files:
    """What the files hold that are good, each time something else, and that are not."""

    def __init__(self, certs, cluster):
        self._certs = certs
        self._numbers = itertools.count()
        self._secrets = secrets_file(cluster)
        self.settings = None
        self.serial = None
        """Of the listener's certificate that is good."""

    def good(self, kind):
        return getattr(self, f"_{kind}")()

    def bad(self, kind):
        good = self.good(kind) if kind != "key" else {"server.key": b""}
        name = min(good, key=lambda name: not name.endswith(("crt", "yaml")))
        return {name: NONSENSE if kind != "yaml" else "listeners: ["}

    def _comment(self):
        return f"# {next(self._numbers)}\n"

    def _certificate(self):
        issued = self._certs.ca.issue(common_names("localhost"), names=("localhost", "127.0.0.1"))
        self.serial = issued.certificate.serial_number
        return {"server.crt": issued.crt.read_bytes(), "server.key": issued.key.read_bytes()}

    _key = _certificate

    def _ca(self):
        return {"ca.crt": self._certs.ca.crt.read_bytes() + self._comment().encode()}

    def _crl(self):
        return {"ca.crl": crl(self._certs.ca, [next(self._numbers) + 1])}

    def _hba(self):
        return {"pg_hba.conf": f"{self._comment()}include more.conf\nhostssl all +staff all cert map=m\n"}

    def _included(self):
        return {"more.conf": f"host all nobody{next(self._numbers)} all reject\n"}

    def _ident(self):
        return {"pg_ident.conf": f"{self._comment()}m alice alice\n"}

    def _roles(self):
        return {"roles.conf": f"{self._comment()}staff alice\n"}

    def _secrets_of_users(self):
        return {"secrets.txt": self._comment() + self._secrets}

    def _passfile(self):
        return {"passwords.txt": f"{self._comment()}*:*:*:bob:{password('bob')}\n"}

    def _backend_ca(self):
        return {"backend_ca.crt": self._certs.ca.crt.read_bytes() + self._comment().encode()}

    def _backend_certificate(self):
        issued = self._certs.ca.issue(common_names("pgtlsproxy"), usage="client")
        return {"backend.crt": issued.crt.read_bytes(), "backend.key": issued.key.read_bytes()}

    def _yaml(self):
        return {"pgtlsproxy.yaml": self.settings + self._comment()}


KINDS = (
    "certificate", "key", "ca", "crl", "hba", "included", "ident", "roles", "secrets_of_users", "passfile", "yaml",
    "backend_ca", "backend_certificate",
)  # fmt: skip


@pytest.fixture
def start(proxy, certs, own_cluster):
    def go(workers):
        cluster = own_cluster(17, SERVER_HBA, ident=SERVER_IDENT)
        files = Files(certs, cluster)
        listeners = {
            "tls": with_tls(certs, **TLS_FILES),
            "passwords": in_clear(
                hba_file="passwords.conf", scram_secrets_file="secrets.txt", backend="passwords"
            ),
        }
        backends = {
            "primary": with_certificate(
                cluster, certs, sslrootcert="backend_ca.crt", sslcert="backend.crt", sslkey="backend.key"
            ),
            "passwords": passthrough(cluster, certs, login="passfile", passfile="passwords.txt"),
        }
        contents = {"passwords.conf": "host all bob all scram-sha-256\n"}
        for kind in KINDS:
            if kind != "yaml":
                contents |= files.good(kind)
        running = proxy(config(listeners, **backends) | {"workers": workers}, contents)
        files.settings = running.config.read_text()
        running.wait_for_event("ready")
        return running, files

    return go


def target(running, certs, listener):
    words = {
        "host": "localhost",
        "hostaddr": "127.0.0.1",
        "port": running.port(listener),
        "dbname": "postgres",
    }
    if listener == "passwords":
        return words | {"user": "bob", "password": password("bob"), "sslmode": "disable"}
    shown = certs.client("alice")
    return words | {
        "user": "alice",
        "sslmode": "verify-full",
        "sslrootcert": str(certs.ca.crt),
        "sslcert": str(shown.crt),
        "sslkey": str(shown.key),
    }


class Transaction:
    """A session in one transaction, which writes down what it does."""

    def __init__(self, words):
        self._connection = psycopg.connect(**words)
        self._connection.execute("CREATE TEMP TABLE kept (number int) ON COMMIT PRESERVE ROWS")
        self.written = 0

    def write(self):
        (number,) = self._connection.execute(
            "INSERT INTO kept VALUES (%s) RETURNING number", (self.written,)
        ).fetchone()
        assert number == self.written
        self.written += 1

    def end(self):
        self._connection.commit()
        found = self._connection.execute("SELECT count(*), coalesce(sum(number), 0) FROM kept").fetchone()
        self._connection.close()
        assert found == (self.written, self.written * (self.written - 1) // 2)


class Newcomers:
    """Sessions that come and go all the time.

    Attributes:
        seen: of each where it came from, between which generations, and the certificate that it was shown.
    """

    def __init__(self, running, certs):
        self._running = running
        self._context = wire.tls_context(certificate=certs.client("alice"))
        self._words = target(running, certs, "passwords")
        self.generation = 1
        self.seen = []
        self.with_passwords = 0

    def come_with_a_certificate(self):
        before = self.generation
        with wire.WireClient(("127.0.0.1", self._running.port("tls"))) as client:
            assert client.ask_for_tls() == b"S"
            client.start_tls(self._context)
            client.send(wire.startup(user="alice", database="postgres"))
            client.read_until(b"Z")
            client.send(wire.query("SELECT 1"))
            assert any(message.kind == b"D" for message in client.read_until(b"Z"))
            shown = x509.load_der_x509_certificate(client.tls.getpeercert(binary_form=True))
            client.send(wire.TERMINATE)
            client.read_to_end()
        self.seen.append((client.where, before, self.generation, shown.serial_number))

    def come_with_a_password(self):
        with psycopg.connect(**self._words) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        self.with_passwords += 1


def again_and_again(action, is_over):
    while not is_over.is_set():
        action()


def write_down(transactions, is_over):
    while not is_over.is_set() or transactions[0].written < WRITES_AT_LEAST:
        for transaction in transactions:
            transaction.write()
    for transaction in transactions:
        transaction.end()


def put(running, contents):
    for name, content in contents.items():
        path = running.config.parent / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("workers", [1, 2])
def test_sessions_go_on_and_new_ones_come_under_one_generation_each(start, certs, workers):
    running, files = start(workers)
    served = {1: files.serial}
    is_over = threading.Event()
    newcomers = Newcomers(running, certs)
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        stack.callback(is_over.set)
        transactions = [
            Transaction(target(running, certs, listener))
            for _ in range(SESSIONS // 2)
            for listener in ("tls", "passwords")
        ]
        going = [pool.submit(write_down, transactions[number::THREADS], is_over) for number in range(THREADS)]
        going += [
            pool.submit(again_and_again, newcomers.come_with_a_certificate, is_over),
            pool.submit(again_and_again, newcomers.come_with_a_password, is_over),
        ]
        kinds = itertools.cycle(KINDS)
        for number in range(RELOADS // 2):
            kind = next(kinds)
            serial = files.serial
            put(running, files.bad(kind))
            assert reload(running, newcomers)["event"] == "reload_failed", kind
            served[newcomers.generation] = serial
            put(running, files.good(kind))
            assert reload(running, newcomers)["event"] == "reloaded", kind
            served[newcomers.generation] = files.serial
            assert newcomers.generation == 2 * number + 3
            assert not any(each.done() for each in going), [each.exception() for each in going if each.done()]
        is_over.set()
        for each in going:
            each.result()
    assert running.stop() == 0
    decided = {
        (event["client_addr"], event["client_port"]): event for event in running.log_events("session_decided")
    }
    for where, before, after, shown in newcomers.seen:
        generation = decided[where["client_addr"], where["client_port"]]["generation"]
        assert before <= generation <= after + 1
        assert served[generation] == shown, "the certificate of another generation"
    ended = running.log_events("session_ended")
    sessions = SESSIONS + len(newcomers.seen) + newcomers.with_passwords
    assert Counter(event["verdict"] for event in running.log_events("session_decided")) == {
        "allowed": sessions
    }
    assert Counter(event["kind"] for event in ended) == {"ok": sessions}
    print(  # noqa: T201 - the record of a campaign
        f"{workers} workers, {newcomers.generation - 1} reloads: {SESSIONS} sessions in transactions of "
        f"{min(each.written for each in transactions)} to {max(each.written for each in transactions)} rows, "
        f"{len(newcomers.seen)} new ones by certificate and {newcomers.with_passwords} by password; none lost"
    )


def reload(running, newcomers):
    event = running.reload(timeout=wire.PATIENCE)
    newcomers.generation = event["generation"]
    return event
