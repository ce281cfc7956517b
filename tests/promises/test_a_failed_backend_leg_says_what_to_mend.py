"""Why a backend cannot be had is told with the file, the setting or the question that leads further."""

import socket

import pytest

from fixtures.certs import common_names
from fixtures.deployments import config, in_clear, with_certificate
from fixtures.fake_backend import silent

HBA = {"pg_hba.conf": "host all alice 127.0.0.1/32 trust\n"}


def reason(running, psql):
    """Why the proxy did not let alice in."""
    psql(17).run(
        "SELECT 1", host="127.0.0.1", port=running.port("a"), user="alice", dbname="alice", sslmode="disable"
    )
    return running.wait_for_event("session_decided", verdict="refused")["reason"]


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("alert", ["certificate expired", "unknown ca"])
def test_a_certificate_of_ours_that_the_server_refuses_names_its_file(
    certs, tls_cluster, proxy, psql, version, alert
):
    if alert == "unknown ca":
        own = certs.other_ca.client("pgtlsproxy")
    else:
        own = certs.ca.expired(common_names("pgtlsproxy"), usage="client")
    backend = with_certificate(tls_cluster(17), certs, own, ssl_max_protocol_version=version)
    text = reason(proxy(config({"a": in_clear()}, primary=backend), HBA), psql)
    assert text.startswith(f"backend primary: localhost (127.0.0.1:{backend['port']}): the backend ")
    assert "refuses the proxy's own certificate: " in text
    assert text.endswith(f"; sslcert is {own.crt}")
    # In TLS 1.3 the alert comes behind the handshake, and may be overtaken by the reset that follows it.
    assert alert in text or ("hung up behind the TLS handshake" in text and version == "TLSv1.3")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (silent, "it accepted the connection, but did not answer SSLRequest; is it PostgreSQL? within 0.5 s"),
        (lambda web: web.send(b"HTTP/1.1"), "unexpected answer H after SSLRequest; is it PostgreSQL?"),
    ],
    ids=["silent", "HTTP"],
)
def test_something_else_than_postgresql_is_asked_about(certs, proxy, psql, fake_backend, script, told):
    backend = with_certificate(fake_backend(script), certs, connect_timeout=0.5)
    assert told in reason(proxy(config({"a": in_clear()}, primary=backend), HBA), psql)


def test_where_nobody_listens_libpqs_question_is_asked(certs, proxy, psql, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    backend = {
        "host": ["localhost", str(tmp_path)], "hostaddr": ["127.0.0.1", ""], "port": port,
        "sslrootcert": certs.ca.crt, "login": "passthrough",
    }  # fmt: skip
    running = proxy(
        config({"a": in_clear()}, primary=backend), {"pg_hba.conf": "host all all all scram-sha-256\n"}
    )
    text = reason(running, psql)
    assert (
        f"127.0.0.1:{port}): Connection refused; is the server running on that host and accepting TCP/IP "
        "connections?" in text
    )
    assert (
        f"{tmp_path}/.s.PGSQL.{port}: No such file or directory; is the server running locally and accepting "
        "connections on that socket?" in text
    )
