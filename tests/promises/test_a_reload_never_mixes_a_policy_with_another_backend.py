"""What a policy was judged against is what is dialled under it, whatever a reload can and cannot take."""

import socket

import pytest
import yaml

from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    in_clear,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.postgres import password


def rewrite(running, changed):
    running.config.write_text(yaml.safe_dump(plain(changed)))


def plain(value):
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, bool | int | str) else str(value)


def attempt(running, psql, listener, user="postgres", **words):
    return psql.run(
        "SELECT current_user", host="127.0.0.1", port=running.port(listener), user=user, dbname="alice",
        **({"sslmode": "disable"} | words),
    )  # fmt: skip


@pytest.fixture
def cluster(tls_cluster):
    return tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)


def test_a_listener_that_was_removed_lets_nobody_in(cluster, certs, proxy, psql):
    lab = {"lab": in_clear(), "other": in_clear(hba_file="other.conf")}
    open_backend = passthrough(cluster, certs, require_auth=["none", "scram-sha-256"])
    running = proxy(
        config(lab, primary=open_backend),
        {"pg_hba.conf": "host all all 127.0.0.1/32 trust\n", "other.conf": "host all all all reject\n"},
    )
    lab.pop("lab")
    rewrite(running, config(lab, primary=with_certificate(cluster, certs)))
    assert running.reload()["event"] == "reloaded"
    refused = attempt(running, psql(17), "lab")
    assert refused.returncode == 2
    assert "terminating connection due to administrator command" in refused.stderr


def test_an_idle_client_of_a_removed_listener_stops_nobody(cluster, certs, proxy, psql):
    listeners = {"lab": in_clear(), "other": in_clear()}
    running = proxy(
        config(listeners, primary=passthrough(cluster, certs)), {"pg_hba.conf": "host all all all reject\n"}
    )
    port = running.port("lab")
    listeners.pop("lab")
    rewrite(running, config(listeners, primary=passthrough(cluster, certs)))
    assert running.reload()["event"] == "reloaded"
    with socket.create_connection(("127.0.0.1", port)):
        refused = attempt(running, psql(17), "other")
        assert "pg_hba.conf rejects connection" in refused.stderr
        assert running.stop(timeout=5) == 0


def test_a_policy_that_is_kept_keeps_its_backend(cluster, certs, proxy, psql):
    listeners = {"lab": in_clear()}
    running = proxy(
        config(listeners, primary=passthrough(cluster, certs, require_auth=["none", "scram-sha-256"])),
        {"pg_hba.conf": "host all all 127.0.0.1/32 trust\n"},
    )
    (running.config.parent / "pg_hba.conf").write_text("hots all all all trust\n")
    rewrite(running, config(listeners, primary=with_certificate(cluster, certs)))
    assert running.reload()["kept"] == ["policy of listener lab"]
    refused = attempt(running, psql(17), "lab")
    # The old backend shows no certificate of the proxy's, and the server lets nobody in without one.
    assert refused.returncode == 2
    assert "postgres\n" not in refused.stdout


def test_a_new_crl_counts_although_the_tls_settings_do_not_load(tls_cluster, certs, proxy, psql):
    client = certs.ca.issue(certs.client("alice").certificate.subject, usage="client")
    listener = with_tls(certs, ssl_crl_file="ca.crl")
    backend = with_certificate(tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT), certs)
    running = proxy(
        config({"tls": listener}, primary=backend),
        {"pg_hba.conf": "hostssl all all all cert\n", "ca.crl": certs.ca.crl().read_bytes()},
    )
    words = {"sslmode": "require", "sslcert": client.crt, "sslkey": client.key}
    assert attempt(running, psql(17), "tls", "alice", **words).stdout == "alice\n"
    (running.config.parent / "ca.crl").write_bytes(certs.ca.crl(client).read_bytes())
    rewrite(running, config({"tls": {**listener, "ssl_ciphers": "NOTHING"}}, primary=backend))
    assert running.reload()["kept"] == ["TLS settings of listener tls"]
    assert attempt(running, psql(17), "tls", "alice", **words).returncode == 2
    refused = running.wait_for_event("session_decided", kind="client_certificate")
    assert refused["tls_error"] == "certificate revoked"


def test_a_reserved_user_is_fenced_from_a_server_that_trusts_the_proxys_address(
    tls_cluster, certs, proxy, psql
):
    trusting = tls_cluster(17, "hostssl all all 127.0.0.1/32 trust\n")
    bob = certs.client("bob")
    running = proxy(
        config({"tls": with_tls(certs, ident_file="pg_ident.conf")}, primary=passthrough(trusting, certs)),
        {"pg_hba.conf": "hostssl all all all cert map=m\n", "pg_ident.conf": "m bob all\n"},
    )
    words = {"sslmode": "require", "sslcert": bob.crt, "sslkey": bob.key, "password": password("bob")}
    assert attempt(running, psql(17), "tls", "bob", **words).stdout == "bob\n"
    refused = attempt(running, psql(17), "tls", "postgres", **words)
    assert refused.returncode == 2
    assert "believes the proxy" in running.wait_for_event("session_decided", kind="unproven")["reason"]
