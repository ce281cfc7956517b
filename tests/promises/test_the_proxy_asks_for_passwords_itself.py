"""With login: certificate nobody else asks the client: the proxy is the SCRAM server, and tells nobody who exists."""

import signal

import pytest

from fixtures import wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    in_clear,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.drivers import DRIVERS, Target
from fixtures.postgres import password
from fixtures.scram_secrets import secrets_file
from fixtures.scram_servers import end_point
from fixtures.shared_proxy import refusal_of
from fixtures.wire import WireClient
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.keys import Verifier

FILES = {
    "pg_hba.conf": "host all all all scram-sha-256\n",
    "password.conf": "host all all all password\n",
    "two.conf": "hostssl all all all scram-sha-256 clientcert=verify-full\n",
}


@pytest.fixture(scope="module")
def cluster(tls_cluster):
    return tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


@pytest.fixture(scope="module")
def asking(tls_cluster):
    """A server that asks for passwords itself."""
    return tls_cluster(17)


def secrets(cluster):
    """Everybody's; bob's has expired."""
    listed = secrets_file(cluster)
    return "".join(
        line + (' "2001-01-01 00:00:00+00"\n' if line.startswith('"bob"') else "\n")
        for line in listed.splitlines()
    )


@pytest.fixture(scope="module")
def running(cluster, asking, shared_proxy, certs):
    files = {"scram_secrets_file": "secrets.txt"}
    by_password = {"hba_file": "password.conf"}
    return shared_proxy(
        config(
            {
                "tls": with_tls(certs, **files),
                "clear": in_clear(**files),
                "two_factors": with_tls(certs, **files, hba_file="two.conf"),
                "password": with_tls(certs, **files, **by_password),
                "password_clear": in_clear(**files, **by_password),
                "passthrough": with_tls(certs, certs.ca.server("localhost"), **by_password, backend="asking"),
            },
            primary=with_certificate(cluster, certs),
            asking=passthrough(asking, certs),
        ),
        FILES | {"secrets.txt": secrets(cluster)},
    )


def connect(psql, certs, port, user="alice", secret=None, **words):
    encryption = {"sslmode": "verify-full", "sslrootcert": certs.ca.crt}
    return psql.run(
        "SELECT current_user", host="localhost", hostaddr="127.0.0.1", port=port, user=user, dbname="alice",
        password=secret or password(user), **(encryption | words),
    )  # fmt: skip


LOGGED_IN = {
    "tls": ("disable", "prefer", "require"),
    "clear": ("disable", "prefer"),
    "password": ("disable", "prefer"),
    "password_clear": ("disable", "prefer"),
    "passthrough": ("disable", "prefer"),
}


@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
@pytest.mark.parametrize("listener", LOGGED_IN)
def test_psql_logs_in_with_its_password(running, certs, each_psql, listener, binding):
    mode = {"sslmode": "disable"} if "clear" in listener else {}
    done = connect(each_psql, certs, running.port(listener), channel_binding=binding, **mode)
    if binding in LOGGED_IN[listener]:
        assert (done.stdout, done.stderr) == ("alice\n", "")
    else:
        assert "channel binding required" in done.stderr


