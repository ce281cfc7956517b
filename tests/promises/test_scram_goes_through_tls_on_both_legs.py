"""With the users' verifiers, every client logs in with its password, whatever its channel_binding, and the backend decides."""

from datetime import UTC, datetime, timedelta

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough, with_tls
from fixtures.drivers import DRIVERS, Target
from fixtures.postgres import ROLES, password
from fixtures.scram_secrets import secrets_file
from fixtures.scram_servers import end_point
from fixtures.shared_proxy import refusal_of
from fixtures.wire import WireClient

HBA = "host all all all trust\n"
NO_TLS = "channel binding required, but SSL not in use"

SETUP = (
    "CREATE ROLE nologin PASSWORD 'nologin-secret'; "
    "CREATE ROLE expired LOGIN PASSWORD 'expired-secret' VALID UNTIL '2001-01-01'; "
    "CREATE ROLE stale LOGIN PASSWORD 'stale-secret'; "
    "CREATE ROLE md5_only LOGIN PASSWORD 'md5d6fd467a8f48b6603f515e403372de6f'"
)


@pytest.fixture(scope="module", params=[15, 17])
def cluster(request, tls_cluster):
    """With `md5` lines, so that a role with an MD5 secret is asked for it."""
    found = tls_cluster(
        request.param,
        "hostssl all md5_only all md5\nhostssl all all all scram-sha-256\nlocal all all scram-sha-256\n",
    )
    found.psql(SETUP)
    yield found
    found.psql("DROP ROLE nologin, expired, stale, md5_only")


@pytest.fixture(scope="module")
def running(cluster, shared_proxy, certs):
    other = certs.ca.server("localhost")
    secrets = secrets_file(cluster, *ROLES, "nologin", "expired", "stale")
    listeners = {
        f"{leg}-{server}": listener | {"backend": server, "scram_secrets_file": "secrets.txt"}
        for server in ("TLS", "socket")
        for leg, listener in {
            "clear": in_clear(),
            "other_leaf": with_tls(certs, other),
            "same_leaf": with_tls(certs, certs.server),
        }.items()
    }
    listeners["demanding"] = with_tls(
        certs, other, backend="TLS", hba_file="demanding.conf", scram_secrets_file="secrets.txt"
    )
    listeners["two_factors"] = with_tls(
        certs, other, backend="TLS", hba_file="two.conf", scram_secrets_file="secrets.txt"
    )
    backends = {
        "TLS": passthrough(cluster, certs),
        "socket": {"host": cluster.socket_dir, "port": cluster.port, "login": "passthrough"},
    }
    files = {
        "pg_hba.conf": HBA,
        "demanding.conf": "hostssl all all all scram-sha-256\n",
        "two.conf": "hostssl all all all scram-sha-256 clientcert=verify-full\n",
        "secrets.txt": secrets,
    }
    running = shared_proxy(config(listeners, **backends), files)
    cluster.psql("ALTER ROLE stale PASSWORD 'another secret'")
    return running


def connect(psql, certs, port, user="alice", secret=None, **words):
    encryption = {"sslmode": "verify-full", "sslrootcert": certs.ca.crt}
    return psql.run(
        "SELECT current_user", host="localhost", hostaddr="127.0.0.1", port=port, user=user, dbname="alice",
        password=secret or password(user), **(encryption | words),
    )  # fmt: skip


@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
@pytest.mark.parametrize("server", ["TLS", "socket"])
@pytest.mark.parametrize("leg", ["clear", "other_leaf", "same_leaf"])
def test_psql_logs_in_with_every_channel_binding(running, certs, each_psql, leg, server, binding):
    mode = {"sslmode": "disable"} if leg == "clear" else {}
    done = connect(each_psql, certs, running.port(f"{leg}-{server}"), channel_binding=binding, **mode)
    if leg == "clear" and binding == "require":
        assert NO_TLS in done.stderr
    else:
        assert (done.stdout, done.stderr) == ("alice\n", "")


@pytest.mark.parametrize("listener", ["demanding", "two_factors"])
def test_a_line_that_demands_scram_is_met(running, certs, each_psql, listener):
    proof = {"sslcert": certs.client("alice").crt, "sslkey": certs.client("alice").key}
    done = connect(each_psql, certs, running.port(listener), channel_binding="require", **proof)
    assert (done.stdout, done.stderr) == ("alice\n", "")


