"""Real psql reaches real PostgreSQL through verified TLS, in all three deployments."""

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

SSL = "SELECT current_user, ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


def test_a_client_in_clear_logs_in_with_its_password_over_tls_to_the_server(
    tls_cluster, certs, proxy, each_psql
):
    cluster = tls_cluster(17)
    running = proxy(
        config({"legacy": in_clear()}, primary=passthrough(cluster, certs)),
        {"pg_hba.conf": "host all all 127.0.0.1/32 scram-sha-256\n"},
    )
    result = each_psql.run(
        SSL, host="127.0.0.1", port=running.port("legacy"), user="alice", dbname="alice",
        password=password("alice"), sslmode="disable",
    )  # fmt: skip
    assert (result.stdout, result.stderr) == ("alice|t|TLSv1.3\n", "")
    decided = running.wait_for_event("session_decided", verdict="allowed", user="alice")
    assert decided["proof"] == "scram-sha-256"
    running.wait_for_event("session_ended", kind="ok", session=decided["session"])


def test_a_certificate_is_mapped_to_its_user_and_the_proxy_logs_in_with_its_own(
    tls_cluster, certs, proxy, each_psql
):
    cluster = tls_cluster(17, PROXY_CERTIFICATE_HBA, ident=PROXY_CERTIFICATE_IDENT)
    client = certs.client("alice.smith")
    running = proxy(
        config(
            {"central": with_tls(certs, ident_file="pg_ident.conf")}, primary=with_certificate(cluster, certs)
        ),
        {
            "pg_hba.conf": "hostssl all all all cert map=people\n",
            "pg_ident.conf": "people alice.smith alice\n",
        },
    )
    words = {
        "host": "localhost", "hostaddr": "127.0.0.1", "port": running.port("central"), "dbname": "alice",
        "sslmode": "verify-full", "sslrootcert": certs.ca.crt, "sslcert": client.crt, "sslkey": client.key,
    }  # fmt: skip
    result = each_psql.run(SSL, user="alice", **words)
    assert (result.stdout, result.stderr) == ("alice|t|TLSv1.3\n", "")
    decided = running.wait_for_event("session_decided", verdict="allowed")
    assert (decided["cert_cn"], decided["proof"], decided["ident_line"]) == ("alice.smith", "cert", 1)

    refused = each_psql.run(SSL, user="bob", **words)
    assert refused.returncode == 2
    assert 'certificate authentication failed for user "bob"' in refused.stderr
    assert "DETAIL:  pgtlsproxy session " in refused.stderr