@pytest.mark.parametrize("listener", ["tls", "password", "passthrough"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_logs_in(running, certs, driver, listener):
    target = Target(
        port=running.port(listener), user="alice", database="alice", password=password("alice"),
        ca=certs.ca.crt, application_name=driver,
    )  # fmt: skip
    with DRIVERS[driver](target) as connection:
        assert connection.rows("SELECT current_user") == [("alice",)]


@pytest.mark.parametrize(("user", "secret"), [("alice", "wrong"), ("bob", None), ("nobody", "x")])
@pytest.mark.parametrize("listener", LOGGED_IN)
def test_whoever_is_not_proved_is_refused_in_postgresql_s_words(
    running, certs, psql, cluster, listener, user, secret
):
    if listener == "passthrough":
        secret = "wrong"  # there bob's password is good
    mode = {"sslmode": "disable"} if "clear" in listener else {}
    since, heard = running.mark(), len(cluster.log_lines)
    name = f"{listener} {user}"
    done = connect(psql(17), certs, running.port(listener), user, secret, application_name=name, **mode)
    assert f'FATAL:  password authentication failed for user "{user}"\n' in done.stderr
    decided = running.wait_for_event("session_decided", since=since, application_name=name)
    assert (decided["verdict"], decided["sqlstate"]) == ("refused", "28P01")
    if listener != "passthrough":
        assert decided["kind"] == "denied"
        assert decided["backend_addr"] is None
        assert not any(f"user={user}" in line for line in cluster.log_lines[heard:])


def test_certificate_and_password_together_are_two_factors(running, certs, each_psql):
    port = running.port("two_factors")
    own, other = ({"sslcert": each.crt, "sslkey": each.key} for each in map(certs.client, ("alice", "bob")))
    assert connect(each_psql, certs, port, **own).stdout == "alice\n"
    assert (
        'password authentication failed for user "alice"'
        in connect(each_psql, certs, port, secret="wrong", **own).stderr
    )
    assert (
        'password authentication failed for user "alice"' in connect(each_psql, certs, port, **other).stderr
    )
    assert "connection requires a valid client certificate" in connect(each_psql, certs, port).stderr


def begun(running, listener, user, **words):
    """A client that is asked for its proof, and how."""
    client = WireClient(("127.0.0.1", running.port(listener)), source=wire.another_source())
    if listener == "tls":
        assert client.ask_for_tls() == b"S"
        client.start_tls()
    client.send(wire.startup(user=user, database="alice"))
    opening = client.read_message()
    wanted = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"] if listener == "tls" else ["SCRAM-SHA-256"]
    assert opening.body[4:].decode().split("\0")[:-2] == wanted
    return client, wire.begin_scram(client, opening=opening, **words)


def salt_of(running, user):
    client, challenge = begun(running, "clear", user)
    with client:
        return challenge.asked["s"]


@pytest.mark.parametrize("flag", ["p", "n"])
@pytest.mark.parametrize("user", ["alice", "bob", "nobody"])
def test_a_wrong_proof_takes_the_same_road_for_everybody(running, certs, user, flag):
    is_bound = flag == "p"
    client, challenge = begun(
        running,
        "tls",
        user,
        flag=b"p=tls-server-end-point,," if is_bound else b"n,,",
        end_point=end_point(certs.server) if is_bound else b"",
    )
    with client:
        assert (len(challenge.server_first), challenge.asked["i"]) == (84, "4096")
        client.send(wire.message(b"p", challenge.final()))
        refused = client.read_message()
        assert (refused.kind, refused.fields["C"]) == (b"E", "28P01")
        assert refused.fields["M"] == f'password authentication failed for user "{user}"'
        assert client.read_to_end() == b""
    assert refusal_of(running, client)["kind"] == "denied"


def test_salts_of_users_who_do_not_exist_never_change(proxy, cluster, certs):
    """Not from worker to worker, not with a reload, and not with a restart, as those of users who do exist."""
    listeners = {"clear": in_clear(scram_secrets_file="secrets.txt")}
    one = proxy(
        config(listeners, primary=with_certificate(cluster, certs)) | {"workers": 3},
        FILES | {"secrets.txt": secrets(cluster)},
    )
    users = ["alice", *(f"nobody{number}" for number in range(20))]
    salts = {user: {salt_of(one, user) for _ in range(6)} for user in users}
    assert {len(found) for found in salts.values()} == {1}
    assert len({salt for found in salts.values() for salt in found}) == len(users)
    mock = one.config.with_name("secrets.txt.mock")
    assert mock.stat().st_mode & 0o777 == 0o600
    kept = mock.read_bytes()
    mock.write_bytes(bytes(32))
    assert one.reload()["event"] == "reloaded"
    assert {user: {salt_of(one, user)} for user in users} == salts
    one.signal(signal.SIGTERM)
    assert one.wait() == 0
    again = proxy(
        one.config.read_text().replace("secrets.txt", str(one.config.with_name("secrets.txt"))), FILES
    )
    mock.write_bytes(kept)
    assert {user: {salt_of(again, user)} for user in users} != salts
    again.stop()
    third = proxy(again.config.read_text(), FILES)
    assert {user: {salt_of(third, user)} for user in users} == salts


def test_a_place_where_the_mock_secret_cannot_be_made_is_named(proxy, cluster, certs, command_line):
    listener = in_clear(scram_secrets_file="secrets.txt", scram_mock_secret_file="nowhere/mock")
    path = proxy.write(
        config({"l": listener}, primary=with_certificate(cluster, certs)), FILES | {"secrets.txt": ""}
    )
    assert command_line("check", "-c", str(path)).returncode == 0
    failed = command_line("serve", "-c", str(path))
    assert failed.returncode == 1
    assert "could not be made: No such file or directory" in failed.stderr
    assert "scram_mock_secret_file" in failed.stderr


@pytest.mark.parametrize("listed", ["", "another"])
@pytest.mark.parametrize("method", ["scram-sha-256", "password"])
def test_a_password_that_a_reload_has_withdrawn_meanwhile_lets_nobody_in(
    proxy, cluster, certs, method, listed
):
    """Whoever stalls in a login keeps nothing by it, as with a certificate that is revoked meanwhile."""
    running = proxy(
        config({"l": in_clear(scram_secrets_file="secrets.txt")}, primary=with_certificate(cluster, certs)),
        {"pg_hba.conf": f"host all all all {method}\n", "secrets.txt": secrets(cluster)},
    )
    with WireClient(("127.0.0.1", running.port("l"))) as client:
        client.send(wire.startup(user="alice", database="alice"))
        opening = client.read_message()
        other = Verifier.make(Secret(b"another"), bytes(16)).text()
        running.config.with_name("secrets.txt").write_text(f'"alice" "{other}"\n' if listed else "")
        assert running.reload()["event"] == "reloaded"
        if method == "password":
            client.send(wire.message(b"p", password("alice").encode() + b"\0"))
        else:
            wire.prove(client, password("alice"), opening=opening)
        refused = client.read_message()
        assert (refused.kind, refused.fields["C"]) == (b"E", "28P01")
        assert client.read_to_end() == b""
    reason = refusal_of(running, client)["reason"]
    assert "the password was good, and is not by the newest " in reason
    assert "secrets.txt" in reason
