"""TLS 1.2 and 1.3 on both legs, begun by SSLRequest or at once, and visible to `openssl s_client`."""

import ssl
import subprocess

import pytest

from fixtures import wire
from fixtures.deployments import (
    PROXY_CERTIFICATE_HBA,
    PROXY_CERTIFICATE_IDENT,
    config,
    passthrough,
    with_certificate,
    with_tls,
)
from fixtures.postgres import password

HBA = "hostssl all all all cert\n"
BACKEND_SSL = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@pytest.fixture(scope="module")
def running(tls_cluster, shared_proxy, certs):
    def cluster(version, **settings):
        return tls_cluster(version, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT, settings=settings)

    backends = {
        "primary": with_certificate(cluster(17), certs),
        "old": with_certificate(cluster(15, ssl_max_protocol_version="TLSv1.2"), certs),
        "capped": with_certificate(cluster(17), certs, ssl_max_protocol_version="TLSv1.2"),
        "direct": with_certificate(cluster(17), certs, sslnegotiation="direct"),
    }
    listeners = {name: with_tls(certs, backend=name) for name in backends}
    listeners["primary_13"] = with_tls(certs, ssl_min_protocol_version="TLSv1.3")
    listeners["primary_12"] = with_tls(certs, ssl_max_protocol_version="TLSv1.2")
    return shared_proxy(config(listeners, **backends), {"pg_hba.conf": HBA})


def connect(psql, certs, running, listener="primary", sql=BACKEND_SSL, **words):
    client = certs.client("alice")
    return psql.run(
        sql, host="localhost", hostaddr="127.0.0.1", port=running.port(listener), user="alice", dbname="alice",
        **{
            "sslmode": "verify-full", "sslrootcert": certs.ca.crt, "sslcert": client.crt, "sslkey": client.key,
        } | words,
    )  # fmt: skip


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_client_of_either_version_logs_in_by_certificate(running, certs, each_psql, version):
    name = f"{each_psql.major}-{version}"
    words = {"ssl_max_protocol_version": version, "application_name": name}
    done = connect(each_psql, certs, running, sql="\\conninfo", **words)
    assert f"SSL connection (protocol: {version}, " in done.stdout, done.stderr
    decided = running.wait_for_event("session_decided", application_name=name)
    found = {name: decided[name] for name in ("verdict", "tls_version", "backend_tls_version", "cert_cn")}
    assert found == {
        "verdict": "allowed", "tls_version": version, "backend_tls_version": "TLSv1.3", "cert_cn": "alice",
    }  # fmt: skip
    assert decided["tls_cipher"] in done.stdout


@pytest.mark.parametrize(("listener", "version"), [("primary_13", "TLSv1.2"), ("primary_12", "TLSv1.3")])
def test_a_version_outside_the_listeners_range_is_refused(running, certs, each_psql, listener, version):
    since = running.mark()
    range_of_one = {"ssl_min_protocol_version": version, "ssl_max_protocol_version": version}
    done = connect(each_psql, certs, running, listener, **range_of_one)
    assert done.returncode == 2
    assert "protocol version" in done.stderr
    running.wait_for_event("session_decided", since=since, listener=listener, kind="client_tls")


@pytest.mark.parametrize(("listener", "version"), [
    ("primary", "TLSv1.3"), ("old", "TLSv1.2"), ("capped", "TLSv1.2"), ("direct", "TLSv1.3"),
])  # fmt: skip
def test_each_way_to_the_server_is_verified_tls(running, certs, psql, listener, version):
    done = connect(psql(17), certs, running, listener)
    assert (done.stdout, done.stderr) == (f"{version}\n", "")


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("listener", ["primary", "direct"])
def test_direct_tls_of_psql_17(running, certs, psql, listener, version):
    words = {"sslnegotiation": "direct", "ssl_max_protocol_version": version}
    done = connect(psql(17), certs, running, listener, sql=f"\\conninfo\n{BACKEND_SSL}", **words)
    assert f"protocol: {version}, " in done.stdout
    assert "ALPN: postgresql" in done.stdout
    assert done.stdout.endswith("TLSv1.3\n")


def test_direct_tls_reaches_a_server_that_knows_none(running, certs, psql):
    done = connect(psql(17), certs, running, "old", sslnegotiation="direct")
    assert (done.stdout, done.stderr) == ("TLSv1.2\n", "")


def test_direct_tls_to_a_server_that_knows_none_is_unavailable(tls_cluster, certs, proxy, psql):
    backend = passthrough(tls_cluster(15), certs, sslnegotiation="direct")
    running = proxy(
        config({"tls": with_tls(certs)}, primary=backend), {"pg_hba.conf": "host all all all trust\n"}
    )
    done = connect(psql(17), certs, running, "tls", password=password("alice"))
    assert "FATAL:  the database system is not available" in done.stderr
    decided = running.wait_for_event("session_decided")
    assert (decided["sqlstate"], decided["kind"]) == ("57P03", "backend_tls")


@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")], ids=["no ALPN", "HTTP alone"])
def test_direct_tls_without_postgresqls_alpn_is_refused(running, alpn):
    with wire.WireClient(("127.0.0.1", running.port("primary"))) as client:
        try:
            client.start_tls(wire.tls_context(alpn=alpn))
            client.send(wire.startup(user="alice"))
            answer = client.read_to_end()
        except ssl.SSLError as error:
            assert "no application protocol" in str(error).replace("_", " ").lower()  # noqa: PT017
            answer = b""
        assert answer == b""
        decided = running.wait_for_event("session_decided", **client.where)
    assert (decided["verdict"], decided["kind"]) == ("refused", "client_tls")
    assert "ALPN" in decided["reason"]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client_sees_our_certificate_and_whom_we_believe(running, certs, version):
    client = certs.client("alice")
    done = subprocess.run(
        ["openssl", "s_client", "-starttls", "postgres", "-connect", f"127.0.0.1:{running.port('primary')}",
         "-CAfile", str(certs.ca.crt), "-verify_return_error", "-verify_hostname", "localhost",
         "-cert", str(client.crt), "-key", str(client.key), version],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Verify return code: 0 (ok)" in {line.strip() for line in lines}
    assert "subject=CN = localhost" in done.stdout
    acceptable = lines.index("Acceptable client certificate CA names")
    assert lines[acceptable + 1] == "CN = pgtlsproxy test CA"
    assert certs.server.certificate.serial_number == _served_serial(done.stdout)


def _served_serial(output):
    from cryptography import x509

    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    pem = begin + output.partition(begin)[2].partition(end)[0] + end
    return x509.load_pem_x509_certificate(pem.encode()).serial_number
