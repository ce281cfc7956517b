"""login: passfile: clients prove themselves here, the proxy has their passwords, and a server that does not prove itself gets none."""

import pytest

from fixtures import wire
from fixtures.deployments import config, passthrough, with_tls
from fixtures.postgres import password

HBA = """\
hostssl md5_db all all md5
hostssl clear_db all all password
hostssl trust_db all all trust
hostssl replication all all scram-sha-256
hostssl all all all scram-sha-256
"""


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    found = tls_cluster(17, HBA)
    found.psql("CREATE ROLE old LOGIN")
    found.psql("SET password_encryption = md5; ALTER ROLE old PASSWORD 'old-secret'")
    (
        found.psql("CREATE DATABASE md5_db"),
        found.psql("CREATE DATABASE clear_db"),
        found.psql("CREATE DATABASE trust_db"),
    )
    found.psql("ALTER ROLE app REPLICATION")
    yield found
    found.psql("ALTER ROLE app NOREPLICATION")
    for name in ("md5_db", "clear_db", "trust_db"):
        found.psql(f"DROP DATABASE {name}")
    found.psql("DROP ROLE old")


@pytest.fixture(scope="module")
def running(cluster, shared_proxy, certs):
    passwords = "".join(
        f"localhost:{cluster.port}:*:{user}:{user}-secret\n" for user in ("alice", "old", "app")
    )
    passwords = f"# the users'\nlocalhost:{cluster.port}:alice:bob:wrong\n{passwords}"

    def by_passfile(**more):
        return passthrough(cluster, certs, login="passfile", passfile="passwords") | more

    backends = {
        "strict": by_passfile(),
        "lenient": by_passfile(require_auth="scram-sha-256,md5,password"),
        "trusting": by_passfile(require_auth="none"),
        "negated": by_passfile(require_auth="!md5"),
        "read_only": by_passfile(target_session_attrs="read-write"),
    }
    return shared_proxy(
        config({name: with_tls(certs, backend=name) for name in backends}, **backends),
        {
            "pg_hba.conf": "hostssl all all all cert\nhostssl replication app all cert\n",
            "passwords": passwords,
        },
    )


def connect(psql, certs, port, user="alice", database="alice", **words):
    shown = certs.client(user)
    return psql.run(
        "SELECT current_user", host="localhost", hostaddr="127.0.0.1", port=port, user=user, dbname=database,
        sslmode="verify-full", sslrootcert=certs.ca.crt, sslcert=shown.crt, sslkey=shown.key, **words,
    )  # fmt: skip


LET_IN = [
    ("strict", "alice", "alice"),
    ("lenient", "old", "md5_db"),
    ("lenient", "alice", "md5_db"),
    ("lenient", "alice", "clear_db"),
    ("trusting", "alice", "trust_db"),
    ("read_only", "alice", "alice"),
    ("negated", "alice", "alice"),
]


@pytest.mark.parametrize(("listener", "user", "database"), LET_IN)
def test_whoever_shows_a_certificate_is_logged_in_with_its_password(
    running, certs, each_psql, listener, user, database
):
    done = connect(each_psql, certs, running.port(listener), user, database)
    assert (done.stdout, done.stderr) == (f"{user}\n", "")


def test_the_password_is_bound_to_the_server_s_certificate(running, cluster, certs, psql):
    """PLUS, in the server's own view of its session."""
    since = len(cluster.log_lines)
    assert connect(psql(17), certs, running.port("strict")).stdout == "alice\n"
    assert any('identity="alice" method=scram-sha-256' in line for line in cluster.log_lines[since:])


REFUSED = {
    "a server that asks for MD5": (
        "strict",
        "old",
        "md5_db",
        "asks for md5 authentication, which its require_auth does not allow",
    ),
    "a server that asks in clear": (
        "strict",
        "alice",
        "clear_db",
        "asks for password authentication, which its require_auth does not allow",
    ),
    "a server that does not ask": (
        "strict",
        "alice",
        "trust_db",
        "asks for none authentication, which its require_auth does not allow",
    ),
    "a list of what is not allowed names nothing weaker": (
        "negated",
        "alice",
        "clear_db",
        "asks for password authentication, which its require_auth does not allow",
    ),
    "nor that the server need not ask": (
        "negated",
        "alice",
        "trust_db",
        "asks for none authentication, which its require_auth does not allow",
    ),
    "no line for the user": ("strict", "postgres", "alice", "no line of "),
    "a wrong password": (
        "strict",
        "bob",
        "alice",
        "refused the proxy's own credential: password authentication failed",
    ),
}


