"""What `application_name_add` and `client_address` say reaches the server; nothing is added that nobody asked for."""

import re

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
from fixtures.drivers import by_certificate, by_password
from fixtures.postgres import password

SEEN = """\
SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid();
SELECT current_setting('pgtlsproxy.client_addr', true), current_setting('pgtlsproxy.client_name', true),
       current_setting('pgtlsproxy.session', true);
"""


@pytest.fixture(scope="module")
def running(tls_cluster, shared_proxy, certs):
    asking = tls_cluster(17)
    believing = tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)
    telling = {"client_address": True, "application_name_add": " - {name}@{addr}"}
    backends = {
        "silent": passthrough(asking, certs),
        "telling": passthrough(asking, certs, **telling),
        "everything": passthrough(asking, certs, application_name_add="|{addr}|{port}|{name}|{session}"),
        "telling_of_certificates": with_certificate(believing, certs, **telling),
    }
    listeners = {name: in_clear(backend=name) for name in ("silent", "telling", "everything")}
    listeners["certificates"] = with_tls(certs, hba_file="cert.conf", backend="telling_of_certificates")
    files = {"pg_hba.conf": "host all all all scram-sha-256\n", "cert.conf": "hostssl all all all cert\n"}
    return shared_proxy(config(listeners, **backends), files)


def seen(psql, target, **words):
    """application_name and the three settings, as the server has them."""
    done = psql(17).run(SEEN, **target.words | words)
    assert done.returncode == 0, done.stderr
    name, settings = done.stdout.splitlines()
    return name, settings.split("|")


def session_of(running, name):
    """The session whose application_name, as the client sent it, is this."""
    return running.wait_for_event("session_decided", application_name=name)


def test_by_default_nothing_is_added(running, psql):
    target = by_password(running, "silent", application_name="plain")
    assert seen(psql, target) == ("plain", ["", "", ""])


def test_who_logs_in_by_password_is_its_name_and_address(running, psql):
    target = by_password(running, "telling", application_name="legacy app")
    name, settings = seen(psql, target)
    session = session_of(running, "legacy app")["session"]
    assert name == "legacy app - @127.0.0.1"
    assert settings == ["127.0.0.1", "", session]


def test_who_logs_in_by_certificate_is_its_distinguished_name(running, certs, psql):
    target = by_certificate(running, "certificates", certs, application_name="app")
    name, settings = seen(psql, target)
    session = session_of(running, "app")["session"]
    assert name == "app - CN=alice@127.0.0.1"
    assert settings == ["127.0.0.1", "CN=alice", session]


def test_every_placeholder_joins_the_servers_log_to_ours(running, psql):
    target = by_password(running, "everything", application_name="all")
    name, _ = seen(psql, target)
    decided = session_of(running, "all")
    assert name == f"all|127.0.0.1|{decided['client_port']}||{decided['session']}"


def test_a_client_without_an_application_name_gets_ours_alone(running):
    with wire.WireClient(("127.0.0.1", running.port("telling"))) as client:
        client.send(wire.startup(user="alice"))
        reported = dict(
            message.body.decode().split("\0")[:2]
            for message in wire.log_in(client, password("alice"))
            if message.kind == b"S"
        )
    assert reported["application_name"] == " - @127.0.0.1"


def test_what_is_too_long_for_postgresql_is_cut_from_the_clients_part(running, psql):
    name, _ = seen(psql, by_password(running, "telling", application_name="n" * 100))
    own = " - @127.0.0.1"
    assert name == "n" * (63 - len(own)) + own


@pytest.mark.parametrize("spelling", ["pgtlsproxy.client_addr", "PGTLSPROXY.Client_Addr"])
@pytest.mark.parametrize(("listener", "expected"), [("silent", None), ("telling", "127.0.0.1")])
def test_a_clients_own_word_for_its_address_never_arrives(running, spelling, listener, expected):
    sql = "SELECT current_setting('pgtlsproxy.client_addr', true)"
    with wire.WireClient(("127.0.0.1", running.port(listener))) as client:
        client.send(wire.startup(("user", "alice"), (spelling, "192.0.2.1"), (spelling, "192.0.2.2")))
        wire.log_in(client, password("alice"))
        client.send(wire.query(sql))
        (row,) = [message.body for message in client.read_until(b"Z") if message.kind == b"D"]
    assert row == b"\0\1" + (b"\xff" * 4 if expected is None else b"\0\0\0\x09" + expected.encode())


def test_our_word_wins_over_a_clients_options(running, psql):
    target = by_password(running, "telling", application_name="liar")
    _, settings = seen(psql, target, options="-c pgtlsproxy.client_addr=192.0.2.1 -c pgtlsproxy.session=0")
    assert settings == ["127.0.0.1", "", session_of(running, "liar")["session"]]
    assert re.fullmatch(r"[0-9a-f]{16}", settings[2])