def test_the_certificate_alone_is_not_enough_nor_the_password(running, certs, each_psql):
    other = {"sslcert": certs.client("bob").crt, "sslkey": certs.client("bob").key}
    for proof in ({}, other):
        assert connect(each_psql, certs, running.port("two_factors"), **proof).returncode == 2
    own = {"sslcert": certs.client("alice").crt, "sslkey": certs.client("alice").key}
    done = connect(each_psql, certs, running.port("two_factors"), secret="wrong", **own)
    assert 'FATAL:  password authentication failed for user "alice"' in done.stderr


@pytest.mark.parametrize("leg", ["clear", "other_leaf"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_logs_in(running, certs, driver, leg):
    target = Target(
        port=running.port(f"{leg}-TLS"), user="bob", database="bob", password=password("bob"),
        ca=None if leg == "clear" else certs.ca.crt, application_name=driver,
    )  # fmt: skip
    with DRIVERS[driver](target) as connection:
        assert connection.rows("SELECT current_user") == [("bob",)]


REFUSED = {
    "a wrong password": ("alice", "wrong", 'password authentication failed for user "alice"', "28P01", "does not fit the client's proof"),
    "nobody of that name": ("nobody", "x", 'password authentication failed for user "nobody"', "28P01", "has no line for the user"),
    "a role that may not log in": ("nologin", "nologin-secret", 'role "nologin" is not permitted to log in', "28000", None),
    "a password that has expired": ("expired", "expired-secret", 'password authentication failed for user "expired"', "28P01", None),
    "the old password": ("stale", "stale-secret", 'password authentication failed for user "stale"', "28P01", "is stale"),
}  # fmt: skip


@pytest.mark.parametrize(("user", "secret", "said", "sqlstate", "why"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("leg", ["other_leaf", "same_leaf", "clear"])
def test_the_backend_refuses_in_its_own_words(
    running, certs, each_psql, cluster, leg, user, secret, said, sqlstate, why
):
    mode = {"sslmode": "disable"} if leg == "clear" else {}
    since, heard = running.mark(), len(cluster.log_lines)
    name = f"{leg} {user} {secret}"
    done = connect(each_psql, certs, running.port(f"{leg}-TLS"), user, secret, application_name=name, **mode)
    assert done.returncode == 2
    assert done.stderr.endswith(f"FATAL:  {said}\n")
    decided = running.wait_for_event("session_decided", since=since, application_name=name)
    assert (decided["kind"], decided["sqlstate"]) == ("backend_refused", sqlstate)
    cluster.wait_for_log(said, since=heard)
    if why is not None and leg == "other_leaf":
        assert why in decided["reason"]
        assert "secrets.txt" in decided["reason"]


def test_a_new_password_needs_a_new_verifier_where_it_has_to_be_bridged(running, certs, each_psql):
    done = connect(each_psql, certs, running.port("other_leaf-TLS"), "stale", "another secret")
    assert done.stderr.endswith('FATAL:  password authentication failed for user "stale"\n')
    for leg, mode in {"same_leaf": {}, "clear": {"sslmode": "disable"}}.items():
        done = connect(each_psql, certs, running.port(f"{leg}-TLS"), "stale", "another secret", **mode)
        assert (done.stdout, done.stderr) == ("stale\n", "")


def test_a_role_whose_secret_is_md5_is_asked_as_the_backend_asks(running, certs, each_psql):
    done = connect(each_psql, certs, running.port("other_leaf-TLS"), "md5_only", "md5_only-secret")
    assert (done.stdout, done.stderr) == ("md5_only\n", "")


def open_exchange(running, listener, user, *, tls):
    client = WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source())
    if tls:
        assert client.ask_for_tls() == b"S"
        client.start_tls()
    client.send(wire.startup(user=user, database="alice"))
    return client, client.read_message()


OFFERED = {
    "clear": ["SCRAM-SHA-256"],
    "other_leaf": ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"],
    "same_leaf": ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"],
}


@pytest.mark.parametrize("server", ["TLS", "socket"])
@pytest.mark.parametrize("leg", OFFERED)
@pytest.mark.parametrize("user", ["alice", "stale", "expired", "nobody_knows_her"])
def test_what_is_offered_does_not_depend_on_the_user(running, leg, server, user):
    client, opening = open_exchange(running, f"{leg}-{server}", user, tls=leg != "clear")
    with client:
        assert opening.body[4:].decode().split("\0")[:-2] == OFFERED[leg]


@pytest.mark.parametrize("flag", ["p", "n"])
@pytest.mark.parametrize("user", ["alice", "stale", "expired", "nologin", "nobody_knows_her"])
def test_a_wrong_proof_takes_the_same_road_for_everybody(running, certs, user, flag):
    """Message by message, by their types and lengths; the name is all that differs."""
    client, opening = open_exchange(running, "other_leaf-TLS", user, tls=True)
    with client:
        header = b"p=tls-server-end-point,," if flag == "p" else b"n,,"
        bound = end_point(certs.ca.server("localhost")) if flag == "p" else b""
        challenge = wire.begin_scram(client, flag=header, opening=opening, end_point=bound)
        assert (len(challenge.server_first), challenge.asked["i"]) == (84, "4096")
        client.send(wire.message(b"p", challenge.final()))
        refused = client.read_message()
        assert refused.kind == b"E"
        assert refused.fields["C"] == "28P01"
        assert refused.fields["M"] == f'password authentication failed for user "{user}"'
        assert client.read_to_end() == b""


def test_whoever_thinks_that_binding_was_not_offered_is_refused(running):
    client, _ = open_exchange(running, "other_leaf-TLS", "alice", tls=True)
    with client:
        client.send(wire.sasl_initial_response("SCRAM-SHA-256", b"y,,n=,r=abc"))
        refused = client.read_message()
    assert (refused.fields["C"], refused.fields["M"]) == ("28000", "SCRAM channel binding negotiation error")
    assert refusal_of(running, client)["kind"] == "channel_binding"


def test_whoever_saw_another_certificate_is_refused(running):
    client, opening = open_exchange(running, "other_leaf-TLS", "alice", tls=True)
    with client:
        challenge = wire.begin_scram(
            client, flag=b"p=tls-server-end-point,,", opening=opening, end_point=bytes(32)
        )
        client.send(wire.message(b"p", challenge.final()))
        refused = client.read_message()
    assert (refused.fields["C"], refused.fields["M"]) == ("28000", "SCRAM channel binding check failed")


def test_a_client_may_leave_its_first_message_for_later(running):
    """SASLInitialResponse without a response: an empty challenge asks for it."""
    client, _ = open_exchange(running, "other_leaf-TLS", "alice", tls=True)
    with client:
        client.send(wire.message(b"p", b"SCRAM-SHA-256-PLUS\0\xff\xff\xff\xff"))
        asked = client.read_message()
        assert (asked.code, asked.body[4:]) == (11, b"")
        client.send(wire.message(b"p", b"p=tls-server-end-point,,n=,r=abc"))
        assert wire.scram_attributes(client.read_message().body[4:])["r"].startswith("abc")


def test_a_verifier_that_is_renewed_is_taken_with_the_next_reload(proxy, own_cluster, certs, each_psql):
    cluster = own_cluster(17)
    listener = with_tls(certs, certs.ca.server("localhost"), scram_secrets_file="secrets.txt")
    running = proxy(
        config({"l": listener}, primary=passthrough(cluster, certs)),
        {"pg_hba.conf": HBA, "secrets.txt": secrets_file(cluster)},
    )
    port = running.port("l")
    cluster.psql("ALTER ROLE alice PASSWORD 'renewed'")
    assert connect(each_psql, certs, port, secret="renewed").returncode == 2
    secrets = running.config.with_name("secrets.txt")
    soon, past = (datetime.now(UTC) + timedelta(hours=each) for each in (1, -1))
    secrets.write_text(secrets_file(cluster, "alice").strip() + f' "{soon}"\n')
    assert running.reload()["event"] == "reloaded"
    assert connect(each_psql, certs, port, secret="renewed").stdout == "alice\n"
    assert connect(each_psql, certs, port, secret=password("alice")).returncode == 2
    secrets.write_text(secrets_file(cluster, "alice").strip() + f' "{past}"\n')
    assert running.reload()["event"] == "reloaded"
    assert "password authentication failed" in connect(each_psql, certs, port, secret="renewed").stderr
    secrets.write_text('"alice" "not a verifier"\n')
    failed = running.reload()
    assert failed["event"] == "reload_failed"
    assert "not a verifier" not in str(failed)