@pytest.mark.parametrize(("listener", "user", "database", "why"), REFUSED.values(), ids=REFUSED)
def test_a_login_that_cannot_be_is_the_administrator_s_business(
    running, certs, psql, listener, user, database, why
):
    """57P03 to the client, the reason in the log, and a password in neither."""
    since = running.mark()
    name = f"{user} at {database}"
    done = connect(psql(17), certs, running.port(listener), user, database, application_name=name)
    decided = running.wait_for_event("session_decided", since=since, application_name=name)
    if user == "postgres":  # a reserved user needs a line that names it
        assert decided["decided_by"] == "reserved_users"
        return
    assert "FATAL:  the database system is not available" in done.stderr
    assert (decided["verdict"], decided["sqlstate"]) == ("refused", "57P03")
    assert why in decided["reason"]
    assert "secret" not in str(decided)


def test_a_user_without_a_line_is_refused(running, cluster, certs, psql):
    since = running.mark()
    done = connect(psql(17), certs, running.port("strict"), "bob", "bob", application_name="no line")
    assert "the database system is not available" in done.stderr
    reason = running.wait_for_event("session_decided", since=since, application_name="no line")["reason"]
    assert f"is for localhost:{cluster.port}:bob:bob" in reason


def test_replication_takes_the_line_for_replication(running, certs, psql):
    done = psql(17).run(
        "IDENTIFY_SYSTEM", host="localhost", hostaddr="127.0.0.1", port=running.port("strict"), user="app",
        replication="true", sslmode="verify-full", sslrootcert=certs.ca.crt, sslcert=certs.client("app").crt,
        sslkey=certs.client("app").key,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def fake(backend, certs, fake_backend, proxy, opening, **words):
    """A proxy before a server of ours, that opens so."""

    def script(conversation):
        conversation.accept()
        conversation.send(opening)
        conversation.answer_queries()

    server = fake_backend(script, certs.server)
    settings = {
        "host": "localhost", "hostaddr": "127.0.0.1", "port": server.port, "sslrootcert": certs.ca.crt,
        "login": "passfile", "passfile": "passwords", **words,
    }  # fmt: skip
    files = {"pg_hba.conf": "hostssl all all all cert\n", "passwords": "*:*:*:alice:alice-secret\n"}
    return server, proxy(config({"l": with_tls(certs)}, primary=settings), files)


SALT = b"s=" + b"A" * 22 + b"=="


@pytest.mark.parametrize("opening", [
    wire.authentication(0), wire.authentication(3), wire.authentication(5, b"salt"), wire.authentication(7),
    wire.authentication(9), wire.authentication_sasl("OAUTHBEARER"), wire.authentication(12, b"v=x"),
], ids=["ok", "clear", "md5", "gss", "sspi", "oauth", "final"])  # fmt: skip
def test_no_byte_of_a_password_goes_to_a_server_that_asks_otherwise(
    fake_backend, proxy, certs, psql, opening
):
    server, running = fake(None, certs, fake_backend, proxy, opening)
    done = connect(psql(17), certs, running.port("l"))
    assert "the database system is not available" in done.stderr
    (conversation,) = server.conversations
    assert b"secret" not in conversation.received


def test_a_passfile_that_breaks_leaves_the_old_one_in_service(proxy, cluster, certs, psql):
    backend = passthrough(cluster, certs, login="passfile", passfile="passwords")
    files = {"pg_hba.conf": "hostssl all all all cert\n", "passwords": f"*:*:*:alice:{password('alice')}\n"}
    running = proxy(config({"l": with_tls(certs)}, primary=backend), files)
    port = running.port("l")
    assert connect(psql(17), certs, port).stdout == "alice\n"
    file = running.config.with_name("passwords")
    file.write_text("*:*:alice:hunter2\n")
    failed = running.reload()
    assert failed["event"] == "reload_failed"
    assert "hunter2" not in str(failed)
    assert connect(psql(17), certs, port).stdout == "alice\n"
    file.write_text("*:*:*:alice:other\n")
    assert running.reload()["event"] == "reloaded"
    assert "not available" in connect(psql(17), certs, port).stderr
