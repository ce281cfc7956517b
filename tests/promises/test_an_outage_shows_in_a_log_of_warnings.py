"""With `log: {level: warning}` the id that a client is told stands in the log where a backend is to blame."""

import re
import socket

from fixtures.deployments import config, in_clear, with_certificate
from fixtures.postgres import TLS_HBA


def decision(running, psql):
    """What the proxy's log has under the id that psql printed."""
    result = psql(17).run(
        "SELECT 1", host="127.0.0.1", port=running.port("a"), user="alice", dbname="alice", sslmode="disable"
    )
    session = re.search(r"DETAIL:  pgtlsproxy session (\w+)", result.stderr)[1]
    return running.wait_for_event("session_decided", session=session)


def test_a_backend_that_is_down(certs, proxy, psql):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    backend = {"host": "localhost", "hostaddr": "127.0.0.1", "port": port, "sslrootcert": certs.ca.crt}
    running = proxy(
        config({"a": in_clear()}, primary=backend | {"login": "passthrough"}),
        {"pg_hba.conf": "host all all all scram-sha-256\n"},
    )
    decided = decision(running, psql)
    assert (decided["level"], decided["kind"]) == ("warning", "backend_unreachable")


def test_a_backend_that_refuses_the_proxys_own_credential(certs, tls_cluster, proxy, psql):
    backend = with_certificate(tls_cluster(17, f"hostssl all alice all reject\n{TLS_HBA}"), certs)
    running = proxy(
        config({"a": in_clear()}, primary=backend), {"pg_hba.conf": "host all alice 127.0.0.1/32 trust\n"}
    )
    decided = decision(running, psql)
    assert decided["reason"].startswith("the backend refused the proxy's own credential")
    assert (decided["level"], decided["kind"]) == ("warning", "backend_protocol")


def test_a_client_that_policy_refuses_is_no_outage(certs, tls_cluster, proxy, psql):
    running = proxy(
        config({"a": in_clear()}, primary=with_certificate(tls_cluster(17), certs)),
        {"pg_hba.conf": "host all bob 127.0.0.1/32 trust\n"},
    )
    decided = decision(running, psql)
    assert (decided["level"], decided["kind"]) == ("info", "denied")
    assert (decided["hba_file"], decided["hba_line"]) == (str(running.config.parent / "pg_hba.conf"), None)
